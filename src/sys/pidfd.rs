//! pidfd_open(2) of a thread; process_mrelease(2).

use super::{Result, check};
use crate::image::Pid;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor of a thread that need not lead its group (`PIDFD_THREAD`, Linux 6.9), close-on-exec. `EINVAL` before.
pub fn open_thread(tid: Pid) -> Result<OwnedFd> {
    // PIDFD_THREAD has the value of O_EXCL.
    // SAFETY: integers only.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, tid.0, libc::O_EXCL) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Gives back the private memory of a process that has been killed, beside that process itself. Nothing to do (`ESRCH`), and not
/// dying (`EINVAL`), are errors, too.
pub fn release_memory(pidfd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: integers only; the memory is that of another process.
    check(unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd.as_raw_fd(), 0) }).map(drop)
}
