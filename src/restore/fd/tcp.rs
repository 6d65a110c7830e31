//! Made by the engine: TCP sockets.
//!
//! Two steps. [`make`] builds every socket mute and deaf, with its queues; nothing goes out, so the address need not be here
//! yet and the other end of a connection inside the tree need not exist. [`Unfinished::speak`] lets it speak, when the
//! address is here, all other ends are made, and no packet filter of ours holds its packets any more; [`Unfinished::hear`]
//! lets it hear, when it has got what was sent to it meanwhile.

use super::socket as common;
use crate::image::fd::tcp::{Connection, Tcp, TcpState};
use crate::net::segment::{ACK, FIN, Injector, Segment, parse_address};
use crate::net::{Error, Result, failed, lock, namespace};
use crate::sys::tcp_repair::{self, Negotiated, Queue, Window};
use crate::sys::{Errno, socket};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Options that come after the connection is made, or are part of making it.
const SKIP: &[(i32, i32)] =
    &[(libc::SOL_TCP, libc::TCP_CORK), (libc::SOL_IP, libc::IP_TRANSPARENT), (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)];

/// `MAX_TCP_WINDOW`: the most that `TCP_MAXSEG` takes.
const MSS_MAX: i32 = 32767;
/// `TCP_MIN_MSS`: the least.
const MSS_MIN: i32 = 88;

/// How to make sockets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    /// The network namespace, this thread's if `None`.
    pub net: Option<BorrowedFd<'a>>,
    /// The local addresses are not here yet.
    pub address_later: bool,
    /// Listening sockets are deaf until the tree runs: somebody keeps what is sent to them.
    pub deaf_listeners: bool,
}

