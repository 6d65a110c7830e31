//! System calls inside a stopped task, through a scratch area in its address space.

use super::batch::{Batch, Results};
use super::lifeline::{self, Anchor, Flight, Reactions};
use super::waits::Wait;
use super::{Error, Result, Running, Stopped, Tracee, memory};
use crate::arch::{self, UserRegs};
use crate::image::Pid;
use crate::sys::abi::KernelSigaction;
use crate::sys::wait::Status;
use crate::sys::{Errno, stub};
use std::time::Duration;
use zerocopy::IntoBytes;

/// Our area in a target's address space: one page of code (never writable), then room for tables and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scratch {
    /// The code page.
    pub code: u64,
    /// Where tables and data go.
    pub data: u64,
    /// Its size, bytes.
    pub data_len: u64,
}

impl Scratch {
    /// Arguments of munmap(2) for all of it.
    fn whole(&self) -> [u64; 6] {
        [self.code, self.data + self.data_len - self.code, 0, 0, 0, 0]
    }
}

/// Bytes for tables and data in an ordinary scratch area. Only touched pages cost anything.
pub const DATA_LEN: u64 = 1 << 20;
const PAGE: u64 = crate::image::mm::PAGE;

/// A thread of a group whose batches run at the same time.
struct Member<'a> {
    thread: &'a mut Remote,
    batch: &'a Batch,
    at: u64,
    flight: Option<Flight>,
}

/// A stopped thread that can run system calls for us: its registers are lent out and given back by [`Self::give_back`].
#[derive(Debug)]
pub struct Remote {
    tracee: Option<Tracee<Stopped>>,
    pid: Pid,
    /// Registers as they were when it stopped (fixed up for restarts and rseq): what it goes on with.
    pub saved: UserRegs,
    /// Blocked signals as they were.
    pub saved_mask: u64,
    lent: bool,
    /// How its process takes signals, where its death must not be ours ([`super::lifeline`]).
    pub(super) reactions: Option<Reactions>,
    /// The wait that our stop has interrupted.
    pub wait: Wait,
    /// Signals that arrived while it worked for us, to be delivered at the end.
    pub late_signals: Vec<i32>,
    /// The newest child that the kernel attached for us (`TRACE_FORK` and the like).
    pub last_child: Option<Pid>,
}

/// Bytes of `syscall; int3`.
const SYSCALL_AND_INT3: u64 = 3;

/// Everything blocked but SIGTRAP: the kernel resets the action of a blocked SIGTRAP when `int3` hits it (without a lifeline).
const WORK_MASK: u64 = !(1 << (libc::SIGTRAP - 1));

impl Remote {
    /// Takes a stopped thread with its own registers and mask.
    pub fn new(tracee: Tracee<Stopped>) -> Result<Self> {
        let saved = tracee.regs()?;
        let saved_mask = tracee.sigmask()?;
        Ok(Self {
            pid: tracee.tid(),
            tracee: Some(tracee),
            saved,
            saved_mask,
            lent: false,
            reactions: None,
            wait: Wait::default(),
            late_signals: Vec::new(),
            last_child: None,
        })
    }

    /// Takes a thread that this one has made in a batch, stopped before its first instruction: it has the registers and the mask of
    /// its creator at that moment, which are ours, and will get its own before it is released.
    pub fn made(&self, tracee: Tracee<Stopped>) -> Self {
        Self {
            pid: tracee.tid(),
            tracee: Some(tracee),
            saved: self.saved,
            saved_mask: self.saved_mask,
            lent: self.lent,
            reactions: self.reactions,
            wait: Wait::default(),
            late_signals: Vec::new(),
            last_child: None,
        }
    }

    /// Thread id as we see it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The stopped thread.
    pub fn tracee(&self) -> &Tracee<Stopped> {
        self.tracee.as_ref().expect("a thread is only absent while it runs for us, or after it died")
    }

    /// It died while it ran for us.
    pub fn is_dead(&self) -> bool {
        self.tracee.is_none()
    }

    pub(super) fn lend(&mut self) -> Result<()> {
        if !self.lent {
            self.lent = true;
            self.tracee().set_sigmask(WORK_MASK)?;
        }
        Ok(())
    }

    /// Puts mask and registers back, if they were lent out. In this order: where it is, a lifeline puts both back.
    pub fn give_back(&mut self) -> Result<()> {
        if std::mem::take(&mut self.lent) {
            self.tracee().set_sigmask(self.saved_mask)?;
            self.tracee().set_regs(&self.saved)?;
        }
        Ok(())
    }

