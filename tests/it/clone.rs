//! `migrate clone`: what must differ between copies does, seen from inside each, and the original is as it was. Each destination has an
//! agent with places of its own, on this kernel.

use crate::handover::wait;
use crate::moves::{Agent, can_move, end_all, on_host, result, run, text};
use crate::networks::Networks;
use crate::places::{free_port, is_settled};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Answers questions about itself, a line each, over TCP. Its first connection it keeps for itself.
const SUBJECT: &str = "
import errno, mmap, os, select, socket, sys
os.closerange(3, 1024)
place, address = sys.argv[1], sys.argv[2]
ground = bytearray().join(bytes([n % 251 + 1]) * 4096 for n in range(2000))
wiped = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
wiped.madvise(18)  # MADV_WIPEONFORK
wiped[:] = b's' * 8192
listener = socket.create_server((address, 0), backlog=16)
with open(place + '/new', 'w') as out:
    out.write('%d' % listener.getsockname()[1])
os.rename(place + '/new', place + '/port')
first, count = listener.accept()[0], 0
first.setblocking(False)

def of_first():
    try:
        return 'data' if first.recv(100) else 'end'
    except BlockingIOError:
        return 'open'
    except OSError as error:
        return errno.errorcode[error.errno]

def read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError as error:
        return errno.errorcode[error.errno]

while True:
    one = listener.accept()[0]
    with one, one.makefile('rw') as lines:
        for line in lines:
            word, _, rest = line.strip().partition(' ')
            count += 1
            answer = {
                'count': lambda: count,
                'name': socket.gethostname,
                'pid': os.getpid,
                'wiped': lambda: set(wiped[:]) == {0},
                'ground': lambda: all(ground[n * 4096:(n + 1) * 4096] == bytes([n % 251 + 1]) * 4096 for n in range(2000)),
                'first': of_first,
                'say': lambda: first.send(rest.encode()),
                'read': lambda: read(rest),
                'interfaces': lambda: ' '.join(name for _, name in socket.if_nameindex()),
            }[word]()
            lines.write('%s\\n' % answer)
            lines.flush()
";

/// Runs there, in the network namespace of this process.
fn inside<T: Send>(pid: i32, act: impl FnOnce() -> T + Send) -> T {
    let there = || {
        let net = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        nix::sched::setns(net, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        act()
    };
    std::thread::scope(|scope| scope.spawn(there).join().unwrap())
}

fn connect(address: &SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(address, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Asks over a connection of its own.
fn ask(address: &SocketAddr, questions: &[&str]) -> Vec<String> {
    let mut stream = connect(address);
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut answer = |question: &&str| {
        writeln!(stream, "{question}").unwrap();
        answers.next().unwrap().unwrap()
    };
    questions.iter().map(&mut answer).collect()
}

/// A program that can be asked, with its first client.
struct Subject {
    dir: tempfile::TempDir,
    child: Child,
    address: SocketAddr,
    first: TcpStream,
}

impl Subject {
    /// In the network of `command`, which executes the one in its further arguments; `connect` is done there, too.
    fn start_by(mut command: Command, ip: &str, connect: impl FnOnce(&SocketAddr) -> TcpStream) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = command
            .args(["setsid", "/usr/bin/python3", "-c", SUBJECT])
            .args([dir.path().to_str().unwrap(), ip])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let port = dir.path().join("port");
        wait(|| port.exists(), "the subject listens");
        let port = std::fs::read_to_string(port).unwrap().parse().unwrap();
        let address = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
        let first = connect(&address);
        Self { dir, child, address, first }
    }

    fn start() -> Self {
        Self::start_by(Command::new("env"), "127.0.0.1", connect)
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Who runs it, copies included.
    fn processes(&self) -> Vec<i32> {
        let place = self.dir.path().to_str().unwrap();
        let pids =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).split('\0').any(|word| word == place)
        })
        .collect()
    }

    /// One of them is asked, where it is.
    fn ask(&self, pid: i32, questions: &[&str]) -> Vec<String> {
        inside(pid, || ask(&self.address, questions))
    }

    /// The original has lost nothing: not its connection, not its memory, not its name.
    fn check_unharmed(&mut self) {
        let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
        let answers = ask(&self.address, &["first", "wiped", "ground", "name", "say hello"]);
        assert_eq!(answers, ["open", "False", "True", host.as_str(), "5"]);
        let mut hello = [0; 5];
        std::io::Read::read_exact(&mut self.first, &mut hello).unwrap();
        assert_eq!(&hello, b"hello");
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        end_all(self.processes(), &mut self.child);
    }
}

