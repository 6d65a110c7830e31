//! Read by the engine on a duplicate, and by sock_diag(7): UNIX sockets.
//!
//! Two steps: [`read`] what a single socket shows, queue included; [`connect`] who is whose peer when all are known.

use super::socket as common;
use crate::image::fd::unix::{Creds, Message, Node, UnixSocket, UnixState};
use crate::image::{Bytes, FileId, NsId, NsPid, UnixId};
use crate::net::{Error, Result, failed};
use crate::sys::{Errno, sock_diag, socket};
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};

/// First size of the buffer that a message is read into.
const MESSAGE_ROOM: usize = 256 << 10;
/// Largest message looked at; `net.core.wmem_max` is rarely above.
const MESSAGE_MAX: usize = 256 << 20;

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// What the collector asks of its surroundings.
pub trait Around {
    /// The description behind a descriptor that was in flight.
    fn in_flight(&mut self, fd: OwnedFd) -> std::result::Result<FileId, String>;
    /// A process as the target sees it.
    fn pid(&self, ours: i32) -> NsPid;
    /// The node of a bound name, if the name still leads to the node with this device (kernel encoding) and inode (32 bits).
    fn node(&mut self, name: &[u8], node: (u32, u32)) -> Option<Node>;
}

/// Reads one socket. Its state says [`UnixState::Plain`] until [`connect`] or, for a listening one, lacks what is pending.
pub fn read(fd: BorrowedFd<'_>, seen: &sock_diag::Unix, net: NsId, around: &mut dyn Around) -> Result<UnixSocket> {
    let events = socket::poll_now(fd, libc::POLLIN).map_err(failed("UNIX", "poll"))?;
    let mut options = common::options(fd)?;
    let peek_offset = common::take(&mut options, libc::SO_PEEK_OFF);
    let listening = seen.state == LISTEN;
    let queue = if listening { Vec::new() } else { queue(fd, seen, peek_offset.unwrap_or(-1), around)? };
    options.ints.extend(peek_offset.map(|value| (libc::SO_PEEK_OFF, value)));
    let creds = socket::peer_credentials(fd).map_err(failed("UNIX", "SO_PEERCRED"))?;
    // Nobody's: pid 0 and the ids -1.
    let peer_creds = (creds.uid != u32::MAX).then(|| creds_of(creds, around));
    let state =
        if listening { UnixState::Listen { backlog: seen.write_queue, pending: Vec::new() } } else { UnixState::Plain };
    Ok(UnixSocket {
        inode: u64::from(seen.inode),
        net,
        socket_type: seen.socket_type.into(),
        state,
        name: Bytes(seen.name.clone()),
        node: match seen.node {
            Some(node) if !is_accepted(seen) => around.node(&seen.name, node),
            _ => None,
        },
        options,
        queue,
        shutdown: seen.shutdown,
        reset: events & libc::POLLERR != 0,
        peer_creds,
    })
}

/// An accepted socket bears the name of its listener, whose node is not its own.
fn is_accepted(seen: &sock_diag::Unix) -> bool {
    seen.state == ESTABLISHED && i32::from(seen.socket_type) != libc::SOCK_DGRAM
}

fn creds_of(creds: socket::Credentials, around: &dyn Around) -> Creds {
    Creds { pid: around.pid(creds.pid), uid: creds.uid, gid: creds.gid }
}

/// The messages of a queue, which stay there: `SO_PEEK_OFF` walks over them.
fn queue(fd: BorrowedFd<'_>, seen: &sock_diag::Unix, offset: i32, around: &mut dyn Around) -> Result<Vec<Message>> {
    let set = |value| {
        socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value).map_err(failed("UNIX", "SO_PEEK_OFF"))
    };
    let stream = i32::from(seen.socket_type) == libc::SOCK_STREAM;
    set(0)?;
    let mut messages = walk(fd, stream, around, &set);
    if let Ok(found) = &mut messages
        && !stream
        && found.first().is_none_or(|first| !first.data.0.is_empty())
    {
        let skipped = set(-1).and_then(|()| empty_at_the_head(fd, around))?;
        found.splice(..0, skipped);
    }
    set(offset)?;
    let messages = messages?;
    let bytes: usize = messages.iter().map(|m| m.data.0.len()).sum();
    let announced = socket::ioctl_int(fd, socket::SIOCINQ).unwrap_or(0).max(0) as usize;
    if bytes < announced {
        let reason = format!("its queue holds {announced} bytes of which {bytes} can be read (out-of-band data?)");
        return Err(Error::Unsupported { kind: "UNIX", reason });
    }
    Ok(messages)
}

