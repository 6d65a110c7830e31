//! process_vm_readv(2), process_vm_writev(2): memory of another process. Up to 1024 pieces a call.

use super::{Errno, Result};
use crate::image::Pid;

/// Most pieces in one call (`IOV_MAX`).
pub const PIECES_MAX: usize = 1024;

/// Reads `buf.len()` bytes at `addr`; the number read may be smaller where an unreadable page follows.
pub fn read(pid: Pid, addr: u64, buf: &mut [u8]) -> Result<usize> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: buf.len() };
    // SAFETY: `local` describes `buf`; the remote address is only followed in the other process.
    let n = unsafe { libc::process_vm_readv(pid.0, &local, 1, &remote, 1, 0) };
    if n < 0 { Err(Errno::last()) } else { Ok(n as usize) }
}

/// Writes `buf` at `addr`; the number written may be smaller.
pub fn write(pid: Pid, addr: u64, buf: &[u8]) -> Result<usize> {
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: buf.len() };
    // SAFETY: `local` describes `buf`, which is only read; the remote address is only followed in the other process.
    let n = unsafe { libc::process_vm_writev(pid.0, &local, 1, &remote, 1, 0) };
    if n < 0 { Err(Errno::last()) } else { Ok(n as usize) }
}

/// Reads several remote pieces (address, length) one after the other into `buf`.
pub fn read_pieces(pid: Pid, pieces: &[(u64, usize)], buf: &mut [u8]) -> Result<usize> {
    debug_assert!(pieces.len() <= PIECES_MAX && pieces.iter().map(|p| p.1).sum::<usize>() <= buf.len());
    let remote: Vec<libc::iovec> =
        pieces.iter().map(|&(a, n)| libc::iovec { iov_base: a as *mut libc::c_void, iov_len: n }).collect();
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `local` describes `buf`; remote addresses are only followed in the other process.
    let n = unsafe { libc::process_vm_readv(pid.0, &local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    if n < 0 { Err(Errno::last()) } else { Ok(n as usize) }
}

/// Writes `buf` to several remote pieces (address, length), one after the other.
pub fn write_pieces(pid: Pid, pieces: &[(u64, usize)], buf: &[u8]) -> Result<usize> {
    debug_assert!(pieces.len() <= PIECES_MAX);
    let remote: Vec<libc::iovec> =
        pieces.iter().map(|&(a, n)| libc::iovec { iov_base: a as *mut libc::c_void, iov_len: n }).collect();
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    // SAFETY: `local` describes `buf`, which is only read; remote addresses are only followed in the other process.
    let n = unsafe { libc::process_vm_writev(pid.0, &local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    if n < 0 { Err(Errno::last()) } else { Ok(n as usize) }
}

/// madvise(2) of addresses that nobody can have mapped: tells whether the kernel knows the advice (`ENOMEM`) or not
/// (`EINVAL`), and changes nothing.
pub fn advise_nowhere(advice: i32) -> Errno {
    // The last page of the lower half is never mapped: the kernel keeps it free.
    const NOWHERE: u64 = (1 << 47) - 4096;
    // SAFETY: no mapping can be there, so nothing is changed.
    match unsafe { libc::madvise(NOWHERE as *mut libc::c_void, 4096, advice) } {
        0 => Errno::UnknownErrno,
        _ => Errno::last(),
    }
}
