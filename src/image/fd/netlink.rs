//! Netlink sockets.

use super::SocketOptions;
use crate::image::{Bytes, NsId};
use serde::{Deserialize, Serialize};

/// A netlink socket without unread messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Netlink {
    /// Network namespace.
    pub net: NsId,
    /// `SOCK_RAW` = 3 or `SOCK_DGRAM` = 2: no difference to the kernel.
    pub socket_type: i32,
    /// `NETLINK_ROUTE` = 0, ...
    pub protocol: i32,
    /// Local port id; 0 = not bound.
    pub port: u32,
    /// Peer as `struct sockaddr_nl`, raw; empty if not connected.
    pub peer: Bytes,
    /// Multicast groups it is a member of, by number.
    pub groups: Vec<u32>,
    /// `SOL_SOCKET` options.
    pub options: SocketOptions,
    /// Integer options as (level, number, value): `SOL_NETLINK`.
    pub ints: Vec<(i32, i32, i32)>,
}
