//! `migrate demo`: two hosts made of namespaces, a program with a counter and a client, and a move between them.
//!
//! Everything runs on this machine: a bridge in a network namespace of its own is the network, and the client sits on it.
//! Each host has its own network, PID, mount and UTS namespaces (`hosts`). The program's address moves with it. [`cable`] is what is cut
//! between them, [`parts`] are program and client.

pub mod cable;
mod hosts;
pub mod parts;

use super::options::{DemoOptions, Kill, Mode};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::fault::Point;
use cable::{Cable, Cut};
use hosts::{Host, Network};
use parts::{Sight, Verdict};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What the demo shows, in the order of its happening.
#[derive(Debug, Clone, PartialEq)]
pub enum Scene {
    /// What the client sees, every 100 ms.
    Sight(Sight),
    /// A word about what happens now.
    Word(String),
    /// What the move said.
    Moved {
        /// The pause as `migrate move` measured it.
        pause: Option<Duration>,
    },
    /// The end.
    Verdict(Verdict),
}

/// Client's address on the bridge.
const CLIENT: &str = "10.77.0.1/24";
/// The program's address, which moves.
pub const SERVICE: &str = "10.77.0.10";
/// The program's port.
pub const PORT: u16 = 7700;
/// What runs before the move and after it.
const BEFORE: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_millis(1500);
/// Longest time anything here may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the demo; `show` gets each scene. The verdict is also returned.
///
/// # Errors
/// Namespaces cannot be made here, or a part of the demo does not start.
pub fn run(options: &DemoOptions, show: &mut dyn FnMut(&Scene)) -> Result<Verdict> {
    check(options)?;
    let dir = Workplace::make(options.keep)?;
    let network = Network::make(CLIENT)?;
    let a = Host::make(&network, "host-a", "10.77.0.2/24", dir.path())?;
    let b = Host::make(&network, "host-b", "10.77.0.3/24", dir.path())?;
    a.add_address(SERVICE)?;
    let socket = dir.path().join("host-b.sock");
    let mut agent = b.migrate();
    let once = dir.path().join("once");
    std::fs::write(&once, "").map_err(|e| Failure::of("cannot write below the demo's directory", &e))?;
    if options.kill == Some(Kill::Destination) {
        agent.env("MIGRATE_KILL", Point::DestinationRecorded.name()).env("MIGRATE_ONCE", &once);
    }
    let agent = Part::start(agent_of(&mut agent, &socket), "agent")?;
    wait_for(&socket)?;
    let reached_by = match options.kill {
        Some(Kill::Link) => {
            let path = dir.path().join("cable.sock");
            Cable::lay(&path, socket, Cut::Before).map_err(|e| Failure::of("the demo's cable cannot be laid", &e))?;
            path
        }
        _ => socket,
    };
    let pidfile = dir.path().join("counter.pid");
    let program = Part::start(a.migrate_part("counter").arg("--file").arg(&pidfile), "program")?;
    wait_for(&pidfile)?;
    let pid = std::fs::read_to_string(&pidfile).map_err(|e| Failure::of("the program did not start", &e))?;
    let mut client =
        Part::start(network.migrate_part("client").stdout(Stdio::piped()).stderr(Stdio::null()), "client")?;
    let sights = client.output()?;
    let mut audience = Audience { lines: sights, show };
    audience.watch(BEFORE)?;
    (audience.show)(&Scene::Word(format!("migrate move {pid} host-b")));
    let mover = mover(&a, options, &pid, &reached_by)?;
    match options.kill {
        None | Some(Kill::Link) => {
            let pause = audience.watch_until_ended(mover)?;
            (audience.show)(&Scene::Moved { pause });
        }
        Some(kill) => audience.watch_the_accident(mover, kill, &a)?,
    }
    audience.watch(AFTER)?;
    client.end();
    let verdict = Verdict { stays: options.kill == Some(Kill::Destination), ..audience.verdict()? };
    drop((program, agent));
    (audience.show)(&Scene::Verdict(verdict.clone()));
    Ok(verdict)
}

fn agent_of<'c>(command: &'c mut Command, socket: &Path) -> &'c mut Command {
    command.arg("agent").arg("--listen").arg(format!("unix:{}", socket.display()));
    command.stdout(Stdio::null()).stderr(Stdio::null())
}

/// Whoever ends the source before memory has followed ends the target.
fn check(options: &DemoOptions) -> Result<()> {
    match (options.mode, options.kill) {
        (Mode::PostCopy | Mode::Hybrid, Some(Kill::Source)) => {
            let what = "--kill source shows nothing in this mode: the memory is still there";
            Err(Failure::new(what).kind(FailureKind::Usage))
        }
        _ => Ok(()),
    }
}

