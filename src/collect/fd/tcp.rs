//! Read by the engine on a duplicate: TCP sockets.

use super::socket as common;
use crate::blocker::{Blocker, codes};
use crate::image::fd::tcp::{Connection, Tcp, TcpState};
use crate::image::{Bytes, NsId};
use crate::net::lock::NetLock;
use crate::net::segment::parse_address;
use crate::net::{Error, Result, failed};
use crate::ops::options::Tcp as Policy;
use crate::sys::tcp_repair::{self, Queue};
use crate::sys::{Errno, socket};
use std::os::fd::{AsFd, BorrowedFd};

/// Integer options of `SOL_TCP` that are kept, with the value of a new socket.
const TCP_INTS: &[(i32, i32, Option<i32>)] = &[
    (libc::SOL_TCP, libc::TCP_NODELAY, Some(0)),
    (libc::SOL_TCP, libc::TCP_CORK, Some(0)),
    (libc::SOL_TCP, libc::TCP_KEEPIDLE, None),
    (libc::SOL_TCP, libc::TCP_KEEPINTVL, None),
    (libc::SOL_TCP, libc::TCP_KEEPCNT, None),
    (libc::SOL_TCP, libc::TCP_SYNCNT, None),
    (libc::SOL_TCP, libc::TCP_LINGER2, None),
    (libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, Some(0)),
    (libc::SOL_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, Some(0)),
    (libc::SOL_TCP, libc::TCP_USER_TIMEOUT, Some(0)),
    (libc::SOL_TCP, libc::TCP_FASTOPEN, Some(0)),
    (libc::SOL_TCP, libc::TCP_NOTSENT_LOWAT, None),
    (libc::SOL_TCP, 27, Some(0)), // TCP_SAVE_SYN
    (libc::SOL_TCP, 30, Some(0)), // TCP_FASTOPEN_CONNECT
    (libc::SOL_TCP, 34, Some(0)), // TCP_FASTOPEN_NO_COOKIE
    (libc::SOL_TCP, 36, Some(0)), // TCP_INQ
    (libc::SOL_TCP, 37, Some(0)), // TCP_TX_DELAY
];

/// What [`Error::Unsupported`] calls urgent data.
pub(super) const URGENT: &str = "TCP urgent data";

const TCP_ULP: i32 = 31;
/// `TCP_MSS_DEFAULT`: what `TCP_MAXSEG` says of a socket nobody has set it on.
const MSS_DEFAULT: i32 = 536;

const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// What stands in the way of saving this socket. Changes nothing; the target may run.
pub fn preflight(fd: BorrowedFd<'_>, policy: Policy, object: &str) -> Result<Vec<Blocker>> {
    let mut found = common::preflight(fd, object);
    let info = tcp_repair::info(fd).map_err(failed("TCP", "TCP_INFO"))?;
    if !matches!(info.state, CLOSE | LISTEN) && policy == Policy::Refuse {
        let peer = socket::peer_address(fd).ok().and_then(|raw| parse_address(&raw));
        let peer = peer.map_or_else(|| "somebody".to_owned(), |p| p.to_string());
        found.push(Blocker::new(codes::TCP_REFUSED, object).because(format!("it is connected to {peer}")));
    }
    if policy == Policy::Keep
        && let Some(name) = upper_protocol(fd)
    {
        let reason = format!("an upper-layer protocol ({name}) is active on it");
        found.push(Blocker::new(codes::TCP_ULP, object).because(reason));
    }
    if has_signing_keys(fd) {
        found.push(Blocker::new(codes::TCP_SIGNED, object).because("it signs its segments (TCP_AO)"));
    }
    if policy == Policy::Keep && info.state == SYN_RECV {
        found.push(Blocker::new(codes::TCP_STATE, object));
    }
    Ok(found)
}

/// Keys of RFC 5925 (Linux 6.7). Those of RFC 2385 no option tells of: [`super::socket_preflight`] looks for them.
fn has_signing_keys(fd: BorrowedFd<'_>) -> bool {
    const TCP_AO_INFO: i32 = 40;
    socket::option(fd, libc::SOL_TCP, TCP_AO_INFO, &mut [0; 56]).is_ok()
}

fn upper_protocol(fd: BorrowedFd<'_>) -> Option<String> {
    let raw = socket::raw_option(fd, libc::SOL_TCP, TCP_ULP).ok()?;
    let name: String = raw.iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect();
    (!name.is_empty()).then_some(name)
}

