//! The moment of handing over, with a program killed or standing still at every named step: at most one copy counts, one
//! does where a complete state exists, and `migrate status` and `migrate resolve` say and decide what is left.
//!
//! The witness is the file that the target counts in: a number that is missing or there twice is a lost or doubled target.

use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Two hosts and a target, and where the next move is struck.
struct Play {
    dir: tempfile::TempDir,
    counter: Counter,
    agent: Agent,
    once: PathBuf,
}

impl Play {
    /// `strike`: what is done to whom.
    fn begin(variable: &str, point: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let once = dir.path().join("once");
        std::fs::write(&once, "").unwrap();
        let listen = format!("unix:{}", dir.path().join("agent.sock").display());
        let agent = Agent::start_with(
            &dir.path().join("b"),
            &listen,
            &[(variable, point), ("MIGRATE_ONCE", once.to_str().unwrap())],
        );
        Self { counter: Counter::start(1), dir, agent, once }
    }

    fn host(&self, name: &str) -> Command {
        on_host(&self.dir.path().join(name))
    }

    fn mover(&self, variable: &str, point: &str) -> Command {
        let mut command = self.host("a");
        command.env(variable, point).env("MIGRATE_ONCE", &self.once);
        command.args(["move", &self.counter.pid(), &self.agent.address, "--json", "--peer-timeout", "2s"]);
        command
    }

    /// The move, struck at this point on whichever side has it.
    fn moved(&self, point: &str) -> Output {
        let output = run(self.mover("MIGRATE_KILL", point), &[]);
        assert!(!self.once.exists(), "{point} was not reached: {}", text(&output));
        output
    }

    fn status(&self, host: &str) -> serde_json::Value {
        let output = run(self.host(host), &["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        result(&output)["sessions"][0].clone()
    }

    fn resolve(&self, host: &str, choice: &str) -> Output {
        let session = self.status(host)["session"].as_str().unwrap().to_owned();
        run(self.host(host), &["resolve", &session, choice, "--yes"])
    }

    fn resolves(&self, host: &str, choice: &str) {
        let output = self.resolve(host, choice);
        assert!(output.status.success(), "{choice} at {host}: {}", text(&output));
    }

    /// One copy counts, every number once, and nothing else is left of it.
    fn check(&self, what: &str) {
        self.counter.check_runs();
        let until = Instant::now() + Duration::from_secs(10);
        while self.counter.processes().len() != 1 {
            assert!(Instant::now() < until, "{what}: {:?} are left", self.counter.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.counter.check_runs();
    }
}

#[test]
fn a_destination_that_is_killed() {
    if !can_move() {
        return;
    }
    // Before PREPARED is out the target stays; after that it moves, whoever has to finish it.
    for (point, moves) in [
        ("destination-armed", false),
        ("destination-recorded", false),
        ("destination-prepared", true),
        ("destination-ordered", true),
        ("destination-owner", true),
        ("destination-running", true),
    ] {
        let play = Play::begin("MIGRATE_KILL", point);
        let output = play.moved(point);
        assert_eq!(output.status.success(), moves, "{point}: {}", text(&output));
        play.check(point);
        let original = play.counter.processes()[0].to_string() == play.counter.pid();
        assert_eq!(original, !moves, "{point}");
    }
}

#[test]
fn a_source_that_is_killed() {
    if !can_move() {
        return;
    }
    for point in ["source-ready", "source-held", "source-committing"] {
        let play = Play::begin("NOBODY", "");
        play.moved(point);
        if point == "source-ready" {
            // Ptrace held it, and let go. The copy waits for ever, or for a person.
            play.counter.check_runs();
            assert_eq!(play.status("a")["owner"], "here");
            play.resolves("b", "--discard");
        } else {
            let last = play.counter.numbers().len();
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(play.counter.numbers().len(), last, "{point}: nobody counts");
            if point == "source-held" {
                play.resolves("b", "--discard");
            }
            play.resolves("a", "--run");
        }
        play.check(point);
        assert_eq!(play.counter.processes()[0].to_string(), play.counter.pid());
    }
    for point in ["source-committed", "source-moved", "source-ended"] {
        let play = Play::begin("NOBODY", "");
        play.moved(point);
        let status = play.status("a");
        assert_eq!(
            (status["owner"].as_str(), status["phase"].as_str()),
            (Some("there"), Some("committing")),
            "{status}"
        );
        let refused = play.resolve("a", "--run");
        assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
        play.resolves("a", "--discard");
        play.check(point);
        assert_ne!(play.counter.processes()[0].to_string(), play.counter.pid());
    }
}

#[test]
fn a_destination_that_stands_still_is_waited_for() {
    if !can_move() {
        return;
    }
    for point in ["destination-prepared", "destination-ordered"] {
        let play = Play::begin("MIGRATE_STOP", point);
        let mut mover = play.mover("NOBODY", "");
        let mover = mover.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        let stopped = loop {
            if let Some(pid) = stopped_session(&play) {
                break pid;
            }
            assert!(Instant::now() < until, "{point} was not reached");
            std::thread::sleep(Duration::from_millis(10));
        };
        // Longer than --peer-timeout.
        std::thread::sleep(Duration::from_secs(4));
        let last = play.counter.numbers().len();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(play.counter.numbers().len(), last, "{point}: nobody counts while it is in doubt");
        kill(stopped, Signal::SIGCONT).unwrap();
        let output = mover.wait_with_output().unwrap();
        assert!(output.status.success(), "{point}: {}", text(&output));
        play.check(point);
    }
}

/// The session of the agent that has stopped.
fn stopped_session(play: &Play) -> Option<Pid> {
    let agent = play.agent.pid();
    let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).ok()?;
    let threads = std::fs::read_dir(format!("/proc/{agent}/task")).ok()?;
    let of_threads = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let all: Vec<String> = std::iter::once(children).chain(of_threads).collect();
    all.join(" ").split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()).find_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.starts_with('T').then_some(Pid::from_raw(pid))
    })
}

#[test]
fn a_rule_broken_on_purpose_is_seen() {
    if !can_move() {
        return;
    }
    // Without the hold the original goes on when its tracer dies, although COMMIT is out.
    let play = Play::begin("NOBODY", "");
    let mut mover = play.mover("MIGRATE_KILL", "source-committed");
    mover.env("MIGRATE_BREAK", "HoldBeforeCommit");
    run(mover, &[]);
    let until = Instant::now() + Duration::from_secs(10);
    let doubled = || play.counter.numbers().windows(2).any(|pair| pair[1] != pair[0] + 1);
    while !doubled() {
        assert!(Instant::now() < until, "the witness saw nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
}
