//! Fault injection: a move is struck in the handover, and a witness outside all hosts counts. `cargo bench --bench chaos`.
//!
//! usage: chaos [--runs N] [--seed N] [--jobs N] [--to N] [--via | --fanout-tree K] [--break RULE[,RULE]] [--chance PERCENT]
//!
//! Half of the runs are struck at a named step, half at a time drawn uniformly from the handover: programs and guardians are killed,
//! stopped for longer than every time-out, the link falls silent one way or both or breaks, a host loses power with what it has not
//! synced, a disk is full, memory runs out. In a half of the runs memory follows after COMMIT (post-copy, hybrid). A client outside
//! all hosts asks the target over one TCP connection meanwhile. What is left in doubt is resolved as a person would: by what
//! `migrate status` says. A run is repeated by its seed (`CHAOS_LOG=1` keeps the logs of one that fails below the directory for
//! temporary files). Exit code 1 if anything was lost or doubled, or read wrong, or a connection was.
//!
//! With `--to N` the target goes to so many destinations at once, without the client: one of them is struck, all but one, all at once,
//! or all one by one. What a destination keeps that has not got the target is counted: page stores, sessions, mounts, processes.
//!
//! With `--via` they are behind a proxy on a host of its own, which is among those that are struck: its process is killed or stopped,
//! the source's link to it falls silent or breaks, its host loses power. With `--fanout-tree K` destinations pass on to each other, and
//! whoever is struck at a destination is struck in that, too. Destinations are reached by TCP then, and their own links stay whole.
//!
//! `--chance PERCENT`: nothing of that; each destination dies with that chance before it is ready, and moves to one, two and four
//! destinations are counted that failed.
//!
//! `--break HoldBeforeCommit,EndAfterRunning` breaks the rules of the commit, in each run one of them: then exit code 0 says that
//! doubled and lost targets were both seen.

mod accident;
mod chance;
mod client;
mod host;
mod link;
mod net;
mod person;
mod seeds;
mod stage;
mod there;
mod witness;

use accident::{Mode, Struck};
use seeds::Seeds;
use stage::{End, Record, Setting, Through};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1)).cloned();
    let number = |name: &str, usual| value(name).and_then(|n| n.parse().ok()).unwrap_or(usual);
    let (runs, first, jobs): (u64, u64, u64) = (number("--runs", 500), number("--seed", 1), number("--jobs", 2));
    let (broken, destinations) = (value("--break"), number("--to", 1).clamp(1, 8) as u8);
    let through = match (words.iter().any(|word| word == "--via"), value("--fanout-tree")) {
        (true, _) => Through::Proxy,
        (false, Some(_)) => Through::Tree(number("--fanout-tree", 1).clamp(1, 8) as u8),
        (false, None) => Through::Nobody,
    };
    if !nix::unistd::geteuid().is_root() {
        println!("needs root");
        return ExitCode::from(3);
    }
    assert!(witness::Read::proves_itself() && client::proves_itself(), "the witness sees what it is to see");
    let dir = tempfile::tempdir_in("/dev/shm").expect("there is room for a disk");
    let disk = dir.path().join("disk");
    let ready = host::make_disk(&disk).and_then(|()| stage::keep_program(dir.path()));
    let setting = Setting { disk: &disk, destinations, through, usual: Duration::ZERO };
    let setting = match ready.and_then(|()| stage::usual(&setting)) {
        Ok(usual) => Setting { usual, ..setting },
        Err(error) => {
            println!("needs namespaces, a bridge, loop devices, mkfs.ext4 and /usr/bin/python3: {error}");
            return ExitCode::from(3);
        }
    };
    println!("an undisturbed handover takes {:?}", setting.usual);
    let seeds = Seeds { first, runs, jobs: jobs.clamp(1, 8) };
    if let Some(percent) = value("--chance").and_then(|percent| percent.parse().ok()) {
        return ExitCode::from(u8::from(!chance::measure(&setting, seeds, percent)));
    }
    let records = seeds.each(|seed| work(seed, &setting, broken.as_deref()));
    summary(&records, runs, first);
    let seen = |end: End| records.iter().any(|record| record.end == end);
    let good = match broken {
        None => records.len() as u64 == runs && !records.iter().any(|record| record.is_bad()),
        Some(_) => seen(End::Lost) && seen(End::Doubled),
    };
    ExitCode::from(u8::from(!good))
}

