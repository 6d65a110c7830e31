//! pipe(2), tee(2) and the ioctl FIONREAD of pipes, sockets and inotify descriptors.

use super::{Result, check};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// pipe2(2): the reading and the writing end, close-on-exec. `flags`: `O_NONBLOCK`, `O_DIRECT`.
pub fn pipe(flags: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the kernel writes two descriptors.
    check(i64::from(unsafe { libc::pipe2(fds.as_mut_ptr(), flags | libc::O_CLOEXEC) }))?;
    // SAFETY: the kernel has just given us these descriptors.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// tee(2): has the second pipe show what the first holds, without taking it out. Never blocks. Returns bytes.
pub fn tee(from: impl AsFd, to: impl AsFd, len: usize) -> Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: integers only.
    let n = check(unsafe { libc::tee(from, to, len, libc::SPLICE_F_NONBLOCK) } as i64)?;
    Ok(n as usize)
}

/// Bytes that could be read now (`FIONREAD`).
pub fn readable(fd: impl AsFd) -> Result<u32> {
    let mut n = 0i32;
    // SAFETY: FIONREAD writes one int.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut n) }))?;
    Ok(n as u32)
}
