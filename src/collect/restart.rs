//! Interrupted waits: what was left of their time-outs.
//!
//! The kernel keeps the end of such a wait to itself. What is left is known from the remainder that it writes for the
//! sleeps, else from the time-out that the program gave and for how long the thread had been asleep.

use crate::arch::{UserRegs, restart};
use crate::image::task::Restart;
use crate::trace::memory;
use crate::trace::remote::Remote;

const NS_PER_MS: u64 = 1_000_000;

/// How the wait of this thread, if it is in one, goes on elsewhere. Where the time-out is in a register of a call that is
/// to be made again, the register gets what was left.
pub fn collect(remote: &Remote, regs: &mut UserRegs) -> Restart {
    if remote.rewound {
        let call = regs.rax;
        if let (Some(timeout), Some(slept)) = (restart::timeout_ms(regs, call), remote.slept_ns) {
            // Negative and zero time-outs are no time-outs.
            if (*timeout as i32) > 0 {
                *timeout = u64::from(*timeout as u32).saturating_sub(slept / NS_PER_MS);
            }
        }
        return Restart::None;
    }
    if regs.interrupted_call().is_none() || regs.rax as i64 != restart::ERESTART_RESTARTBLOCK {
        return Restart::None;
    }
    let call = original_call(remote, regs);
    Restart::Block { call, remaining_ns: call.and_then(|call| remaining(remote, regs, u64::from(call))) }
}

fn original_call(remote: &Remote, regs: &UserRegs) -> Option<u32> {
    if regs.orig_rax as i64 != libc::SYS_restart_syscall {
        return Some(regs.orig_rax as u32);
    }
    let mut code = [0; 7];
    memory::read(remote.pid(), regs.rip - 7, &mut code).ok()?;
    restart::call_in_code(&code)
}

fn remaining(remote: &Remote, regs: &UserRegs, call: u64) -> Option<u64> {
    let mut regs = *regs;
    if let Some(pointer) = restart::remainder_pointer(&regs, call) {
        return timespec(remote, pointer);
    }
    let slept = remote.slept_ns.unwrap_or(0);
    if let Some(timeout) = restart::timeout_ms(&mut regs, call) {
        return u64::try_from(*timeout as i32).ok().map(|ms| (ms * NS_PER_MS).saturating_sub(slept));
    }
    let pointer = *restart::timeout_pointer(&mut regs, call)?;
    timespec(remote, pointer).map(|timeout| timeout.saturating_sub(slept))
}

fn timespec(remote: &Remote, pointer: u64) -> Option<u64> {
    let [s, ns] = memory::read_value::<[u64; 2]>(remote.pid(), pointer).ok()?;
    s.checked_mul(1_000_000_000)?.checked_add(ns)
}
