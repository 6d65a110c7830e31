//! Read by the engine on a duplicate, ticks from fdinfo: timerfd_create(2).

use super::State;
use super::set::Description;
use crate::collect::{Cx, Result};
use crate::image::fd::{File, FileKind, timerfd::TimerFd};
use crate::image::ns::NsKind;
use crate::image::timers::TimerSpec;
use crate::image::{FileId, NsId};
use crate::proc::ProcDir;
use crate::proc::fdinfo::Detail;
use crate::sys::timerfd;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

const TFD_TIMER_ABSTIME: u32 = libc::TFD_TIMER_ABSTIME as u32;
/// An interrupt that is due is served within this time, but for a processor that somebody else has.
const SERVED: Duration = Duration::from_millis(1);
/// A timer with a short period may be due whenever it is looked at.
const LOOKS_MAX: usize = 8;
/// It may go off between two questions.
const QUESTIONS_MAX: usize = 8;

/// Clock, time left and expirations that were not read.
pub fn collect(cx: &mut Cx<'_>, d: &Description, fd: &OwnedFd) -> Result<Option<FileKind>> {
    let mut last = None;
    for _ in 0..QUESTIONS_MAX {
        let found = once(cx, d, fd)?;
        // Time left and ticks belong together if nothing has expired in between.
        let Some((ticks_later, timer)) = found else { return Ok(None) };
        last = Some(FileKind::TimerFd(TimerFd { ticks: ticks_later, ..timer }));
        if ticks_later == timer.ticks {
            break;
        }
    }
    Ok(last)
}

/// A timer whose interrupt has not been served yet has no time left and no tick (timerfd_gettime(2) shows 0 for it, as for one that is
/// not armed), and would never go off again: whatever looks like that is looked at once more, when a due one has gone off.
pub(super) fn finish(cx: &mut Cx<'_>, state: &mut State) -> Result<()> {
    let unclear = |file: &File, again: bool| match &file.kind {
        FileKind::TimerFd(timer) if timer.spec.remaining_ns == 0 => {
            timer.spec.interval_ns != 0 || (timer.ticks == 0 && !again)
        }
        _ => false,
    };
    for look in 0..LOOKS_MAX {
        let files = cx.model.files.iter().enumerate().filter(|(_, file)| unclear(file, look > 0));
        let ids: Vec<FileId> = files.map(|(at, _)| FileId::from(at)).collect();
        if ids.is_empty() {
            break;
        }
        std::thread::sleep(SERVED);
        for id in ids {
            let fd = state.set.duplicate(id)?;
            if let Some(kind) = collect(cx, &state.set[id], &fd)? {
                cx.model.files[id.at()].kind = kind;
            }
        }
    }
    Ok(())
}

/// The timer, and its ticks after everything else was read.
fn once(cx: &mut Cx<'_>, d: &Description, fd: &OwnedFd) -> Result<Option<(u64, TimerFd)>> {
    // An expired periodic timer rests until somebody asks: asking counts its expirations up to now and starts it again.
    timerfd::get(fd).map_err(d.failed("timerfd_gettime"))?;
    let Some((clock, ticks, settime_flags)) = info(cx, fd)? else { return Ok(None) };
    let before = now(clock);
    let spec = timerfd::get(fd).map_err(d.failed("timerfd_gettime"))?;
    let Some((_, ticks_later, _)) = info(cx, fd)? else { return Ok(None) };
    let spec = TimerSpec {
        remaining_ns: total(spec.value_s, spec.value_ns),
        interval_ns: total(spec.interval_s, spec.interval_ns),
    };
    let absolute = settime_flags & TFD_TIMER_ABSTIME != 0 && spec.remaining_ns != 0;
    let due = |now: i64| (now.saturating_sub(clock_offset(cx, d.at, clock))).max(0) as u64 + spec.remaining_ns;
    let due_ns = before.filter(|_| absolute).map(due);
    Ok(Some((ticks_later, TimerFd { clock, ticks, settime_flags, spec, due_ns })))
}

/// Clock, ticks and flags.
fn info(cx: &mut Cx<'_>, fd: &OwnedFd) -> Result<Option<(i32, u64, u32)>> {
    let info = ProcDir::of_self()?.fdinfo(fd.as_raw_fd() as u32, &mut cx.buf)?;
    let Detail::TimerFd { clock, ticks, settime_flags, .. } = info.detail else { return Ok(None) };
    Ok(Some((clock, ticks, settime_flags)))
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
