//! Stopping a whole tree, to a fixpoint: no thread and no child is missed however fast they come and go.

use super::frost::{self, Frost};
use super::lifeline::{Anchor, Reactions};
use super::remote::{Remote, Scratch, Then, is_held, vdso_syscall};
use super::sleepers::Asleep;
use super::stopping::{self, Stopping};
use super::{Batch, Error, Result, Results, sleepers, socket_waits, waits, witness};
use crate::image::Pid;
use crate::image::mm::PAGE;
use crate::proc::ProcDir;
use crate::proc::cgroupfs::{self, Freezer};
use crate::sys::fd::pidfd_open;
use crate::sys::{Errno, pidfd};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a tree may take to stop before all of it goes on again.
pub const DEADLINE: Duration = Duration::from_millis(100);

/// How often it is tried to stop a tree; between two attempts it runs, each time for longer.
pub const ATTEMPTS: u32 = 8;

/// How long a task that was asked to stop, and did not, may take to come round so that it can be let go.
const STRAGGLER: Duration = Duration::from_secs(1);

/// See [`give_up_after`]; milliseconds, 0 = not set.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// Trees of this process are tried to be stopped for so long, instead of [`ATTEMPTS`] times. Zero: as often as that again.
pub fn give_up_after(patience: Duration) {
    PATIENCE.store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// When a tree that does not stop is given up: `None` after [`ATTEMPTS`].
fn until() -> Option<Instant> {
    let patience = PATIENCE.load(Ordering::Relaxed);
    (patience > 0).then(|| Instant::now() + Duration::from_millis(patience))
}

/// How long the tree runs between this attempt, which has failed, and the next; `None`: it is given up.
fn pause(attempt: u32, until: Option<Instant>, now: Instant) -> Option<Duration> {
    let pause = attempt.min(ATTEMPTS) * DEADLINE;
    let again = until.map_or(attempt < ATTEMPTS, |until| now + pause < until);
    again.then_some(pause)
}

/// How the tasks of a tree are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// All that are found are asked before anybody is waited for.
    AtOnce,
    /// The same, while nobody of them runs ([`Frost`]), where that can be had.
    Frozen,
    /// Parents first: one in vfork(2) stops only when its child goes on, which a child that was asked first does not.
    Generations,
}

impl Way {
    /// For this attempt to stop so many threads. `stands`: somebody else has them frozen. Nobody of a frozen tree makes or loses
    /// children then, and none can be waited for before all have been asked.
    fn of(attempt: u32, threads: usize, stands: bool) -> Self {
        let first = u32::from(threads >= frost::MANY);
        match (attempt - 1 + first) % 3 {
            _ if stands => Self::AtOnce,
            0 => Self::AtOnce,
            1 => Self::Frozen,
            _ => Self::Generations,
        }
    }
}

/// A stopped tree. Dropping it thaws every task as it was.
#[derive(Debug)]
pub struct Frozen {
    /// Processes, parents before children; the root first.
    pub processes: Vec<FrozenProcess>,
    /// When the first task was stopped.
    pub since: Instant,
    /// Cgroups that were frozen before we came, and are again when the tree is let go.
    freezers: Vec<Freezer>,
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
    /// From where the scratch area was made, and is removed.
    anchor: Option<Anchor>,
    /// Where threads have stayed that have nothing more to do for us.
    stay: Option<Scratch>,
}

impl Frozen {
    /// Stops `root` and all its descendants.
    ///
    /// A tree that is not stopped whole within [`DEADLINE`] runs on for a while before it is tried again: a busy machine
    /// lets a task wait for its turn, and half a tree must not stand still for longer.
    ///
    /// Where it has a cgroup to itself, a tree of many tasks, or one that did not stop, is frozen by it while its tasks are asked.
    ///
    /// A tree that somebody holds frozen in a cgroup is taken over: a frozen task cannot make the system calls that reading
    /// its state needs. Everybody is asked to stop before the cgroup is thawed, so nothing of the tree runs.
    ///
    /// # Errors
    /// [`Error::DoesNotStop`] or [`Error::KeepsForking`] after [`ATTEMPTS`] (see also [`give_up_after`]); a task that another program traces; the tree runs then.
    pub fn tree(root: Pid) -> Result<Self> {
        Self::tree_of(root, &[])
    }

