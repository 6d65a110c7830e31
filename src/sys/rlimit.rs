//! prlimit(2).

use super::{Errno, Result};
use crate::image::Pid;

/// Sets a limit of a process by number; `u64::MAX` = unlimited. Raising a hard limit needs CAP_SYS_RESOURCE.
pub fn set(pid: Pid, number: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a valid rlimit64; the old one is not asked for.
    let ret = unsafe { libc::prlimit64(pid.0, number, &limit, std::ptr::null_mut()) };
    if ret == -1 { Err(Errno::last()) } else { Ok(()) }
}
