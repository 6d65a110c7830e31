//! Interrupted waits begin again: made inside the target.
//!
//! A restart block belongs to a thread and cannot be written from outside. So the thread makes the call again, with what
//! was left of the time-out, and is interrupted at once: the kernel makes a fresh block, and the saved registers, which say
//! "restart me", then refer to it (kernel.md 1).

use super::Result;
use crate::arch::restart::{
    ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS, make_again, timeout_ms, timeout_pointer,
};
use crate::image::task::{Restart, Task};
use crate::sys::stub;
use crate::trace::memory;
use crate::trace::remote::{Remote, Scratch};
use crate::trace::waits::seconds_and;

const EINTR: i64 = -4;

/// Begins the waits of a task's threads. Everything they wait for has to be there.
pub fn begin_again(task: &Task, threads: &mut [Remote], scratch: Scratch) -> Result<()> {
    for (thread, remote) in task.threads.iter().zip(threads) {
        let Restart::Block { call, remaining_ns } = thread.restart else { continue };
        match call {
            Some(call) => wait_again(remote, scratch, u64::from(call), remaining_ns)?,
            None => {
                remote.saved.rax = EINTR as u64;
                remote.saved.orig_rax = u64::MAX;
            }
        }
    }
    Ok(())
}

fn wait_again(remote: &mut Remote, scratch: Scratch, call: u64, remaining_ns: Option<u64>) -> Result<()> {
    let mut regs = remote.saved;
    if let Some(ns) = remaining_ns {
        if let Some(timeout) = timeout_ms(&mut regs, call) {
            *timeout = ns.div_ceil(1_000_000);
        } else if let Some(pointer) = timeout_pointer(&mut regs, call) {
            memory::write(remote.pid(), scratch.data, &seconds_and(ns, 1))?;
            *pointer = scratch.data;
        }
    }
    regs.rip = scratch.code + stub::stub().syscall;
    regs.rax = call;
    regs.orig_rax = u64::MAX;
    match remote.run_interrupted(&regs)? as i64 {
        ERESTART_RESTARTBLOCK => remote.saved.rax = ERESTART_RESTARTBLOCK as u64,
        ERESTARTNOHAND..=ERESTARTSYS => make_again(&mut remote.saved, call),
        // It did not wait: what it waited for has come, or the time was up.
        result => {
            remote.saved.rax = result as u64;
            remote.saved.orig_rax = u64::MAX;
        }
    }
    Ok(())
}
