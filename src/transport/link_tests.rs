use super::*;
use crate::transport::address::PeerAddress;
use crate::transport::connect::{ConnectOptions, connect};
use crate::transport::keys::{self, Identity};
use crate::transport::peers::Peers;
use crate::transport::preamble::ChannelRole;
use crate::transport::stream::Stream;
use crate::transport::tls::TlsStream;
use crate::transport::wait::{Abort, Patience};
use crossbeam_channel::{Sender, bounded};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use zerocopy::FromBytes;

const LIMIT: Duration = Duration::from_secs(5);

fn patience() -> Patience {
    Patience { abort: Abort::new().unwrap(), silence: LIMIT, deadline: None }
}

fn grant(streams_max: u16) -> Grant {
    Grant {
        session: SessionNumber([9; 16]),
        streams_max,
        max_memory_bytes: Some(1 << 30),
        may_send: true,
        may_receive: true,
    }
}

fn options(dir: &Path) -> ConnectOptions {
    ConnectOptions {
        keys: dir.join("keys"),
        peers: dir.join("peers"),
        connect_timeout: LIMIT,
        peer_timeout: LIMIT,
        allow_plain: false,
        rsh: vec!["false".into()],
        remote: "migrate".into(),
        bootstrap: false,
        program: PathBuf::from("/proc/self/exe"),
        route: None,
    }
}

const SEND: Request = Request { purpose: Purpose::Send, streams: 3 };

fn read_preamble(mut socket: impl Read) -> ChannelRole {
    let mut bytes = [0; crate::transport::preamble::PREAMBLE_BYTES];
    socket.read_exact(&mut bytes).unwrap();
    Preamble::read_from_bytes(&bytes).unwrap().check().unwrap().0
}

/// Accepts as an agent does: preamble first, then `finish` makes the channel; bulk connections go to the session.
fn serve<S: Read + Send + 'static>(
    accept: impl Fn() -> S + Send + 'static,
    finish: impl Fn(S) -> Result<Channel> + Send + Sync + 'static,
    grant: Grant,
) -> thread::JoinHandle<Result<Link>> {
    thread::spawn(move || {
        let (send, joins): (Sender<Channel>, _) = bounded(8);
        let mut socket = accept();
        assert_eq!(read_preamble(&mut socket), ChannelRole::Control);
        let control = finish(socket)?;
        let streams = grant.streams_max;
        let session = thread::spawn(move || Link::accept(control, &grant, &joins, LIMIT));
        for _ in 0..streams.min(SEND.streams) {
            let mut socket = accept();
            assert_eq!(read_preamble(&mut socket), ChannelRole::Bulk);
            send.send(finish(socket)?).unwrap();
        }
        session.join().unwrap()
    })
}

fn check_works(client: &mut Link, server: &mut Link, streams: usize) {
    assert_eq!((client.bulk.len(), server.bulk.len()), (streams, streams));
    assert_eq!((client.protocol, server.protocol), (PROTOCOL.max, PROTOCOL.max));
    assert!(client.is_same_host() && server.is_same_host());
    assert_eq!(client.max_memory_bytes, Some(1 << 30));
    let big = vec![0x5a; 1 << 20];
    for (c, s) in client.bulk.iter_mut().zip(&mut server.bulk).chain([(&mut client.control, &mut server.control)]) {
        thread::scope(|scope| {
            scope.spawn(|| c.send(FrameKind::PAGES, &big).unwrap());
            assert!(s.expect(FrameKind::PAGES, "pages").unwrap() == big);
        });
        s.send(FrameKind::MESSAGE, b"got it").unwrap();
        assert_eq!(c.expect(FrameKind::MESSAGE, "a message").unwrap(), b"got it");
    }
}

#[test]
fn over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let finish = |socket: UnixStream| Ok(Channel::new(Stream::unix(socket).unwrap(), "client", patience()));
    let server = serve(move || listener.accept().unwrap().0, finish, grant(2));
    let mut client = connect(&PeerAddress::Unix(path), &options(dir.path()), SEND, &Abort::new().unwrap()).unwrap();
    check_works(&mut client, &mut server.join().unwrap().unwrap(), 2);
}

#[test]
fn over_plain_tcp_on_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let finish = |socket: TcpStream| Ok(Channel::new(Stream::tcp(socket).unwrap(), "client", patience()));
    let server = serve(move || listener.accept().unwrap().0, finish, grant(16));
    let to = PeerAddress::Plain { host: "127.0.0.1".into(), port };
    let mut client = connect(&to, &options(dir.path()), SEND, &Abort::new().unwrap()).unwrap();
    check_works(&mut client, &mut server.join().unwrap().unwrap(), 3);
}

