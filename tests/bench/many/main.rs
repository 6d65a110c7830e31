//! Moves to several destinations at once: `[RUNS=N] cargo bench --bench many` (as root).
//!
//! A source, eight hosts with an agent each and one between them are made of namespaces, joined by veth pairs. A process of 256 MiB that
//! writes 2000 pages a second (tests/fixtures/stalls.c, fixed seed) moves by pre-copy to 1, 2, 4 and 8 of them, in turn, N times (5 if
//! nothing is said). Printed are medians (least-most):
//!
//! - read: bytes of pages read from the target by the rounds of the report, over its memory; and over its memory and every write until
//!   it was frozen, which is what one reader may have to read;
//! - CPU of the source: of the program that moves it (getrusage(2)), with the program that enters its host for it;
//! - uplink: bytes that left the source's device, over those with one destination;
//! - total, until the target runs; pause, both as the source reports them;
//! - CPU of the agents, all of the move; and of the whole machine without the source's program, from `frozen` to `switched`
//!   (cgroups(7)): what it is more than with one is that of the additional agents and what they rebuild.
//!
//! The same to four through a proxy, which is one more of the hosts: what leaves the source, over that with one destination.
//!
//! Then the same to four whose links carry 1 Gbit/s (tc-tbf(8)), in turn with four of which the last one is behind a relay of 1/100 of that:
//! most resident memory of the program that moves it (`VmHWM`), and the total.
//!
//! Last, three such processes of 128 MiB each are evacuated to two hosts over a source's link of 1 Gbit/s, in turn side by side
//! (`--jobs 3`), one by one, and with `--serial`: the total from the beginning of the first move to the end of the last, the longest pause, the
//! longest access to memory, and the uplink over the memory of all. `-- evacuate`: this alone.
//!
//! All hosts share the processors of this one. Whether goals were met is printed; exit code 1 only if a move failed, a page was wrong,
//! or a destination had not deleted what it held.

#[path = "../hosts.rs"]
mod hosts;
#[path = "../notes.rs"]
#[allow(dead_code)] // When and where an access was is looked at by others.
mod notes;
#[path = "../moves/relay.rs"]
#[allow(dead_code)] // Links are cut by others.
mod relay;
mod stage;

use relay::Relay;
use stage::{Evacuated, MIB, Moved, Stage};
use std::process::ExitCode;
use std::time::Duration;

const CANDIDATES: [usize; 4] = [1, 2, 4, stage::MOST];
/// Of the run with a slow one.
const FEW: usize = 4;
const RATE: &str = "1gbit";
/// Bytes a second: 1/100.
const SLOW_RATE: f64 = 1.25e6;
const SLOW_PORT: u16 = 7415;
/// Goals: read, over memory and writes; pause, over that with one.
const READ_MOST: f64 = 1.05;
const PAUSE_MOST: f64 = 1.5;
/// Uplink with a proxy, over that with one destination.
const UPLINK_MOST: f64 = 1.1;
/// MiB held for one that is slow: a queue of 8 MiB, a frame, and what the allocator keeps.
const HELD_MOST: f64 = 16.0;
/// With a slow one, over that without.
const TOTAL_MOST: f64 = 1.1;

/// Evacuated at a time, and their sizes.
const TREES: usize = 3;
const TREE_MIB: u64 = 128;

