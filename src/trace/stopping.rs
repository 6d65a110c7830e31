//! Stopping processes: every thread of theirs is seized, asked, and waited for, until no new one is found.

use super::freeze::{self, DEADLINE, FrozenProcess};
use super::remote::Remote;
use super::sleepers::Asleep;
use super::task::wchan;
use super::witness::{self, Witness};
use super::{Error, Result, Running, Stopped, Tracee, memory, waits};
use crate::image::Pid;
use crate::proc::ProcDir;
use crate::sys::abi::RseqCs;
use crate::sys::ptrace::options;
use crate::sys::wait::{Status, take_end};
use crate::sys::{Errno, ptrace};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Options of all tracees. Execution of another program is reported because a task that is asked to stop while it is inside
/// execve(2) goes on without a stop, once in forty times (measured on 6.18); it is asked again at that report.
const WANTED: u64 = options::TRACE_SYSGOOD | options::TRACE_EXEC;

/// For so long a stop is awaited without a sleep: most come within microseconds.
const AWAKE: Duration = Duration::from_micros(100);

/// A process some of whose threads have been asked to stop and have not done so yet.
#[derive(Debug)]
pub struct Stopping<'a> {
    process: FrozenProcess,
    slept: &'a HashMap<Pid, Asleep>,
    known: HashSet<Pid>,
    running: Vec<Tracee<Running>>,
}

/// Stops all threads of these processes; those that have vanished are left out. `slept`: what was known of them before.
/// `asked` is called when all that were there have been asked.
///
/// # Errors
/// What went wrong, with all processes as far as they are stopped: see [`let_go`].
pub fn stop<'a>(
    pids: &[Pid],
    slept: &'a HashMap<Pid, Asleep>,
    deadline: Instant,
    asked: &mut dyn FnMut() -> Result<()>,
) -> std::result::Result<Vec<FrozenProcess>, (Error, Vec<Stopping<'a>>)> {
    let mut all = Vec::with_capacity(pids.len());
    for pid in pids {
        match Stopping::new(*pid, slept) {
            Ok(found) => all.extend(found),
            Err(e) => return Err((e, all)),
        }
    }
    // Before anybody is stopped.
    let witness = Witness::new();
    match stop_threads(&mut all, deadline, asked, &witness) {
        Ok(()) => Ok(all.into_iter().filter_map(Stopping::stopped_whole).collect()),
        Err(e) => Err((e, all)),
    }
}

