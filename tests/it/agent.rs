//! The agent and its session processes, over real sockets.

use migrate_engine::agent::{self, Surroundings};
use migrate_engine::failure::Result as Outcome;
use migrate_engine::ops::options::{AgentOptions, AgentPlace};
use migrate_engine::ops::places::Places;
use migrate_engine::ops::words::{Address, Listen};
use migrate_engine::transport::connect::{ConnectOptions, connect};
use migrate_engine::transport::hello::{self, HostFacts, Purpose};
use migrate_engine::transport::link::{Link, Request};
use migrate_engine::transport::{Abort, FrameKind, PeerAddress, Result, TransportError, keys};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);

/// Keys, peers and sockets of a host that is a directory.
fn places(dir: &Path, host: &str) -> Places {
    let dir = dir.join(host);
    Places { keys: dir.join("keys"), peers: dir.join("peers"), state: dir.join("state"), run: dir.join("run") }
}

fn connect_options(places: &Places) -> ConnectOptions {
    ConnectOptions {
        keys: places.keys.clone(),
        peers: places.peers.clone(),
        connect_timeout: LIMIT,
        peer_timeout: LIMIT,
        allow_plain: false,
        rsh: vec!["false".into()],
        remote: "migrate".into(),
        bootstrap: false,
        program: env!("CARGO_BIN_EXE_migrate").into(),
        route: None,
    }
}

/// An agent in a thread of this process; ended when dropped.
struct Agent {
    abort: Abort,
    thread: Option<JoinHandle<Outcome<()>>>,
    names: Vec<String>,
}

impl Agent {
    fn start(options: AgentOptions, places: &Places) -> Self {
        let (send, receive) = mpsc::channel();
        let abort = Abort::new().unwrap();
        let here = Surroundings { places: places.clone(), program: env!("CARGO_BIN_EXE_migrate").into() };
        let until = abort.clone();
        let thread = std::thread::spawn(move || {
            agent::run(&options, &here, &until, &mut |names| send.send(names.to_vec()).unwrap())
        });
        let names = receive.recv_timeout(LIMIT).expect("the agent gets ready");
        Self { abort, thread: Some(thread), names }
    }

    fn end(&mut self) {
        self.abort.trigger();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }

    /// Where it listens for TLS.
    fn tls(&self) -> PeerAddress {
        let port = self.names.iter().find_map(|name| name.strip_prefix("tcp://127.0.0.1:")).unwrap();
        PeerAddress::Tls { host: "127.0.0.1".into(), port: port.parse().unwrap() }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

fn listen(addresses: Vec<Listen>) -> AgentOptions {
    AgentOptions::new(AgentPlace::Listen(addresses))
}

fn look(to: &PeerAddress, places: &Places, streams: u16) -> Result<Link> {
    connect(to, &connect_options(places), Request { purpose: Purpose::Look, streams }, &Abort::new().unwrap())
}

/// Asks over the control channel; the answer comes from a living session process.
fn ask(link: &mut Link) -> HostFacts {
    link.control.send(FrameKind::MESSAGE, b"{}").unwrap();
    hello::decode(link.control.expect(FrameKind::MESSAGE, "facts").unwrap(), "agent").unwrap()
}

fn unix_agent(dir: &Path, sessions_max: u32) -> (Agent, PeerAddress, Places) {
    let places = places(dir, "b");
    let path = dir.join("agent.sock");
    let options = AgentOptions { max_sessions: sessions_max, ..listen(vec![Listen::Unix(path.clone())]) };
    (Agent::start(options, &places), PeerAddress::Unix(path), places)
}

#[test]
fn a_session_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (_agent, to, places) = unix_agent(dir.path(), 16);
    let mut link = look(&to, &places, 3).unwrap();
    assert_eq!(link.bulk.len(), 3, "bulk connections join through the agent");
    assert_eq!(ask(&mut link).boot_id, HostFacts::here().boot_id);
}

#[test]
fn a_session_over_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (places(dir.path(), "a"), places(dir.path(), "b"));
    let line =
        |of: &Places, name: &str| format!("{} {name}", keys::generate(&of.keys, name, false).unwrap().fingerprint());
    let (line_a, line_b) = (line(&a, "alpha"), line(&b, "beta"));
    std::fs::write(&a.peers, format!("{line_b}\n")).unwrap();
    std::fs::write(&b.peers, format!("{line_a} max-memory=1GiB\n")).unwrap();
    let agent = Agent::start(listen(vec![Listen::Tls(Address { host: "127.0.0.1".into(), port: 0 })]), &b);

