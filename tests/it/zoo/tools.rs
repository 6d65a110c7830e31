//! What tests that save and restore processes need.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

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

/// Runs the independent reader; what it says if it fails.
pub fn reader(args: &[&std::ffi::OsStr]) -> Result<(), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/state.py");
    let output = Command::new("python3").arg(script).args(args).output().map_err(|e| format!("python3: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))),
    }
}
