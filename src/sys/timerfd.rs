//! timerfd_create(2), timerfd_gettime(2), timerfd_settime(2), ioctl TFD_IOC_SET_TICKS.

use super::abi::Itimerspec;
use super::{Result, check};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `TFD_IOC_SET_TICKS` (`_IOW('T', 0, u64)`; Linux 3.17 with CONFIG_CHECKPOINT_RESTORE): expirations not read yet, not 0.
pub const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;

/// A disarmed timer, close-on-exec. `flags`: `TFD_NONBLOCK`. `EPERM` for alarm clocks without CAP_WAKE_ALARM.
pub fn create(clock: i32, flags: i32) -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = check(i64::from(unsafe { libc::timerfd_create(clock, flags | libc::TFD_CLOEXEC) }))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Time left and period. Expirations of a periodic timer up to now are counted in its ticks by this call.
pub fn get(fd: impl AsFd) -> Result<Itimerspec> {
    let mut spec = Itimerspec::default();
    // SAFETY: the kernel writes one `struct itimerspec`.
    check(unsafe { libc::syscall(libc::SYS_timerfd_gettime, fd.as_fd().as_raw_fd(), &raw mut spec) })?;
    Ok(spec)
}

/// Arms it. `flags`: `TFD_TIMER_ABSTIME`, `TFD_TIMER_CANCEL_ON_SET`. Ticks not read yet are forgotten.
pub fn set(fd: impl AsFd, flags: i32, spec: &Itimerspec) -> Result<()> {
    // SAFETY: the kernel reads one `struct itimerspec`; no old value is asked for.
    check(unsafe { libc::syscall(libc::SYS_timerfd_settime, fd.as_fd().as_raw_fd(), flags, spec, 0) }).map(drop)
}

/// Sets the number of expirations that were not read yet. `ENOTTY` without CONFIG_CHECKPOINT_RESTORE.
pub fn set_ticks(fd: impl AsFd, ticks: u64) -> Result<()> {
    // SAFETY: the kernel reads one u64.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) })).map(drop)
}
