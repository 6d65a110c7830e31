//! Getting threads out of the text of a vDSO: under another kernel they could not go on in the middle of its functions.
//!
//! Such a function has some fifty instructions and is left within 38 to 94 single steps of 11 us (kernel.md 13.4). Where the
//! kernel updates its clock faster than the function can be stepped through (an emulated processor: 1346 steps were seen),
//! the function begins anew, hence the bounds. Stepping, as opposed to letting the thread run for a moment: nothing but the
//! function itself is executed, and what was read of the stopped tree before stays true.

use super::remote::Remote;
use super::{Error, Result};
use crate::sys::wait::Status;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Steps of a thread.
const STEPS: u32 = 4000;
/// How long all threads of a process may take together.
const TIME: Duration = Duration::from_millis(400);

/// Has stopped threads go on to their first instruction outside of these texts; those that do not get there.
///
/// # Errors
/// A thread cannot be traced, or has died.
pub fn leave<'t>(
    threads: impl Iterator<Item = &'t mut Remote>,
    texts: &[Range<u64>],
) -> Result<Vec<crate::image::Pid>> {
    let until = Instant::now() + TIME;
    let mut inside = Vec::new();
    for thread in threads.filter(|thread| stands_inside(thread, texts)) {
        if !step_out(thread, texts, until)? {
            inside.push(thread.pid());
        }
    }
    Ok(inside)
}

/// A thread in a system call may stay: the call is made again, or returns, and the functions do little after that.
fn stands_inside(thread: &Remote, texts: &[Range<u64>]) -> bool {
    let regs = &thread.saved;
    regs.interrupted_call().is_none() && texts.iter().any(|text| text.contains(&regs.rip))
}

/// Steps with all signals blocked: none must be taken while the rest of the tree stands still.
fn step_out(thread: &mut Remote, texts: &[Range<u64>], until: Instant) -> Result<bool> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    thread.lend()?;
    let mut left = false;
    for _ in 0..STEPS {
        // At the system call that a function makes in the end: it is made by whatever kernel the thread goes on under.
        let mut next = [0; 2];
        let at_call = super::memory::read(thread.pid(), thread.saved.rip, &mut next).is_ok() && next == SYSCALL;
        left = at_call || !stands_inside(thread, texts);
        if left || Instant::now() > until {
            break;
        }
        match thread.step()? {
            Status::Signal(libc::SIGTRAP) if sent(thread) => thread.late_signals.push(libc::SIGTRAP),
            Status::Signal(libc::SIGTRAP) | Status::EventStop(libc::SIGTRAP) => {}
            status => {
                return Err(Error::OddStop {
                    pid: thread.pid(),
                    what: "out of the vDSO",
                    status: format!("{status:?}"),
                });
            }
        }
        thread.saved = thread.tracee().regs()?;
    }
    thread.give_back()?;
    Ok(left)
}

/// Somebody has sent the signal: `si_code` is not one of the kernel's (sigaction(2)).
fn sent(thread: &Remote) -> bool {
    thread.tracee().siginfo().is_ok_and(|i| i32::from_ne_bytes([i[8], i[9], i[10], i[11]]) <= 0)
}
