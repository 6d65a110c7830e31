//! Calls on sockets with a time-out (`SO_RCVTIMEO`, `SO_SNDTIMEO`), which has no place in their arguments.
//!
//! The call reads the option as it begins, and not again. So the socket gets what is left just before the thread goes on,
//! and its own value back once the thread is asleep in the call, while every other task of the tree is still stopped. If
//! we are killed in these microseconds the socket keeps the shorter time-out: the one thing that could be left behind.

use super::Result;
use super::remote::Remote;
use crate::arch::restart;
use crate::image::Pid;
use crate::proc::ProcDir;
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use crate::sys::{pidfd, socket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// A thread that is let go is in its call again after this long at most: generous, for a busy machine.
const RESUMES: Duration = Duration::from_millis(20);
const NS_PER_US: u64 = 1000;

/// The time-out of the call that this thread is in, nanoseconds, if the call is one of a socket that has one.
pub fn limit(remote: &Remote) -> Option<u64> {
    let (fd, option) = restart::socket_option(&remote.saved)?;
    let value = get(&duplicate(remote.pid(), fd)?, option)?;
    (value != 0).then(|| value * NS_PER_US)
}

/// Releases a thread into its call, with this much time left.
///
/// # Errors
/// Those of `release`. Where the option cannot be changed the call begins with the whole time-out.
pub fn release(remote: Remote, left_ns: u64, release: impl FnOnce(Remote) -> Result<()>) -> Result<()> {
    let shortened = begin(remote, left_ns, release)?;
    shortened.into_iter().for_each(Shortened::end);
    Ok(())
}

/// A socket with the time-out that is left to one call.
#[derive(Debug)]
pub struct Shortened {
    tid: Pid,
    fd: OwnedFd,
    option: i32,
    own: u64,
}

impl Shortened {
    /// Gives the socket its own time-out back, once the thread is in its call again.
    pub fn end(self) {
        wait_until_asleep(self.tid);
        set(&self.fd, self.option, self.own);
    }
}

/// The first half of [`release`]: for a thread that goes on later, in a frozen cgroup.
///
/// # Errors
/// Those of `release`.
pub fn begin(remote: Remote, left_ns: u64, release: impl FnOnce(Remote) -> Result<()>) -> Result<Option<Shortened>> {
    let tid = remote.pid();
    let call = restart::socket_option(&remote.saved);
    let changed = call.and_then(|(fd, option)| {
        let fd = duplicate(tid, fd)?;
        let own = get(&fd, option)?;
        // Zero would mean for ever.
        set(&fd, option, left_ns.div_ceil(NS_PER_US).max(1)).then_some((fd, option, own))
    });
    if changed.is_none() {
        tracing::warn!("a wait of thread {tid} for a socket begins anew with its whole time-out");
    }
    let shortened = changed.map(|(fd, option, own)| Shortened { tid, fd, option, own });
    match release(remote) {
        Ok(()) => Ok(shortened),
        Err(error) => {
            if let Some(Shortened { fd, option, own, .. }) = shortened {
                set(&fd, option, own);
            }
            Err(error)
        }
    }
}

fn wait_until_asleep(tid: Pid) {
    let Ok(dir) = ProcDir::open(tid) else { return };
    let (mut buf, deadline) = (Vec::new(), Instant::now() + RESUMES);
    // `S`: in its call. Whoever is stopped, or has ended, does not get there.
    while dir.stat(&mut buf).is_ok_and(|stat| matches!(stat.state, b'R' | b't')) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn duplicate(tid: Pid, fd: u32) -> Option<OwnedFd> {
    let pidfd = pidfd_open(tid).or_else(|_| pidfd::open_thread(tid)).ok()?;
    pidfd_getfd(pidfd.as_fd(), fd).ok()
}

/// Microseconds; `None` for what is no socket.
fn get(fd: &OwnedFd, option: i32) -> Option<u64> {
    let mut time = [0u8; 16];
    let len = socket::option(fd.as_fd(), libc::SOL_SOCKET, option, &mut time).ok()?;
    let (seconds, micros) = time.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_ne_bytes);
    if len != time.len() {
        return None;
    }
    number(seconds)?.checked_mul(1_000_000)?.checked_add(number(micros)?)
}

fn set(fd: &OwnedFd, option: i32, micros: u64) -> bool {
    let [seconds, rest] = [micros / 1_000_000, micros % 1_000_000].map(u64::to_ne_bytes);
    socket::set_option(fd.as_fd(), libc::SOL_SOCKET, option, &[seconds, rest].concat()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_is_read_as_it_was_set() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        a.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        let fd = OwnedFd::from(a);
        assert_eq!(get(&fd, socket::SO_RCVTIMEO_NEW), Some(1_500_000));
        assert_eq!(get(&fd, socket::SO_SNDTIMEO_NEW), Some(0));
        assert!(set(&fd, socket::SO_SNDTIMEO_NEW, 2_000_000));
        assert_eq!(get(&fd, socket::SO_SNDTIMEO_NEW), Some(2_000_000));
        let (pipe, _) = std::io::pipe().unwrap();
        assert_eq!(get(&OwnedFd::from(pipe), socket::SO_RCVTIMEO_NEW), None);
    }
}
