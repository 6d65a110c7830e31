//! memfd_create(2), mmap(2) of shared memory: objects that skeletons inherit.

use super::{Errno, Result, check};
use std::ffi::CString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// memfd_create(2) with sealing allowed; `huge_page` bytes for hugetlbfs, 0 for ordinary pages.
pub fn memfd(name: &[u8], huge_page: u64) -> Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    if huge_page != 0 {
        flags |= libc::MFD_HUGETLB | huge_page.trailing_zeros() << 26;
    }
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Shared anonymous memory as mmap(2) makes it, as a descriptor (through /proc/self/map_files, which needs
/// CAP_CHECKPOINT_RESTORE): mappings of it look like the original ones.
pub fn shared_anonymous(size: u64, huge_page: u64) -> Result<OwnedFd> {
    let mut flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    if huge_page != 0 {
        flags |= libc::MAP_HUGETLB | (huge_page.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT;
    }
    let len = size.next_multiple_of(huge_page.max(4096)) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let start = at as usize;
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start + len);
    let opened = nix::fcntl::open(
        path.as_str(),
        nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    );
    // SAFETY: unmaps exactly what was mapped above; the descriptor keeps the object.
    unsafe { libc::munmap(at, len) };
    opened
}
