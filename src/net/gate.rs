//! Lets the queues of listening sockets run empty before their program is stopped: a connection that waits to be accepted
//! belongs to no descriptor, so nobody can read it. New requests are dropped (a [`super::capture`] keeps them), those begun
//! go on, and the program, which still runs, accepts them.

use super::filter::NO_SYNS;
use super::flows::Flows;
use crate::image::Pid;
use crate::proc::ProcDir;
use crate::proc::net::inet::Inet;
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use crate::sys::{socket, tcp_repair};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// `TCP_SYN_RECV`, `TCP_LISTEN`.
const HALF_BEGUN: u8 = 3;
const LISTEN: u8 = 10;

/// TCP sockets of a tree that runs, seen in passing.
#[derive(Debug, Default)]
pub struct Seen {
    /// All of them.
    pub flows: Flows,
    /// Duplicates of those that listen.
    pub listeners: Vec<OwnedFd>,
    ports: BTreeSet<u16>,
}

/// Looks at the TCP sockets of these processes that are in this thread's network namespace. What cannot be read is passed
/// over.
pub fn look(pids: &[Pid]) -> Seen {
    let mut seen = Seen::default();
    let mut buf = Vec::new();
    let mut known: HashMap<u64, Inet> = sockets_here(&mut buf).map(|socket| (socket.inode, socket)).collect();
    for pid in pids {
        let Ok(dir) = ProcDir::open(*pid) else { continue };
        for fd in dir.fds().unwrap_or_default() {
            let Ok(stat) = dir.stat_of(&format!("fd/{fd}")) else { continue };
            let Some(socket) = known.remove(&stat.st_ino).filter(|_| is_socket(&stat)) else { continue };
            if socket.state != LISTEN {
                seen.flows.connected(socket.local, socket.remote);
                continue;
            }
            seen.flows.listen(socket.local);
            seen.ports.insert(socket.local.port());
            seen.listeners.extend(pidfd_open(*pid).and_then(|pidfd| pidfd_getfd(pidfd.as_fd(), fd)).ok());
        }
    }
    seen
}

fn is_socket(stat: &nix::sys::stat::FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
}

fn sockets_here(buf: &mut Vec<u8>) -> impl Iterator<Item = Inet> {
    let dir = ProcDir::of_this_thread();
    let mut all = Vec::new();
    for file in ["tcp", "tcp6"] {
        all.extend(dir.as_ref().ok().and_then(|dir| dir.net_inet(file, buf).ok()).unwrap_or_default());
    }
    all.into_iter()
}

/// Listening sockets that let nobody begin a connection. Dropping it opens them, unless a lock has taken its place.
#[derive(Debug)]
pub struct Gate {
    listeners: Vec<OwnedFd>,
    ports: BTreeSet<u16>,
}

impl Gate {
    /// Closes it. A socket with a filter of its own stays open.
    pub fn close(seen: &Seen) -> Self {
        let mut listeners = Vec::new();
        for listener in &seen.listeners {
            let unfiltered = socket::filter(listener.as_fd()).is_ok_and(|own| own.is_empty());
            if unfiltered
                && socket::attach_filter(listener.as_fd(), &NO_SYNS).is_ok()
                && let Ok(listener) = listener.try_clone()
            {
                listeners.push(listener);
            }
        }
        Self { listeners, ports: seen.ports.clone() }
    }

    /// Until every connection that was begun is accepted, or the time is over, or nobody accepts any.
    pub fn wait_until_drained(&self, limit: Duration) {
        const STEP: Duration = Duration::from_micros(200);
        /// A program that takes none in so long is busy with something else.
        const NONE_ACCEPTED: Duration = Duration::from_millis(50);
        let until = Instant::now() + limit;
        let (mut last, mut since) = (u32::MAX, Instant::now());
        let mut buf = Vec::new();
        while Instant::now() < until {
            let waiting = self.waiting();
            if waiting == 0 && self.half_begun(&mut buf) == 0 {
                return;
            }
            if waiting < last || waiting == 0 {
                (last, since) = (waiting, Instant::now());
            } else if since.elapsed() > NONE_ACCEPTED {
                break;
            }
            std::thread::sleep(if waiting == 0 { 5 * STEP } else { STEP });
        }
        tracing::debug!(waiting = self.waiting(), "connections still wait to be accepted");
    }

    /// Connections that wait to be accepted.
    fn waiting(&self) -> u32 {
        let infos = self.listeners.iter().filter_map(|listener| tcp_repair::info(listener.as_fd()).ok());
        infos.filter(|info| info.state == LISTEN).map(|info| info.unacked).sum()
    }

    /// Connections whose requests were answered, and whose answer has not been acknowledged.
    fn half_begun(&self, buf: &mut Vec<u8>) -> usize {
        let ours = |socket: &Inet| socket.state == HALF_BEGUN && self.ports.contains(&socket.local.port());
        if self.listeners.is_empty() { 0 } else { sockets_here(buf).filter(ours).count() }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.listeners.iter().for_each(|listener| open(listener.as_fd()));
    }
}

/// Opens a listening socket that a gate has closed, unless a lock has taken its place.
pub fn open(listener: BorrowedFd<'_>) {
    if socket::filter(listener).is_ok_and(|filter| filter == NO_SYNS)
        && let Err(errno) = socket::detach_filter(listener)
    {
        tracing::error!("a listening TCP socket takes no connections any more: {errno}");
    }
}
