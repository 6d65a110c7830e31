//! `--recoverable`: the destination dies with memory still missing, and the newest state that has come back is resumed.

use super::harness::Scenario;
use super::late_lost::{root, state, until};
use super::late_moves::Moving;
use crate::moves::{Agent, on_host};
use migrate_engine::migration::points::{Place, series::Newest};
use migrate_engine::sys::userfaultfd;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, SystemTime};

/// Writes, moves and gives back pages all the time, and counts.
const COUNTER: Scenario =
    Scenario { fixture: "recovered", case: "counts", ignore: &[], allow: "", busy: true, timed: false };
/// Writes to [`SETTLES_PAGES`] of its pages when it is told to, and else to few.
const SETTLES: Scenario = Scenario { case: "settles", ..COUNTER };
const SETTLES_PAGES: u64 = 2048;
/// A machine under load is late.
const LATE_MS: u64 = 8000;

impl Moving {
    /// Where points are kept.
    fn points(&self) -> Option<PathBuf> {
        let mut moves = fs::read_dir(self.run.path("source").join("state/moves")).ok()?.flatten();
        let points = moves.find(|entry| entry.file_name().to_string_lossy().ends_with(".points"));
        points.map(|entry| entry.path())
    }

    /// The last point that is complete.
    fn last_point(&self) -> Option<u64> {
        let files = fs::read_dir(self.points()?).into_iter().flatten().flatten();
        let names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.ends_with(".whole") || name.ends_with(".after"))
            .filter_map(|n| n[..8].parse().ok())
            .max()
    }

    /// As a host that loses its power: nobody there has the time to do anything.
    fn destination_dies(&self) {
        let all: Vec<i32> = self.helpers_on("places").into_iter().chain([self.root]).collect();
        assert!(all.len() >= 5, "an agent, two sessions at least, the pager, its guard and the copy: {all:?}");
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &all {
                let _ = kill(Pid::from_raw(*pid), signal);
            }
        }
        until("the copy does not end", || {
            self.run.reap();
            matches!(state(self.root), None | Some('Z')).then_some(())
        });
    }

    /// A person ends the program of the move; it says that it does not know.
    fn mover_ends(&mut self) {
        kill(Pid::from_raw(self.mover.id() as i32), Signal::SIGTERM).expect("it is ours");
        let status = self.mover.wait().expect("it is ours");
        assert_eq!(status.code(), Some(4), "{}", self.said());
    }

    fn session(&self) -> serde_json::Value {
        let output = on_host(&self.run.path("source")).args(["status", "--json"]).output().expect("it is there");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let result = said.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        result.map(|result| result["sessions"][0].clone()).unwrap_or_else(|| panic!("no result: {said}"))
    }

    /// Has the journal for so long.
    fn decided_for(&self, time: Duration) -> std::thread::JoinHandle<()> {
        let moves = fs::read_dir(self.run.path("source/state/moves")).expect("it has a journal").flatten();
        let mut journals = moves.filter(|entry| entry.file_name().to_string_lossy().ends_with(".source.journal"));
        let file = fs::File::open(journals.next().expect("it has a journal").path()).expect("it is ours");
        let journal = until("the guardian keeps the journal", || {
            Flock::lock(file.try_clone().expect("descriptors are left"), FlockArg::LockExclusiveNonblock).ok()
        });
        std::thread::spawn(move || {
            std::thread::sleep(time);
            drop(journal);
        })
    }

    fn resolve(&self, options: &[&str]) -> Output {
        let session = self.session();
        let id = session["session"].as_str().expect("it has a session");
        on_host(&self.run.path("source")).args(["resolve", id]).args(options).output().expect("it is there")
    }

    /// What was counted: numbers, and when (milliseconds since the epoch).
    fn counted(&self) -> Vec<(u64, u64)> {
        let text = self.run.text("count").unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(n, at)| Some((n.parse().ok()?, at.parse().ok()?)))
            .collect()
    }

    /// The one copy that runs goes on after one of the numbers that were counted by `died`; which.
    fn goes_on_from(&self, died: usize) -> (u64, u64) {
        let next = until("nobody goes on", || self.counted().get(died + 3).map(|_| self.counted()[died].0));
        let before = self.counted();
        *before[..died]
            .iter()
            .rev()
            .find(|(n, _)| *n + 1 == next)
            .unwrap_or_else(|| panic!("{next} comes from nowhere"))
    }
}

