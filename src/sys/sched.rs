//! sched_setattr(2), sched_setaffinity(2), ioprio_set(2), get_robust_list(2): of another thread, from outside.

use super::abi::SchedAttr;
use super::{Result, check};
use crate::image::Pid;

/// sched_getattr(2), Linux 3.14.
pub fn attributes(tid: Pid) -> Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: `attr` has room for the `size` bytes that the kernel may write.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid.0, &raw mut attr, size, 0) })?;
    Ok(attr)
}

/// sched_setattr(2).
pub fn set_attributes(tid: Pid, attr: &SchedAttr) -> Result<()> {
    // SAFETY: the kernel reads `attr.size` bytes, which is the size of the struct.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, tid.0, &raw const *attr, 0) }).map(drop)
}

/// Processors the thread may run on, one bit each.
pub fn affinity(tid: Pid) -> Result<Vec<u8>> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: `mask` has room for the length given.
    let n = check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid.0, mask.len(), mask.as_mut_ptr()) })?;
    mask.truncate(n as usize);
    while mask.len() > 1 && mask.last() == Some(&0) {
        mask.pop();
    }
    Ok(mask)
}

/// sched_setaffinity(2).
pub fn set_affinity(tid: Pid, mask: &[u8]) -> Result<()> {
    let mut padded = mask.to_vec();
    padded.resize(mask.len().next_multiple_of(8), 0);
    // SAFETY: the kernel reads the length given.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid.0, padded.len(), padded.as_ptr()) }).map(drop)
}

/// ioprio_get(2) of one thread.
pub fn io_priority(tid: Pid) -> Result<i32> {
    // SAFETY: integers only; 1 = IOPRIO_WHO_PROCESS.
    check(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, tid.0) }).map(|v| v as i32)
}

/// ioprio_set(2) of one thread.
pub fn set_io_priority(tid: Pid, value: i32) -> Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, tid.0, value) }).map(drop)
}

/// get_robust_list(2): head address and length.
pub fn robust_list(tid: Pid) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both places are valid for 8 bytes.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid.0, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}
