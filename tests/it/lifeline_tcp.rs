//! Connections of a target outlive a `migrate` that is killed while it has them: neither the target nor its peers notice more than
//! a pause, and new ones are taken.

use crate::cli::migrate;
use crate::lifeline::{PATIENCE, Random, Traced, root, stride, wait};
use crate::moves::{Agent, on_host};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An echo server with a child that shares its sockets. It ends at the first error of a socket.
const SERVER: &str = "
import os, socket, sys, threading, time
listening = socket.socket()
listening.bind(('127.0.0.1', 0))
listening.listen(16)
if os.fork() == 0:
    time.sleep(1000)
def serve(connection):
    try:
        while data := connection.recv(4096):
            connection.sendall(data)
    except OSError as error:
        open(sys.argv[1] + '/failure', 'w').write(repr(error))
def accept():
    while True:
        try:
            connection, _ = listening.accept()
        except OSError as error:
            open(sys.argv[1] + '/failure', 'w').write(repr(error))
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
open(sys.argv[1] + '/port.new', 'w').write(str(listening.getsockname()[1]))
os.rename(sys.argv[1] + '/port.new', sys.argv[1] + '/port')
time.sleep(1000)
";

/// A peer that never stops asking.
struct Peer {
    answers: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<String>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    fn start(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut peer = Self { answers: Arc::default(), failure: Arc::default(), ends: Arc::default(), thread: None };
        let (answers, failure, ends) = (peer.answers.clone(), peer.failure.clone(), peer.ends.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                if let Err(error) = ask(&stream, answers.load(Ordering::Relaxed)) {
                    *failure.lock().unwrap() = Some(error.to_string());
                    return;
                }
                answers.fetch_add(1, Ordering::Relaxed);
            }
        });
        peer.thread = Some(thread);
        peer
    }

    fn is_answered(&self, server: &Server, when: &str) {
        let before = self.answers.load(Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        while self.answers.load(Ordering::Relaxed) < before + 3 {
            let failure = (self.failure.lock().unwrap().clone(), fs::read_to_string(server.path("failure")).ok());
            let states = server.states();
            assert_eq!(failure, (None, None), "{when}: {states:?}");
            assert!(Instant::now() < end, "{when}: nobody answers; {states:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Asks, and is answered the same.
fn ask(mut stream: &TcpStream, question: u64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&question.to_ne_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if u64::from_ne_bytes(answer) == question { Ok(()) } else { Err(std::io::Error::other("another answer")) }
}

struct Server {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Option<Self> {
        if !root() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("lifeline-").tempdir().unwrap();
        let mut command = Command::new("setsid");
        command.args(["/usr/bin/python3", "-c", SERVER]).arg(dir.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let port = dir.path().join("port");
        wait("it listens", || port.exists());
        let port = fs::read_to_string(port).unwrap().parse().unwrap();
        Some(Self { dir, child, port })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Processes of the server, wherever they are now.
    fn pids(&self) -> Vec<i32> {
        let mark = self.dir.path().as_os_str().as_encoded_bytes().to_vec();
        let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let is = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == mark)
        };
        all.filter(is).collect()
    }

    /// The first process of the tree.
    fn root(&self) -> Option<i32> {
        let pids = self.pids();
        let parent = |pid: &i32| -> Option<i32> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
        };
        pids.iter().copied().find(|pid| !parent(pid).is_some_and(|parent| pids.contains(&parent)))
    }

    fn states(&self) -> Vec<String> {
        let state = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status
                .lines()
                .filter(|line| line.starts_with("State") || line.contains("Pnd"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        self.pids().iter().map(state).collect()
    }

    /// Old connections work, and new ones.
    fn serves(&self, peer: &Peer, when: &str) {
        peer.is_answered(self, when);
        let new = TcpStream::connect_timeout(&([127, 0, 0, 1], self.port).into(), PATIENCE);
        new.and_then(|new| ask(&new, 7)).unwrap_or_else(|error| panic!("{when}: a new connection: {error}"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        for pid in self.pids() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// The calls by which connections are locked, given back, and told of, and by which the target is held.
const ACTS: &[i64] = &[libc::SYS_setsockopt, libc::SYS_sendmsg, libc::SYS_kill];

#[test]
fn a_dump_that_is_killed_at_any_call_gives_connections_back() {
    let Some(server) = Server::start() else { return };
    let peer = Peer::start(server.port);
    server.serves(&peer, "before");
    let (mut n, stride) = stride(3);
    let mut killed = 0;
    loop {
        let image = server.path(&format!("image-{n}"));
        let pid = server.child.id().to_string();
        let command = migrate(&["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running", "--tcp", "keep"]);
        let mut traced = Traced::start(command, &server.path("log"), ACTS);
        if !traced.until(n) {
            let said = fs::read_to_string(server.path("log")).unwrap();
            assert!(image.exists() || said.contains("did not stop within"), "{said}");
            server.serves(&peer, &format!("at the end: {said}"));
            if image.exists() {
                break;
            }
            continue;
        }
        drop(traced);
        killed += 1;
        server.serves(&peer, &format!("killed at its call {n}"));
        n += stride;
    }
    assert!(killed > 20 / stride, "{killed}");
}

#[test]
fn a_dump_and_a_move_that_are_killed_at_any_time_give_connections_back() {
    let Some(server) = Server::start() else { return };
    let peer = Peer::start(server.port);
    let mut random = Random::new();
    let (here, there) = (server.path("here"), server.path("there"));
    let agent = Agent::start(&there, &format!("unix:{}", server.path("agent").display()));
    for name in ["dump", "move"] {
        let mut usual = None;
        for n in 0..=MANY {
            // It may have moved.
            let Some(pid) = server.root() else { panic!("{name} {n}: it is gone") };
            let pid = pid.to_string();
            let image = server.path(&format!("image-{name}-{n}"));
            let mut command = if name == "dump" {
                migrate(&["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running", "--tcp", "keep"])
            } else {
                let mut command = on_host(&here);
                command.args(["move", &pid, &agent.address]);
                command
            };
            let began = Instant::now();
            let said = fs::File::create(server.path("said")).unwrap();
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
            let mut when = format!("after {name}");
            if let Some(usual) = usual {
                // The pause is in the second half.
                let after = Duration::mul_f64(usual, 0.4 + 0.6 * random.part());
                std::thread::sleep(after);
                when = format!("{name} {n}, killed after {after:?} of {usual:?}");
                child.kill().unwrap();
                child.wait().unwrap();
            } else {
                let success = child.wait().unwrap().success();
                assert!(success, "{name}: {}", fs::read_to_string(server.path("said")).unwrap());
                usual = Some(began.elapsed());
            }
            server.serves(&peer, &when);
        }
    }
}

const MANY: usize = 20;

/// A move of the server to another host, and the agent there; at a step, on its side, the variable strikes once: the file is gone
/// then.
fn mover_struck(server: &Server, variable: &str, step: &str) -> (PathBuf, Agent, Command) {
    let (here, there, once) = (server.path("here"), server.path("there"), server.path("once"));
    fs::write(&once, "").unwrap();
    let strike = [(variable, step), ("MIGRATE_ONCE", once.to_str().unwrap())];
    let at_destination = step.starts_with("destination");
    let environment = if at_destination { &strike[..] } else { &[] };
    let agent = Agent::start_with(&there, &format!("unix:{}", server.path("agent").display()), environment);
    let mut mover = on_host(&here);
    mover.args(["move", &server.child.id().to_string(), &agent.address]).stdin(Stdio::null());
    if !at_destination {
        mover.envs(strike);
    }
    (once, agent, mover)
}

/// Whichever program of a move is killed, at whichever of its steps: the copy that goes on has the connections.
#[test]
fn a_move_whose_programs_are_killed_at_any_step_keeps_connections() {
    const AT_DESTINATION: [&str; 6] = ["armed", "recorded", "prepared", "ordered", "owner", "running"];
    const AT_SOURCE: [&str; 6] = ["ready", "held", "committing", "committed", "moved", "ended"];
    let destination = AT_DESTINATION.map(|step| format!("destination-{step}"));
    for point in destination.into_iter().chain(AT_SOURCE.map(|step| format!("source-{step}"))) {
        let Some(server) = Server::start() else { return };
        let peer = Peer::start(server.port);
        server.serves(&peer, "before");
        let (once, _agent, mut mover) = mover_struck(&server, "MIGRATE_KILL", &point);
        let output = mover.args(["--peer-timeout", "2s"]).output().unwrap();
        let said = format!("{point}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!once.exists(), "not reached: {said}");
        server.serves(&peer, &said);
    }
}

/// The mover, its guardian and the guard of its connections are killed at once: what a person decides, or the next command, gives
/// the target back with its connections.
#[test]
fn a_move_that_is_killed_with_its_guards_loses_no_connections() {
    for (step, by_person) in [("destination-armed", false), ("destination-armed", true), ("source-held", true)] {
        let Some(server) = Server::start() else { return };
        let peer = Peer::start(server.port);
        server.serves(&peer, "before");
        let here = server.path("here");
        let (once, agent, mut mover) = mover_struck(&server, "MIGRATE_STOP", step);
        let mut mover = mover.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait(step, || !once.exists());
        let mut all = children(mover.id() as i32);
        assert!(all.len() > 1, "{step}: {all:?}");
        all.push(mover.id() as i32);
        for pid in all {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        mover.wait().unwrap();
        drop(agent);
        let output = if by_person {
            on_host(&here).args(["resolve", "", "--run", "--yes"]).output().unwrap()
        } else {
            let image = server.path("image");
            let words = ["dump", &server.child.id().to_string(), "-D", image.to_str().unwrap(), "--leave-running"];
            on_host(&here).args(words).args(["--tcp", "keep"]).output().unwrap()
        };
        let said = format!("{step}, a person: {by_person}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}");
        server.serves(&peer, &said);
        let left = fs::read_dir(here.join("run")).into_iter().flatten().flatten().map(|file| file.path());
        let wills: Vec<PathBuf> = left.filter(|path| path.extension().is_some_and(|end| end == "will")).collect();
        assert!(wills.is_empty(), "{said}: {wills:?}");
    }
}

fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.flat_map(|task| of(task).split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()).collect()
}
