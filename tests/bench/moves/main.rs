//! Moves between two hosts: `[CRIU=PATH] cargo bench --bench moves -- [--runs N] [--max-downtime TIME] [--all] [NAME...]` (as root).
//!
//! Two hosts and a third for clients are made of namespaces, joined by veth pairs; a link is slowed down by tc-tbf(8). NAME is a part of
//! a row's name; --all adds the rows that take minutes. Printed are medians (least-most); exit code 1 if anything was wrong: a
//! page, an answer, a connection that was lost.
//!
//! - `memory`: a process that writes pages at a steady rate (tests/fixtures/stalls.c, fixed seed) moves by pre-copy with its address.
//!   The pause as the source reports it, as the process feels it (the longest time between two writes), and as a client sees it that
//!   asks every millisecond whether or not it was answered; what was sent as a multiple of what had to be. With CRIU the same
//!   process, stopped and sent through its page server, in turn in the same run.
//! - `redis`: one with a GiB, and the same kind of client: its longest gap beside pause and round trips.
//! - `workload`: a shell that forks, redis while it saves, postgres with new connections; each has a client that checks it.
//! - `slow`: 100 Mbit/s and 80 ms round trip by a relay; pre-copy, post-copy, and post-copy whose link is cut and healed meanwhile.

mod client;
mod criu;
#[path = "../hosts.rs"]
mod hosts;
mod memory;
#[path = "../notes.rs"]
mod notes;
mod programs;
mod relay;
mod slow;

use hosts::{Host, Ours};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
/// The address that moves with a target.
const ADDRESS: &str = "192.0.2.100";

/// Two hosts, an agent at the second, and what is measured with.
struct Bench {
    /// Where the address is.
    agent: (Ours, String),
    hosts: [Host; 3],
    fixture: PathBuf,
    dir: PathBuf,
    runs: usize,
    /// `--max-downtime`.
    goal: Vec<String>,
}

/// A move that has gone well.
struct Done {
    /// Process id at the destination.
    pid: i64,
    events: Vec<serde_json::Value>,
}

impl Done {
    /// A number of the result.
    fn number(&self, name: &str) -> Result<f64, String> {
        let result = self.events.last().ok_or("it has said nothing")?;
        result[name].as_f64().ok_or_else(|| format!("no {name} is reported: {result}"))
    }
}

impl Bench {
    fn make(dir: &Path, runs: usize, goal: Vec<String>) -> Result<Self, String> {
        let fixture = dir.join("stalls");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stalls.c");
        let compiled =
            Command::new("gcc").args(["-O2", "-pthread", "-o"]).arg(&fixture).arg(source).arg("-lm").status();
        if !compiled.is_ok_and(|status| status.success()) {
            return Err("gcc cannot compile the fixture".into());
        }
        let hosts = hosts::star(dir)?;
        let agent = hosts[1].agent(Path::new(PROGRAM))?;
        Ok(Self { agent, hosts, fixture, dir: dir.to_owned(), runs, goal })
    }

    /// Slows both hosts' links down to this rate, or no longer.
    fn limit(&self, rate: Option<&str>) -> Result<(), String> {
        for host in &self.hosts[..2] {
            // There may be none.
            let _ = host.run("tc qdisc del dev eth0 root");
            if let Some(rate) = rate {
                host.run(&format!("tc qdisc add dev eth0 root tbf rate {rate} burst 128k latency 20ms"))?;
            }
        }
        Ok(())
    }

    /// Gives the first host the address that moves.
    fn lend_address(&self) -> Result<&'static str, String> {
        let _ = self.hosts[1].run(&format!("ip address del {ADDRESS}/24 dev eth0"));
        self.hosts[0].run(&format!("ip address replace {ADDRESS}/24 dev eth0"))?;
        // What the client knows of it is where it was.
        let _ = self.hosts[2].run("ip neighbour flush dev eth0");
        Ok(ADDRESS)
    }

    /// Moves a process of the first host to the second, with the address if that is lent.
    fn moves(&self, pid: i64, options: &[&str]) -> Result<Done, String> {
        let mut command = self.hosts[0].command(PROGRAM);
        command.args(["move", &pid.to_string(), &self.agent.1, "--allow-plain", "--json"]);
        command
            .args(["--move-address", &format!("{ADDRESS}/24@eth0")])
            .args(options)
            .args(&self.goal)
            .stderr(Stdio::piped());
        let output = command.output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!("the move failed: {text}{}", String::from_utf8_lossy(&output.stderr)));
        }
        let events: Vec<serde_json::Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let pid = events.last().and_then(|result| result["pid"].as_i64()).ok_or("it has no id")?;
        Ok(Done { pid, events })
    }

    /// Ends a process of a host with its descendants, if it has not ended by itself, and returns when it is gone.
    fn kill(&self, host: usize, pid: i64) {
        const SCRIPT: &str = "end() { for c in $(cat /proc/$1/task/*/children); do end $c; done; kill -KILL $1; }
            end $1; while [ -e /proc/$1 ]; do sleep 0.01; done";
        let mut command = self.hosts[host].command("timeout");
        command.args(["10", "sh", "-c", SCRIPT, "sh", &pid.to_string()]).stderr(Stdio::null());
        let _ = command.status();
    }
}

/// Median (least-most).
fn spread(mut values: Vec<f64>) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    format!("{:.2} ({:.2}-{:.2})", at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

fn bench(words: Vec<String>) -> Result<(), String> {
    let (mut runs, mut all, mut goal, mut names) = (10, false, Vec::new(), Vec::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|n| n.parse().ok()).ok_or("--runs takes a number")?,
            "--max-downtime" => goal = vec![word, words.next().ok_or("--max-downtime takes a time")?],
            "--all" => all = true,
            _ => names.push(word),
        }
    }
    let dir = tempfile::Builder::new().prefix("moves-").tempdir_in("/dev/shm").map_err(|e| e.to_string())?;
    let bench = Bench::make(dir.path(), runs, goal)?;
    let wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part.as_str()));
    // Whoever enters a host begins at its root.
    let criu = std::env::var_os("CRIU").map(std::path::absolute).transpose().map_err(|e| format!("CRIU: {e}"))?;
    memory::run(&bench, &wanted, all, criu.as_deref())?;
    programs::redis(&bench, &wanted)?;
    programs::workloads(&bench, &wanted)?;
    slow::run(&bench, &wanted)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let result = match words.as_slice() {
        [client, address, kind] if client == "client" => client::run(address, kind),
        _ => bench(words),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