/// Two hosts' keys; each trusts the other if told so.
struct Hosts {
    dir: tempfile::TempDir,
}

impl Hosts {
    fn new(a_trusts_b: bool, b_trusts_a: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for host in ["a", "b"] {
            keys::generate(&dir.path().join(host).join("keys"), host, false).unwrap();
        }
        let hosts = Self { dir };
        for (own, other, trusts) in [("a", "b", a_trusts_b), ("b", "a", b_trusts_a)] {
            let line =
                if trusts { format!("{} host-{other}\n", hosts.identity(other).fingerprint()) } else { String::new() };
            std::fs::write(hosts.path(own).join("peers"), line).unwrap();
        }
        hosts
    }

    fn path(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    fn identity(&self, host: &str) -> Identity {
        Identity::load(&self.path(host).join("keys")).unwrap()
    }

    /// `b` serves, `a` connects.
    fn meet(&self, grant: Grant) -> (Result<Link>, Result<Link>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (identity, peers) = (self.identity("b"), Peers::load(&self.path("b").join("peers")).unwrap());
        let finish = move |socket: TcpStream| {
            socket.set_nonblocking(true).unwrap();
            let (stream, peer) = TlsStream::accept(socket, &identity, &peers, &patience(), "client")?;
            Ok(Channel::new(Stream::Tls(Box::new(stream)), peer.name, patience()))
        };
        let server = serve(move || listener.accept().unwrap().0, finish, grant);
        let to = PeerAddress::Tls { host: "127.0.0.1".into(), port };
        let client = connect(&to, &options(&self.path("a")), SEND, &Abort::new().unwrap());
        (client, server.join().unwrap())
    }
}

#[test]
fn over_mutual_tls() {
    let (client, server) = Hosts::new(true, true).meet(grant(2));
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    assert!(client.control.peer().starts_with("host-b (tcp://127.0.0.1:"));
    assert_eq!(server.control.peer(), "host-a");
    check_works(&mut client, &mut server, 2);
}

#[test]
fn a_server_that_is_not_in_the_peers_file_is_refused() {
    let (client, server) = Hosts::new(false, true).meet(grant(0));
    let error = client.unwrap_err();
    assert!(
        matches!(&error, TransportError::Tls { reason, .. } if reason.contains("is not in the peers file here")),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("keygen"));
    assert!(server.is_err());
}

#[test]
fn a_client_that_is_not_in_the_peers_file_is_refused() {
    let (client, server) = Hosts::new(true, false).meet(grant(0));
    let error = server.unwrap_err();
    assert!(
        matches!(&error, TransportError::Tls { reason, .. } if reason.contains("is not in the peers file here")),
        "{error}"
    );
    assert!(client.is_err());
}

#[test]
fn tls_speaks_to_tls_only() {
    let hosts = Hosts::new(true, true);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        assert_eq!(read_preamble(&mut socket), ChannelRole::Control);
        let (_, joins) = bounded(1);
        Link::accept(Channel::new(Stream::tcp(socket).unwrap(), "client", patience()), &grant(0), &joins, LIMIT)
    });
    let to = PeerAddress::Tls { host: "127.0.0.1".into(), port };
    let client = connect(&to, &options(&hosts.path("a")), SEND, &Abort::new().unwrap());
    assert!(matches!(client, Err(TransportError::Tls { .. })), "{client:?}");
    assert!(server.join().unwrap().is_err());
}

#[test]
fn a_half_open_server_meets_the_connect_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let hosts = Hosts::new(true, true);
    for (to, keys) in [
        (PeerAddress::Plain { host: "127.0.0.1".into(), port }, dir.path().to_owned()),
        (PeerAddress::Tls { host: "127.0.0.1".into(), port }, hosts.path("a")),
    ] {
        let options = ConnectOptions { connect_timeout: Duration::from_millis(100), ..options(&keys) };
        let started = Instant::now();
        let error = connect(&to, &options, SEND, &Abort::new().unwrap()).unwrap_err();
        assert!(matches!(error, TransportError::Deadline { .. }), "{error}");
        assert!(started.elapsed() < LIMIT);
    }
}

#[test]
fn a_half_open_client_meets_the_servers_limit() {
    let (a, b) = UnixStream::pair().unwrap();
    let (_, joins) = bounded(1);
    let control = Channel::new(Stream::unix(b).unwrap(), "client", patience());
    let error = Link::accept(control, &grant(0), &joins, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, TransportError::Deadline { .. }), "{error}");
    drop(a);
}

