//! A tree whose processes come and go all the time.

use crate::cli::migrate;
use crate::networks::Killed;
use crate::zoo::frozen::Freezer;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Starts a process, waits for its end, counts.
const PARENT: &str = "
import os, sys
os.closerange(3, 1024)
count = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
n = 0
while True:
    child = os.fork()
    if child == 0:
        os._exit(n % 100)
    assert os.waitpid(child, 0) == (child, n % 100 << 8), 'a child is missing'
    n += 1
    os.pwrite(count, b'%12d' % n, 0)
";

/// Whenever it is stopped, a child may have ended and be waited for at that very moment.
#[test]
fn children_that_are_just_waited_for_are_no_hindrance() {
    let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
    if !root || !python {
        crate::skip!("churn: needs root ({root}) and /usr/bin/python3 ({python})");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("count");
    let mut parent = Command::new("setsid");
    parent.args(["/usr/bin/python3", "-c", PARENT]).arg(&path);
    parent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let parent = Killed(parent.spawn().unwrap());
    let counted = || std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    let goes_on = || {
        let (before, until) = (counted(), Instant::now() + Duration::from_secs(20));
        while counted() <= before + 20 {
            assert!(Instant::now() < until, "it does not go on after {before}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    goes_on();
    let mut pid = parent.0.id().to_string();
    // Four of ten failed when such a child was looked for after it had gone.
    for n in 0..15 {
        let image = dir.path().join(format!("look-{n}"));
        let output = migrate(&["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running"]).output().unwrap();
        assert!(output.status.success(), "dump {n}: {}", String::from_utf8_lossy(&output.stderr));
    }
    goes_on();
    let mut restored = None;
    for n in 0..5 {
        let image = dir.path().join(format!("image-{n}"));
        let image = image.to_str().unwrap();
        let output = migrate(&["dump", &pid, "-D", image]).output().unwrap();
        assert!(output.status.success(), "dump {n}: {}", String::from_utf8_lossy(&output.stderr));
        // Numbers of its children are given out again at once: it gets its own.
        let output = migrate(&["restore", "-D", image, "--detach", "--pids", "new", "--json"]).output().unwrap();
        assert!(output.status.success(), "restore {n}: {}", String::from_utf8_lossy(&output.stdout));
        let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap().to_owned();
        let result: serde_json::Value = serde_json::from_str(&last).unwrap();
        pid = result["pid"].as_i64().unwrap().to_string();
        restored = Some(Ended(result["pid"].as_i64().unwrap() as i32));
        goes_on();
    }
    drop(restored);
}

/// A restored tree, killed in the end.
struct Ended(i32);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0), nix::sys::signal::SIGKILL);
    }
}

/// Seventy members, each of which makes a child and waits for it, some six times a second, for at most ten minutes; all of them count
/// in one file. Other tests need a processor, too.
const BOMB: &str = "
import os, struct, sys, time
os.closerange(3, 1024)
count = os.open(sys.argv[1], os.O_RDWR)
end = time.monotonic() + 600
for member in range(70):
    if os.fork() == 0:
        n = 0
        while time.monotonic() < end:
            child = os.fork()
            if child == 0:
                os._exit(n % 100)
            assert os.waitpid(child, 0) == (child, n % 100 << 8), 'a child is missing'
            n += 1
            os.pwrite(count, struct.pack('=Q', n), 8 * member)
            time.sleep(0.15)
        os._exit(0)
for member in range(70):
    os.wait()
";

/// A tree that makes processes all the time, in a cgroup of its own.
struct Bomb {
    dir: tempfile::TempDir,
    child: Option<Killed>,
    freezer: Freezer,
    _alone: MutexGuard<'static, ()>,
}

/// One such tree at a time.
static ALONE: Mutex<()> = Mutex::new(());