    let mut link = look(&agent.tls(), &a, 2).unwrap();
    assert_eq!((link.bulk.len(), link.max_memory_bytes), (2, Some(1 << 30)));
    assert!(link.control.peer().starts_with("beta "));
    ask(&mut link);

    // A peer that is taken out of the file is a stranger at its next connection, and one there before goes on.
    std::fs::write(&b.peers, "# nobody\n").unwrap();
    let refused = look(&agent.tls(), &a, 0).unwrap_err();
    assert!(matches!(refused, TransportError::Tls { .. } | TransportError::Closed { .. }), "{refused}");
    ask(&mut link);
}

#[test]
fn one_session_too_many_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let (_agent, to, places) = unix_agent(dir.path(), 1);
    let mut first = look(&to, &places, 0).unwrap();
    let refused = look(&to, &places, 0).unwrap_err();
    assert!(
        matches!(&refused, TransportError::Refused { reason, .. } if reason.contains("--max-sessions")),
        "{refused}"
    );
    assert_eq!(refused.code(), Some(migrate_engine::blocker::codes::PEER_BUSY));
    ask(&mut first);
    drop(first);
    let until = Instant::now() + LIMIT;
    while look(&to, &places, 0).is_err() {
        assert!(Instant::now() < until, "the place is free again");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_session_outlives_its_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (mut agent, to, places) = unix_agent(dir.path(), 16);
    let mut link = look(&to, &places, 1).unwrap();
    agent.end();
    ask(&mut link);
    // A new agent takes the socket over; the old session goes on beside it.
    let (_agent, to, _) = unix_agent(dir.path(), 16);
    ask(&mut look(&to, &places, 1).unwrap());
    ask(&mut link);
}

#[test]
fn noise_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (_agent, to, places) = unix_agent(dir.path(), 16);
    let PeerAddress::Unix(path) = &to else { unreachable!() };
    for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], b"\x01MIGRATE\x09\x00\x01", &[0; 4096], b""] {
        let mut socket = UnixStream::connect(path).unwrap();
        socket.write_all(bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut rest = Vec::new();
        // Either end of stream or a reset.
        let _ = socket.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    ask(&mut look(&to, &places, 2).unwrap());
}

#[test]
fn a_bulk_connection_to_no_session_is_closed() {
    use migrate_engine::transport::preamble::{Preamble, SessionNumber};
    use zerocopy::IntoBytes;
    let dir = tempfile::tempdir().unwrap();
    let (_agent, to, _) = unix_agent(dir.path(), 16);
    let PeerAddress::Unix(path) = &to else { unreachable!() };
    let mut socket = UnixStream::connect(path).unwrap();
    socket.write_all(Preamble::bulk(SessionNumber([3; 16])).as_bytes()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(socket.read(&mut [0; 10]).unwrap_or(0), 0);
}

#[test]
fn plain_tcp_to_a_tls_port_gets_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let b = places(dir.path(), "b");
    keys::generate(&b.keys, "b", false).unwrap();
    std::fs::write(&b.peers, "").unwrap();
    let agent = Agent::start(listen(vec![Listen::Tls(Address { host: "127.0.0.1".into(), port: 0 })]), &b);
    let PeerAddress::Tls { host, port } = agent.tls() else { unreachable!() };
    let options = ConnectOptions { connect_timeout: Duration::from_millis(300), ..connect_options(&b) };
    let request = Request { purpose: Purpose::Look, streams: 0 };
    let to = PeerAddress::Plain { host: host.clone(), port };
    assert!(connect(&to, &options, request, &Abort::new().unwrap()).is_err());
    // Half open for a moment, then gone: the agent does not mind.
    drop(TcpStream::connect((host.as_str(), port)).unwrap());
}

fn plain(host: &str) -> AgentOptions {
    listen(vec![Listen::Plain(Address { host: host.into(), port: 0 })])
}

#[test]
fn plain_tcp_is_for_this_hosts_own_users() {
    let dir = tempfile::tempdir().unwrap();
    let b = places(dir.path(), "b");
    for host in ["127.0.0.1", "::1"] {
        let agent = Agent::start(plain(host), &b);
        let port = agent.names[0].rsplit(':').next().unwrap().parse().unwrap();
        assert!(agent.names[0].starts_with("tcp+plain://"), "{:?}", agent.names);
        let to = PeerAddress::Plain { host: host.into(), port };
        let mut link = look(&to, &b, 2).unwrap();
        assert_eq!(link.bulk.len(), 2);
        assert_eq!(ask(&mut link).boot_id, HostFacts::here().boot_id);
        if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/python3").exists() {
            crate::skip!("nobody else can be asked (not root, or no /usr/bin/python3)");
            continue;
        }
        // Whoever else is here is hung up on, before a byte is read from them.
        let script = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); s.settimeout(5); \
                      sys.exit(0 if s.recv(1) == b'' else 1)";
        let client = |user: &str| {
            let mut command = std::process::Command::new("setpriv");
            command.args(["--reuid", user, "--regid", user, "--clear-groups", "/usr/bin/python3", "-c", script, host]);
            command.arg(port.to_string()).stderr(std::process::Stdio::null()).status().unwrap()
        };
        assert!(client("65534").success(), "nobody is not listened to");
        assert!(!client("0").success(), "root may take its time to say what it wants");
    }
}

