//! signalfd(2).

use super::{Result, check};
use std::os::fd::{FromRawFd, OwnedFd};

/// A descriptor that reads the signals of `mask` (bit n-1 for signal n) of whoever reads it, close-on-exec.
/// `flags`: `SFD_NONBLOCK`.
pub fn signalfd(mask: u64, flags: i32) -> Result<OwnedFd> {
    // SAFETY: the kernel reads 8 bytes of mask; -1 asks for a new descriptor.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags | libc::SFD_CLOEXEC)
    })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
