//! TCP sockets.

use super::SocketOptions;
use crate::image::{Bytes, NsId};
use serde::{Deserialize, Serialize};

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tcp {
    /// Network namespace.
    pub net: NsId,
    /// IPv6.
    pub v6: bool,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// Local address as `struct sockaddr_in[6]`, raw; empty if not bound.
    pub local: Bytes,
    /// Peer address, raw; empty if not connected.
    pub peer: Bytes,
    /// What state it is in.
    pub state: TcpState,
    /// `SOL_SOCKET` options.
    pub options: SocketOptions,
    /// Integer options as (level, number, value): `SOL_TCP`, `SOL_IP`, `SOL_IPV6`.
    pub ints: Vec<(i32, i32, i32)>,
    /// `TCP_CONGESTION`.
    pub congestion: String,
}

/// States of a TCP socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TcpState {
    /// Neither listening nor connected, and never was.
    Closed,
    /// A connection that has ended, with what the program has not read of it yet.
    Ended {
        /// Received and not read.
        recv_queue: Bytes,
        /// It was reset (or is to be: `--tcp close`), as opposed to closed by both sides.
        reset: bool,
    },
    /// connect(2) under way, no answer yet (SYN_SENT): asked again.
    Connecting,
    /// Listening with this backlog.
    Listen {
        /// Backlog.
        backlog: u32,
    },
    /// A connection.
    Connected(Box<Connection>),
}

/// The state of a connection as of `TCP_REPAIR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// `tcpi_state`: ESTABLISHED = 1, FIN_WAIT1 = 4, FIN_WAIT2 = 5, CLOSE_WAIT = 8, LAST_ACK = 9, CLOSING = 11.
    pub state: u8,
    /// `TCP_QUEUE_SEQ` of the receive queue (next byte expected), as read.
    pub recv_seq: u32,
    /// `TCP_QUEUE_SEQ` of the send queue (next byte to be written), as read.
    pub send_seq: u32,
    /// Received and not read.
    pub recv_queue: Bytes,
    /// Written and not acknowledged, the part not yet sent included.
    pub send_queue: Bytes,
    /// Bytes at the end of `send_queue` that were never sent.
    pub unsent: u32,
    /// Maximum segment size clamp.
    pub mss: u32,
    /// Window scaling: (ours for sending, the peer's), if negotiated.
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgements negotiated.
    pub sack: bool,
    /// `TCP_TIMESTAMP` if timestamps were negotiated.
    pub timestamp: Option<u32>,
    /// `struct tcp_repair_window`, raw.
    pub window: Bytes,
}

impl Connection {
    /// Our FIN is in the sequence numbers: FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING.
    pub fn we_finished(&self) -> bool {
        matches!(self.state, 4 | 5 | 9 | 11)
    }

    /// The peer's FIN is in the sequence numbers: CLOSE_WAIT, LAST_ACK, CLOSING.
    pub fn peer_finished(&self) -> bool {
        matches!(self.state, 8 | 9 | 11)
    }
}
