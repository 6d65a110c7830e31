//! Trees that somebody holds frozen in a cgroup, of either version: saved without an instruction of theirs being run, and frozen
//! again wherever they come back.

use super::harness::{Run, Scenario, marked};
use super::tools::compiled;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const TARGET: Scenario = Scenario { fixture: "tree", case: "plain", ignore: &[], allow: "", busy: false, timed: false };

/// A cgroup of ours, thawed and removed when dropped.
pub struct Freezer {
    pub place: Place,
}

/// A cgroup that can be frozen.
pub struct Place {
    pub dir: PathBuf,
    v2: bool,
}

/// Whether this line of /proc/PID/mounts is a hierarchy with a freezer.
fn is_hierarchy(line: &str, v2: bool) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    if v2 { words[2] == "cgroup2" } else { words[2] == "cgroup" && words[3].split(',').any(|o| o == "freezer") }
}

impl Freezer {
    /// `None`, said, where there is no such hierarchy or it is not ours to use.
    pub fn make(v2: bool) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mount = mounts
            .lines()
            .find(|line| is_hierarchy(line, v2))
            .and_then(|line| line.split(' ').nth(1).map(PathBuf::from));
        static MADE: AtomicU32 = AtomicU32::new(0);
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = mount.map(|mount| mount.join(format!("migrate-frozen-test-{}-{n}", std::process::id())));
        match dir {
            Some(dir) if nix::unistd::geteuid().is_root() && fs::create_dir(&dir).is_ok() => {
                Some(Self { place: Place { dir, v2 } })
            }
            _ => {
                crate::skip!("a frozen tree (v2 {v2}): needs root and that hierarchy");
                None
            }
        }
    }

    pub fn set(&self, frozen: bool) {
        self.place.set(frozen);
    }

    /// Whether it was told to stand still.
    pub fn is_set(&self) -> bool {
        let file = if self.place.v2 { "cgroup.freeze" } else { "freezer.self_freezing" };
        fs::read_to_string(self.place.dir.join(file)).expect("it is ours").trim() == "1"
    }

    /// Waits until everybody in it stands still.
    pub fn is_frozen(&self) -> bool {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if self.place.is_frozen_now() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Place {
    fn set(&self, frozen: bool) {
        let (file, text) = match (self.v2, frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        fs::write(self.dir.join(file), text).expect("it is ours");
    }

    fn is_frozen_now(&self) -> bool {
        let (file, text) = if self.v2 { ("cgroup.events", "frozen 1") } else { ("freezer.state", "FROZEN") };
        fs::read_to_string(self.dir.join(file)).unwrap_or_default().contains(text)
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set(false);
        for _ in 0..1000 {
            // Restored or not, whoever is in it is about to end.
            if fs::remove_dir(&self.place.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Jiffies that the processes have used.
fn processor_time(pids: &[i32]) -> Vec<String> {
    let of = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.split(' ').skip(13).take(2).collect::<Vec<_>>().join(" ")
    };
    pids.iter().map(of).collect()
}

fn saved_while_frozen(v2: bool) {
    let Some(freezer) = Freezer::make(v2) else { return };
    let fixture = compiled(TARGET.fixture).expect("gcc is there");
    let run = Run::start(&TARGET, &fixture);
    run.ready().expect("it sets up");
    let mut pids = marked(run.dir.path());
    pids.sort_unstable();
    for pid in &pids {
        fs::write(freezer.place.dir.join("cgroup.procs"), pid.to_string()).expect("it may be put there");
    }
    freezer.set(true);
    assert!(freezer.is_frozen());
    run.dump(run.pid(), 0, &["--leave-running"]).expect("a frozen tree can be saved");
    assert!(freezer.is_frozen(), "it is frozen again");
    stand(&pids);
    run.dump(run.pid(), 1, &[]).expect("and again, for good");
    freezer.set(false);
    let root = run.restore(1, &["--pids", "same"]).expect("it is restored");
    assert_eq!(root, pids[0]);
    stand(&pids);
    run.dump(root, 2, &["--leave-running"]).expect("a tree that was restored frozen can be saved");
    run.same_model(1, 2, &[("frozen", "a cgroup of its own")]).expect("and is what it was");
    thaw(root);
    run.verify().expect("it has not noticed");
}

/// Nobody of them runs.
fn stand(pids: &[i32]) {
    let used = processor_time(pids);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(processor_time(pids), used, "nobody runs");
    for pid in pids {
        let (v1, v2) = of_process(*pid);
        assert!([v1, v2].into_iter().flatten().any(|freezer| freezer.is_frozen_now()), "process {pid} is not frozen");
    }
}

/// The cgroups of a process that could be frozen, of version 1 and 2.
fn of_process(pid: i32) -> (Option<Place>, Option<Place>) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let of = |v2: bool| {
        let mount = mounts.lines().find(|line| is_hierarchy(line, v2))?.split(' ').nth(1)?;
        let is_it = |(_, controllers, _): &(&str, &str, &str)| {
            if v2 { controllers.is_empty() } else { controllers.split(',').any(|c| c == "freezer") }
        };
        let fields = |line| {
            let mut fields = str::splitn(line, 3, ':');
            Some((fields.next()?, fields.next()?, fields.next()?))
        };
        let (_, _, path) = lines.lines().filter_map(fields).find(is_it)?;
        let dir = PathBuf::from(mount).join(path.trim_start_matches('/'));
        (path != "/").then_some(Place { dir, v2 })
    };
    (of(false), of(true))
}

/// Lets the tree of `root` go on, as a person would.
fn thaw(root: i32) {
    let (v1, v2) = of_process(root);
    [v1, v2].into_iter().flatten().for_each(|freezer| freezer.set(false));
}

/// The destination is another network of this host, and the tree has another cgroup there.
fn moved_while_frozen(v2: bool) {
    let Some(freezer) = Freezer::make(v2) else { return };
    let fixture = compiled(TARGET.fixture).expect("gcc is there");
    let run = Run::start(&TARGET, &fixture);
    run.ready().expect("it sets up");
    for pid in marked(run.dir.path()) {
        fs::write(freezer.place.dir.join("cgroup.procs"), pid.to_string()).expect("it may be put there");
    }
    freezer.set(true);
    assert!(freezer.is_frozen());
    let root = run.moved(run.pid()).expect("it moves");
    let pids = marked(run.dir.path());
    assert!(pids.contains(&root), "{pids:?}");
    stand(&pids);
    assert!(!fs::read_to_string(freezer.place.dir.join("cgroup.procs")).unwrap().contains(char::is_numeric));
    thaw(root);
    run.verify().expect("it has not noticed");
}

#[test]
fn version_1() {
    saved_while_frozen(false);
}

#[test]
fn version_2() {
    saved_while_frozen(true);
}

#[test]
fn moved_in_version_1() {
    moved_while_frozen(false);
}

#[test]
fn moved_in_version_2() {
    moved_while_frozen(true);
}
