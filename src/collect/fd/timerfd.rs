//! Read by the engine on a duplicate, ticks from fdinfo: timerfd_create(2).

use super::set::Description;
use crate::collect::{Cx, Result};
use crate::image::NsId;
use crate::image::fd::{FileKind, timerfd::TimerFd};
use crate::image::ns::NsKind;
use crate::image::timers::TimerSpec;
use crate::proc::ProcDir;
use crate::proc::fdinfo::Detail;
use crate::sys::timerfd;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::{AsRawFd, OwnedFd};

const TFD_TIMER_ABSTIME: u32 = libc::TFD_TIMER_ABSTIME as u32;

/// Clock, time left and expirations that were not read.
pub fn collect(cx: &mut Cx<'_>, d: &Description, fd: &OwnedFd) -> Result<Option<FileKind>> {
    // An expired periodic timer rests until somebody asks: asking counts its expirations up to now and starts it again.
    timerfd::get(fd).map_err(d.failed("timerfd_gettime"))?;
    let info = ProcDir::of_self()?.fdinfo(fd.as_raw_fd() as u32, &mut cx.buf)?;
    let Detail::TimerFd { clock, ticks, settime_flags, .. } = info.detail else { return Ok(None) };
    let before = now(clock);
    let spec = timerfd::get(fd).map_err(d.failed("timerfd_gettime"))?;
    let spec = TimerSpec {
        remaining_ns: total(spec.value_s, spec.value_ns),
        interval_ns: total(spec.interval_s, spec.interval_ns),
    };
    let absolute = settime_flags & TFD_TIMER_ABSTIME != 0 && spec.remaining_ns != 0;
    let due = |now: i64| (now.saturating_sub(clock_offset(cx, d.at, clock))).max(0) as u64 + spec.remaining_ns;
    let due_ns = before.filter(|_| absolute).map(due);
    Ok(Some(FileKind::TimerFd(TimerFd { clock, ticks, settime_flags, spec, due_ns })))
}

fn total(seconds: i64, nanoseconds: i64) -> u64 {
    (seconds as u64).saturating_mul(1_000_000_000).saturating_add(nanoseconds as u64)
}

/// The clock as we see it, nanoseconds.
fn now(clock: i32) -> Option<i64> {
    let now = clock_gettime(ClockId::from_raw(clock)).ok()?;
    Some(super::views::nanoseconds(now.tv_sec(), now.tv_nsec()))
}

/// What has to be taken off our clock for the target's: offsets of time namespaces differ.
fn clock_offset(cx: &Cx<'_>, at: usize, clock: i32) -> i64 {
    let task = cx.process_of.binary_search(&at).expect("descriptors are read after the tasks");
    let theirs = cx.model.clock_offsets(cx.model.tasks[task].namespaces.time);
    let own = cx.model.namespaces.iter().position(|n| n.of_host && matches!(n.kind, NsKind::Time { .. }));
    let ours = own.map_or((0, 0), |at| cx.model.clock_offsets(NsId::from(at)));
    match clock {
        libc::CLOCK_MONOTONIC => ours.0 - theirs.0,
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => ours.1 - theirs.1,
        _ => 0,
    }
}
