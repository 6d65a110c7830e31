//! Read by the engine on a duplicate: UDP sockets, and others that exchange datagrams over IP (UDP-Lite, ping, raw).

use super::socket as common;
use crate::image::fd::udp::{Membership, Udp};
use crate::image::{Bytes, FileId, NsId};
use crate::net::segment::raw_address;
use crate::net::{Error, Result, failed, multicast};
use crate::proc::net::igmp::Group;
use crate::sys::{Errno, socket};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

const UDP_CORK: i32 = 1;
const UDP_ENCAP: i32 = 100;
/// Datagrams are at most this long.
const DATAGRAM_MAX: usize = 1 << 16;
/// More datagrams than any receive buffer holds.
const QUEUE_MAX: usize = 1 << 20;

/// Integer options of `SOL_UDP` that are kept, with the value of a new socket.
const UDP_INTS: &[(i32, i32, Option<i32>)] = &[
    (libc::SOL_UDP, 101, Some(0)), // UDP_NO_CHECK6_TX
    (libc::SOL_UDP, 102, Some(0)), // UDP_NO_CHECK6_RX
    (libc::SOL_UDP, 103, Some(0)), // UDP_SEGMENT
    (libc::SOL_UDP, 104, Some(0)), // UDP_GRO
];

const SOL_RAW: i32 = 255;
/// Integer options of raw sockets.
const RAW_INTS: &[(i32, i32, Option<i32>)] = &[
    (libc::SOL_IP, libc::IP_HDRINCL, None),
    (libc::SOL_IPV6, 36, Some(0)), // IPV6_HDRINCL
    (SOL_RAW, 1, Some(0)),         // ICMP_FILTER
    (SOL_RAW, 7, None),            // IPV6_CHECKSUM
];

/// What [`Error::Unsupported`] calls a raw socket.
pub(super) const RAW: &str = "raw";

/// Reads a socket of a stopped target, with its queue, which stays as it is. `shutdown`: see [`Udp::shutdown`].
pub fn read(fd: BorrowedFd<'_>, identity: common::Identity, net: NsId, shutdown: u8) -> Result<Udp> {
    let mut options = common::options(fd)?;
    let peek_offset = common::take(&mut options, libc::SO_PEEK_OFF);
    let raw = identity.socket_type == libc::SOCK_RAW;
    let queue = if raw {
        check_raw(fd)?;
        Vec::new()
    } else if is_udp(&identity) {
        check_state(fd)?;
        queue(fd, peek_offset.unwrap_or(-1))?
    } else {
        no_queue(fd)?
    };
    options.ints.extend(peek_offset.map(|value| (libc::SO_PEEK_OFF, value)));
    let local = socket::local_address(fd).map_err(failed("UDP", "getsockname"))?;
    let bound = local.iter().skip(2).any(|b| *b != 0);
    let mut ints = common::ints(fd, UDP_INTS);
    ints.extend(common::ints(fd, common::IP_INTS));
    ints.extend(common::ints(fd, common::MULTICAST_INTS));
    ints.extend(common::ints(fd, if raw { RAW_INTS } else { &[] }));
    let v6 = identity.domain == libc::AF_INET6;
    if v6 {
        ints.extend(common::ints(fd, &[(libc::SOL_IPV6, libc::IPV6_V6ONLY, None)]));
    }
    Ok(Udp {
        net,
        v6,
        socket_type: identity.socket_type,
        protocol: identity.protocol,
        local: Bytes(if bound { local } else { Vec::new() }),
        peer: Bytes(socket::peer_address(fd).unwrap_or_default()),
        options,
        ints,
        shutdown,
        queue,
    })
}

/// Groups that a socket is a member of, among those that somebody listens to.
pub fn memberships(fd: BorrowedFd<'_>, file: FileId, groups: &[Group]) -> Result<Vec<Membership>> {
    let mut found = Vec::new();
    for Group { index, interface, address } in groups {
        let level = if matches!(address, IpAddr::V4(_)) { libc::SOL_IP } else { libc::SOL_IPV6 };
        let group = raw_address(SocketAddr::new(*address, 0));
        let Some(filter) = multicast::filter(fd, level, *index, &group)? else { continue };
        let sources = filter.sources.into_iter().map(Bytes).collect();
        let interface = interface.clone();
        found.push(Membership { file, level, interface, group: Bytes(group), mode: filter.mode, sources });
    }
    Ok(found)
}