/// A subject, and so many destinations.
struct Stage {
    dir: tempfile::TempDir,
    subject: Subject,
    agents: Vec<Agent>,
    once: PathBuf,
}

impl Stage {
    /// `strikes`: the environment of each agent.
    fn begin(strikes: &[&[(&str, &str)]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let once = dir.path().join("once");
        std::fs::write(&once, "").unwrap();
        let agents = strikes.iter().enumerate().map(|(n, strikes)| {
            let listen = format!("unix:{}", dir.path().join(format!("agent{n}.sock")).display());
            let mut environment = strikes.to_vec();
            environment.push(("MIGRATE_ONCE", once.to_str().unwrap()));
            Agent::start_with(&dir.path().join(format!("dest{n}")), &listen, &environment)
        });
        let agents = agents.collect();
        Self { dir, subject: Subject::start(), agents, once }
    }

    fn on_source(&self) -> Command {
        on_host(&self.dir.path().join("source"))
    }

    fn cloner(&self, options: &[&str]) -> Command {
        let mut command = self.on_source();
        command.args(["clone", &self.subject.pid().to_string()]);
        command.args(self.agents.iter().map(|agent| agent.address.as_str()));
        command.args(["--json", "--peer-timeout", "2s", "--lease", "2s"]).args(options).env("MIGRATE_ONCE", &self.once);
        command
    }

    fn clone(&self, options: &[&str]) -> Output {
        run(self.cloner(options), &[])
    }

    /// No host has to decide about anything, and there are so many processes, the original included, none of which is a half one.
    fn check_settled(&self, processes: usize, what: &str) {
        wait(|| self.subject.processes().len() == processes, &format!("{what}: {processes} processes are left"));
        for pid in self.subject.processes() {
            assert_eq!(self.subject.ask(pid, &["ground"]), ["True"], "{what}: memory of {pid}");
        }
        for host in std::iter::once("source".to_owned()).chain((0..self.agents.len()).map(|n| format!("dest{n}"))) {
            is_settled(&self.dir.path().join(host), what);
        }
    }

    /// Where a copy at that destination finds its id.
    fn id_file(&self, n: usize) -> String {
        self.dir.path().join(format!("dest{n}/run/clone-id")).display().to_string()
    }
}

/// The candidates that run a copy: process id and clone id.
fn started(result: &serde_json::Value) -> Vec<(i32, String)> {
    let all = result["candidates"].as_array().unwrap_or_else(|| panic!("{result}"));
    let running = all.iter().filter(|one| one["became"] == "running");
    running.map(|one| (one["pid"].as_i64().unwrap() as i32, one["clone_id"].as_str().unwrap().to_owned())).collect()
}

fn namespace(pid: i32, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

#[test]
fn each_copy_is_itself_and_the_original_goes_on() {
    if !can_move() {
        return;
    }
    for mode in ["auto", "stop-and-copy"] {
        let mut stage = Stage::begin(&[&[], &[]]);
        // One of them twice.
        let again = stage.agents[0].address.clone();
        let output = stage.clone(&[&again, "--mode", mode]);
        assert!(output.status.success(), "{mode}: {}", text(&output));
        let result = result(&output);
        assert_eq!((result["ok"].as_bool(), result["where"].as_str()), (Some(true), Some("both")), "{result}");
        assert_eq!(result["state"].as_str(), Some("running"), "{result}");
        let copies = started(&result);
        let session = result["session"].as_str().unwrap();
        let ids: Vec<&str> = copies.iter().map(|(_, id)| id.as_str()).collect();
        assert_eq!(ids, [1, 2, 3].map(|n| format!("{session}-{n}")));
        assert_eq!(
            result["pid"].as_i64().map(|pid| copies.iter().any(|(copy, _)| i64::from(*copy) == pid)),
            Some(true)
        );
        stage.check_settled(4, mode);
        let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
        let original = stage.subject.pid();
        for ((pid, id), at) in copies.iter().zip([0, 1, 0]) {
            let file = format!("read {}", stage.id_file(at));
            let questions = ["name", file.as_str(), "wiped", "ground", "first", "pid", "interfaces"];
            let expected = [&format!("{host}-{id}"), id, "True", "True", "ECONNRESET", &original.to_string(), "lo"];
            assert_eq!(stage.subject.ask(*pid, &questions), expected, "{mode}");
            let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
            assert!(smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" wf")), "{mode}");
            assert!(!Path::new(&stage.id_file(at)).exists(), "it is in the clone's own file system");
        }
        for kind in ["pid", "net", "uts", "mnt"] {
            let all = copies.iter().map(|(pid, _)| *pid).chain([original]);
            let different: BTreeSet<PathBuf> = all.map(|pid| namespace(pid, kind)).collect();
            assert_eq!(different.len(), copies.len() + 1, "{kind}");
        }
        stage.subject.check_unharmed();
        // They go apart.
        let counted: u64 = ask(&stage.subject.address, &["count", "count", "count"])[2].parse().unwrap();
        for (pid, _) in &copies {
            let theirs: u64 = stage.subject.ask(*pid, &["count"])[0].parse().unwrap();
            assert!(theirs < counted + 100, "{theirs} and {counted}");
        }
    }
}

