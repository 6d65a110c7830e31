//! Made inside the target, which is shown as the owner: flock(2), POSIX and OFD locks, leases.

use super::finish::Inside;
use crate::image::fd::lock::{Lease, Lock, LockKind};
use crate::sys::Errno;
use crate::sys::openat2::reopen;
use std::os::fd::BorrowedFd;

/// `F_SETLEASE`.
const F_SETLEASE: i32 = 1024;

/// Takes a lock through descriptor `fd`.
pub(crate) fn take(inside: &mut Inside, fd: u32, lock: &Lock) {
    let write = lock.mode == i32::from(libc::F_WRLCK as i16);
    if lock.kind == LockKind::Flock {
        let operation = if write { libc::LOCK_EX } else { libc::LOCK_SH } | libc::LOCK_NB;
        inside.must("a lock", libc::SYS_flock, &[fd.into(), operation.into()]);
        return;
    }
    let command = if lock.kind == LockKind::Ofd { libc::F_OFD_SETLK } else { libc::F_SETLK };
    // struct flock: type, whence, start, length, pid.
    let mut bytes = [0u8; 32];
    bytes[..2].copy_from_slice(&(lock.mode as i16).to_ne_bytes());
    bytes[8..16].copy_from_slice(&lock.start.to_ne_bytes());
    bytes[16..24].copy_from_slice(&lock.len.to_ne_bytes());
    let bytes = inside.batch.bytes(&bytes);
    inside.must("a lock", libc::SYS_fcntl, &[fd.into(), command.into(), bytes]);
}

/// Takes a lease.
pub(crate) fn lease(inside: &mut Inside, fd: u32, lease: Lease) {
    inside.must("a lease", libc::SYS_fcntl, &[fd.into(), F_SETLEASE.into(), lease.mode.into()]);
    if lease.breaks_to.is_some() {
        // Its holder has been told of the break, or will be by a signal that is pending; nobody is told again.
        inside.must("a lease", libc::SYS_fcntl, &[fd.into(), libc::F_SETOWN.into(), 0u64.into()]);
    }
}

/// Has a lease broken by opening the file in a way that is against it. Its holder's time (`/proc/sys/fs/lease-break-time`)
/// begins anew.
pub(crate) fn break_lease(file: BorrowedFd<'_>, to: i32) -> crate::sys::Result<()> {
    let how = if to == i32::from(libc::F_RDLCK as i16) { libc::O_RDONLY } else { libc::O_WRONLY };
    match reopen(file, (how | libc::O_NONBLOCK) as u32) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}