    /// The same where processes of the tree are known, parents before children: whose children need not be looked for before
    /// somebody is stopped. Who has come since is found afterwards, as always.
    ///
    /// # Errors
    /// As for [`Self::tree`].
    pub fn tree_of(root: Pid, known: &[Pid]) -> Result<Self> {
        let freezers = cgroupfs::frozen(root)?;
        let (mut attempt, until) = (1, until());
        let mut blamed = None;
        loop {
            let mut found =
                if attempt == 1 && known.first() == Some(&root) { still_there(known) } else { descendants(root) };
            let slept = sleepers::look(root, &found);
            let way = Way::of(attempt, found.iter().map(|(_, threads)| threads.len()).sum(), !freezers.is_empty());
            let frost = if way == Way::Frozen { Frost::over(root) } else { None };
            if frost.is_some() {
                found = descendants(root);
            }
            let everybody = found.iter().map(|(dir, _)| dir.pid()).collect();
            let since = frost.as_ref().map_or_else(Instant::now, |frost| frost.since);
            let mut frozen = Self { processes: Vec::new(), since, freezers: freezers.clone() };
            let first = if way == Way::Generations { vec![root] } else { everybody };
            match frozen.stop_all(first, &slept, way, frost) {
                Ok(()) => return Ok(frozen),
                Err((error, stragglers)) => {
                    drop(frozen);
                    // Who is tried for longer may also come round later.
                    let now = Instant::now();
                    let come_round = until.unwrap_or(now).max(now + STRAGGLER);
                    let all_run = stopping::let_go(root, stragglers, since, come_round);
                    let pause = pause(attempt, until, Instant::now());
                    match pause.filter(|_| error.is_of_the_moment() && all_run) {
                        Some(pause) => std::thread::sleep(pause),
                        // Going by generations tells less than the attempt before.
                        None if way == Way::Generations && error.is_of_the_moment() => {
                            return Err(blamed.unwrap_or(error));
                        }
                        None => return Err(error),
                    }
                    if way != Way::Generations {
                        blamed = Some(error);
                    }
                }
            }
            attempt += 1;
        }
    }

