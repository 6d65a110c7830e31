//! UDP sockets.

use super::SocketOptions;
use crate::image::{Bytes, FileId, NsId};
use serde::{Deserialize, Serialize};

/// A UDP (or UDP-Lite, ICMP, raw) socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Udp {
    /// Network namespace.
    pub net: NsId,
    /// IPv6.
    pub v6: bool,
    /// `SOCK_DGRAM` = 2 or `SOCK_RAW` = 3.
    pub socket_type: i32,
    /// `IPPROTO_*`.
    pub protocol: i32,
    /// Local address, raw; empty if not bound.
    pub local: Bytes,
    /// Peer address, raw; empty if not connected.
    pub peer: Bytes,
    /// `SOL_SOCKET` options.
    pub options: SocketOptions,
    /// Integer options as (level, number, value).
    pub ints: Vec<(i32, i32, i32)>,
    /// What was shut down: `RCV_SHUTDOWN` = 1, `SEND_SHUTDOWN` = 2.
    pub shutdown: u8,
    /// Datagrams received and not read, with their senders' raw addresses.
    pub queue: Vec<(Bytes, Bytes)>,
}

/// A multicast group that a datagram socket is a member of (`MCAST_JOIN_GROUP` of ip(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The socket.
    pub file: FileId,
    /// `SOL_IP` or `SOL_IPV6`.
    pub level: i32,
    /// The interface on which it listens, by name.
    pub interface: Bytes,
    /// The group as `struct sockaddr_in[6]`, raw.
    pub group: Bytes,
    /// `MCAST_INCLUDE` = 1: what these sources send; `MCAST_EXCLUDE` = 0: what everybody but these sends.
    pub mode: u32,
    /// Sources, raw addresses.
    pub sources: Vec<Bytes>,
}
