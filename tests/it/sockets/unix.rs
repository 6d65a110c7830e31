//! UNIX sockets: pairs, listeners, connections, datagrams, queues with descriptors in flight, read and made again.

use super::in_new_net;
use migrate_engine::collect::fd::unix as collect;
use migrate_engine::image::fd::PathRef;
use migrate_engine::image::fd::unix::{Node, UnixSocket, UnixState};
use migrate_engine::image::{Bytes, FileId, NsId, NsPid, UnixId};
use migrate_engine::restore::fd::unix as restore;
use migrate_engine::sys::{sock_diag, socket};
use nix::sys::stat::fstat;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

/// Stands for the rest of the tree.
#[derive(Default)]
struct World {
    files: Vec<OwnedFd>,
}

impl collect::Around for World {
    fn in_flight(&mut self, fd: OwnedFd) -> Result<FileId, String> {
        self.files.push(fd);
        Ok(FileId::from(self.files.len() - 1))
    }

    fn pid(&self, ours: i32) -> NsPid {
        NsPid(ours)
    }

    fn node(&mut self, name: &[u8], node: (u32, u32)) -> Option<Node> {
        let path = Bytes(name.to_vec());
        let meta = std::fs::symlink_metadata(path.as_path()).ok()?;
        (meta.ino() as u32 == node.1).then(|| Node {
            uid: meta.uid(),
            gid: meta.gid(),
            path: PathRef {
                path,
                mnt: NsId(0),
                mode: meta.mode(),
                device: meta.dev(),
                inode: meta.ino(),
                size: 0,
                mtime_ns: 0,
            },
        })
    }
}

impl restore::Around for World {
    fn net(&self, _: NsId) -> Option<BorrowedFd<'_>> {
        None
    }

    fn mnt(&self, _: NsId) -> Option<BorrowedFd<'_>> {
        None
    }

    fn pid(&self, pid: NsPid) -> Option<i32> {
        Some(pid.0)
    }

    fn file(&mut self, file: FileId) -> Result<OwnedFd, String> {
        self.files[file.at()].try_clone().map_err(|e| e.to_string())
    }
}

fn read_all(fds: &[BorrowedFd<'_>], world: &mut World) -> (Vec<UnixSocket>, Vec<collect::Outside>) {
    let all: HashMap<u32, sock_diag::Unix> =
        sock_diag::unix_sockets().unwrap().into_iter().map(|s| (s.inode, s)).collect();
    let mut sockets = Vec::new();
    let mut seen = Vec::new();
    for (n, fd) in fds.iter().enumerate() {
        let diag = all[&(fstat(fd).unwrap().st_ino as u32)].clone();
        sockets.push(collect::read(*fd, &diag, NsId(0), world).unwrap());
        seen.push(collect::Seen { id: UnixId::from(n), diag });
    }
    let outside = collect::connect(&mut sockets, &seen, &all).unwrap();
    (sockets, outside)
}

fn make_all(sockets: &[UnixSocket], world: &mut World) -> Vec<OwnedFd> {
    let mut made = restore::make_all(sockets, world).unwrap();
    made.fill(sockets, world).unwrap();
    made.finish(sockets, world).unwrap();
    assert!(made.warnings.is_empty(), "{:?}", made.warnings);
    made.into_fds().into_iter().map(Option::unwrap).collect()
}

/// Reads, closes and makes again; a second reading gives the same model.
fn renew(fds: Vec<OwnedFd>) -> (Vec<UnixSocket>, Vec<OwnedFd>) {
    let mut world = World::default();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let (model, outside) = read_all(&borrowed, &mut world);
    assert!(outside.is_empty(), "{outside:?}");
    drop(fds);
    let made = make_all(&model, &mut world);
    let borrowed: Vec<_> = made.iter().map(AsFd::as_fd).collect();
    let (again, _) = read_all(&borrowed, &mut World::default());
    let plain = |sockets: &[UnixSocket]| -> Vec<UnixSocket> { sockets.iter().map(comparable).collect() };
    assert_eq!(plain(&model), plain(&again));
    (model, made)
}

/// What a socket keeps: not its inode, nor that of its node.
fn comparable(s: &UnixSocket) -> UnixSocket {
    let mut s = UnixSocket { inode: 0, ..s.clone() };
    if let Some(node) = &mut s.node {
        node.path.inode = 0;
    }
    s
}

fn stream(fd: OwnedFd) -> UnixStream {
    let s = UnixStream::from(fd);
    s.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    s
}

fn take(s: &mut UnixStream, n: usize) -> Vec<u8> {
    let mut data = vec![0; n];
    s.read_exact(&mut data).unwrap();
    data
}

#[test]
fn a_pair_with_data_both_ways() {
    in_new_net(|| {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let big: Vec<u8> = (0..150_000).map(|n| (n % 251) as u8).collect();
        a.write_all(&big).unwrap();
        b.write_all(b"back").unwrap();
        b.shutdown(std::net::Shutdown::Write).unwrap();
        let (model, mut made) = renew(vec![a.into(), b.into()]);
        assert_eq!(model[0].state, UnixState::Connected(Some(UnixId(1))));
        let (mut b, mut a) = (stream(made.pop().unwrap()), stream(made.pop().unwrap()));
        assert_eq!(take(&mut b, big.len()), big);
        let mut rest = Vec::new();
        a.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"back");
        a.write_all(b"more").unwrap();
        assert_eq!(take(&mut b, 4), b"more");
    });
}