    /// Asks everybody there is (`found`) before anybody is waited for, then whoever has come since; `frost` is over when all have
    /// been asked. Or, given the root alone, generation by generation.
    fn stop_all<'a>(
        &mut self,
        mut found: Vec<Pid>,
        slept: &'a HashMap<Pid, Asleep>,
        way: Way,
        mut frost: Option<Frost>,
    ) -> std::result::Result<(), (Error, Vec<Stopping<'a>>)> {
        let deadline = Instant::now() + DEADLINE;
        let mut known: HashSet<Pid> = found.iter().copied().collect();
        let freezers = self.freezers.clone();
        // A stopped process makes no children, so each pass can only find those of processes that were still running in the
        // pass before; orphans that moved to a stopped subreaper are found by the last, empty pass.
        let mut looks_with_new = 0;
        while !found.is_empty() {
            looks_with_new += u32::from(way != Way::Generations);
            let mut thaw = || {
                let ours = frost.as_mut().map_or(Ok(()), Frost::thaw);
                freezers.iter().try_for_each(|freezer| set(freezer, false)).and(ours)
            };
            let stopped = stopping::stop(&found, slept, deadline, &mut thaw);
            self.processes
                .extend(stopped.map_err(|(error, all)| (self.blamed(error, looks_with_new, known.len()), all))?);
            found = self.children().map_err(|e| (e, Vec::new()))?;
            found.retain(|pid| known.insert(*pid));
        }
        // Of a child whose end was seen while its parent still ran the parent may have been told meanwhile: it is no more.
        let mut buf = Vec::new();
        self.processes.retain(|p| !p.zombie || !p.dir.stat(&mut buf).is_err_and(|e| e.is_gone()));
        Ok(())
    }

    /// Why a tree has not stopped in time: one of its tasks does not, or at each of several looks there were new ones, in all so many.
    fn blamed(&self, error: Error, looks: u32, tasks: usize) -> Error {
        const SEVERAL: u32 = 3;
        match (error, self.processes.first()) {
            (Error::DoesNotStop { ms, .. }, Some(root)) if looks >= SEVERAL => {
                Error::KeepsForking { root: root.pid, tasks, ms }
            }
            (error, _) => error,
        }
    }

    fn children(&self) -> Result<Vec<Pid>> {
        let mut buf = Vec::new();
        let mut found = Vec::new();
        for process in self.processes.iter().filter(|p| !p.zombie) {
            // Who makes children has been met: all of its threads are stopped.
            let threads: Vec<Pid> = process.threads.iter().map(Remote::pid).collect();
            found.extend(process.dir.children_of(&threads, &mut buf)?);
        }
        Ok(found)
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
        // Whoever finds them held finds nothing of ours in them.
        self.bring_home()?;
        self.notice_taken_holds();
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

    /// Cgroups that somebody holds it frozen in when nobody traces it.
    pub fn freezers(&self) -> &[Freezer] {
        &self.freezers
    }

    /// Process ids of those who have not ended.
    pub fn living(&self) -> Vec<Pid> {
        self.processes.iter().filter(|process| !process.zombie).map(|process| process.pid).collect()
    }

    /// Those among them who are not in a stop of their own: whom [`Frozen::hold`] holds.
    pub fn to_be_held(&self) -> Vec<Pid> {
        let runs = |process: &&FrozenProcess| !process.zombie && process.stopped_by.is_none();
        self.processes.iter().filter(runs).map(|process| process.pid).collect()
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
        // Nobody takes the signal back.
        self.processes.iter_mut().for_each(|process| process.held = false);
        self.thaw_all()
    }

    /// Brings home who has stayed where a batch ended, while nobody's scratch area has been removed.
    fn bring_home(&mut self) -> Result<()> {
        self.processes.iter_mut().map(FrozenProcess::bring_home).fold(Ok(()), Result::and)
    }

    fn thaw_all(&mut self) -> Result<()> {
        let mut first = self.bring_home();
        // The owner of a scratch area removes it while everybody who shares it is still stopped.
        for process in &mut self.processes {
            first = first.and(process.remove_scratch());
        }
        self.notice_taken_holds();
        if let Some(root) = self.processes.first().map(|root| root.pid) {
            first = first.and(take_waits_up(root, &mut self.processes, self.since));
        }
        // Detached after that, not one instruction runs. A held process first has to take its signal.
        let held = self.processes.iter().any(|p| p.held);
        if !held {
            first = first.and(self.freeze_again());
        }
        for process in self.processes.drain(..) {
            first = first.and(process.release());
        }
        first.and(if held { self.freeze_again() } else { Ok(()) })
    }

    /// A held process that has made calls for us since has met its signal then; or somebody has continued it.
    fn notice_taken_holds(&mut self) {
        for process in self.processes.iter_mut().filter(|process| process.held) {
            // Of all threads: none is to meet it again at its release.
            let taken = process.threads.iter_mut().fold(false, |taken, thread| thread.take_hold() | taken);
            process.held = !taken && is_held(process.pid).unwrap_or(false);
        }
    }

    /// Lets go of a held tree ([`Frozen::hold`]), which stays stopped: somebody else decides what becomes of it.
    ///
    /// # Errors
    /// One of its tasks cannot be let go; the others are.
    pub fn leave(mut self) -> Result<()> {
        let mut first = self.bring_home();
        for process in &mut self.processes {
            first = first.and(process.remove_scratch());
        }
        // Those that have met their signal in a call of ours get another.
        first = first.and(self.hold());
        for mut process in self.processes.drain(..) {
            // Nobody takes the signal back.
            process.held = false;
            first = first.and(process.release());
        }
        first.and(self.freeze_again())
    }

    fn freeze_again(&mut self) -> Result<()> {
        self.freezers.drain(..).try_for_each(|freezer| set(&freezer, true))
    }

    /// Kills every process of the tree, leaves first, and reaps nothing: that is their parents' work.
    pub fn kill(mut self) -> Result<()> {
        let processes = std::mem::take(&mut self.processes);
        let large: Vec<OwnedFd> = processes.iter().filter_map(FrozenProcess::if_large).collect();
        processes.iter().rev().try_for_each(FrozenProcess::kill)?;
        // They end at the same time. A process gives its memory back alone, if nobody helps: 80 ms a GiB.
        for process in large {
            // It may be done already, or share its memory with one that we do not know.
            let _ = pidfd::release_memory(process.as_fd());
        }
        processes.into_iter().rev().for_each(FrozenProcess::collect);
        Ok(())
    }
}

