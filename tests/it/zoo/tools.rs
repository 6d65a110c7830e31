//! What tests that save and restore processes need.

use migrate_engine::image::fd::FileKind;
use migrate_engine::image::fd::tcp::{Connection, TcpState};
use migrate_engine::image::{Bytes, Model};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// Differences that every move makes: the tree gets a PID namespace of its own, with a mount namespace for its /proc.
pub const MOVED: &[(&str, &str)] = &[
    ("**.mnt", "a mount namespace of its own"),
    ("tasks[*].namespaces", "namespaces of its own are numbered after those of the host"),
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
    let mut command = Command::new("python3");
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

/// The model in a form that chance has no part in: threads in the order of their ids as they see them (the kernel lists them by
/// those that the host sees), and what is under way between two ends in the tree has arrived.
pub fn sorted(mut model: Model) -> Model {
    for task in &mut model.tasks {
        task.threads.sort_by_key(|thread| thread.tid.0);
    }
    for receiver in 0..model.files.len() {
        for sender in 0..model.files.len() {
            if let Ok([receiver, sender]) = model.files.get_disjoint_mut([receiver, sender]) {
                arrived(&mut receiver.kind, &mut sender.kind);
            }
        }
    }
    model
}

/// The kernel carries data from one end to the other whenever its timers say so, whoever stands still: where in the stream the
/// border between the two queues is depends on when one looks.
fn arrived(receiver: &mut FileKind, sender: &mut FileKind) {
    let (FileKind::Tcp(receiver), FileKind::Tcp(sender)) = (receiver, sender) else { return };
    if receiver.local != sender.peer || receiver.peer != sender.local || receiver.net != sender.net {
        return;
    }
    if let (TcpState::Connected(to), TcpState::Connected(from)) = (&mut receiver.state, &mut sender.state) {
        deliver(to, from);
    }
}

fn deliver(to: &mut Connection, from: &mut Connection) {
    let missing = from.send_seq.wrapping_sub(to.recv_seq) as usize;
    // The border is in what the sender still has; else they are compared as they are.
    if let Some(known) = from.send_queue.0.len().checked_sub(missing) {
        to.recv_queue.0.extend_from_slice(&from.send_queue.0[known..]);
        to.recv_seq = from.send_seq;
        from.send_queue.0.clear();
        // What is left to compare: how much is on its way, neither unsent nor received.
        from.unsent = (missing as u32).wrapping_sub(from.unsent);
    }
}

#[test]
fn what_is_under_way_between_two_ends_has_arrived() {
    let all = b"a stream of bytes";
    let idle = Connection {
        state: 1,
        recv_seq: 7,
        send_seq: 7,
        recv_queue: Bytes::default(),
        send_queue: Bytes::default(),
        unsent: 0,
        mss: 1400,
        window_scale: None,
        sack: false,
        timestamp: None,
        window: Bytes::default(),
    };
    let delivered = |border: usize, known: usize| {
        let seq = 7 + all.len() as u32;
        let mut to =
            Connection { recv_seq: 7 + border as u32, recv_queue: Bytes(all[..border].to_vec()), ..idle.clone() };
        let unsent = (all.len() - border) as u32;
        let mut from = Connection { send_seq: seq, send_queue: Bytes(all[known..].to_vec()), unsent, ..idle.clone() };
        deliver(&mut to, &mut from);
        (to, from)
    };
    let ended = delivered(all.len(), all.len());
    assert_eq!(ended.0.recv_queue.0, all);
    // Acknowledgements may lag.
    for (border, known) in [(0, 0), (5, 5), (5, 3), (17, 11)] {
        assert_eq!(delivered(border, known), ended);
    }
    // What nobody has any more is a loss, and remains one.
    assert_ne!(delivered(5, 6), ended);
}