#[test]
fn the_original_ends_once_a_copy_runs_if_it_is_to() {
    if !can_move() {
        return;
    }
    let mut stage = Stage::begin(&[&[], &[]]);
    let output = stage.clone(&["--end-source"]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    assert!(stage.agents.iter().any(|agent| result["where"].as_str() == Some(&agent.address)), "{result}");
    stage.subject.child.wait().unwrap();
    assert_eq!(started(&result).len(), 2);
    stage.check_settled(2, "ended");
    // Its client is not left waiting for an answer.
    let over = std::io::Read::read(&mut stage.subject.first, &mut [0; 10]);
    assert!(matches!(&over, Ok(0)) || over.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
}

#[test]
fn connections_are_left_to_one_that_the_target_itself_goes_to() {
    if !can_move() {
        return;
    }
    let mut stage = Stage::begin(&[&[], &[]]);
    let original = stage.subject.pid();
    let output = stage.clone(&["--end-source", "--connections", &stage.agents[1].address]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    assert_eq!(result["where"].as_str(), Some(stage.agents[1].address.as_str()), "{result}");
    assert_eq!(result["candidates"][1]["became"].as_str(), Some("owner"), "{result}");
    let copies = started(&result);
    assert_eq!(copies.len(), 1, "{result}");
    stage.subject.child.wait().unwrap();
    stage.check_settled(2, "left to one");
    assert!(!stage.subject.processes().contains(&original));
    // Who has them is the target as it was; the copy finds them reset.
    stage.subject.check_unharmed();
    assert_eq!(stage.subject.ask(copies[0].0, &["first", "ground"]), ["ECONNRESET", "True"]);
    let without_end = stage.on_source();
    let refused = run(without_end, &["clone", "1", "b", "--connections", "b"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
}

#[test]
fn where_the_target_cannot_go_with_its_connections_no_copy_is_started() {
    if !can_move() {
        return;
    }
    // Once it is prepared another process over there stands in for the one that is killed, as in a move.
    for (point, left) in [("destination-armed", 1), ("destination-prepared", 2), ("destination-owner", 2)] {
        let strike: &[(&str, &str)] = &[("MIGRATE_KILL", point)];
        let mut stage = Stage::begin(&[&[], strike]);
        let output = stage.clone(&["--end-source", "--connections", &stage.agents[1].address]);
        assert!(!stage.once.exists(), "{point} was not reached: {}", text(&output));
        assert_eq!(output.status.success(), left == 2, "{point}: {}", text(&output));
        stage.check_settled(left, point);
        stage.subject.check_unharmed();
    }
    // The guardian settles it; copies that were not told to run are deleted.
    for point in ["source-ready", "source-committed"] {
        let mut stage = Stage::begin(&[&[], &[]]);
        let mut cloner = stage.cloner(&["--end-source", "--connections", &stage.agents[1].address]);
        cloner.env("MIGRATE_KILL", point);
        let output = run(cloner, &[]);
        assert!(!stage.once.exists(), "{point} was not reached: {}", text(&output));
        stage.check_settled(1, point);
        stage.subject.check_unharmed();
    }
}

#[test]
fn where_only_some_are_started_the_exit_code_says_so() {
    if !can_move() {
        return;
    }
    for end_source in [false, true] {
        let strike: &[(&str, &str)] = &[("MIGRATE_KILL", "destination-armed")];
        let mut stage = Stage::begin(&[&[], strike]);
        let nobody = format!("unix:{}", stage.dir.path().join("nobody.sock").display());
        let mut options = vec![nobody.as_str()];
        options.extend(end_source.then_some("--end-source"));
        let output = stage.clone(&options);
        assert!(!stage.once.exists(), "{}", text(&output));
        assert_eq!(output.status.code(), Some(6), "{}", text(&output));
        let result = result(&output);
        assert_eq!((result["ok"].as_bool(), result["exit"].as_u64()), (Some(false), Some(6)), "{result}");
        assert_eq!(result["failure"]["what"].as_str(), Some("1 of 3 copies were started"), "{result}");
        assert_eq!(started(&result).len(), 1, "{result}");
        assert!(text(&output).contains("nobody.sock"), "{}", text(&output));
        stage.check_settled(if end_source { 1 } else { 2 }, "some");
        if !end_source {
            stage.subject.check_unharmed();
        }
    }
}

#[test]
fn where_no_copy_is_started_the_original_goes_on_and_nothing_is_left() {
    if !can_move() {
        return;
    }
    for options in [&[][..], &["--end-source"]] {
        let strike: &[(&str, &str)] = &[("MIGRATE_KILL", "destination-armed")];
        let mut stage = Stage::begin(&[strike]);
        let output = stage.clone(options);
        assert_eq!(output.status.code(), Some(5), "{}", text(&output));
        assert_eq!(result(&output)["where"].as_str(), Some("source"), "{}", text(&output));
        stage.check_settled(1, "none");
        stage.subject.check_unharmed();
        let nobody = format!("unix:{}", stage.dir.path().join("nobody.sock").display());
        let mut command = stage.on_source();
        command.args(["clone", &stage.subject.pid().to_string(), &nobody]).args(options);
        assert_eq!(run(command, &[]).status.code(), Some(5));
        stage.subject.check_unharmed();
    }
}

/// Killed before it is told to run its copy, a destination has none; after that it may have one, and then that is known.
#[test]
fn a_destination_that_is_killed_has_a_whole_copy_or_none() {
    if !can_move() {
        return;
    }
    for point in ["destination-recorded", "destination-prepared", "destination-ordered", "destination-owner"] {
        let strike: &[(&str, &str)] = &[("MIGRATE_KILL", point)];
        let mut stage = Stage::begin(&[&[], strike]);
        let output = stage.clone(&[]);
        assert!(!stage.once.exists(), "{point} was not reached: {}", text(&output));
        let copies = started(&result(&output)).len();
        assert_eq!(output.status.code(), Some(if copies == 2 { 0 } else { 6 }), "{point}: {}", text(&output));
        stage.check_settled(1 + copies, point);
        stage.subject.check_unharmed();
    }
}

#[test]
fn if_the_command_is_killed_the_original_goes_on_and_no_half_copy_is_left() {
    if !can_move() {
        return;
    }
    for (point, options) in [("source-ready", &[][..]), ("source-ready", &["--end-source"]), ("source-committed", &[])]
    {
        let mut stage = Stage::begin(&[&[], &[]]);
        let mut cloner = stage.cloner(options);
        cloner.env("MIGRATE_KILL", point);
        let output = run(cloner, &[]);
        assert!(!stage.once.exists(), "{point} was not reached: {}", text(&output));
        let is_half = |pid: &i32| {
            let frozen = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            frozen.contains(") t ") || frozen.contains(") T ")
        };
        wait(|| !stage.subject.processes().iter().any(is_half), point);
        if point == "source-ready" {
            wait(|| stage.subject.processes().len() == 1, &format!("{point}: nobody was told to run"));
        }
        // Whom somebody was told to run runs; who was not told is deleted when the lease is over.
        std::thread::sleep(Duration::from_secs(3));
        for pid in stage.subject.processes() {
            assert_eq!(stage.subject.ask(pid, &["ground"]), ["True"], "{point}");
        }
        stage.subject.check_unharmed();
    }
}

#[test]
fn a_copy_has_the_address_it_was_given() {
    if !can_move() {
        return;
    }
    let Some(networks) = Networks::make() else { return };
    let source = {
        let mut command = networks.inside(0, "env");
        command.arg("--");
        command
    };
    let holder = networks.inside(0, "sleep").arg("1000").spawn().map(crate::networks::Killed).unwrap();
    let client = networks.inside(2, "sleep").arg("1000").spawn().map(crate::networks::Killed).unwrap();
    let in_network = |killed: &crate::networks::Killed| killed.0.id().try_into().unwrap();
    wait(
        || namespace(in_network(&holder), "net") != namespace(std::process::id() as i32, "net"),
        "the network is entered",
    );
    wait(
        || namespace(in_network(&client), "net") != namespace(std::process::id() as i32, "net"),
        "the network is entered",
    );
    let subject = Subject::start_by(source, "0.0.0.0", |address| inside(in_network(&holder), || connect(address)));
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}", dir.path().join("agent.sock").display());
    let agent = Agent::start_by(networks.inside(1, "env"), &dir.path().join("b"), &listen);
    let mut command = networks.inside(0, env!("CARGO_BIN_EXE_migrate"));
    command.env("MIGRATE_PLACES", dir.path().join("a"));
    command.args(["clone", &subject.pid().to_string(), &agent.address, &agent.address, "local", "--json"]);
    command.args(["--address", "10.77.0.51/24@eth0", "--address", "fd77::52/64@eth0"]);
    let output = run(command, &[]);
    assert!(output.status.success(), "{}", text(&output));
    let copies = started(&result(&output));
    assert_eq!(copies.len(), 3, "{}", text(&output));
    // From another host: each answers by its own name at its own address.
    let port = subject.address.port();
    for (ip, (_, id)) in ["10.77.0.51", "fd77::52"].into_iter().zip(&copies) {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        if address.is_ipv6() {
            // The subject listens on IPv4 only: somebody is there who says so.
            let refused = inside(in_network(&client), || TcpStream::connect_timeout(&address, LIMIT).unwrap_err());
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            continue;
        }
        let answers = inside(in_network(&client), || ask(&address, &["name", "interfaces"]));
        assert!(answers[0].ends_with(&format!("-{id}")), "{answers:?}");
        assert_eq!(answers[1], "lo eth0");
    }
    assert_eq!(subject.ask(copies[2].0, &["interfaces"]), ["lo"], "it was given none");
}

#[test]
fn hooks_are_told_which_copy_runs() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(&[&[], &[]]);
    let said = stage.dir.path().join("said");
    let hook = |point: &str| {
        format!("{point}=echo {point} $MIGRATE_SIDE $MIGRATE_CLONE_ID $MIGRATE_DEST_PID >> {}", said.display())
    };
    let (at_clone, at_done, at_network) = (hook("clone"), hook("rolled-back"), hook("network"));
    let output = stage.clone(&["--hook", &at_clone, "--hook", &at_done, "--hook", &at_network]);
    assert!(output.status.success(), "{}", text(&output));
    let read = || -> BTreeSet<String> {
        std::fs::read_to_string(&said).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let expected: BTreeSet<String> =
        started(&result(&output)).iter().map(|(pid, id)| format!("clone destination {id} {pid}")).collect();
    wait(|| read() == expected, "each copy has its hook");
}

#[test]
fn what_cannot_be_there_twice_is_named_before_anything_is_stopped() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "
import fcntl, os, socket, sys, time
os.closerange(3, 1024)
lock = open(sys.argv[1] + '/lock', 'w')
fcntl.flock(lock, fcntl.LOCK_EX)
named = socket.socket(socket.AF_UNIX)
named.bind(sys.argv[1] + '/socket')
named.listen()
open(sys.argv[1] + '/ready', 'w').close()
time.sleep(1000)
";
    let child = Command::new("setsid")
        .args(["/usr/bin/python3", "-c", script, dir.path().to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let holder = crate::networks::Killed(child);
    wait(|| dir.path().join("ready").exists(), "it holds what it holds");
    let listen = format!("unix:{}", dir.path().join("agent.sock").display());
    let agent = Agent::start(&dir.path().join("b"), &listen);
    let clone = |options: &[&str]| {
        let mut command = on_host(&dir.path().join("a"));
        command.args(["clone", &holder.0.id().to_string(), &agent.address, "--json"]);
        run(command, options)
    };
    let output = clone(&[]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let blockers = result(&output)["blockers"].clone();
    let named = |code: &str, file: &str| {
        let all = blockers.as_array().unwrap();
        all.iter().any(|one| one["code"] == code && one["object"].as_str().unwrap().contains(file))
    };
    assert!(named("M0412", "/socket"), "{blockers}");
    assert!(blockers.to_string().contains("/lock"), "{blockers}");
    for wrong in [&["--mode", "post-copy"][..], &["--pids", "same"], &["--move-address", "10.0.0.7/24@lo"]] {
        assert_eq!(clone(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let two = ["--address", "10.0.0.7/24@lo", "--address", "10.0.0.8/24@lo"];
    assert_eq!(clone(&two).status.code(), Some(2), "two addresses for one destination");
}

#[test]
fn of_an_image_there_can_be_several_copies() {
    if !can_move() {
        return;
    }
    let mut subject = Subject::start();
    let dir = tempfile::tempdir().unwrap();
    let (host, image) = (dir.path().join("a"), dir.path().join("image"));
    let pid = subject.pid();
    let dumped = run(on_host(&host), &["dump", &pid.to_string(), "-D", image.to_str().unwrap(), "--tcp", "close"]);
    assert!(dumped.status.success(), "{}", text(&dumped));
    subject.child.wait().unwrap();
    let restored = ["restore", "-D", image.to_str().unwrap(), "--count", "3", "--detach", "--json"];
    let output = run(on_host(&host), &restored);
    assert!(output.status.success(), "{}", text(&output));
    let copies = started(&result(&output));
    assert_eq!((copies.len(), subject.processes().len()), (3, 3), "{}", text(&output));
    let file = format!("read {}", host.join("run/clone-id").display());
    for (copy, id) in &copies {
        let answers = subject.ask(*copy, &["name", file.as_str(), "wiped", "ground", "first", "pid"]);
        assert!(answers[0].ends_with(&format!("-{id}")), "{answers:?}");
        assert_eq!(answers[1..], [id, "True", "True", "ECONNRESET", &pid.to_string()]);
    }
    let output = run(on_host(&host), &[&restored[..], &["--pids", "same"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// A word to redis, and the answer.
fn redis(pid: i32, port: u16, word: &str) -> String {
    let address = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
    inside(pid, || {
        let mut stream = connect(&address);
        write!(stream, "{word}\r\n").unwrap();
        BufReader::new(stream).lines().next().unwrap().unwrap()
    })
}

/// A database with clients, and a web server: each copy answers those who reach it, and they go apart.
#[test]
fn servers_as_clones_answer_their_own_clients() {
    if !can_move() || !Path::new("/usr/bin/redis-server").exists() {
        crate::skip!("needs root, python3 and redis-server");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let script = "
import os, sys
os.closerange(3, 1024)
os.setsid()
if sys.argv[1] == 'redis':
    os.execv('/usr/bin/redis-server', ['redis-server', '--port', sys.argv[2], '--save', '', '--dir', sys.argv[3]])
import http.server
os.chdir(sys.argv[3])
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[2])), http.server.SimpleHTTPRequestHandler).serve_forever()
";
    for program in ["redis", "web"] {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", script, program, &port.to_string(), dir.path().to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let address = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
        wait(|| TcpStream::connect(address).is_ok(), program);
        let mut kept = connect(&address);
        let output = {
            let mut command = on_host(&dir.path().join("a"));
            command.args(["clone", &pid.to_string(), "local", "local", "--json"]);
            run(command, &[])
        };
        let copies = if output.status.success() { started(&result(&output)) } else { Vec::new() };
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert_eq!(copies.len(), 2, "{program}: {}", text(&output));
            if program == "redis" {
                let all: Vec<i32> = [pid].into_iter().chain(copies.iter().map(|(pid, _)| *pid)).collect();
                for (times, pid) in all.iter().enumerate() {
                    let said: Vec<String> = (0..=times).map(|_| redis(*pid, port, "INCR visits")).collect();
                    assert_eq!(said.last(), Some(&format!(":{}", times + 1)));
                }
                write!(kept, "PING\r\n").unwrap();
            } else {
                for (pid, _) in &copies {
                    let answer = redis(*pid, port, "GET / HTTP/1.0\r\n");
                    assert!(answer.contains("200 OK"), "{answer}");
                }
                write!(kept, "GET / HTTP/1.0\r\n\r\n").unwrap();
            }
            // The original's client has noticed nothing.
            let answer = BufReader::new(&kept).lines().next().unwrap().unwrap();
            assert!(answer == "+PONG" || answer.contains("200 OK"), "{answer}");
        }));
        end_all(copies.iter().map(|(pid, _)| *pid), &mut child);
        checked.unwrap();
    }
}
