//! fcntl(2), F_GETFL, F_SETFL, F_GETOWN_EX, F_GETSIG, F_GETPIPE_SZ: attributes of open file descriptions.

use super::{Result, check};
use std::os::fd::{AsFd, AsRawFd};

/// `F_SETSIG`.
pub const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
/// `F_SETOWN_EX` (Linux 2.6.32).
pub const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
/// `F_GETOWNER_UIDS` (Linux 3.7 with CONFIG_CHECKPOINT_RESTORE).
const F_GETOWNER_UIDS: i32 = 17;

/// `struct f_owner_ex`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// `F_OWNER_TID` = 0, `F_OWNER_PID` = 1, `F_OWNER_PGRP` = 2.
    pub kind: i32,
    /// The id as the caller sees it; 0 = nobody, or not visible.
    pub id: i32,
}

/// Flags of the description (`O_*`).
pub fn flags(fd: impl AsFd) -> Result<u32> {
    // SAFETY: integers only.
    let flags = check(i64::from(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETFL) }))?;
    Ok(flags as u32)
}

/// Sets the flags that can be set (`O_APPEND O_ASYNC O_DIRECT O_NOATIME O_NONBLOCK`); others are ignored by the kernel.
pub fn set_flags(fd: impl AsFd, flags: u32) -> Result<()> {
    // SAFETY: integers only.
    check(i64::from(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFL, flags) })).map(drop)
}

/// Who gets the signals of the description (`F_GETOWN_EX`, Linux 2.6.32).
pub fn owner(fd: impl AsFd) -> Result<Owner> {
    let mut owner = Owner::default();
    // SAFETY: F_GETOWN_EX writes one `struct f_owner_ex`, whose layout `Owner` has.
    check(i64::from(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_GETOWN_EX, &raw mut owner) }))?;
    Ok(owner)
}

/// Real and effective user of whoever set the owner. `EINVAL` on kernels without CONFIG_CHECKPOINT_RESTORE.
pub fn owner_uids(fd: impl AsFd) -> Result<[u32; 2]> {
    let mut uids = [0u32; 2];
    // SAFETY: F_GETOWNER_UIDS writes two uid_t.
    check(i64::from(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_GETOWNER_UIDS, uids.as_mut_ptr()) }))?;
    Ok(uids)
}

/// The signal sent to the owner (`F_GETSIG`); 0 = SIGIO.
pub fn signal(fd: impl AsFd) -> Result<i32> {
    // SAFETY: integers only.
    let signal = check(i64::from(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_GETSIG) }))?;
    Ok(signal as i32)
}

/// Capacity of a pipe, bytes.
pub fn pipe_size(fd: impl AsFd) -> Result<u32> {
    // SAFETY: integers only.
    let size = check(i64::from(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETPIPE_SZ) }))?;
    Ok(size as u32)
}

/// Sets the capacity of a pipe; the kernel rounds up to a power of two of pages. `EPERM` above fs.pipe-max-size without
/// CAP_SYS_RESOURCE, `EBUSY` if more is in it.
pub fn set_pipe_size(fd: impl AsFd, size: u32) -> Result<()> {
    // SAFETY: integers only.
    check(i64::from(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETPIPE_SZ, size) })).map(drop)
}

/// Adds seals to a memfd (`F_ADD_SEALS`).
pub fn add_seals(fd: impl AsFd, seals: u32) -> Result<()> {
    // SAFETY: integers only.
    check(i64::from(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_ADD_SEALS, seals) })).map(drop)
}

/// A duplicate of a descriptor that somebody else keeps, known by its number only, close-on-exec. `EBADF`: not open.
pub fn duplicate(fd: std::os::fd::RawFd) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: integers only.
    let new = check(i64::from(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) }))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(new as i32) })
}
