//! The pause of `migrate move`: `cargo bench --bench moves` (as root).
//!
//! usage: moves [--runs N] [--max-downtime TIME] [NAME...]
//!
//! A process that writes pages at a steady rate (tests/fixtures/writer.c, fixed seed) is moved to an agent with places of its own
//! on this machine, over a UNIX socket, into a PID namespace of its own. Printed for each shape: the pause as the source reports it
//! (median, least-most), its parts (medians), rounds, and bytes sent over the memory. The moved process compares every page in the
//! end; exit code 1 if one was wrong.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// Name, MiB, pages written a second.
const SHAPES: [(&str, u64, u64); 6] = [
    ("1 MiB, 2000 pages/s", 1, 2000),
    ("64 MiB, 2000 pages/s", 64, 2000),
    ("1 GiB, 2000 pages/s", 1024, 2000),
    ("1 GiB, 20000 pages/s", 1024, 20_000),
    ("4 GiB, 2000 pages/s", 4096, 2000),
    ("4 GiB, 20000 pages/s", 4096, 20_000),
];

/// A program of ours that ends with this value.
struct Ours(Child);

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What one move has shown, microseconds.
struct Moved {
    pause: f64,
    parts: Vec<(String, f64)>,
    rounds: usize,
    bytes: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Starts something and waits for the first line that it says.
fn start(mut command: Command, says: impl Fn(&mut Child) -> Box<dyn BufRead>) -> Result<(Ours, String), String> {
    let mut child = command.stdin(Stdio::null()).spawn().map_err(|e| e.to_string())?;
    let mut line = String::new();
    let mut said = says(&mut child);
    let ours = Ours(child);
    said.read_line(&mut line).map_err(|e| e.to_string())?;
    Ok((ours, line.trim().to_owned()))
}

fn one(dir: &Path, writer: &Path, address: &str, shape: (u64, u64), goal: &[String]) -> Result<Moved, String> {
    let mut command = Command::new(writer);
    command.args([shape.0.to_string(), shape.1.to_string()]).stdout(Stdio::piped()).current_dir("/");
    let (mut target, line) =
        start(command, |child| Box::new(BufReader::new(child.stdout.take().expect("it is piped"))))?;
    if line != "ready" {
        return Err(format!("the writer did not come up: {line:?}"));
    }
    let mut command = Command::new(PROGRAM);
    command.env("MIGRATE_PLACES", dir.join("source"));
    command
        .args(["move", &target.0.id().to_string(), address, "--json", "--mode", "pre-copy", "--pids", "new"])
        .args(goal);
    let output = command.output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let result: serde_json::Value = text.lines().last().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
    if !output.status.success() {
        return Err(format!("the move failed: {text}"));
    }
    let _ = target.0.wait();
    let pid = result["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).ok_or("it has no id")?;
    // It compares its pages and ends; process 1 of its namespace, which has come to us, ends as it does.
    kill(Pid::from_raw(pid), Signal::SIGUSR2).map_err(|e| format!("it does not run: {e}"))?;
    let wrong = loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(_, code @ (0 | 1))) => break code,
            Ok(WaitStatus::Exited(..)) | Err(nix::errno::Errno::EINTR) => {}
            Ok(WaitStatus::Signaled(_, signal, _)) => return Err(format!("the moved process was ended by {signal}")),
            other => return Err(format!("the moved process is not there: {other:?}")),
        }
    };
    if wrong != 0 {
        return Err("WRONG PAGES after the move".into());
    }
    let parts = result["downtime_parts"].as_object().into_iter().flatten();
    Ok(Moved {
        pause: result["downtime_us"].as_f64().ok_or("no pause is reported")?,
        parts: parts.filter_map(|(name, took)| Some((name.clone(), took.as_f64()?))).collect(),
        rounds: result["rounds"].as_array().map_or(0, Vec::len),
        bytes: result["bytes_sent"].as_f64().unwrap_or(f64::NAN),
    })
}

fn print(name: &str, mib: u64, all: &[Moved]) {
    let ms = |us: f64| us / 1e3;
    let pauses: Vec<f64> = all.iter().map(|m| m.pause).collect();
    let (least, most) = (pauses.iter().copied().fold(f64::MAX, f64::min), pauses.iter().copied().fold(0.0, f64::max));
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (part, took) in all.iter().flat_map(|m| &m.parts) {
        parts.entry(part).or_default().push(*took);
    }
    let parts: Vec<String> = parts.into_iter().map(|(part, took)| format!("{part} {:.1}", ms(median(took)))).collect();
    println!(
        "{name:<22} pause {:>6.1} ms ({:.1}-{:.1})  {}  {} rounds  sent {:.2} x memory",
        ms(median(pauses)),
        ms(least),
        ms(most),
        parts.join(" "),
        median(all.iter().map(|m| m.rounds as f64).collect()),
        median(all.iter().map(|m| m.bytes).collect()) / (mib << 20) as f64
    );
}

fn bench() -> Result<(), String> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let (mut runs, mut goal, mut names) = (10, Vec::new(), Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|n| n.parse().ok()).ok_or("--runs takes a number")?,
            "--max-downtime" => goal = vec![word, words.next().ok_or("--max-downtime takes a time")?],
            _ => names.push(word),
        }
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| e.to_string())?;
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let writer = dir.path().join("writer");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/writer.c");
    let compiled = Command::new("gcc").args(["-O2", "-o"]).arg(&writer).arg(source).status();
    if !compiled.is_ok_and(|status| status.success()) {
        return Err("gcc cannot compile the writer".into());
    }
    let mut agent = Command::new(PROGRAM);
    agent.env("MIGRATE_PLACES", dir.path().join("destination")).stderr(Stdio::piped());
    agent.args(["agent", "--listen", &format!("unix:{}", dir.path().join("agent.sock").display())]);
    let (_agent, line) = start(agent, |child| Box::new(BufReader::new(child.stderr.take().expect("it is piped"))))?;
    let address = line.strip_prefix("listening on ").ok_or_else(|| format!("the agent does not listen: {line}"))?;
    for (name, mib, rate) in SHAPES {
        if !names.is_empty() && !names.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let move_one = |_| one(dir.path(), &writer, address, (mib, rate), &goal);
        let all = (0..runs).map(move_one).collect::<Result<Vec<_>, _>>().map_err(|e| format!("{name}: {e}"))?;
        print(name, mib, &all);
    }
    Ok(())
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
