//! `migrate move` of real programs, over every transport, and what is left when something is killed on the way.
//!
//! A host is a directory here: source and destination share one kernel, so a moved tree gets a PID namespace of its own
//! while the frozen original still has its ids.

use crate::networks::{Killed, Networks};
use crate::places::free_port;
use migrate_engine::transport::keys;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const LIMIT: Duration = Duration::from_secs(20);

/// Counts in a file, a line every 2 ms, never the same number twice; some memory that it keeps writing to, and some pages that it
/// only reads, each of which holds what only it can.
const COUNTER: &str = "
import os, sys, time
os.closerange(3, 1024)  # what the test runner's shell has left open
out = open(sys.argv[1], 'a', buffering=1)
memory = bytearray(int(sys.argv[2]) << 20)
pages = int(sys.argv[3])
ground = bytearray(b''.join(bytes([page % 251 + 1]) * 4096 for page in range(pages)))
n = 0
while True:
    n += 1
    memory[n * 4096 % len(memory)] = n % 251 + 1
    assert memory[(n - 1) * 4096 % len(memory)] in ((n - 1) % 251 + 1, 0), 'memory is not what it was'
    page = n % pages if pages else 0
    assert ground[page * 4096:(page + 1) * 4096] == bytes([page % 251 + 1]) * (4096 if pages else 0), 'pages are lost'
    out.write('%d\\n' % n)
    time.sleep(0.002)
";

/// Whether moves can be tried here.
pub fn can_move() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let python = Path::new("/usr/bin/python3").exists();
    if !root || !python {
        crate::skip!("needs root ({root}) and /usr/bin/python3 ({python})");
    }
    root && python
}

/// A counter, wherever it runs; every process of it is killed in the end.
pub struct Counter {
    dir: tempfile::TempDir,
    child: Child,
}

impl Counter {
    pub fn start(mib: u32) -> Self {
        Self::on_ground(mib, 0)
    }

    /// With so many pages that it only reads.
    pub fn on_ground(mib: u32, pages: u32) -> Self {
        Self::of(COUNTER, &[&mib.to_string(), &pages.to_string()])
    }

    /// Another program that counts in the file of its first argument, with further ones.
    pub fn of(script: &str, arguments: &[&str]) -> Self {
        Self::by(Command::new("setsid"), script, arguments)
    }