/// A socket that is made but does not speak yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[must_use = "an unfinished TCP socket is deaf"]
pub struct Unfinished {
    /// Its last part.
    rest: Rest,
    transparent: Option<(i32, i32, i32)>,
    reuse: i32,
    cork: bool,
    deaf: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Rest {
    /// Only late options.
    Options,
    /// Asks for its connection again.
    Connect { peer: Vec<u8> },
    /// Wakes up in the middle of a connection.
    Connection(Box<Waking>),
    /// The original's own socket, as its lock has left it; the window there was before, if it is a connection.
    TakenOver { window: Vec<u8> },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waking {
    local: SocketAddr,
    peer: SocketAddr,
    /// Bytes at the end of the send queue that are sent the ordinary way.
    unsent: Vec<u8>,
    we_finished: bool,
    /// The FIN of the peer, to be said again.
    peer_fin: Option<Segment>,
}

/// Makes a socket. It is close-on-exec and blocking; nothing is sent.
pub fn make(tcp: &Tcp, place: Place<'_>) -> Result<(OwnedFd, Unfinished)> {
    let domain = if tcp.v6 { libc::AF_INET6 } else { libc::AF_INET };
    if let TcpState::Ended { recv_queue, reset } = &tcp.state {
        let fd = ended(tcp, place, &recv_queue.0, *reset)?;
        let reuse = common::int(&tcp.options, libc::SO_REUSEADDR).unwrap_or(0);
        return Ok((fd, Unfinished { rest: Rest::Options, transparent: None, reuse, cork: false, deaf: false }));
    }
    let fd = namespace::socket_in(place.net, domain, libc::SOCK_STREAM, 0)?.map_err(failed("TCP", "socket"))?;
    let mut unfinished = prepare(fd.as_fd(), tcp, place, domain)?;
    match &tcp.state {
        TcpState::Closed | TcpState::Ended { .. } => leave_repair(fd.as_fd(), unfinished.reuse)?,
        TcpState::Listen { backlog } => {
            if place.deaf_listeners {
                lock::stop_ears(fd.as_fd())?;
                unfinished.deaf = true;
            }
            listen(fd.as_fd(), *backlog, unfinished.reuse)?;
        }
        TcpState::Connecting => {
            leave_repair(fd.as_fd(), unfinished.reuse)?;
            common::check_address("TCP", &tcp.peer.0, domain)?;
            unfinished.rest = Rest::Connect { peer: tcp.peer.0.clone() };
        }
        TcpState::Connected(connection) => {
            common::check_address("TCP", &tcp.peer.0, domain)?;
            lock::stop_ears(fd.as_fd())?;
            unfinished.deaf = true;
            let waking = connect(fd.as_fd(), tcp, connection)?;
            unfinished.rest = Rest::Connection(Box::new(waking));
        }
    }
    Ok((fd, unfinished))
}

/// Tells the peer of a saved connection that it is over, by a reset from a socket that has the connection for a moment. In this
/// thread's network namespace.
pub fn reset(tcp: &Tcp) -> Result<()> {
    let (fd, _) = make(tcp, Place::default())?;
    leave_repair(fd.as_fd(), 1)?;
    // Sends the reset where close(2) would say goodbye and wait (tcp_disconnect in the kernel's net/ipv4/tcp.c).
    let nobody = (libc::AF_UNSPEC as u16).to_ne_bytes();
    socket::connect(fd.as_fd(), &[nobody.as_slice(), &[0; 14]].concat()).map_err(failed("TCP", "ending a connection"))
}

/// Options and local address; leaves the socket in repair mode, which forces address reuse.
fn prepare(fd: BorrowedFd<'_>, tcp: &Tcp, place: Place<'_>, domain: i32) -> Result<Unfinished> {
    tcp_repair::enter(fd).map_err(failed("TCP", "TCP_REPAIR"))?;
    // A SO_REUSEADDR of 0 now would end the forced reuse.
    common::early(fd, &tcp.options, &[libc::SO_REUSEADDR])?;
    if tcp.v6 {
        common::set_if_differs(fd, libc::SOL_IPV6, libc::IPV6_V6ONLY, tcp.v6_only.into())?;
    }
    common::set_ints(fd, &tcp.ints, SKIP)?;
    set_congestion(fd, &tcp.congestion)?;
    let (level, name) =
        if tcp.v6 { (libc::SOL_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::SOL_IP, libc::IP_TRANSPARENT) };
    let own = tcp.ints.iter().any(|(l, n, v)| SKIP[1..].contains(&(*l, *n)) && *v != 0);
    let transparent = place.address_later || own;
    if transparent {
        socket::set_int_option(fd, level, name, 1).map_err(failed("TCP", "IP_TRANSPARENT"))?;
    }
    if !tcp.local.0.is_empty() {
        common::check_address("TCP", &tcp.local.0, domain)?;
        // For a connection the port must be ours although the program never asked for it.
        socket::bind(fd, &tcp.local.0).map_err(|e| {
            let address = parse_address(&tcp.local.0).map_or_else(String::new, |a| a.to_string());
            failed("TCP", &format!("bind to {address}"))(e)
        })?;
    }
    Ok(Unfinished {
        rest: Rest::Options,
        transparent: (transparent && !own).then_some((level, name, 0)),
        reuse: common::int(&tcp.options, libc::SO_REUSEADDR).unwrap_or(0),
        cork: tcp.ints.contains(&(libc::SOL_TCP, libc::TCP_CORK, 1)),
        deaf: false,
    })
}

fn set_congestion(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    let same = socket::raw_option(fd, libc::SOL_TCP, libc::TCP_CONGESTION)
        .is_ok_and(|raw| raw.split(|b| *b == 0).next() == Some(name.as_bytes()));
    if same || name.is_empty() {
        return Ok(());
    }
    match socket::set_option(fd, libc::SOL_TCP, libc::TCP_CONGESTION, name.as_bytes()) {
        Ok(()) => Ok(()),
        // Not in this kernel: the connection goes on with the kernel's default.
        Err(Errno::ENOENT) => {
            tracing::warn!("congestion control {name:?} is not available here: the default is used");
            Ok(())
        }
        Err(e) => Err(failed("TCP", &format!("congestion control {name:?}"))(e)),
    }
}

fn leave_repair(fd: BorrowedFd<'_>, reuse: i32) -> Result<()> {
    tcp_repair::leave(fd, false).map_err(failed("TCP", "TCP_REPAIR"))?;
    socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse).map_err(failed("TCP", "SO_REUSEADDR"))
}

/// listen(2) checks the address again, and repair mode cannot be left afterwards.
fn listen(fd: BorrowedFd<'_>, backlog: u32, reuse: i32) -> Result<()> {
    leave_repair(fd, 1)?;
    socket::listen(fd, backlog).map_err(failed("TCP", "listen"))?;
    socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse).map_err(failed("TCP", "SO_REUSEADDR"))
}

