//! epoll_create1(2), and kcmp(2) with KCMP_EPOLL_TFD: which file an epoll registration is about.

use super::{Errno, Result, check};
use crate::image::Pid;
use std::cmp::Ordering;
use std::os::fd::{FromRawFd, OwnedFd};

/// An empty epoll instance, close-on-exec.
pub fn create() -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = check(i64::from(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A registration of an epoll instance.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Descriptor of the epoll instance in its task.
    pub epoll: u32,
    /// Descriptor number that was registered.
    pub fd: u32,
    /// Position among registrations under the same number.
    pub nth: u32,
}

/// How descriptor `fd` of task `a` compares with the file that registration `slot` of task `b` is about (`KCMP_EPOLL_TFD`,
/// Linux 4.13). `ENOENT`: no such registration.
pub fn compare(a: Pid, fd: u32, b: Pid, slot: &Slot) -> Result<Ordering> {
    const KCMP_EPOLL_TFD: i32 = 7;
    // SAFETY: the kernel reads one `struct kcmp_epoll_slot`, whose layout `Slot` has.
    let order = check(unsafe {
        libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_EPOLL_TFD, u64::from(fd), std::ptr::from_ref(slot))
    })?;
    match order {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::ENOTSUP),
    }
}
