//! userfaultfd(2), ioctl_userfaultfd(2), as far as dirty tracking needs it.
//!
//! All operations act on the address space of whoever made the descriptor, also when another process calls them.

use super::{Errno, Result, check};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `UFFD_FEATURE_*`.
pub mod feature {
    /// Write protection (5.7).
    pub const PAGEFAULT_FLAG_WP: u64 = 1;
    /// Tells of forks, and hands over a descriptor for the child (4.11). Needs `CAP_SYS_PTRACE` at the handshake.
    pub const EVENT_FORK: u64 = 1 << 1;
    /// Tells of mremap(2) (4.11).
    pub const EVENT_REMAP: u64 = 1 << 2;
    /// Tells of `MADV_DONTNEED`, `MADV_FREE` and `MADV_REMOVE` (4.11).
    pub const EVENT_REMOVE: u64 = 1 << 3;
    /// Tells of munmap(2) (4.11).
    pub const EVENT_UNMAP: u64 = 1 << 6;
    /// A fault names its thread (4.14).
    pub const THREAD_ID: u64 = 1 << 8;
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
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const UFFDIO_POISON: libc::c_ulong = 0xc020_aa08;

/// What a descriptor tells.
#[derive(Debug)]
pub enum Message {
    /// Somebody needs a page that is not there.
    Fault {
        /// Where.
        address: u64,
        /// The thread, as it sees itself; 0 without [`feature::THREAD_ID`].
        thread: u32,
    },
    /// A child has come into being, with the same mappings registered.
    Fork(OwnedFd),
    /// A range is somewhere else now.
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// Its length, bytes.
        len: u64,
    },
    /// Contents of a range are being dropped.
    Remove {
        /// First address.
        start: u64,
        /// First address past the end.
        end: u64,
    },
    /// A range is gone.
    Unmap {
        /// First address.
        start: u64,
        /// First address past the end.
        end: u64,
    },
}

/// Bytes of `struct uffd_msg`.
const MESSAGE: usize = 32;
/// Messages read in one go.
const MESSAGES: usize = 32;

/// Reads what a descriptor has to tell now; nothing, if there is nothing. Faults come before events, also before those that
/// happened earlier. Whoever has caused an event waits until it is read.
pub fn messages(fd: BorrowedFd<'_>) -> Result<Vec<Message>> {
    first_messages(fd, MESSAGES)
}

