//! Servers that move within one network: the frozen original has their ports and names, and they keep them.

use crate::moves::{Agent, can_move, on_host, result, run, text};
use crate::networks::Killed;
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// Answers over TCP, UDP, an abstract UNIX name and a path, with a number that never comes twice.
const SERVER: &str = "
import os, select, socket, sys
os.closerange(3, 1024)
tcp = socket.create_server(('127.0.0.1', 0))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', 0))
path = socket.socket(socket.AF_UNIX)
path.bind(sys.argv[1] + '/path')
listeners = [tcp, path]
if sys.argv[2] == 'abstract':
    named = socket.socket(socket.AF_UNIX)
    named.bind('\\0' + sys.argv[1])
    listeners.append(named)
for listener in listeners:
    listener.listen(8)
with open(sys.argv[1] + '/ports', 'w') as out:
    out.write('%d %d\\n' % (tcp.getsockname()[1], udp.getsockname()[1]))
os.rename(sys.argv[1] + '/ports', sys.argv[1] + '/ready')
poll, open_ones, n = select.epoll(), {}, 0
for one in listeners + [udp]:
    poll.register(one, select.EPOLLIN)
    open_ones[one.fileno()] = one
while True:
    for fd, _ in poll.poll():
        one = open_ones[fd]
        n += 1
        if one in listeners:
            connection = one.accept()[0]
            open_ones[connection.fileno()] = connection
            poll.register(connection, select.EPOLLIN)
        elif one is udp:
            line, peer = udp.recvfrom(100)
            udp.sendto(b'%d %s' % (n, line), peer)
        else:
            line = one.recv(100)
            if line:
                one.sendall(b'%d %s' % (n, line))
            else:
                poll.unregister(one)
                del open_ones[fd]
                one.close()
";

/// Somebody who talks to the server and checks that each answer is to what was asked, and newer than all before.
struct Client {
    udp: UdpSocket,
    kept: Vec<Box<dyn ReadWrite>>,
    tcp: SocketAddr,
    dir: std::path::PathBuf,
    abstract_name: bool,
    last: u64,
}

trait ReadWrite: std::io::Read + Write {}
impl<T: std::io::Read + Write> ReadWrite for T {}

impl Client {
    fn new(dir: &Path, abstract_name: bool) -> Self {
        let ports = std::fs::read_to_string(dir.join("ready")).unwrap();
        let mut ports = ports.split_whitespace().map(|port| port.parse::<u16>().unwrap());
        let tcp = SocketAddr::from(([127, 0, 0, 1], ports.next().unwrap()));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(LIMIT)).unwrap();
        udp.connect(("127.0.0.1", ports.next().unwrap())).unwrap();
        let mut client = Self { udp, kept: Vec::new(), tcp, dir: dir.to_owned(), abstract_name, last: 0 };
        client.kept = client.connect();
        client
    }

    fn connect(&self) -> Vec<Box<dyn ReadWrite>> {
        let tcp = TcpStream::connect_timeout(&self.tcp, LIMIT).unwrap();
        tcp.set_read_timeout(Some(LIMIT)).unwrap();
        let mut unix = vec![UnixStream::connect(self.dir.join("path")).unwrap()];
        if self.abstract_name {
            let name = UnixAddress::from_abstract_name(self.dir.to_str().unwrap()).unwrap();
            unix.push(UnixStream::connect_addr(&name).unwrap());
        }
        let mut all: Vec<Box<dyn ReadWrite>> = vec![Box::new(tcp)];
        for stream in unix {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            all.push(Box::new(stream));
        }
        all
    }

    fn check(&mut self, answer: &[u8], asked: &str) {
        let answer = String::from_utf8_lossy(answer);
        let (number, line) = answer.trim_end().split_once(' ').unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!(line, asked);
        let number: u64 = number.parse().unwrap();
        assert!(number > self.last, "{number} after {}: an older copy has answered", self.last);
        self.last = number;
    }

    /// Over what is connected, and over new connections.
    fn talk(&mut self, word: &str) {
        let mut buffer = [0; 200];
        let mut streams = std::mem::take(&mut self.kept);
        let fresh = self.connect();
        let known = streams.len();
        streams.extend(fresh);
        for stream in &mut streams {
            stream.write_all(word.as_bytes()).unwrap();
            let n = stream.read(&mut buffer).unwrap();
            self.check(&buffer[..n], word);
        }
        streams.truncate(known);
        self.kept = streams;
        self.udp.send(word.as_bytes()).unwrap();
        let n = self.udp.recv(&mut buffer).unwrap();
        self.check(&buffer[..n], word);
    }
}

fn serve(dir: &Path, kind: &str) -> Killed {
    let server = Command::new("setsid")
        .args(["/usr/bin/python3", "-c", SERVER])
        .arg(dir)
        .arg(kind)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = std::time::Instant::now() + LIMIT;
    while !dir.join("ready").exists() {
        assert!(std::time::Instant::now() < until, "the server does not get ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    Killed(server)
}

/// Ends the moved copy of a test.
struct Moved(i32);

impl Drop for Moved {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0), nix::sys::signal::SIGKILL);
    }
}

fn move_here(dir: &Path, pid: &str, to: &str) -> Moved {
    let moved = run(on_host(&dir.join("a")), &["move", pid, to, "--tcp", "keep", "--external-unix", "close", "--json"]);
    assert!(moved.status.success(), "{}", text(&moved));
    Moved(result(&moved)["pid"].as_i64().unwrap() as i32)
}

fn goes_on(kind: &str) {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), kind);
    let mut client = Client::new(dir.path(), kind == "abstract");
    client.talk("before");
    // UNIX connections to the outside do not move with a program: this client makes new ones.
    client.kept.truncate(1);
    std::thread::sleep(Duration::from_millis(50));
    let first = move_here(dir.path(), &server.0.id().to_string(), "local");
    client.talk("after one move");
    client.talk("and again");
    let agent = Agent::start(&dir.path().join("b"), &format!("unix:{}", dir.path().join("agent.sock").display()));
    let second = move_here(dir.path(), &first.0.to_string(), &agent.address);
    client.talk("after two");
    drop((agent, first, second, server));
}

#[test]
fn a_server_keeps_its_ports_and_connections() {
    goes_on("plain");
}

#[test]
fn a_server_keeps_its_abstract_name() {
    goes_on("abstract");
}

/// Whatever the failed copy had of the server's sockets, the server has them.
#[test]
fn a_server_whose_move_fails_goes_on() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), "abstract");
    let mut client = Client::new(dir.path(), true);
    client.talk("before");
    client.kept.truncate(1);
    std::thread::sleep(Duration::from_millis(50));
    let pid = server.0.id().to_string();
    let mut command = on_host(&dir.path().join("a"));
    command.env("MIGRATE_FAULT", "restore-tasks");
    let failed = run(command, &["move", &pid, "local", "--json"]);
    assert_eq!(result(&failed)["state"].as_str(), Some("running"), "{}", text(&failed));
    assert!(!failed.status.success(), "the fault was met: {}", text(&failed));
    client.talk("after");
}
