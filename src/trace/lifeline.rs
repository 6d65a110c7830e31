//! What keeps a thread that works for us alive if this program dies (SIGKILL, the OOM killer): its lifeline.
//!
//! The kernel lets tracees go when their tracer dies, wherever they are. So whatever a thread of the target executes for us ends by
//! putting back what is the thread's own, from a [`Lifeline`] that was written before its registers were changed. In this order each
//! instant is safe: lifeline, registers, signal mask, run; then mask, registers. Between two batches a thread has its own
//! registers and mask.
//!
//! A tracer is told of the end by a signal that the target ignores, and which is dropped where nobody traces: a signal is not
//! "ignored" by the kernel while its receiver is traced (sig_ignored(), kernel/signal.c). Once the stop has been waited for, a
//! tracer's death drops it as well.
//!
//! The first call, which makes the scratch area, and the last, which removes it, need ground of their own: an [`Anchor`].

use super::batch::Batch;
use super::remote::Remote;
use super::{Error, Result, Running, Stop, Tracee, memory};
use crate::arch::restart::{self, EndedBy};
use crate::arch::{UserRegs, vdso};
use crate::image::Pid;
use crate::sys::abi::{BatchRow, Lifeline};
use crate::sys::wait::Status;
use crate::sys::{Errno, stub};
use std::fs::File;
use std::os::unix::fs::FileExt;
use zerocopy::IntoBytes;

/// How a process takes signals; bit n-1 for signal n.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reactions {
    /// `SIG_IGN`.
    pub ignored: u64,
    /// A handler.
    pub caught: u64,
}

/// Signals whose default action is none, the least noticed first. SIGCONT is none of them: sending it has effects of its own.
const BY_DEFAULT: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
/// Signals that a program may ignore, and that have no effects of their own.
const BY_CHOICE: [i32; 5] = [libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGIO];

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

impl Reactions {
    /// The signal to end a batch with in a thread that blocks these, none of `struck`. Best is one that is ignored and not blocked:
    /// if somebody sends it meanwhile, it is lost as it would have been. Where the program handles them all, its handler for
    /// SIGURG may run once for nothing if we die.
    fn choose(self, blocked: u64, struck: u64) -> Option<i32> {
        let ignores = |signal: i32| {
            self.ignored & bit(signal) != 0 || BY_DEFAULT.contains(&signal) && self.caught & bit(signal) == 0
        };
        let all = BY_DEFAULT[..2].iter().chain(&BY_CHOICE).chain(&BY_DEFAULT[2..]).copied();
        all.filter(|s| struck & bit(*s) == 0 && (ignores(*s) || BY_DEFAULT.contains(s)))
            .min_by_key(|s| (!ignores(*s), blocked & bit(*s) != 0))
    }

    /// Somebody may wait for this signal, or handle it.
    fn matters(self, signal: i32, blocked: u64) -> bool {
        (self.caught | blocked) & bit(signal) != 0
    }
}

/// Where in a row the third argument of its call is.
const SIGNAL_OF_ROW: usize = std::mem::offset_of!(BatchRow, args) + 2 * 8;

/// Room for a lifeline behind a batch, bytes.
pub(super) const ROOM: usize = size_of::<Lifeline>() + ALIGN;
const ALIGN: usize = 16;

/// What a thread executes for us until it stops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    reactions: Reactions,
    /// Address of the code from [`stub::Stub::stopping`] on.
    stopping: u64,
    /// Address of the lifeline.
    pub lifeline: u64,
    signal: i32,
    /// Address of the row at whose call it stops to be looked at, if one of a batch is.
    shown: Option<u64>,
    /// Signals that somebody else has sent meanwhile.
    struck: u64,
}

impl Flight {
    fn new(reactions: Reactions, blocked: u64, stopping: u64, lifeline: u64) -> Option<Self> {
        let signal = reactions.choose(blocked, 0)?;
        Some(Self { reactions, stopping, lifeline, signal, shown: None, struck: 0 })
    }

    fn is_at_stop(&self, regs: &UserRegs) -> bool {
        let stub = stub::stub();
        regs.rip == self.stopping + stub.stop - stub.stopping
    }

    fn is_shown(&self, regs: &UserRegs) -> bool {
        let stub = stub::stub();
        let called = self.stopping - stub.stopping + stub.called;
        self.shown.is_some_and(|row| row == regs.rbx && regs.rip == called)
    }

    /// What is blocked meanwhile.
    pub fn work_mask(&self) -> u64 {
        !bit(self.signal)
    }

    fn value(&self, saved: &UserRegs, mask: u64) -> Lifeline {
        let goes_on = restart::goes_on(saved);
        // Its handler writes below the stack, where the time-out of a call that is made again may be ([`super::waits`]).
        let handled = self.reactions.caught & bit(self.signal) != 0 && goes_on.ended_by == EndedBy::Any;
        Lifeline {
            regs: if handled { goes_on.ended } else { goes_on.regs },
            ended: goes_on.ended,
            mask,
            work_mask: self.work_mask(),
            signal: self.signal as u64,
            own_blocks: u64::from(mask & bit(self.signal) != 0),
            interrupted: goes_on.ended_by as u64,
            ..Lifeline::default()
        }
    }
}