/// Linux 6.7 can.
fn writes_can_be_told() -> bool {
    let known = userfaultfd::open(true).and_then(|fd| userfaultfd::handshake(fd.as_fd(), 0));
    known.is_ok_and(|features| features & userfaultfd::feature::WP_ASYNC != 0)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_millis() as u64
}

#[test]
fn a_destination_that_dies_leaves_a_recent_state_to_be_resumed() {
    if root() {
        ["post-copy", "hybrid"].into_iter().for_each(|mode| dies_and_is_resumed(mode, &[]));
    }
}

/// The other one has given up in the pause: its session was killed.
#[test]
fn of_several_destinations_the_one_that_runs_the_target_leaves_its_states() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().expect("there is room");
    let listen = format!("unix:{}", dir.path().join("other.sock").display());
    let other = Agent::start_with(&dir.path().join("other"), &listen, &[("MIGRATE_KILL", "destination-armed")]);
    ["post-copy", "hybrid"].into_iter().for_each(|mode| dies_and_is_resumed(mode, &[&other.address]));
}

fn dies_and_is_resumed(mode: &str, others: &[&str]) {
    let options = [&["--mode", mode, "--recoverable=300ms"], others].concat();
    let mut moving = Moving::begin_of(&COUNTER, &[], &options);
    until("it does not count", || moving.counted().last().filter(|(n, _)| *n > 300).map(drop));
    let before = moving.last_point().unwrap_or(0);
    until("no states come back", || moving.last_point().filter(|n| *n >= before + 3));
    // What was only read is not sent back; after rounds little is left to come.
    if mode == "post-copy" && writes_can_be_told() {
        let newest = moving.points().and_then(|dir| Newest::open(&dir).ok().flatten()).expect("it is complete");
        let original = newest.index.iter().filter(|row| matches!(row.place, Place::Original(..)));
        let pages: u64 = original.map(|row| row.range.count).sum();
        assert!(pages > 1000, "of 512 pages that are read and 512 that are not touched {pages} are the original's");
    }
    let session = moving.session();
    assert!(session["recoverable_age_ms"].as_u64().is_some_and(|age| age < LATE_MS), "{session}");
    moving.destination_dies();
    let (died, died_at) = (moving.counted().len(), now_ms());
    moving.mover_ends();
    let asked = moving.resolve(&["--run"]);
    assert_eq!(asked.status.code(), Some(2), "{}", text(&asked));
    assert!(text(&asked).contains("as it was") && text(&asked).contains("s ago"), "{}", text(&asked));
    assert_eq!(state(moving.original), Some('T'));
    assert_eq!(moving.counted().len(), died, "somebody counts while it is in doubt");
    let resolved = moving.resolve(&["--run", "--yes"]);
    assert!(resolved.status.success(), "{}", text(&resolved));
    assert!(text(&resolved).contains("changes of files since then are lost"), "{}", text(&resolved));
    let (_, at) = moving.goes_on_from(died);
    assert!(died_at - at < 300 + LATE_MS, "it is {} ms old", died_at - at);
    moving.run.verify().expect("its memory is of one piece");
    until("the original has not ended", || {
        moving.run.reap();
        matches!(state(moving.original), None | Some('Z')).then_some(())
    });
    assert_eq!(moving.last_point(), None, "states were left behind");
    assert!(moving.session().is_null(), "{}", moving.session());
}

