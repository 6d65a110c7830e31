//! Interval timers and POSIX timers.

use super::{Cx, Result};
use crate::image::Pid;
use crate::image::timers::{IntervalTimers, PosixTimer, TimerSpec};
use crate::sys::abi::{Itimerspec, Itimerval};
use crate::trace::Batch;
use crate::trace::batch::{Out, Results};
use crate::trace::remote::Scratch;

/// Adds the calls that read the three interval timers.
pub fn ask(batch: &mut Batch) -> [Out; 3] {
    [0i32, 1, 2].map(|which| {
        let out = batch.out(size_of::<Itimerval>());
        batch.may(libc::SYS_getitimer, &[which.into(), out.into()]);
        out
    })
}

/// The interval timers.
pub fn answer(results: &Results, query: &[Out; 3]) -> IntervalTimers {
    let spec = |out| {
        let v: Itimerval = results.value(out);
        TimerSpec {
            remaining_ns: ns(v.value_s, v.value_us * 1000),
            interval_ns: ns(v.interval_s, v.interval_us * 1000),
        }
    };
    IntervalTimers { real: spec(query[0]), virt: spec(query[1]), prof: spec(query[2]) }
}

/// The timers of timer_create(2): /proc tells which there are, the process itself what is left of them.
pub fn posix(cx: &mut Cx<'_>, at: usize, scratch: &Scratch) -> Result<Vec<PosixTimer>> {
    let process = &mut cx.frozen.processes[at];
    let listed = process.dir.timers(&mut cx.buf)?;
    if listed.is_empty() {
        return Ok(Vec::new());
    }
    let mut batch = Batch::new();
    let asked: Vec<_> = listed
        .iter()
        .map(|timer| {
            let out = batch.out(size_of::<Itimerspec>());
            batch.may(libc::SYS_timer_gettime, &[timer.id.into(), out.into()]);
            (out, batch.may(libc::SYS_timer_getoverrun, &[timer.id.into()]))
        })
        .collect();
    let results = process.leader().run(scratch, &batch)?;
    let ids = &cx.ids;
    let timer = |(listed, (out, overrun)): (&crate::proc::timers::Timer, &(Out, _))| {
        let left: Itimerspec = results.value(*out);
        let tid = match listed.notify & libc::SIGEV_THREAD_ID {
            0 => 0,
            _ => ids.get(&Pid(listed.pid)).map_or(listed.pid, |id| id.0),
        };
        PosixTimer {
            id: listed.id,
            clock: listed.clock,
            notify: listed.notify,
            signal: listed.signal,
            value: listed.value,
            tid,
            spec: TimerSpec {
                remaining_ns: ns(left.value_s, left.value_ns),
                interval_ns: ns(left.interval_s, left.interval_ns),
            },
            overrun: results.get(*overrun).map_or(0, |n| n as i32),
        }
    };
    let mut timers: Vec<PosixTimer> = listed.iter().zip(&asked).map(timer).collect();
    // The order of /proc is that of their making, newest first.
    timers.sort_by_key(|timer| timer.id);
    Ok(timers)
}

fn ns(s: i64, ns: i64) -> u64 {
    (s * 1_000_000_000 + ns) as u64
}