/// The last thing before processes of the tree of `root` go on that have been stopped since then: their waits have gone on
/// meanwhile. Those for sockets with a time-out are released.
pub(super) fn take_waits_up(root: Pid, processes: &mut [FrozenProcess], since: Instant) -> Result<()> {
    let mut first = Ok(());
    for thread in processes.iter_mut().flat_map(|p| &mut p.threads).filter(|t| !t.is_dead()) {
        first = first.and(waits::take_up(thread, since.elapsed()));
    }
    let stopped = since.elapsed();
    let threads = processes.iter().flat_map(|p| &p.threads).filter(|t| !t.is_dead());
    sleepers::remember(root, threads.filter_map(|t| waits::to_remember(t, stopped)));
    for process in processes {
        first = first.and(process.release_socket_waits(since));
    }
    first
}

/// A process and all its descendants, parents before children, with their threads; whoever vanishes meanwhile is left out.
fn descendants(root: Pid) -> Vec<(ProcDir, Vec<Pid>)> {
    let mut buf = Vec::new();
    let mut all = vec![root];
    let mut found = Vec::new();
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let Ok(dir) = ProcDir::open(pid) else { continue };
        let threads = dir.tasks().unwrap_or_default();
        all.extend(dir.children_of(&threads, &mut buf).unwrap_or_default());
        found.push((dir, threads));
    }
    found
}

/// Those of these processes that still descend from the first one, with their threads: a number may be another's by now.
fn still_there(known: &[Pid]) -> Vec<(ProcDir, Vec<Pid>)> {
    let mut buf = Vec::new();
    let mut found: Vec<(ProcDir, Vec<Pid>)> = Vec::with_capacity(known.len());
    let mut there = HashSet::new();
    for pid in known {
        let Ok(dir) = ProcDir::open(*pid) else { continue };
        let mut descends = || dir.stat(&mut buf).is_ok_and(|stat| there.contains(&Pid(stat.ppid)));
        if !there.is_empty() && !descends() {
            continue;
        }
        there.insert(*pid);
        let threads = sleepers::listed(&dir).unwrap_or_else(|| dir.tasks().unwrap_or_default());
        found.push((dir, threads));
    }
    found
}

fn set(freezer: &Freezer, frozen: bool) -> Result<()> {
    freezer.set(frozen).map_err(|source| Error::Freezer { dir: freezer.dir.display().to_string(), source })
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(e) = self.thaw_all() {
            tracing::warn!("thawing after a failure: {e}");
        }
    }
}

impl FrozenProcess {
    /// A process of which nothing is stopped yet.
    pub(super) fn new(pid: Pid, dir: ProcDir) -> Self {
        Self {
            pid,
            dir,
            threads: Vec::new(),
            zombie: false,
            stopped_by: None,
            scratch: None,
            borrows_scratch: false,
            held: false,
            anchor: None,
            stay: None,
        }
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
        self.throw_lifelines()?;
        let Some(text) = vdso else {
            // It has unmapped it. There is no room then that nobody else executes: if we die in these two calls, so does it.
            let call = self.any_call()?.ok_or_else(no_way)?;
            let scratch = self.leader().make_scratch(call, None)?;
            self.leader().give_back()?;
            self.scratch = Some(scratch);
            return Ok(scratch);
        };
        self.anchor = Anchor::new(pid, text)?;
        let scratch = match &self.anchor {
            Some(anchor) => self.threads[0].make_scratch_from(anchor)?,
            None => {
                let scratch = self.leader().make_scratch(vdso_syscall(text).ok_or_else(no_way)?, None)?;
                self.leader().give_back()?;
                scratch
            }
        };
        self.scratch = Some(scratch);
        Ok(scratch)
    }