fn walk(
    fd: BorrowedFd<'_>,
    stream: bool,
    around: &mut dyn Around,
    set: &dyn Fn(i32) -> Result<()>,
) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    let mut room = vec![0u8; MESSAGE_ROOM];
    let mut at = 0usize;
    // Reading past the end would take an error that waits there from the program.
    let announced = socket::ioctl_int(fd, socket::SIOCINQ).unwrap_or(0).max(0) as usize;
    loop {
        if stream && at >= announced {
            return Ok(messages);
        }
        let received = match socket::receive(fd, &mut room, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(received) => received,
            // Nothing more; a seqpacket socket that is not connected has no queue.
            Err(Errno::EAGAIN | Errno::ENOTCONN | Errno::EINVAL | Errno::ECONNRESET) => return Ok(messages),
            Err(e) => return Err(failed("UNIX", "peeking at the queue")(e)),
        };
        if received.truncated && !stream && room.len() < MESSAGE_MAX {
            room.resize(room.len() * 4, 0);
            set(i32::try_from(at).map_err(|_| too_much())?)?;
            continue;
        }
        if received.control_truncated {
            return Err(too_much());
        }
        if received.len == 0 && stream {
            return Ok(messages);
        }
        let data = &room[..received.len];
        let plain = if stream && !received.fds.is_empty() { bytes_before_fds(fd, at, received.len, set)? } else { 0 };
        if received.len == 0 && received.fds.is_empty() && received.from.is_empty() && is_end(fd)? {
            return Ok(messages);
        }
        if plain > 0 {
            let creds = received.credentials.map(|c| creds_of(c, around));
            let data = Bytes(data[..plain].to_vec());
            messages.push(Message { data, files: Vec::new(), creds, from: Bytes::default() });
        }
        at += received.len;
        messages.push(message(received, Bytes(data[plain..].to_vec()), around)?);
        if messages.len() > 1 << 20 {
            return Err(too_much());
        }
    }
}

/// The first message if it is an empty one: a walk that is not the first skips those it has shown before
/// (`__skb_try_recv_from_queue` in the kernel's net/core/datagram.c), but the head of a queue is always shown to who has set no
/// offset. Those behind it stay skipped: only a first walk sees them.
fn empty_at_the_head(fd: BorrowedFd<'_>, around: &mut dyn Around) -> Result<Option<Message>> {
    let Ok(received) = socket::receive(fd, &mut [0; 1], libc::MSG_PEEK | libc::MSG_DONTWAIT) else { return Ok(None) };
    if received.len > 0 || (received.fds.is_empty() && received.from.is_empty() && is_end(fd)?) {
        return Ok(None);
    }
    message(received, Bytes::default(), around).map(Some)
}

/// A message with this data.
fn message(received: socket::Received, data: Bytes, around: &mut dyn Around) -> Result<Message> {
    let creds = received.credentials.map(|c| creds_of(c, around));
    let from = Bytes(sock_diag::plain_name(received.from.get(2..).unwrap_or(&[])));
    let files = received.fds.into_iter().map(|fd| around.in_flight(fd)).collect::<std::result::Result<_, _>>();
    let files = files.map_err(|reason| Error::Unsupported { kind: "UNIX", reason })?;
    Ok(Message { data, files, creds, from })
}

/// An empty read of a packet socket: an empty packet, or the end because the peer has gone. After the end nothing is readable
/// but the end, and it stays.
fn is_end(fd: BorrowedFd<'_>) -> Result<bool> {
    let events = socket::poll_now(fd, libc::POLLIN | libc::POLLRDHUP).map_err(failed("UNIX", "poll"))?;
    Ok(events & (libc::POLLRDHUP | libc::POLLHUP) != 0)
}

