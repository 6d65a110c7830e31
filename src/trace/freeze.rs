//! Stopping a whole tree, to a fixpoint: no thread and no child is missed however fast they come and go.

use super::remote::{Remote, Scratch, vdso_syscall};
use super::sleepers;
use super::{Error, Result, Running, Stopped, Tracee, memory};
use crate::arch::restart;
use crate::image::Pid;
use crate::proc::ProcDir;
use crate::sys::abi::{KernelSigaction, RseqCs};
use crate::sys::ptrace::options;
use crate::sys::wait::Status;
use crate::sys::{Errno, ptrace};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long a task may take to stop before the whole freeze is given up.
pub const DEADLINE: Duration = Duration::from_millis(100);

/// A stopped tree. Dropping it thaws every task as it was.
#[derive(Debug)]
pub struct Frozen {
    /// Processes, parents before children; the root first.
    pub processes: Vec<FrozenProcess>,
    /// When the first task was stopped.
    pub since: Instant,
}

/// One stopped process.
#[derive(Debug)]
pub struct FrozenProcess {
    /// Process id as we see it.
    pub pid: Pid,
    /// Its directory in /proc.
    pub dir: ProcDir,
    /// Threads, the leader first; empty for a zombie.
    pub threads: Vec<Remote>,
    /// It had ended already when we came; nobody has waited for it.
    pub zombie: bool,
    /// Group stop by this signal (job control).
    pub stopped_by: Option<i32>,
    /// Our area in its address space.
    pub scratch: Option<Scratch>,
    /// It shares the address space (and the scratch area) of another frozen process, which removes the area.
    pub borrows_scratch: bool,
    /// A SIGSTOP waits for it, see [`Frozen::hold`].
    pub held: bool,
    /// The action of SIGTRAP, where it ignores that signal: our batches end in a trap that resets it.
    pub trap_action: Option<KernelSigaction>,
}

impl Frozen {
    /// Stops `root` and all its descendants.
    pub fn tree(root: Pid) -> Result<Self> {
        let slept = sleepers::look(root);
        let mut frozen = Self { processes: Vec::new(), since: Instant::now() };
        let deadline = Instant::now() + DEADLINE;
        frozen.add(root, deadline)?;
        let mut known: HashSet<Pid> = HashSet::from([root]);
        let mut buf = Vec::new();
        // A stopped process makes no children, so each pass can only find those of processes that were still running in
        // the pass before; orphans that moved to a stopped subreaper are found by the last, empty pass.
        loop {
            let mut found = Vec::new();
            for process in &frozen.processes {
                if !process.zombie {
                    found.extend(process.dir.children_of_all_threads(&mut buf)?);
                }
            }
            found.retain(|pid| known.insert(*pid));
            if found.is_empty() {
                break;
            }
            for pid in found {
                frozen.add(pid, deadline)?;
            }
        }
        for thread in frozen.processes.iter_mut().flat_map(|p| &mut p.threads) {
            thread.slept_ns = slept.get(&thread.pid()).copied();
        }
        Ok(frozen)
    }

    fn add(&mut self, pid: Pid, deadline: Instant) -> Result<()> {
        let Some(process) = FrozenProcess::stop(pid, deadline)? else { return Ok(()) };
        self.processes.push(process);
        Ok(())
    }

    /// Lets every task go on as it was. Tasks that died meanwhile are no error.
    pub fn thaw(mut self) -> Result<()> {
        self.thaw_all()
    }

    /// Sees to it that the tree stays stopped when this program dies: the kernel lets tracees go with their tracer, and
    /// each process then meets a SIGSTOP before it executes a single instruction. Thawing takes the signal back.
    ///
    /// # Errors
    /// When a process cannot be signalled; those before it are held.
    pub fn hold(&mut self) -> Result<()> {
        for process in self.processes.iter_mut().filter(|p| !p.zombie && p.stopped_by.is_none() && !p.held) {
            let pid = nix::unistd::Pid::from_raw(process.pid.0);
            // To the process, not to a thread: whichever thread is the first to look takes it for all.
            nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).map_err(|errno| Error::Ptrace {
                pid: process.pid,
                operation: "hold",
                errno,
            })?;
            process.held = true;
        }
        Ok(())
    }

    /// Lets every task go into a group stop, as by SIGSTOP.
    pub fn thaw_stopped(mut self) -> Result<()> {
        for process in self.processes.iter().filter(|p| !p.zombie && p.stopped_by.is_none()) {
            let pid = nix::unistd::Pid::from_raw(process.pid.0);
            nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).map_err(|errno| Error::Ptrace {
                pid: process.pid,
                operation: "stop",
                errno,
            })?;
        }
        self.thaw_all()
    }

    fn thaw_all(&mut self) -> Result<()> {
        let threads = self.processes.iter().flat_map(|p| &p.threads);
        let slept = threads.filter_map(|t| t.slept_ns.map(|ns| (t.pid(), ns)));
        sleepers::remember(slept, self.since);
        let mut first = Ok(());
        for process in &mut self.processes {
            first = first.and(process.give_trap_action_back());
        }
        // The owner of a scratch area removes it while everybody who shares it is still stopped.
        for process in &mut self.processes {
            first = first.and(process.remove_scratch());
        }
        for process in self.processes.drain(..) {
            first = first.and(process.release());
        }
        first
    }

    /// Kills every process of the tree, leaves first, and reaps nothing: that is their parents' work.
    pub fn kill(mut self) -> Result<()> {
        for process in self.processes.drain(..).rev() {
            process.kill()?;
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(e) = self.thaw_all() {
            tracing::warn!("thawing after a failure: {e}");
        }
    }
}

