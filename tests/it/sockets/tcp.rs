//! TCP: every state, IPv4 and IPv6, dumped and made again on the same host; data in both directions afterwards.

use super::in_new_net;
use migrate_engine::collect::fd::tcp as collect;
use migrate_engine::image::NsId;
use migrate_engine::image::fd::tcp::{Connection, Tcp, TcpState};
use migrate_engine::net::lock::NetLock;
use migrate_engine::net::segment::Injector;
use migrate_engine::ops::options::Tcp as Policy;
use migrate_engine::restore::fd::tcp::{self as restore, Place};
use migrate_engine::sys::{socket, tcp_repair};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const HOSTS: [&str; 3] = ["[::1]:0", "127.0.0.1:0", "mapped"];

/// A client and a server end. `mapped`: an IPv6 socket that an IPv4 client has connected to.
fn pair(host: &str, small: bool) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(if host == "mapped" { "[::]:0" } else { host }).unwrap();
    let mut at = listener.local_addr().unwrap();
    if host == "mapped" {
        at.set_ip("127.0.0.1".parse().unwrap());
    }
    let client = if small { small_client(at) } else { TcpStream::connect(at).unwrap() };
    let (server, _) = listener.accept().unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (client, server)
}

/// A client that takes little at a time.
fn small_client(at: SocketAddr) -> TcpStream {
    let domain = if at.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let fd = socket::socket(domain, libc::SOCK_STREAM, 0).unwrap();
    socket::set_int_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 4096).unwrap();
    socket::connect(fd.as_fd(), &migrate_engine::net::segment::raw_address(at)).unwrap();
    fd.into()
}

fn read(socket: OwnedFd) -> Tcp {
    let lock = NetLock::lock(socket).unwrap();
    let model = collect::read(&lock, NsId(0), Policy::Keep).unwrap();
    lock.keep();
    model
}

fn make_all(models: &[&Tcp]) -> Vec<TcpStream> {
    let injector = Injector::open(None).unwrap();
    let made: Vec<_> = models.iter().map(|m| restore::make(m, Place::default()).unwrap()).collect();
    let mut streams = Vec::new();
    for ((fd, rest), model) in made.into_iter().zip(models) {
        rest.speak(fd.as_fd(), &injector).unwrap();
        rest.hear(fd.as_fd(), model).unwrap();
        streams.push(TcpStream::from(fd));
    }
    streams
}

/// Dump, silent close, restore.
fn renew(socket: TcpStream) -> (Tcp, TcpStream) {
    let model = read(socket.into());
    let made = make_all(&[&model]).remove(0);
    (model, made)
}

fn connection(model: &Tcp) -> &Connection {
    match &model.state {
        TcpState::Connected(c) => c,
        other => panic!("not a connection: {other:?}"),
    }
}

fn state(socket: &TcpStream) -> u8 {
    tcp_repair::info(socket.as_fd()).unwrap().state
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 % 251) as u8).collect()
}

/// Writes as much as fits.
fn stuff(socket: &mut TcpStream, data: &[u8]) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut n = 0;
    loop {
        match socket.write(&data[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
    }
    socket.set_nonblocking(false).unwrap();
    n
}

fn exactly(socket: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    socket.read_exact(&mut data).unwrap();
    data
}

fn to_end(socket: &mut TcpStream) -> Vec<u8> {
    let mut data = Vec::new();
    socket.read_to_end(&mut data).unwrap();
    data
}

fn both_ways(a: &mut TcpStream, b: &mut TcpStream) {
    for n in 0..3u8 {
        a.write_all(&[n; 10]).unwrap();
        assert_eq!(exactly(b, 10), [n; 10]);
        b.write_all(&[n ^ 255; 10]).unwrap();
        assert_eq!(exactly(a, 10), [n ^ 255; 10]);
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < end, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn established_with_both_queues() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, mut server) = pair(host, true);
            client.write_all(b"unread at the server").unwrap();
            let big = pattern(400_000);
            let n = stuff(&mut server, &big);
            std::thread::sleep(Duration::from_millis(30));
            let (model, mut server) = renew(server);
            let c = connection(&model);
            assert!(c.unsent > 0 && (c.unsent as usize) < c.send_queue.0.len(), "{host}: {} unsent", c.unsent);
            assert_eq!(model.v6, host != "127.0.0.1:0");
            assert_eq!(exactly(&mut server, 20), b"unread at the server");
            assert_eq!(exactly(&mut client, n), big[..n]);
            both_ways(&mut client, &mut server);
            drop(server);
            assert_eq!(to_end(&mut client), b"");
        }
    });
}