#[test]
fn descriptors_in_flight_keep_their_place_in_the_stream() {
    in_new_net(|| {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(b"content").unwrap();
        let send = |data: &[u8], fds: &[BorrowedFd<'_>]| socket::send(a.as_fd(), data, &[], fds, None, 0).unwrap();
        send(b"before", &[]);
        send(b"with", &[file.as_fd(), b.as_fd()]);
        send(b"after", &[]);
        let (model, mut made) = renew(vec![a.into(), b.into()]);
        let shape: Vec<_> = model[1].queue.iter().map(|m| (m.data.to_string(), m.files.len())).collect();
        assert_eq!(shape, [("before".into(), 0), ("with".into(), 2), ("after".into(), 0)]);
        let b = made.pop().unwrap();
        let mut buffer = [0u8; 64];
        let first = socket::receive(b.as_fd(), &mut buffer[..6], 0).unwrap();
        assert_eq!((&buffer[..6], first.fds.len()), (&b"before"[..], 0));
        let second = socket::receive(b.as_fd(), &mut buffer, 0).unwrap();
        assert_eq!((&buffer[..second.len], second.fds.len()), (&b"with"[..], 2));
        assert_eq!(fstat(&second.fds[0]).unwrap().st_ino, fstat(&file).unwrap().st_ino);
        let third = socket::receive(b.as_fd(), &mut buffer, 0).unwrap();
        assert_eq!(&buffer[..third.len], b"after");
    });
}

#[test]
fn packets_keep_their_borders() {
    in_new_net(|| {
        for kind in [libc::SOCK_SEQPACKET, libc::SOCK_DGRAM] {
            let (a, b) = socket::socketpair(kind).unwrap();
            let long = vec![7u8; 100_000];
            for data in [&b"one"[..], &long, b"", b"three"] {
                socket::send(a.as_fd(), data, &[], &[], None, 0).unwrap();
            }
            let (model, mut made) = renew(vec![a, b]);
            assert_eq!(model[1].queue.iter().map(|m| m.data.0.len()).collect::<Vec<_>>(), [3, 100_000, 0, 5]);
            let b = made.pop().unwrap();
            let mut buffer = vec![0u8; 200_000];
            for len in [3, 100_000, 0, 5] {
                assert_eq!(socket::receive(b.as_fd(), &mut buffer, libc::MSG_DONTWAIT).unwrap().len, len);
            }
        }
    });
}

#[test]
fn a_named_listener_with_connections_accepted_and_pending() {
    in_new_net(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/socket");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let pending = UnixStream::connect(&path).unwrap();
        client.write_all(b"question").unwrap();
        server.write_all(b"answer").unwrap();
        let (model, made) = renew(vec![listener.into(), client.into(), server.into(), pending.into()]);
        assert!(
            matches!(&model[0].state, UnixState::Listen { pending, .. } if *pending == [UnixId(3)]),
            "{:?}",
            model[0].state
        );
        let mut made = made.into_iter();
        let listener = UnixListener::from(made.next().unwrap());
        let (mut client, mut server) = (stream(made.next().unwrap()), stream(made.next().unwrap()));
        let mut pending = stream(made.next().unwrap());
        assert_eq!(take(&mut server, 8), b"question");
        assert_eq!(take(&mut client, 6), b"answer");
        assert_eq!(client.peer_addr().unwrap().as_pathname(), Some(path.as_path()));
        assert_eq!(server.local_addr().unwrap().as_pathname(), Some(path.as_path()));
        pending.write_all(b"still here").unwrap();
        let mut accepted = listener.accept().unwrap().0;
        assert_eq!(take(&mut accepted, 10), b"still here");
        // The node is where it was, and leads to the new socket.
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid(), meta.gid()), (0o640, 1234, 4321));
        let _another = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        let names: Vec<_> =
            std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["socket"]);
    });
}