/// The same, at most so many of them.
pub fn first_messages(fd: BorrowedFd<'_>, most: usize) -> Result<Vec<Message>> {
    let mut buf = [0u8; MESSAGE * MESSAGES];
    let length = match nix::unistd::read(fd, &mut buf[..MESSAGE * most.min(MESSAGES)]) {
        Ok(length) => length,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    Ok(buf[..length].chunks_exact(MESSAGE).filter_map(message).collect())
}

/// `struct uffd_msg`: the kind in the first byte, arguments from the eighth on.
fn message(bytes: &[u8]) -> Option<Message> {
    let word = |n: usize| u64::from_ne_bytes(bytes[8 + 8 * n..][..8].try_into().expect("8 bytes"));
    let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    match bytes[0] {
        0x12 => Some(Message::Fault { address: word(1), thread: half(24) }),
        // SAFETY: the kernel has made this descriptor for us as we read the message, which nobody else reads.
        0x13 => Some(Message::Fork(unsafe { OwnedFd::from_raw_fd(half(8) as RawFd) })),
        0x14 => Some(Message::Remap { from: word(0), to: word(1), len: word(2) }),
        0x15 => Some(Message::Remove { start: word(0), end: word(1) }),
        0x16 => Some(Message::Unmap { start: word(0), end: word(1) }),
        _ => None,
    }
}

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

/// `UFFDIO_UNREGISTER`. At the end of write protection it costs 25 ms for each GiB of 4 KiB pages that are there, with the
/// address space locked, and splits a mapping of which it gets a part only: see [`crate::memory::unprotect`].
pub fn unregister(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<()> {
    let mut range = [start, len];
    // SAFETY: `range` has the layout and size of struct uffdio_range.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_UNREGISTER, range.as_mut_ptr()) }.into()).map(drop)
}

/// Is the address space gone: has its last process ended, or does it execute another program?
pub fn is_gone(fd: BorrowedFd<'_>) -> bool {
    // Above all that is ever registered, so that this makes nothing: `ENOENT` if there is an address space.
    const LAST_PAGE: u64 = 0x7fff_ffff_e000;
    zero(fd, LAST_PAGE, 4096) == Err(Errno::ESRCH)
}

/// `UFFDIO_COPY`: makes pages at `to` that are not there yet, with this content (a whole number of pages). Gives the bytes
/// that were copied, all of them where it succeeds. `EEXIST`: the next page is there; `EAGAIN`: once more with the rest.
pub fn copy(fd: BorrowedFd<'_>, to: u64, data: &[u8]) -> (usize, Result<()>) {
    copy_as(fd, to, data, 0)
}

/// The same with pages that are write-protected (5.7), in a range that is registered with [`mode::WP`]: they count as written
/// to from the first write on.
pub fn copy_protected(fd: BorrowedFd<'_>, to: u64, data: &[u8]) -> (usize, Result<()>) {
    const UFFDIO_COPY_MODE_WP: u64 = 2;
    copy_as(fd, to, data, UFFDIO_COPY_MODE_WP)
}

fn copy_as(fd: BorrowedFd<'_>, to: u64, data: &[u8], mode: u64) -> (usize, Result<()>) {
    let mut arg = [to, data.as_ptr() as u64, data.len() as u64, mode, 0];
    // SAFETY: `arg` has the layout and size of struct uffdio_copy; `data` is only read, for the length given.
    let result = check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_COPY, arg.as_mut_ptr()) }.into()).map(drop);
    // The last field is the number of bytes, or an error once more.
    (usize::try_from(arg[4] as i64).unwrap_or(0), result)
}

/// `UFFDIO_ZEROPAGE`: makes pages of zeros that are not there yet (not of huge pages). Errors as those of [`copy`].
pub fn zero(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<()> {
    let mut arg = [start, len, 0, 0];
    // SAFETY: `arg` has the layout and size of struct uffdio_zeropage.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_ZEROPAGE, arg.as_mut_ptr()) }.into()).map(drop)
}

/// `UFFDIO_WAKE`: whoever waits for a page of this range looks again.
pub fn wake(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<()> {
    let mut range = [start, len];
    // SAFETY: `range` has the layout and size of struct uffdio_range.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_WAKE, range.as_mut_ptr()) }.into()).map(drop)
}

/// `UFFDIO_POISON` (6.6): pages that are not there give SIGBUS from now on, also when the descriptor is closed. Gives the
/// bytes that were marked. `EEXIST`: the next page is there.
pub fn poison(fd: BorrowedFd<'_>, start: u64, len: u64) -> (usize, Result<()>) {
    let mut arg = [start, len, 0, 0];
    // SAFETY: `arg` has the layout and size of struct uffdio_poison.
    let result = check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_POISON, arg.as_mut_ptr()) }.into()).map(drop);
    // The last field is the number of bytes, or an error once more.
    (usize::try_from(arg[3] as i64).unwrap_or(0), result)
}

/// `UFFDIO_WRITEPROTECT`: protects, or lifts the protection. `PAGEMAP_SCAN` protects three times as fast where the mode is
/// asynchronous.
pub fn write_protect(fd: BorrowedFd<'_>, start: u64, len: u64, on: bool) -> Result<()> {
    let mut arg = [start, len, u64::from(on)];
    // SAFETY: `arg` has the layout and size of struct uffdio_writeprotect.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_WRITEPROTECT, arg.as_mut_ptr()) }.into()).map(drop)
}
