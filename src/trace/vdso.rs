//! Getting threads out of the text of a vDSO: under another kernel they could not go on in the middle of its functions.
//!
//! Such a thread runs for a moment, with its own signals and mask, but not into a system call: so it changes nothing but its memory,
//! and what was read of the stopped tree before stays true. It is then mostly elsewhere, as these functions take some 30 ns; else
//! it runs again, for longer. Single steps would be as fast and are not used: the kernel does not take the trap flag back from
//! a task whose tracer dies, and the trap would end the task.

use super::Result;
use super::remote::Remote;
use super::stopping::leave_rseq_section;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long it runs at first, and at most.
const RUN: [Duration; 2] = [Duration::from_micros(5), Duration::from_micros(200)];
/// How long all threads of a process may take together.
const TIME: Duration = Duration::from_secs(2);

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
        if !get_out(thread, texts, until)? {
            inside.push(thread.pid());
        }
    }
    Ok(inside)
}

fn get_out(thread: &mut Remote, texts: &[Range<u64>], until: Instant) -> Result<bool> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let mut time = RUN[0];
    loop {
        // At the system call that a function makes in the end: it is made by whatever kernel the thread goes on under.
        let mut next = [0; 2];
        let at_call = super::memory::read(thread.pid(), thread.saved.rip, &mut next).is_ok() && next == SYSCALL;
        if at_call || !stands_inside(thread, texts) {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        thread.run_for(time)?;
        leave_rseq_section(thread)?;
        time = (time * 2).min(RUN[1]);
    }
}

/// A thread in a system call may stay: the call is made again, or returns, and the functions do little after that.
fn stands_inside(thread: &Remote, texts: &[Range<u64>]) -> bool {
    let regs = &thread.saved;
    regs.interrupted_call().is_none() && texts.iter().any(|text| text.contains(&regs.rip))
}