#[test]
fn established_again_and_again_gives_equal_models() {
    in_new_net(|| {
        let (mut client, server) = pair("127.0.0.1:0", false);
        client.write_all(b"waiting").unwrap();
        std::thread::sleep(Duration::from_millis(60));
        let (first, server) = renew(server);
        std::thread::sleep(Duration::from_millis(60));
        let (second, mut server) = renew(server);
        let still = |m: &Tcp| Connection { timestamp: None, window: Default::default(), ..connection(m).clone() };
        assert_eq!(still(&first), still(&second));
        assert_eq!((&first.options, &first.ints), (&second.options, &second.ints));
        assert_eq!(exactly(&mut server, 7), b"waiting");
        both_ways(&mut client, &mut server);
    });
}

#[test]
fn peer_has_closed_its_side() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, server) = pair(host, false);
            client.write_all(b"last words").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            wait_for("CLOSE_WAIT", || state(&server) == 8);
            let (model, mut server) = renew(server);
            assert_eq!(connection(&model).state, 8);
            assert_eq!(to_end(&mut server), b"last words");
            server.write_all(b"answer").unwrap();
            assert_eq!(exactly(&mut client, 6), b"answer");
            drop(server);
            assert_eq!(to_end(&mut client), b"");
        }
    });
}

#[test]
fn we_have_closed_our_side() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, mut server) = pair(host, false);
            server.write_all(b"hello").unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            wait_for("FIN_WAIT2", || state(&server) == 5);
            let (model, mut server) = renew(server);
            assert_eq!(connection(&model).state, 5);
            assert_eq!(to_end(&mut client), b"hello");
            client.write_all(b"more").unwrap();
            assert_eq!(exactly(&mut server, 4), b"more");
            drop(client);
            assert_eq!(to_end(&mut server), b"");
        }
    });
}

#[test]
fn our_end_lies_behind_unsent_data() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, mut server) = pair(host, true);
            let big = pattern(400_000);
            let n = stuff(&mut server, &big);
            server.shutdown(Shutdown::Write).unwrap();
            let (model, mut server) = renew(server);
            assert_eq!(connection(&model).state, 4);
            assert_eq!(connection(&model).send_queue.0, big[n - connection(&model).send_queue.0.len()..n]);
            assert_eq!(to_end(&mut client), big[..n]);
            client.write_all(b"still").unwrap();
            assert_eq!(exactly(&mut server, 5), b"still");
            drop(client);
            assert_eq!(to_end(&mut server), b"");
        }
    });
}

#[test]
fn both_have_closed_with_data_on_the_way() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, mut server) = pair(host, true);
            let big = pattern(400_000);
            let n = stuff(&mut server, &big);
            client.write_all(b"unread").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            wait_for("CLOSE_WAIT", || state(&server) == 8);
            server.shutdown(Shutdown::Write).unwrap();
            let (model, mut server) = renew(server);
            assert_eq!(connection(&model).state, 9);
            assert_eq!(to_end(&mut client), big[..n]);
            assert_eq!(to_end(&mut server), b"unread");
        }
    });
}

/// Both close at once, our data is not taken yet.
#[test]
fn closing_at_the_same_time() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, mut server) = pair(host, true);
            let big = pattern(400_000);
            let n = stuff(&mut server, &big);
            server.shutdown(Shutdown::Write).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            wait_for("CLOSING", || state(&server) == 11);
            let (model, mut server) = renew(server);
            assert_eq!(connection(&model).state, 11);
            assert_eq!(to_end(&mut client), big[..n]);
            assert_eq!(to_end(&mut server), b"");
        }
    });
}

#[test]
fn both_ends_are_in_the_tree() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, mut server) = pair(host, true);
            let big = pattern(400_000);
            let n = stuff(&mut server, &big);
            client.write_all(b"question").unwrap();
            let lock_client = NetLock::lock(client.into()).unwrap();
            let lock_server = NetLock::lock(server.into()).unwrap();
            let of_client = collect::read(&lock_client, NsId(0), Policy::Keep).unwrap();
            let of_server = collect::read(&lock_server, NsId(0), Policy::Keep).unwrap();
            lock_client.keep();
            lock_server.keep();
            let mut made = make_all(&[&of_client, &of_server]);
            server = made.pop().unwrap();
            client = made.pop().unwrap();
            assert_eq!(exactly(&mut server, 8), b"question");
            assert_eq!(exactly(&mut client, n), big[..n]);
            both_ways(&mut client, &mut server);
        }
    });
}

