//! Letting a process go into a group stop (job control), without a single signal that waits for it being delivered first.
//!
//! A stopped process that is let go with a SIGSTOP in its queue takes lower-numbered signals before that one: their
//! handlers' frames would be set up already. So it goes into the stop while it is still traced and everything is blocked;
//! only there it gets its own mask and registers.

use super::remote::Remote;
use super::{Error, Result};
use crate::image::Pid;
use crate::sys::ptrace;
use crate::sys::wait::Status;

const ALL: u64 = u64::MAX;

/// Releases all threads of a process, stopped by this signal (by SIGSTOP if it stops nobody in that process group).
///
/// # Errors
/// A thread died, or did something else than to stop.
pub fn release(pid: Pid, mut threads: Vec<Remote>, signal: i32) -> Result<()> {
    for thread in &mut threads {
        thread.block(ALL)?;
    }
    let (first, others) = threads.split_first_mut().ok_or(Error::Died { pid })?;
    kill(pid)?;
    if !stop(first, signal)? {
        kill(pid)?;
        stop(first, libc::SIGSTOP)?;
    }
    // The stop is pending for them by now: they get there before any instruction of theirs.
    for thread in others {
        thread.until(|status| matches!(status, Status::EventStop(s) if s != libc::SIGTRAP))?;
    }
    threads.into_iter().try_for_each(Remote::release)
}

/// Delivers the waiting SIGSTOP as `signal`. Tells whether that has stopped the process: in an orphaned process group it
/// does not, unless it is SIGSTOP (setpgid(2)).
fn stop(thread: &mut Remote, signal: i32) -> Result<bool> {
    thread.until(|status| status == Status::Signal(libc::SIGSTOP))?;
    thread.block(ALL & !(1 << (signal - 1)))?;
    // Whatever becomes of the signal, it traps before it would run.
    let pid = thread.pid();
    ptrace::interrupt(pid, 0).map_err(|errno| Error::Ptrace { pid, operation: "interrupt", errno })?;
    let status = thread.deliver(signal)?;
    Ok(matches!(status, Status::EventStop(s) if s != libc::SIGTRAP))
}

fn kill(pid: Pid) -> Result<()> {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGSTOP)
        .map_err(|errno| Error::Ptrace { pid, operation: "stop", errno })
}