    /// The stopped thread, to let it run.
    pub(super) fn take(&mut self) -> Result<Tracee<Stopped>> {
        self.tracee.take().ok_or(Error::Died { pid: self.pid })
    }

    /// It has stopped.
    pub(super) fn stopped_as(&mut self, tracee: Tracee<Stopped>) {
        self.tracee = Some(tracee);
    }

    /// Lends it with these signals blocked.
    pub(super) fn block(&mut self, mask: u64) -> Result<()> {
        self.lent = true;
        self.tracee().set_sigmask(mask)
    }

    /// Lets it go on, without a signal, to the stop that is wanted.
    pub(super) fn until(&mut self, wanted: impl Fn(Status) -> bool) -> Result<()> {
        // Stops that were asked for before may come first, a few at most.
        for _ in 0..8 {
            if wanted(self.deliver(0)?) {
                return Ok(());
            }
        }
        Err(Error::OddStop { pid: self.pid, what: "into its stop", status: "others, again and again".to_owned() })
    }

    /// Lets it go on with a signal, to its next stop.
    pub(super) fn deliver(&mut self, signal: i32) -> Result<Status> {
        let tracee = self.tracee.take().ok_or(Error::Died { pid: self.pid })?;
        let (tracee, status) = tracee.cont(signal)?.wait()?;
        self.tracee = Some(tracee);
        Ok(status)
    }

    /// Lets it run for about so long from where it is, but into no system call: it stops before the first. Its signals are
    /// delivered. Its registers and mask are what it has then.
    pub(super) fn run_for(&mut self, time: Duration) -> Result<()> {
        const SYSCALL: u64 = 2;
        let mut running = self.take()?.to_syscall()?;
        std::thread::sleep(time);
        running.interrupt()?;
        loop {
            let (tracee, status) = running.wait()?;
            if matches!(status, Status::EventStop(_)) {
                self.saved = tracee.regs()?;
                self.saved_mask = tracee.sigmask()?;
                self.tracee = Some(tracee);
                return Ok(());
            }
            // This stop may have cancelled the one that was asked for, which is now the next before any instruction.
            tracee.interrupt()?;
            let deliver = match status {
                Status::Signal(signal) => signal,
                Status::Syscall => {
                    // The call becomes none and its instruction is the next again, all at once: where the number is -1 the
                    // kernel leaves `rax` alone (do_syscall_64(), arch/x86).
                    let entry = tracee.regs()?;
                    let (rip, rax) = (entry.rip - SYSCALL, entry.orig_rax);
                    tracee.set_regs(&UserRegs { rip, rax, orig_rax: u64::MAX, ..entry })?;
                    0
                }
                _ => 0,
            };
            running = tracee.cont(deliver)?;
        }
    }

    /// Ends the loan and the tracing: the thread goes on, with the signals that came meanwhile.
    pub fn release(mut self) -> Result<()> {
        if self.tracee.is_none() {
            return Ok(());
        }
        self.give_back()?;
        let signal = self.late_signals.pop().unwrap_or(0);
        self.tracee.take().expect("checked above").detach(signal)
    }

    /// The same for a thread of a process that a SIGSTOP waits for ([`super::freeze::Frozen::hold`]): takes the signal, so
    /// that the process never stops by it.
    pub fn release_held(mut self) -> Result<()> {
        if self.tracee.is_none() {
            return Ok(());
        }
        self.give_back()?;
        let signal = self.late_signals.pop().unwrap_or(0);
        let tracee = self.tracee.take().expect("checked above");
        if !is_held(self.pid)? {
            return tracee.detach(signal);
        }
        let mut running = tracee.cont(signal)?;
        loop {
            // No instruction of the program runs before the signal is seen: others that are delivered first only set up
            // their handlers' frames.
            let (stopped, status) = running.wait()?;
            running = match status {
                Status::Signal(libc::SIGSTOP) => return stopped.detach(0),
                Status::Signal(other) => stopped.cont(other)?,
                _ => stopped.cont(0)?,
            };
        }
    }

    /// Whether the signal that holds its process ([`super::freeze::Frozen::hold`]) came while a call of ours was made; then it is
    /// forgotten.
    pub fn take_hold(&mut self) -> bool {
        let before = self.late_signals.len();
        self.late_signals.retain(|signal| *signal != libc::SIGSTOP);
        self.late_signals.len() < before
    }