/// One run, and what is said of it; `None`: it could not be run.
fn work(seed: u64, setting: &Setting<'_>, broken: Option<&str>) -> Option<Record> {
    // Two runs with the same rule: one at a step, one at a random time.
    let rules: Vec<&str> = broken.into_iter().flat_map(|rules| rules.split(',')).collect();
    let broken = rules.get((seed / 2) as usize % rules.len().max(1)).copied();
    match stage::run(setting, seed, broken) {
        Ok(record) => {
            let missed = if record.missed { ", NOT REACHED" } else { "" };
            let person = record.person.as_ref().map(|what| format!(", a person: {what}")).unwrap_or_default();
            let left = if record.left > 0 { format!(", {} LEFT OVER", record.left) } else { String::new() };
            let mut remarks = String::new();
            let mut remark = |is: bool, words: &str| remarks.push_str(if is { words } else { "" });
            remark(record.doubted, ", in doubt");
            remark(record.felt, ", felt");
            remark(record.client.broken > 0, ", the connection broke");
            remark(record.cut, " WITHOUT A REASON");
            remark(record.deaf, ", DEAF");
            remark(record.wrong() > 0, ", WRONG READS");
            let struck = record.struck.map(|struck| format!(" ({})", struck.name())).unwrap_or_default();
            println!(
                "seed {seed}{}: {}: {:?}: {:?}{struck}: {:?}, stood {:?}{remarks}{person}{left}{missed}",
                broken.map(|rule| format!(" without {rule}")).unwrap_or_default(),
                record.mode.name(),
                record.moment,
                record.what,
                record.end,
                record.read.stood,
            );
            Some(record)
        }
        Err(error) => {
            println!("seed {seed}: NOT RUN: {error}");
            None
        }
    }
}

/// A column: what is counted in it.
type Column = (&'static str, fn(&Record) -> usize);

const COLUMNS: [Column; 12] = [
    ("runs", |_| 1),
    ("completed", |r| usize::from(r.end == End::Moved)),
    ("rolled back", |r| usize::from(r.end == End::Stayed)),
    ("halted", |r| usize::from(r.end == End::Halted)),
    ("with host", |r| usize::from(r.end == End::EndedWithHost)),
    ("in doubt", |r| usize::from(r.doubted || r.person.is_some())),
    ("LOST", |r| usize::from(r.end == End::Lost)),
    ("DOUBLED", |r| usize::from(r.end == End::Doubled)),
    ("wrong reads", Record::wrong),
    ("cut off", |r| usize::from(r.cut || r.deaf)),
    ("left over", |r| r.left),
    ("felt", |r| usize::from(r.felt || !r.what.may_miss())),
];

fn row<'r>(name: &str, records: impl Iterator<Item = &'r Record>) {
    let mut counts = [0; COLUMNS.len()];
    for record in records {
        counts.iter_mut().zip(COLUMNS).for_each(|(count, (_, of))| *count += of(record));
    }
    println!("{name:36}{}", counts.map(|count| format!("{count:>12}")).concat());
}

fn summary(records: &[Record], runs: u64, first: u64) {
    println!("\n{} of {runs} runs, seeds {first}..{}", records.len(), first + runs - 1);
    println!("{:36}{}", "", COLUMNS.map(|(name, _)| format!("{name:>12}")).concat());
    let mut rows: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    records.iter().for_each(|record| rows.entry(record.what.row()).or_default().push(record));
    rows.iter().for_each(|(name, records)| row(name, records.iter().copied()));
    for mode in [Mode::Auto, Mode::Hybrid, Mode::PostCopy] {
        row(&format!("all, {}", mode.name()), records.iter().filter(|record| record.mode == mode));
    }
    for struck in Struck::ALL {
        if records.iter().any(|record| record.struck == Some(struck)) {
            row(struck.name(), records.iter().filter(|record| record.struck == Some(struck)));
        }
    }
    row("all", records.iter());
    let doubt = |name: &str, by_person: bool| {
        let of = || records.iter().filter(|r| r.person.is_some() == by_person && (r.doubted || by_person));
        let longest = of().map(|record| record.read.stood).max().unwrap_or_default();
        println!("{name} {}, the longest standstill {longest:?}", of().count());
    };
    doubt("in doubt, settled by the programs:", false);
    doubt("in doubt, decided by a person:", true);
    println!("answers to the client {}", records.iter().map(|record| record.client.answers).sum::<u64>());
    println!("steps not reached {}", records.iter().filter(|record| record.missed).count());
}
