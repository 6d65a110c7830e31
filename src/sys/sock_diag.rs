//! sock_diag(7) over netlink(7): what `/proc/net/unix` does not say of UNIX sockets, and nothing else of UDP's. Linux 3.3.

use super::{Errno, Result, socket};
use std::os::fd::AsFd;

/// A UNIX socket as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unix {
    /// Its inode number.
    pub inode: u32,
    /// `SOCK_*`.
    pub socket_type: u8,
    /// `TCP_ESTABLISHED` = 1 connected, `TCP_CLOSE` = 7 not, `TCP_LISTEN` = 10.
    pub state: u8,
    /// Name as in `sun_path`, without padding: a path, or a NUL and an abstract name; empty = none.
    pub name: Vec<u8>,
    /// Device (kernel encoding: major << 20 | minor) and inode, low 32 bits, of the node it is bound to.
    pub node: Option<(u32, u32)>,
    /// Peer's inode; `Some(0)` = it was closed, or was never accepted.
    pub peer: Option<u32>,
    /// For a listening socket: inodes of the sockets whose connections wait, oldest first; 0 = closed meanwhile.
    pub pending: Vec<u32>,
    /// Bytes to be read; for a listening socket how many connections wait.
    pub read_queue: u32,
    /// Bytes not read by the peer; for a listening socket its backlog.
    pub write_queue: u32,
    /// `RCV_SHUTDOWN` = 1, `SEND_SHUTDOWN` = 2.
    pub shutdown: u8,
}

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// UDIAG_SHOW_NAME | VFS | PEER | ICONS | RQLEN
const SHOW: u32 = 0x1f;

/// All UNIX sockets of this thread's network namespace that somebody holds or listens with.
pub fn unix_sockets() -> Result<Vec<Unix>> {
    let mut wanted = vec![libc::AF_UNIX as u8, 0, 0, 0];
    wanted.extend(u32::MAX.to_ne_bytes());
    wanted.extend(0u32.to_ne_bytes());
    wanted.extend(SHOW.to_ne_bytes());
    wanted.extend([0xff; 8]);
    dump(&wanted, unix)
}

/// What of the UDP (or UDP-Lite) sockets of this thread's network namespace was shut down: `RCV_SHUTDOWN` = 1, `SEND_SHUTDOWN` = 2,
/// by inode. Needs the kernel's `udp_diag`; `ENOENT` without.
pub fn udp_shutdowns(domain: i32, protocol: i32) -> Result<Vec<(u32, u8)>> {
    // struct inet_diag_req_v2: family, protocol, attributes, padding, states, struct inet_diag_sockid.
    let mut wanted = vec![domain as u8, protocol as u8, 1 << (INET_DIAG_SHUTDOWN - 1), 0];
    wanted.extend(u32::MAX.to_ne_bytes());
    wanted.extend([0; 48]);
    dump(&wanted, udp_shutdown)
}

/// Inodes of the TCP sockets of this thread's network namespace that have a key for signatures (RFC 2385, `TCP_MD5SIG` of tcp(7)),
/// but for those that are neither bound nor connected. The kernel tells who has CAP_NET_ADMIN there (Linux 4.14).
pub fn tcp_signed(domain: i32) -> Result<Vec<u32>> {
    // The kernel tells of keys where it is asked for everything about the connection.
    let mut wanted = vec![domain as u8, libc::IPPROTO_TCP as u8, 1 << (INET_DIAG_INFO - 1), 0];
    wanted.extend(u32::MAX.to_ne_bytes());
    wanted.extend([0; 48]);
    Ok(dump(&wanted, signed)?.into_iter().flatten().collect())
}

const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SHUTDOWN: u16 = 8;
const INET_DIAG_MD5SIG: u16 = 18;

/// `struct inet_diag_msg` with its attributes.
fn signed(message: &[u8]) -> Option<Option<u32>> {
    let inode = word(message, 68)?;
    let mut is_signed = false;
    attributes(message.get(72..)?, |kind, value| {
        is_signed |= kind == INET_DIAG_MD5SIG && !value.is_empty();
        Some(())
    })?;
    Some(is_signed.then_some(inode))
}

/// `struct inet_diag_msg` with its attributes.
fn udp_shutdown(message: &[u8]) -> Option<(u32, u8)> {
    let inode = word(message, 68)?;
    let mut shutdown = 0;
    attributes(message.get(72..)?, |kind, value| {
        if kind == INET_DIAG_SHUTDOWN {
            shutdown = *value.first()?;
        }
        Some(())
    })?;
    Some((inode, shutdown))
}

