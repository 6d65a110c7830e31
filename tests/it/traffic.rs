//! A server moves with its address between two hosts' networks, under clients in a third: none of them notices more than a
//! pause.

use crate::networks::{Killed, Networks};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// Does what the first byte of a connection says: E echoes, S sends a numbered stream, F fills both queues before it reads
/// on, when a file tells it to. Each connection has a thread.
const SERVER: &str = "
import os, socket, sys, threading, time
os.closerange(3, 1024)
address, go_on = sys.argv[1:]
listener = socket.create_server((address, 7000), family=socket.AF_INET6 if ':' in address else socket.AF_INET, backlog=64)
def numbers(count, first=0):
    return b''.join(b'%015d\\n' % n for n in range(first, first + count))
def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kind = connection.recv(1)
    if kind == b'E':
        while data := connection.recv(65536):
            connection.sendall(data)
    elif kind == b'S':
        n = 0
        while True:
            connection.sendall(numbers(500, n))
            n += 500
            time.sleep(0.002)
    elif kind == b'F':
        sender = threading.Thread(target=connection.sendall, args=(numbers(1 << 19),), daemon=True)
        sender.start()
        while not os.path.exists(go_on):
            time.sleep(0.01)
        got = b''
        while len(got) < 16 << 19:
            got += connection.recv(1 << 20)
        sender.join()
        connection.sendall(b'right' if got == numbers(1 << 19) else b'wrong')
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// One client: what it does, the address, for how many seconds. Says `ready`, then what it has found: its longest wait in
/// milliseconds and what it counted.
const CLIENT: &str = "
import os, select, socket, sys, threading, time
kind, address, seconds, go_on = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
def connect(kind):
    connection = socket.create_connection((address, 7000), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(kind)
    return connection
def whole(connection, bytes):
    data = b''
    while len(data) < bytes:
        more = connection.recv(bytes - len(data))
        assert more, 'the connection was closed'
        data += more
    return data
def numbers(count, first=0):
    return b''.join(b'%015d\\n' % n for n in range(first, first + count))
longest, count, end = 0, 0, time.monotonic() + seconds
if kind == 'open-loop':  # a record every half millisecond, whether or not the last one was answered
    connection = connect(b'E')
    connection.setblocking(False)
    print('ready', flush=True)
    sent, got, pending, last = 0, b'', b'', time.monotonic()
    due = last
    while time.monotonic() < end or count < sent:
        now = time.monotonic()
        while due <= now and now < end:
            pending += b'%015d\\n' % sent
            sent, due = sent + 1, due + 0.0005
        readable, _, _ = select.select([connection], [], [], 0.0005 if now < end else 5)
        assert readable or now < end, 'no answer any more'
        if pending:
            try:
                pending = pending[connection.send(pending):]
            except BlockingIOError:
                pass
        if readable:
            data = connection.recv(1 << 20)
            assert data, 'the connection was closed'
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            got += data
            lines = len(got) // 16
            assert got[:16 * lines] == numbers(lines, count), 'an answer is missing, doubled or wrong'
            count, got = count + lines, got[16 * lines:]
elif kind == 'stream':
    connection, rest = connect(b'S'), b''
    print('ready', flush=True)
    while time.monotonic() < end:
        before = time.monotonic()
        rest += connection.recv(1 << 16)
        longest = max(longest, time.monotonic() - before)
        lines = len(rest) // 16
        assert rest[:16 * lines] == numbers(lines, count), 'a number is missing, doubled or wrong'
        count, rest = count + lines, rest[16 * lines:]
elif kind == 'full':
    connection = connect(b'F')
    sender = threading.Thread(target=connection.sendall, args=(numbers(1 << 19),))
    sender.start()
    print('ready', flush=True)
    while not os.path.exists(go_on):
        time.sleep(0.01)
    assert whole(connection, 16 << 19) == numbers(1 << 19), 'a number is missing, doubled or wrong'
    sender.join()
    assert whole(connection, 5) == b'right', 'the server says that a number is missing, doubled or wrong'
    count = 1 << 19
elif kind == 'idle':
    connections = [connect(b'E') for _ in range(20)]
    print('ready', flush=True)
    time.sleep(seconds)
    for connection in connections:
        connection.sendall(b'still there')
        assert whole(connection, 11) == b'still there'
        count += 1
elif kind == 'new':  # a connection every few milliseconds
    print('ready', flush=True)
    while time.monotonic() < end:
        before = time.monotonic()
        connection = connect(b'Ehello')
        assert whole(connection, 5) == b'hello'
        connection.close()
        longest, count = max(longest, time.monotonic() - before), count + 1
        time.sleep(0.002)
print(round(longest * 1000), count, flush=True)
";

/// Nobody who waits less has seen a retransmission time-out, which takes 200 ms.
const NO_TIME_OUT_MS: u64 = 200;
/// A machine that is busy with something else may stop a target for longer than that, and where a probe was sent it cannot be
/// told whether it was needed: it is tried again, so often.
const ATTEMPTS: usize = 6;
const SECONDS: &str = "4";

/// A command in one of the networks that runs before everything else on this machine: what is measured are milliseconds.
fn at_once(networks: &Networks, network: usize, program: &str) -> Command {
    let mut command = networks.inside(network, "chrt");
    command.args(["-f", "1", program]);
    command
}

/// A client that is ready; what it will say.
struct Client {
    kind: &'static str,
    child: Killed,
    said: BufReader<std::process::ChildStdout>,
}

impl Client {
    fn start(networks: &Networks, kind: &'static str, address: &str, go_on: &Path) -> Self {
        let mut command = at_once(networks, 2, "/usr/bin/python3");
        command.args(["-c", CLIENT, kind, address, SECONDS]).arg(go_on).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Killed(command.spawn().unwrap());
        let mut client = Self { kind, said: BufReader::new(child.0.stdout.take().unwrap()), child };
        assert_eq!(client.line(), "ready");
        client
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Its longest wait, milliseconds.
    fn end(mut self) -> u64 {
        let line = self.line();
        let mut why = String::new();
        let _ = std::io::Read::read_to_string(self.child.0.stderr.as_mut().unwrap(), &mut why);
        assert!(self.child.0.wait().unwrap().success(), "{}: {why}", self.kind);
        eprintln!("{}: longest wait and count: {line}", self.kind);
        let (longest, count) = line.split_once(' ').unwrap();
        assert!(count.parse::<u64>().unwrap() >= 20, "{} did too little: {line}", self.kind);
        longest.parse().unwrap()
    }
}

/// What the clients' network has counted, by the kernel's names.
#[derive(Debug, Clone)]
struct Counts(BTreeMap<String, u64>);

impl Counts {
    fn read(networks: &Networks) -> Self {
        let output = networks.inside(2, "cat").args(["/proc/net/snmp", "/proc/net/netstat"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        let pairs = lines.windows(2).filter(|pair| pair[0][0] == pair[1][0]);
        let values = pairs.flat_map(|pair| std::iter::zip(&pair[0][1..], &pair[1][1..]));
        Self(values.filter_map(|(name, value)| Some(((*name).to_owned(), value.parse().ok()?))).collect())
    }

    /// What has changed.
    fn since(self, before: &Self) -> Self {
        let more = |(name, value): (String, u64)| {
            Some((value.wrapping_sub(before.0[&name]), name)).filter(|(more, _)| *more != 0)
        };
        Self(self.0.into_iter().filter_map(more).map(|(more, name)| (name, more)).collect())
    }

    fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Segments sent to find out whether the last one arrived, two ticks of the kernel after it: often the last one itself.
    /// They are due in a pause longer than that, and nobody waits for them.
    fn probes(&self) -> u64 {
        self.of("TCPLossProbes")
    }

    /// Whether anything was lost on the way: something was sent again that was no probe.
    fn lost(&self) -> bool {
        self.of("TCPTimeouts") > 0 || self.of("RetransSegs") > self.probes()
    }
}

fn agent(networks: &Networks, dir: &Path, fault: Option<&str>) -> (Killed, String) {
    let listen = format!("unix:{}", dir.join("agent.sock").display());
    let mut command = at_once(networks, 1, PROGRAM);
    command.args(["agent", "--listen", &listen]).env("MIGRATE_PLACES", dir.join("b")).stderr(Stdio::piped());
    if let Some(fault) = fault {
        command.env("MIGRATE_FAULT", fault);
    }
    let mut child: Child = command.spawn().unwrap();
    let stderr: &mut ChildStderr = child.stderr.as_mut().unwrap();
    BufReader::new(stderr).read_line(&mut String::new()).unwrap();
    (Killed(child), listen)
}

/// What a move did to the clients.
#[derive(Debug)]
struct Felt {
    /// Of all clients, milliseconds.
    longest_ms: u64,
    counts: Counts,
}

/// Moves the server under these clients, or fails to at this point of the rebuilding.
fn felt(address: &str, kinds: &[&'static str], fault: Option<&str>) -> Option<Felt> {
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/python3").exists() {
        crate::skip!("needs root and /usr/bin/python3");
        return None;
    }
    let networks = Networks::make()?;
    let dir = tempfile::tempdir().unwrap();
    let go_on = dir.path().join("go-on");
    let (_agent, to) = agent(&networks, dir.path(), fault);
    let mut server = networks.inside(0, "setsid");
    server.args(["/usr/bin/python3", "-c", SERVER, address]).arg(&go_on);
    let server = Killed(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    std::thread::sleep(Duration::from_millis(500));
    let clients: Vec<Client> = kinds.iter().map(|kind| Client::start(&networks, kind, address, &go_on)).collect();
    // Queues have filled by then.
    std::thread::sleep(Duration::from_millis(700));
    let before = Counts::read(&networks);

    let bits = if address.contains(':') { 64 } else { 24 };
    let mut source = at_once(&networks, 0, PROGRAM);
    source.args(["move", &server.0.id().to_string(), &to, "--json", "--mode", "pre-copy"]);
    source.args(["--move-address", &format!("{address}/{bits}@eth0")]).env("MIGRATE_PLACES", dir.path().join("a"));
    let moved = source.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&moved.stdout), String::from_utf8_lossy(&moved.stderr));
    assert_eq!(moved.status.success(), fault.is_none(), "{text}");
    assert!(fault.is_none() || text.contains("(MIGRATE_FAULT)"), "{text}");
    let last = String::from_utf8_lossy(&moved.stdout).lines().last().map(str::to_owned).unwrap();
    let result: serde_json::Value = serde_json::from_str(&last).unwrap();

    std::fs::write(&go_on, "").unwrap();
    let longest_ms = clients.into_iter().map(Client::end).max().unwrap();
    let counts = Counts::read(&networks).since(&before);
    drop(server);
    networks.end_all();
    eprintln!("pause {} us, longest wait {longest_ms} ms, {counts:?}", result["downtime_us"]);
    Some(Felt { longest_ms, counts })
}

/// No reset, nothing lost or doubled (the clients see to that themselves), no time-out.
fn unnoticed(address: &str, fault: Option<&str>) {
    let mut all = Vec::new();
    for _ in 0..ATTEMPTS {
        let Some(felt) = felt(address, &["open-loop", "stream", "idle", "new"], fault) else { return };
        if felt.longest_ms < NO_TIME_OUT_MS && felt.counts.probes() == 0 && !felt.counts.lost() {
            return;
        }
        all.push(felt);
    }
    panic!("in none of {ATTEMPTS} moves clients waited less than {NO_TIME_OUT_MS} ms and without a doubt: {all:?}");
}

#[test]
fn clients_notice_a_pause_only_ipv4() {
    unnoticed("10.77.0.100", None);
}

#[test]
fn clients_notice_a_pause_only_ipv6() {
    unnoticed("fd77::100", None);
}

#[test]
fn clients_notice_a_pause_only_when_the_server_stays_ipv4() {
    unnoticed("10.77.0.100", Some("restore-signals"));
}

#[test]
fn clients_notice_a_pause_only_when_the_server_stays_ipv6() {
    unnoticed("fd77::100", Some("restore-signals"));
}

/// Nobody waits for an acknowledgement where all queues are full: not a segment is repeated, however long the pause.
#[test]
fn full_queues_move_whole() {
    for address in ["10.77.0.100", "fd77::100"] {
        for fault in [None, Some("restore-signals")] {
            let Some(felt) = felt(address, &["full"], fault) else { return };
            // The last segment may be probed for when the queues move again.
            assert!(!felt.counts.lost(), "segments were repeated: {:?}", felt.counts);
        }
    }
}