fn mover(a: &Host, options: &DemoOptions, pid: &str, socket: &Path) -> Result<Child> {
    let mode = match options.mode {
        Mode::Auto => "auto",
        Mode::PreCopy => "pre-copy",
        Mode::StopAndCopy => "stop-and-copy",
        Mode::PostCopy => "post-copy",
        Mode::Hybrid => "hybrid",
    };
    let mut command = a.migrate();
    command.arg("--json").arg("move").arg(pid).arg(format!("unix:{}", socket.display()));
    if options.kill == Some(Kill::Source) {
        command.env("MIGRATE_KILL", Point::SourceCommitted.name());
    }
    command.arg("--mode").arg(mode).arg("--move-address").arg(format!("{SERVICE}/24@eth0"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().map_err(|e| Failure::of("the move did not start", &e))
}

/// Reads what the client says and passes it on.
struct Audience<'a> {
    lines: BufReader<ChildStdout>,
    show: &'a mut dyn FnMut(&Scene),
}

impl Audience<'_> {
    fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let sight = self.next()?;
            (self.show)(&Scene::Sight(sight));
        }
        Ok(())
    }

    /// Shows what the client sees while the move's program runs, which is ended if it takes too long.
    fn watch_while_it_runs(&mut self, mover: &mut Child) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while mover.try_wait().map_err(|e| Failure::of("the move cannot be waited for", &e))?.is_none() {
            if Instant::now() > end {
                let _ = mover.kill();
            }
            let sight = self.next()?;
            (self.show)(&Scene::Sight(sight));
        }
        Ok(())
    }

    /// Shows what the client sees until the move has ended; the pause it reports.
    fn watch_until_ended(&mut self, mut mover: Child) -> Result<Option<Duration>> {
        self.watch_while_it_runs(&mut mover)?;
        let output = mover.wait_with_output().map_err(|e| Failure::of("the move cannot be read", &e))?;
        let result = String::from_utf8_lossy(&output.stdout);
        let result = result.lines().rev().find_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        let result = result.unwrap_or_default();
        if !output.status.success() {
            let what = result["failure"]["what"].as_str().unwrap_or("the move failed").to_owned();
            let mut failure = Failure::new(what).target(TargetState::Running);
            let texts = |list: &serde_json::Value, text: &dyn Fn(&serde_json::Value) -> String| -> Vec<String> {
                list.as_array().map(|all| all.iter().map(text).collect()).unwrap_or_default()
            };
            failure.causes = texts(&result["failure"]["causes"], &|c| c.as_str().unwrap_or_default().to_owned());
            failure.causes.extend(texts(&result["blockers"], &|b| {
                let word = |key: &str| b[key].as_str().unwrap_or_default().to_owned();
                format!("{} {}: {} ({})", word("code"), word("object"), word("reason"), word("remedy"))
            }));
            return Err(failure);
        }
        Ok(result["downtime_us"].as_u64().map(Duration::from_micros))
    }

    /// One of the two programs is killed in the moment of handing over: what the journals say once it is settled.
    fn watch_the_accident(&mut self, mut mover: Child, kill: Kill, a: &Host) -> Result<()> {
        self.watch_while_it_runs(&mut mover)?;
        let killed = match kill {
            Kill::Source => "migrate move was killed as COMMIT had left; its guardian asks host-b",
            _ => "the session on host-b was killed as it was about to say PREPARED",
        };
        (self.show)(&Scene::Word(format!("# {killed}")));
        let end = Instant::now() + PATIENCE;
        loop {
            let sessions = self.ask(a, &["status", "--all", "--json"])?;
            let result = sessions.lines().rev().find_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
            let entry = result.map(|result| result["sessions"][0].clone()).unwrap_or_default();
            let word = |key: &str| entry[key].as_str().unwrap_or("unknown").to_owned();
            if matches!(word("phase").as_str(), "moved" | "stayed") || Instant::now() > end {
                let (phase, words) = (word("phase"), word("words"));
                (self.show)(&Scene::Word(format!("migrate status --all   # {phase}, owner: {words}")));
                return Ok(());
            }
            let sight = self.next()?;
            (self.show)(&Scene::Sight(sight));
        }
    }

    fn ask(&self, host: &Host, words: &[&str]) -> Result<String> {
        let output = host.migrate().args(words).stdin(Stdio::null()).output();
        let output = output.map_err(|e| Failure::of(format!("migrate {} cannot be run", words[0]), &e))?;
        if !output.status.success() {
            let mut failure = Failure::new(format!("migrate {} has failed", words[0]));
            failure.causes.push(String::from_utf8_lossy(&output.stderr).trim().to_owned());
            return Err(failure);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn next(&mut self) -> Result<Sight> {
        Ok(serde_json::from_str(&self.line()?).unwrap_or_default())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line),
            Ok(_) => Err(Failure::new("the demo's client has ended too early")),
            Err(e) => Err(Failure::of("the demo's client cannot be read", &e)),
        }
    }

    fn verdict(&mut self) -> Result<Verdict> {
        loop {
            let line = self.line()?;
            if let Ok(verdict) = serde_json::from_str::<Verdict>(&line) {
                return Ok(verdict);
            }
        }
    }
}

/// A process of the demo; ended when dropped.
struct Part(Child);

impl Part {
    fn start(command: &mut Command, name: &str) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).spawn();
        child.map(Self).map_err(|e| Failure::of(format!("the demo's {name} did not start"), &e))
    }

    fn output(&mut self) -> Result<BufReader<ChildStdout>> {
        self.0.stdout.take().map(BufReader::new).ok_or_else(|| Failure::new("the demo's client has no output"))
    }

    /// Tells it to come to an end: its standard input closes.
    fn end(&mut self) {
        drop(self.0.stdin.take());
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.end();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory for sockets and journals, removed at the end unless it is to be kept.
struct Workplace {
    path: PathBuf,
    keep: bool,
}

impl Workplace {
    fn make(keep: bool) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("migrate-demo-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| Failure::of(format!("cannot make {}", path.display()), &e))?;
        Ok(Self { path, keep })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn wait_for(path: &Path) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !path.exists() {
        if Instant::now() > end {
            return Err(Failure::new(format!("{} did not appear", path.display())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
