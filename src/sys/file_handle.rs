//! open_by_handle_at(2), name_to_handle_at(2): files by what their file system calls them.

use super::{Errno, Result, check};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `MAX_HANDLE_SZ`.
const MAX: usize = 128;

/// `struct file_handle` with room for every handle.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; MAX],
}

/// Opens a file by its handle; `mount` is any descriptor on the same file system. Needs CAP_DAC_READ_SEARCH. `ESTALE`: it
/// does not exist any more.
pub fn open(mount: impl AsFd, kind: i32, data: &[u8], flags: i32) -> Result<OwnedFd> {
    let mut handle = Handle { bytes: data.len() as u32, kind, data: [0; MAX] };
    handle.data.get_mut(..data.len()).ok_or(Errno::EINVAL)?.copy_from_slice(data);
    // SAFETY: the kernel reads the header and as many bytes as it says, which fit.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_fd().as_raw_fd(), &raw mut handle, flags | libc::O_CLOEXEC)
    })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Type and bytes of the handle of an open file. `EOPNOTSUPP`: the file system has none.
pub fn of(file: impl AsFd) -> Result<(i32, Vec<u8>)> {
    let mut handle = Handle { bytes: MAX as u32, kind: 0, data: [0; MAX] };
    let mut mount = 0i32;
    // SAFETY: the empty path is NUL-terminated; the kernel writes at most MAX bytes of handle and one mount id.
    check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    })?;
    Ok((handle.kind, handle.data[..handle.bytes as usize].to_vec()))
}