/// How many connections wait at a listening socket to be accepted; 0 for others. They cannot be saved: let the program accept
/// them before it is stopped.
pub fn pending(fd: BorrowedFd<'_>) -> Result<u32> {
    let info = tcp_repair::info(fd).map_err(failed("TCP", "TCP_INFO"))?;
    Ok(if info.state == LISTEN { info.unacked } else { 0 })
}

/// A warning for a listening socket whose queue is not empty: its clients will be reset.
pub fn pending_warning(count: u32, object: &str) -> Option<String> {
    (count > 0)
        .then(|| format!("{object}: {count} connection(s) not accepted yet are lost, their clients will see a reset"))
}

/// Reads a locked socket (see [`NetLock::lock`]) of a stopped target. The lock stays on, whoever holds it decides.
pub fn read(lock: &NetLock, net: NsId, policy: Policy) -> Result<Tcp> {
    let fd = lock.fd().ok_or_else(|| failed("TCP", "reading")(Errno::EBADF))?;
    let info = tcp_repair::info(fd).map_err(failed("TCP", "TCP_INFO"))?;
    let local = socket::local_address(fd).map_err(failed("TCP", "getsockname"))?;
    let family = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).map_err(failed("TCP", "SO_DOMAIN"))?;
    let v6 = family == libc::AF_INET6;
    let mut options = common::options(fd)?;
    if lock.is_deaf() {
        options.filter = lock.own_filter().to_vec();
    }
    options.ints.retain(|(name, _)| *name != libc::SO_REUSEADDR);
    if lock.own_reuse() != 0 {
        options.ints.insert(0, (libc::SO_REUSEADDR, lock.own_reuse()));
    }
    let mut ints = common::ints(fd, TCP_INTS);
    ints.extend(common::ints(fd, common::IP_INTS));
    if matches!(info.state, CLOSE | LISTEN)
        && let Ok(mss) = socket::int_option(fd, libc::SOL_TCP, libc::TCP_MAXSEG)
        && mss != MSS_DEFAULT
    {
        ints.push((libc::SOL_TCP, libc::TCP_MAXSEG, mss));
    }
    let peer = socket::peer_address(fd).unwrap_or_default();
    Ok(Tcp {
        net,
        v6,
        v6_only: v6 && socket::int_option(fd, libc::SOL_IPV6, libc::IPV6_V6ONLY).unwrap_or(0) != 0,
        local: Bytes(if is_bound(&local) { local } else { Vec::new() }),
        peer: Bytes(peer),
        state: state(lock, fd, &info, policy)?,
        options,
        ints,
        congestion: congestion(fd)?,
    })
}

fn is_bound(local: &[u8]) -> bool {
    local.iter().skip(2).any(|b| *b != 0)
}

fn congestion(fd: BorrowedFd<'_>) -> Result<String> {
    let raw = socket::raw_option(fd, libc::SOL_TCP, libc::TCP_CONGESTION).map_err(failed("TCP", "TCP_CONGESTION"))?;
    Ok(raw.iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect())
}

fn state(lock: &NetLock, fd: BorrowedFd<'_>, info: &tcp_repair::Info, policy: Policy) -> Result<TcpState> {
    match info.state {
        LISTEN => Ok(TcpState::Listen { backlog: info.sacked }),
        CLOSE => closed(lock, fd),
        _ if policy != Policy::Keep => Ok(TcpState::Ended { recv_queue: Bytes::default(), reset: true }),
        SYN_SENT => Ok(TcpState::Connecting),
        SYN_RECV => Err(Error::Unsupported { kind: "TCP", reason: "a simultaneous open is under way".to_owned() }),
        _ => connection(lock, fd, info).map(|c| TcpState::Connected(Box::new(c))),
    }
}

/// A socket in state CLOSE is new, or its connection has ended; then there may be data that the program has not read yet.
fn closed(lock: &NetLock, fd: BorrowedFd<'_>) -> Result<TcpState> {
    // An error that waits (the connection was reset) is reported once: do not take it from the program by reading.
    let events = socket::poll_now(fd, libc::POLLIN | libc::POLLRDHUP).map_err(failed("TCP", "poll"))?;
    let reset = events & libc::POLLERR != 0;
    let ended = events & libc::POLLRDHUP != 0;
    if !reset && !ended {
        return Ok(TcpState::Closed);
    }
    let queued = socket::ioctl_int(fd, socket::SIOCINQ).unwrap_or(0);
    refuse_urgent(lock, fd, queued)?;
    let recv_queue = if queued > 0 { peek(fd, queued as usize)? } else { Vec::new() };
    Ok(TcpState::Ended { recv_queue: Bytes(recv_queue), reset })
}