#[test]
fn a_lock_that_is_dropped_changes_nothing() {
    in_new_net(|| {
        let (mut client, mut server) = pair("127.0.0.1:0", false);
        socket::set_int_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        // `ret #-1`: a filter of the program's that takes everything
        let own = [0xffff_ffff_0000_0006u64];
        socket::attach_filter(server.as_fd(), &own).unwrap();
        let lock = NetLock::lock(server.try_clone().unwrap().into()).unwrap();
        let first = collect::read(&lock, NsId(0), Policy::Keep).unwrap();
        client.write_all(b"while locked").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(socket::ioctl_int(server.as_fd(), socket::SIOCINQ), Ok(0));
        drop(lock);
        assert_eq!(first.options.filter, own);
        assert_eq!(socket::filter(server.as_fd()).unwrap(), own);
        assert_eq!(socket::int_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR), Ok(1));
        assert_eq!(exactly(&mut server, 12), b"while locked");
        both_ways(&mut client, &mut server);
    });
}

/// What a cork holds back the timer for window probes sends after 200 ms (tcp(7), `TCP_CORK`), repair mode or not.
#[test]
fn a_locked_connection_sends_nothing_new() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, mut server) = pair(host, false);
            socket::set_int_option(server.as_fd(), libc::SOL_TCP, libc::TCP_CORK, 1).unwrap();
            server.write_all(b"corked").unwrap();
            let not_sent = || socket::ioctl_int(server.as_fd(), socket::SIOCOUTQNSD).unwrap();
            let lock = NetLock::lock(server.try_clone().unwrap().into()).unwrap();
            assert_eq!(not_sent(), 6);
            std::thread::sleep(Duration::from_millis(700));
            assert_eq!(not_sent(), 6);
            client.set_nonblocking(true).unwrap();
            assert_eq!(client.read(&mut [0; 6]).unwrap_err().kind(), ErrorKind::WouldBlock);
            client.set_nonblocking(false).unwrap();
            lock.unlock().unwrap();
            assert_eq!(exactly(&mut client, 6), b"corked");
            socket::set_int_option(server.as_fd(), libc::SOL_TCP, libc::TCP_CORK, 0).unwrap();
            both_ways(&mut client, &mut server);
        }
    });
}

#[test]
fn a_listener_beside_its_connections() {
    in_new_net(|| {
        for (host, reuse) in [("127.0.0.1:0", 0), ("127.0.0.1:0", 1), ("[::1]:0", 0)] {
            let listener = TcpListener::bind(host).unwrap();
            socket::set_int_option(listener.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse).unwrap();
            let at = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(at).unwrap();
            let (server, _) = listener.accept().unwrap();
            let of_server = read(server.into());
            let of_listener = read(listener.into());
            assert!(matches!(of_listener.state, TcpState::Listen { backlog: 128 }), "{:?}", of_listener.state);
            let mut made = make_all(&[&of_server, &of_listener]);
            let listener = TcpListener::from(OwnedFd::from(made.pop().unwrap()));
            let mut server = made.pop().unwrap();
            assert_eq!(listener.local_addr().unwrap(), at);
            assert_eq!(socket::int_option(listener.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR), Ok(reuse));
            both_ways(&mut client, &mut server);
            let mut another = TcpStream::connect(at).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            both_ways(&mut another, &mut accepted);
        }
    });
}

