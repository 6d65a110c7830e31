//! eventfd(2).

use super::{Result, check};
use std::os::fd::{FromRawFd, OwnedFd};

/// An event counter of 0, close-on-exec. `flags`: `EFD_NONBLOCK`, `EFD_SEMAPHORE`.
pub fn eventfd(flags: i32) -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = check(i64::from(unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC) }))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