#[test]
fn without_a_complete_state_the_original_goes_on_as_it_was_when_it_moved() {
    if !root() {
        return;
    }
    let mut moving = Moving::begin_of(
        &COUNTER,
        &[("MIGRATE_FAULT", "destination-point")],
        &["--mode", "post-copy", "--recoverable=300ms"],
    );
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(moving.last_point(), None);
    moving.destination_dies();
    let died = moving.counted().len();
    moving.mover_ends();
    let resolved = moving.resolve(&["--run", "--yes"]);
    assert!(resolved.status.success(), "{}", text(&resolved));
    assert!(text(&resolved).contains("no later state of the target is complete"), "{}", text(&resolved));
    moving.goes_on_from(died);
    assert!(matches!(state(moving.original), Some('R' | 'S')), "the original does not run");
    moving.run.verify().expect("its memory is as it was");
}

#[test]
fn a_destination_that_is_fenced_leaves_a_recent_state_that_goes_on_by_itself() {
    if !root() {
        return;
    }
    let off = tempfile::NamedTempFile::new().expect("there is a directory for temporary files").into_temp_path();
    let fence = format!("test ! -e {}", off.display());
    let options = ["--mode", "post-copy", "--recoverable=300ms", "--peer-timeout", "1s", "--fence-cmd", &fence];
    let mut moving = Moving::begin_of(&COUNTER, &[], &options);
    until("no states come back", || moving.last_point().filter(|n| *n >= 2));
    moving.destination_dies();
    let died = moving.counted().len();
    let status = moving.mover.wait().expect("it is ours");
    assert_eq!(status.code(), Some(4), "{}", moving.said());
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(moving.counted().len(), died, "somebody counts although nobody has switched the host off");
    assert!(moving.last_point().is_some());
    off.close().expect("it is ours");
    moving.goes_on_from(died);
    moving.run.verify().expect("its memory is of one piece");
    until("the original has not ended", || {
        moving.run.reap();
        matches!(state(moving.original), None | Some('Z')).then_some(())
    });
}

#[test]
fn a_destination_that_lives_keeps_the_target() {
    if !root() {
        return;
    }
    let mut moving = Moving::begin_of(&COUNTER, &[], &["--mode", "post-copy", "--recoverable=300ms"]);
    until("no states come back", || moving.last_point());
    // The link is lost, and the copy runs on for as long as it needs nothing.
    moving.mover.kill().expect("it is ours");
    moving.mover.wait().expect("it is ours");
    let refused = moving.resolve(&["--run", "--yes"]);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    assert!(text(&refused).contains("runs there"), "{}", text(&refused));
    assert_eq!(state(moving.original), Some('T'), "the original runs although it was handed over");
    assert!(moving.last_point().is_some(), "the states are gone");
}

#[test]
fn states_come_back_also_when_the_program_of_the_move_is_killed() {
    if !root() {
        return;
    }
    let mut moving = Moving::begin_of(&COUNTER, &[], &["--mode", "post-copy", "--recoverable=300ms"]);
    until("no states come back", || moving.last_point());
    moving.mover_is_killed();
    let before = moving.last_point().expect("there was one");
    until("no more states come back", || moving.last_point().filter(|n| *n >= before + 3));
    moving.destination_dies();
    let (died, died_at) = (moving.counted().len(), now_ms());
    let resolved = moving.resolve(&["--run", "--yes"]);
    assert!(resolved.status.success(), "{}", text(&resolved));
    let (_, at) = moving.goes_on_from(died);
    assert!(died_at - at < 300 + LATE_MS, "it is {} ms old", died_at - at);
    moving.run.verify().expect("its memory is of one piece");
    until("the original has not ended", || {
        moving.run.reap();
        matches!(state(moving.original), None | Some('Z')).then_some(())
    });
}

#[test]
fn states_cost_what_the_report_says_and_are_gone_in_the_end() {
    if !root() {
        return;
    }
    let mut moving = Moving::begin_of(&COUNTER, &[], &["--mode", "post-copy", "--recoverable=100ms"]);
    until("no states come back", || moving.last_point().filter(|n| *n >= 3));
    moving.run.verify().expect("it has all of its memory");
    let status = moving.mover.wait().expect("it is ours");
    let said = moving.said();
    assert!(status.success(), "{said}");
    let result = said.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let points = result.map(|result| result["points"].clone()).expect("it has a result");
    let number = |key: &str| points[key].as_u64().unwrap_or_else(|| panic!("no {key}: {said}"));
    assert!(number("count") >= 4 && number("bytes") > 0, "{points}");
    assert!(number("longest_us") > 0 && number("paused_us") >= number("longest_us"), "{points}");
    assert_eq!(moving.last_point(), None, "states were left behind");
}

