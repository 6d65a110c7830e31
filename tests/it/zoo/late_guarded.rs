//! Post-copy whose program dies: its guardian serves what is still owed, and ends the original.

use super::harness::Scenario;
use super::late_lost::{SHARED, TARGET, root, state, until};
use super::late_moves::Moving;
use crate::handover::Play;
use crate::moves::{can_move, on_host, run, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// Writes to its memory all the time: rounds leave some of it.
const WRITES: Scenario = Scenario { fixture: "recovered", case: "counts", busy: true, ..TARGET };

impl Moving {
    /// The program of the move is killed.
    pub fn mover_is_killed(&mut self) {
        self.mover.kill().expect("it is ours");
        self.mover.wait().expect("it is ours");
    }

    /// Whoever is left of the move at the source.
    fn guardians(&self) -> Vec<i32> {
        let line = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_guardian = |pid: &i32| String::from_utf8_lossy(&line(pid)).contains("move-guardian-process");
        self.helpers_on("source").into_iter().filter(is_guardian).collect()
    }

    /// What the log of the guardian says of pages that it has served, each time.
    fn served(&self) -> Vec<u64> {
        let moves = fs::read_dir(self.run.path("source/state/moves")).expect("it has a journal").flatten();
        let mut logs = moves.filter(|entry| entry.file_name().to_string_lossy().ends_with(".guardian.log"));
        let log = fs::read_to_string(logs.next().expect("it has a log").path()).expect("it is text");
        let counts = log.lines().filter(|line| line.contains("has served memory"));
        counts.filter_map(|line| line.split("pages=").nth(1)?.split_whitespace().next()?.parse().ok()).collect()
    }

    /// Pages that the original has: no more can have been missing.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.original)).expect("it is held");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 4
    }

    fn sessions_known(&self, host: &str) -> serde_json::Value {
        let output = on_host(&self.run.path(host)).args(["status", "--json"]).output().expect("it is there");
        let last = String::from_utf8_lossy(&output.stdout).lines().last().map(str::to_owned);
        let result = last.and_then(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
        result.map(|result| result["sessions"].clone()).unwrap_or_else(|| panic!("{}", text(&output)))
    }

    /// The target has all of its memory over there, the original is gone, and so is whoever has guarded it.
    fn is_over(&self, what: &str) {
        self.run.verify().unwrap_or_else(|error| panic!("{what}: {error}"));
        until(&format!("{what}: the original is there"), || {
            self.run.reap();
            matches!(state(self.original), None | Some('Z')).then_some(())
        });
        until(&format!("{what}: a guardian is left"), || self.guardians().is_empty().then_some(()));
        for host in ["source", "places"] {
            let over = || self.sessions_known(host).as_array().is_some_and(Vec::is_empty).then_some(());
            until(&format!("{what}: {host} does not know that it is over"), over);
        }
    }
}

#[test]
fn memory_follows_although_the_program_of_the_move_is_killed() {
    if !root() {
        return;
    }
    for (target, mode) in [(&TARGET, "post-copy"), (&SHARED, "post-copy"), (&WRITES, "hybrid")] {
        let what = format!("{} by {mode}", target.fixture);
        let mut moving = Moving::begin_of(target, &[], &["--mode", mode]);
        moving.mover_is_killed();
        let resident = moving.resident();
        until("the original is not held", || (state(moving.original) == Some('T')).then_some(()));
        moving.is_over(&what);
        let served = moving.served();
        // Each page once.
        let sum = served.iter().sum::<u64>();
        assert!((1..=resident).contains(&sum), "{what}: {served:?} of {resident} pages");
    }
}

#[test]
fn a_program_that_is_killed_while_pages_are_waited_for_is_stood_in_for() {
    if !root() {
        return;
    }
    for after in [5, 40, 120] {
        let mut moving = Moving::begin_of(&TARGET, &[], &["--mode", "post-copy"]);
        fs::write(moving.run.path("go"), "").expect("it is ours");
        std::thread::sleep(Duration::from_millis(after));
        moving.mover_is_killed();
        moving.is_over(&format!("after {after} ms"));
    }
}

#[test]
fn links_of_a_guardian_that_are_lost_are_made_anew() {
    if !root() {
        return;
    }
    let mut moving = Moving::begin_of(&TARGET, &[], &["--mode", "post-copy"]);
    let before = moving.sessions();
    moving.mover_is_killed();
    let new = || Some(moving.sessions().difference(&before).copied().collect::<Vec<_>>()).filter(|new| new.len() >= 2);
    for pid in until("the guardian does not come", new) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    moving.is_over("links lost");
}

/// At the steps of the handover between COMMIT and the first page.
#[test]
fn a_program_that_is_killed_at_a_step_of_the_handover_with_memory_missing_is_stood_in_for() {
    if !can_move() {
        return;
    }
    for (point, mode) in
        [("source-committed", "post-copy"), ("source-committed", "hybrid"), ("source-moved", "post-copy")]
    {
        let play = Play::begin("NOBODY", "");
        let output = run(play.mover("MIGRATE_KILL", point), &["--mode", mode]);
        assert!(!play.once.exists(), "{point} was not reached: {}", text(&output));
        play.check(point);
        assert_ne!(play.counter.processes()[0].to_string(), play.counter.pid(), "{point}");
        for host in ["a", "b"] {
            crate::handover::wait(|| play.status(host).is_null(), &format!("{point}: {host} knows that it is over"));
        }
    }
}