    /// A system call instruction of the program's own.
    fn any_call(&mut self) -> Result<Option<u64>> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        const LOOKED_AT: u64 = 16 << 20;
        let maps = self.dir.maps(&mut Vec::new())?;
        for text in maps.iter().filter(|m| m.read && m.exec && m.special().is_none()) {
            let mut bytes = vec![0; (text.end - text.start).min(LOOKED_AT) as usize];
            if super::memory::read(self.pid, text.start, &mut bytes).is_ok()
                && let Some(at) = bytes.windows(2).position(|two| two == SYSCALL)
            {
                return Ok(Some(text.start + at as u64));
            }
        }
        Ok(None)
    }

    /// Runs a batch in each thread, all at the same time, as the last thing that they do for us; see [`Remote::run_each`]. Where
    /// there are many they stay where it ends: most of the time the process ends next.
    ///
    /// # Errors
    /// As for [`Remote::run_each`].
    pub fn run_each(
        &mut self,
        scratch: &Scratch,
        batches: &[Batch],
        ended: &mut dyn FnMut(usize, &mut Remote) -> Result<()>,
    ) -> Result<Vec<Results>> {
        const MANY: usize = 8;
        self.bring_home()?;
        if self.threads.len() >= MANY {
            self.stay = self.room_to_stay(scratch, batches)?;
        }
        match &self.stay {
            Some(room) => Remote::run_each_then(&mut self.threads, room, batches, Then::Stays, ended),
            None => Remote::run_each(&mut self.threads, scratch, batches, ended),
        }
    }

    /// Memory of their own for these batches: their lifelines stay there. `None` where the kernel has no more for this process.
    fn room_to_stay(&mut self, scratch: &Scratch, batches: &[Batch]) -> Result<Option<Scratch>> {
        let room = |(thread, batch): (&Remote, &Batch)| thread.room(batch).next_multiple_of(16) as u64;
        let len = self.threads.iter().zip(batches).map(room).sum::<u64>().next_multiple_of(PAGE);
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let mapped = self.leader().call(scratch, libc::SYS_mmap, &[0, len, rw, flags, u64::MAX, 0])?;
        Ok(mapped.ok().map(|data| Scratch { data, data_len: len, ..*scratch }))
    }

    /// Brings home who has stayed where a batch ended.
    fn bring_home(&mut self) -> Result<()> {
        let mut first = Ok(());
        for thread in self.threads.iter_mut().filter(|thread| !thread.is_dead()) {
            match thread.come_home() {
                Err(Error::Died { .. }) => {}
                other => first = first.and(other),
            }
        }
        let (Some(room), Some(scratch)) = (self.stay.take(), self.scratch) else { return first };
        match self.leader().call(&scratch, libc::SYS_munmap, &[room.data, room.data_len]) {
            Err(Error::Died { .. }) => first,
            other => first.and(other.map(drop)),
        }
    }

    /// Uses the scratch area of a process that has the same address space.
    pub fn borrow_scratch(&mut self, scratch: Scratch) -> Result<()> {
        self.scratch = Some(scratch);
        self.borrows_scratch = true;
        self.throw_lifelines()
    }

    /// Before its threads execute anything for us: our death must not be theirs.
    fn throw_lifelines(&mut self) -> Result<()> {
        let status = self.dir.status(&mut Vec::new())?;
        let reactions = Reactions { ignored: status.sig_ign, caught: status.sig_cgt };
        self.threads.iter_mut().for_each(|thread| thread.has_lifeline(reactions));
        Ok(())
    }

    fn remove_scratch(&mut self) -> Result<()> {
        match self.scratch.take() {
            Some(scratch) if !self.borrows_scratch && !self.threads[0].is_dead() => match &self.anchor {
                Some(anchor) => self.threads[0].drop_scratch_from(anchor, &scratch),
                None => self.threads[0].drop_scratch(&scratch),
            },
            _ => Ok(()),
        }
    }

    /// Those of its threads that wait for a socket with a time-out: while all others are stopped.
    fn release_socket_waits(&mut self, since: Instant) -> Result<()> {
        let waits = |thread: &mut Remote| waits::left_for_socket(thread, since.elapsed()).is_some();
        let waiting: Vec<Remote> = self.threads.extract_if(.., waits).collect();
        for thread in waiting {
            let left = waits::left_for_socket(&thread, since.elapsed()).unwrap_or(0);
            let held = std::mem::take(&mut self.held);
            let release = |thread: Remote| if held { thread.release_held() } else { thread.release() };
            match socket_waits::release(thread, left, release) {
                Err(Error::Died { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    pub(super) fn release(self) -> Result<()> {
        let mut first = Ok(());
        let mut held = self.held;
        let mut killed = Vec::new();
        for thread in self.threads {
            let tid = thread.pid();
            // The first thread takes the signal that holds the process; then the others find none.
            let released = if std::mem::take(&mut held) { thread.release_held() } else { thread.release() };
            match released {
                Err(Error::Died { .. }) => killed.push(tid),
                other => first = first.and(other),
            }
        }
        witness::take_ends(killed);
        first
    }

    /// A descriptor of a process with much memory.
    fn if_large(&self) -> Option<OwnedFd> {
        const MUCH: i64 = 64 << 20;
        let pages = self.dir.stat(&mut Vec::new()).ok()?.rss;
        (pages > MUCH / PAGE as i64).then(|| pidfd_open(self.pid).ok()).flatten()
    }

    fn kill(&self) -> Result<()> {
        if self.zombie {
            return Ok(());
        }
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid.0), nix::sys::signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::Ptrace { pid: self.pid, operation: "kill", errno }),
        }
    }

    /// Takes the statuses of a killed process that we are told as its tracer: SIGKILL ends a ptrace-stopped task at once.
    fn collect(self) {
        // In the order in which they are woken, and end: those that have ended are taken while the next ones end, on another
        // processor. Of each group the last is waited for first, so that we do not go to sleep for every one of them.
        const GROUP: usize = 32;
        let (leader, others) = self.threads.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
        let groups = others.chunks(GROUP).flat_map(|group| group.iter().rev());
        // The leader cannot be reaped before the others.
        for thread in groups.chain(leader) {
            // Another may have been faster: it has ended all the same.
            let _ = crate::sys::wait::wait(thread.pid());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_many_tasks_and_those_that_did_not_stop_are_frozen() {
        let ways = |threads, stands| [1, 2, 3, 4].map(|attempt| Way::of(attempt, threads, stands));
        assert_eq!(ways(1, false), [Way::AtOnce, Way::Frozen, Way::Generations, Way::AtOnce]);
        assert_eq!(ways(frost::MANY, false), [Way::Frozen, Way::Generations, Way::AtOnce, Way::Frozen]);
        assert_eq!(ways(frost::MANY, true), [Way::AtOnce; 4]);
    }

    #[test]
    fn a_tree_that_keeps_forking_is_told_from_a_task_that_does_not_stop() {
        let pid = Pid(std::process::id() as i32);
        let root = FrozenProcess::new(pid, ProcDir::open(pid).unwrap());
        let frozen = Frozen { processes: vec![root], since: Instant::now(), freezers: Vec::new() };
        let error = || Error::DoesNotStop { pid: Pid(7), ms: 100, wchan: String::new() };
        assert!(matches!(frozen.blamed(error(), 2, 9), Error::DoesNotStop { pid: Pid(7), .. }));
        assert!(matches!(frozen.blamed(error(), 3, 9), Error::KeepsForking { root, tasks: 9, .. } if root == pid));
    }

    #[test]
    fn a_tree_is_tried_as_often_or_for_as_long_as_was_asked_for() {
        let now = Instant::now();
        assert_eq!(pause(1, None, now), Some(DEADLINE));
        assert_eq!(pause(ATTEMPTS - 1, None, now), Some((ATTEMPTS - 1) * DEADLINE));
        assert_eq!(pause(ATTEMPTS, None, now), None);
        let until = Some(now + Duration::from_secs(60));
        assert_eq!(pause(100, until, now), Some(ATTEMPTS * DEADLINE));
        assert_eq!(pause(2, until, now + Duration::from_secs(60) - DEADLINE), None);
        assert_eq!(pause(1, Some(now), now), None);
    }
}
