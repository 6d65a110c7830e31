//! Getting threads out of the text of a vDSO: under another kernel they could not go on in the middle of its functions.
//!
//! Such a function has some fifty instructions and is left within 38 to 94 single steps of 11 us (kernel.md 13.4). Where the
//! kernel updates its clock faster than the function can be stepped through (an emulated processor: 1346 steps were seen),
//! the function begins anew, maybe for ever: then the thread runs for a moment, but not into a system call. So it changes
//! nothing but memory, and what was read of the stopped tree before stays true.

use super::remote::Remote;
use super::stopping::leave_rseq_section;
use super::{Error, Result};
use crate::sys::wait::Status;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Steps before a thread is let run.
const STEPS: u32 = 150;
/// How long it runs.
const RUN: Duration = Duration::from_micros(200);
/// How long all threads of a process may take together.
const TIME: Duration = Duration::from_secs(2);
/// All signals blocked, none must be taken while the rest of the tree stands still; but for those that the kernel kills by
/// where they are blocked, and of which a tracer is asked first.
const MASK: u64 = !(1 << (libc::SIGTRAP - 1)
    | 1 << (libc::SIGSEGV - 1)
    | 1 << (libc::SIGBUS - 1)
    | 1 << (libc::SIGILL - 1)
    | 1 << (libc::SIGFPE - 1)
    | 1 << (libc::SIGSYS - 1));

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
        thread.block(MASK)?;
        let left = get_out(thread, texts, until);
        thread.give_back()?;
        if !left? {
            inside.push(thread.pid());
        }
    }
    Ok(inside)
}

fn get_out(thread: &mut Remote, texts: &[Range<u64>], until: Instant) -> Result<bool> {
    while !step_out(thread, texts, until)? {
        if Instant::now() > until {
            return Ok(false);
        }
        thread.run_for(RUN)?;
        thread.saved = thread.tracee().regs()?;
        leave_rseq_section(thread)?;
    }
    Ok(true)
}

/// A thread in a system call may stay: the call is made again, or returns, and the functions do little after that.
fn stands_inside(thread: &Remote, texts: &[Range<u64>]) -> bool {
    let regs = &thread.saved;
    regs.interrupted_call().is_none() && texts.iter().any(|text| text.contains(&regs.rip))
}

fn step_out(thread: &mut Remote, texts: &[Range<u64>], until: Instant) -> Result<bool> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    for _ in 0..STEPS {
        // At the system call that a function makes in the end: it is made by whatever kernel the thread goes on under.
        let mut next = [0; 2];
        let at_call = super::memory::read(thread.pid(), thread.saved.rip, &mut next).is_ok() && next == SYSCALL;
        if at_call || !stands_inside(thread, texts) {
            return Ok(true);
        }
        if Instant::now() > until {
            break;
        }
        match thread.step()? {
            Status::Signal(libc::SIGTRAP) | Status::EventStop(_) => {}
            // Its own doing, and done again when it goes on.
            Status::Signal(_) => break,
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
    Ok(false)
}
