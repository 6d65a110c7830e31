//! prctl(2) and arch_prctl(2) of this process, where they answer whether the kernel has something.

use super::{Errno, Result, check};

const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP_SIZE: u64 = 15;
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const PR_TIMER_CREATE_RESTORE_IDS_GET: u64 = 2;
const ARCH_MAP_VDSO_64: u64 = 0x2003;

/// Size of `struct prctl_mm_map` as the kernel knows it (`PR_SET_MM_MAP`, 3.18, CONFIG_CHECKPOINT_RESTORE).
pub fn mm_map_size() -> Result<u32> {
    let mut size = 0u32;
    // SAFETY: this request writes one unsigned int to the address given.
    check(unsafe { libc::prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &raw mut size, 0u64, 0u64) }.into())?;
    Ok(size)
}

/// Whether `timer_create` takes ids now (`PR_TIMER_CREATE_RESTORE_IDS`, 6.15). `EINVAL` where the kernel cannot.
pub fn timer_restore_ids() -> Result<bool> {
    // SAFETY: integers only.
    let on = unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_GET, 0u64, 0u64, 0u64) };
    check(on.into()).map(|on| on == 1)
}

/// Whether the kernel could map a vDSO at an address (`ARCH_MAP_VDSO_64`, 4.9, CONFIG_CHECKPOINT_RESTORE). Nothing is mapped.
pub fn can_map_vdso() -> Result<()> {
    // An address in kernel space: nothing can be mapped there, whatever this process has mapped.
    // SAFETY: integers only; the request can only fail.
    match check(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_MAP_VDSO_64, u64::MAX << 47) }) {
        Ok(_) | Err(Errno::EEXIST | Errno::ENOMEM) => Ok(()),
        Err(e) => Err(e),
    }
}
