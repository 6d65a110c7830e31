//! One traced task (thread), typed by whether it runs or is stopped.
//!
//! Neither `Send` nor `Clone`: ptrace requests work only from the thread that attached, and two handles would disagree
//! about the state. That a task has died is a value ([`Error::Died`]), as `ESRCH` from ptrace means just that (or that it
//! is not stopped, which the types exclude).

use super::{Error, Result};
use crate::image::Pid;
use crate::memory::pipeline::default_workers;
use crate::proc::ProcDir;
use crate::sys::abi::{RseqConfiguration, UserRegs};
use crate::sys::wait::{self, Status};
use crate::sys::{Errno, ptrace};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// The task runs, or is about to.
#[derive(Debug)]
pub struct Running;

/// The task is in a ptrace stop.
#[derive(Debug)]
pub struct Stopped;

/// How long a task may take from one stop to the next: a system call that fills gigabytes is among what it may do.
const PATIENCE: Duration = Duration::from_secs(30);

/// For how long a stop is awaited without a break: most come within microseconds, on another processor. Who gives this one away
/// to somebody who has much to do, as our own helpers, may have it back after a whole tick.
const AWAKE: Duration = Duration::from_micros(30);

/// For how long others get the processor in between: the task itself may wait for it.
const YIELDING: Duration = Duration::from_micros(250);

/// Where a task waits in the kernel, for messages; empty if that cannot be seen.
pub fn wchan(tid: Pid) -> String {
    let mut text = Vec::new();
    let _ = ProcDir::open(tid).and_then(|dir| dir.read_into("wchan", &mut text).map(drop));
    String::from_utf8_lossy(&text).into_owned()
}

/// A stop of a task, and what it reports.
pub type Stop = (Tracee<Stopped>, Status);

/// A task we trace.
#[derive(Debug)]
pub struct Tracee<S> {
    tid: Pid,
    state: PhantomData<(S, *const ())>,
}

impl<S> Tracee<S> {
    /// Its thread id as we see it.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    fn of(tid: Pid) -> Self {
        Self { tid, state: PhantomData }
    }

    /// Asks it to stop (if it has, once more as soon as it goes on); [`Tracee::wait`] tells when it has. Another stop that comes
    /// first can cancel this one: "any trap clears pending STOP trap" (ptrace_stop(), kernel/signal.c).
    pub fn interrupt(&self) -> Result<()> {
        ptrace::interrupt(self.tid, 0).map_err(|e| self.error("interrupt", e))
    }

    fn error(&self, operation: &'static str, errno: Errno) -> Error {
        match errno {
            Errno::ESRCH | Errno::ECHILD => Error::Died { pid: self.tid },
            errno => Error::Ptrace { pid: self.tid, operation, errno },
        }
    }
}

impl Tracee<Running> {
    /// Attaches without stopping it. `EPERM` for another user's task, a zombie, or one that is traced already.
    pub fn seize(tid: Pid, options: u64) -> Result<Self> {
        let tracee = Self::of(tid);
        ptrace::seize(tid, options).map_err(|e| tracee.error("seize", e))?;
        Ok(tracee)
    }

    /// A task the kernel attached for us (`TRACE_FORK` and the like).
    pub fn attached(tid: Pid) -> Self {
        Self::of(tid)
    }

