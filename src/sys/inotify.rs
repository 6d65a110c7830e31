//! inotify(7).

use super::{Result, check};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// An inotify instance without watches, close-on-exec. `flags`: `IN_NONBLOCK`.
pub fn create(flags: i32) -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = check(i64::from(unsafe { libc::inotify_init1(flags | libc::IN_CLOEXEC) }))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Has the next watch get this number (`INOTIFY_IOC_SETNEXTWD`, Linux 4.18 with CONFIG_CHECKPOINT_RESTORE).
pub fn set_next_watch(fd: impl AsFd, wd: i32) -> Result<()> {
    const INOTIFY_IOC_SETNEXTWD: u64 = 0x4004_4900;
    // SAFETY: integers only: the argument is the number itself.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), INOTIFY_IOC_SETNEXTWD, wd as libc::c_long) }))
        .map(drop)
}

/// Adds a watch of the file behind `path`; its number.
pub fn add_watch(fd: impl AsFd, path: &std::ffi::CStr, mask: u32) -> Result<i32> {
    // SAFETY: `path` is a NUL-terminated string.
    let wd = check(i64::from(unsafe { libc::inotify_add_watch(fd.as_fd().as_raw_fd(), path.as_ptr(), mask) }))?;
    Ok(wd as i32)
}
