//! flistxattr(2), fgetxattr(2), fsetxattr(2), fremovexattr(2): extended attributes of an open file.

use super::{Errno, Result, check};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

/// Longest list of names and longest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX: usize = 65536;

/// All attributes with their values; empty where the file system has none.
pub fn all(fd: impl AsFd) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let fd = fd.as_fd().as_raw_fd();
    let mut names = vec![0u8; MAX];
    // SAFETY: the kernel writes at most the length that is passed.
    let len = match check(unsafe { libc::flistxattr(fd, names.as_mut_ptr().cast(), names.len()) } as i64) {
        Ok(len) => len as usize,
        Err(Errno::EOPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    names.truncate(len);
    let mut value = vec![0u8; if names.is_empty() { 0 } else { MAX }];
    let mut found = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).expect("split at NULs");
        // SAFETY: the name is NUL-terminated; the kernel writes at most the length that is passed.
        let len = unsafe { libc::fgetxattr(fd, c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match check(len as i64) {
            Ok(len) => found.push((name.to_vec(), value[..len as usize].to_vec())),
            // Gone meanwhile, or readable only by its owner's security module.
            Err(Errno::ENODATA | Errno::EPERM | Errno::EACCES) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Sets one attribute.
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8]) -> Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the name is NUL-terminated, the value as long as is said.
    let ret = unsafe { libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    check(i64::from(ret)).map(drop)
}

/// Removes one attribute; no harm if it is gone.
pub fn remove(fd: impl AsFd, name: &[u8]) -> Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the name is NUL-terminated.
    let ret = unsafe { libc::fremovexattr(fd.as_fd().as_raw_fd(), name.as_ptr()) };
    match check(i64::from(ret)) {
        Ok(_) | Err(Errno::ENODATA) => Ok(()),
        Err(e) => Err(e),
    }
}
