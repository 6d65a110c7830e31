//! Waits that a stop has interrupted, and what was left of their time-outs.
//!
//! Some the kernel takes up by itself, to the end that it remembers ("restart block"): what is left matters only when they
//! go on elsewhere. Others it ends with `EINTR`, or begins anew: their arguments get what is left, in the register or,
//! behind a pointer, in a `timespec` of ours below the thread's stack. It is read at the very entry of the call, so it does
//! not matter what becomes of it afterwards. The register keeps its new value when the call returns; programs load it for
//! every call, as it is one that functions need not preserve.

use super::remote::Remote;
use super::sleepers::{Asleep, Function, TakenUp};
use super::{Error, Result, memory, socket_waits};
use crate::arch::restart::{self, Place};
use crate::image::Pid;
use crate::proc::ProcDir;
use std::time::Duration;

const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// The wait that a thread was in when it was stopped.
#[derive(Debug, Default)]
pub struct Wait {
    /// How long it had lasted, nanoseconds, where that is known.
    pub slept_ns: Option<u64>,
    /// The call it is in, where the registers do not show it and it is known from an earlier stop.
    pub call: Option<u32>,
    /// The kernel function it slept in.
    pub function: Function,
    /// The call begins anew.
    anew: bool,
    /// Its time-out is an option of the socket it is about.
    of_socket: bool,
    /// The time-out that it would begin anew with, nanoseconds.
    limit_ns: Option<u64>,
}

/// Keeps the program from seeing our stop as `EINTR`.
pub fn hide_stop(remote: &mut Remote) -> Result<()> {
    let before = remote.saved.rax;
    remote.wait.anew = restart::hide_stop(&mut remote.saved);
    if remote.saved.rax != before {
        remote.tracee().set_regs(&remote.saved)?;
    }
    Ok(())
}

/// Takes note of the wait of a thread that has stopped, and shortens it if it begins anew.
pub fn interrupted(remote: &mut Remote, process: &ProcDir, asleep: Option<&Asleep>) {
    if !remote.wait.anew && !has_relative_end(remote) {
        return;
    }
    // A wait that was not seen before the stop has begun since: too late is what it may end by that, and never too early.
    let seen = asleep.filter(|asleep| is_same_sleep(remote.pid(), process, asleep));
    let slept = seen.map_or(0, |asleep| asleep.ns);
    remote.wait.slept_ns = Some(slept);
    if let Some(asleep) = seen {
        remote.wait.call = asleep.call;
        remote.wait.function = asleep.function;
    }
    if remote.wait.anew {
        let of_socket = socket_waits::limit(remote);
        remote.wait.of_socket = of_socket.is_some();
        remote.wait.limit_ns = of_socket.or_else(|| limit(remote));
        shorten(remote, slept);
    }
}

/// What is left of a call on a socket with a time-out, nanoseconds: such a thread is released before all others, by
/// [`socket_waits::release`]. `stopped`: for how long it has been.
pub fn left_for_socket(remote: &Remote, stopped: Duration) -> Option<u64> {
    let Wait { of_socket: true, limit_ns: Some(limit), slept_ns: Some(slept), .. } = remote.wait else { return None };
    Some(limit.saturating_sub(slept).saturating_sub(stopped.as_nanos() as u64))
}

/// It is in a wait that the kernel takes up, and that has an end for which it matters how long it has lasted, as far as that
/// can be seen: what this costs is a part of the pause.
fn has_relative_end(remote: &Remote) -> bool {
    let mut regs = remote.saved;
    match regs.interrupted_call() {
        Some(call) if regs.rax as i64 == restart::ERESTART_RESTARTBLOCK => {
            call as i64 == libc::SYS_restart_syscall
                || restart::timeout_ms(&mut regs, call).is_some()
                || restart::timeout_pointer(&mut regs, call).is_some()
        }
        _ => false,
    }
}

/// The stop itself was the only other time that the thread went to sleep.
fn is_same_sleep(tid: Pid, process: &ProcDir, asleep: &Asleep) -> bool {
    let seen = process.thread(tid).ok().and_then(|thread| thread.last_ran(&mut Vec::new()));
    seen.is_some_and(|seen| seen.sleeps <= asleep.sleeps + 1)
}