impl FrozenProcess {
    /// Stops all threads of a process; `None` if it has vanished.
    fn stop(pid: Pid, deadline: Instant) -> Result<Option<Self>> {
        let dir = match ProcDir::open(pid) {
            Ok(dir) => dir,
            Err(e) if e.is_gone() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let mut process = Self {
            pid,
            dir,
            threads: Vec::new(),
            zombie: false,
            stopped_by: None,
            scratch: None,
            borrows_scratch: false,
            held: false,
            trap_action: None,
        };
        let mut known = HashSet::new();
        loop {
            let tids = match process.dir.tasks() {
                Ok(tids) => tids,
                Err(e) if e.is_gone() && process.threads.is_empty() => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            let mut running = Vec::new();
            for tid in tids.into_iter().filter(|tid| known.insert(*tid)) {
                running.extend(process.seize(tid)?);
            }
            if running.is_empty() {
                break;
            }
            process.wait_for(running, deadline)?;
        }
        if process.threads.is_empty() && !process.zombie {
            return Ok(None);
        }
        process.threads.sort_by_key(|t| (t.pid() != pid, t.pid()));
        Ok(Some(process))
    }

    fn seize(&mut self, tid: Pid) -> Result<Option<Tracee<Running>>> {
        let wanted = options::TRACE_SYSGOOD | options::SUSPEND_SECCOMP;
        let tracee = match Tracee::seize(tid, wanted) {
            Err(Error::Ptrace { errno: Errno::EPERM | Errno::EINVAL, .. }) => self.seize_refused(tid)?,
            Err(Error::Died { .. }) => None,
            other => Some(other?),
        };
        if let Some(tracee) = &tracee {
            tracee.interrupt()?;
        }
        Ok(tracee)
    }

    /// Finds out why a task cannot be seized: it has ended, is traced, or we may not use one of the options.
    fn seize_refused(&mut self, tid: Pid) -> Result<Option<Tracee<Running>>> {
        let mut buf = Vec::new();
        let status = match self.dir.thread(tid).and_then(|d| d.status(&mut buf)) {
            Err(e) if e.is_gone() => return Ok(None),
            status => status?,
        };
        if matches!(status.state, b'Z' | b'X') {
            self.zombie |= tid == self.pid;
            return Ok(None);
        }
        if status.tracer_pid != 0 {
            return Err(Error::Traced { pid: tid, tracer: Pid(status.tracer_pid) });
        }
        // Without CAP_SYS_ADMIN, or with a filter of our own, filters cannot be suspended; only tasks without any can
        // then be worked with.
        if status.seccomp == 0 {
            return Tracee::seize(tid, options::TRACE_SYSGOOD).map(Some);
        }
        Err(Error::Ptrace { pid: tid, operation: "seize", errno: Errno::EPERM })
    }

    fn wait_for(&mut self, mut running: Vec<Tracee<Running>>, deadline: Instant) -> Result<()> {
        let mut pass = 0u32;
        while !running.is_empty() {
            for tracee in std::mem::take(&mut running) {
                let tid = tracee.tid();
                match tracee.try_wait() {
                    Err(Error::Died { .. }) => self.zombie |= tid == self.pid,
                    Err(e) => return Err(e),
                    Ok(Err(still)) => running.push(still),
                    Ok(Ok((stopped, status))) => running.extend(self.stopped(stopped, status)?),
                }
            }
            pass += 1;
            if let Some(tracee) = running.first()
                && Instant::now() > deadline
            {
                return Err(self.does_not_stop(tracee.tid()));
            }
            if pass > 20 {
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Takes a thread that reported a stop, or lets it go on to the stop we asked for.
    fn stopped(&mut self, tracee: Tracee<Stopped>, status: Status) -> Result<Option<Tracee<Running>>> {
        match status {
            // A signal on its way in: deliver it. The stop that was asked for comes before the first instruction of
            // the handler, so nothing is lost and nothing has run.
            Status::Signal(signal) => return tracee.cont(signal).map(Some),
            Status::EventStop(signal) if signal != libc::SIGTRAP => self.stopped_by = Some(signal),
            _ => {}
        }
        let mut remote = Remote::new(tracee)?;
        leave_rseq_section(&mut remote)?;
        if remote.saved.rax as i64 == -4 {
            let deliverable = self.deliverable(remote.pid())?;
            remote.rewound = restart::hide_stop(&mut remote.saved, deliverable);
            remote.tracee().set_regs(&remote.saved)?;
        }
        self.threads.push(remote);
        Ok(None)
    }

    fn deliverable(&self, tid: Pid) -> Result<bool> {
        let status = self.dir.thread(tid)?.status(&mut Vec::new())?;
        Ok((status.sig_pnd | status.shd_pnd) & !status.sig_blk != 0)
    }

    fn does_not_stop(&self, tid: Pid) -> Error {
        let mut wchan = Vec::new();
        let _ = self.dir.thread(tid).and_then(|d| d.read_into("wchan", &mut wchan).map(drop));
        let wchan = String::from_utf8_lossy(&wchan).into_owned();
        Error::DoesNotStop { pid: tid, ms: DEADLINE.as_millis() as u64, wchan }
    }

    /// The leader (or, where it has ended before its threads, another thread).
    pub fn leader(&mut self) -> &mut Remote {
        &mut self.threads[0]
    }

    /// Makes the scratch area if there is none yet. `vdso` is the address of `[vdso]`.
    pub fn ensure_scratch(&mut self, vdso: Option<u64>) -> Result<Scratch> {
        if let Some(scratch) = self.scratch {
            return Ok(scratch);
        }
        let pid = self.pid;
        let no_way = || Error::Call { pid, call: "first system call (no vDSO)".to_owned(), errno: Errno::ENOEXEC };
        let ip = vdso.and_then(vdso_syscall).ok_or_else(no_way)?;
        let scratch = self.leader().make_scratch(ip, None)?;
        self.scratch = Some(scratch);
        self.note_trap_action()?;
        Ok(scratch)
    }

    /// Uses the scratch area of a process that has the same address space.
    pub fn borrow_scratch(&mut self, scratch: Scratch) -> Result<()> {
        self.scratch = Some(scratch);
        self.borrows_scratch = true;
        self.note_trap_action()
    }

    fn note_trap_action(&mut self) -> Result<()> {
        let ignored = self.dir.status(&mut Vec::new())?.sig_ign & 1 << (libc::SIGTRAP - 1) != 0;
        if let (Some(scratch), true) = (self.scratch, ignored) {
            self.trap_action = Some(self.leader().trap_action(&scratch)?);
        }
        Ok(())
    }

    fn give_trap_action_back(&mut self) -> Result<()> {
        match (self.scratch, self.trap_action.take()) {
            (Some(scratch), Some(action)) if !self.threads[0].is_dead() => {
                self.threads[0].set_trap_action(&scratch, &action)
            }
            _ => Ok(()),
        }
    }

    fn remove_scratch(&mut self) -> Result<()> {
        match self.scratch.take() {
            Some(scratch) if !self.borrows_scratch && !self.threads[0].is_dead() => {
                self.threads[0].drop_scratch(&scratch)
            }
            _ => Ok(()),
        }
    }

    fn release(self) -> Result<()> {
        let mut first = Ok(());
        let mut held = self.held;
        for thread in self.threads {
            // The first thread takes the signal that holds the process; then the others find none.
            let released = if std::mem::take(&mut held) { thread.release_held() } else { thread.release() };
            match released {
                Err(Error::Died { .. }) => {}
                other => first = first.and(other),
            }
        }
        first
    }

    fn kill(self) -> Result<()> {
        if !self.zombie {
            match nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid.0), nix::sys::signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(Error::Ptrace { pid: self.pid, operation: "kill", errno }),
            }
        }
        // SIGKILL ends a ptrace-stopped task at once; what is left is to collect the statuses that we are told as tracer.
        // The leader last: it cannot be reaped while another thread has not been.
        for thread in self.threads.into_iter().rev() {
            let pid = thread.pid();
            drop(thread);
            let _ = crate::sys::wait::wait(pid);
        }
        Ok(())
    }
}

/// A task stopped inside a restartable sequence must go on at the abort handler: any code of ours that runs in between
/// makes the kernel forget the section, and resuming at the old place would commit without atomicity (kernel.md 1).
fn leave_rseq_section(remote: &mut Remote) -> Result<()> {
    const RSEQ_CS: u64 = 8;
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