/// A connection with a mark of urgent data at its next unread byte or past it: repair mode has no way to make a mark, and reading
/// stops there. A mark that was passed is gone.
fn refuse_urgent(lock: &NetLock, fd: BorrowedFd<'_>, queued: i32) -> Result<()> {
    let events = socket::poll_now(fd, libc::POLLPRI).map_err(failed("TCP", "poll"))?;
    let at_mark = socket::ioctl_int(fd, socket::SIOCATMARK).map_err(failed("TCP", "SIOCATMARK"))? != 0;
    let reason = if events & libc::POLLPRI != 0 {
        "an urgent byte was not read"
    } else if at_mark {
        "it stands at the mark of an urgent byte: no data after it was read"
    } else if lock.unread()? != queued {
        "an urgent byte was read, but not what came before it"
    } else {
        return Ok(());
    };
    Err(Error::Unsupported { kind: URGENT, reason: reason.to_owned() })
}

fn connection(lock: &NetLock, fd: BorrowedFd<'_>, info: &tcp_repair::Info) -> Result<Connection> {
    let queued = |request, what| socket::ioctl_int(fd, request).map_err(failed("TCP", what));
    let received = queued(socket::SIOCINQ, "SIOCINQ")?;
    refuse_urgent(lock, fd, received)?;
    let received = received.max(0) as usize;
    let outstanding = queued(socket::SIOCOUTQ, "SIOCOUTQ")?.max(0) as usize;
    let not_sent = queued(socket::SIOCOUTQNSD, "SIOCOUTQNSD")?.max(0) as u32;
    let mss = socket::int_option(fd, libc::SOL_TCP, libc::TCP_MAXSEG).map_err(failed("TCP", "TCP_MAXSEG"))? as u32;

    tcp_repair::select(fd, Queue::Receive).map_err(failed("TCP", "TCP_REPAIR_QUEUE"))?;
    let recv_seq = tcp_repair::sequence(fd).map_err(failed("TCP", "TCP_QUEUE_SEQ"))?;
    let recv_queue = peek(fd, received)?;
    tcp_repair::select(fd, Queue::Send).map_err(failed("TCP", "TCP_REPAIR_QUEUE"))?;
    let send_seq = tcp_repair::sequence(fd).map_err(failed("TCP", "TCP_QUEUE_SEQ"))?;
    let send_queue = peek(fd, outstanding)?;
    tcp_repair::select(fd, Queue::None).map_err(failed("TCP", "TCP_REPAIR_QUEUE"))?;

    let window = match lock.own_window() {
        Some(window) => window,
        None => tcp_repair::window(fd).map_err(failed("TCP", "TCP_REPAIR_WINDOW"))?,
    };
    let connection = Connection {
        state: info.state,
        recv_seq,
        send_seq,
        recv_queue: Bytes(recv_queue),
        send_queue: Bytes(send_queue),
        // An unsent FIN counts as a byte, too; it is always the last.
        unsent: 0,
        mss,
        window_scale: (info.options & 4 != 0).then_some((info.send_scale, info.receive_scale)),
        sack: info.options & 2 != 0,
        timestamp: (info.options & 1 != 0)
            .then(|| tcp_repair::timestamp(fd))
            .transpose()
            .map_err(failed("TCP", "TCP_TIMESTAMP"))?,
        window: Bytes(window.to_bytes().to_vec()),
    };
    let fin = u32::from(connection.we_finished());
    let expected = outstanding - (fin as usize).min(outstanding);
    if connection.recv_queue.0.len() != received || connection.send_queue.0.len() < expected {
        let reason = format!(
            "its queues hold {} and {} bytes where {received} and {expected} were announced",
            connection.recv_queue.0.len(),
            connection.send_queue.0.len()
        );
        return Err(Error::Unsupported { kind: "TCP", reason });
    }
    Ok(Connection { unsent: not_sent.saturating_sub(fin), ..connection })
}

/// Up to `len` bytes of the selected queue, which stay there.
fn peek(fd: BorrowedFd<'_>, len: usize) -> Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let mut data = vec![0; len];
    match socket::receive(fd.as_fd(), &mut data, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
        Ok(received) => data.truncate(received.len),
        // Only a FIN is outstanding.
        Err(Errno::EAGAIN) => data.clear(),
        Err(e) => return Err(failed("TCP", "peeking at a queue")(e)),
    }
    Ok(data)
}