fn median<T>(moves: &[T], value: &dyn Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = moves.iter().map(value).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median (least-most).
fn spread<T>(moves: &[T], value: &dyn Fn(&T) -> f64) -> String {
    let (least, most) = moves.iter().map(value).fold((f64::INFINITY, 0.0), |(a, b), v| (v.min(a), v.max(b)));
    format!("{:.2} ({least:.2}-{most:.2})", median(moves, value))
}

fn verdict(name: &str, found: f64, most: f64, unit: &str) {
    let word = if found <= most { "met" } else { "MISSED" };
    println!("  {name:<72} {found:.2}{unit}, at most {most:.2}{unit}: {word}");
}

/// Bytes read, over what one reader may have to read.
fn read_ratio(moved: &Moved) -> f64 {
    moved.read / ((MIB << 20) as f64 + moved.written)
}

fn candidates(stage: &Stage, runs: usize) -> Result<(), String> {
    let mut all: [Vec<Moved>; CANDIDATES.len()] = Default::default();
    let (mut relayed, proxy) = (Vec::new(), stage.address(stage::MOST - 1));
    for _ in 0..runs {
        for (moves, count) in all.iter_mut().zip(CANDIDATES) {
            let addresses: Vec<&str> = (0..count).map(|n| stage.address(n)).collect();
            moves.push(stage.moves(&addresses, None).map_err(|e| format!("to {count}: {e}"))?);
        }
        let addresses: Vec<&str> = (0..FEW).map(|n| stage.address(n)).collect();
        relayed.push(stage.moves(&addresses, Some(proxy)).map_err(|e| format!("to {FEW} through a proxy: {e}"))?);
    }
    let uplink = median(&all[0], &|m| m.uplink);
    let through = (&relayed, format!("{FEW} through a proxy"));
    for (moves, to) in all.iter().zip(CANDIDATES.map(|count| count.to_string())).chain([through]) {
        let row = |value: &dyn Fn(&Moved) -> f64| spread(moves, value);
        println!(
            "to {to}: read {} x memory, {} x memory and writes; CPU of the source {} ms; uplink {} x one; total {} ms; \
             pause {} ms; CPU of agents {} ms, of the machine but the source in the pause {} ms",
            row(&|m| m.read / (MIB << 20) as f64),
            row(&read_ratio),
            row(&|m| m.source_cpu),
            row(&|m| m.uplink / uplink),
            row(&|m| m.total),
            row(&|m| m.pause),
            row(&|m| m.agents_cpu),
            row(&|m| m.there_cpu),
        );
    }
    println!("goals:");
    for (moves, count) in all.iter().zip(CANDIDATES) {
        verdict(&format!("to {count}: read, x memory and writes"), median(moves, &read_ratio), READ_MOST, "");
    }
    let name = format!("to {FEW} through a proxy: uplink, x that with one");
    verdict(&name, median(&relayed, &|m| m.uplink) / uplink, UPLINK_MOST, "");
    let alone = PAUSE_MOST * median(&all[0], &|m| m.pause);
    for (moves, count) in all.iter().zip(CANDIDATES).filter(|(_, count)| *count == FEW) {
        let (pause, there) = (median(moves, &|m| m.pause), |moves: &[Moved]| median(moves, &|m| m.there_cpu));
        let others = (there(moves) - there(&all[0])).max(0.0);
        let name = format!("to {count}: pause, 1.5 x that with one and CPU of the additional agents in it");
        verdict(&name, pause, alone + others, " ms");
        println!("    the additional agents: {others:.2} ms of CPU; without that: {pause:.2} ms, of {alone:.2} ms");
    }
    Ok(())
}

fn slow(stage: &Stage, runs: usize) -> Result<(), String> {
    stage.limit(FEW, Some(RATE))?;
    let last = stage.address(FEW - 1);
    let agent = last.strip_prefix("tcp+plain://").ok_or("the agent does not listen at a TCP port")?;
    let agent = agent.parse().map_err(|e| format!("{agent}: {e}"))?;
    let at = format!("{}:{SLOW_PORT}", stage.middle().address);
    let behind = format!("tcp+plain://{at}");
    let even: Vec<&str> = (0..FEW).map(|n| stage.address(n)).collect();
    let mut uneven = even.clone();
    uneven[FEW - 1] = &behind;
    let (mut without, mut with, mut carried) = (Vec::new(), Vec::new(), 0);
    for _ in 0..runs {
        without.push(stage.moves(&even, None).map_err(|e| format!("to {FEW} at {RATE}: {e}"))?);
        // One for each move: what the last one left on its way goes with it.
        let relay = Relay::begin(stage.middle(), at.clone(), agent, SLOW_RATE, Duration::ZERO)?;
        with.push(stage.moves(&uneven, None).map_err(|e| format!("to {FEW}, one slow: {e}"))?);
        carried = relay.carried().max(carried);
    }
    for (name, moves) in [("all at", &without), ("one at 1/100 of", &with)] {
        let row = |value: &dyn Fn(&Moved) -> f64| spread(moves, value);
        println!(
            "to {FEW}, {name} {RATE}: peak {} MiB; total {} ms; pause {} ms; read {} x memory and writes",
            row(&|m| m.peak),
            row(&|m| m.total),
            row(&|m| m.pause),
            row(&read_ratio),
        );
    }
    println!("the slow link carried {:.1} MiB at most", carried as f64 / 1048576.0);
    println!("goals:");
    let held = median(&with, &|m| m.peak) - median(&without, &|m| m.peak);
    verdict("one slow: memory held beyond that without", held, HELD_MOST, " MiB");
    let total = median(&with, &|m| m.total) / median(&without, &|m| m.total);
    verdict("one slow: total, x that without", total, TOTAL_MOST, "");
    stage.limit(FEW, None)
}

fn evacuations(stage: &Stage, runs: usize) -> Result<(), String> {
    const WAYS: [(&str, &[&str]); 3] =
        [("side by side", &["--jobs", "3"]), ("one by one", &["--jobs", "1"]), ("--serial", &["--serial"])];
    stage.limit_source(Some(RATE))?;
    let mut all: [Vec<Evacuated>; WAYS.len()] = Default::default();
    for _ in 0..runs {
        for (found, (name, options)) in all.iter_mut().zip(WAYS) {
            found.push(stage.evacuates(TREES, TREE_MIB, options).map_err(|e| format!("{name}: {e}"))?);
        }
    }
    for (found, (name, _)) in all.iter().zip(WAYS) {
        let row = |value: &dyn Fn(&Evacuated) -> f64| spread(found, value);
        println!(
            "evacuate {TREES} x {TREE_MIB} MiB at {RATE}, {name}: total {} ms; longest pause {} ms; longest access {} ms; uplink {} x memory",
            row(&|e| e.total),
            row(&|e| e.pause),
            row(&|e| e.access),
            row(&|e| e.uplink),
        );
    }
    let total = |way: usize| median(&all[way], &|e| e.total);
    println!(
        "--serial: total {:.2} x that side by side, {:.2} x that one by one",
        total(2) / total(0),
        total(2) / total(1)
    );
    stage.limit_source(None)
}

fn bench() -> Result<(), String> {
    let runs = match std::env::var("RUNS") {
        Ok(text) => text.parse().ok().filter(|runs| *runs > 0).ok_or_else(|| format!("RUNS={text}: not a number"))?,
        Err(_) => 5,
    };
    let dir = tempfile::Builder::new().prefix("many-").tempdir_in("/dev/shm").map_err(|e| e.to_string())?;
    let stage = Stage::make(dir.path())?;
    if !std::env::args().any(|argument| argument == "evacuate") {
        candidates(&stage, runs)?;
        slow(&stage, runs)?;
    }
    evacuations(&stage, runs)
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
