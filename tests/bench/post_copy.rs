//! Post-copy over a slow link: `cargo bench --bench post_copy` (as root).
//!
//! usage: post_copy [--runs N] [--link RATE] [--keep] [NAME...]
//!
//! Two hosts made of network namespaces, joined by a veth pair whose ends are slowed down (tc-tbf(8), 1 Gbit/s unless `--link` says
//! otherwise). A process that writes pages at a steady rate and notes how long each access took (tests/fixtures/stalls.c) moves
//! by `--mode post-copy` without earlier rounds. Printed for each shape, medians (least-most): the pause; from the beginning to the last
//! page as a multiple of the time that its memory takes on the wire; the longest access after the pause; how many accesses waited, in %
//! of the pages, and as a multiple of what is unavoidable for the trace where nothing can be foretold (pages come in ascending
//! order, at the rate of the link, but for those that are waited for: [`unavoidable`]). Exit code 1 if a page was wrong, or was sent twice or not at all.

#[path = "notes.rs"]
mod notes;

use notes::{Access, Notes};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
/// Bytes on the wire for each byte of TCP (1448 of 1514 with time stamps).
const FRAMED: f64 = 1514.0 / 1448.0;

/// Name, MiB, pages written a second, pattern.
const SHAPES: [(&str, u64, u64, &str); 5] = [
    ("256 MiB, 2000 pages/s, uniform", 256, 2000, "uniform"),
    ("256 MiB, 2000 pages/s, zipf", 256, 2000, "zipf"),
    ("256 MiB, 2000 pages/s, sequential", 256, 2000, "sequential"),
    ("256 MiB, 2000 pages/s, moving", 256, 2000, "moving"),
    ("512 MiB, 20000 pages/s, uniform", 512, 20_000, "uniform"),
];

/// A process of ours that ends with this value.
struct Ours(Child);

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace.
struct Host(Ours);

impl Host {
    fn make() -> Result<Self, String> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo ready; read -r _"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Ours(command.spawn().map_err(|e| format!("unshare: {e}"))?);
        let out = holder.0.stdout.as_mut().ok_or("it is piped")?;
        out.read_exact(&mut [0; 6]).map_err(|e| format!("no namespace: {e}"))?;
        Ok(Self(holder))
    }

    fn pid(&self) -> String {
        self.0.0.id().to_string()
    }

    /// A command that runs there.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid(), "--net", "--"]).arg(program).stdin(Stdio::null()).current_dir("/");
        command
    }

    fn run(&self, words: &str) -> Result<(), String> {
        let mut words = words.split(' ');
        let mut command = self.command(words.next().unwrap_or_default());
        let output = command.args(words).output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {said}")) }
    }
}

/// What one move has shown.
struct Moved {
    pause_ms: f64,
    total_ms: f64,
    worst_ms: f64,
    /// Accesses that took longer than this kind of wait, milliseconds.
    over_10_ms: f64,
    faults: f64,
    unavoidable: f64,
    pages: f64,
}

/// How many accesses of a trace wait although a page that is waited for comes ahead of all others: the rest comes in ascending
/// order, so many pages a second, and nothing is known of what comes next.
fn unavoidable(trace: &[Access], pages: u64, per_second: f64) -> u64 {
    let mut there = vec![false; pages as usize];
    let (mut cursor, mut sent, mut waits) = (0usize, 0u64, 0);
    let Some(begun) = trace.first().map(|access| access.when) else { return 0 };
    for access in trace {
        let due = ((access.when - begun) as f64 / 1e9 * per_second) as u64;
        while sent < due && cursor < there.len() {
            sent += u64::from(!there[cursor]);
            there[cursor] = true;
            cursor += 1;
        }
        if let Some(page) = there.get_mut(access.page as usize).filter(|there| !**there) {
            (*page, sent, waits) = (true, sent + 1, waits + 1);
        }
    }
    waits
}

