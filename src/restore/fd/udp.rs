//! Made by the engine: UDP sockets and others that exchange datagrams over IP, raw ones among them.

use super::socket as common;
use super::tcp::Place;
use crate::image::fd::udp::{Membership, Udp};
use crate::net::multicast::{self, Filter};
use crate::net::segment::{Injector, parse_address};
use crate::net::{Error, Result, failed, namespace};
use crate::sys::{Errno, socket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What takes a local address, which may come later.
const OF_ADDRESS: &[(i32, i32)] = &[(libc::SOL_IP, libc::IP_MULTICAST_IF)];

/// The local address that a socket sends to groups of IPv4 from, if it has chosen one.
pub fn sends_to_groups_from(udp: &Udp) -> Option<Ipv4Addr> {
    let chosen = udp.ints.iter().find(|(level, name, _)| OF_ADDRESS.contains(&(*level, *name)))?;
    Some(Ipv4Addr::from(chosen.2.to_ne_bytes()))
}

/// Makes a socket bound to its address, not connected yet.
pub fn make(udp: &Udp, place: Place<'_>) -> Result<OwnedFd> {
    let domain = if udp.v6 { libc::AF_INET6 } else { libc::AF_INET };
    if !matches!(udp.socket_type, libc::SOCK_DGRAM | libc::SOCK_RAW) {
        return Err(Error::BadModel { kind: "UDP", reason: format!("socket type {}", udp.socket_type) });
    }
    let fd =
        namespace::socket_in(place.net, domain, udp.socket_type, udp.protocol)?.map_err(failed("UDP", "socket"))?;
    common::early(fd.as_fd(), &udp.options, &[])?;
    common::set_ints(fd.as_fd(), &udp.ints, OF_ADDRESS)?;
    if udp.local.0.is_empty() {
        return Ok(fd);
    }
    common::check_address("UDP", &udp.local.0, domain)?;
    let (level, name) =
        if udp.v6 { (libc::SOL_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::SOL_IP, libc::IP_TRANSPARENT) };
    let own = udp.ints.contains(&(level, name, 1));
    let set = |value| socket::set_int_option(fd.as_fd(), level, name, value).map_err(failed("UDP", "IP_TRANSPARENT"));
    if place.address_later && !own {
        set(1)?;
    }
    socket::bind(fd.as_fd(), &udp.local.0).map_err(|e| {
        let address = parse_address(&udp.local.0).map_or_else(String::new, |a| a.to_string());
        failed("UDP", &format!("bind to {address}"))(e)
    })?;
    if place.address_later && !own {
        set(0)?;
    }
    Ok(fd)
}

/// Makes a socket a member of a group again. A warning if its interface is not here.
pub fn join(fd: BorrowedFd<'_>, of: &Membership, net: Option<BorrowedFd<'_>>) -> Result<Option<String>> {
    let name = String::from_utf8_lossy(&of.interface.0).into_owned();
    let index = namespace::inside(net, || socket::interface_index(&name))?;
    let filter = Filter { mode: of.mode, sources: of.sources.iter().map(|source| source.0.clone()).collect() };
    match index {
        Ok(index) => multicast::join(fd, of.level, index, &of.group.0, &filter).map(|()| None),
        Err(_) => {
            let group = parse_address(&of.group.0).map_or_else(String::new, |a| a.ip().to_string());
            Ok(Some(format!("there is no interface {name} here: a socket does not hear the multicast group {group}")))
        }
    }
}

/// Fills the queue, connects, sets the last options; when the local address is here. Returns a warning if datagrams were lost.
pub fn finish(fd: BorrowedFd<'_>, udp: &Udp, injector: &Injector) -> Result<Option<String>> {
    let warning = fill(fd, udp, injector)?;
    for &(level, name, value) in udp.ints.iter().filter(|int| OF_ADDRESS.contains(&(int.0, int.1))) {
        common::set_if_differs(fd, level, name, value)?;
    }
    if !udp.peer.0.is_empty() {
        socket::connect(fd, &udp.peer.0).map_err(failed("UDP", "connect"))?;
    }
    common::late(fd, &udp.options)?;
    // SHUT_RD, SHUT_WR, SHUT_RDWR.
    if let how @ 1..=3 = udp.shutdown {
        socket::shutdown(fd, i32::from(how) - 1).map_err(failed("UDP", "shutdown"))?;
    }
    Ok(warning)
}

/// Gives the queued datagrams to the local stack as if their senders had sent them now.
fn fill(fd: BorrowedFd<'_>, udp: &Udp, injector: &Injector) -> Result<Option<String>> {
    if udp.queue.is_empty() {
        return Ok(None);
    }
    let lost = |count: usize, why: &str| {
        let address = parse_address(&udp.local.0).map_or_else(String::new, |a| a.to_string());
        Ok(Some(format!("UDP socket {address}: {count} datagram(s) in its queue are lost: {why}")))
    };
    let Some(local) = parse_address(&udp.local.0) else { return lost(udp.queue.len(), "it has no address") };
    if common::int(&udp.options, libc::SO_REUSEPORT).unwrap_or(0) != 0 {
        return lost(udp.queue.len(), "others share its port, who might get them");
    }
    let mut missing = 0;
    for (data, from) in &udp.queue {
        let Some(from) = parse_address(&from.0) else {
            missing += 1;
            continue;
        };
        match injector.datagram(udp.protocol, from, destination(local, from), &data.0) {
            Ok(()) => {}
            Err(Error::Kernel { errno: Errno::EMSGSIZE | Errno::EINVAL | Errno::ENETUNREACH, .. }) => missing += 1,
            Err(e) => return Err(e),
        }
    }
    let waiting = socket::poll_now(fd, libc::POLLIN).map_err(failed("UDP", "poll"))? & libc::POLLIN != 0;
    match (missing, waiting) {
        (0, true) => Ok(None),
        (_, false) => lost(udp.queue.len(), "the local stack does not take them"),
        (missing, true) => lost(missing, "the local stack does not take them"),
    }
}

/// The local address a datagram goes to: loopback stands for a socket bound to every address.
fn destination(local: SocketAddr, from: SocketAddr) -> SocketAddr {
    let address = match (local.ip(), from) {
        (ip, _) if !ip.is_unspecified() => ip,
        (_, SocketAddr::V4(_)) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        (_, SocketAddr::V6(_)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(address, local.port())
}
