//! The independent reader of /proc (`tests/reader/state.py`): it sees what changes and nothing else.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Ends the process when the test is over, also when it failed.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader")
}

fn reader(args: &[&str]) -> Output {
    crate::zoo::tools::independent_reader().args(args).output().expect("python3 is installed")
}

/// All that the kernel shows of a process tree at one moment.
pub struct Reading {
    /// Holds the file below.
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Reading {
    /// Reads the tree below `pid`, contents of its memory included: it has to be quiet.
    pub fn of(pid: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("reading.json");
        let output = reader(&["capture", "--memory", &pid.to_string(), "-o", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { _dir: dir, file }
    }

    /// Differences of a later reading, a line each; empty if there are none but those that `allow.toml`, and the files
    /// named (of `tests/reader/`), permit.
    pub fn differences(&self, after: &Self, allow: &[&str]) -> String {
        let allow: Vec<String> =
            allow.iter().flat_map(|f| ["--allow".into(), folder().join(f).to_str().unwrap().to_owned()]).collect();
        let mut args = vec!["compare", self.file.to_str().unwrap(), after.file.to_str().unwrap()];
        args.extend(allow.iter().map(String::as_str));
        let output = reader(&args);
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        if output.status.success() { String::new() } else { text }
    }
}

/// A tree with a pipe, a socket pair, an epoll instance, threads, a child and a zombie; says a line when it is ready.
const TREE: &str = r#"
import os, select, socket, sys, threading, time
r, w = os.pipe(); os.write(w, b"hello")
pair = socket.socketpair()
epoll = select.epoll(); epoll.register(r)
for _ in range(3): threading.Thread(target=time.sleep, args=(300,), daemon=True).start()
if os.fork() == 0: os.close(1); time.sleep(300)
if os.fork() == 0: os._exit(3)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
time.sleep(0.1)
print("ready", flush=True)
sys.stdin.readline()
os.read(r, 1)
os.nice(3)
print("changed", flush=True)
time.sleep(300)
"#;

#[test]
fn an_unchanged_tree_has_no_difference_and_changes_are_named() {
    use std::io::{BufRead, BufReader, Write};
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", TREE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Where the tests say things may be a file, which grows.
        .stderr(Stdio::null())
        .spawn()
        .map(Ended)
        .expect("python3 is installed");
    let pid = child.0.id();
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let before = Reading::of(pid);
    assert_eq!(before.differences(&Reading::of(pid), &[]), "");

    child.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "changed");
    let after = Reading::of(pid);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for child in children.split_whitespace() {
        let kill =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.parse().unwrap()), nix::sys::signal::SIGKILL);
        kill.expect("the child, a zombie or not, is still ours to signal");
    }
    let differences = before.differences(&after, &[]);
    assert!(differences.contains("/ duplicate / unread: 5 -> 4"), "{differences}");
    assert!(differences.contains("/ stat / nice: 0 -> 3"), "{differences}");
}

#[test]
fn two_runs_of_a_program_differ_in_their_layout_only_where_they_do() {
    let readings = [(); 2].map(|()| {
        // Without randomisation two runs of a program look alike but for their ids.
        let child =
            Ended(Command::new("setarch").args(["-R", "sleep", "300"]).spawn().expect("util-linux is installed"));
        std::thread::sleep(std::time::Duration::from_millis(300));
        Reading::of(child.0.id())
    });
    let differences = readings[0].differences(&readings[1], &[]);
    assert!(!differences.is_empty(), "other process ids must be seen");
    assert!(!differences.contains("/ memory /"), "{differences}");
}

#[test]
fn an_allow_list_without_reasons_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.json");
    std::fs::write(&empty, "{}").unwrap();
    let allow = dir.path().join("allow.toml");
    std::fs::write(&allow, "[[allow]]\npath = \"x\"\nrule = \"ignore\"\nreason = \"\"\n").unwrap();
    let output =
        reader(&["compare", empty.to_str().unwrap(), empty.to_str().unwrap(), "--allow", allow.to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("reason"), "{output:?}");
}
