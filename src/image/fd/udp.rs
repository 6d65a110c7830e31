//! UDP sockets.

use super::SocketOptions;
use crate::image::{Bytes, NsId};
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
