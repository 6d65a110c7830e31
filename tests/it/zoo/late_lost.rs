//! Memory that comes late and does not come: nobody reads zeros instead of it.

use super::harness::{Run, Scenario};
use super::tools::compiled;
use migrate_engine::memory::lazy::touches::{self, Touches};
use migrate_engine::memory::store::ImageDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Compares every page it has with what it should hold.
pub(super) const TARGET: Scenario =
    Scenario { fixture: "late", case: "by_threads", ignore: &[], allow: "", busy: false, timed: false };
/// The same with memory that is shared.
pub(super) const SHARED: Scenario = Scenario { fixture: "late_shared", ..TARGET };
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::skip!("late: needs root");
    }
    root
}

/// A target that is saved, and the variables with which it is restored in places of its own.
fn saved(target: &'static Scenario) -> Run<'static> {
    let fixture = compiled(target.fixture).expect("gcc is there");
    let run = Run::start(target, &fixture);
    run.ready().expect("it sets up");
    std::thread::sleep(Duration::from_millis(20));
    run.dump(run.pid(), 0, &[]).expect("it can be saved");
    run
}

fn restore(run: &Run<'_>, env: &[(&str, &str)]) -> i32 {
    let places = run.path("places").display().to_string();
    let env: Vec<(&str, &str)> = env.iter().copied().chain([("MIGRATE_PLACES", places.as_str())]).collect();
    run.restore_with(0, &["--pids", "same", "--lazy"], &env).expect("it can be restored")
}

pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The only file with this ending below the places of a run.
fn report(run: &Run<'_>) -> Option<String> {
    let dir = fs::read_dir(run.path("places").join("state")).ok()?;
    let lost = dir.flatten().find(|entry| entry.file_name().to_string_lossy().ends_with(".lost"))?;
    fs::read_to_string(lost.path()).ok().filter(|text| text.ends_with('\n'))
}

pub(super) fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The target is stopped, says what is missing, and does not survive a look at it.
pub(super) fn is_lost_and_never_zero(run: &Run<'_>, root: i32) {
    let text = until("nobody says that pages are missing", || report(run));
    assert!(text.contains("missing: process") && text.contains("target: stopped"), "{text}");
    until("it is not stopped", || state(root).filter(|state| *state == 'T'));
    assert_eq!(run.text("failures"), None, "it has seen wrong memory before it was stopped");
    fs::write(run.path("go"), "").expect("it is ours");
    kill(Pid::from_raw(root), Signal::SIGCONT).expect("it is there");
    // By SIGBUS: a child of ours once its first parent has ended.
    until("it goes on without its memory", || {
        run.reap();
        matches!(state(root), None | Some('Z')).then_some(())
    });
    assert_eq!((run.text("failures"), run.text("result")), (None, None), "it has read what was not there");
}

#[test]
fn damage_that_is_found_late_stops_the_target() {
    damaged(&TARGET);
}

#[test]
fn damage_of_shared_memory_that_is_found_late_stops_the_target() {
    damaged(&SHARED);
}

fn damaged(target: &'static Scenario) {
    if !root() {
        return;
    }
    let run = saved(target);
    let root = restore(&run, &[("MIGRATE_FAULT", "pager-behind")]);
    for entry in fs::read_dir(run.image(0)).expect("it is an image").flatten() {
        if entry.file_name().to_string_lossy().starts_with("pages") {
            let file = fs::File::options().write(true).open(entry.path()).expect("it is ours");
            let len = file.metadata().expect("it is open").len();
            (0..len).step_by(512).for_each(|at| file.write_all_at(b"\xff\x00\xa5", at).expect("it has room"));
        }
    }
    fs::write(run.path("go"), "").expect("it is ours");
    is_lost_and_never_zero(&run, root);
}

#[test]
fn a_pager_that_is_killed_leaves_a_stopped_target() {
    pager_killed(&TARGET);
}

#[test]
fn a_pager_of_shared_memory_that_is_killed_leaves_a_stopped_target() {
    pager_killed(&SHARED);
}

fn pager_killed(target: &'static Scenario) {
    if !root() {
        return;
    }
    let run = saved(target);
    let root = restore(&run, &[("MIGRATE_KILL", "pager-serves")]);
    is_lost_and_never_zero(&run, root);
}

#[test]
fn what_was_touched_is_noted_and_comes_first_the_next_time() {
    if !root() {
        return;
    }
    let run = saved(&TARGET);
    restore(&run, &[("MIGRATE_FAULT", "pager-behind")]);
    run.verify().expect("everything is there in time");
    let image = ImageDir::open(&run.image(0)).expect("it is an image");
    let path = touches::path(&run.image(0)).expect("it has a name");
    until("no touches are noted", || path.exists().then_some(()));
    let noted = Touches::read(&path, image.id());
    // Both areas, page by page.
    assert!(noted.iter().map(|(_, range)| range.count).sum::<u64>() > 1024);
    for name in ["go", "result", "ready"] {
        let _ = fs::remove_file(run.path(name));
    }
    run.reap();
    restore(&run, &[]);
    run.verify().expect("everything is there in time");
}