/// In a stream, a read may run over plain bytes into bytes that carry descriptors: how many are plain. The descriptors
/// belong to the buffer that the read ended with.
fn bytes_before_fds(fd: BorrowedFd<'_>, start: usize, len: usize, set: &dyn Fn(i32) -> Result<()>) -> Result<usize> {
    set(i32::try_from(start).map_err(|_| too_much())?)?;
    let plain = socket::peek_up_to_last_buffer(fd, len).map_err(failed("UNIX", "peeking at the queue"))?;
    set(i32::try_from(start + len).map_err(|_| too_much())?)?;
    Ok(plain)
}

fn too_much() -> Error {
    Error::Unsupported { kind: "UNIX", reason: "its queue is longer than is looked at".to_owned() }
}

/// A socket of the tree with what the kernel says of its peer.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The socket.
    pub id: UnixId,
    /// What sock_diag(7) says.
    pub diag: sock_diag::Unix,
}

/// A socket whose peer is outside the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// The socket of the tree.
    pub id: UnixId,
    /// The peer's inode.
    pub peer: u32,
    /// The peer's name; empty = unnamed.
    pub peer_name: Vec<u8>,
    /// A connection that waits in a queue of the tree, or an accepted one: it cannot be made again from here.
    pub accepted: bool,
}

/// Fills in who is connected to whom. `all` is every socket of the namespaces involved, by inode. Returns those with a peer
/// outside, whose state is left [`UnixState::Connected`] to nobody: the caller decides.
pub fn connect(
    sockets: &mut [UnixSocket],
    seen: &[Seen],
    all: &HashMap<u32, sock_diag::Unix>,
) -> std::result::Result<Vec<Outside>, (UnixId, String)> {
    let by_inode: HashMap<u32, UnixId> = seen.iter().map(|s| (s.diag.inode, s.id)).collect();
    let listener_of: HashMap<u32, &Seen> =
        seen.iter().flat_map(|s| s.diag.pending.iter().map(move |client| (*client, s))).collect();
    let mut outside = Vec::new();
    for Seen { id, diag } in seen {
        if diag.state == LISTEN {
            let mut known = Vec::new();
            for client in &diag.pending {
                match by_inode.get(client) {
                    Some(client) => known.push(*client),
                    // One that has gone again leaves an end of file; the program will find nothing instead.
                    None if *client == 0 => {}
                    None => outside.push(outsider(*id, *client, all, true)),
                }
            }
            if let UnixState::Listen { pending, .. } = &mut sockets[id.at()].state {
                *pending = known;
            }
            continue;
        }
        let dgram = i32::from(diag.socket_type) == libc::SOCK_DGRAM;
        let connected = diag.peer.is_some() && (dgram || diag.state == ESTABLISHED);
        if !connected {
            continue;
        }
        sockets[id.at()].state = match diag.peer {
            Some(peer) if by_inode.contains_key(&peer) => UnixState::Connected(Some(by_inode[&peer])),
            Some(0) => match listener_of.get(&diag.inode) {
                Some(listener) => {
                    if diag.write_queue > 0 {
                        let reason = "it has written to a connection that was not accepted yet";
                        return Err((*id, reason.to_owned()));
                    }
                    UnixState::Connected(Some(listener.id))
                }
                None if !dgram && diag.shutdown != 3 => {
                    // Connected, not closed, no peer with an inode: it waits in the queue of a listener outside.
                    outside.push(Outside { id: *id, peer: 0, peer_name: Vec::new(), accepted: false });
                    UnixState::Connected(None)
                }
                None => UnixState::Connected(None),
            },
            Some(peer) => {
                outside.push(outsider(*id, peer, all, !diag.name.is_empty() && !dgram));
                UnixState::Connected(None)
            }
            None => UnixState::Plain,
        };
    }
    Ok(outside)
}

fn outsider(id: UnixId, peer: u32, all: &HashMap<u32, sock_diag::Unix>, accepted: bool) -> Outside {
    let peer_name = all.get(&peer).map(|p| p.name.clone()).unwrap_or_default();
    Outside { id, peer, peer_name, accepted }
}

/// Journal and syslog: connected again whatever the policy is.
pub fn is_log(peer_name: &[u8]) -> bool {
    peer_name.starts_with(b"/run/systemd/journal/") || matches!(peer_name, b"/dev/log" | b"/run/rsyslog/dev/log")
}
