use super::*;
use crate::blocker::{Code, codes};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

/// Ends a child, also when the test failed.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Python program that says a line when it is ready, and its process id.
fn python(program: &str) -> (Ended, Pid) {
    let mut child = Command::new("/usr/bin/python3");
    let mut child = Ended(
        child.args(["-c", program]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python3 is installed"),
    );
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = Pid(child.0.id() as i32);
    (child, pid)
}

/// Blockers, but for descriptors: those the tests themselves were started with are open in every child.
fn found(pids: &[Pid]) -> Vec<Blocker> {
    let mut blockers = run(&Table::read().unwrap(), pids, &Policy::default()).unwrap().blockers;
    blockers.retain(|blocker| blocker.code.group() != 3);
    blockers
}

fn codes_of(blockers: &[Blocker]) -> Vec<Code> {
    blockers.iter().map(|b| b.code).collect()
}

#[test]
fn an_ordinary_program_has_nothing_in_the_way() {
    let (_child, pid) = python("import time; print('ready', flush=True); time.sleep(100)");
    let findings = run(&Table::read().unwrap(), &[pid], &Policy::default()).unwrap();
    assert_eq!(found(&[pid]), []);
    assert_eq!((findings.processes, findings.threads), (1, 1));
    assert!(findings.memory_bytes > 1 << 20);
}

const SHARED: &str = "
import mmap, os, time
m = mmap.mmap(-1, 4096); m[0] = 1
child = os.fork()
if child == 0: time.sleep(100); os._exit(0)
print('ready', flush=True)
try: time.sleep(100)
finally: os.kill(child, 9)
";

#[test]
fn shared_memory_counts_only_if_somebody_outside_has_it() {
    let (child, pid) = python(SHARED);
    let table = Table::read().unwrap();
    let tree = table.tree(pid);
    assert_eq!(tree.len(), 2);
    assert_eq!(found(&tree), []);
    let alone = found(&tree[1..]);
    // SIGINT lets it end its child.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGINT).unwrap();
    let mut child = child;
    child.0.wait().unwrap();
    assert_eq!(codes_of(&alone), [codes::SHARED_OUTSIDE], "{alone:?}");
    assert!(alone[0].reason.contains(&format!("pid {pid}")), "{alone:?}");
}

/// A child by clone(2) with CLONE_FILES: both have one descriptor table.
const CLONE_FILES: &str = "
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
CLONE_FILES, SIGCHLD = 0x400, 17
child = libc.syscall(56, CLONE_FILES | SIGCHLD, 0, 0, 0, 0)
if child == 0:
    while True: time.sleep(100)
print('ready', flush=True)
try: time.sleep(100)
finally: os.kill(child, 9)
";

#[test]
fn a_descriptor_table_shared_with_the_outside_is_named() {
    let (mut child, pid) = python(CLONE_FILES);
    let tree = Table::read().unwrap().tree(pid);
    let (whole, alone) = (found(&tree), found(&tree[1..]));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGINT).unwrap();
    child.0.wait().unwrap();
    assert_eq!(tree.len(), 2);
    assert_eq!(whole, []);
    assert_eq!(codes_of(&alone), [codes::SHARES_OUTSIDE], "{alone:?}");
    assert!(alone[0].reason.contains("descriptor table"), "{alone:?}");
}

#[test]
fn namespaces_of_their_own_are_named() {
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--ipc",
        "--cgroup",
        "--user",
        "--uts",
        "--map-root-user",
        "sh",
        "-c",
        "echo ready; exec sleep 100",
    ]);
    let Ok(child) = command.stdout(Stdio::piped()).spawn() else {
        crate::skip!("unshare is not installed");
        return;
    };
    let mut child = Ended(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line.is_empty() {
        crate::skip!("no user namespaces here");
        return;
    }
    let blockers = found(&[Pid(child.0.id() as i32)]);
    assert_eq!(codes_of(&blockers), [codes::NAMESPACE_KIND; 3], "{blockers:?}");
    let reasons: Vec<&str> = blockers.iter().map(|b| b.reason.as_str()).collect();
    let reason = |kind| format!("its {kind} namespace is not the host's");
    assert_eq!(reasons, ["network", "IPC", "cgroup"].map(reason));
}

#[test]
fn a_process_that_ends_meanwhile_is_none() {
    let (child, pid) = python("import time; print('ready', flush=True); time.sleep(100)");
    let table = Table::read().unwrap();
    drop(child);
    assert_eq!(run(&table, &[pid], &Policy::default()).unwrap().blockers, []);
}
