//! Made by the engine, armed inside a task (its time namespace counts): timerfd_create(2).

use super::finish::Inside;
use crate::image::fd::timerfd::TimerFd;
use crate::image::timers::TimerSpec;
use crate::restore::{Error, Result};
use crate::sys::abi::Itimerspec;
use crate::sys::timerfd;
use std::os::fd::OwnedFd;

/// A timer that is not armed yet.
pub(crate) fn make(model: &TimerFd) -> Result<OwnedFd> {
    timerfd::create(model.clock, 0).map_err(|errno| Error::System {
        operation: "timerfd_create",
        object: "a timerfd".to_owned(),
        errno,
    })
}

/// Arms it and sets the expirations that were not read.
pub(crate) fn arm(inside: &mut Inside, fd: u32, model: &TimerFd) {
    const ABSTIME: u32 = libc::TFD_TIMER_ABSTIME as u32;
    const CANCEL_ON_SET: u32 = libc::TFD_TIMER_CANCEL_ON_SET as u32;
    let TimerSpec { remaining_ns, interval_ns } = model.spec;
    // Without a due time the timer was set relatively, or has expired: then the flag alone is kept.
    let relative = model.due_ns.is_none() && remaining_ns != 0;
    let flags = if relative { 0 } else { model.settime_flags & (ABSTIME | CANCEL_ON_SET) };
    let value = model.due_ns.unwrap_or(remaining_ns);
    if remaining_ns != 0 || interval_ns != 0 || flags != 0 {
        let spec = Itimerspec {
            interval_s: (interval_ns / 1_000_000_000) as i64,
            interval_ns: (interval_ns % 1_000_000_000) as i64,
            value_s: (value / 1_000_000_000) as i64,
            value_ns: (value % 1_000_000_000) as i64,
        };
        let spec = inside.batch.value(&spec);
        inside.must("a timerfd", libc::SYS_timerfd_settime, &[fd.into(), flags.into(), spec, 0u64.into()]);
    }
    if model.ticks != 0 {
        let ticks = inside.batch.bytes(&model.ticks.to_ne_bytes());
        inside.must("ticks of a timerfd", libc::SYS_ioctl, &[fd.into(), timerfd::TFD_IOC_SET_TICKS.into(), ticks]);
    }
}
