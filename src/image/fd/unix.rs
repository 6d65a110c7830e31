//! UNIX sockets.

use super::{PathRef, SocketOptions};
use crate::image::{Bytes, FileId, UnixId};
use serde::{Deserialize, Serialize};

/// A UNIX socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Inode number on the source: identity for messages.
    pub inode: u64,
    /// `SOCK_STREAM` = 1, `SOCK_DGRAM` = 2, `SOCK_SEQPACKET` = 5.
    pub socket_type: i32,
    /// What it is doing.
    pub state: UnixState,
    /// Bound name: empty = unnamed; first byte NUL = abstract; else a path.
    pub name: Bytes,
    /// The bound path's node, where it still exists.
    pub node: Option<PathRef>,
    /// `SOL_SOCKET` options.
    pub options: SocketOptions,
    /// Messages received and not read.
    pub queue: Vec<Message>,
    /// `shutdown(2)`: bit 0 = receiving, bit 1 = sending.
    pub shutdown: u8,
    /// Peer credentials as the socket shows them: pid, uid, gid (as the target sees them).
    pub peer_creds: Option<(i32, u32, u32)>,
}

/// States of a UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixState {
    /// Neither listening nor connected.
    Plain,
    /// Listening.
    Listen {
        /// Backlog.
        backlog: u32,
        /// Connections not accepted yet.
        pending: Vec<UnixId>,
    },
    /// Connected (or a datagram socket with a default peer) inside the tree; `None` = the peer has gone.
    Connected(Option<UnixId>),
    /// Connected to a socket outside the tree: re-connected by name, closed, or refused, as asked for.
    External {
        /// The peer's name, to connect to again.
        peer_name: Bytes,
    },
}

/// One message in a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its bytes (for a stream: a run of bytes without ancillary data in between).
    pub data: Bytes,
    /// Descriptors in flight (`SCM_RIGHTS`).
    pub files: Vec<FileId>,
    /// `SCM_CREDENTIALS`: pid, uid, gid as the target sees them.
    pub creds: Option<(i32, u32, u32)>,
    /// The sender's name, for datagrams.
    pub from: Bytes,
}
