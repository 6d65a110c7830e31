//! A server that is parked at its destination, with its address and a connection: the client sees neither an end nor a reset, only
//! that nobody answers for a while, whatever becomes of it.

use crate::handover::{children, is_stopped, wait, wait_for};
use crate::moves::{can_move, result, text};
use crate::networks::{Killed, Networks};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const ADDRESS: &str = "10.77.0.100";

/// Says what it is told, with the number of times it was.
const SERVER: &str = "
import os, socket, sys
os.closerange(3, 1024)
listener = socket.create_server((sys.argv[1], 7000))
connection, _ = listener.accept()
memory = bytearray(b'whole' * 100000)
n = 0
while data := connection.recv(16, socket.MSG_WAITALL):
    n += 1
    assert memory[n * 5 % len(memory):][:5] == b'whole'
    connection.sendall(b'%07d %s' % (n, data[8:]))
";

/// Asks a hundred times a second, and notes how often it was answered rightly.
const CLIENT: &str = "
import os, socket, sys, time
connection = socket.create_connection((sys.argv[1], 7000), timeout=60)
for n in range(1, 1000000):
    connection.sendall(b'%07d %07d\\n' % (0, n))
    answer = connection.recv(16, socket.MSG_WAITALL)
    assert answer == b'%07d %07d\\n' % (n, n), answer
    with open(sys.argv[2] + '.new', 'w') as out:
        out.write(str(n))
    os.rename(sys.argv[2] + '.new', sys.argv[2])
    time.sleep(0.01)
";

struct Play {
    networks: Networks,
    dir: tempfile::TempDir,
    server: Killed,
    client: Killed,
    agent: Killed,
    address: String,
}

impl Play {
    fn begin() -> Option<Self> {
        if !can_move() {
            return None;
        }
        let networks = Networks::make()?;
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", dir.path().join("agent.sock").display());
        let mut agent = networks.inside(1, PROGRAM);
        agent.args(["agent", "--listen", &address]).env("MIGRATE_PLACES", dir.path().join("b"));
        let mut agent = Killed(agent.stderr(Stdio::piped()).spawn().unwrap());
        BufReader::new(agent.0.stderr.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        let python = |network, inside: &str, program, arguments: &[&Path]| {
            let mut command = networks.inside(network, inside);
            command.args(["/usr/bin/python3", "-c", program, ADDRESS]).args(arguments);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            Killed(command.spawn().unwrap())
        };
        let server = python(0, "setsid", SERVER, &[]);
        let pid = server.0.id();
        let listens = || std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default().contains(":1B58");
        wait(listens, "the server listens");
        let client = python(2, "env", CLIENT, &[&dir.path().join("answers")]);
        let play = Self { networks, dir, server, client, agent, address };
        play.is_answered("at first");
        Some(play)
    }

    fn answers(&self) -> u64 {
        std::fs::read_to_string(self.dir.path().join("answers")).ok().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    fn is_answered(&self, when: &str) {
        let before = self.answers();
        wait(|| self.answers() > before + 5 || !self.client_lives(), when);
        assert!(self.client_lives(), "{when}: the client has met an error");
    }

    fn client_lives(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.client.0.id())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    fn on(&self, network: usize) -> Command {
        let mut command = self.networks.inside(network, PROGRAM);
        command.env("MIGRATE_PLACES", self.dir.path().join(["a", "b"][network]));
        command
    }

    fn status(&self, network: usize) -> serde_json::Value {
        let output = self.on(network).args(["status", "--json"]).output().unwrap();
        result(&output)["sessions"][0].clone()
    }

    /// A move that stands still where nobody has said COMMIT yet.
    fn stopped_move(&self, point: &str) -> std::process::Child {
        let mut mover = self.on(0);
        mover.args(["move", &self.server.0.id().to_string(), &self.address, "--json", "--peer-timeout", "2s"]);
        mover.args(["--lease", "1s", "--move-address", &format!("{ADDRESS}/24@eth0")]).env("MIGRATE_STOP", point);
        let mover = mover.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait(|| is_stopped(mover.id() as i32), point);
        mover
    }

    fn is_parked(&self) -> PathBuf {
        let status = wait_for(|| Some(self.status(1)).filter(|status| status["phase"] == "parked"), "it is parked");
        wait(|| children(self.agent.0.id()).is_empty(), "the session has ended");
        let here = self.networks.inside(1, "ip").args(["addr", "show", "dev", "eth0"]).output().unwrap();
        assert!(!text(&here).contains(ADDRESS), "{}", text(&here));
        assert_eq!(self.networks.held_off(1).len(), 1, "what comes for the connection is not answered");
        // Longer than a segment that is repeated takes to come by.
        let before = self.answers();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        assert!(self.client_lives(), "the client has learned of it");
        assert_eq!(self.answers(), before, "nobody answers");
        PathBuf::from(status["image"].as_str().unwrap())
    }

    /// Nothing holds its segments off any more.
    fn is_open(&self) {
        for network in 0..2 {
            let held = self.networks.held_off(network);
            assert_eq!(held, Vec::<String>::new(), "network {network}");
        }
    }
}

#[test]
fn its_client_waits_until_it_runs_over_there() {
    let Some(play) = Play::begin() else { return };
    let mover = play.stopped_move("source-ready");
    let image = play.is_parked();
    kill(Pid::from_raw(mover.id() as i32), Signal::SIGCONT).unwrap();
    let output = mover.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    play.is_answered("it runs over there");
    assert!(!image.exists());
    let left = std::fs::read_dir(play.dir.path().join("a/run")).unwrap().flatten().map(|file| file.path());
    let left: Vec<PathBuf> = left.filter(|path| path.extension().is_some_and(|end| end == "will")).collect();
    assert!(left.is_empty(), "{left:?}");
    play.is_open();
}

#[test]
fn its_client_waits_until_it_goes_on_here() {
    let Some(play) = Play::begin() else { return };
    let mut mover = play.stopped_move("source-ready");
    let image = play.is_parked();
    // Its guardian takes over: nothing was committed.
    mover.kill().unwrap();
    mover.wait().unwrap();
    play.is_answered("it goes on here");
    wait(|| play.status(1).is_null() && !image.exists(), "the destination was told");
    play.is_open();
}

#[test]
fn its_client_waits_until_a_person_lets_it_go_on_here() {
    let Some(play) = Play::begin() else { return };
    let mut mover = play.stopped_move("source-committing");
    let image = play.is_parked();
    // Nobody of those who decide is left at the source; who has its connections in keeping gives nothing back unasked.
    let is_guardian = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("move-guardian-process")
    };
    let guardian = children(mover.id()).into_iter().find(is_guardian).expect("a guardian");
    kill(Pid::from_raw(guardian), Signal::SIGKILL).unwrap();
    mover.kill().unwrap();
    mover.wait().unwrap();
    let wills = || {
        let files = std::fs::read_dir(play.dir.path().join("a/run")).into_iter().flatten().flatten();
        files.filter(|file| file.path().extension().is_some_and(|end| end == "will")).count()
    };
    assert_eq!(wills(), 1);
    let session = play.status(0)["session"].as_str().unwrap().to_owned();
    let output = play.on(0).args(["resolve", &session, "--run", "--yes"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    play.is_answered("it goes on here");
    assert!(!image.exists());
    assert_eq!(wills(), 0);
    play.is_open();
}
