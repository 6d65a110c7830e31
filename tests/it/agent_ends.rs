//! A tree that an agent has taken in is nobody's but its own: it goes on when the agent is stopped, killed, or upgraded, and has
//! nothing of it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// An agent of its own file, with a socket and places of its own.
struct Agent {
    child: Child,
    dir: PathBuf,
}

impl Agent {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(dir.join("migrate"));
        command.args(["agent", "--listen", &Self::address(dir)]).env("MIGRATE_PLACES", dir.join("there"));
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on"), "{line}");
        Self { child, dir: dir.to_owned() }
    }

    fn address(dir: &Path) -> String {
        format!("unix:{}", dir.join("agent.sock").display())
    }

    /// The tree of `pid` moves to it; its root's process id.
    fn takes(&self, pid: i32) -> i32 {
        let mut command = Command::new(PROGRAM);
        command.args(["move", &pid.to_string(), &Self::address(&self.dir), "--json"]);
        let output = command.env("MIGRATE_PLACES", self.dir.join("here")).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap().to_owned();
        serde_json::from_str::<serde_json::Value>(&last).unwrap()["pid"].as_i64().unwrap() as i32
    }

    fn ends_by(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A script in a session of its own. What the shell that runs the tests has left open, pipes to its other commands, is not the target's:
/// a pipe whose other end is held by somebody else does not move.
fn begun(script: &str) -> Child {
    let script = format!("for n in {{3..255}}; do eval \"exec $n>&-\"; done 2> /dev/null; {script}");
    let mut bash = Command::new("setsid");
    bash.args(["bash", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    bash.spawn().unwrap()
}

/// A process that is ended, and whoever of its namespace is left.
struct Ended(i32);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

fn field(pid: i32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

/// It runs, and has nothing that the agent has.
fn lives_alone(pid: i32, agent: i32) {
    assert!(field(pid, "State:").starts_with('S'), "{}", field(pid, "State:"));
    let stat = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let rest = stat.rsplit_once(')').unwrap().1;
        rest.split_whitespace().skip(2).take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(stat(pid).iter().all(|id| !stat(agent).contains(id) || id == "0"), "its session and group are the agent's");
    let cgroups = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of_v2 = |text: String| text.lines().find(|line| line.starts_with("0::")).map(str::to_owned);
    assert!(of_v2(cgroups(pid)).is_none_or(|line| Some(line) != of_v2(cgroups(agent))), "its cgroup is the agent's");
    let open = |pid: i32| -> Vec<(u64, u64)> {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        // Of kinds that have an inode of their own.
        let links = entries.flatten().filter(|entry| {
            std::fs::read_link(entry.path())
                .is_ok_and(|link| !link.starts_with("/dev/") && !link.starts_with("anon_inode:"))
        });
        links.filter_map(|entry| std::fs::metadata(entry.path()).ok()).map(|m| (m.dev(), m.ino())).collect()
    };
    assert!(open(pid).iter().all(|inode| !open(agent).contains(inode)), "it has a descriptor of the agent's");
}

#[test]
fn a_tree_goes_on_when_its_agent_is_stopped_killed_or_upgraded() {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("migrate");
    std::fs::copy(PROGRAM, &program).unwrap();
    let original = begun("exec sleep 1000");
    let mut tree = Ended(original.id() as i32);
    let mut original = Some(original);
    while field(tree.0, "Name:") != "sleep" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for how in ["stopped", "killed", "upgraded", "upgraded"] {
        let mut agent = Agent::start(dir.path());
        let moved = agent.takes(tree.0);
        if let Some(mut original) = original.take() {
            original.wait().unwrap();
        }
        tree = Ended(moved);
        lives_alone(moved, agent.child.id() as i32);
        if how == "upgraded" {
            // As a package manager does it: the running one keeps the file that it has.
            let newer = dir.path().join("newer");
            std::fs::copy(PROGRAM, &newer).unwrap();
            std::fs::rename(&newer, &program).unwrap();
            // What it has been started as is gone, and it goes on to take in trees.
            let again = agent.takes(moved);
            tree = Ended(again);
        }
        agent.ends_by(if how == "killed" { Signal::SIGKILL } else { Signal::SIGTERM });
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(field(tree.0, "State:").starts_with('S'), "{how}: {}", field(tree.0, "State:"));
    }
}

/// The id that it had is free to see, and yet taken: a program that it has left behind is in the session of that number.
#[test]
fn a_tree_whose_old_id_names_a_session_moves_again() {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(PROGRAM, dir.path().join("migrate")).unwrap();
    let left = dir.path().join("left");
    let script = format!("( sleep 1000 & echo $! > {} ); exec sleep 1001", left.display());
    let mut original = begun(&script);
    let pid = original.id() as i32;
    let mut tree = Ended(pid);
    while field(pid, "Name:") != "sleep" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let left = Ended(std::fs::read_to_string(left).unwrap().trim().parse().unwrap());
    let session = |pid: i32| nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap().as_raw();
    assert_eq!(session(left.0), pid);
    let agent = Agent::start(dir.path());
    tree = Ended(agent.takes(tree.0));
    original.wait().unwrap();
    assert_eq!(kill(Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH));
    for _ in 0..2 {
        tree = Ended(agent.takes(tree.0));
        assert!(field(tree.0, "State:").starts_with('S'));
    }
    assert_eq!(session(left.0), pid, "what it has left behind is as it was");
}
