//! Keeps a TCP socket as it is from the moment it is read: a filter that drops everything (`SO_ATTACH_FILTER`) keeps
//! segments of the peer away, `TCP_REPAIR` keeps ours from going out.
//!
//! It holds as long as the socket is open; closing a socket in repair mode is silent. What comes in after the close would
//! be answered with a reset: [`super::nft`] holds that off.

use super::filter::{DROP_ALL, ONLY_MARKED, is_ours};
use super::{Result, failed};
use crate::sys::{Errno, socket, tcp_repair};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// State LISTEN of `tcpi_state`.
const LISTEN: u8 = 10;
/// State CLOSE of `tcpi_state`.
const CLOSE: u8 = 7;

/// What a lock changes of a socket, for somebody else who has the socket to undo it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Terms {
    filter: Vec<u64>,
    filtered: bool,
    repair: bool,
    reuse: i32,
    urgent_inline: i32,
}

impl Terms {
    /// What a lock of this socket would change: nothing of unconnected sockets; listening ones stop taking connections.
    ///
    /// # Errors
    /// It is no TCP socket.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let state = tcp_repair::info(fd).map_err(failed("TCP", "TCP_INFO"))?.state;
        let (filtered, filter) = if state == CLOSE { (false, Vec::new()) } else { own_filter(fd)? };
        let reuse =
            socket::int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).map_err(failed("TCP", "SO_REUSEADDR"))?;
        let urgent_inline = urgent_inline(fd)?;
        Ok(Self { filter, filtered, repair: !matches!(state, CLOSE | LISTEN), reuse, urgent_inline })
    }

    /// Whether anything is changed.
    pub fn change_anything(&self) -> bool {
        self.filtered || self.repair
    }
}

/// Whether urgent data is read with the other data.
fn urgent_inline(fd: BorrowedFd<'_>) -> Result<i32> {
    socket::int_option(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE).map_err(failed("TCP", "SO_OOBINLINE"))
}

/// Whether a filter of ours can take the place of the program's, and that one.
fn own_filter(fd: BorrowedFd<'_>) -> Result<(bool, Vec<u64>)> {
    if socket::int_option(fd, libc::SOL_SOCKET, libc::SO_LOCK_FILTER).unwrap_or(0) != 0 {
        return Ok((false, Vec::new()));
    }
    // EACCES: an eBPF program, which could not be put back. Both cases rely on the packet filter of the host alone.
    match socket::filter(fd) {
        Ok(own) if is_ours(&own) => Ok((true, Vec::new())),
        Ok(own) => Ok((true, own)),
        Err(Errno::EACCES) => Ok((false, Vec::new())),
        Err(e) => Err(failed("TCP", "SO_GET_FILTER")(e)),
    }
}

/// A TCP socket that neither takes nor sends. Dropping the guard makes it go on as if nothing had been.
#[derive(Debug)]
pub struct NetLock {
    socket: Option<OwnedFd>,
    filter: Vec<u64>,
    filtered: bool,
    repair: bool,
    reuse: i32,
    urgent_inline: i32,
}

impl NetLock {
    /// Locks a socket; `socket` is a duplicate of the target's descriptor. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The socket is as it was.
    pub fn lock(socket: OwnedFd) -> Result<Self> {
        let terms = Terms::of(socket.as_fd())?;
        Self::lock_as(socket, terms)
    }

    /// The same with what [`Terms::of`] has said of it, since when the target stands still.
    ///
    /// # Errors
    /// The socket is as it was.
    pub fn lock_as(socket: OwnedFd, terms: Terms) -> Result<Self> {
        let Terms { filter, filtered, repair, reuse, urgent_inline } = terms;
        // From here on a failure undoes what was done.
        let mut lock = Self { socket: Some(socket), filter, filtered: false, repair: false, reuse, urgent_inline };
        let Some(fd) = lock.socket.as_ref().map(AsFd::as_fd) else { return Ok(lock) };
        if filtered {
            socket::attach_filter(fd, &DROP_ALL).map_err(failed("TCP", "SO_ATTACH_FILTER"))?;
            lock.filtered = true;
        }
        if repair {
            // The peer need not wait for it until the end of the lock. Not in every state; then it is not due.
            let _ = tcp_repair::send_delayed_acknowledgement(fd);
            tcp_repair::enter(fd).map_err(failed("TCP", "TCP_REPAIR"))?;
            lock.repair = true;
        }
        Ok(lock)
    }

