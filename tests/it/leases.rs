//! A source that says nothing for a whole lease: what is not prepared at the destination goes, and what is prepared waits there
//! as an image, without memory and process ids, until it is told what holds.

use crate::handover::{Play, children, is_stopped, wait, wait_for};
use crate::moves::{can_move, result, run, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Stdio;

pub const LEASE: [&str; 2] = ["--lease", "1s"];

/// The journals of the destination, and what is parked beside them.
pub fn journals(play: &Play) -> PathBuf {
    play.dir.path().join("b/state/moves")
}

/// What is written there as an image, complete or not.
pub fn images(play: &Play) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(journals(play)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "parked")).collect()
}

pub fn others(play: &Play) -> Vec<i32> {
    play.counter.processes().into_iter().filter(|pid| pid.to_string() != play.counter.pid()).collect()
}

/// Who descends from this process.
fn descendants(pid: i32) -> Vec<i32> {
    children(pid as u32).into_iter().flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

/// It exists, and is not only waited for.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// The one attempt that the destination knows of.
fn attempt(play: &Play) -> String {
    let names =
        std::fs::read_dir(journals(play)).unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut attempts = names.filter_map(|name| name.strip_suffix(".destination.journal").map(str::to_owned));
    attempts.next().expect("a journal")
}

/// Where pages of an attempt are stored that have no place yet.
fn stores(attempt: &str) -> Vec<PathBuf> {
    let entries = ["/dev/shm", "/var/tmp"].into_iter().flat_map(|dir| std::fs::read_dir(dir).unwrap().flatten());
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(attempt)).collect()
}

/// Until the copy is parked: nothing of it in memory, a complete image on the disk, and a person is told.
pub fn is_parked(play: &Play) {
    let looked = |status: &serde_json::Value| {
        assert!(!status["not_parked"].is_string(), "{status}");
        status["phase"] == "parked"
    };
    let status = wait_for(|| Some(play.status("b")).filter(looked), "it is parked");
    wait(|| others(play).is_empty(), "process ids are free");
    let image = status["image"].as_str().unwrap_or_else(|| panic!("{status}"));
    assert!(Path::new(image).join("manifest.json").exists(), "{status}");
    // The megabyte of the counter is written to all over.
    assert!(status["image_bytes"].as_u64().unwrap() > 100_000 && status["image_age_ms"].is_u64(), "{status}");
    let words = run(play.host("b"), &["status"]);
    assert!(text(&words).contains(image), "{}", text(&words));
    let verified = run(play.host("b"), &["verify", image]);
    assert!(verified.status.success(), "{}", text(&verified));
}

/// Both hosts know that it is over, and nothing is left of what was parked.
pub fn is_over(play: &Play, moved: bool, what: &str) {
    play.check(what);
    let original = play.counter.processes()[0].to_string() == play.counter.pid();
    assert_eq!(original, !moved, "{what}");
    assert_eq!(images(play), Vec::<PathBuf>::new(), "{what}");
}

#[test]
fn what_is_not_prepared_goes_without_a_word() {
    if !can_move() {
        return;
    }
    let play = Play::begin("NOBODY", "");
    let mut mover = play.mover("NOBODY", "");
    // Rounds that take a while.
    let mover = mover.args(LEASE).args(["--bandwidth", "500kB/s", "--compress", "off"]);
    let mover = mover.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(mover.id() as i32);
    let session = wait_for(|| children(play.agent.pid()).first().copied(), "the session");
    wait(|| !descendants(session).is_empty(), "the tree is made ahead of time");
    kill(pid, Signal::SIGSTOP).unwrap();
    wait(|| is_stopped(pid.as_raw()), "the source stands still");
    let made = descendants(session);
    let attempt = attempt(&play);
    assert!(!stores(&attempt).is_empty(), "pages are stored");
    wait(|| children(play.agent.pid()).is_empty(), "the destination has given it up");
    wait(|| others(&play).is_empty(), "its tree is gone");
    for pid in made {
        assert!(!lives(pid), "{pid} is left");
    }
    assert_eq!(stores(&attempt), Vec::<PathBuf>::new());
    assert!(play.status("b").is_null());
    assert_eq!(images(&play), Vec::<PathBuf>::new());
    play.counter.check_runs();
    kill(pid, Signal::SIGCONT).unwrap();
    let output = mover.wait_with_output().unwrap();
    assert_ne!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(result(&output)["where"], "source", "{}", text(&output));
    is_over(&play, false, "before PREPARED");
}

#[test]
fn a_parked_copy_runs_or_goes_as_a_person_decides() {
    if !can_move() {
        return;
    }
    for moves in [true, false] {
        let play = Play::begin("NOBODY", "");
        play.killed_with_guardian("source-committing", &LEASE);
        is_parked(&play);
        play.nobody_counts("parked");
        if moves {
            play.resolves("b", "--run");
            wait(|| !others(&play).is_empty(), "it runs there");
            play.resolves("a", "--discard");
        } else {
            play.resolves("a", "--run");
            wait(|| play.status("b").is_null(), "the destination knows");
        }
        is_over(&play, moves, "resolved");
        assert!(play.status("a").is_null());
    }
}