/// Before a thread goes on here, after having been stopped for this long: time has passed for it.
pub fn take_up(remote: &mut Remote, stopped: Duration) -> Result<()> {
    let (Some(slept), Some(_)) = (remote.wait.slept_ns, remote.wait.limit_ns) else { return Ok(()) };
    shorten(remote, slept.saturating_add(stopped.as_nanos() as u64));
    match remote.tracee().set_regs(&remote.saved) {
        Err(Error::Died { .. }) => Ok(()),
        other => other,
    }
}

/// What the next stop has to know of a wait that does not show since when it lasts, after having been stopped for this long.
pub fn to_remember(remote: &Remote, stopped: Duration) -> Option<TakenUp> {
    let slept = remote.wait.slept_ns.filter(|_| !remote.wait.anew || remote.wait.of_socket)?;
    let in_registers = remote.saved.interrupted_call().filter(|call| *call as i64 != libc::SYS_restart_syscall);
    let call = in_registers.map(|call| call as u32).or(remote.wait.call);
    Some(TakenUp { tid: remote.pid(), slept_ns: slept.saturating_add(stopped.as_nanos() as u64), call })
}

/// The same of a wait that was begun elsewhere and has this much left.
pub fn begun_elsewhere(remote: &Remote, call: u32, left_ns: u64) -> Option<TakenUp> {
    let mut regs = remote.saved;
    let limit = match restart::timeout_ms(&mut regs, u64::from(call)) {
        Some(ms) => u64::try_from(*ms as i32).ok().map(|ms| ms * NS_PER_MS),
        None => match restart::timeout_pointer(&mut regs, u64::from(call)) {
            Some(pointer) => time_at(remote.pid(), *pointer, 1),
            None => socket_waits::limit(remote),
        },
    };
    Some(TakenUp { tid: remote.pid(), slept_ns: limit?.saturating_sub(left_ns), call: Some(call) })
}

/// The time-out of a call that begins anew; `None` if it waits for ever, or not at all.
fn limit(remote: &mut Remote) -> Option<u64> {
    let pid = remote.pid();
    let (pointer, ns_per_unit) = match restart::place(&mut remote.saved)? {
        Place::Milliseconds(ms) => return u64::try_from(*ms as i32).ok().filter(|ms| *ms > 0).map(|ms| ms * NS_PER_MS),
        Place::Timespec(pointer) => (*pointer, 1),
        Place::Own(pointer) => (pointer, 1),
        Place::Timeval(pointer) => (*pointer, 1000),
    };
    time_at(pid, pointer, ns_per_unit)
}

/// A `struct timespec` (or, with 1000 nanoseconds a part, `struct timeval`) in the memory of a task, nanoseconds.
pub fn time_at(pid: Pid, pointer: u64, ns_per_part: u64) -> Option<u64> {
    let [s, parts] = memory::read_value::<[u64; 2]>(pid, pointer).ok()?;
    s.checked_mul(NS_PER_S)?.checked_add(parts.checked_mul(ns_per_part)?)
}

/// Has the call begin with what is left after this long. Where there is no room for that it begins with the whole.
fn shorten(remote: &mut Remote, slept: u64) {
    let Some(limit) = remote.wait.limit_ns else { return };
    let (pid, left) = (remote.pid(), limit.saturating_sub(slept));
    let below = restart::below_stack(&remote.saved);
    match restart::place(&mut remote.saved).filter(|_| !remote.wait.of_socket) {
        Some(Place::Milliseconds(ms)) => *ms = left.div_ceil(NS_PER_MS),
        Some(Place::Own(pointer)) => drop(memory::write(pid, pointer, &seconds_and(left, 1))),
        Some(Place::Timespec(pointer)) => point(pid, pointer, below, &seconds_and(left, 1)),
        Some(Place::Timeval(pointer)) => point(pid, pointer, below, &seconds_and(left, 1000)),
        None => {}
    }
}

fn point(pid: Pid, pointer: &mut u64, to: u64, time: &[u8; 16]) {
    match memory::write(pid, to, time) {
        Ok(()) => *pointer = to,
        Err(e) => tracing::warn!("a wait of thread {pid} begins anew with its whole time-out: {e}"),
    }
}

/// A `struct timespec` (or, with 1000 nanoseconds a part, `struct timeval`).
pub fn seconds_and(ns: u64, ns_per_part: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(ns / NS_PER_S).to_ne_bytes());
    bytes[8..].copy_from_slice(&(ns % NS_PER_S).div_ceil(ns_per_part).min(NS_PER_S / ns_per_part - 1).to_ne_bytes());
    bytes
}