#[test]
fn a_state_costs_what_was_written_since_the_one_before() {
    if !root() || !writes_can_be_told() {
        return;
    }
    let mut moving = Moving::begin_of(&SETTLES, &[], &["--mode", "post-copy", "--recoverable=100ms"]);
    until("no states come back", || moving.last_point());
    let counted = moving.counted().len();
    fs::write(moving.run.path("write"), "").expect("it is ours");
    // It does not count while it writes.
    until("it does not go on", || moving.counted().get(counted + 100).map(drop));
    let before = moving.last_point().expect("there were some before");
    until("few states come back", || moving.last_point().filter(|n| *n >= before + 20));
    // From the points of a target that writes little, the state that has everything is made.
    let newest = moving.points().and_then(|dir| Newest::open(&dir).ok().flatten()).expect("it is complete");
    let held: u64 =
        newest.index.iter().filter(|row| matches!(row.place, Place::Points(_))).map(|row| row.range.count).sum();
    assert!(held > SETTLES_PAGES, "{held} pages are in points");
    moving.run.verify().expect("it has all of its memory");
    let status = moving.mover.wait().expect("it is ours");
    let said = moving.said();
    assert!(status.success(), "{said}");
    let result = said.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let points = result.map(|result| result["points"].clone()).expect("it has a result");
    let number = |key: &str| points[key].as_u64().unwrap_or_else(|| panic!("no {key}: {said}"));
    let (count, read) = (number("count"), number("pages_read"));
    assert!(read > SETTLES_PAGES, "{points}");
    assert!(read < count * SETTLES_PAGES / 4, "{read} pages were read for {count} states: {points}");
}

#[test]
fn what_a_resolve_that_is_killed_leaves_is_named() {
    if !root() {
        return;
    }
    let mut moving = Moving::begin_of(&COUNTER, &[], &["--mode", "post-copy", "--recoverable=300ms"]);
    until("no states come back", || moving.last_point().filter(|n| *n >= 2));
    moving.destination_dies();
    let died = moving.counted().len();
    moving.mover_ends();
    let id = moving.session()["session"].as_str().expect("it has a session").to_owned();
    let resolve = |kill: &str| {
        let mut command = on_host(&moving.run.path("source"));
        command.env("MIGRATE_KILL", kill).args(["resolve", &id, "--run", "--yes"]).output().expect("it is there")
    };
    let killed = resolve("recovering");
    assert_eq!(killed.status.code(), None, "{}", text(&killed));
    let session = moving.session();
    let image = session["recovered_image"].as_str().unwrap_or_else(|| panic!("no image: {session}")).to_owned();
    // Also while somebody looks whether there is something to be decided, as the guardian does every few seconds.
    let looks = moving.decided_for(Duration::from_millis(300));
    let said = on_host(&moving.run.path("source")).arg("status").output().expect("it is there");
    assert!(text(&said).contains(&image), "{}", text(&said));
    looks.join().expect("it looks");
    let again = resolve("");
    assert_eq!(again.status.code(), Some(4), "{}", text(&again));
    assert!(text(&again).contains(&image), "{}", text(&again));
    assert_eq!(moving.counted().len(), died, "somebody counts although nobody has let it go on");
    let mut command = on_host(&moving.run.path("source"));
    let options = ["restore", "-D", &image, "--detach", "--files", "skip", "--stdio", "null", "--pids", "new"];
    let restored = command.args(options).output().expect("it is there");
    assert!(restored.status.success(), "{}", text(&restored));
    moving.goes_on_from(died);
    moving.run.verify().expect("its memory is of one piece");
}
