//! Made by the engine: options every socket has (`SOL_SOCKET`), and what kind of socket a descriptor is.

use crate::blocker::{Blocker, codes};
use crate::image::Bytes;
use crate::image::fd::SocketOptions;
use crate::net::{Result, failed};
use crate::sys::Errno;
use crate::sys::socket::{self, InterfaceOption};
use std::os::fd::BorrowedFd;

/// `IPPROTO_MPTCP`.
const IPPROTO_MPTCP: i32 = 262;

/// What `SO_DOMAIN`, `SO_TYPE` and `SO_PROTOCOL` say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// `AF_*`.
    pub domain: i32,
    /// `SOCK_*`.
    pub socket_type: i32,
    /// `IPPROTO_*`, or the family's own numbers.
    pub protocol: i32,
}

/// Which collector a socket belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// [`super::tcp`].
    Tcp,
    /// [`super::udp`]: UDP, UDP-Lite, ping, raw.
    Udp,
    /// [`super::unix`].
    Unix,
    /// [`super::netlink`].
    Netlink,
    /// Nobody can save it.
    Unsupported,
}

/// Reads what kind of socket a descriptor is.
pub fn identify(fd: BorrowedFd<'_>) -> Result<Identity> {
    let get = |name, what| socket::int_option(fd, libc::SOL_SOCKET, name).map_err(failed("any", what));
    Ok(Identity {
        domain: get(libc::SO_DOMAIN, "SO_DOMAIN")?,
        socket_type: get(libc::SO_TYPE, "SO_TYPE")?,
        protocol: get(libc::SO_PROTOCOL, "SO_PROTOCOL")?,
    })
}

impl Identity {
    /// Which collector it belongs to.
    pub fn family(self) -> Family {
        match (self.domain, self.socket_type, self.protocol) {
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => Family::Tcp,
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE) => {
                Family::Udp
            }
            (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP) => Family::Udp,
            (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6) => Family::Udp,
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => Family::Udp,
            (libc::AF_UNIX, _, _) => Family::Unix,
            (libc::AF_NETLINK, _, _) => Family::Netlink,
            _ => Family::Unsupported,
        }
    }

    /// The blocker for a socket nobody can save.
    pub fn blocker(self, object: &str) -> Option<Blocker> {
        let code = match (self.domain, self.protocol) {
            _ if self.family() != Family::Unsupported => return None,
            (libc::AF_INET | libc::AF_INET6, IPPROTO_MPTCP) => codes::TCP_ULP,
            (libc::AF_PACKET, _) => codes::PACKET_SOCKET,
            (libc::AF_VSOCK, _) => codes::VSOCK,
            (libc::AF_NETLINK, _) => codes::NETLINK,
            _ => codes::SOCKET_FAMILY,
        };
        Some(Blocker::new(code, object).because(format!("{} sockets cannot be saved", self.name())))
    }

    /// A name for people.
    pub fn name(self) -> String {
        let protocol = self.protocol;
        match (self.domain, protocol) {
            (libc::AF_INET | libc::AF_INET6, IPPROTO_MPTCP) => "MPTCP".to_owned(),
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_SCTP) => "SCTP".to_owned(),
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_DCCP) => "DCCP".to_owned(),
            (libc::AF_INET | libc::AF_INET6, _) => format!("IP protocol {protocol}"),
            (libc::AF_NETLINK, _) => format!("netlink (protocol {protocol})"),
            (libc::AF_PACKET, _) => "packet".to_owned(),
            (libc::AF_VSOCK, _) => "vsock".to_owned(),
            (libc::AF_ALG, _) => "AF_ALG (kernel crypto)".to_owned(),
            (libc::AF_XDP, _) => "AF_XDP".to_owned(),
            (libc::AF_BLUETOOTH, _) => "Bluetooth".to_owned(),
            (libc::AF_CAN, _) => "CAN".to_owned(),
            (libc::AF_TIPC, _) => "TIPC".to_owned(),
            (family, _) => format!("address family {family}"),
        }
    }
}

