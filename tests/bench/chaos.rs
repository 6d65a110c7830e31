//! Fault injection: programs killed or stopped in the handover, the link cut; a witness counts. `cargo bench --bench chaos`.
//!
//! usage: chaos [--runs N] [--seed N] [--break RULE]
//!
//! Half of the runs are struck at a named step, half at a time drawn uniformly from an undisturbed move. What is left in doubt is
//! resolved as a person would: by what `migrate status` says. The witness is the file that the target counts in: a number that is
//! there twice or missing is a doubled target, one that does not go on is a lost one; the target checks its memory itself.
//! A run is repeated by its seed. Exit code 1 if anything was lost or doubled. `--break HoldBeforeCommit` breaks that rule.

use migrate_engine::fault::Point;
use migrate_engine::ops::demo::cable::{Cable, Cut};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// Counts in a file, a line every 2 ms; every page of its memory holds what it must.
const COUNTER: &str = "
import os, sys, time
os.closerange(3, 1024)
out = open(sys.argv[1], 'a', buffering=1)
memory = bytearray(4 << 20)
n = 0
while True:
    n += 1
    memory[n * 4096 % len(memory)] = n % 251 + 1
    assert memory[(n - 1) * 4096 % len(memory)] in ((n - 1) % 251 + 1, 0)
    out.write('%d\\n' % n)
    time.sleep(0.002)
";

/// A small generator with a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % n
    }
}

/// What happens to a move.
#[derive(Debug, Clone, Copy)]
enum Accident {
    Killed(Point),
    Cut(Cut),
    /// After so long: the mover, the session, or both.
    Signal {
        after: Duration,
        mover: bool,
        session: bool,
        signal: Signal,
    },
}

/// Steps of the handover; those of the source first.
const POINTS: [Point; 12] = [
    Point::SourceReady,
    Point::SourceHeld,
    Point::SourceCommitting,
    Point::SourceCommitted,
    Point::SourceMoved,
    Point::SourceEnded,
    Point::DestinationArmed,
    Point::DestinationRecorded,
    Point::DestinationPrepared,
    Point::DestinationOrdered,
    Point::DestinationOwner,
    Point::DestinationRunning,
];

fn accident(random: &mut Random, usual: Duration) -> Accident {
    if random.below(2) == 0 {
        return match random.below(14) {
            12 => Accident::Cut(Cut::Before),
            13 => Accident::Cut(Cut::After),
            n => Accident::Killed(POINTS[n as usize]),
        };
    }
    let after = Duration::from_micros(random.below(usual.as_micros() as u64));
    let who = random.below(3);
    let signal = if random.below(3) == 0 { Signal::SIGSTOP } else { Signal::SIGKILL };
    Accident::Signal { after, mover: who != 1, session: who != 0, signal }
}

/// Two hosts (directories, with an agent on one of them) and a target.
struct Stage {
    dir: tempfile::TempDir,
    counter: Child,
    agent: Child,
}

impl Stage {
    fn set(environment: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().expect("there is room for a directory");
        let null = Stdio::null;
        let counter = Command::new("setsid")
            .args(["/usr/bin/python3", "-c", COUNTER])
            .arg(dir.path().join("count"))
            .stdin(null())
            .stdout(null())
            .stderr(null())
            .spawn()
            .expect("python3 is installed");
        let mut agent = on_host(&dir.path().join("b"));
        agent.args(["agent", "--listen", &format!("unix:{}", dir.path().join("agent.sock").display())]);
        agent.envs(environment.iter().map(|(name, value)| (name, value))).stdin(null()).stdout(null()).stderr(null());
        let stage = Self { agent: agent.spawn().expect("the program is built"), counter, dir };
        wait(|| stage.path("agent.sock").exists() && stage.numbers().len() > 5, Duration::from_secs(20));
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn numbers(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.path("count")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn mover(&self, to: &Path) -> Command {
        let mut command = on_host(&self.path("a"));
        command.args(["move", &self.counter.id().to_string(), &format!("unix:{}", to.display())]);
        command.args(["--peer-timeout", "1s", "-q"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Processes whose command line has this word.
    fn processes(&self, word: &str) -> Vec<i32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let has = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        };
        pids.filter(has).collect()
    }

    /// Processes of sessions: children of the agent. What they have made of the target has their command line, too.
    fn sessions(&self) -> Vec<i32> {
        let agent = format!("PPid:\t{}\n", self.agent.id());
        let of_agent = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| status.contains(&agent))
        };
        self.processes("session-process").into_iter().filter(of_agent).collect()
    }

    fn said(&self, host: &str, words: &[&str]) -> serde_json::Value {
        let output = on_host(&self.path(host)).args(words).arg("--json").stdin(Stdio::null()).output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        serde_json::from_slice(text.rsplit(|b| *b == b'\n').find(|line| !line.is_empty()).unwrap_or(b"null"))
            .unwrap_or_default()
    }

    /// What is known of a target that does not go on.
    fn tell(&self) {
        for host in ["a", "b"] {
            println!("  {host}: {}", self.said(host, &["status", "--all"])["sessions"]);
        }
        for pid in self.processes(&self.path("count").display().to_string()) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            println!("  process {pid}: {:?}", status.lines().find(|line| line.starts_with("State")));
        }
    }