/// The connection with its queues, in repair mode.
fn connect(fd: BorrowedFd<'_>, tcp: &Tcp, c: &Connection) -> Result<Waking> {
    let bad = |reason: &str| Error::BadModel { kind: "TCP", reason: reason.to_owned() };
    let unsent = c.unsent as usize;
    let (received, sent) = (&c.recv_queue.0, &c.send_queue.0);
    if unsent > sent.len() || !matches!(c.state, 1 | 4 | 5 | 8 | 9 | 11) {
        return Err(bad(&format!("state {} with {unsent} of {} bytes unsent", c.state, sent.len())));
    }
    let mut window = Window::from_bytes(&c.window.0).ok_or_else(|| bad("window block of a wrong length"))?;
    let (peer_fin, our_fin) = (u32::from(c.peer_finished()), u32::from(c.we_finished()));
    let recv_next = c.recv_seq.wrapping_sub(peer_fin);
    let send_start = c.send_seq.wrapping_sub(our_fin).wrapping_sub(sent.len() as u32);
    for (queue, sequence) in
        [(Queue::Receive, recv_next.wrapping_sub(received.len() as u32)), (Queue::Send, send_start)]
    {
        tcp_repair::select(fd, queue).map_err(failed("TCP", "TCP_REPAIR_QUEUE"))?;
        tcp_repair::set_sequence(fd, sequence).map_err(failed("TCP", "TCP_QUEUE_SEQ"))?;
    }
    let clamp =
        |mss| socket::set_int_option(fd, libc::SOL_TCP, libc::TCP_MAXSEG, mss).map_err(failed("TCP", "TCP_MAXSEG"));
    clamp(segment_size(c.mss, window.max_window))?;
    socket::connect(fd, &tcp.peer.0).map_err(failed("TCP", "connect in repair mode (no route to the peer?)"))?;
    clamp(0)?;
    let negotiated =
        Negotiated { mss: c.mss, window_scale: c.window_scale, sack: c.sack, timestamps: c.timestamp.is_some() };
    tcp_repair::set_negotiated(fd, &negotiated).map_err(failed("TCP", "TCP_REPAIR_OPTIONS"))?;
    if let Some(timestamp) = c.timestamp {
        tcp_repair::set_timestamp(fd, tcp_repair::set_forward(timestamp)).map_err(failed("TCP", "TCP_TIMESTAMP"))?;
    }
    tcp_repair::select(fd, Queue::Receive).map_err(failed("TCP", "TCP_REPAIR_QUEUE"))?;
    fill(fd, received)?;
    tcp_repair::select(fd, Queue::Send).map_err(failed("TCP", "TCP_REPAIR_QUEUE"))?;
    fill(fd, &sent[..sent.len() - unsent])?;
    window.snd_wl1 = window.snd_wl1.wrapping_sub(peer_fin);
    window.rcv_wup = window.rcv_wup.wrapping_sub(peer_fin);
    tcp_repair::set_window(fd, &window).map_err(failed("TCP", "TCP_REPAIR_WINDOW"))?;
    let scale = u32::from(c.window_scale.map_or(0, |(send, _)| send.min(14)));
    Ok(Waking {
        local: parse_address(&tcp.local.0).ok_or_else(|| bad("local address"))?,
        peer: parse_address(&tcp.peer.0).ok_or_else(|| bad("peer address"))?,
        unsent: sent[sent.len() - unsent..].to_vec(),
        we_finished: c.we_finished(),
        // It acknowledges nothing the peer has not acknowledged, and has no time stamp: an invented one would make the
        // socket take all later segments of the peer for old ones.
        peer_fin: c.peer_finished().then_some(Segment {
            seq: recv_next,
            ack: send_start,
            flags: FIN | ACK,
            window: u16::try_from(window.snd_wnd >> scale).unwrap_or(u16::MAX),
        }),
    })
}