/// Integer options of `SOL_SOCKET` that are kept, with the value of a new socket where that does not depend on settings.
const INTS: &[(i32, Option<i32>)] = &[
    (libc::SO_REUSEADDR, Some(0)),
    (libc::SO_DONTROUTE, Some(0)),
    (libc::SO_BROADCAST, Some(0)),
    (libc::SO_SNDBUF, None),
    (libc::SO_RCVBUF, None),
    (libc::SO_KEEPALIVE, Some(0)),
    (libc::SO_OOBINLINE, Some(0)),
    (libc::SO_NO_CHECK, Some(0)),
    (libc::SO_PRIORITY, Some(0)),
    (libc::SO_REUSEPORT, Some(0)),
    (libc::SO_PASSCRED, Some(0)),
    (libc::SO_RCVLOWAT, Some(1)),
    (libc::SO_TIMESTAMP, Some(0)),
    (libc::SO_TIMESTAMPNS, Some(0)),
    (libc::SO_TIMESTAMPING, Some(0)),
    (63, Some(0)), // SO_TIMESTAMP_NEW
    (64, Some(0)), // SO_TIMESTAMPNS_NEW
    (65, Some(0)), // SO_TIMESTAMPING_NEW
    (libc::SO_PASSSEC, Some(0)),
    (libc::SO_MARK, Some(0)),
    (libc::SO_RXQ_OVFL, Some(0)),
    (libc::SO_WIFI_STATUS, Some(0)),
    (libc::SO_PEEK_OFF, Some(-1)),
    (libc::SO_NOFCS, Some(0)),
    (libc::SO_SELECT_ERR_QUEUE, Some(0)),
    (libc::SO_BUSY_POLL, Some(0)),
    (libc::SO_MAX_PACING_RATE, Some(-1)),
    (libc::SO_ZEROCOPY, Some(0)),
    (libc::SO_PREFER_BUSY_POLL, Some(0)),
    (libc::SO_BUSY_POLL_BUDGET, Some(0)),
    (76, Some(0)), // SO_PASSPIDFD, Linux 6.5
    (83, Some(1)), // SO_PASSRIGHTS, Linux 6.16
];

/// Reads the options of `SOL_SOCKET`. Absent ones (an older kernel, another family) are left out.
pub fn options(fd: BorrowedFd<'_>) -> Result<SocketOptions> {
    let (uid, gid) = owner(fd)?;
    let mut options = SocketOptions { uid, gid, ..SocketOptions::default() };
    for &(name, default) in INTS {
        if let Ok(value) = socket::int_option(fd, libc::SOL_SOCKET, name)
            && default != Some(value)
        {
            options.ints.push((name, value));
        }
    }
    for name in [libc::SO_LINGER, socket::SO_RCVTIMEO_NEW, socket::SO_SNDTIMEO_NEW, libc::SO_BINDTODEVICE] {
        if let Ok(value) = socket::raw_option(fd, libc::SOL_SOCKET, name)
            && value.iter().any(|b| *b != 0)
        {
            options.raw.push((name, Bytes(value)));
        }
    }
    options.interfaces = interfaces(fd)?;
    options.filter = match socket::filter(fd) {
        Ok(program) => program,
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Vec::new(),
        Err(e) => return Err(failed("any", "SO_GET_FILTER")(e)),
    };
    options.filter_locked = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_LOCK_FILTER).unwrap_or(0) != 0;
    options.buffer_lock = socket::int_option(fd, libc::SOL_SOCKET, socket::SO_BUF_LOCK).unwrap_or(0);
    Ok(options)
}

/// Which interfaces the socket sends on, where it has chosen. One that is gone meanwhile is no choice any more: the kernel does not
/// send on it either.
fn interfaces(fd: BorrowedFd<'_>) -> Result<Vec<(i32, i32, Bytes)>> {
    let mut found = Vec::new();
    let is_stream = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE) == Ok(libc::SOCK_STREAM);
    for option in socket::INTERFACE_OPTIONS.into_iter().filter(|option| option.of_streams || !is_stream) {
        let InterfaceOption { level, name, order, .. } = option;
        let Ok(value @ 1..) = socket::int_option(fd, level, name).map(|value| order.number(value)) else { continue };
        match socket::interface_name_at(fd, value) {
            Ok(interface) => found.push((level, name, Bytes(interface))),
            Err(Errno::ENODEV) => {}
            Err(e) => return Err(failed("any", "SIOCGIFNAME")(e)),
        }
    }
    Ok(found)
}

/// Takes an integer option out.
pub fn take(options: &mut SocketOptions, name: i32) -> Option<i32> {
    let at = options.ints.iter().position(|(n, _)| *n == name)?;
    Some(options.ints.remove(at).1)
}

fn owner(fd: BorrowedFd<'_>) -> Result<(u32, u32)> {
    let stat = nix::sys::stat::fstat(fd).map_err(failed("any", "fstat"))?;
    Ok((stat.st_uid, stat.st_gid))
}

/// Blockers that any kind of socket can have.
pub fn preflight(fd: BorrowedFd<'_>, object: &str) -> Vec<Blocker> {
    match socket::filter(fd) {
        Err(Errno::EACCES) => vec![Blocker::new(codes::SOCKET_FILTER, object)],
        _ => Vec::new(),
    }
}