#[test]
fn names_without_a_node_and_listeners_that_have_gone() {
    in_new_net(|| {
        let dir = tempfile::tempdir().unwrap();
        for name in ["path", "abstract"] {
            let path = dir.path().join("socket");
            let address = if name == "path" {
                migrate_engine::net::place::unix_address(path.to_str().unwrap().as_bytes()).unwrap()
            } else {
                migrate_engine::net::place::unix_address(b"\0gone").unwrap()
            };
            let listener = socket::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
            socket::bind(listener.as_fd(), &address).unwrap();
            socket::listen(listener.as_fd(), 5).unwrap();
            let mut fds = Vec::new();
            for _ in 0..2 {
                let client = socket::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
                socket::connect(client.as_fd(), &address).unwrap();
                fds.push(client);
                fds.push(socket::accept(listener.as_fd()).unwrap());
            }
            drop(listener);
            if name == "path" {
                std::fs::remove_file(&path).unwrap();
            }
            let (_, made) = renew(fds);
            for pair in made.chunks(2) {
                assert_eq!(socket::local_address(pair[1].as_fd()).unwrap(), address);
                assert_eq!(socket::peer_address(pair[0].as_fd()).unwrap(), address);
                socket::send(pair[0].as_fd(), b"x", &[], &[], None, 0).unwrap();
                assert_eq!(socket::receive(pair[1].as_fd(), &mut [0; 8], 0).unwrap().len, 1);
            }
            assert!(!path.exists());
        }
    });
}

#[test]
fn datagrams_from_many_to_one() {
    in_new_net(|| {
        let dir = tempfile::tempdir().unwrap();
        let (to, from) = (dir.path().join("to"), dir.path().join("from"));
        let receiver = UnixDatagram::bind(&to).unwrap();
        let named = UnixDatagram::bind(&from).unwrap();
        named.connect(&to).unwrap();
        named.send(b"from a named one").unwrap();
        let gone = UnixDatagram::bind(dir.path().join("gone")).unwrap();
        gone.send_to(b"from one that has gone", &to).unwrap();
        drop(gone);
        let unnamed = UnixDatagram::unbound().unwrap();
        unnamed.send_to(b"from nobody", &to).unwrap();
        let (model, made) = renew(vec![receiver.into(), named.into(), unnamed.into()]);
        assert_eq!(model[1].state, UnixState::Connected(Some(UnixId(0))));
        let mut made = made.into_iter().map(UnixDatagram::from);
        let (receiver, named) = (made.next().unwrap(), made.next().unwrap());
        let mut buffer = [0; 64];
        let mut next = || {
            let (len, from) = receiver.recv_from(&mut buffer).unwrap();
            (String::from_utf8_lossy(&buffer[..len]).into_owned(), from.as_pathname().map(ToOwned::to_owned))
        };
        assert_eq!(next(), ("from a named one".into(), Some(from)));
        assert_eq!(next(), ("from one that has gone".into(), Some(dir.path().join("gone"))));
        assert_eq!(next(), ("from nobody".into(), None));
        named.send(b"again").unwrap();
        assert_eq!(next().0, "again");
    });
}