struct Bench<'a> {
    source: Host,
    _destination: Host,
    _agent: Ours,
    address: String,
    dir: &'a Path,
    /// Bytes a second of the link.
    rate: f64,
    keep: bool,
}

impl<'a> Bench<'a> {
    fn make(dir: &'a Path, rate: &str, keep: bool) -> Result<Self, String> {
        let (source, destination) = (Host::make()?, Host::make()?);
        let link = "ip link add eth0 type veth peer name eth0 netns ";
        source.run(&format!("{link}{}", destination.pid()))?;
        for (host, address) in [(&source, "192.0.2.1/24"), (&destination, "192.0.2.2/24")] {
            host.run("ip link set lo up")?;
            host.run(&format!("ip address add {address} dev eth0"))?;
            host.run("ip link set eth0 up")?;
            host.run(&format!("tc qdisc add dev eth0 root tbf rate {rate} burst 128k latency 20ms"))?;
        }
        let mut agent = destination.command(PROGRAM);
        agent.env("MIGRATE_PLACES", dir.join("destination")).stderr(Stdio::piped());
        agent.args(["agent", "--listen", "tcp+plain://192.0.2.2:7413", "--allow-plain"]);
        let mut agent = Ours(agent.spawn().map_err(|e| e.to_string())?);
        let mut said = BufReader::new(agent.0.stderr.take().ok_or("it is piped")?);
        let address = loop {
            let mut line = String::new();
            if said.read_line(&mut line).map_err(|e| e.to_string())? == 0 {
                return Err("the agent does not listen".into());
            }
            if let Some(address) = line.trim().strip_prefix("listening on ") {
                break address.to_owned();
            }
        };
        // Whatever it says later must not end it.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let number = rate.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &rate[number.len()..] {
            "gbit" => 125e6,
            "mbit" => 125e3,
            _ => return Err(format!("{rate} is no rate: 1gbit, 100mbit")),
        };
        let rate = number.parse::<f64>().map_err(|e| e.to_string())? * unit;
        Ok(Self { source, _destination: destination, _agent: agent, address, dir, rate, keep })
    }

    fn one(&self, fixture: &Path, (mib, rate, pattern): (u64, u64, &str)) -> Result<Moved, String> {
        let path = self.dir.join("notes");
        let notes = Notes::make(&path)?;
        let mut command = self.source.command(fixture);
        command.args([&mib.to_string(), &rate.to_string(), pattern]).arg(&path);
        let mut target = Ours(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?);
        notes.until(notes::READY)?;
        std::thread::sleep(Duration::from_millis(100));
        let mut command = self.source.command(PROGRAM);
        command.env("MIGRATE_PLACES", self.dir.join("source")).stdout(Stdio::piped());
        command.args(["move", &target.0.id().to_string(), &self.address, "--mode", "post-copy"]);
        command.args(["--allow-plain", "--pids", "new", "--files", "skip", "--json", "--compress", "off"]);
        let mut moving = command.spawn().map_err(|e| e.to_string())?;
        let (result, frozen_at) = events(&mut moving, &notes)?;
        let status = moving.wait().map_err(|e| e.to_string())?;
        if !status.success() {
            return Err(format!("the move failed: {result}"));
        }
        let _ = target.0.wait();
        let pid = result["pid"].as_i64().ok_or("it has no id")?;
        // What waits in the last moment is noted when it has ended.
        std::thread::sleep(Duration::from_millis(50));
        let accesses = notes.accesses()?;
        let wrong = notes.wrong()?;
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
        if wrong != 0 {
            return Err(format!("{wrong} WRONG PAGES after the move"));
        }
        if self.keep {
            println!("{result}");
        }
        self.judge(mib, &result, &accesses[frozen_at.min(accesses.len())..])
    }

    fn judge(&self, mib: u64, result: &serde_json::Value, after: &[Access]) -> Result<Moved, String> {
        let number = |name: &str| result[name].as_f64().ok_or_else(|| format!("no {name} is reported: {result}"));
        let pages = mib * 256;
        let sent = number("pages_sent")?;
        // Beside the memory there is little in the process.
        if sent < pages as f64 || sent > pages as f64 + 1000.0 {
            return Err(format!("PAGES SENT TWICE OR NOT AT ALL: {sent} of {pages}"));
        }
        let per_second = self.rate / FRAMED / 4096.0;
        let worst = after.iter().map(|access| access.took_us).max().unwrap_or(0);
        let over = after.iter().filter(|access| access.took_us > 10_000).count();
        Ok(Moved {
            pause_ms: number("downtime_us")? / 1e3,
            total_ms: number("total_us")? / 1e3,
            worst_ms: f64::from(worst) / 1e3,
            over_10_ms: over as f64,
            faults: number("faults")?,
            unavoidable: unavoidable(after, pages, per_second) as f64,
            pages: pages as f64,
        })
    }

    fn shape(&self, fixture: &Path, shape: (&str, u64, u64, &str), runs: usize) -> Result<(), String> {
        let (name, mib, rate, pattern) = shape;
        let all: Vec<Moved> = (0..runs)
            .map(|_| self.one(fixture, (mib, rate, pattern)))
            .collect::<Result<_, _>>()
            .map_err(|e| format!("{name}: {e}"))?;
        let wire_ms = (mib << 20) as f64 * 1e3 / self.rate;
        let row = |value: &dyn Fn(&Moved) -> f64| spread(all.iter().map(value).collect());
        println!(
            "{name:<34} pause {} ms  total {} x wire  longest access {} ms ({} over 10 ms)  waits {} %, {} x unavoidable",
            row(&|m| m.pause_ms),
            row(&|m| m.total_ms / wire_ms),
            row(&|m| m.worst_ms),
            row(&|m| m.over_10_ms),
            row(&|m| 100.0 * m.faults / m.pages),
            row(&|m| m.faults / m.unavoidable.max(1.0)),
        );
        Ok(())
    }
}

