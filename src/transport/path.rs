//! The nodes between this host and another, found the way traceroute(8) does it: datagrams that may pass so many nodes, and who says
//! that it has dropped one (ip(7): `IP_TTL`, `IP_RECVERR`). No privilege is needed.

use super::route::Route;
use super::wait::Abort;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, sockopt,
};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most nodes that are looked for on a path.
const NODES_MAX: u8 = 30;
/// Port of the first datagram; the next one goes to the next port, which tells them apart. Nobody listens there (traceroute(8)).
const PORT: u16 = 33434;
/// How long answers are waited for, each time that those are asked again who have not answered.
const PATIENCE: [Duration; 3] = [Duration::from_millis(400), Duration::from_millis(800), Duration::from_millis(1200)];

/// ICMP: time exceeded (RFC 792), and the same for IPv6 (RFC 4443).
const EXCEEDED: (u8, u8) = (11, 3);
/// ICMP: destination unreachable, in both.
const UNREACHABLE: (u8, u8) = (3, 1);

/// What is known of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path {
    /// The nodes between both ends, the nearest first; `None`: one that does not answer.
    pub nodes: Vec<Option<IpAddr>>,
    /// The other end answers: there are no more nodes than these.
    pub is_whole: bool,
}

/// What somebody has said about the datagram of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// A node on the way has dropped it.
    Node(u8, IpAddr),
    /// It has come to the end.
    End(u8),
}

/// Looks for the nodes between this host and another.
///
/// # Errors
/// There is no way to it, or not this one.
pub fn trace(to: IpAddr, route: Option<&Route>, abort: &Abort) -> io::Result<Path> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(family, SockType::Datagram, flags, None)?;
    match to {
        IpAddr::V4(_) => socket::setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
        IpAddr::V6(_) => socket::setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
    }
    if let Some(route) = route {
        route.pin(&socket, &SocketAddr::new(to, PORT))?;
    }
    let mut found = Found { to, nodes: [None; NODES_MAX as usize], end: None };
    for patience in PATIENCE {
        for number in found.unknown() {
            send(&socket, to, number)?;
        }
        let until = Instant::now() + patience;
        while !found.is_whole() && Instant::now() < until && !abort.is_triggered() {
            let left = PollTimeout::try_from(until - Instant::now().min(until)).unwrap_or(PollTimeout::ZERO);
            // Errors are told of whatever is asked for.
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty()), PollFd::new(abort.fd(), PollFlags::POLLIN)];
            poll(&mut fds, left).or_else(|errno| if errno == Errno::EINTR { Ok(0) } else { Err(errno) })?;
            while let Some(said) = heard(&socket, to)? {
                found.note(said);
            }
        }
        if found.is_whole() || abort.is_triggered() {
            break;
        }
    }
    Ok(found.path())
}

fn send(socket: &OwnedFd, to: IpAddr, number: u8) -> io::Result<()> {
    match to {
        IpAddr::V4(_) => socket::setsockopt(socket, sockopt::Ipv4Ttl, &i32::from(number))?,
        IpAddr::V6(_) => socket::setsockopt(socket, sockopt::Ipv6Ttl, &i32::from(number))?,
    }
    let address = SockaddrStorage::from(SocketAddr::new(to, PORT + u16::from(number)));
    // What was said about an earlier one is told instead, once (ip(7)): the queue of errors has it, too.
    for _ in 0..2 * NODES_MAX {
        match socket::sendto(socket.as_raw_fd(), &[0; 8], &address, MsgFlags::empty()) {
            Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EINTR)
                if !is_pathless(socket) => {}
            // It is asked for again.
            Err(Errno::EAGAIN | Errno::ENOBUFS) | Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Nothing was said by anybody: the kernel itself knows no way.
fn is_pathless(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    !fds[0].revents().unwrap_or(PollFlags::empty()).contains(PollFlags::POLLERR)
}

/// The next thing that was said, if there is one.
fn heard(socket: &OwnedFd, to: IpAddr) -> io::Result<Option<Said>> {
    loop {
        let mut byte = [0; 64];
        let mut room =
            nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, libc::sock_extended_err, libc::sockaddr_in6);
        let mut vector = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = match socket::recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut vector, Some(&mut room), flags)
        {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let number =
            message.address.as_ref().and_then(port).and_then(|port| u8::try_from(port.checked_sub(PORT)?).ok());
        let said = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                let from = from.map(|from| IpAddr::V4(Ipv4Addr::from(u32::from_be(from.sin_addr.s_addr))));
                Some((error, from, EXCEEDED.0, UNREACHABLE.0))
            }
            ControlMessageOwned::Ipv6RecvErr(error, from) => {
                let from = from.map(|from| IpAddr::V6(Ipv6Addr::from(from.sin6_addr.s6_addr)));
                Some((error, from, EXCEEDED.1, UNREACHABLE.1))
            }
            _ => None,
        });
        let (Some(number), Some((error, Some(from), exceeded, unreachable))) = (number, said) else { continue };
        if !matches!(error.ee_origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6) {
            continue;
        }
        match error.ee_type {
            _ if from == to => return Ok(Some(Said::End(number))),
            // Who is on the way and lets none of these through is on the path, too, and is the last that is seen.
            kind if kind == exceeded || kind == unreachable => return Ok(Some(Said::Node(number, from))),
            _ => {}
        }
    }
}