fn stop_threads(
    all: &mut [Stopping<'_>],
    deadline: Instant,
    asked: &mut dyn FnMut() -> Result<()>,
    witness: &Witness,
) -> Result<()> {
    loop {
        let mut more = false;
        for process in &mut *all {
            more |= process.seize_new(witness)?;
        }
        asked()?;
        if !more {
            return Ok(());
        }
        for process in &mut *all {
            process.wait(deadline)?;
        }
        if Instant::now() > deadline
            && let Some(process) = all.first()
        {
            return Err(does_not_stop(process.process.pid));
        }
    }
}

fn does_not_stop(pid: Pid) -> Error {
    Error::DoesNotStop { pid, ms: DEADLINE.as_millis() as u64, wchan: wchan(pid) }
}

/// What is to be seen of who has the number of a process.
struct Leader {
    lives: bool,
    traced: bool,
}

impl<'a> Stopping<'a> {
    fn new(pid: Pid, slept: &'a HashMap<Pid, Asleep>) -> Result<Option<Self>> {
        let dir = match ProcDir::open(pid) {
            Ok(dir) => dir,
            Err(e) if e.is_gone() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        Ok(Some(Self { process: FrozenProcess::new(pid, dir), slept, known: HashSet::new(), running: Vec::new() }))
    }

    /// Seizes the threads that have not been met yet; whether there were any, or may be.
    fn seize_new(&mut self, witness: &Witness) -> Result<bool> {
        if self.stands_whole() {
            return Ok(false);
        }
        let (tids, whole) = match self.process.dir.all_tasks() {
            Ok(found) => found,
            Err(e) if e.is_gone() && self.process.threads.is_empty() => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        // Whom an execution has ended meanwhile: the list ascends.
        self.process.threads.retain(|thread| !whole || tids.binary_search(&thread.pid()).is_ok());
        // All are seized before the first is asked: asked one right after the other, they stop while the next are asked, and no
        // processor that they run on goes idle in between.
        let seized = self.seize_all(tids, witness);
        self.look_at_leader();
        // Also after a failure: who is seized and not asked could never be let go.
        let asked = self.running.iter().map(|tracee| match tracee.interrupt() {
            // Its end is taken like any other.
            Err(Error::Died { .. }) => Ok(()),
            asked => asked,
        });
        seized.and(asked.fold(Ok(()), Result::and))?;
        Ok(!whole || !self.running.is_empty() || !self.known.contains(&self.process.pid))
    }

    /// Whether all threads that there are have stopped: none of those that we hold can have ended unnoticed, so where the kernel
    /// counts no more there is no other. A list of them costs more.
    fn stands_whole(&mut self) -> bool {
        let held = self.process.threads.len();
        let all_stand = self.running.is_empty() && !self.process.zombie && self.known.contains(&self.process.pid);
        if held == 0 || !all_stand || !self.process.dir.count_tasks().is_ok_and(|there| there == held as u64) {
            return false;
        }
        // Afterwards: one who has replaced all others by then is not taken for its leader.
        self.look_at_leader();
        self.running.is_empty() && self.process.threads.len() == held
    }

    /// Seizes those of these threads that have not been met yet.
    fn seize_all(&mut self, tids: Vec<Pid>, witness: &Witness) -> Result<()> {
        for tid in tids {
            if self.known.insert(tid)
                && let Some(tracee) = witness.during(self.process.pid, tid, || self.seize(tid))?
            {
                self.running.push(tracee);
            }
        }
        Ok(())
    }

    fn seize(&mut self, tid: Pid) -> Result<Option<Tracee<Running>>> {
        match Tracee::seize(tid, WANTED | options::SUSPEND_SECCOMP) {
            Err(Error::Ptrace { errno: Errno::EPERM | Errno::EINVAL, .. }) => self.seize_refused(tid),
            Err(Error::Died { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Finds out why a task cannot be seized: it has ended, is traced, or we may not use one of the options.
    fn seize_refused(&mut self, tid: Pid) -> Result<Option<Tracee<Running>>> {
        let mut buf = Vec::new();
        let status = match self.process.dir.thread(tid).and_then(|d| d.status(&mut buf)) {
            Err(e) if e.is_gone() => return Ok(None),
            status => status?,
        };
        if matches!(status.state, b'Z' | b'X') {
            self.process.zombie |= tid == self.process.pid;
            return Ok(None);
        }
        // One of its threads whom we have met has its number now.
        let another = tid == self.process.pid && self.known.len() > 1;
        if another && status.tracer_pid == nix::unistd::gettid().as_raw() {
            return Ok(Some(Tracee::attached(tid)));
        }
        if status.tracer_pid != 0 {
            return Err(Error::Traced { pid: tid, tracer: Pid(status.tracer_pid) });
        }
        // Without CAP_SYS_ADMIN, or with a filter of our own, filters cannot be suspended; only tasks without any can
        // then be worked with.
        if status.seccomp == 0 {
            return Self::seize_patiently(tid).map(Some);
        }
        Err(Error::Ptrace { pid: tid, operation: "seize", errno: Errno::EPERM })
    }

    /// A leader may just have ended, and be another thread of its process by now, which executes another program.
    fn seize_patiently(tid: Pid) -> Result<Tracee<Running>> {
        const TIMES: u32 = 5;
        let mut seized = Tracee::seize(tid, WANTED);
        for _ in 1..TIMES {
            if !matches!(seized, Err(Error::Ptrace { errno: Errno::EPERM, .. })) {
                break;
            }
            std::thread::sleep(Duration::from_micros(50));
            seized = Tracee::seize(tid, WANTED);
        }
        seized
    }

    /// Waits until every thread that was asked has stopped.
    fn wait(&mut self, deadline: Instant) -> Result<()> {
        let began = Instant::now();
        let mut pass = 0u32;
        while !self.running.is_empty() {
            for tracee in std::mem::take(&mut self.running) {
                self.look(tracee)?;
            }
            if let Some(tracee) = self.running.first()
                && Instant::now() > deadline
            {
                return Err(does_not_stop(tracee.tid()));
            }
            if began.elapsed() < AWAKE {
                // On a busy machine others may have the processor for long after the first time.
                std::thread::yield_now();
                continue;
            }
            pass += 1;
            if pass % 8 == 4 {
                self.forget_lost_leader();
                // Who executes another program stops only when the ends of those have been taken whom it kills, stopped or not.
                self.process.threads.retain(|thread| take_end(thread.pid()) == Ok(false));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Looks whether a thread has stopped, or ended.
    fn look(&mut self, tracee: Tracee<Running>) -> Result<()> {
        let tid = tracee.tid();
        match tracee.try_wait() {
            Err(Error::Died { .. }) => {
                if tid == self.process.pid {
                    self.leader_lost();
                } else {
                    self.look_at_leader();
                }
            }
            Err(e) => return Err(e),
            Ok(Err(still)) => self.running.push(still),
            Ok(Ok((stopped, status))) => match self.stopped(stopped, status) {
                // Killed in its stop: whoever executes another program waits until that is taken.
                Err(Error::Died { .. }) => self.running.push(Tracee::attached(tid)),
                on => self.running.extend(on?),
            },
        }
        Ok(())
    }

    /// A thread that executes another program takes the number of its leader, which is gone without a word, stopped or not
    /// (ptrace(2), "execve(2) under ptrace"): who has that number now has not stopped yet, or not for us, or is not traced.
    fn look_at_leader(&mut self) {
        let pid = self.process.pid;
        let replaced = match self.process.threads.iter().position(|thread| thread.pid() == pid) {
            Some(at) => {
                let leader = self.process.threads[at].tracee();
                // It reports that it executes; or it does not stand.
                let replaced = leader.has_news() || matches!(leader.regs(), Err(Error::Died { .. }));
                if replaced {
                    self.process.threads.remove(at);
                }
                replaced
            }
            // It had ended before the others.
            None if self.process.zombie => {
                self.process.zombie = !self.leader().is_some_and(|leader| leader.lives);
                !self.process.zombie
            }
            None => false,
        };
        if replaced {
            self.leader_lost();
        }
    }

    /// Who has the number of the leader is awaited where it is traced, and otherwise met like anybody new. All others are ending.
    fn leader_lost(&mut self) {
        let pid = self.process.pid;
        self.running.extend(self.process.threads.drain(..).map(|thread| Tracee::attached(thread.pid())));
        if self.leader().is_some_and(|leader| leader.lives && leader.traced) {
            self.running.push(Tracee::attached(pid));
        } else {
            self.known.remove(&pid);
        }
    }

    /// The leader is another, whom nobody has asked: where it is a child of ours, waiting for it does not tell.
    fn forget_lost_leader(&mut self) {
        let pid = self.process.pid;
        if self.running.iter().any(|tracee| tracee.tid() == pid) && self.leader().is_some_and(|leader| !leader.traced) {
            self.running.retain(|tracee| tracee.tid() != pid);
            self.leader_lost();
        }
    }

    fn leader(&self) -> Option<Leader> {
        let status = self.process.dir.status(&mut Vec::new()).ok()?;
        Some(Leader { lives: !matches!(status.state, b'Z' | b'X'), traced: status.tracer_pid != 0 })
    }

    /// Takes a thread that reported a stop, or lets it go on to the stop we asked for.
    fn stopped(&mut self, tracee: Tracee<Stopped>, status: Status) -> Result<Option<Tracee<Running>>> {
        match status {
            // A signal on its way in: deliver it. The stop that was asked for comes before the first instruction of
            // the handler, so nothing is lost and nothing has run.
            Status::Signal(signal) => {
                tracee.interrupt()?;
                return tracee.cont(signal).map(Some);
            }
            // The other program has not begun: the stop that was asked for comes before its first instruction.
            Status::Event(ptrace::EVENT_EXEC) => {
                // All others have ended, and we have been told.
                self.process.threads.clear();
                tracee.interrupt()?;
                return tracee.cont(0).map(Some);
            }
            Status::EventStop(signal) if signal != libc::SIGTRAP => self.process.stopped_by = Some(signal),
            _ => {}
        }
        let mut remote = Remote::new(tracee)?;
        leave_rseq_section(&mut remote)?;
        // Who was stopped before we came will see what that stop has done.
        if !matches!(status, Status::EventStop(signal) if signal != libc::SIGTRAP) {
            waits::hide_stop(&mut remote)?;
        }
        // At once: also a stop that comes to nothing must not prolong the wait.
        let slept = self.slept.get(&remote.pid());
        waits::interrupted(&mut remote, &self.process.dir, slept);
        self.process.threads.push(remote);
        Ok(None)
    }

    /// The process with all threads; `None` if it has vanished.
    fn stopped_whole(mut self) -> Option<FrozenProcess> {
        if self.process.threads.is_empty() && !self.process.zombie {
            return None;
        }
        let pid = self.process.pid;
        self.process.threads.sort_by_key(|t| (t.pid() != pid, t.pid()));
        Some(self.process)
    }

    /// Lets those of its threads go that have stopped, at `since` or later.
    fn release_stopped(&mut self, root: Pid, since: Instant) -> bool {
        if self.process.threads.is_empty() {
            return true;
        }
        let process = std::slice::from_mut(&mut self.process);
        let mut all = freeze::take_waits_up(root, process, since);
        let mut killed = Vec::new();
        for thread in self.process.threads.drain(..) {
            let tid = thread.pid();
            match thread.release() {
                Err(Error::Died { .. }) => killed.push(tid),
                other => all = all.and(other),
            }
        }
        witness::take_ends(killed);
        all.inspect_err(|e| tracing::warn!("letting process {} go: {e}", self.process.pid)).is_ok()
    }
}

/// Lets processes of the tree of `root` go on after a failure: what has stopped (at `since` or later) at once, as others may
/// be waiting for it, the rest as soon as it stops. Whether nothing of them is traced any more; what is, the kernel lets go when this program ends.
pub fn let_go(root: Pid, mut all: Vec<Stopping<'_>>, since: Instant, until: Instant) -> bool {
    let mut free = true;
    loop {
        for process in &mut all {
            free &= process.release_stopped(root, since);
        }
        all.retain(|process| !process.running.is_empty());
        if all.is_empty() {
            return free;
        }
        for process in &mut all {
            match process.wait(Instant::now() + Duration::from_millis(1)) {
                Ok(()) => {}
                Err(Error::DoesNotStop { .. }) if Instant::now() < until => {}
                Err(e) => {
                    tracing::warn!("a task that was asked to stop cannot be let go yet: {e}");
                    return false;
                }
            }
        }
    }
}

/// A task stopped inside a restartable sequence must go on at the abort handler: any code of ours that runs in between
/// makes the kernel forget the section, and resuming at the old place would commit without atomicity (kernel.md 1).
pub(super) fn leave_rseq_section(remote: &mut Remote) -> Result<()> {
    const RSEQ_CS: u64 = 8;
    // A section contains no system call (rseq(2)).
    if remote.saved.interrupted_call().is_some() {
        return Ok(());
    }
    let config = match ptrace::rseq_configuration(remote.pid()) {
        Ok(config) if config.address != 0 => config,
        _ => return Ok(()),
    };
    let Ok(section_at) = memory::read_value::<u64>(remote.pid(), config.address + RSEQ_CS) else { return Ok(()) };
    if section_at == 0 {
        return Ok(());
    }
    let section: RseqCs = memory::read_value(remote.pid(), section_at)?;
    if remote.saved.rip.wrapping_sub(section.start_ip) < section.post_commit_offset {
        remote.saved.rip = section.abort_ip;
        remote.tracee().set_regs(&remote.saved)?;
        memory::write(remote.pid(), config.address + RSEQ_CS, &0u64.to_ne_bytes())?;
    }
    Ok(())
}
