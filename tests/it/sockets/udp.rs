//! UDP: addresses, options, queues with their senders.

use super::in_new_net;
use migrate_engine::collect::fd::{socket as common, udp as collect};
use migrate_engine::image::NsId;
use migrate_engine::image::fd::udp::Udp;
use migrate_engine::net::segment::Injector;
use migrate_engine::restore::fd::tcp::Place;
use migrate_engine::restore::fd::udp as restore;
use migrate_engine::sys::socket;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

fn renew(socket: UdpSocket) -> (Udp, UdpSocket) {
    let identity = common::identify(socket.as_fd()).unwrap();
    let model = collect::read(socket.as_fd(), identity, NsId(0), 0).unwrap();
    assert_eq!(model, collect::read(socket.as_fd(), identity, NsId(0), 0).unwrap(), "reading changes nothing");
    drop(socket);
    let fd = restore::make(&model, Place::default()).unwrap();
    let injector = Injector::open(None).unwrap();
    assert_eq!(restore::finish(fd.as_fd(), &model, &injector).unwrap(), None);
    assert_eq!(model, collect::read(fd.as_fd(), identity, NsId(0), 0).unwrap(), "equal afterwards");
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (model, socket)
}

#[test]
fn queued_datagrams_keep_order_and_senders() {
    in_new_net(|| {
        for (at, to) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "127.0.0.1")]
        {
            let server = UdpSocket::bind(at).unwrap();
            let to = std::net::SocketAddr::new(to.parse().unwrap(), server.local_addr().unwrap().port());
            let clients: Vec<_> = (0..3)
                .map(|_| UdpSocket::bind(if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap())
                .collect();
            let long = vec![9u8; 40_000];
            for (n, client) in clients.iter().enumerate() {
                client.send_to(&[n as u8; 7], to).unwrap();
                client.send_to(&long[..n * 19_999 + 1], to).unwrap();
            }
            let (model, server) = renew(server);
            assert_eq!(model.queue.len(), 6, "{at}");
            let mut buffer = vec![0; 65536];
            for (n, client) in clients.iter().enumerate() {
                for len in [7, n * 19_999 + 1] {
                    let (got, from) = server.recv_from(&mut buffer).unwrap();
                    assert_eq!((got, from.port()), (len, client.local_addr().unwrap().port()));
                }
            }
            clients[0].send_to(b"later", to).unwrap();
            assert_eq!(server.recv_from(&mut buffer).unwrap().0, 5);
        }
    });
}

#[test]
fn connected_with_options() {
    in_new_net(|| {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        a.set_broadcast(true).unwrap();
        a.set_multicast_ttl_v4(7).unwrap();
        socket::set_int_option(a.as_fd(), libc::SOL_IP, libc::IP_PKTINFO, 1).unwrap();
        b.send(b"waiting").unwrap();
        let (model, a) = renew(a);
        assert!(!model.peer.0.is_empty());
        assert!(a.broadcast().unwrap());
        assert_eq!(a.multicast_ttl_v4().unwrap(), 7);
        let mut buffer = [0; 16];
        assert_eq!(a.recv(&mut buffer).unwrap(), 7);
        a.send(b"x").unwrap();
        assert_eq!(b.recv(&mut buffer).unwrap(), 1);
    });
}

#[test]
fn a_corked_socket_is_refused() {
    in_new_net(|| {
        let s = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket::set_int_option(s.as_fd(), libc::SOL_UDP, 1, 1).unwrap();
        let identity = common::identify(s.as_fd()).unwrap();
        assert!(collect::read(s.as_fd(), identity, NsId(0), 0).unwrap_err().to_string().contains("corked"));
    });
}
