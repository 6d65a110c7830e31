//! Interval timers and POSIX timers.

use crate::image::task::Task;
use crate::image::timers::{PosixTimer, TimerSpec};
use crate::sys::abi::{Itimerspec, Itimerval, Sigevent};
use crate::trace::Batch;

const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const NS: u64 = 1_000_000_000;

/// Makes the timers of timer_create(2) with their ids (Linux 6.15), disarmed.
pub fn create(batch: &mut Batch, task: &Task) {
    if task.posix_timers.is_empty() {
        return;
    }
    batch.may_prctl(PR_TIMER_CREATE_RESTORE_IDS, 1u64, 0u64);
    for timer in &task.posix_timers {
        let event = batch.value(&event(timer));
        let id = batch.bytes(&timer.id.to_ne_bytes());
        batch.must(libc::SYS_timer_create, &[timer.clock.into(), event, id]);
    }
    batch.may_prctl(PR_TIMER_CREATE_RESTORE_IDS, 0u64, 0u64);
}

fn event(timer: &PosixTimer) -> Sigevent {
    Sigevent { value: timer.value, signal: timer.signal, notify: timer.notify, tid: timer.tid, pad: [0; 44] }
}

/// Arms everything: the last thing before the tree runs.
pub fn arm(batch: &mut Batch, task: &Task) {
    for timer in task.posix_timers.iter().filter(|t| t.spec.remaining_ns != 0) {
        let spec = batch.value(&itimerspec(timer.spec));
        batch.must(libc::SYS_timer_settime, &[timer.id.into(), 0u64.into(), spec, 0u64.into()]);
    }
    let timers = [task.itimers.real, task.itimers.virt, task.itimers.prof];
    for (which, spec) in (0i32..).zip(timers).filter(|(_, s)| s.remaining_ns != 0) {
        let value = Itimerval {
            interval_s: (spec.interval_ns / NS) as i64,
            interval_us: (spec.interval_ns % NS / 1000) as i64,
            value_s: (spec.remaining_ns / NS) as i64,
            // Rounded up: 0 would disarm it.
            value_us: (spec.remaining_ns % NS).div_ceil(1000) as i64,
        };
        let value = batch.value(&value);
        batch.must(libc::SYS_setitimer, &[which.into(), value, 0u64.into()]);
    }
}

/// As the kernel takes it.
pub fn itimerspec(spec: TimerSpec) -> Itimerspec {
    Itimerspec {
        interval_s: (spec.interval_ns / NS) as i64,
        interval_ns: (spec.interval_ns % NS) as i64,
        value_s: (spec.remaining_ns / NS) as i64,
        value_ns: (spec.remaining_ns % NS) as i64,
    }
}
