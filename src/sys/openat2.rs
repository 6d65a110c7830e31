//! openat2(2) (Linux 5.6), and open(2) of what a descriptor refers to.

use super::{Errno, Result, check};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `struct open_how`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// `RESOLVE_IN_ROOT`: `root` is what `/` and `..` at the top mean.
const RESOLVE_IN_ROOT: u64 = 0x10;
/// `RESOLVE_NO_SYMLINKS`, which includes the magic links of /proc.
const RESOLVE_NO_SYMLINKS: u64 = 0x04;

/// Opens `path` (absolute or relative, both from `root`) as a task with that root directory would, close-on-exec. The kernel
/// refuses flags it does not know, and a mode without `O_CREAT` or `O_TMPFILE`.
pub fn open_in_root(root: impl AsFd, path: &[u8], flags: u32, mode: u32) -> Result<OwnedFd> {
    open(root, path, flags, mode, RESOLVE_IN_ROOT)
}

/// The same, and any symbolic link on the way is ELOOP: for paths that somebody else has named.
pub fn open_plain(root: impl AsFd, path: &[u8], flags: u32, mode: u32) -> Result<OwnedFd> {
    open(root, path, flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
}

fn open(root: impl AsFd, path: &[u8], flags: u32, mode: u32, resolve: u64) -> Result<OwnedFd> {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    let how = OpenHow { flags: u64::from(flags) | libc::O_CLOEXEC as u64, mode: u64::from(mode), resolve };
    loop {
        // SAFETY: `path` is NUL-terminated, `how` has the size that is passed.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_fd().as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<OpenHow>(),
            )
        };
        match check(ret) {
            // SAFETY: the kernel has just given us this descriptor.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
            // EAGAIN: something was renamed on the way, and the kernel could not be sure to have stayed below the root.
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Opens what `fd` refers to once more (through `/proc/self/fd`), with flags of its own, close-on-exec: a new description.
pub fn reopen(fd: impl AsFd, flags: u32) -> Result<OwnedFd> {
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).expect("no NUL in digits");
    loop {
        // SAFETY: `path` is NUL-terminated.
        let ret = unsafe { libc::open(path.as_ptr(), flags as i32 | libc::O_CLOEXEC | libc::O_NOCTTY) };
        match check(i64::from(ret)) {
            // SAFETY: the kernel has just given us this descriptor.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}
