//! wait4(2), with the wait word decoded once.

use super::{Errno, Result};
use crate::image::Pid;

/// What waiting for a tracee or child gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Ended by `exit` with this code.
    Exited(i32),
    /// Ended by this signal.
    Killed(i32),
    /// Stopped on its way to this signal (signal-delivery-stop).
    Signal(i32),
    /// Stopped at the entry or exit of a system call (with `TRACE_SYSGOOD`).
    Syscall,
    /// `PTRACE_EVENT_*` other than a stop, with its number.
    Event(i32),
    /// `PTRACE_EVENT_STOP`: by `PTRACE_INTERRUPT`, by attaching, or a group stop by this signal (`SIGTRAP` = no group stop).
    EventStop(i32),
    /// Continued.
    Continued,
}

impl Status {
    /// Decodes a wait word.
    pub fn of(word: i32) -> Self {
        if libc::WIFEXITED(word) {
            return Self::Exited(libc::WEXITSTATUS(word));
        }
        if libc::WIFSIGNALED(word) {
            return Self::Killed(libc::WTERMSIG(word));
        }
        if libc::WIFCONTINUED(word) {
            return Self::Continued;
        }
        let signal = libc::WSTOPSIG(word);
        match word >> 16 {
            0 if signal == libc::SIGTRAP | 0x80 => Self::Syscall,
            0 => Self::Signal(signal),
            128 => Self::EventStop(signal),
            event => Self::Event(event),
        }
    }

    /// The task is gone.
    pub fn ended(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Killed(_))
    }
}

/// Waits for one task, also a thread (`__WALL`). Blocks.
pub fn wait(pid: Pid) -> Result<Status> {
    wait_with(pid, libc::__WALL).map(|s| s.expect("a blocking wait gives a status").1)
}

/// Waits for one child to end, or to be stopped by job control ([`Status::Signal`]). Blocks.
pub fn wait_or_stop(pid: Pid) -> Result<Status> {
    wait_with(pid, libc::__WALL | libc::WUNTRACED).map(|s| s.expect("a blocking wait gives a status").1)
}

/// Looks whether one task (or, with pid -1, any) has something to report.
pub fn try_wait(pid: Pid) -> Result<Option<(Pid, Status)>> {
    wait_with(pid, libc::__WALL | libc::WNOHANG)
}

/// Waits for any task.
pub fn wait_any() -> Result<(Pid, Status)> {
    wait_with(Pid(-1), libc::__WALL).map(|s| s.expect("a blocking wait gives a status"))
}

/// Takes the end of a task that we trace or have made, and nothing else; whether it has ended. Stops of tracees are told whatever
/// was asked for (waitid(2)), so it is looked at first: who has ended does not stop any more.
pub fn take_end(pid: Pid) -> Result<bool> {
    let found = ask(pid, libc::WNOWAIT)?;
    let ended = found.si_signo != 0 && matches!(found.si_code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED);
    if ended {
        ask(pid, 0)?;
    }
    Ok(ended)
}

/// Whether a task that we trace has a stop or its end to report; it stays to be taken.
pub fn has_news(pid: Pid) -> Result<bool> {
    ask(pid, libc::WNOWAIT).map(|found| found.si_signo != 0)
}

/// waitid(2) that does not wait; `si_signo` 0 = nothing to report.
fn ask(pid: Pid, flags: i32) -> Result<libc::siginfo_t> {
    // SAFETY: all bytes zero are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::__WALL | flags;
    // SAFETY: `info` is a valid place for the answer.
    let ret = unsafe { libc::waitid(libc::P_PID, pid.0 as libc::id_t, &raw mut info, flags) };
    if ret == -1 { Err(Errno::last()) } else { Ok(info) }
}

fn wait_with(pid: Pid, flags: i32) -> Result<Option<(Pid, Status)>> {
    loop {
        let mut word = 0;
        // SAFETY: `word` is a valid place for the status; no rusage is asked for.
        let ret = unsafe { libc::waitpid(pid.0, &mut word, flags) };
        match ret {
            0 => return Ok(None),
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(Errno::last()),
            pid => return Ok(Some((Pid(pid), Status::of(word)))),
        }
    }
}

/// The raw exit status of a child that has ended, without reaping it (`waitid(2)` with `WNOWAIT`).
pub fn exited(pid: Pid) -> Result<bool> {
    // SAFETY: an all-zero siginfo_t is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid place for the result.
    let ret =
        unsafe { libc::waitid(libc::P_PID, pid.0 as u32, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
    if ret == -1 {
        return Err(Errno::last());
    }
    // SAFETY: waitid has filled in the members of a SIGCHLD siginfo, or left them zero.
    Ok(unsafe { info.si_pid() } != 0)
}