    /// Waits for the next stop: at first without sleeping, then with sleeps of an eighth of what has passed. A wait without an end would hang us with a task that somebody froze meanwhile.
    ///
    /// # Errors
    /// [`Error::DoesNotStop`] after half a minute.
    pub fn wait(self) -> Result<Stop> {
        let began = Instant::now();
        let awake = if default_workers() > 1 { AWAKE } else { Duration::ZERO };
        let mut tracee = self;
        loop {
            match tracee.try_wait()? {
                Ok(stopped) => return Ok(stopped),
                Err(still) => tracee = still,
            }
            match began.elapsed() {
                passed if passed > PATIENCE => break,
                passed if passed > YIELDING => {
                    std::thread::sleep((passed / 8).clamp(Duration::from_micros(20), Duration::from_millis(5)));
                }
                passed if passed > awake => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
        Err(Error::DoesNotStop { pid: tracee.tid, ms: PATIENCE.as_millis() as u64, wchan: wchan(tracee.tid) })
    }

    /// Looks whether it has stopped.
    pub fn try_wait(self) -> Result<std::result::Result<Stop, Self>> {
        match wait::try_wait(self.tid).map_err(|e| self.error("wait", e))? {
            None => Ok(Err(self)),
            Some((_, status)) if status.ended() => Err(Error::Died { pid: self.tid }),
            Some((_, status)) => Ok(Ok((Tracee::of(self.tid), status))),
        }
    }

    /// A status that was collected by a wait for any task.
    pub fn stopped_by_event(self) -> Tracee<Stopped> {
        Tracee::of(self.tid)
    }
}

impl Tracee<Stopped> {
    /// Whether it has something to report, though its last stop has been taken: another thread has its number now.
    pub fn has_news(&self) -> bool {
        wait::has_news(self.tid).unwrap_or(false)
    }

    /// General registers.
    pub fn regs(&self) -> Result<UserRegs> {
        ptrace::get_regs(self.tid).map_err(|e| self.error("getregs", e))
    }

    /// Sets them.
    pub fn set_regs(&self, regs: &UserRegs) -> Result<()> {
        ptrace::set_regs(self.tid, regs).map_err(|e| self.error("setregs", e))
    }

    /// The XSAVE area.
    pub fn xstate(&self, buf: &mut [u8]) -> Result<usize> {
        ptrace::get_regset(self.tid, ptrace::NT_X86_XSTATE, buf).map_err(|e| self.error("getregset xstate", e))
    }

    /// Sets it; `EFAULT`/`EINVAL` where this processor lacks a component.
    pub fn set_xstate(&self, area: &[u8]) -> Result<()> {
        ptrace::set_regset(self.tid, ptrace::NT_X86_XSTATE, area).map_err(|e| self.error("setregset xstate", e))
    }

    /// Blocked signals.
    pub fn sigmask(&self) -> Result<u64> {
        ptrace::get_sigmask(self.tid).map_err(|e| self.error("getsigmask", e))
    }

    /// Sets them.
    pub fn set_sigmask(&self, mask: u64) -> Result<()> {
        ptrace::set_sigmask(self.tid, mask).map_err(|e| self.error("setsigmask", e))
    }

    /// `siginfo_t` of the signal that stopped it.
    pub fn siginfo(&self) -> Result<[u8; 128]> {
        ptrace::get_siginfo(self.tid).map_err(|e| self.error("getsiginfo", e))
    }

    /// All pending signals of the process (`shared`) or of this thread, in order.
    pub fn pending(&self, shared: bool) -> Result<Vec<[u8; 128]>> {
        let mut all = Vec::new();
        loop {
            let more = ptrace::peek_siginfo(self.tid, shared, all.len() as u64, 64)
                .map_err(|e| self.error("peeksiginfo", e))?;
            let last = more.len() < 64;
            all.extend(more);
            if last {
                return Ok(all);
            }
        }
    }

    /// rseq registration; zeros where there is none.
    pub fn rseq(&self) -> Result<RseqConfiguration> {
        ptrace::rseq_configuration(self.tid).map_err(|e| self.error("get_rseq_configuration", e))
    }

    /// Filters of this thread, first installed first, with their flags. Needs CAP_SYS_ADMIN.
    pub fn seccomp_filters(&self) -> Result<Vec<(u64, Vec<u64>)>> {
        let mut filters = Vec::new();
        loop {
            match ptrace::seccomp_filter(self.tid, filters.len() as u64) {
                Ok(program) => {
                    let flags = ptrace::seccomp_filter_flags(self.tid, filters.len() as u64).unwrap_or(0);
                    filters.push((flags, program));
                }
                Err(Errno::ENOENT) => return Ok(filters),
                Err(e) => return Err(self.error("seccomp_get_filter", e)),
            }
        }
    }

    /// Changes the options given when it was seized.
    pub fn set_options(&self, options: u64) -> Result<()> {
        ptrace::set_options(self.tid, options).map_err(|e| self.error("setoptions", e))
    }

    /// New child's id after a clone or fork event.
    pub fn event_message(&self) -> Result<u64> {
        ptrace::get_event_message(self.tid).map_err(|e| self.error("geteventmsg", e))
    }

    /// Lets it run, delivering `signal` (0 = none).
    pub fn cont(self, signal: i32) -> Result<Tracee<Running>> {
        ptrace::cont(self.tid, signal as u64).map_err(|e| self.error("cont", e))?;
        Ok(Tracee::of(self.tid))
    }

    /// Lets it run to the next entry or exit of a system call.
    pub fn to_syscall(self) -> Result<Tracee<Running>> {
        ptrace::syscall(self.tid, 0).map_err(|e| self.error("syscall", e))?;
        Ok(Tracee::of(self.tid))
    }

    /// Lets it go, delivering `signal` (0 = none).
    pub fn detach(self, signal: i32) -> Result<()> {
        ptrace::detach(self.tid, signal as u64).map_err(|e| self.error("detach", e))
    }
}