#[test]
fn options_survive() {
    in_new_net(|| {
        let (mut client, server) = pair("[::1]:0", false);
        let wanted = [
            (libc::SOL_TCP, libc::TCP_NODELAY, 1),
            (libc::SOL_TCP, libc::TCP_KEEPIDLE, 77),
            (libc::SOL_TCP, libc::TCP_KEEPINTVL, 7),
            (libc::SOL_TCP, libc::TCP_KEEPCNT, 3),
            (libc::SOL_TCP, libc::TCP_USER_TIMEOUT, 30_000),
            (libc::SOL_TCP, libc::TCP_LINGER2, 5),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 4),
            (libc::SOL_SOCKET, libc::SO_PRIORITY, 3),
            (libc::SOL_SOCKET, libc::SO_MARK, 42),
            (libc::SOL_SOCKET, libc::SO_OOBINLINE, 1),
            (libc::SOL_IPV6, libc::IPV6_TCLASS, 0x20),
            (libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS, 33),
        ];
        for (level, name, value) in wanted {
            socket::set_int_option(server.as_fd(), level, name, value).unwrap();
        }
        socket::set_int_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 50_000).unwrap();
        server.set_write_timeout(Some(Duration::from_millis(1500))).unwrap();
        socket::set_option(server.as_fd(), libc::SOL_TCP, libc::TCP_CONGESTION, b"reno").unwrap();
        let (model, mut server) = renew(server);
        for (level, name, value) in wanted {
            assert_eq!(socket::int_option(server.as_fd(), level, name), Ok(value), "option {name} of level {level}");
        }
        assert_eq!(socket::int_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF), Ok(100_000));
        // Only the receive buffer is the program's; the other goes on growing by itself.
        assert_eq!(socket::int_option(server.as_fd(), libc::SOL_SOCKET, socket::SO_BUF_LOCK), Ok(2));
        assert_eq!(server.write_timeout().unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(model.congestion, "reno");
        socket::set_int_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1).unwrap();
        both_ways(&mut client, &mut server);
    });
}

#[test]
fn unconnected_and_ended_sockets() {
    in_new_net(|| {
        let fd = socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let (model, made) = renew(fd.into());
        assert!(matches!(model.state, TcpState::Closed));
        assert!(model.local.0.is_empty());
        assert_eq!(socket::peer_address(made.as_fd()), Err(nix::errno::Errno::ENOTCONN));

        let fd = socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let at = migrate_engine::net::segment::raw_address("127.0.0.1:4567".parse().unwrap());
        socket::bind(fd.as_fd(), &at).unwrap();
        let (_, made) = renew(fd.into());
        assert_eq!(socket::local_address(made.as_fd()).unwrap(), at);

        // Both sides have closed, the answer is not read yet.
        let (mut client, mut server) = pair("127.0.0.1:0", false);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(to_end(&mut server), b"");
        server.write_all(b"the answer").unwrap();
        drop(server);
        wait_for("CLOSE", || state(&client) == 7);
        let (model, mut made) = renew(client.try_clone().unwrap());
        assert!(matches!(model.state, TcpState::Ended { reset: false, .. }), "{:?}", model.state);
        assert_eq!(to_end(&mut made), b"the answer");
        assert_eq!(to_end(&mut client), b"the answer");

        // Reset by the peer, with data not read yet.
        let (client, mut server) = pair("127.0.0.1:0", false);
        server.write_all(b"too late").unwrap();
        let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
        socket::set_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger).unwrap();
        drop(server);
        wait_for("CLOSE", || state(&client) == 7);
        let (model, mut made) = renew(client);
        assert!(matches!(model.state, TcpState::Ended { reset: true, .. }), "{:?}", model.state);
        assert_eq!(exactly(&mut made, 8), b"too late");
        assert_eq!(made.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

/// Sends `before`, an urgent byte and `after`.
fn send_urgent(socket: &mut TcpStream, before: &[u8], after: &[u8]) {
    socket.write_all(before).unwrap();
    socket::send(socket.as_fd(), b"!", &[], &[], None, libc::MSG_OOB).unwrap();
    socket.write_all(after).unwrap();
}

fn urgent_byte(socket: &TcpStream) -> Vec<u8> {
    let mut room = [0; 4];
    let received = socket::receive(socket.as_fd(), &mut room, libc::MSG_OOB).unwrap();
    room[..received.len].to_vec()
}

/// What is said of a socket that cannot be saved, which is then as it was.
fn refused(socket: &TcpStream) -> String {
    let inline = || socket::int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE).unwrap();
    let queued = || socket::ioctl_int(socket.as_fd(), socket::SIOCINQ).unwrap();
    let before = (inline(), queued());
    let lock = NetLock::lock(socket.try_clone().unwrap().into()).unwrap();
    let said = collect::read(&lock, NsId(0), Policy::Keep).unwrap_err().to_string();
    lock.unlock().unwrap();
    assert_eq!((inline(), queued()), before);
    said
}

#[test]
fn urgent_data_is_refused_until_it_is_behind() {
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, mut server) = pair(host, false);
            send_urgent(&mut client, b"abc", b"def");
            wait_for("the urgent byte", || socket::poll_now(server.as_fd(), libc::POLLPRI).unwrap() != 0);
            // All of it, not only what comes before the mark.
            wait_for("the data after it", || tcp_repair::info(server.as_fd()).is_ok() && unread(&server) == 7);
            assert!(refused(&server).contains("urgent byte was not read"), "{}", refused(&server));
            assert_eq!(urgent_byte(&server), b"!");
            assert!(refused(&server).contains("not what came before it"), "{}", refused(&server));
            assert_eq!(exactly(&mut server, 3), b"abc");
            assert!(refused(&server).contains("at the mark"), "{}", refused(&server));
            assert_eq!(exactly(&mut server, 1), b"d");
            let (model, mut server) = renew(server);
            assert_eq!(connection(&model).recv_queue.0, b"ef");
            assert_eq!(exactly(&mut server, 2), b"ef");
            both_ways(&mut client, &mut server);
        }
    });
}