impl Remote {
    /// From now on what it executes for us has a lifeline. Not for tasks that are being made: those end with us.
    pub(super) fn has_lifeline(&mut self, reactions: Reactions) {
        self.reactions = Some(reactions);
    }

    /// A batch as it lies at `at`, with the lifeline of this thread, if it has one, behind it.
    pub(super) fn lay_out(&self, batch: &Batch, code: u64, at: u64) -> (Vec<u8>, Option<Flight>) {
        let mut bytes = batch.lay_out(at);
        let flight = self.reactions.and_then(|reactions| {
            bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
            let stopping = code + stub::stub().stopping;
            let shown = batch.shown_at();
            let flight = Flight::new(reactions, self.saved_mask, stopping, at + bytes.len() as u64)?;
            if let Some(row) = shown {
                bytes[row + SIGNAL_OF_ROW..][..8].copy_from_slice(&(flight.signal as u64).to_ne_bytes());
            }
            Some(Flight { shown: shown.map(|row| at + row as u64), ..flight })
        });
        if let Some(flight) = &flight {
            bytes.extend_from_slice(flight.value(&self.saved, self.saved_mask).as_bytes());
        }
        (bytes, flight)
    }

    /// Waits for the end of a flight: the registers there. The thread has its own again.
    pub(super) fn land(&mut self, running: Tracee<Running>, flight: Flight) -> Result<UserRegs> {
        self.land_shown(running, flight, &mut || Ok(()))
    }

    /// The same; `look` is called where the batch is to be looked at, if it comes there.
    pub(super) fn land_shown(
        &mut self,
        running: Tracee<Running>,
        flight: Flight,
        look: &mut dyn FnMut() -> Result<()>,
    ) -> Result<UserRegs> {
        let regs = self.land_to_stay(running.wait()?, flight, look)?;
        self.come_home()?;
        Ok(regs)
    }

    /// The same of a thread that has stopped, at the end or before; and it stays there. Its lifeline has to stay, too, until it has
    /// come home.
    pub(super) fn land_to_stay(
        &mut self,
        mut stop: Stop,
        mut flight: Flight,
        look: &mut dyn FnMut() -> Result<()>,
    ) -> Result<UserRegs> {
        loop {
            let (tracee, status) = stop;
            self.stopped_as(tracee);
            let mut deliver = 0;
            if status == Status::Signal(flight.signal) {
                let regs = self.tracee().regs()?;
                let matters = flight.reactions.matters(flight.signal, self.saved_mask);
                if flight.is_at_stop(&regs) && (!matters || self.is_own_signal()?) {
                    self.stays_at = Some(regs);
                    return Ok(regs);
                }
                if flight.is_shown(&regs) && (!matters || self.is_own_signal()?) {
                    look()?;
                } else if matters {
                    deliver = flight.signal;
                    self.pass_on(&mut flight, &regs)?;
                }
            } else {
                self.note("a batch", status)?;
            }
            stop = self.take()?.cont(deliver)?.wait()?;
        }
    }

    fn is_own_signal(&self) -> Result<bool> {
        const SI_TKILL: i32 = -6;
        let info = self.tracee().siginfo()?;
        Ok(i32::from_ne_bytes([info[8], info[9], info[10], info[11]]) == SI_TKILL)
    }

    /// A signal of somebody else has come in the place of ours: it is blocked, so that delivering it queues it again, and another
    /// takes over.
    fn pass_on(&mut self, flight: &mut Flight, regs: &UserRegs) -> Result<()> {
        flight.struck |= bit(flight.signal);
        flight.signal = flight.reactions.choose(self.saved_mask, flight.struck).ok_or_else(|| Error::OddStop {
            pid: self.pid(),
            what: "a batch",
            status: "all signals that could end it were sent by others".to_owned(),
        })?;
        let value = flight.value(&self.saved, self.saved_mask);
        memory::force_write(self.pid(), flight.lifeline, value.as_bytes())?;
        if let Some(row) = flight.shown {
            memory::write(self.pid(), row + SIGNAL_OF_ROW as u64, &(flight.signal as u64).to_ne_bytes())?;
        }
        if flight.is_at_stop(regs) {
            self.tracee().set_regs(&UserRegs { rip: flight.stopping, ..*regs })?;
        }
        self.tracee().set_sigmask(flight.work_mask())
    }
}

/// Bytes of the vDSO's last page that belong to nothing in it, for calls that are made where there is no area of ours. They
/// hold code of ours only meanwhile; the page stays a private copy of the process. Where a `migrate` died in such a call, its code
/// stays, as a handler may still return into it; the next one takes the room before it.
#[derive(Debug)]
pub struct Anchor {
    at: u64,
    own: &'static [u8],
    memory: File,
}

impl Anchor {
    fn len() -> usize {
        let stub = stub::stub();
        let code = (stub.code.len() - stub.single as usize).next_multiple_of(ALIGN);
        (code + size_of::<Lifeline>()).next_multiple_of(ALIGN)
    }

