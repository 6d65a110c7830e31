//! Interrupted waits: what was left of their time-outs.
//!
//! The kernel keeps the end of such a wait to itself. What is left is known from the remainder that it writes for the
//! sleeps, else from the time-out that the program gave and for how long the thread had been asleep.

use crate::arch::{UserRegs, restart};
use crate::image::task::Restart;
use crate::trace::remote::Remote;
use crate::trace::{memory, waits};
use std::time::Duration;

const NS_PER_MS: u64 = 1_000_000;

/// How the wait of this thread goes on elsewhere, where its registers do not say it all.
pub fn collect(remote: &Remote) -> Restart {
    let regs = &remote.saved;
    if let Some(remaining_ns) = waits::left_for_socket(remote, Duration::ZERO) {
        return Restart::Socket { remaining_ns };
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
    let in_code = memory::read(remote.pid(), regs.rip - 7, &mut code).ok().and_then(|()| restart::call_in_code(&code));
    let in_function = || {
        let function = &remote.wait.function;
        let len = function.iter().position(|b| *b == 0).unwrap_or(function.len());
        restart::call_in_function(&function[..len], regs)
    };
    remote.wait.call.or(in_code).or_else(in_function)
}

fn remaining(remote: &Remote, regs: &UserRegs, call: u64) -> Option<u64> {
    let mut regs = *regs;
    if let Some(pointer) = restart::remainder_pointer(&regs, call) {
        return waits::time_at(remote.pid(), pointer, 1);
    }
    let slept = remote.wait.slept_ns.unwrap_or(0);
    if let Some(timeout) = restart::timeout_ms(&mut regs, call) {
        return u64::try_from(*timeout as i32).ok().map(|ms| (ms * NS_PER_MS).saturating_sub(slept));
    }
    let pointer = *restart::timeout_pointer(&mut regs, call)?;
    waits::time_at(remote.pid(), pointer, 1).map(|timeout| timeout.saturating_sub(slept))
}