#[test]
fn urgent_data_among_the_other_is_refused_until_it_is_behind() {
    in_new_net(|| {
        let (mut client, mut server) = pair("127.0.0.1:0", false);
        socket::set_int_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE, 1).unwrap();
        send_urgent(&mut client, b"abc", b"def");
        wait_for("all of it", || socket::ioctl_int(server.as_fd(), socket::SIOCINQ) == Ok(7));
        assert!(refused(&server).contains("urgent byte was not read"), "{}", refused(&server));
        assert_eq!(exactly(&mut server, 3), b"abc");
        assert!(refused(&server).contains("urgent byte was not read"), "{}", refused(&server));
        assert_eq!(exactly(&mut server, 1), b"!");
        let (model, mut server) = renew(server);
        assert_eq!(connection(&model).recv_queue.0, b"def");
        assert_eq!(exactly(&mut server, 3), b"def");
        // The option came along: the next one is among the other data, too.
        send_urgent(&mut client, b"g", b"h");
        wait_for("all of it", || socket::ioctl_int(server.as_fd(), socket::SIOCINQ) == Ok(3));
        assert_eq!((exactly(&mut server, 1), exactly(&mut server, 2)), (b"g".to_vec(), b"!h".to_vec()));
        both_ways(&mut client, &mut server);
    });
}

/// Bytes in the queue, the urgent one and those after it as well.
fn unread(socket: &TcpStream) -> i32 {
    NetLock::look(socket.try_clone().unwrap().into()).unwrap().unread().unwrap()
}

#[test]
fn packets_are_held_off_between_dump_and_restore() {
    use migrate_engine::net::nft::{Lifetime, PacketLock, leftovers, name_of, remove};
    in_new_net(|| {
        for host in HOSTS {
            let (mut client, server) = pair(host, false);
            let mapped = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
            let tuple = (mapped(server.local_addr().unwrap()), mapped(server.peer_addr().unwrap()));
            let lock = PacketLock::set(None, &[tuple], Lifetime::Stays).unwrap();
            let model = read(server.into());
            lock.keep();
            assert_eq!(leftovers(None).unwrap(), [name_of(&[tuple])]);
            // Nobody has the connection now: without the table this would be answered with a reset.
            client.write_all(b"into the void").unwrap();
            std::thread::sleep(Duration::from_millis(50));
            let (fd, rest) = restore::make(&model, Place::default()).unwrap();
            remove(None, &name_of(&[tuple])).unwrap();
            rest.speak(fd.as_fd(), &Injector::open(None).unwrap()).unwrap();
            rest.hear(fd.as_fd(), &model).unwrap();
            let mut server = TcpStream::from(fd);
            server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(exactly(&mut server, 13), b"into the void");
            both_ways(&mut client, &mut server);
            assert!(leftovers(None).unwrap().is_empty());
            for lifetime in [Lifetime::Stays, Lifetime::WithUs] {
                let lock = PacketLock::set(None, &[tuple], lifetime).unwrap();
                assert_eq!(leftovers(None).unwrap(), [name_of(&[tuple])]);
                drop(lock);
                assert!(leftovers(None).unwrap().is_empty());
            }
        }
    });
}