/// Reads integer options of other levels: those of `table` that this socket has and that differ from the value of a new one.
pub fn ints(fd: BorrowedFd<'_>, table: &[(i32, i32, Option<i32>)]) -> Vec<(i32, i32, i32)> {
    let read = |&(level, name, default): &(i32, i32, Option<i32>)| {
        let value = socket::int_option(fd, level, name).ok()?;
        (default != Some(value)).then_some((level, name, value))
    };
    table.iter().filter_map(read).collect()
}

/// Integer options of IP and IPv6 that are kept, with the value of a new socket.
pub const IP_INTS: &[(i32, i32, Option<i32>)] = &[
    (libc::SOL_IP, libc::IP_TOS, Some(0)),
    (libc::SOL_IP, libc::IP_TTL, None),
    (libc::SOL_IP, libc::IP_RECVOPTS, Some(0)),
    (libc::SOL_IP, libc::IP_RETOPTS, Some(0)),
    (libc::SOL_IP, libc::IP_PKTINFO, Some(0)),
    (libc::SOL_IP, libc::IP_MTU_DISCOVER, None),
    (libc::SOL_IP, libc::IP_RECVERR, Some(0)),
    (libc::SOL_IP, libc::IP_RECVTTL, Some(0)),
    (libc::SOL_IP, libc::IP_RECVTOS, Some(0)),
    (libc::SOL_IP, libc::IP_FREEBIND, Some(0)),
    (libc::SOL_IP, 18, Some(0)), // IP_PASSSEC
    (libc::SOL_IP, libc::IP_TRANSPARENT, Some(0)),
    (libc::SOL_IP, libc::IP_ORIGDSTADDR, Some(0)),
    (libc::SOL_IP, libc::IP_MINTTL, Some(0)),
    (libc::SOL_IP, libc::IP_NODEFRAG, Some(0)),
    (libc::SOL_IP, 23, Some(0)), // IP_CHECKSUM
    (libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, Some(0)),
    (libc::SOL_IP, 25, Some(0)), // IP_RECVFRAGSIZE
    (libc::SOL_IP, 26, Some(0)), // IP_RECVERR_RFC4884
    (libc::SOL_IP, 51, Some(0)), // IP_LOCAL_PORT_RANGE
    (libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS, None),
    (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, None),
    (libc::SOL_IPV6, libc::IPV6_RECVERR, Some(0)),
    (libc::SOL_IPV6, 31, Some(0)), // IPV6_RECVERR_RFC4884
    (libc::SOL_IPV6, 33, Some(0)), // IPV6_FLOWINFO_SEND
    (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, Some(0)),
    (libc::SOL_IPV6, libc::IPV6_RECVHOPLIMIT, Some(0)),
    (libc::SOL_IPV6, libc::IPV6_RECVHOPOPTS, Some(0)),
    (libc::SOL_IPV6, libc::IPV6_RECVRTHDR, Some(0)),
    (libc::SOL_IPV6, libc::IPV6_RECVDSTOPTS, Some(0)),
    (libc::SOL_IPV6, 60, Some(0)), // IPV6_RECVPATHMTU
    (libc::SOL_IPV6, libc::IPV6_DONTFRAG, Some(0)),
    (libc::SOL_IPV6, libc::IPV6_RECVTCLASS, Some(0)),
    (libc::SOL_IPV6, libc::IPV6_TCLASS, Some(0)),
    (libc::SOL_IPV6, 70, None), // IPV6_AUTOFLOWLABEL
    (libc::SOL_IPV6, libc::IPV6_ADDR_PREFERENCES, None),
    (libc::SOL_IPV6, libc::IPV6_MINHOPCOUNT, Some(0)),
    (libc::SOL_IPV6, 74, Some(0)), // IPV6_RECVORIGDSTADDR
    (libc::SOL_IPV6, libc::IPV6_TRANSPARENT, Some(0)),
    (libc::SOL_IPV6, 77, Some(0)), // IPV6_RECVFRAGSIZE
    (libc::SOL_IPV6, libc::IPV6_FREEBIND, Some(0)),
];

/// Integer options of multicast, which only datagram sockets have.
pub const MULTICAST_INTS: &[(i32, i32, Option<i32>)] = &[
    (libc::SOL_IP, libc::IP_MULTICAST_IF, Some(0)), // an address, in network order
    (libc::SOL_IP, libc::IP_MULTICAST_TTL, Some(1)),
    (libc::SOL_IP, libc::IP_MULTICAST_LOOP, Some(1)),
    (libc::SOL_IP, 49, Some(1)), // IP_MULTICAST_ALL
    (libc::SOL_IPV6, libc::IPV6_MULTICAST_HOPS, Some(1)),
    (libc::SOL_IPV6, libc::IPV6_MULTICAST_LOOP, Some(1)),
    (libc::SOL_IPV6, 29, Some(1)), // IPV6_MULTICAST_ALL
];