/// The result of a move, and how many accesses there had been when the target was frozen.
fn events(moving: &mut Child, notes: &Notes) -> Result<(serde_json::Value, usize), String> {
    let out: ChildStdout = moving.stdout.take().ok_or("it is piped")?;
    let (mut result, mut frozen_at) = (serde_json::Value::Null, 0);
    for line in BufReader::new(out).lines() {
        let event: serde_json::Value = serde_json::from_str(&line.map_err(|e| e.to_string())?).unwrap_or_default();
        match event["event"].as_str() {
            Some("frozen") => frozen_at = notes.count()?,
            Some("result") => result = event,
            _ => {}
        }
    }
    Ok((result, frozen_at))
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    format!("{:.2} ({:.2}-{:.2})", at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

fn bench() -> Result<(), String> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let (mut runs, mut rate, mut keep, mut names) = (5, "1gbit".to_owned(), false, Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|n| n.parse().ok()).ok_or("--runs takes a number")?,
            "--link" => rate = words.next().ok_or("--link takes a rate")?,
            "--keep" => keep = true,
            _ => names.push(word),
        }
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| e.to_string())?;
    let dir = tempfile::Builder::new().tempdir_in("/dev/shm").map_err(|e| e.to_string())?;
    let fixture = dir.path().join("stalls");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stalls.c");
    let compiled = Command::new("gcc").args(["-O2", "-o"]).arg(&fixture).arg(source).arg("-lm").status();
    if !compiled.is_ok_and(|status| status.success()) {
        return Err("gcc cannot compile the fixture".into());
    }
    let bench = Bench::make(dir.path(), &rate, keep)?;
    for shape in SHAPES {
        if names.is_empty() || names.iter().any(|part| shape.0.contains(part.as_str())) {
            bench.shape(&fixture, shape, runs)?;
        }
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