    /// Gives up the handle of the stopped thread.
    pub fn into_tracee(mut self) -> Option<Tracee<Stopped>> {
        self.tracee.take()
    }

    /// One system call at a `syscall` instruction, by stepping over its entry and exit: needs no memory of ours.
    pub fn call_at(&mut self, ip: u64, number: i64, args: &[u64; 6]) -> Result<std::result::Result<u64, Errno>> {
        self.lend()?;
        self.tracee().set_regs(&self.saved.calling(ip, number as u64, args))?;
        for _ in 0..2 {
            self.run_to("a single system call", |s| s == Status::Syscall, true)?;
        }
        let ret = self.tracee().regs()?.rax as i64;
        Ok(if (-4095..0).contains(&ret) { Err(Errno::from_raw(-ret as i32)) } else { Ok(ret as u64) })
    }

    /// Makes a scratch area: at `at` if given (it must be free), else where the kernel likes. `syscall_ip` is the address of
    /// a `syscall` instruction in the target.
    pub fn make_scratch(&mut self, syscall_ip: u64, at: Option<u64>) -> Result<Scratch> {
        let scratch = self.map_scratch(at, |remote, args| remote.call_at(syscall_ip, libc::SYS_mmap, args))?;
        memory::force_write(self.pid, scratch.code, stub::stub().code)?;
        Ok(scratch)
    }

    /// The same from an anchor.
    pub fn make_scratch_from(&mut self, anchor: &Anchor) -> Result<Scratch> {
        self.anchored(anchor, |remote, flight| {
            let call = |remote: &mut Self, args: &[u64; 6]| remote.anchored_call(anchor, flight, libc::SYS_mmap, args);
            let scratch = remote.map_scratch(None, call)?;
            anchor.write(remote.pid, scratch.code, stub::stub().code)?;
            Ok(scratch)
        })
    }