fn port(address: &SockaddrStorage) -> Option<u16> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddrV4::from(*address).port());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddrV6::from(*address).port()))
}

/// What is known so far.
#[derive(Debug)]
struct Found {
    to: IpAddr,
    /// By the number of the datagram, less one.
    nodes: [Option<IpAddr>; NODES_MAX as usize],
    /// The least number of a datagram that has come to the end.
    end: Option<u8>,
}

impl Found {
    fn note(&mut self, said: Said) {
        match said {
            Said::End(number) if number > 0 => self.end = Some(self.end.map_or(number, |end| end.min(number))),
            Said::Node(number @ 1..=NODES_MAX, from) => self.nodes[usize::from(number) - 1] = Some(from),
            _ => {}
        }
    }

    /// Datagrams that nobody has said anything about.
    fn unknown(&self) -> Vec<u8> {
        let last = self.end.map_or(NODES_MAX, |end| end - 1);
        (1..=last).filter(|number| self.nodes[usize::from(*number) - 1].is_none()).collect()
    }

    fn is_whole(&self) -> bool {
        self.end.is_some() && self.unknown().is_empty()
    }

    fn path(&self) -> Path {
        let last = match self.end {
            Some(end) => usize::from(end) - 1,
            None => self.nodes.iter().rposition(Option::is_some).map_or(0, |last| last + 1),
        };
        let mut nodes = self.nodes[..last].to_vec();
        // One that lets nothing through says so about all that follows.
        nodes.dedup_by(|next, before| next.is_some() && next == before);
        debug_assert!(!nodes.contains(&Some(self.to)), "the end is no node on the way");
        Path { nodes, is_whole: self.end.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
    }

    fn found(said: &[Said]) -> Found {
        let mut found = Found { to: ip(99), nodes: [None; NODES_MAX as usize], end: None };
        said.iter().for_each(|said| found.note(*said));
        found
    }

    #[test]
    fn the_end_may_answer_more_than_once_and_a_node_never() {
        let all = found(&[Said::End(4), Said::Node(1, ip(1)), Said::End(9), Said::Node(3, ip(3))]);
        assert!(!all.is_whole());
        assert_eq!(all.unknown(), [2]);
        assert_eq!(all.path(), Path { nodes: vec![Some(ip(1)), None, Some(ip(3))], is_whole: true });
        assert!(found(&[Said::End(1)]).is_whole(), "next to us");
        assert_eq!(found(&[]).path(), Path::default());
    }

    #[test]
    fn who_lets_nothing_through_is_the_last_that_is_seen() {
        let path =
            found(&[Said::Node(1, ip(1)), Said::Node(2, ip(2)), Said::Node(3, ip(2)), Said::Node(30, ip(2))]).path();
        assert!(!path.is_whole);
        assert_eq!(path.nodes[..2], [Some(ip(1)), Some(ip(2))]);
    }

    #[test]
    fn nobody_is_between_this_host_and_itself() {
        let abort = Abort::new().unwrap();
        let path = trace(IpAddr::V4(Ipv4Addr::LOCALHOST), None, &abort).unwrap();
        assert_eq!(path, Path { nodes: Vec::new(), is_whole: true });
        let from = Route::Address(Ipv4Addr::LOCALHOST.into());
        assert!(trace(IpAddr::V4(Ipv4Addr::LOCALHOST), Some(&from), &abort).unwrap().is_whole);
        let other = Route::Address(ip(77));
        assert!(trace(IpAddr::V4(Ipv4Addr::LOCALHOST), Some(&other), &abort).is_err(), "no address of this host");
    }
}