    /// In a process whose `[vdso]` starts at `text`; `None` where it has no room.
    ///
    /// # Errors
    /// The memory of the process cannot be opened.
    pub fn new(pid: Pid, text: u64) -> Result<Option<Self>> {
        let own = vdso::own_text();
        let Some(spare) = vdso::spare(own, ALIGN) else { return Ok(None) };
        let memory = crate::proc::open_mem(pid).map_err(|e| failed(pid, text, 0, &e))?;
        let mut there = vec![0; own.len() - spare];
        memory.read_exact_at(&mut there, text + spare as u64).map_err(|e| failed(pid, text, there.len(), &e))?;
        // The same bytes in every process of this kernel, but for what a predecessor has left.
        let unused = |(_, (own, there)): &(usize, (&[u8], &[u8]))| own == there;
        let rooms = own[spare..].rchunks_exact(Self::len()).zip(there.rchunks_exact(Self::len()));
        let found = rooms.enumerate().find(unused);
        Ok(found.map(|(n, (bytes, _))| Self {
            at: text + (own.len() - (n + 1) * Self::len()) as u64,
            own: bytes,
            memory,
        }))
    }

    fn flight(&self, remote: &Remote) -> Option<Flight> {
        let stub = stub::stub();
        let code = stub.code.len() - stub.single as usize;
        let lifeline = self.at + code.next_multiple_of(ALIGN) as u64;
        Flight::new(remote.reactions?, remote.saved_mask, self.at + stub.stopping - stub.single, lifeline)
    }

    pub(super) fn write(&self, pid: Pid, address: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write_all_at(bytes, address).map_err(|e| failed(pid, address, bytes.len(), &e))
    }
}

fn failed(pid: Pid, address: u64, len: usize, error: &std::io::Error) -> Error {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    Error::Memory { pid, operation: "force-write", address, len, errno }
}

impl Remote {
    /// Makes calls from an anchor: puts its code there, and afterwards what was there before.
    pub(super) fn anchored<T>(
        &mut self,
        anchor: &Anchor,
        calls: impl FnOnce(&mut Self, Flight) -> Result<T>,
    ) -> Result<T> {
        let pid = self.pid();
        let no_lifeline = Error::OddStop { pid, what: "a call from the vDSO", status: "no lifeline".to_owned() };
        let flight = anchor.flight(self).ok_or(no_lifeline)?;
        let stub = stub::stub();
        let mut bytes = stub.code[stub.single as usize..].to_vec();
        bytes.resize((flight.lifeline - anchor.at) as usize, 0);
        bytes.extend_from_slice(flight.value(&self.saved, self.saved_mask).as_bytes());
        anchor.write(pid, anchor.at, &bytes)?;
        let done = calls(self, flight);
        if self.is_dead() {
            return done;
        }
        done.and_then(|done| anchor.write(pid, anchor.at, anchor.own).map(|()| done))
    }

    /// One system call in [`Self::anchored`].
    pub(super) fn anchored_call(
        &mut self,
        anchor: &Anchor,
        flight: Flight,
        number: i64,
        args: &[u64; 6],
    ) -> Result<std::result::Result<u64, Errno>> {
        let regs = self.saved.running_single(anchor.at, number as u64, args, flight.lifeline);
        let running = self.take_off(&regs, &flight)?;
        let ret = self.land(running, flight)?.r15 as i64;
        Ok(if (-4095..0).contains(&ret) { Err(Errno::from_raw(-ret as i32)) } else { Ok(ret as u64) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_is_one_that_nobody_would_miss() {
        let plain = Reactions::default();
        assert_eq!(plain.choose(0, 0), Some(libc::SIGURG));
        assert_eq!(plain.choose(bit(libc::SIGURG), 0), Some(libc::SIGWINCH));
        assert!(!plain.matters(libc::SIGURG, 0) && plain.matters(libc::SIGURG, bit(libc::SIGURG)));
        let ignores_pipes = Reactions { ignored: bit(libc::SIGPIPE), caught: bit(libc::SIGURG) | bit(libc::SIGWINCH) };
        assert_eq!(ignores_pipes.choose(0, 0), Some(libc::SIGPIPE));
        assert_eq!(ignores_pipes.choose(u64::MAX, 0), Some(libc::SIGPIPE), "blocked, but no handler runs");
        let handles_all = Reactions { ignored: 0, caught: u64::MAX };
        assert_eq!(handles_all.choose(0, 0), Some(libc::SIGURG));
        assert_eq!(handles_all.choose(bit(libc::SIGURG), 0), Some(libc::SIGWINCH));
        let all: u64 = BY_DEFAULT.iter().map(|s| bit(*s)).sum();
        assert_eq!(handles_all.choose(0, all), None);
    }

    #[test]
    fn this_kernels_vdso_has_room() {
        let text = vdso::own_text();
        let spare = vdso::spare(text, ALIGN).unwrap();
        assert!(text.len() - spare >= Anchor::len(), "{} bytes", text.len() - spare);
        assert!(vdso::functions(text).iter().all(|f| f.offset + f.size <= spare));
    }
}