    /// Looks at a socket without locking it.
    pub fn look(socket: OwnedFd) -> Result<Self> {
        let reuse = socket::int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR)
            .map_err(failed("TCP", "SO_REUSEADDR"))?;
        let urgent_inline = urgent_inline(socket.as_fd())?;
        Ok(Self { socket: Some(socket), filter: Vec::new(), filtered: false, repair: false, reuse, urgent_inline })
    }

    /// The locked socket.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// The program's own filter, which the lock has replaced.
    pub fn own_filter(&self) -> &[u64] {
        &self.filter
    }

    /// The value of `SO_REUSEADDR` before the lock, which forces it.
    pub fn own_reuse(&self) -> i32 {
        self.reuse
    }

    /// Bytes that have come and were not read, also those past urgent data, at which reading stops and the count ends.
    ///
    /// # Errors
    /// The socket cannot be asked. Whoever undoes the lock also undoes what is changed for a moment here.
    pub fn unread(&self) -> Result<i32> {
        let Some(fd) = self.fd() else { return Ok(0) };
        let count = || socket::ioctl_int(fd, socket::SIOCINQ).map_err(failed("TCP", "SIOCINQ"));
        if self.urgent_inline != 0 {
            return count();
        }
        let set = |inline| {
            socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, inline)
                .map_err(failed("TCP", "SO_OOBINLINE"))
        };
        set(1)?;
        let counted = count();
        set(0)?;
        counted
    }

    /// Whether it is a connection, locked.
    pub fn is_connection(&self) -> bool {
        self.repair
    }

    /// Whether segments of the peer are kept away: not where the program has locked its filter, or has an eBPF one.
    pub fn is_deaf(&self) -> bool {
        self.filtered
    }

    /// The same lock in other hands: whoever drops it first unlocks the socket.
    pub fn of_terms(socket: OwnedFd, terms: Terms) -> Self {
        let Terms { filter, filtered, repair, reuse, urgent_inline } = terms;
        Self { socket: Some(socket), filter, filtered, repair, reuse, urgent_inline }
    }

    /// Whether nobody has taken the lock off who has the socket as well.
    pub fn is_as_left(&self) -> bool {
        let untouched = |fd| !self.filtered || socket::filter(fd).is_ok_and(|filter| filter == DROP_ALL);
        self.fd().is_some_and(untouched)
    }

    /// Whether it was taken off halfway at most: by somebody who has the socket as well and was killed meanwhile.
    pub fn is_left(&self) -> bool {
        let ours = |fd| !self.filtered || socket::filter(fd).is_ok_and(|filter| Self::is_of_a_lock(&filter));
        self.fd().is_some_and(ours)
    }

    /// Whether this filter is that of a lock.
    pub fn is_of_a_lock(filter: &[u64]) -> bool {
        filter == DROP_ALL || filter == ONLY_MARKED
    }

    /// Leaves the socket locked for good: the last close of it is silent.
    pub fn keep(mut self) {
        self.socket = None;
    }

    /// Gives the socket back to its program.
    pub fn unlock(mut self) -> Result<()> {
        self.undo()
    }

    /// Lets the socket speak, and take what is injected; the peer is not heard yet.
    fn admit_injected(&mut self) -> Result<()> {
        let Some(socket) = self.socket.as_ref() else { return Ok(()) };
        let fd = socket.as_fd();
        if self.filtered {
            socket::attach_filter(fd, &ONLY_MARKED).map_err(failed("TCP", "SO_ATTACH_FILTER"))?;
        }
        if std::mem::take(&mut self.repair) {
            tcp_repair::leave(fd, false).map_err(failed("TCP", "TCP_REPAIR"))?;
            socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, self.reuse)
                .map_err(failed("TCP", "SO_REUSEADDR"))?;
            socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, self.urgent_inline)
                .map_err(failed("TCP", "SO_OOBINLINE"))?;
        }
        Ok(())
    }

    fn undo(&mut self) -> Result<()> {
        let admitted = self.admit_injected();
        let Some(socket) = self.socket.take() else { return Ok(()) };
        let fd = socket.as_fd();
        if std::mem::take(&mut self.filtered) {
            if self.filter.is_empty() {
                socket::detach_filter(fd).map_err(failed("TCP", "SO_DETACH_FILTER"))?;
            } else {
                socket::attach_filter(fd, &self.filter).map_err(failed("TCP", "SO_ATTACH_FILTER"))?;
            }
        }
        admitted
    }
}