    /// As a person would: what each host says, then a decision. Whether there was one to make.
    fn resolve(&self) -> bool {
        let entry = |host: &str| self.said(host, &["status"])["sessions"][0].clone();
        let mut decided = false;
        for _ in 0..20 {
            let (a, b) = (entry("a"), entry("b"));
            let word = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            let decide = |host: &str, entry: &serde_json::Value, choice: &str| {
                self.said(host, &["resolve", &word(entry, "session"), choice, "--yes"]);
            };
            match (word(&a, "owner").as_str(), word(&b, "phase").starts_with("prepared")) {
                ("there", _) => decide("a", &a, "--discard"),
                ("here", true) | ("", true) => decide("b", &b, "--discard"),
                ("here", false) | ("in-doubt", _) => decide("a", &a, "--run"),
                _ => return decided,
            }
            decided = true;
            std::thread::sleep(Duration::from_millis(50));
        }
        decided
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let ours = self.processes(&self.path("count").display().to_string());
        for pid in self.sessions().into_iter().chain(ours) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for child in [&mut self.agent, &mut self.counter] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whoever has ended meanwhile gets none.
fn send(to: &[i32], signal: Signal) {
    for pid in to {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

fn on_host(host: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.env("MIGRATE_PLACES", host);
    command
}

fn wait(mut until: impl FnMut() -> bool, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while !until() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// What became of a target.
fn run(seed: u64, usual: Duration, broken: Option<&str>) -> (Accident, &'static str, Option<Duration>) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let accident = accident(&mut random, usual);
    let mut environment: Vec<(&str, String)> =
        broken.map(|rule| ("MIGRATE_BREAK", rule.to_owned())).into_iter().collect();
    let once = tempfile::NamedTempFile::new().expect("there is room for a file");
    if let Accident::Killed(point) = accident {
        environment.push(("MIGRATE_KILL", point.name().to_owned()));
        environment.push(("MIGRATE_ONCE", once.path().display().to_string()));
    }
    let stage = Stage::set(&environment);
    let mut to = stage.path("agent.sock");
    if let Accident::Cut(how) = accident {
        let cable = stage.path("cable.sock");
        Cable::lay(&cable, to, how).expect("a socket can be made");
        to = cable;
    }
    let mut mover = stage.mover(&to);
    mover.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut mover = mover.spawn().expect("the program is built");
    if let Accident::Signal { after, mover: of_mover, session, signal } = accident {
        std::thread::sleep(after);
        let mut struck = if session { stage.sessions() } else { Vec::new() };
        struck.extend(of_mover.then_some(mover.id() as i32));
        send(&struck, signal);
        if signal == Signal::SIGSTOP {
            std::thread::sleep(Duration::from_millis(2500));
            send(&struck, Signal::SIGCONT);
        }
    }
    wait(|| !matches!(mover.try_wait(), Ok(None)), Duration::from_secs(60));
    let (_, _) = (mover.kill(), mover.wait());
    let since = Instant::now();
    let doubt = stage.resolve().then(|| since.elapsed());
    let before = stage.numbers().len();
    let goes_on = wait(|| stage.numbers().len() > before + 10, Duration::from_secs(10));
    let whole = stage.numbers().windows(2).all(|pair| pair[1] == pair[0] + 1);
    let here = stage.processes(&stage.path("count").display().to_string()).contains(&(stage.counter.id() as i32));
    if !goes_on {
        stage.tell();
    }
    let end = match (whole, goes_on, here) {
        (false, ..) => "DOUBLED",
        (true, false, _) => "LOST",
        (true, true, true) => "stayed",
        (true, true, false) => "moved",
    };
    (accident, end, doubt)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1)).cloned();
    let number = |name: &str, usual| value(name).and_then(|n| n.parse().ok()).unwrap_or(usual);
    let (runs, first) = (number("--runs", 50), number("--seed", 1));
    let broken = value("--break");
    if !nix::unistd::geteuid().is_root() {
        println!("needs root");
        return ExitCode::from(3);
    }
    let stage = Stage::set(&[]);
    let began = Instant::now();
    let moved = stage.mover(&stage.path("agent.sock")).status().is_ok_and(|status| status.success());
    let usual = began.elapsed();
    drop(stage);
    println!("an undisturbed move takes {usual:?} (moved: {moved})");
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let mut doubts = Vec::new();
    for seed in first..first + runs {
        let (accident, end, doubt) = run(seed, usual, broken.as_deref());
        println!("seed {seed}: {accident:?}: {end}{}", if doubt.is_some() { ", resolved by a person" } else { "" });
        *ends.entry(end).or_default() += 1;
        doubts.extend(doubt);
    }
    println!("\n{runs} runs, seeds {first}..{}", first + runs - 1);
    for end in ["moved", "stayed", "LOST", "DOUBLED"] {
        println!("{end:10} {}", ends.get(end).copied().unwrap_or(0));
    }
    doubts.sort_unstable();
    println!(
        "of these resolved by a person: {}, longest {:?}",
        doubts.len(),
        doubts.last().copied().unwrap_or_default()
    );
    ExitCode::from(u8::from(ends.contains_key("LOST") || ends.contains_key("DOUBLED")))
}