/// What `TCP_MAXSEG` is to be while a connection is made. The kernel computes the size of its segments then, and not again when
/// it is told what was negotiated: they would stay at 536 bytes, or be larger than a peer with a small window ever takes at
/// once (`tcp_connect_init` and `tcp_bound_to_half_wnd` in its net/ipv4/tcp_output.c).
fn segment_size(negotiated: u32, largest_window: u32) -> i32 {
    let bound = if largest_window > 536 { largest_window / 2 } else { largest_window };
    let size = if bound == 0 { negotiated } else { negotiated.min(bound) };
    i32::try_from(size).unwrap_or(MSS_MAX).clamp(MSS_MIN, MSS_MAX)
}

/// Fills the selected queue.
fn fill(fd: BorrowedFd<'_>, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        let n = socket::send(fd, data, &[], &[], None, libc::MSG_DONTWAIT).map_err(failed("TCP", "filling a queue"))?;
        if n == 0 {
            return Err(failed("TCP", "filling a queue")(Errno::EAGAIN));
        }
        data = &data[n..];
    }
    Ok(())
}

/// A socket whose connection is over, with data not read yet: the end of a connection of our own over loopback, which then
/// goes through the same close. A new socket would say `ENOTCONN` where the program expects data and the end.
fn ended(tcp: &Tcp, place: Place<'_>, queue: &[u8], reset: bool) -> Result<OwnedFd> {
    let domain = if tcp.v6 { libc::AF_INET6 } else { libc::AF_INET };
    let address: SocketAddr = if tcp.v6 { ([0u16, 0, 0, 0, 0, 0, 0, 1], 0).into() } else { ([127, 0, 0, 1], 0).into() };
    namespace::inside(place.net, || {
        let new = || socket::socket(domain, libc::SOCK_STREAM, 0).map_err(failed("TCP", "socket"));
        let (listener, ours, giver);
        listener = new()?;
        ours = new()?;
        common::early(ours.as_fd(), &tcp.options, &[libc::SO_REUSEADDR, libc::SO_MARK])?;
        socket::bind(listener.as_fd(), &crate::net::segment::raw_address(address)).map_err(failed("TCP", "bind"))?;
        socket::listen(listener.as_fd(), 1).map_err(failed("TCP", "listen"))?;
        let at = socket::local_address(listener.as_fd()).map_err(failed("TCP", "getsockname"))?;
        socket::connect(ours.as_fd(), &at).map_err(failed("TCP", "connect over loopback"))?;
        giver = socket::accept(listener.as_fd()).map_err(failed("TCP", "accept"))?;
        let room = i32::try_from(queue.len() + 65536).unwrap_or(i32::MAX / 2);
        for (fd, name) in [(&giver, libc::SO_SNDBUFFORCE), (&ours, libc::SO_RCVBUFFORCE)] {
            socket::set_int_option(fd.as_fd(), libc::SOL_SOCKET, name, room)
                .map_err(failed("TCP", "size of a buffer"))?;
        }
        fill(giver.as_fd(), queue)?;
        if reset {
            // Closing with a linger time of 0 resets the connection; what was received stays readable.
            let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
            socket::set_option(giver.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger)
                .map_err(failed("TCP", "SO_LINGER"))?;
        } else {
            for fd in [&giver, &ours] {
                socket::shutdown(fd.as_fd(), libc::SHUT_WR).map_err(failed("TCP", "shutdown"))?;
            }
        }
        drop(giver);
        let reuse = common::int(&tcp.options, libc::SO_REUSEADDR).unwrap_or(0);
        common::set_if_differs(ours.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
        Ok(ours)
    })?
}

impl Unfinished {
    /// Nothing comes in.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf || matches!(self.rest, Rest::TakenOver { .. })
    }

    /// In the middle of a connection.
    pub(super) fn is_connection(&self) -> bool {
        matches!(self.rest, Rest::Connection(_) | Rest::TakenOver { .. })
    }

    /// A socket that is not made but taken over from the frozen original.
    pub(crate) fn of_the_original(tcp: &Tcp) -> Self {
        let reuse = common::int(&tcp.options, libc::SO_REUSEADDR).unwrap_or(0);
        let window = match &tcp.state {
            TcpState::Connected(connection) => connection.window.0.clone(),
            _ => Vec::new(),
        };
        Self { rest: Rest::TakenOver { window }, transparent: None, reuse, cork: false, deaf: false }
    }

    /// Lets the socket speak, and take what is injected. `injector` works in the socket's network namespace.
    pub fn speak(&self, fd: BorrowedFd<'_>, injector: &Injector) -> Result<()> {
        if self.deaf {
            lock::admit_injected(fd)?;
        }
        if let Some((level, name, value)) = self.transparent {
            socket::set_int_option(fd, level, name, value).map_err(failed("TCP", "IP_TRANSPARENT"))?;
        }
        let set_cork = || {
            let cork = i32::from(self.cork);
            common::set_if_differs(fd, libc::SOL_TCP, libc::TCP_CORK, cork)
        };
        match &self.rest {
            Rest::TakenOver { window } => {
                return lock::admit_injected_again(fd, self.reuse, Window::from_bytes(window));
            }
            Rest::Options => set_cork()?,
            Rest::Connect { peer } => {
                set_cork()?;
                connect_again(fd, peer)?;
            }
            Rest::Connection(waking) => {
                tcp_repair::leave(fd, true).map_err(failed("TCP", "TCP_REPAIR"))?;
                socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, self.reuse)
                    .map_err(failed("TCP", "SO_REUSEADDR"))?;
                set_cork()?;
                waking.go(fd, injector)?;
            }
        }
        Ok(())
    }

    /// Lets the socket hear, with everything its program has set.
    pub fn hear(self, fd: BorrowedFd<'_>, tcp: &Tcp) -> Result<()> {
        if matches!(self.rest, Rest::TakenOver { .. }) {
            return lock::take_off(fd, &tcp.options.filter);
        }
        if self.deaf {
            lock::open_ears(fd)?;
        }
        common::late(fd, &tcp.options)
    }
}