/// Asks for all sockets of a kind; `read` makes one of each message.
fn dump<T>(wanted: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>> {
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?;
    let mut request = Vec::with_capacity(16 + wanted.len());
    request.extend((16 + wanted.len() as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend(1u32.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(wanted);
    socket::send(netlink.as_fd(), &request, &[], &[], None, 0)?;
    let mut sockets = Vec::new();
    let mut room = vec![0u8; 1 << 16];
    loop {
        let received = socket::receive(netlink.as_fd(), &mut room, 0)?;
        if received.truncated {
            return Err(Errno::EMSGSIZE);
        }
        if messages(&room[..received.len], &mut sockets, &read)? {
            return Ok(sockets);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Takes one datagram of netlink messages; true at the end of the answer.
fn messages<T>(mut bytes: &[u8], sockets: &mut Vec<T>, read: impl Fn(&[u8]) -> Option<T>) -> Result<bool> {
    while let (Some(len), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let message = bytes.get(16..len as usize).ok_or(Errno::EBADMSG)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = word(message, 0).ok_or(Errno::EBADMSG)? as i32;
                return Err(Errno::from_raw(errno.checked_neg().unwrap_or(libc::EBADMSG)));
            }
            SOCK_DIAG_BY_FAMILY => sockets.push(read(message).ok_or(Errno::EBADMSG)?),
            _ => {}
        }
        bytes = bytes.get((len as usize).next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(false)
}

/// A `sun_path`: what follows the first NUL of a path is padding; an abstract name starts with one and counts in full.
pub fn plain_name(sun_path: &[u8]) -> Vec<u8> {
    match sun_path {
        [0, ..] => sun_path.to_vec(),
        _ => sun_path.split(|b| *b == 0).next().unwrap_or(&[]).to_vec(),
    }
}

/// `struct unix_diag_msg` with its attributes.
fn unix(message: &[u8]) -> Option<Unix> {
    let mut socket =
        Unix { socket_type: *message.get(1)?, state: *message.get(2)?, inode: word(message, 4)?, ..Unix::default() };
    attributes(message.get(16..)?, |kind, value| {
        match kind {
            0 => socket.name = plain_name(value),
            1 => socket.node = Some((word(value, 4)?, word(value, 0)?)),
            2 => socket.peer = word(value, 0),
            3 => socket.pending = value.chunks_exact(4).filter_map(|c| word(c, 0)).collect(),
            4 => (socket.read_queue, socket.write_queue) = (word(value, 0)?, word(value, 4)?),
            6 => socket.shutdown = *value.first()?,
            _ => {}
        }
        Some(())
    })?;
    Some(socket)
}

/// Each attribute (`struct rtattr`): its kind and value.
fn attributes(mut rest: &[u8], mut each: impl FnMut(u16, &[u8]) -> Option<()>) -> Option<()> {
    while let (Some(len), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        each(kind, rest.get(4..usize::from(len))?)?;
        rest = rest.get(usize::from(len).next_multiple_of(4)..).unwrap_or(&[]);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn peers_names_and_pending_connections_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let inode = |fd: std::os::fd::BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino as u32;
        let all = unix_sockets().unwrap();
        let find = |fd| all.iter().find(|s| s.inode == inode(fd)).unwrap();
        assert_eq!(find(a.as_fd()).peer, Some(inode(b.as_fd())));
        assert_eq!(find(a.as_fd()).shutdown, 2);
        assert_eq!(find(b.as_fd()).shutdown, 1);
        let l = find(listener.as_fd());
        assert_eq!((l.state, l.pending.as_slice(), l.read_queue), (10, &[inode(client.as_fd())][..], 1));
        assert!(l.name.ends_with(b"/socket"), "{:?}", l.name);
        assert_eq!(l.node.unwrap().1, nix::sys::stat::stat(&path).unwrap().st_ino as u32);
    }

    #[test]
    fn what_was_shut_down_of_udp_is_seen() {
        let [one, other] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        one.connect(other.local_addr().unwrap()).unwrap();
        let seen = || {
            let inode = nix::sys::stat::fstat(&one).unwrap().st_ino as u32;
            let all = udp_shutdowns(libc::AF_INET, libc::IPPROTO_UDP).unwrap();
            all.into_iter().find(|(of, _)| *of == inode).unwrap().1
        };
        assert_eq!(seen(), 0);
        for (how, shut) in [(1, 2), (0, 3)] {
            socket::shutdown(one.as_fd(), how).unwrap();
            assert_eq!(seen(), shut);
        }
    }

    #[test]
    fn sockets_with_keys_are_seen() {
        let [plain, keyed] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        // struct tcp_md5sig: an address in 128 bytes, flags, prefix, length, interface, key.
        let mut key = vec![0u8; 216];
        key[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        key[4..8].copy_from_slice(&[127, 0, 0, 2]);
        key[130..132].copy_from_slice(&3u16.to_ne_bytes());
        key[136..139].copy_from_slice(b"key");
        const TCP_MD5SIG: i32 = 14;
        if let Err(errno) = socket::set_option(keyed.as_fd(), libc::IPPROTO_TCP, TCP_MD5SIG, &key) {
            return crate::skip!("TCP_MD5SIG: {errno}");
        }
        if !nix::unistd::geteuid().is_root() {
            return crate::skip!("keys of TCP sockets are told to root alone");
        }
        let inode = |socket: &std::net::TcpListener| nix::sys::stat::fstat(socket).unwrap().st_ino as u32;
        let found = tcp_signed(libc::AF_INET).unwrap();
        assert!(found.contains(&inode(&keyed)) && !found.contains(&inode(&plain)), "{found:?}");
    }

    #[test]
    fn damaged_answers_are_errors_not_panics() {
        let mut sockets = Vec::new();
        for len in 0..64 {
            let mut bytes = vec![0xffu8; len];
            if len >= 6 {
                bytes[..4].copy_from_slice(&(len as u32).to_ne_bytes());
                bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            }
            let _ = messages(&bytes, &mut sockets, unix);
            let _ = messages(&bytes, &mut Vec::new(), udp_shutdown);
            let _ = messages(&bytes, &mut Vec::new(), signed);
        }
        assert!(messages(&[8, 0, 0, 0, 20, 0, 0, 0], &mut sockets, unix).is_err());
    }
}
