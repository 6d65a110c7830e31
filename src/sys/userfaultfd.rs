//! userfaultfd(2), ioctl_userfaultfd(2), as far as dirty tracking needs it.
//!
//! All operations act on the address space of whoever made the descriptor, also when another process calls them.

use super::{Result, check};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `UFFD_FEATURE_*`.
pub mod feature {
    /// Faults of shared memory and hugetlb (4.11).
    pub const MISSING_SHMEM: u64 = 1 << 5;
    /// Minor faults of shared memory (5.14).
    pub const MINOR_SHMEM: u64 = 1 << 10;
    /// Write protection of hugetlb and shared memory (5.19).
    pub const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// Write protection of pages that are not there yet (6.4).
    pub const WP_UNPOPULATED: u64 = 1 << 13;
    /// `UFFDIO_POISON` (6.6).
    pub const POISON: u64 = 1 << 14;
    /// Asynchronous write protection (6.7).
    pub const WP_ASYNC: u64 = 1 << 15;
    /// `UFFDIO_MOVE` (6.8).
    pub const MOVE: u64 = 1 << 16;
}

/// `UFFDIO_REGISTER_MODE_*`.
pub mod mode {
    /// Missing pages.
    pub const MISSING: u64 = 1;
    /// Write protection.
    pub const WP: u64 = 2;
    /// Minor faults.
    pub const MINOR: u64 = 4;
}

/// `UFFD_USER_MODE_ONLY` (5.11): any user may make one, but faults of the kernel itself are not handled.
pub const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;

/// A new descriptor (non-blocking, close-on-exec). With `user_mode_only` (5.11) faults of the kernel are not handled, which
/// asynchronous write protection does not need; without it `EPERM` for users where `vm.unprivileged_userfaultfd` is 0.
pub fn open(user_mode_only: bool) -> Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | if user_mode_only { UFFD_USER_MODE_ONLY } else { 0 };
    // SAFETY: integers only.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// `UFFDIO_API`, once for a descriptor: asks for exactly these features and returns all that the kernel has. `EINVAL` for
/// one it lacks. With 0 it is a question only.
pub fn handshake(fd: BorrowedFd<'_>, features: u64) -> Result<u64> {
    // A fresh struct for each call: the kernel writes all it has into `features`.
    let mut api = [UFFD_API, features, 0];
    // SAFETY: `api` has the layout and size of struct uffdio_api.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) }.into())?;
    Ok(api[1])
}

/// `UFFDIO_REGISTER` of `[start, start + len)` with [`mode`] bits. `EBUSY`: another userfaultfd has it; `EINVAL`: a mapping
/// of a kind that cannot be registered; `EPERM`: a shared mapping of a file that is open for reading only; `ENOMEM`: the
/// address space is gone (exec).
pub fn register(fd: BorrowedFd<'_>, start: u64, len: u64, mode: u64) -> Result<()> {
    let mut arg = [start, len, mode, 0];
    // SAFETY: `arg` has the layout and size of struct uffdio_register.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, arg.as_mut_ptr()) }.into()).map(drop)
}

/// `UFFDIO_UNREGISTER`. Costs 43 ms/GiB of 4 KiB pages that are still protected, with the address space locked.
pub fn unregister(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<()> {
    let mut range = [start, len];
    // SAFETY: `range` has the layout and size of struct uffdio_range.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_UNREGISTER, range.as_mut_ptr()) }.into()).map(drop)
}

/// `UFFDIO_COPY`: makes pages at `to` that are not there yet, with this content (a whole number of pages). Gives the bytes
/// that were copied, all of them where it succeeds. `EEXIST`: the next page is there; `EAGAIN`: once more with the rest.
pub fn copy(fd: BorrowedFd<'_>, to: u64, data: &[u8]) -> (usize, Result<()>) {
    let mut arg = [to, data.as_ptr() as u64, data.len() as u64, 0, 0];
    // SAFETY: `arg` has the layout and size of struct uffdio_copy; `data` is only read, for the length given.
    let result = check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_COPY, arg.as_mut_ptr()) }.into()).map(drop);
    // The last field is the number of bytes, or an error once more.
    (usize::try_from(arg[4] as i64).unwrap_or(0), result)
}

/// `UFFDIO_WRITEPROTECT`: protects, or lifts the protection. `PAGEMAP_SCAN` protects three times as fast where the mode is
/// asynchronous.
pub fn write_protect(fd: BorrowedFd<'_>, start: u64, len: u64, on: bool) -> Result<()> {
    let mut arg = [start, len, u64::from(on)];
    // SAFETY: `arg` has the layout and size of struct uffdio_writeprotect.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_WRITEPROTECT, arg.as_mut_ptr()) }.into()).map(drop)
}