    /// The same, by a command that executes the one in its further arguments.
    pub fn by(mut command: Command, script: &str, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = command
            .args(["/usr/bin/python3", "-c", script])
            .arg(dir.path().join("count"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let counter = Self { dir, child };
        counter.wait_for_more(0);
        counter
    }

    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("count")
    }

    pub fn numbers(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Until it has counted beyond `than`.
    pub fn wait_for_more(&self, than: u64) -> u64 {
        let until = Instant::now() + LIMIT;
        loop {
            match self.numbers().last() {
                Some(n) if *n > than + 5 => return *n,
                _ => assert!(Instant::now() < until, "the counter does not go on after {than}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// It counts, every number once, one copy of it.
    pub fn check_runs(&self) {
        let last = *self.numbers().last().unwrap();
        self.wait_for_more(last);
        let numbers = self.numbers();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a number is missing or was counted twice");
    }

    /// Processes that count in this file.
    pub fn processes(&self) -> Vec<i32> {
        let path = self.path();
        let path = path.to_str().unwrap();
        let pids =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).split('\0').any(|word| word == path)
        })
        .collect()
    }
}

/// Ends these processes, wherever they run, and the child that the first of them was.
pub fn end_all(processes: impl IntoIterator<Item = i32>, child: &mut Child) {
    for pid in processes {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Counter {
    fn drop(&mut self) {
        end_all(self.processes(), &mut self.child);
    }
}

/// A command that sees only this host's keys, peers and journals.
pub fn on_host(host: &Path) -> Command {
    std::fs::create_dir_all(host).unwrap();
    let mut command = Command::new(PROGRAM);
    command.env("MIGRATE_PLACES", host);
    command
}

/// An agent with places of its own.
pub struct Agent {
    child: Child,
    pub address: String,
}

impl Agent {
    pub fn start(host: &Path, listen: &str) -> Self {
        Self::start_with(host, listen, &[])
    }

    /// With this environment.
    pub fn start_with(host: &Path, listen: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new("env");
        command.envs(environment.iter().copied());
        Self::start_by(command, host, listen)
    }

    /// By a command that executes the one in its further arguments.
    pub fn start_by(mut command: Command, host: &Path, listen: &str) -> Self {
        std::fs::create_dir_all(host).unwrap();
        let mut child = command
            .args([PROGRAM, "agent", "--listen", listen])
            .env("MIGRATE_PLACES", host)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, address }
    }
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run(mut command: Command, arguments: &[&str]) -> Output {
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The `result` event.
pub fn result(output: &Output) -> serde_json::Value {
    let last = String::from_utf8_lossy(&output.stdout).lines().last().map(str::to_owned);
    serde_json::from_str(&last.unwrap_or_else(|| panic!("{}", text(output)))).unwrap()
}

/// Moves and checks that exactly one copy runs and counts on.
fn moves(source: Command, counter: &Counter, to: &str, options: &[&str]) -> serde_json::Value {
    let pid = counter.pid();
    let output = run(source, &[&["move", pid.as_str(), to, "--json"], options].concat());
    assert!(output.status.success(), "{}", text(&output));
    counter.check_runs();
    let processes = counter.processes();
    assert_eq!(processes.len(), 1, "the original has ended, one copy runs");
    assert_ne!(processes[0].to_string(), pid);
    let result = result(&output);
    assert_eq!((result["ok"].as_bool(), result["pid"].as_i64()), (Some(true), Some(processes[0].into())));
    result
}

/// CAP_DAC_READ_SEARCH, as a set.
const READ_SEARCH: u64 = 1 << 2;

/// What a thread has: inheritable, permitted, effective, bounding, ambient.
fn capabilities(thread: &str) -> Vec<u64> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
    let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
    let of = |set: &str| status.lines().find_map(|line| line.strip_prefix(set)).unwrap().trim().to_owned();
    sets.map(|set| u64::from_str_radix(&of(set), 16).unwrap()).to_vec()
}

#[test]
fn over_a_unix_socket_and_the_agent_may_go() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let counter = Counter::start(4);
    let listen = format!("unix:{}", dir.path().join("agent.sock").display());
    let agent = Agent::start(&b, &listen);
    let original = capabilities(&counter.pid());
    // It reads journals; what restores has all of root's rights, and gives the target those that it had.
    for thread in std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap();
        assert_eq!(capabilities(&thread)[1..3], [READ_SEARCH; 2], "the agent has more than it needs");
    }
    let result = moves(on_host(&a), &counter, &agent.address, &["--mode", "pre-copy"]);
    assert_eq!((result["mode"].as_str(), result["where"].as_str()), (Some("pre-copy"), Some(listen.as_str())));
    assert!(result["rounds"].as_array().unwrap().len() >= 2);
    assert!(result["expected_downtime_us"].as_u64().unwrap() > 0, "{result}");
    // Killed, not stopped: nothing of the target depends on it.
    drop(agent);
    counter.check_runs();
    assert_eq!(capabilities(&counter.processes()[0].to_string()), original);
    assert!(std::fs::read_dir(b.join("state/moves")).unwrap().count() == 1, "the destination's journal is kept");
}

#[test]
fn over_mutual_tls_with_memory() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts = [dir.path().join("a"), dir.path().join("b")];
    let fingerprints = hosts.clone().map(|host| keys::generate(&host.join("keys"), "x", false).unwrap().fingerprint());
    for (host, other) in hosts.iter().zip(fingerprints.iter().rev()) {
        std::fs::write(host.join("peers"), format!("{other} the-other\n")).unwrap();
    }
    let counter = Counter::start(64);
    let port = free_port();
    let agent = Agent::start(&hosts[1], &format!("tcp://127.0.0.1:{port}"));
    let page = dir.path().join("report.html");
    let options = ["--streams", "3", "--report", page.to_str().unwrap()];
    let result = moves(on_host(&hosts[0]), &counter, &agent.address, &options);
    assert_eq!(result["mode"].as_str(), Some("pre-copy"), "64 MiB are worth rounds");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.matches("class=\"round\"").count() >= 2 && page.contains("Downtime budget"), "{page}");
}

/// What sshd does: forgets the options and the host, gives the rest to a shell.
fn fake_ssh(dir: &Path) -> String {
    let path = dir.join("fake-ssh");
    std::fs::write(&path, "#!/bin/sh\necho Welcome\nshift\nexec sh -c \"$*\"\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn over_ssh_and_the_ssh_session_may_end() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let counter = Counter::start(1);
    let rsh = fake_ssh(dir.path());
    moves(
        on_host(&dir.path().join("a")),
        &counter,
        "over-there",
        &["--rsh", &rsh, "--remote", PROGRAM, "--mode", "stop-and-copy"],
    );
    // ssh, its shell and the agent have ended with the command; the tree stands in nobody's session, group or cgroup.
    let pid = counter.processes()[0];
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let agents = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert_ne!(cgroups, agents);
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap();
        let target = target.to_str().unwrap();
        assert!(target == "/dev/null" || target.ends_with("/count"), "a descriptor that is not the target's: {target}");
    }
}

#[test]
fn a_dry_run_and_a_blocked_target_are_left_alone() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let counter = Counter::start(1);
    let host = dir.path().join("a");
    let pid = counter.pid();
    let output = run(on_host(&host), &["move", &pid, "local", "--dry-run", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let asked = result(&output);
    assert_eq!(asked["where"].as_str(), Some("source"));
    let forecast = &asked["forecast"];
    assert!(forecast["bytes"].as_u64().unwrap() > 1 << 20, "it has more than 1 MiB: {asked}");
    assert!((100..1_000_000).contains(&forecast["downtime_us"].as_u64().unwrap()), "{asked}");
    assert!(forecast["total_us"].as_u64() >= forecast["downtime_us"].as_u64(), "{asked}");
    // The id is taken here, by the original itself.
    let output = run(on_host(&host), &["move", &pid, "local", "--pids", "same", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let result = result(&output);
    assert_eq!(result["state"].as_str(), Some("running"));
    assert!(!result["blockers"].as_array().unwrap().is_empty());
    counter.check_runs();
    assert_eq!(counter.processes().len(), 1);
}

#[test]
fn a_destination_that_dies_leaves_the_target_here() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let counter = Counter::start(1);
    // Speaks the first bytes of the protocol and ends: each length cuts at another step.
    for bytes in [0, 32, 600, 2000] {
        let remote = format!("{PROGRAM} agent --stdio | head -c {bytes} #");
        let rsh = fake_ssh(dir.path());
        let pid = counter.pid();
        let host = dir.path().join("a");
        let output = run(on_host(&host), &["move", &pid, "x", "--rsh", &rsh, "--remote", &remote, "--json"]);
        assert_eq!(output.status.code(), Some(5), "after {bytes} bytes: {}", text(&output));
        counter.check_runs();
        assert_eq!(counter.processes().len(), 1);
    }
}

#[test]
fn an_interrupt_rolls_back() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let counter = Counter::start(64);
    let host = dir.path().join("a");
    use nix::sys::signal::Signal;
    for (signal, exit) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        // So slow that the first round takes far longer than the test.
        let child = on_host(&host)
            .args(["move", &counter.pid(), "local", "--bandwidth", "100kB/s", "--mode", "pre-copy", "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(700));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{}", text(&output));
        let result = result(&output);
        assert_eq!(result["state"].as_str(), Some("running"));
        // Nobody has asked for the log; it is there, for its owner alone.
        let log = std::fs::metadata(result["log"].as_str().unwrap()).unwrap();
        assert!(log.len() > 0 && log.permissions().mode() & 0o077 == 0, "{log:?}");
        counter.check_runs();
        assert_eq!(counter.processes().len(), 1);
    }
}

/// Answers each line with its number and itself, each connection in a thread.
const ECHO: &str = "
import os, socket, sys, threading
os.closerange(3, 1024)
listener = socket.create_server((sys.argv[1], 7000))
def serve(connection):
    for n, line in enumerate(connection.makefile('rb'), 1):
        connection.sendall(b'%d %s' % (n, line))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// Sends numbered lines over one connection for some seconds and checks every answer.
const CLIENT: &str = "
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7000), timeout=20)
answers = connection.makefile('rb')
print('connected', flush=True)
n, longest, end = 0, 0, time.time() + float(sys.argv[2])
while time.time() < end:
    n, before = n + 1, time.time()
    connection.sendall(b'line %d\\n' % n)
    assert answers.readline() == b'%d line %d\\n' % (n, n), 'an answer is missing or wrong'
    longest = max(longest, time.time() - before)
    time.sleep(0.002)
