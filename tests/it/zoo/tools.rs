//! What tests that save and restore processes need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// Differences that every move makes: the tree gets a PID namespace of its own, with a mount namespace for its /proc.
pub const MOVED: &[(&str, &str)] = &[
    ("**.mnt", "a mount namespace of its own"),
    ("tasks[*].namespaces", "namespaces of its own are numbered after those of the host"),
    ("namespaces", "namespaces of its own are numbered after those of the host"),
    ("ptys[*].index", "the original's terminals have their numbers while both are there"),
    ("tasks[*].tty_device", "the original's terminals have their numbers while both are there"),
];

/// What cannot be moved, with the reason: not run in that mode, and counted as skipped.
pub const NOT_MOVED: &[(&str, &str, &str)] = &[
    (
        "descriptors",
        "namespace_descriptors",
        "it holds the network namespace of its host, and there it finds another one",
    ),
    ("terminals", "pair", "it looks for the number of its terminal, which the frozen original has on this kernel"),
];

/// What has moved of these cannot be saved from outside, so that the models are not compared; their own checks are made.
pub const NOT_COMPARED: &[(&str, &str, &str)] = &[
    ("identity", "changed_root", "it has a mount namespace of its own and another root in it"),
    ("numa", "of_segment", "its segment is in an IPC namespace of its own, as the original has its id"),
    ("memory", "system_v", "its segments are in an IPC namespace of its own, as the original has their ids"),
    ("memory", "segments_of_others", "its segments are in an IPC namespace of its own, as the original has their ids"),
    ("terminals", "foreground_gone", "a process group that has gone has no number in a new PID namespace"),
];

/// The fixture, compiled once in a run of the tests.
pub fn compiled(name: &'static str) -> Result<PathBuf, String> {
    static DONE: OnceLock<Mutex<BTreeSet<&'static str>>> = OnceLock::new();
    let mut done = DONE.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("zoo");
    let binary = dir.join(name);
    if done.contains(name) {
        return Ok(binary);
    }
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).with_extension("c");
    // Renamed when complete: tests of another process may be compiling it, too.
    let partial = dir.join(format!("{name}.{}", std::process::id()));
    let output = Command::new("gcc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .args([&partial, &source])
        .output()
        .map_err(|e| format!("gcc cannot be run: {e}"))?;
    assert!(output.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    fs::rename(&partial, &binary).map_err(|e| e.to_string())?;
    done.insert(name);
    Ok(binary)
}

/// Restored trees become children of this process when the command that made them ends, as the originals were.
pub fn adopt_orphans() {
    nix::sys::prctl::set_child_subreaper(true).expect("any process may be a subreaper");
}

/// Adds whoever belongs to the tree of `root`.
pub fn note_tree(root: i32, tree: &mut BTreeSet<i32>) {
    let mut queue = vec![root];
    while let Some(pid) = queue.pop() {
        tree.insert(pid);
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            queue.extend(children.split_whitespace().filter_map(|c| c.parse::<i32>().ok()));
        }
    }
}

/// Collects those of the tree that have ended: their ids have to be free.
pub fn reap(tree: &BTreeSet<i32>) {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    for pid in tree {
        for _ in 0..2000 {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
            match waitid(Id::Pid(nix::unistd::Pid::from_raw(*pid)), flags) {
                // Still ending, or not yet handed on to us by its parent.
                Ok(WaitStatus::StillAlive) => {}
                Err(_) if Path::new(&format!("/proc/{pid}")).exists() => {}
                _ => break,
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// Whether there is such a process that has not ended.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z") && !rest.starts_with(" X"))
}

/// Processes with `ZOO=DIR` in their environment: whatever became of their parents, sessions and namespaces.
pub fn marked(dir: &Path) -> Vec<i32> {
    let mark = format!("ZOO={}\0", dir.display()).into_bytes();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != std::process::id() as i32)
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(mark.len()).any(|w| w == mark)
        })
        .collect()
}

/// The independent reader, without arguments. It needs no more than the standard library, and starts faster without looking for more.
pub fn independent_reader() -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-S", "-E"]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/state.py"));
    command
}

/// Runs the independent reader; what it says if it fails.
pub fn reader(args: &[&std::ffi::OsStr]) -> Result<(), String> {
    let output = independent_reader().args(args).output().map_err(|e| format!("python3: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))),
    }
}