impl Bomb {
    /// `None`, said, where it cannot be tried.
    fn start(v2: bool) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let python = Path::new("/usr/bin/python3").exists();
        if !python {
            crate::skip!("churn: needs /usr/bin/python3");
            return None;
        }
        let freezer = Freezer::make(v2)?;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("count"), [0; 70 * 8]).unwrap();
        // Into the cgroup before it makes anybody.
        let script = format!("echo $$ > {}/cgroup.procs; exec /usr/bin/python3 \"$@\"", freezer.place.dir.display());
        let mut command = Command::new("setsid");
        command.args(["/bin/sh", "-c", &script, "sh", "-c", BOMB]).arg(dir.path().join("count"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Some(Killed(command.spawn().unwrap()));
        let bomb = Self { dir, child, freezer, _alone: alone };
        bomb.goes_on();
        Some(bomb)
    }

    fn pid(&self) -> String {
        self.child.as_ref().unwrap().0.id().to_string()
    }

    fn counted(&self) -> Vec<u64> {
        let bytes = std::fs::read(self.dir.path().join("count")).unwrap();
        bytes.chunks_exact(8).map(|n| u64::from_ne_bytes(n.try_into().unwrap())).collect()
    }

    /// Each member does.
    fn goes_on(&self) {
        let (before, until) = (self.counted(), Instant::now() + Duration::from_secs(60));
        while self.counted().iter().zip(&before).any(|(now, before)| now <= before) {
            assert!(Instant::now() < until, "a member does not go on: {before:?} {:?}", self.counted());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn dump(&self, name: &str) -> Command {
        let image = self.dir.path().join(name);
        migrate(&["dump", &self.pid(), "-D", image.to_str().unwrap(), "--leave-running", "-vv"])
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        // Its members are killed while they make no others.
        self.freezer.set(true);
        self.freezer.is_frozen();
        for pid in std::fs::read_to_string(self.freezer.place.dir.join("cgroup.procs")).unwrap_or_default().lines() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
        self.freezer.set(false);
        self.child = None;
    }
}

fn stopped_by_its_cgroup(v2: bool) {
    let Some(bomb) = Bomb::start(v2) else { return };
    let mut frozen = 0;
    for n in 0..4 {
        let output = bomb.dump(&n.to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "dump {n}: {said}");
        frozen += usize::from(said.contains(&format!("all tasks of {} stand still", bomb.freezer.place.dir.display())));
        assert!(!bomb.freezer.is_set(), "dump {n} has left it frozen");
        bomb.goes_on();
    }
    assert!(frozen > 0, "the cgroup was never used");
}

#[test]
fn a_tree_that_forks_all_the_time_is_stopped_by_its_cgroup_of_version_1() {
    stopped_by_its_cgroup(false);
}

#[test]
fn a_tree_that_forks_all_the_time_is_stopped_by_its_cgroup_of_version_2() {
    stopped_by_its_cgroup(true);
}

/// A dump that stands where the cgroup is frozen, in a group of its own; `None`: it has ended, as nothing was frozen.
fn standing_dump(bomb: &Bomb, name: &str, until: Instant) -> Option<(Killed, nix::unistd::Pid)> {
    let mut command = bomb.dump(name);
    command.env("MIGRATE_STOP", "cgroup-frozen").stdout(Stdio::null()).stderr(Stdio::null());
    let mut dump = Killed(std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().unwrap());
    let pid = nix::unistd::Pid::from_raw(dump.0.id() as i32);
    let stands = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    };
    while !stands() {
        assert!(Instant::now() < until, "no dump freezes the cgroup");
        if dump.0.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Some((dump, pid))
}

fn killed_while_it_is_frozen(v2: bool) {
    let Some(bomb) = Bomb::start(v2) else { return };
    let until = Instant::now() + Duration::from_secs(100);
    for n in 0..3 {
        // On a busy machine they may not stand still in time, and are stopped one by one.
        let (mut dump, pid) = (0..).find_map(|m| standing_dump(&bomb, &format!("{n}-{m}"), until)).unwrap();
        assert!(bomb.freezer.is_set() && bomb.freezer.is_frozen());
        // Its group is killed as well: who thaws is no part of it.
        nix::sys::signal::killpg(pid, nix::sys::signal::SIGKILL).unwrap();
        dump.0.wait().unwrap();
        while bomb.freezer.is_set() {
            assert!(Instant::now() < until, "it is left frozen");
            std::thread::sleep(Duration::from_millis(2));
        }
        bomb.goes_on();
    }
    let output = bomb.dump("last").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn who_dies_with_a_cgroup_frozen_has_it_thawed_in_version_1() {
    killed_while_it_is_frozen(false);
}

#[test]
fn who_dies_with_a_cgroup_frozen_has_it_thawed_in_version_2() {
    killed_while_it_is_frozen(true);
}