#[test]
fn nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    for to in [PeerAddress::Plain { host: "127.0.0.1".into(), port }, PeerAddress::Unix(dir.path().join("none.sock"))] {
        let error = connect(&to, &options(dir.path()), SEND, &Abort::new().unwrap()).unwrap_err();
        assert!(matches!(&error, TransportError::Connect { address, .. } if *address == to.to_string()), "{error}");
    }
}

/// A client and a server over a pair; `hello` is what the client says.
fn exchange(hello: &ClientHello, grant: &Grant) -> (Channel, Result<Link>) {
    let (a, b) = Stream::pair().unwrap();
    let mut client = Channel::new(a, "server", patience());
    client.send(FrameKind::HELLO, &hello::encode(hello)).unwrap();
    let (_, joins) = bounded(1);
    let server = thread::spawn({
        let grant = grant.clone();
        move || Link::accept(Channel::new(b, "client", patience()), &grant, &joins, LIMIT)
    });
    client.receive_preamble(&mut Vec::new()).unwrap();
    let answer = client.receive().map(drop);
    let server = match answer {
        Ok(()) => server.join().unwrap(),
        Err(error) => {
            drop(client);
            let _ = server.join();
            return (Channel::new(Stream::pair().unwrap().0, "gone", patience()), Err(error));
        }
    };
    (client, server)
}

fn client_hello(min: u16, max: u16, purpose: Purpose) -> ClientHello {
    ClientHello {
        protocol: hello::ProtocolRange { min, max },
        program: "9.9".into(),
        host: HostFacts::default(),
        purpose,
        streams: 0,
    }
}

#[test]
fn programs_without_a_common_version_part() {
    let (_client, server) = exchange(&client_hello(7, 9, Purpose::Send), &grant(0));
    let error = server.unwrap_err();
    assert!(
        matches!(&error, TransportError::NoCommonVersion { theirs, ours, .. } if theirs == "7 to 9" && ours == "1"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--bootstrap"));
    let (_client, server) = exchange(&client_hello(1, 9, Purpose::Send), &grant(0));
    assert_eq!(server.unwrap().protocol, 1, "the highest common one");
}

#[test]
fn a_peer_does_what_it_may() {
    let only_receive = Grant { may_send: false, ..grant(0) };
    let only_send = Grant { may_receive: false, ..grant(0) };
    for (purpose, grant, fine) in [
        (Purpose::Send, &only_receive, false),
        (Purpose::Receive, &only_receive, true),
        (Purpose::Send, &only_send, true),
        (Purpose::Receive, &only_send, false),
        (Purpose::Look, &only_send, true),
        (Purpose::Look, &only_receive, true),
    ] {
        let (_client, server) = exchange(&client_hello(1, 1, purpose), grant);
        match server {
            Ok(_) => assert!(fine, "{purpose:?}"),
            Err(TransportError::Refused { reason, .. }) => {
                assert!(!fine && reason.contains("peers file"), "{purpose:?}: {reason}")
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_stranger_does_not_join() {
    let (a, b) = Stream::pair().unwrap();
    let (send, joins) = bounded(4);
    let server = thread::spawn(move || Link::accept(Channel::new(b, "client", patience()), &grant(1), &joins, LIMIT));
    // Before the right one, one with a wrong token and one that says nothing sensible.
    let stranger = |token: &[u8]| {
        let (a, b) = Stream::pair().unwrap();
        let mut channel = Channel::new(a, "server", patience());
        channel.send(FrameKind::JOIN, token).unwrap();
        send.send(Channel::new(b, "stranger", patience())).unwrap();
        channel
    };
    let mut wrong = stranger(&[0; 16]);
    let short = stranger(b"short");
    let mut control = Channel::new(a, "server", patience());
    control.receive_preamble(&mut Vec::new()).unwrap();
    drop(short);
    let refused = thread::spawn(move || wrong.receive().map(drop));
    let client = Link::open(control, Request { streams: 1, ..SEND }, None, &mut |session| {
        assert_eq!(session, SessionNumber([9; 16]));
        let (a, b) = Stream::pair().unwrap();
        send.send(Channel::new(b, "client", patience())).unwrap();
        Ok(Channel::new(a, "server", patience()))
    });
    assert_eq!(client.unwrap().bulk.len(), 1);
    assert_eq!(server.join().unwrap().unwrap().bulk.len(), 1);
    assert!(matches!(refused.join().unwrap(), Err(TransportError::Refused { .. })));
}
