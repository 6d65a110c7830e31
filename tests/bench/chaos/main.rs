//! Fault injection: a move is struck in the handover, and a witness outside all hosts counts. `cargo bench --bench chaos`.
//!
//! usage: chaos [--runs N] [--seed N] [--jobs N] [--break RULE[,RULE]]
//!
//! Half of the runs are struck at a named step, half at a time drawn uniformly from the handover: programs and guardians are killed,
//! stopped for longer than every time-out, the link falls silent one way or both or breaks, a host loses power with what it has not
//! synced, a disk is full, memory runs out. What is left in doubt is resolved as a person would: by what `migrate status` says. A
//! run is repeated by its seed (`CHAOS_LOG=1` keeps the logs of one that fails below the directory for temporary files). Exit code 1
//! if anything was lost or doubled, or read wrong.
//!
//! `--break HoldBeforeCommit,EndAfterRunning` breaks the rules of the commit: then exit code 0 says that lost and doubled targets
//! were both seen.

mod accident;
mod host;
mod link;
mod stage;
mod witness;

use stage::{End, Record};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const ENDS: [(End, &str); 5] = [
    (End::Moved, "moved"),
    (End::Stayed, "stayed"),
    (End::EndedWithHost, "with host"),
    (End::Lost, "LOST"),
    (End::Doubled, "DOUBLED"),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1)).cloned();
    let number = |name: &str, usual| value(name).and_then(|n| n.parse().ok()).unwrap_or(usual);
    let (runs, first, jobs): (u64, u64, u64) = (number("--runs", 500), number("--seed", 1), number("--jobs", 2));
    let broken = value("--break");
    if !nix::unistd::geteuid().is_root() {
        println!("needs root");
        return ExitCode::from(3);
    }
    assert!(witness::Read::proves_itself(), "the witness sees what it is to see");
    let dir = tempfile::tempdir_in("/dev/shm").expect("there is room for a disk");
    let disk = dir.path().join("disk");
    let ready = host::make_disk(&disk).and_then(|()| stage::keep_program(dir.path()));
    let usual = match ready.and_then(|()| stage::usual(&disk)) {
        Ok(usual) => usual,
        Err(error) => {
            println!("needs namespaces, loop devices, mkfs.ext4 and /usr/bin/python3: {error}");
            return ExitCode::from(3);
        }
    };
    println!("an undisturbed handover takes {usual:?}");
    let records = Mutex::new(Vec::new());
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, 8) {
            scope.spawn(|| work(&next, first + runs, &disk, usual, broken.as_deref(), &records));
        }
    });
    let records = records.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary(&records, runs, first);
    let of = |end: End| records.iter().filter(|record| record.end == end).count();
    let wrong: usize = records.iter().map(|record| record.read.wrong).sum();
    let (lost, doubled) = (of(End::Lost), of(End::Doubled));
    let good = match broken {
        None => lost + doubled + wrong == 0 && records.len() as u64 == runs,
        Some(_) => lost > 0 && doubled > 0,
    };
    ExitCode::from(u8::from(!good))
}

fn work(next: &AtomicU64, end: u64, disk: &Path, usual: Duration, broken: Option<&str>, records: &Mutex<Vec<Record>>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        match stage::run(disk, seed, usual, broken) {
            Ok(record) => {
                let missed = if record.missed { ", NOT REACHED" } else { "" };
                let person = record.person.as_ref().map(|what| format!(", a person: {what}")).unwrap_or_default();
                let left = if record.left > 0 { format!(", {} LEFT OVER", record.left) } else { String::new() };
                println!(
                    "seed {seed}: {:?}: {:?}: {:?}, stood {:?}{}{person}{left}{missed}",
                    record.moment,
                    record.what,
                    record.end,
                    record.read.stood,
                    if record.doubted { ", in doubt" } else { "" },
                );
                records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            }
            Err(error) => println!("seed {seed}: NOT RUN: {error}"),
        }
    }
}

fn summary(records: &[Record], runs: u64, first: u64) {
    println!("\n{} of {runs} runs, seeds {first}..{}", records.len(), first + runs - 1);
    let mut rows: BTreeMap<&str, BTreeMap<End, usize>> = BTreeMap::new();
    for record in records {
        *rows.entry(record.what.row()).or_default().entry(record.end).or_default() += 1;
    }
    let head = ENDS.map(|(_, name)| format!("{name:>10}")).concat();
    println!("{:36}{:>6}{head}", "", "runs");
    for (row, ends) in &rows {
        let counts = ENDS.map(|(end, _)| format!("{:>10}", ends.get(&end).copied().unwrap_or(0))).concat();
        println!("{row:36}{:>6}{counts}", ends.values().sum::<usize>());
    }
    let all = ENDS.map(|(end, _)| format!("{:>10}", records.iter().filter(|r| r.end == end).count())).concat();
    println!("{:36}{:>6}{all}", "all", records.len());
    println!("wrong reads {}", records.iter().map(|record| record.read.wrong).sum::<usize>());
    let doubt = |name: &str, by_person: bool| {
        let of = || records.iter().filter(|r| r.person.is_some() == by_person && (r.doubted || by_person));
        let longest = of().map(|record| record.read.stood).max().unwrap_or_default();
        println!("{name} {}, the longest standstill {longest:?}", of().count());
    };
    doubt("in doubt, settled by the programs:", false);
    doubt("in doubt, decided by a person:", true);
    println!("copies left over {}", records.iter().map(|record| record.left).sum::<usize>());
    println!("steps not reached {}", records.iter().filter(|record| record.missed).count());
}
