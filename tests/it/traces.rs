//! A target that was dumped and left running, and one that was restored, show no trace of the engine: the independent
//! reader finds nothing that was not there before.

use crate::reader::{Ended, Reading};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Memory of several kinds, threads, a child, a pipe with data, an open file, signal handlers, timers that do not run.
const PROGRAM: &str = r#"
import mmap, os, signal, sys, threading, time
os.closerange(3, 4096)  # what the test's own parents may have left open
shared = mmap.mmap(-1, 1 << 20); shared[5000] = 7
private = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); private[4096:8192] = b"x" * 4096
file = open(sys.argv[1], "w+"); file.write("x" * 100); file.flush()
r, w = os.pipe(); os.write(w, b"hello")
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.umask(0o27)
for _ in range(3): threading.Thread(target=signal.sigwait, args=([signal.SIGUSR2],), daemon=True).start()
if os.fork() == 0:
    os.dup2(0, 1)
    while True: signal.pause()
time.sleep(0.1)
print("ready", flush=True)
null = os.open("/dev/null", os.O_RDWR)
os.dup2(null, 1)
os.close(null)
while True: signal.pause()
"#;

/// Starts the program; it holds nothing of ours.
fn start(dir: &Path) -> Ended {
    let mut command = Command::new("setsid");
    command.args(["/usr/bin/python3", "-c", PROGRAM, dir.join("file").to_str().unwrap()]);
    let mut child = Ended(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is installed"),
    );
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    // The line comes before its last steps.
    std::thread::sleep(std::time::Duration::from_millis(300));
    child
}

fn migrate(args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_migrate")).args(args).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Ends the children of a process of ours, then it.
fn end(mut child: Ended) {
    let pid = child.0.id();
    end_tree(pid);
    // An orphaned grandchild is gone by now; the child is ours to wait for.
    let _ = child.0.wait();
}

fn end_tree(pid: u32) {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for one in children.split_whitespace().map(|w| w.parse().unwrap()).chain([pid as i32]) {
        // Gone is as good as ended.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(one), nix::sys::signal::SIGKILL);
    }
}

/// Directories of the cgroups that the engine has made for a process.
fn own_cgroups(pid: u32) -> Vec<PathBuf> {
    let memberships = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let paths = memberships.lines().filter_map(|line| line.splitn(3, ':').nth(2)?.strip_prefix("/migrate/"));
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    let hierarchies: Vec<PathBuf> = hierarchies.chain(["/sys/fs/cgroup".into()]).collect();
    let found = paths.flat_map(|path| hierarchies.iter().map(move |h| h.join("migrate").join(path)));
    found.filter(|dir| dir.is_dir()).collect()
}

/// Removes cgroups whose processes have just been ended.
fn remove(cgroups: &[PathBuf]) {
    for dir in cgroups {
        let gone = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            std::fs::remove_dir(dir).is_ok() || !dir.exists()
        });
        assert!(gone, "{} stays behind", dir.display());
    }
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::skip!("needs root");
    }
    root
}

#[test]
fn a_dump_that_leaves_the_target_running_changes_nothing() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let child = start(dir.path());
    let pid = child.0.id();
    let before = Reading::of(pid);
    let image = dir.path().join("image");
    let (ok, said) = migrate(&["dump", &pid.to_string(), "-D", image.to_str().unwrap(), "--leave-running"]);
    let differences = if ok { before.differences(&Reading::of(pid), &[]) } else { String::new() };
    end(child);
    assert!(ok, "{said}");
    assert_eq!(differences, "");
}

#[test]
fn a_dry_run_changes_nothing_and_writes_nothing() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let child = start(dir.path());
    let pid = child.0.id();
    let before = Reading::of(pid);
    let image = dir.path().join("image");
    let (ok, said) = migrate(&["dump", &pid.to_string(), "-D", image.to_str().unwrap(), "--dry-run"]);
    let differences = before.differences(&Reading::of(pid), &[]);
    end(child);
    assert!(ok, "{said}");
    assert_eq!(differences, "");
    assert!(!image.exists());
}

#[test]
fn a_restored_tree_is_as_it_was() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(dir.path());
    let pid = child.0.id();
    let before = Reading::of(pid);
    let (image, pidfile) = (dir.path().join("image"), dir.path().join("pid"));
    let (ok, said) = migrate(&["dump", &pid.to_string(), "-D", image.to_str().unwrap()]);
    if !ok {
        end(child);
        panic!("{said}");
    }
    // Its number is free once we have taken note of its end.
    child.0.wait().unwrap();
    let restore = ["restore", "-D", image.to_str().unwrap(), "--detach", "--pidfile", pidfile.to_str().unwrap()];
    let (ok, said) = migrate(&restore);
    assert!(ok, "{said}");
    let restored: u32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    let after = Reading::of(restored);
    let cgroups = own_cgroups(restored);
    end_tree(restored);
    remove(&cgroups);
    let allow: &[&str] = if restored == pid { &["scope.toml"] } else { &["scope.toml", "new-pids.toml"] };
    assert_eq!(before.differences(&after, allow), "");
}
