//! ioctl_nsfs(2): how namespaces belong together (Linux 4.9).

use super::{Result, check};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const NS_GET_USERNS: libc::c_ulong = 0xb701;
const NS_GET_PARENT: libc::c_ulong = 0xb702;
const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;

fn related(ns: impl AsFd, request: libc::c_ulong) -> Result<OwnedFd> {
    // SAFETY: these requests have no argument.
    let fd = check(i64::from(unsafe { libc::ioctl(ns.as_fd().as_raw_fd(), request) }))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The user namespace that owns a namespace. `EPERM`: it is not below ours.
pub fn owner(ns: impl AsFd) -> Result<OwnedFd> {
    related(ns, NS_GET_USERNS)
}

/// The next user or PID namespace out. `EPERM`: there is none, or it is not below ours.
pub fn parent(ns: impl AsFd) -> Result<OwnedFd> {
    related(ns, NS_GET_PARENT)
}

/// User that made a user namespace, as we see it.
pub fn owner_uid(ns: impl AsFd) -> Result<u32> {
    let mut uid = 0u32;
    // SAFETY: the kernel writes one uid.
    check(i64::from(unsafe { libc::ioctl(ns.as_fd().as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) }))?;
    Ok(uid)
}