/// UDP and UDP-Lite: a raw socket may have their protocol, too.
pub(super) fn is_udp(identity: &common::Identity) -> bool {
    let protocol = matches!(identity.protocol, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE);
    protocol && identity.socket_type == libc::SOCK_DGRAM
}

/// Of a raw socket: packets that wait are lost, as those are that come in the pause. No call shows more than the first of them.
fn check_raw(fd: BorrowedFd<'_>) -> Result<()> {
    const ICMP6_FILTER: i32 = 1;
    let filter = socket::raw_option(fd, libc::IPPROTO_ICMPV6, ICMP6_FILTER).unwrap_or_default();
    if filter.iter().any(|byte| *byte != 0) {
        return Err(Error::Unsupported {
            kind: RAW,
            reason: "it lets only some messages through (ICMP6_FILTER)".to_owned(),
        });
    }
    if socket::poll_now(fd, libc::POLLIN).map_err(failed(RAW, "poll"))? & libc::POLLIN != 0 {
        tracing::warn!("packets that wait in a raw socket are lost");
    }
    Ok(())
}

/// States that the kernel does not give back.
fn check_state(fd: BorrowedFd<'_>) -> Result<()> {
    let refuse = |reason: &str| Err(Error::Unsupported { kind: "UDP", reason: reason.to_owned() });
    if socket::int_option(fd, libc::SOL_UDP, UDP_CORK).unwrap_or(0) != 0 {
        return refuse("it is corked, with half a datagram inside");
    }
    if socket::int_option(fd, libc::SOL_UDP, UDP_ENCAP).unwrap_or(0) != 0 {
        return refuse("it carries another protocol for the kernel (UDP_ENCAP: IPsec, L2TP, ...)");
    }
    Ok(())
}

/// Sockets whose queue cannot be walked must have none.
fn no_queue(fd: BorrowedFd<'_>) -> Result<Vec<(Bytes, Bytes)>> {
    let events = socket::poll_now(fd, libc::POLLIN).map_err(failed("ICMP", "poll"))?;
    if events & libc::POLLIN != 0 {
        return Err(Error::Unsupported { kind: "ICMP", reason: "it has unread messages".to_owned() });
    }
    Ok(Vec::new())
}

/// The datagrams of the queue with their senders: `SO_PEEK_OFF` (Linux 4.8) walks over them. The kernel shows an empty
/// datagram to the first such walk only (the program still gets it), but for one at the head to who has set no offset.
fn queue(fd: BorrowedFd<'_>, offset: i32) -> Result<Vec<(Bytes, Bytes)>> {
    let set = |value| {
        socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value).map_err(failed("UDP", "SO_PEEK_OFF"))
    };
    set(0)?;
    let mut datagrams = Vec::new();
    let mut room = vec![0u8; DATAGRAM_MAX];
    let outcome = loop {
        match socket::receive(fd, &mut room, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(received) => datagrams.push((Bytes(room[..received.len].to_vec()), Bytes(received.from))),
            // Nothing more; or an error that an earlier datagram of ours has caused.
            Err(Errno::EAGAIN | Errno::ECONNREFUSED) => break Ok(()),
            Err(e) => break Err(failed("UDP", "peeking at the queue")(e)),
        }
        if datagrams.len() > QUEUE_MAX {
            break Err(Error::Unsupported { kind: "UDP", reason: "its queue is longer than is looked at".to_owned() });
        }
    };
    if datagrams.first().is_none_or(|(data, _)| !data.0.is_empty()) {
        set(-1)?;
        let head = socket::receive(fd, &mut [0; 1], libc::MSG_PEEK | libc::MSG_DONTWAIT).ok();
        datagrams.splice(..0, head.filter(|head| head.len == 0).map(|head| (Bytes::default(), Bytes(head.from))));
    }
    set(offset)?;
    outcome.map(|()| datagrams)
}
