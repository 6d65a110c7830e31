//! setresuid(2), setresgid(2), unshare(2), chroot(2), setns(2) of the calling thread alone: for short-lived threads that make
//! sockets as somebody else, or in another place. The C library's functions of these names change all threads.

use super::{Result, check};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Gives the calling thread effective (and file system) ids. It keeps its capabilities.
pub fn act_as(uid: u32, gid: u32) -> Result<()> {
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) }.into())?;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, -1, gid, -1) })?;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) }).map(drop)
}

/// Flags by which the kernel treats user id 0 and capabilities of the calling thread (`PR_GET_SECUREBITS`).
pub fn securebits() -> Result<u32> {
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) }.into()).map(|bits| bits as u32)
}

/// Gives the calling thread a root, working directory and umask of its own.
pub fn own_fs() -> Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::unshare(libc::CLONE_FS) }.into()).map(drop)
}

/// Enters a mount namespace, after [`own_fs`].
pub fn enter_mnt(ns: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNS) }.into()).map(drop)
}

/// Makes a directory the root and the working directory of this thread, after [`own_fs`].
pub fn enter_root(dir: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::fchdir(dir.as_raw_fd()) }.into())?;
    // SAFETY: a NUL-terminated string.
    check(unsafe { libc::chroot(c".".as_ptr()) }.into()).map(drop)
}
