//! The moment of handing over, with a program killed or standing still at every named step: at most one copy counts, one
//! does where a complete state exists, and `migrate status` and `migrate resolve` say and decide what is left.
//!
//! The witness is the file that the target counts in: a number that is missing or there twice is a lost or doubled target.

use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use migrate_engine::ops::demo::cable::{Cable, Cut};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Two hosts and a target, and where the next move is struck.
pub struct Play {
    pub dir: tempfile::TempDir,
    pub counter: Counter,
    pub agent: Agent,
    pub once: PathBuf,
}

impl Play {
    /// `strike`: what is done to whom.
    pub fn begin(variable: &str, point: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let once = dir.path().join("once");
        std::fs::write(&once, "").unwrap();
        let listen = format!("unix:{}", dir.path().join("agent.sock").display());
        let agent = Agent::start_with(
            &dir.path().join("b"),
            &listen,
            &[(variable, point), ("MIGRATE_ONCE", once.to_str().unwrap())],
        );
        Self { counter: Counter::on_ground(1, 256), dir, agent, once }
    }

    pub fn host(&self, name: &str) -> Command {
        on_host(&self.dir.path().join(name))
    }

    pub fn mover(&self, variable: &str, point: &str) -> Command {
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

    pub fn status(&self, host: &str) -> serde_json::Value {
        let output = run(self.host(host), &["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        result(&output)["sessions"][0].clone()
    }

    pub fn resolve(&self, host: &str, choice: &str) -> Output {
        let session = self.status(host)["session"].as_str().unwrap().to_owned();
        run(self.host(host), &["resolve", &session, choice, "--yes"])
    }

    pub fn resolves(&self, host: &str, choice: &str) {
        let output = self.resolve(host, choice);
        assert!(output.status.success(), "{choice} at {host}: {}", text(&output));
    }

    /// The move's program and its guardian are killed at once as it comes to this step.
    pub fn killed_with_guardian(&self, point: &str, options: &[&str]) {
        let mut mover = self.mover("MIGRATE_STOP", point);
        let mut mover = mover.args(options).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = mover.id();
        wait(|| is_stopped(pid as i32), &format!("{point} is reached"));
        let is_guardian = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("move-guardian-process")
        };
        let guardians: Vec<i32> = children(pid).into_iter().filter(is_guardian).collect();
        assert_eq!(guardians.len(), 1, "{point}");
        for pid in guardians.into_iter().chain([pid as i32]) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
        mover.wait().unwrap();
    }

    pub fn nobody_counts(&self, what: &str) {
        let last = self.counter.numbers().len();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(self.counter.numbers().len(), last, "{what}: nobody counts while it is in doubt");
    }

    /// One copy counts, every number once, and nothing else is left of it.
    pub fn check(&self, what: &str) {
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
fn a_source_that_is_killed_is_stood_in_for_by_its_guardian() {
    if !can_move() {
        return;
    }
    for (point, moves) in [
        ("source-ready", false),
        ("source-held", false),
        ("source-committing", true),
        ("source-committed", true),
        ("source-moved", true),
        ("source-ended", true),
    ] {
        let play = Play::begin("NOBODY", "");
        play.moved(point);
        play.check(point);
        let original = play.counter.processes()[0].to_string() == play.counter.pid();
        assert_eq!(original, !moves, "{point}");
        for host in ["a", "b"] {
            wait(|| play.status(host).is_null(), &format!("{point}: {host} knows that it is over"));
        }
    }
}

/// Its memory would follow, and nobody is left to bring it: as long as the copy has not been told to run, the whole one goes on.
#[test]
fn a_source_that_is_killed_before_memory_follows_is_not_given_up() {
    if !can_move() {
        return;
    }
    for point in ["source-held", "source-committing"] {
        let play = Play::begin("NOBODY", "");
        let output = run(play.mover("MIGRATE_KILL", point), &["--mode", "post-copy"]);
        assert!(!play.once.exists(), "{point} was not reached: {}", text(&output));
        play.check(point);
        assert_eq!(play.counter.processes()[0].to_string(), play.counter.pid(), "{point}");
    }
}

#[test]
fn a_source_that_is_killed_with_its_guardian_waits_for_a_person() {
    if !can_move() {
        return;
    }
    for point in ["source-ready", "source-held", "source-committing"] {
        let play = Play::begin("NOBODY", "");
        play.killed_with_guardian(point, &[]);
        if point == "source-ready" {
            // Ptrace held it, and let go. The copy waits for ever, or for a person.
            play.counter.check_runs();
            assert_eq!(play.status("a")["owner"], "here");
            play.resolves("b", "--discard");
        } else {
            play.nobody_counts(point);
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
        play.killed_with_guardian(point, &[]);
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
fn a_copy_that_dies_before_it_runs_lets_the_original_go_on() {
    if !can_move() {
        return;
    }
    for point in ["destination-recorded", "destination-prepared", "destination-ordered"] {
        let play = Play::begin("MIGRATE_STOP", point);
        let mover = play.mover("NOBODY", "").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let session = wait_for(|| stopped_session(&play), point);
        let original = play.counter.pid();
        // As the kernel does that is out of memory.
        for pid in play.counter.processes().into_iter().filter(|pid| pid.to_string() != original) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
        kill(session, Signal::SIGCONT).unwrap();
        let output = mover.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{point}: {}", text(&output));
        play.check(point);
        assert_eq!(play.counter.processes()[0].to_string(), original, "{point}");
    }
}

#[test]
fn a_move_that_is_interrupted_in_doubt_leaves_the_target_held_and_its_guardian_asks_on() {
    if !can_move() {
        return;
    }
    let play = Play::begin("MIGRATE_STOP", "destination-ordered");
    let mover = play.mover("NOBODY", "").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let session = wait_for(|| stopped_session(&play), "the session has the order");
    // Longer than --peer-timeout: it asks already.
    std::thread::sleep(Duration::from_secs(4));
    kill(Pid::from_raw(mover.id() as i32), Signal::SIGINT).unwrap();
    let output = mover.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    play.nobody_counts("interrupted");
    assert_eq!(play.status("a")["owner"], "in-doubt");
    kill(session, Signal::SIGCONT).unwrap();
    wait(|| play.status("a").is_null(), "the guardian has settled it");
    play.check("interrupted");
    assert_ne!(play.counter.processes()[0].to_string(), play.counter.pid());
}

#[test]
fn a_destination_that_stands_still_is_waited_for() {
    if !can_move() {
        return;
    }
    for point in ["destination-prepared", "destination-ordered"] {
        let play = Play::begin("MIGRATE_STOP", point);
        let mover = play.mover("NOBODY", "").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stopped = wait_for(|| stopped_session(&play), point);
        // Longer than --peer-timeout.
        std::thread::sleep(Duration::from_secs(4));
        play.nobody_counts(point);
        kill(stopped, Signal::SIGCONT).unwrap();
        let output = mover.wait_with_output().unwrap();
        assert!(output.status.success(), "{point}: {}", text(&output));
        play.check(point);
    }
}

#[test]
fn a_destination_that_is_fenced_gives_the_target_back() {
    if !can_move() {
        return;
    }
    // With the program of the move, and with its guardian alone.
    for killed in [false, true] {
        let mut play = Play::begin("MIGRATE_STOP", "destination-ordered");
        let off = play.dir.path().join("off");
        let fence = format!("test -e {} && test \"$MIGRATE_PEER\" = {}", off.display(), play.agent.address);
        let mut mover = play.mover("NOBODY", "");
        let mut mover = mover.args(["--fence-cmd", &fence]).stdout(Stdio::piped()).spawn().unwrap();
        let session = wait_for(|| stopped_session(&play), "the session has the order");
        // The host is off: nobody answers there any more.
        let original = play.counter.pid();
        play.agent.kill();
        kill(session, Signal::SIGKILL).unwrap();
        if killed {
            mover.kill().unwrap();
        }
        // Longer than --peer-timeout: the command is run, and fails.
        std::thread::sleep(Duration::from_secs(3));
        play.nobody_counts("not fenced");
        for pid in play.counter.processes().into_iter().filter(|pid| pid.to_string() != original) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
        std::fs::write(&off, "").unwrap();
        wait(|| play.status("a").is_null(), "it is over");
        let output = mover.wait_with_output().unwrap();
        if !killed {
            assert_ne!(output.status.code(), Some(0), "{}", text(&output));
            assert_eq!(result(&output)["state"], "running", "{}", text(&output));
            assert_eq!(result(&output)["where"], "source", "{}", text(&output));
        }
        play.counter.check_runs();
        assert!(play.counter.processes().iter().any(|pid| pid.to_string() == original));
    }
}

#[test]
fn a_move_can_be_watched_until_it_is_over() {
    if !can_move() {
        return;
    }
    let play = Play::begin("MIGRATE_STOP", "destination-ordered");
    let mover = play.mover("NOBODY", "").stdout(Stdio::piped()).spawn().unwrap();
    let session = wait_for(|| stopped_session(&play), "the session has the order");
    let id = play.status("a")["session"].as_str().unwrap().to_owned();
    let mut watch = play.host("a");
    let watch = watch.args(["status", &id, "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    kill(session, Signal::SIGCONT).unwrap();
    let output = watch.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let events = String::from_utf8_lossy(&output.stdout).into_owned();
    let events: Vec<serde_json::Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let phases: Vec<&str> = events.iter().filter_map(|event| event["phase"].as_str()).collect();
    assert_eq!((phases.first(), phases.last()), (Some(&"committing"), Some(&"moved")), "{phases:?}");
    assert!(events.iter().all(|event| event["event"] == "result" || event["session"] == id.as_str()));
    assert_eq!(result(&output)["sessions"][0]["phase"], "moved");
    assert!(mover.wait_with_output().unwrap().status.success());
}

/// The session of the agent that has stopped.
pub fn stopped_session(play: &Play) -> Option<Pid> {
    children(play.agent.pid()).into_iter().find(|pid| is_stopped(*pid)).map(Pid::from_raw)
}

pub fn children(of: u32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten();
    let of_threads = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let all: Vec<String> = of_threads.collect();
    all.join(" ").split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

pub fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
}

pub fn wait_for<T>(mut what: impl FnMut() -> Option<T>, expected: &str) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < until, "{expected}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn wait(mut until: impl FnMut() -> bool, expected: &str) {
    wait_for(|| until().then_some(()), expected);
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

#[test]
fn a_link_that_is_cut_in_the_moment_of_handing_over() {
    if !can_move() {
        return;
    }
    for how in [Cut::Before, Cut::After] {
        let play = Play::begin("NOBODY", "");
        let path = play.dir.path().join("cable.sock");
        let agent = play.agent.address.strip_prefix("unix:").unwrap().into();
        let cable = Cable::lay(&path, agent, how).unwrap();
        let address = format!("unix:{}", path.display());
        let output = run(play.host("a"), &["move", &play.counter.pid(), &address, "--json", "--peer-timeout", "2s"]);
        assert!(cable.is_cut(), "no COMMIT came by: {}", text(&output));
        assert!(output.status.success(), "{how:?}: {}", text(&output));
        let events = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(events.contains("in doubt"), "a person is told of it while it lasts: {events}");
        play.check("cut");
        assert_ne!(play.counter.processes()[0].to_string(), play.counter.pid());
    }
}
