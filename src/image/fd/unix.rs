//! UNIX sockets.

use super::{PathRef, SocketOptions};
use crate::image::{Bytes, FileId, NsId, NsPid, UnixId};
use serde::{Deserialize, Serialize};

/// A UNIX socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Inode number on the source: identity for messages.
    pub inode: u64,
    /// Network namespace.
    pub net: NsId,
    /// `SOCK_STREAM` = 1, `SOCK_DGRAM` = 2, `SOCK_SEQPACKET` = 5.
    pub socket_type: i32,
    /// What it is doing.
    pub state: UnixState,
    /// Bound name: empty = unnamed; first byte NUL = abstract; else a path as the program wrote it.
    pub name: Bytes,
    /// The bound path's node, where it still exists.
    pub node: Option<Node>,
    /// `SOL_SOCKET` options.
    pub options: SocketOptions,
    /// Messages received and not read.
    pub queue: Vec<Message>,
    /// `shutdown(2)`: bit 0 = receiving, bit 1 = sending.
    pub shutdown: u8,
    /// The peer went away without reading all: `ECONNRESET` waits to be reported.
    pub reset: bool,
    /// Peer credentials as the socket shows them; for a listening socket those it shows to its clients.
    pub peer_creds: Option<Creds>,
}

/// The node of a bound socket in a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where it is.
    pub path: PathRef,
    /// Owner, as the engine sees it.
    pub uid: u32,
    /// Group, as the engine sees it.
    pub gid: u32,
}

/// Credentials of a peer or of a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creds {
    /// Process, as the target sees it; 0 = none that it can see.
    pub pid: NsPid,
    /// User, as the engine sees it.
    pub uid: u32,
    /// Group, as the engine sees it.
    pub gid: u32,
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
        /// Sockets whose connections are not accepted yet, oldest first.
        pending: Vec<UnixId>,
    },
    /// Connected (or a datagram socket with a default peer) inside the tree; `None` = the peer has gone. A socket that waits
    /// in the queue of a listening one is connected to that.
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
    /// `SCM_CREDENTIALS`.
    pub creds: Option<Creds>,
    /// The sender's name, for datagrams; empty = unnamed.
    pub from: Bytes,
}