#[test]
fn plain_tcp_beyond_loopback_is_asked_for_twice() {
    let dir = tempfile::tempdir().unwrap();
    let b = places(dir.path(), "b");
    let here = Surroundings { places: b.clone(), program: env!("CARGO_BIN_EXE_migrate").into() };
    let failure = agent::run(&plain("0.0.0.0"), &here, &Abort::new().unwrap(), &mut |_| {}).unwrap_err();
    assert!(format!("{failure:?}").contains("--allow-plain"), "{failure:?}");
    let agent = Agent::start(AgentOptions { allow_plain: true, ..plain("0.0.0.0") }, &b);
    assert!(agent.names[0].starts_with("tcp+plain://0.0.0.0:"), "{:?}", agent.names);
}

#[test]
fn the_session_left_the_agents_session_group_and_cgroup() {
    let dir = tempfile::tempdir().unwrap();
    let (_agent, to, places) = unix_agent(dir.path(), 16);
    let mut link = look(&to, &places, 0).unwrap();
    ask(&mut link);
    let pid = session_process(&places.run);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!((fields[2], fields[3]), (pid.as_str(), pid.as_str()), "leads its own process group and session");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), PathBuf::from("/"));
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/0")).unwrap(), PathBuf::from("/dev/null"));
    if nix::unistd::geteuid().is_root() {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroups.lines().any(|line| line.ends_with(":/migrate/sessions")), "{cgroups}");
    } else {
        eprintln!("not root: that the session process left the agent's cgroup was not checked");
    }
}

/// The one session process whose sockets are in `run`.
fn session_process(run: &Path) -> String {
    let run = run.to_str().unwrap();
    let pids: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("session-process") && line.contains(run)
        })
        .collect();
    assert_eq!(pids.len(), 1, "{pids:?}");
    pids[0].clone()
}

/// `migrate agent` as a process of its own, in a mount namespace where /run is empty.
#[test]
fn killing_the_agent_ends_no_session() {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("not root, no mount namespace for a private /run");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let script = "mount -t tmpfs none /run && exec \"$0\" agent --listen \"unix:$1\"";
    let mut agent = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_migrate")])
        .arg(&path)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(agent.stderr.as_mut().unwrap()), &mut ready).unwrap();
    assert_eq!(ready, format!("listening on unix:{}\n", path.display()));
    let mut link = look(&PeerAddress::Unix(path), &places(dir.path(), "a"), 2).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(ask(&mut link).boot_id, HostFacts::here().boot_id);
}