impl Drop for NetLock {
    fn drop(&mut self) {
        if let Err(e) = self.undo() {
            tracing::error!("a TCP socket stays locked: {e}");
        }
    }
}

/// Gives all of these sockets back to their programs, and has `deliver` give them what they have missed: first while their
/// peers are not heard, so that nothing newer comes before it, then once more for what has come meanwhile.
pub fn unlock_all(mut locks: Vec<NetLock>, mut deliver: impl FnMut()) -> Result<()> {
    let mut outcome = Ok(());
    for lock in &mut locks {
        outcome = outcome.and(lock.admit_injected());
    }
    deliver();
    for lock in locks {
        outcome = outcome.and(lock.unlock());
    }
    deliver();
    outcome
}

/// Makes a socket under construction deaf, until [`open_ears`].
pub fn stop_ears(fd: BorrowedFd<'_>) -> Result<()> {
    socket::attach_filter(fd, &DROP_ALL).map_err(failed("TCP", "SO_ATTACH_FILTER"))
}

/// A deaf socket takes what is injected; its peer is not heard yet.
pub fn admit_injected(fd: BorrowedFd<'_>) -> Result<()> {
    socket::attach_filter(fd, &ONLY_MARKED).map_err(failed("TCP", "SO_ATTACH_FILTER"))
}

/// Ends [`stop_ears`] and [`admit_injected`].
pub fn open_ears(fd: BorrowedFd<'_>) -> Result<()> {
    socket::detach_filter(fd).map_err(failed("TCP", "SO_DETACH_FILTER"))
}

/// A socket that was kept locked ([`NetLock::keep`]) and has a new owner speaks again, and takes what is injected; `reuse`
/// is what its program had set.
pub fn admit_injected_again(fd: BorrowedFd<'_>, reuse: i32) -> Result<()> {
    if socket::filter(fd).is_ok_and(|found| found == DROP_ALL) {
        admit_injected(fd)?;
    }
    if tcp_repair::is_on(fd).unwrap_or(false) {
        tcp_repair::leave(fd, true).map_err(failed("TCP", "TCP_REPAIR"))?;
        socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)
            .map_err(failed("TCP", "SO_REUSEADDR"))?;
    }
    Ok(())
}

/// Ends what [`admit_injected_again`] began; `filter` is the program's own.
pub fn take_off(fd: BorrowedFd<'_>, filter: &[u64]) -> Result<()> {
    match socket::filter(fd) {
        Ok(found) if is_ours(&found) && filter.is_empty() => open_ears(fd),
        Ok(found) if is_ours(&found) => socket::attach_filter(fd, filter).map_err(failed("TCP", "SO_ATTACH_FILTER")),
        // What the lock could not replace is the program's own.
        _ => Ok(()),
    }
}

/// Frees a socket that a lock was left on by a program of ours that died. Returns whether there was one. The program's own
/// filter, if it had one, is lost.
pub fn free_leftover(fd: BorrowedFd<'_>) -> Result<bool> {
    let ours = matches!(socket::filter(fd), Ok(own) if is_ours(&own));
    if ours {
        if tcp_repair::is_on(fd).unwrap_or(false) {
            tcp_repair::leave(fd, true).map_err(failed("TCP", "TCP_REPAIR"))?;
        }
        open_ears(fd)?;
    }
    Ok(ours)
}