/// Asks for a connection again without waiting for the answer.
fn connect_again(fd: BorrowedFd<'_>, peer: &[u8]) -> Result<()> {
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::F_GETFL).map_err(failed("TCP", "F_GETFL"))?;
    let set = |bits: i32| {
        let flags = nix::fcntl::OFlag::from_bits_truncate(bits);
        nix::fcntl::fcntl(fd, nix::fcntl::F_SETFL(flags)).map_err(failed("TCP", "F_SETFL"))
    };
    set(flags | libc::O_NONBLOCK)?;
    let outcome = socket::connect(fd, peer);
    set(flags)?;
    match outcome {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(e) => Err(failed("TCP", "connect")(e)),
    }
}

impl Waking {
    fn go(&self, fd: BorrowedFd<'_>, injector: &Injector) -> Result<()> {
        if let Some(fin) = &self.peer_fin {
            injector.segment(self.peer, self.local, fin)?;
        }
        if !self.unsent.is_empty() {
            // The tail must fit; `late` sets the size the program had.
            let room = i32::try_from(2 * self.unsent.len() + 65536).unwrap_or(i32::MAX / 2);
            let now = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap_or(0);
            socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room.saturating_add(now))
                .map_err(failed("TCP", "SO_SNDBUFFORCE"))?;
            fill(fd, &self.unsent)?;
        }
        if self.we_finished {
            match socket::shutdown(fd, libc::SHUT_WR) {
                // The peer may have answered the tail with a reset by now.
                Ok(()) | Err(Errno::ENOTCONN) => {}
                Err(e) => return Err(failed("TCP", "shutdown")(e)),
            }
        }
        Ok(())
    }
}