#[test]
fn a_peer_that_has_gone() {
    in_new_net(|| {
        for unread in [false, true] {
            let (mut a, b) = UnixStream::pair().unwrap();
            (&b).write_all(b"testament").unwrap();
            if unread {
                a.write_all(b"never read").unwrap();
            }
            drop(b);
            let (model, mut made) = renew(vec![a.into()]);
            assert_eq!((&model[0].state, model[0].reset), (&UnixState::Connected(None), unread));
            let mut a = stream(made.pop().unwrap());
            let mut data = vec![0; 9];
            assert_eq!(take(&mut a, 9), b"testament");
            if unread {
                assert_eq!(a.read(&mut data).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            }
            assert_eq!(a.read(&mut data).unwrap(), 0);
            assert_eq!(a.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        }
    });
}

#[test]
fn credentials_of_peers_and_senders() {
    in_new_net(|| {
        let (a, b) = std::thread::spawn(|| {
            migrate_engine::sys::thread_ids::act_as(1000, 1001).unwrap();
            UnixStream::pair().unwrap()
        })
        .join()
        .unwrap();
        socket::set_int_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        (&a).write_all(b"mine").unwrap();
        let pid = std::process::id() as i32;
        let forged = socket::Credentials { pid, uid: 77, gid: 78 };
        socket::send(a.as_fd(), b"theirs", &[], &[], Some(forged), 0).unwrap();
        let (model, made) = renew(vec![a.into(), b.into()]);
        assert_eq!(model[0].peer_creds.map(|c| (c.uid, c.gid)), Some((1000, 1001)));
        let shown = socket::peer_credentials(made[0].as_fd()).unwrap();
        assert_eq!((shown.uid, shown.gid), (1000, 1001));
        let mut buffer = [0; 32];
        let first = socket::receive(made[1].as_fd(), &mut buffer, 0).unwrap();
        assert_eq!((first.len, first.credentials.map(|c| c.uid)), (4, Some(0)));
        let second = socket::receive(made[1].as_fd(), &mut buffer, 0).unwrap();
        assert_eq!((second.len, second.credentials), (6, Some(forged)));
    });
}

#[test]
fn a_peer_outside_is_named() {
    in_new_net(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outside");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let (mut model, outside) = read_all(&[client.as_fd()], &mut World::default());
        assert_eq!(outside.len(), 1);
        assert_eq!(outside[0].peer_name, path.to_str().unwrap().as_bytes());
        model[0].state = UnixState::External { peer_name: Bytes(outside[0].peer_name.clone()) };
        let mut made = make_all(&model, &mut World::default());
        let (mut again, _) = listener.accept().unwrap();
        again.write_all(b"hello").unwrap();
        assert_eq!(take(&mut stream(made.pop().unwrap()), 5), b"hello");
    });
}

#[test]
fn a_live_socket_is_never_pushed_aside() {
    in_new_net(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (model, _) = read_all(&[listener.as_fd()], &mut World::default());
        let refusal = restore::make_all(&model, &World::default()).unwrap_err();
        assert!(refusal.to_string().contains("a live socket is at"), "{refusal}");
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    });
}
