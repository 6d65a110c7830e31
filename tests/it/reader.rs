//! The independent reader of /proc (`tests/reader/state.py`): it sees what changes and nothing else.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Ends the process when the test is over, also when it failed.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn reader(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/state.py");
    Command::new("python3").arg(script).args(args).output().expect("python3 is installed")
}

fn capture(pid: u32, file: &Path) {
    let output = reader(&["capture", "--memory", &pid.to_string(), "-o", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn compare(a: &Path, b: &Path) -> (bool, String) {
    let output = reader(&["compare", a.to_str().unwrap(), b.to_str().unwrap()]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn files() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("before.json"), dir.path().join("after.json"));
    (dir, a, b)
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
    let mut child = Command::new("python3")
        .args(["-c", TREE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Ended)
        .expect("python3 is installed");
    let pid = child.0.id();
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let (_dir, a, b) = files();
    capture(pid, &a);
    capture(pid, &b);
    assert_eq!(compare(&a, &b), (true, "no difference\n".into()));

    child.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "changed");
    capture(pid, &b);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for child in children.split_whitespace() {
        let kill =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.parse().unwrap()), nix::sys::signal::SIGKILL);
        kill.expect("the child, a zombie or not, is still ours to signal");
    }
    let (same, differences) = compare(&a, &b);
    assert!(!same);
    assert!(differences.contains("/ duplicate / unread: 5 -> 4"), "{differences}");
    assert!(differences.contains("/ stat / nice: 0 -> 3"), "{differences}");
}

#[test]
fn two_runs_of_a_program_differ_in_their_layout_only_where_they_do() {
    let (_dir, a, b) = files();
    for file in [&a, &b] {
        // Without randomisation two runs of a static binary look alike but for their ids.
        let child =
            Ended(Command::new("setarch").args(["-R", "sleep", "300"]).spawn().expect("util-linux is installed"));
        std::thread::sleep(std::time::Duration::from_millis(200));
        capture(child.0.id(), file);
    }
    let (same, differences) = compare(&a, &b);
    assert!(!same, "other process ids must be seen");
    assert!(!differences.contains("/ memory /"), "{differences}");
}

#[test]
fn an_allow_list_without_reasons_is_refused() {
    let (dir, a, b) = files();
    std::fs::write(&a, "{}").unwrap();
    std::fs::write(&b, "{}").unwrap();
    let allow = dir.path().join("allow.toml");
    std::fs::write(&allow, "[[allow]]\npath = \"x\"\nrule = \"ignore\"\nreason = \"\"\n").unwrap();
    let output = reader(&["compare", a.to_str().unwrap(), b.to_str().unwrap(), "--allow", allow.to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("reason"), "{output:?}");
}