print(n, 'answers, longest gap', round(longest * 1000), 'ms')
";

fn address(dir: &tempfile::TempDir, agent: usize) -> String {
    format!("unix:{}", dir.path().join(format!("agent{agent}.sock")).display())
}

/// A server with an address that moves, in a network of its own, and a client of it in another.
pub struct Served {
    pub networks: Networks,
    pub dir: tempfile::TempDir,
    agents: Vec<Killed>,
    pub server: Killed,
    client: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Served {
    /// With so many agents, in the networks behind the first; the client is in the last.
    pub fn begin(agents: usize) -> Option<Self> {
        let networks = Networks::of(agents + 2)?;
        let dir = tempfile::tempdir().unwrap();
        let start = |n: usize| {
            let mut agent = networks.inside(n, PROGRAM);
            agent.args(["agent", "--listen", &address(&dir, n)]).env("MIGRATE_PLACES", dir.path().join(n.to_string()));
            let mut agent = Killed(agent.stderr(Stdio::piped()).spawn().unwrap());
            BufReader::new(agent.0.stderr.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
            agent
        };
        let agents: Vec<Killed> = (1..=agents).map(start).collect();
        let mut server = networks.inside(0, "setsid");
        server.args(["/usr/bin/python3", "-c", ECHO, "10.77.0.100"]);
        let server = Killed(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(500));
        let mut client = networks.inside(agents.len() + 1, "/usr/bin/python3");
        client.args(["-c", CLIENT, "10.77.0.100", "5"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = client.spawn().unwrap();
        let mut output = BufReader::new(client.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "connected\n");
        Some(Self { networks, dir, agents, server, client, output })
    }

    /// The program of a move, on the first host.
    pub fn source(&self) -> Command {
        self.host(0)
    }

    /// A program of ours on one of the hosts.
    pub fn host(&self, n: usize) -> Command {
        let mut host = self.networks.inside(n, PROGRAM);
        host.env("MIGRATE_PLACES", self.dir.path().join(n.to_string()));
        host
    }

    pub fn moves(&self, mut source: Command, options: &[&str]) -> Output {
        source.args(["move", &self.server.0.id().to_string(), "--move-address", "10.77.0.100/24@eth0", "--json"]);
        source.args((1..=self.agents.len()).map(|n| address(&self.dir, n)));
        run(source, options)
    }

    /// The client saw no byte lost, and no reset.
    pub fn check(mut self, what: &str) {
        let ended = self.client.wait_with_output().unwrap();
        let mut said = String::new();
        self.output.read_line(&mut said).unwrap();
        let why = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{what}: no byte lost, no reset: {why}");
        eprintln!("{what}: {said}");
    }
}

#[test]
fn a_connection_moves_with_its_server_and_its_address() {
    if !can_move() {
        return;
    }
    let Some(served) = Served::begin(1) else { return };
    let moved = served.moves(served.source(), &[]);
    assert!(moved.status.success(), "{}", text(&moved));
    let new = Ended(result(&moved)["pid"].as_i64().unwrap() as i32);
    let there = std::fs::read_link(format!("/proc/{}/ns/net", new.0)).unwrap();
    let agent_net = std::fs::read_link(format!("/proc/{}/ns/net", served.agents[0].0.id())).unwrap();
    assert_eq!(there, agent_net, "it runs in the other network");
    served.check("moved");
}

/// A process that is nobody's child here, killed in the end.
pub struct Ended(pub i32);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0), nix::sys::signal::SIGKILL);
    }
}

#[test]
fn the_guardian_of_a_killed_move_gives_connections_and_the_address_back_or_leaves_them_to_the_destination() {
    if !can_move() {
        return;
    }
    for (point, stays) in [("source-held", true), ("source-committing", false)] {
        let Some(served) = Served::begin(1) else { return };
        let mut source = served.source();
        source.env("MIGRATE_KILL", point);
        let moved = served.moves(source, &[]);
        assert!(!moved.status.success(), "{point}: {}", text(&moved));
        let until = Instant::now() + LIMIT;
        let copy = loop {
            let entry = result(&run(served.host(1), &["status", "--all", "--json"]))["sessions"][0].clone();
            match entry["phase"].as_str() {
                Some("stayed") if stays => break None,
                Some("moved") if !stays => break entry["pid"].as_i64().map(|pid| Ended(pid as i32)),
                _ => assert!(Instant::now() < until, "{point}: {entry}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(copy.is_none(), stays);
        served.check(point);
    }
}