#[test]
fn a_source_that_comes_back_late_finds_it_parked_and_goes_on() {
    if !can_move() {
        return;
    }
    // Also where whoever makes a tree of the image is killed as it stands, and where whoever has parked it was before it had ended
    // what is in memory.
    for killed in ["", "destination-unparked", "destination-parked"] {
        let play = Play::begin("MIGRATE_KILL", killed);
        let mut mover = play.mover("MIGRATE_STOP", "source-ready");
        let stopped = play.dir.path().join("stopped");
        std::fs::write(&stopped, "").unwrap();
        let mover = mover.args(LEASE).env("MIGRATE_ONCE", &stopped);
        let mover = mover.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(mover.id() as i32);
        wait(|| is_stopped(pid.as_raw()), "the source stands still");
        if killed == "destination-parked" {
            // Whoever attends it then ends the tree.
            wait(|| !play.once.exists(), "killed with image and tree");
        }
        is_parked(&play);
        kill(pid, Signal::SIGCONT).unwrap();
        let output = mover.wait_with_output().unwrap();
        assert!(output.status.success(), "{killed}: {}", text(&output));
        assert!(killed.is_empty() || !play.once.exists(), "{killed} was not reached");
        is_over(&play, true, killed);
        wait(|| play.status("a").is_null() && play.status("b").is_null(), "it is over");
    }
}

#[test]
fn whoever_parks_is_killed_and_another_parks_it() {
    if !can_move() {
        return;
    }
    for moves in [true, false] {
        let mut play = Play::begin("MIGRATE_KILL", "destination-parking");
        let once = play.once.clone();
        // The source's programs are struck on their own.
        play.once = play.dir.path().join("source");
        std::fs::write(&play.once, "").unwrap();
        play.killed_with_guardian("source-committing", &LEASE);
        wait(|| !once.exists(), "it is being parked, and who does so is killed");
        is_parked(&play);
        if moves {
            play.resolves("b", "--run");
            play.resolves("a", "--discard");
        } else {
            play.resolves("a", "--run");
        }
        is_over(&play, moves, "killed while parking");
    }
}

#[test]
fn an_image_outlives_a_reboot() {
    if !can_move() {
        return;
    }
    let play = Play::begin("NOBODY", "");
    play.killed_with_guardian("source-committing", &LEASE);
    is_parked(&play);
    // As the journal is read on the next boot.
    let journal = journals(&play).join(format!("{}.destination.journal", attempt(&play)));
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let lines = std::fs::read_to_string(&journal).unwrap();
    assert!(lines.contains(boot.trim()));
    std::fs::write(&journal, lines.replace(boot.trim(), "00000000-0000-4000-8000-000000000000")).unwrap();
    is_parked(&play);
    play.resolves("b", "--run");
    play.resolves("a", "--discard");
    is_over(&play, true, "after a reboot");
}

#[test]
fn an_image_that_is_damaged_runs_nothing_and_is_not_given_up() {
    if !can_move() {
        return;
    }
    let play = Play::begin("NOBODY", "");
    play.killed_with_guardian("source-committing", &LEASE);
    is_parked(&play);
    let image = PathBuf::from(play.status("b")["image"].as_str().unwrap());
    let model = std::fs::read(image.join("model.bin")).unwrap();
    std::fs::write(image.join("model.bin"), &model[..model.len() / 2]).unwrap();
    let output = play.resolve("b", "--run");
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains("stays parked"), "{}", text(&output));
    assert_eq!(play.status("b")["phase"], "parked");
    assert_eq!(others(&play), Vec::<i32>::new());
    play.nobody_counts("damaged");
    std::fs::write(image.join("model.bin"), model).unwrap();
    play.resolves("b", "--run");
    play.resolves("a", "--discard");
    is_over(&play, true, "mended");
}

/// A file system of memory, and no room on it.
struct Small(PathBuf);

impl Small {
    fn mount(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let (kind, flags) = (Some("tmpfs"), nix::mount::MsFlags::empty());
        nix::mount::mount(Some("none"), dir, kind, flags, Some("size=2m")).unwrap();
        Self(dir.into())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_disk_that_is_full_leaves_it_in_memory() {
    if !can_move() {
        return;
    }
    let play = Play::begin("NOBODY", "");
    let _small = Small::mount(&journals(&play));
    play.killed_with_guardian("source-committing", &LEASE);
    let status = wait_for(|| Some(play.status("b")).filter(|status| status["not_parked"].is_string()), "it was tried");
    assert!(status["not_parked"].as_str().unwrap().contains("room"), "{status}");
    assert_eq!(status["phase"], "prepared, waits", "{status}");
    assert_eq!(others(&play).len(), 1, "it stands there in memory");
    play.nobody_counts("held twice");
    play.resolves("a", "--run");
    is_over(&play, false, "no room");
}