    fn map_scratch(
        &mut self,
        at: Option<u64>,
        mut mmap: impl FnMut(&mut Self, &[u64; 6]) -> Result<std::result::Result<u64, Errno>>,
    ) -> Result<Scratch> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let flags = flags | if at.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
        let len = PAGE + DATA_LEN;
        let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let rx = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let failed = |pid, call: &str, errno| Error::Call { pid, call: call.to_owned(), errno };
        // The code page is executable from the start and never writable: PR_SET_MDWE and SELinux forbid the change.
        let code = mmap(self, &[at.unwrap_or(0), len, rx, flags as u64, u64::MAX, 0])?
            .map_err(|e| failed(self.pid, "mmap (scratch)", e))?;
        let fixed = (flags & !libc::MAP_FIXED_NOREPLACE | libc::MAP_FIXED) as u64;
        mmap(self, &[code + PAGE, DATA_LEN, rw, fixed, u64::MAX, 0])?
            .map_err(|e| failed(self.pid, "mmap (scratch data)", e))?;
        Ok(Scratch { code, data: code + PAGE, data_len: DATA_LEN })
    }

    /// Runs a batch. Errors of single calls are in the results.
    pub fn run(&mut self, scratch: &Scratch, batch: &Batch) -> Result<Results> {
        if batch.is_empty() {
            return Ok(batch.results(Vec::new()));
        }
        if self.room(batch) as u64 > scratch.data_len {
            return self.run_large(scratch, batch);
        }
        self.run_in(scratch.code, scratch.data, batch)
    }

    /// Runs a batch and makes the failure of a call that had to succeed an error.
    pub fn run_all(&mut self, scratch: &Scratch, batch: &Batch) -> Result<Results> {
        let results = self.run(scratch, batch)?;
        match results.first_error() {
            Some((_, call, errno)) => Err(Error::Call { pid: self.pid, call, errno }),
            None => Ok(results),
        }
    }

    /// Runs a batch that shows something in its middle ([`Batch::show`]): `look` is given what its calls have returned so far.
    /// What it gives is `None` where a call before that has failed.
    ///
    /// # Errors
    /// As for [`Self::run`]; also for a thread whose death is to be ours.
    pub fn run_shown<T>(
        &mut self,
        scratch: &Scratch,
        batch: &Batch,
        look: impl Fn(&Results) -> T,
    ) -> Result<(Results, Option<T>)> {
        let (bytes, flight) = self.lay_out(batch, scratch.code, scratch.data);
        let no_lifeline = Error::OddStop { pid: self.pid, what: "a batch", status: "no lifeline".to_owned() };
        let flight = flight.filter(|_| bytes.len() as u64 <= scratch.data_len).ok_or(no_lifeline)?;
        memory::write(self.pid, scratch.data, &bytes)?;
        let (pid, mut seen) = (self.pid, None);
        let results = || {
            let mut bytes = vec![0; batch.read_back_len()];
            memory::read(pid, scratch.data, &mut bytes)?;
            Ok(batch.results(bytes))
        };
        let running = self.start(scratch.code, scratch.data, batch.len() as u64, Some(flight))?;
        self.land_shown(running, flight, &mut || results().map(|results| seen = Some(look(&results))))?;
        Ok((results()?, seen))
    }

    /// One system call through the scratch area.
    pub fn call(&mut self, scratch: &Scratch, number: i64, args: &[u64]) -> Result<std::result::Result<u64, Errno>> {
        let mut batch = Batch::new();
        let args: Vec<super::Arg> = args.iter().map(|&a| a.into()).collect();
        let call = batch.may(number, &args);
        Ok(self.run(scratch, &batch)?.get(call))
    }

    /// Runs a batch in each of several threads of one process, all at the same time: what one waits for, the others use.
    ///
    /// # Errors
    /// The first thread that could not; the others have run to their end all the same.
    pub fn run_each(threads: &mut [Self], scratch: &Scratch, batches: &[Batch]) -> Result<Vec<Results>> {
        let mut all = Vec::with_capacity(threads.len());
        let mut todo = threads.iter_mut().zip(batches).peekable();
        while todo.peek().is_some() {
            let (mut group, mut bytes) = (Vec::new(), Vec::new());
            while let Some((thread, batch)) =
                todo.next_if(|(thread, batch)| bytes.len() + thread.room(batch) <= scratch.data_len as usize)
            {
                let at = scratch.data + bytes.len() as u64;
                let (laid_out, flight) = thread.lay_out(batch, scratch.code, at);
                bytes.extend(laid_out);
                bytes.resize(bytes.len().next_multiple_of(16), 0);
                group.push(Member { thread, batch, at, flight });
            }
            if group.is_empty() {
                let Some((thread, batch)) = todo.next() else { break };
                all.push(thread.run(scratch, batch)?);
                continue;
            }
            all.extend(Self::run_group(scratch, &mut group, &mut bytes)?);
        }
        Ok(all)
    }

    /// Runs batches that are laid out one behind the other in `bytes`, each for its address.
    fn run_group(scratch: &Scratch, group: &mut [Member<'_>], bytes: &mut [u8]) -> Result<Vec<Results>> {
        let Some(first) = group.first() else { return Ok(Vec::new()) };
        let pid = first.thread.pid;
        memory::write(pid, scratch.data, bytes)?;
        let mut underway = Vec::with_capacity(group.len());
        // Everybody gets ready before the first is let go: see [`super::stopping`].
        let mut ready = |Member { thread, batch, at, flight }: &mut Member<'_>| {
            thread.ready(scratch.code, *at, batch.len() as u64, *flight)
        };
        let mut go = |member: &mut Member<'_>| member.thread.take()?.cont(0).map(|running| underway.push(running));
        let mut done = group.iter_mut().try_for_each(&mut ready).and_then(|()| group.iter_mut().try_for_each(&mut go));
        // Whoever was started has to be waited for, whatever became of the others.
        for (member, running) in group.iter_mut().zip(underway) {
            done = done.and(member.thread.arrive(running, member.flight));
        }
        done?;
        memory::read(pid, scratch.data, bytes)?;
        let part = |Member { batch, at, .. }: &Member<'_>| {
            let from = (at - scratch.data) as usize;
            batch.results(bytes[from..from + batch.read_back_len()].to_vec())
        };
        Ok(group.iter().map(part).collect())
    }

    /// Bytes that a batch takes in a scratch area.
    fn room(&self, batch: &Batch) -> usize {
        batch.size() + if self.reactions.is_some() { lifeline::ROOM } else { 0 }
    }

    fn start(&mut self, code: u64, data: u64, calls: u64, flight: Option<Flight>) -> Result<Tracee<Running>> {
        self.ready(code, data, calls, flight)?;
        self.take()?.cont(0)
    }

    /// Has it execute a batch once it goes on.
    fn ready(&mut self, code: u64, data: u64, calls: u64, flight: Option<Flight>) -> Result<()> {
        let regs = self.saved.running_batch(code, data, calls, flight.map_or(0, |flight| flight.lifeline));
        if let Some(flight) = flight {
            return self.attach(&regs, &flight);
        }
        self.lend()?;
        self.tracee().set_regs(&regs)
    }

    /// Lets it execute what its lifeline ends. Registers before the mask: with its own registers and our mask it could not go on.
    pub(super) fn take_off(&mut self, regs: &UserRegs, flight: &Flight) -> Result<Tracee<Running>> {
        self.attach(regs, flight)?;
        self.take()?.cont(0)
    }

    fn attach(&mut self, regs: &UserRegs, flight: &Flight) -> Result<()> {
        self.lent = true;
        self.tracee().set_regs(&regs.interrupted_at(regs.rip, &self.saved))?;
        self.tracee().set_sigmask(flight.work_mask())
    }

    /// Waits for a batch that was started to end.
    fn arrive(&mut self, running: Tracee<Running>, flight: Option<Flight>) -> Result<()> {
        if let Some(flight) = flight {
            return self.land(running, flight).map(drop);
        }
        let is_end = |s| s == Status::Signal(libc::SIGTRAP);
        if self.stopped(running, "a batch", is_end)? { Ok(()) } else { self.run_to("a batch", is_end, false) }
    }

    fn run_in(&mut self, code: u64, data: u64, batch: &Batch) -> Result<Results> {
        let (bytes, flight) = self.lay_out(batch, code, data);
        memory::write(self.pid, data, &bytes)?;
        let running = self.start(code, data, batch.len() as u64, flight)?;
        self.arrive(running, flight)?;
        let mut bytes = vec![0; batch.read_back_len()];
        memory::read(self.pid, data, &mut bytes)?;
        Ok(batch.results(bytes))
    }

    /// A batch that does not fit gets an area of its own, unmapped again afterwards.
    fn run_large(&mut self, scratch: &Scratch, batch: &Batch) -> Result<Results> {
        let len = (self.room(batch) as u64).next_multiple_of(PAGE);
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let area = self
            .call(scratch, libc::SYS_mmap, &[0, len, rw, flags, u64::MAX, 0])?
            .map_err(|errno| Error::Call { pid: self.pid, call: "mmap (large batch)".to_owned(), errno })?;
        let results = self.run_in(scratch.code, area, batch);
        let _ = self.call(scratch, libc::SYS_munmap, &[area, len])?;
        results
    }

    /// Runs from these registers a system call that is expected to wait, and interrupts it at once: what it returned to the
    /// kernel's restart logic. `regs.rip` is a `syscall` with an `int3` behind it.
    pub fn run_interrupted(&mut self, regs: &UserRegs) -> Result<u64> {
        self.lend()?;
        let mut wait = Duration::ZERO;
        loop {
            let tracee = self.tracee.take().ok_or(Error::Died { pid: self.pid })?;
            tracee.set_regs(regs)?;
            let running = tracee.cont(0)?;
            // A task of low priority may need a while to get as far as its call.
            std::thread::sleep(wait);
            running.interrupt()?;
            let (tracee, status) = running.wait()?;
            let ret = tracee.regs()?;
            self.tracee = Some(tracee);
            match status {
                // Interrupted before it had entered the call: once more, and later.
                Status::EventStop(_) if ret.rip == regs.rip => wait = wait * 2 + Duration::from_micros(10),
                // It returned at once and hit the trap: of its two stops, the trap's and the interrupt's, the other is still
                // to come, in either order. A trap left pending would end the program at its release.
                Status::EventStop(_) if ret.rip == regs.rip + SYSCALL_AND_INT3 => return self.after_trap(ret.rax),
                Status::Signal(libc::SIGTRAP) => return self.after_trap(ret.rax),
                Status::EventStop(_) => return Ok(ret.rax),
                s => return Err(Error::OddStop { pid: self.pid, what: "a wait", status: format!("{s:?}") }),
            }
        }
    }

    fn after_trap(&mut self, ret: u64) -> Result<u64> {
        let tracee = self.tracee.take().ok_or(Error::Died { pid: self.pid })?;
        let (tracee, _) = tracee.cont(0)?.wait()?;
        self.tracee = Some(tracee);
        Ok(ret)
    }

    /// Sets the action of SIGTRAP. The kernel resets it from "ignore" to the default at the end of every batch that has no
    /// lifeline, so this comes after the last.
    pub fn set_trap_action(&mut self, scratch: &Scratch, action: &KernelSigaction) -> Result<()> {
        memory::write(self.pid, scratch.data, action.as_bytes())?;
        let ip = scratch.code + stub::stub().syscall;
        let args = [libc::SIGTRAP as u64, scratch.data, 0, 8, 0, 0];
        self.call_at(ip, libc::SYS_rt_sigaction, &args)?.map(drop).map_err(|errno| Error::Call {
            pid: self.pid,
            call: "rt_sigaction (SIGTRAP)".to_owned(),
            errno,
        })
    }

    /// Removes the scratch area; the call is made from the area itself, so the thread must get its registers back next.
    pub fn drop_scratch(&mut self, scratch: &Scratch) -> Result<()> {
        let ip = scratch.code + stub::stub().syscall;
        let done = self.call_at(ip, libc::SYS_munmap, &scratch.whole())?;
        self.unmapped(done)
    }

    /// The same from an anchor.
    pub fn drop_scratch_from(&mut self, anchor: &Anchor, scratch: &Scratch) -> Result<()> {
        let done = self.anchored(anchor, |remote, flight| {
            remote.anchored_call(anchor, flight, libc::SYS_munmap, &scratch.whole())
        })?;
        self.unmapped(done)
    }

    fn unmapped(&self, done: std::result::Result<u64, Errno>) -> Result<()> {
        let failed = |errno| Error::Call { pid: self.pid, call: "munmap (scratch)".to_owned(), errno };
        done.map(drop).map_err(failed)
    }

    /// Lets it run until it stops as wanted; signals on the way are kept for later, group stops are passed over.
    fn run_to(&mut self, what: &'static str, wanted: impl Fn(Status) -> bool, to_syscall: bool) -> Result<()> {
        loop {
            let tracee = self.tracee.take().ok_or(Error::Died { pid: self.pid })?;
            let running = if to_syscall { tracee.to_syscall()? } else { tracee.cont(0)? };
            if self.stopped(running, what, &wanted)? {
                return Ok(());
            }
        }
    }

    /// Waits for its next stop: is it the wanted one?
    fn stopped(
        &mut self,
        running: Tracee<Running>,
        what: &'static str,
        wanted: impl Fn(Status) -> bool,
    ) -> Result<bool> {
        let (tracee, status) = running.wait()?;
        let ours = self.is_ours(&tracee, status);
        self.tracee = Some(tracee);
        if wanted(status) && ours {
            return Ok(true);
        }
        self.note(what, status).map(|()| false)
    }

    /// A stop on the way to the one that is waited for.
    pub(super) fn note(&mut self, what: &'static str, status: Status) -> Result<()> {
        match status {
            Status::EventStop(_) => {}
            Status::Event(event) => self.note_child(event)?,
            Status::Signal(signal) if !is_fault(signal) => self.late_signals.push(signal),
            s => return Err(Error::OddStop { pid: self.pid, what, status: format!("{s:?}") }),
        }
        Ok(())
    }

    /// Fork, vfork and clone events name a child that is attached by now.
    fn note_child(&mut self, event: i32) -> Result<()> {
        if (libc::PTRACE_EVENT_FORK..=libc::PTRACE_EVENT_CLONE).contains(&event) {
            self.last_child = Some(Pid(self.tracee().event_message()? as i32));
        }
        Ok(())
    }

    /// A SIGTRAP that `int3` raised, as opposed to one that somebody sent.
    fn is_ours(&self, tracee: &Tracee<Stopped>, status: Status) -> bool {
        const SI_KERNEL: i32 = 0x80;
        status != Status::Signal(libc::SIGTRAP)
            || tracee.siginfo().is_ok_and(|i| i32::from_ne_bytes([i[8], i[9], i[10], i[11]]) == SI_KERNEL)
    }
}

/// A SIGSTOP waits for the thread or its process: a SIGCONT of anybody takes it back.
pub(super) fn is_held(tid: Pid) -> Result<bool> {
    let status = crate::proc::ProcDir::open(tid)?.status(&mut Vec::new())?;
    Ok((status.sig_pnd | status.shd_pnd) & (1 << (libc::SIGSTOP - 1)) != 0)
}

fn is_fault(signal: i32) -> bool {
    matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGSYS)
}

/// Address of a `syscall` instruction in the vDSO of a task whose `[vdso]` starts at `text`. The same kernel gives every
/// 64-bit task the same text, so our own tells where it is.
pub fn vdso_syscall(text: u64) -> Option<u64> {
    arch::vdso::syscall_offset(arch::vdso::own_text()).map(|offset| text + offset)
}
