//! A slow link with a long way: 100 Mbit/s and 80 ms round trip, by a relay of this bench's own in the clients' network.

use crate::hosts::Ours;
use crate::memory::longest_gap;
use crate::notes::{self, Notes};
use crate::relay::Relay;
use crate::{Bench, PROGRAM, spread};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

const RATE: f64 = 12.5e6;
const ROUND_TRIP: Duration = Duration::from_millis(80);
const PORT: u16 = 7415;
const MIB: u64 = 32;
const PAGES_PER_SECOND: &str = "500";
/// How long the link is cut.
const OUTAGE: Duration = Duration::from_millis(700);

/// Name, mode, whether the link is cut after the target has begun to run there.
const ROWS: [(&str, &str, bool); 3] = [
    ("slow: 32 MiB, 500 pages/s, pre-copy", "pre-copy", false),
    ("slow: 32 MiB, 500 pages/s, post-copy", "post-copy", false),
    ("slow: 32 MiB, 500 pages/s, post-copy, cut", "post-copy", true),
];

/// What one move has shown, milliseconds.
struct Moved {
    pause: f64,
    felt: f64,
    /// One access to memory.
    access: f64,
    total: f64,
    carried: f64,
}

pub fn run(bench: &Bench, wanted: &dyn Fn(&str) -> bool) -> Result<(), String> {
    for (name, mode, cut) in ROWS.into_iter().filter(|(name, ..)| wanted(name)) {
        let all = (0..bench.runs).map(|_| one(bench, mode, cut)).collect::<Result<Vec<_>, _>>();
        let all = all.map_err(|e| format!("{name}: {e}"))?;
        let wire = (MIB << 20) as f64 / RATE * 1e3;
        let row = |value: &dyn Fn(&Moved) -> f64| spread(all.iter().map(value).collect());
        println!(
            "{name:<46} pause {} ms, felt inside {}, longest access {}, total {} ms = {} x wire, carried {} x memory",
            row(&|m| m.pause),
            row(&|m| m.felt),
            row(&|m| m.access),
            row(&|m| m.total),
            row(&|m| m.total / wire),
            row(&|m| m.carried / (MIB << 20) as f64),
        );
    }
    Ok(())
}

fn one(bench: &Bench, mode: &str, cut: bool) -> Result<Moved, String> {
    let [source, _, middle] = &bench.hosts;
    let agent = bench.agent.1.strip_prefix("tcp+plain://").ok_or("the agent does not listen at a TCP port")?;
    let agent = agent.parse().map_err(|e| format!("{agent}: {e}"))?;
    let at = format!("{}:{PORT}", middle.address);
    let relay = Relay::begin(middle, at.clone(), agent, RATE, ROUND_TRIP)?;
    let path = bench.dir.join("notes");
    let notes = Notes::make(&path)?;
    let words =
        [bench.fixture.display().to_string(), MIB.to_string(), PAGES_PER_SECOND.to_owned(), "uniform".to_owned()];
    let pid = source.start(words.into_iter().chain([path.display().to_string()]))?;
    notes.until(notes::READY)?;
    std::thread::sleep(Duration::from_millis(200));
    let first = notes.count()?;
    let mut command = source.command(PROGRAM);
    command.args(["move", &pid.to_string(), &format!("tcp+plain://{at}"), "--allow-plain", "--mode", mode, "--json"]);
    let mut moving = Ours(command.args(["--files", "skip"]).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?);
    let (mut said, mut result, mut was_cut) = (String::new(), serde_json::Value::Null, false);
    for line in BufReader::new(moving.0.stdout.take().ok_or("it is piped")?).lines() {
        let line = line.map_err(|e| e.to_string())?;
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if cut && event["event"] == "switched" {
            // In the middle of what follows.
            std::thread::sleep(ROUND_TRIP * 4);
            relay.cut();
            std::thread::sleep(OUTAGE);
            relay.heal();
            was_cut = true;
        }
        said += &line;
        said.push('\n');
        result = event;
    }
    let status = moving.0.wait().map_err(|e| e.to_string())?;
    if !status.success() {
        return Err(format!("the move failed: {status}: {said}"));
    }
    if cut && !was_cut {
        return Err(format!("the link was never cut: {said}"));
    }
    std::thread::sleep(Duration::from_millis(100));
    let accesses = notes.accesses()?.split_off(first);
    let wrong = notes.wrong()?;
    let there = result["pid"].as_i64().ok_or("it has no id")?;
    bench.kill(1, there);
    // Nothing of it is left where it was.
    if source.run(&format!("test -e /proc/{pid}")).is_ok() {
        return Err("the original is still there".into());
    }
    if wrong != 0 {
        return Err(format!("{wrong} WRONG PAGES after the move"));
    }
    let number = |name: &str| result[name].as_f64().ok_or_else(|| format!("no {name} is reported: {result}"));
    let carried = relay.carried() as f64;
    let (pause, total) = (number("downtime_us")? / 1e3, number("total_us")? / 1e3);
    let all_of_it = (MIB << 20) as f64;
    if carried < all_of_it {
        return Err(format!("{carried} bytes went over the link, of {all_of_it} in memory"));
    }
    let access = f64::from(accesses.iter().map(|access| access.took_us).max().unwrap_or(0)) / 1e3;
    Ok(Moved { pause, felt: longest_gap(&accesses), access, total, carried })
}
