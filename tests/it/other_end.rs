//! What the other end of a move lacks is said before anything is stopped: `check --to`, `move --dry-run` and the move itself.
//!
//! The other end is an agent that sees other files in /proc and /etc, or is in another network.

use crate::cli::events;
use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use crate::places::free_port;
use std::path::Path;
use std::process::{Command, Output};

/// An agent that begins in namespaces of its own, once this shell script has run there.
fn agent_behind(dir: &Path, namespaces: &[&str], script: &str) -> Agent {
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["sh", "-c", &format!("set -e; {script}; exec \"$@\""), "sh"]);
    Agent::start_by(command, &dir.join("b"), &format!("unix:{}", dir.join("agent.sock").display()))
}

fn codes(output: &Output) -> Vec<String> {
    let blockers = result(output)["blockers"].as_array().cloned().unwrap_or_default();
    blockers.iter().map(|b| b["code"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Asked in each of the ways there are, the other end names this and nothing else, and the target goes on here.
fn refuses(dir: &Path, counter: &Counter, agent: &Agent, code: &str, words: &str) {
    let (pid, to) = (counter.pid(), agent.address.as_str());
    let ways: [&[&str]; 3] =
        [&["check", &pid, "--to", to], &["move", &pid, to, "--dry-run"], &["move", &pid, to, "--mode", "post-copy"]];
    for way in ways {
        let output = run(on_host(&dir.join("a")), &[way, &["--json"]].concat());
        assert_eq!((output.status.code(), codes(&output)), (Some(3), vec![code.to_owned()]), "{}", text(&output));
        assert!(text(&output).contains(words), "{}", text(&output));
        counter.check_runs();
        assert_eq!(counter.processes().len(), 1);
    }
}

#[test]
fn memory_that_is_not_free_there() {
    if !can_move() {
        return;
    }
    let (dir, counter) = (tempfile::tempdir().unwrap(), Counter::on_ground(1, 16 << 10));
    // Half of what the target has, and a few pages of that as swap.
    let here = std::fs::read_to_string("/proc/meminfo").unwrap();
    let there: String = here
        .lines()
        .map(|line| match line.split(':').next() {
            Some(name @ "MemAvailable") => format!("{name}: 30000 kB\n"),
            Some(name @ "SwapFree") => format!("{name}: 2768 kB\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let file = dir.path().join("meminfo");
    std::fs::write(&file, there).unwrap();
    let script = format!("mount --bind {} /proc/meminfo", file.display());
    let agent = agent_behind(dir.path(), &["-m"], &script);
    refuses(dir.path(), &counter, &agent, "M0209", "33554432 are free with swap");
}

#[test]
fn features_of_the_processor_that_are_not_there() {
    if !can_move() {
        return;
    }
    let (dir, counter) = (tempfile::tempdir().unwrap(), Counter::start(1));
    let here = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if !here.contains(" sse4_2 ") {
        crate::skip!("other_end: needs a processor with sse4_2");
        return;
    }
    let file = dir.path().join("cpuinfo");
    std::fs::write(&file, here.replace(" sse4_2 ", " ")).unwrap();
    let script = format!("mount --bind {} /proc/cpuinfo", file.display());
    let agent = agent_behind(dir.path(), &["-m"], &script);
    let output = run(on_host(&dir.path().join("a")), &["check", &counter.pid(), "--to", &agent.address, "--json"]);
    // Of the host, and of the target.
    assert_eq!((output.status.code(), codes(&output)), (Some(3), vec!["M0701".to_owned(); 2]), "{}", text(&output));
    let output = run(on_host(&dir.path().join("a")), &["move", &counter.pid(), &agent.address, "--json"]);
    assert_eq!((output.status.code(), codes(&output)), (Some(3), vec!["M0701".to_owned()]), "{}", text(&output));
    assert!(text(&output).contains("sse4_2"), "{}", text(&output));
    counter.check_runs();
    let minimal = ["move", &counter.pid(), &agent.address, "--cpu", "minimal", "--dry-run", "--json"];
    let output = run(on_host(&dir.path().join("a")), &minimal);
    assert!(output.status.success(), "at one's own risk: {}", text(&output));
}

/// Listens on a port, and counts.
const SERVER: &str = "
import os, socket, sys, time
os.closerange(3, 1024)
server = socket.create_server(('127.0.0.1', int(sys.argv[2])))
out = open(sys.argv[1], 'a', buffering=1)
n = 0
while True:
    n += 1
    out.write('%d\\n' % n)
    time.sleep(0.002)
";

#[test]
fn a_port_that_somebody_has_there() {
    if !can_move() {
        return;
    }
    let port = free_port();
    let counter = Counter::of(SERVER, &[&port.to_string()]);
    let dir = tempfile::tempdir().unwrap();
    let holder = "import socket, sys, time; s = socket.create_server((\"127.0.0.1\", int(sys.argv[1]))); open(sys.argv[2], \"w\"); time.sleep(1000)";
    let mark = dir.path().join("taken");
    let script = format!(
        "ip link set lo up; /usr/bin/python3 -c '{holder}' {port} {0} >/dev/null 2>&1 & echo $! >{1}; \
         until [ -e {0} ]; do sleep 0.02; done",
        mark.display(),
        dir.path().join("pid").display(),
    );
    let agent = agent_behind(dir.path(), &["-n"], &script);
    refuses(dir.path(), &counter, &agent, "M0412", &format!("127.0.0.1:{port}"));
    let holder: i32 = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder), nix::sys::signal::SIGKILL).unwrap();
    // Once it is free the target gets it, beside the one that the original still holds in its own network.
    let pid = counter.pid();
    let output = run(on_host(&dir.path().join("a")), &["move", &pid, &agent.address, "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    counter.check_runs();
    let net = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let moved = counter.processes();
    assert_eq!(moved.len(), 1);
    assert_eq!(net(&moved[0].to_string()), net(&agent.pid().to_string()));
}

#[test]
fn users_and_groups_that_are_others_there() {
    if !can_move() {
        return;
    }
    let (dir, counter) = (tempfile::tempdir().unwrap(), Counter::start(1));
    let file = dir.path().join("passwd");
    std::fs::write(&file, "toor:x:0:0:root:/root:/bin/sh\n").unwrap();
    let script = format!("mount --bind {} /etc/passwd", file.display());
    let agent = agent_behind(dir.path(), &["-m"], &script);
    let output = run(on_host(&dir.path().join("a")), &["move", &counter.pid(), &agent.address, "--dry-run", "--json"]);
    assert!(output.status.success(), "a difference to be told, not in the way: {}", text(&output));
    let warnings: Vec<_> = events(&output).into_iter().filter(|event| event["event"] == "warning").collect();
    let said = warnings.iter().filter(|w| w["text"] == "user 0, root at the source, is toor there");
    assert_eq!(said.count(), 1, "{warnings:?}");
}
