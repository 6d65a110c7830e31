//! The last steps: timers run again, registers are set, our area goes, and everybody is released at once.
//!
//! Stopped processes come first, children before their parents: each is let into its stop, and what its parent has been
//! told of before is taken from the parent again, while that one is still ours.

use super::skeleton::{Skeleton, Skeletons};
use super::{Error, Result, restart, signals, timers};
use crate::companion::held::Held;
use crate::fault::{self, Point};
use crate::image::task::{Restart, Task, TaskState, Thread};
use crate::image::{Model, Pid, TaskId};
use crate::proc::ProcDir;
use crate::proc::cgroupfs::{self, Freezer};
use crate::sys::Errno;
use crate::sys::abi::UserRegs;
use crate::sys::fd::pidfd_open;
use crate::trace::remote::{Remote, Scratch};
use crate::trace::socket_waits::{self, Shortened};
use crate::trace::{self, Batch, group_stop, sleepers, waits};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// How long a process may take into its stop.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// How long those that were ended may take to give back their memory.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// What a tree goes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Into<'f> {
    /// Its next instruction.
    Life,
    /// A stop, as by SIGSTOP.
    Stops,
    /// This cgroup, frozen: nobody executes anything.
    Cgroup(&'f Freezer),
}

/// A tree that is complete, that nobody traces, and that stands still until it is [run](Armed::run): whoever of us dies.
/// Dropped, it is ended.
#[derive(Debug)]
pub struct Armed {
    held: Held,
    shortened: Vec<Shortened>,
    ended: bool,
}

impl Armed {
    /// What holds it.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Lets it run.
    ///
    /// # Errors
    /// The cgroup could not be thawed: it is held as before.
    pub fn run(&mut self) -> std::io::Result<()> {
        self.held.release()?;
        self.ended = true;
        self.shortened.drain(..).for_each(Shortened::end);
        Ok(())
    }

    /// Leaves it as it is, to whoever finds it in a journal.
    pub fn leave(mut self) {
        self.ended = true;
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if !self.ended {
            self.held.kill();
        }
    }
}

/// Releases the tree; one that was frozen into a frozen cgroup of its own, which is returned. After a failure nothing of it is left.
pub fn go(model: &Model, mut skeletons: Skeletons, leave_stopped: bool) -> Result<Option<Freezer>> {
    let freezer = if model.frozen.is_empty() { None } else { cgroupfs::own_freezer(&living(model, &skeletons))? };
    let into = match &freezer {
        _ if leave_stopped => Into::Stops,
        None => Into::Life,
        Some(freezer) => Into::Cgroup(freezer),
    };
    release(model, &mut skeletons, into)?.into_iter().for_each(Shortened::end);
    Ok(freezer.filter(|_| !leave_stopped))
}

/// Everybody who has not ended, the root first, and the first process of a PID namespace of its own last.
fn living(model: &Model, skeletons: &Skeletons) -> Vec<Pid> {
    let live = |id: &TaskId| !model.tasks[id.at()].threads.is_empty();
    let tasks = (0..model.tasks.len()).map(TaskId::from).filter(live).map(|id| skeletons.pid(id));
    tasks.chain(skeletons.init.as_ref().map(Remote::pid)).collect()
}

/// Lets go of the tree so that one write makes it run, which cannot fail: in a frozen cgroup of its own, else stopped. After a
/// failure nothing of it is left. `note` is told who it is before anybody is let go: whoever dies in between leaves it standing.
pub fn arm(model: &Model, mut skeletons: Skeletons, note: &mut dyn FnMut(&Held)) -> Result<Armed> {
    let pids = living(model, &skeletons);
    let freezer = cgroupfs::own_freezer(&pids)?;
    let mut held = Held::of(&pids, freezer.as_ref())?;
    held.stays_frozen = !model.frozen.is_empty() && freezer.is_some();
    if freezer.is_none() {
        tracing::warn!("the tree has no cgroup of its own that can be frozen: SIGSTOP holds it until it runs");
        let runs = |task: &Task| !task.threads.is_empty() && !matches!(task.state, TaskState::Stopped(_));
        let running = (0..model.tasks.len()).filter(|n| runs(&model.tasks[*n]));
        held.stopped = running.map(|n| skeletons.pid(TaskId::from(n)).0).collect();
    }
    note(&held);
    let into = freezer.as_ref().map_or(Into::Stops, Into::Cgroup);
    let shortened = release(model, &mut skeletons, into)?;
    Ok(Armed { held, shortened, ended: false })
}

fn release(model: &Model, skeletons: &mut Skeletons, into: Into<'_>) -> Result<Vec<Shortened>> {
    let mut released = Vec::new();
    let done = release_all(model, skeletons, into, &mut released);
    if done.is_err() {
        end(released, skeletons, into);
    }
    done
}

/// Ends those that have been let go and those that have not, and waits for all of them: nothing is left once we have said so.
fn end(released: Vec<Pid>, skeletons: &mut Skeletons, into: Into<'_>) {
    let pidfds: Vec<_> = released.iter().filter_map(|pid| pidfd_open(*pid).ok()).collect();
    for pid in released {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL);
    }
    // In version 1 a signal is taken once the cgroup is thawed.
    if let Into::Cgroup(freezer) = into
        && let Err(error) = freezer.set(false)
    {
        tracing::warn!(%error, "the cgroup of an ended copy could not be thawed");
    }
    // The first process of a PID namespace ends after all others, and those that we trace once we have been told.
    skeletons.end();
    let deadline = Instant::now() + END_DEADLINE;
    for pidfd in pidfds {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ended, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
    }
}

fn release_all(
    model: &Model,
    skeletons: &mut Skeletons,
    into: Into<'_>,
    released: &mut Vec<Pid>,
) -> Result<Vec<Shortened>> {
    let root = skeletons.pid(TaskId(0));
    prepare_leaders(model, skeletons)?;
    let signal = |task: &Task| match task.state {
        TaskState::Stopped(signal) => Some(stop_signal(model, task, signal)),
        _ if into == Into::Stops => Some(libc::SIGSTOP),
        _ => None,
    };
    let live = |n: &usize| !model.tasks[*n].threads.is_empty();
    let stops: Vec<usize> =
        (0..model.tasks.len()).rev().filter(live).filter(|n| signal(&model.tasks[*n]).is_some()).collect();
    for n in &stops {
        let id = TaskId::from(*n);
        start_clocks(model, id, skeletons)?;
        ignore_trap(model, id, skeletons)?;
        if drops_scratch(model, &stops, *n) {
            drop_scratch(id, skeletons)?;
        }
        let pid = skeletons.pid(id);
        released.push(pid);
        if let Some(Skeleton { threads, .. }) = skeletons.tasks.remove(&id) {
            group_stop::release(pid, threads, signal(&model.tasks[*n]).unwrap_or(libc::SIGSTOP))?;
        }
        wait_until_stopped(pid)?;
        parent_knows(model, id, skeletons)?;
    }
    let rest: Vec<usize> = (0..model.tasks.len()).rev().filter(live).filter(|n| !stops.contains(n)).collect();
    for n in &rest {
        start_clocks(model, TaskId::from(*n), skeletons)?;
    }
    fault::at(Point::RestoreArmed)?;
    for n in &rest {
        ignore_trap(model, TaskId::from(*n), skeletons)?;
    }
    for n in rest.iter().filter(|n| drops_scratch(model, &stops, **n)) {
        drop_scratch(TaskId::from(*n), skeletons)?;
    }
    if let Some(init) = &mut skeletons.init {
        released.push(init.pid());
        prepare_init(init, skeletons.scratch)?;
    }
    remember_waits(model, root, &rest, skeletons);
    if let Into::Cgroup(freezer) = into {
        freeze(freezer)?;
    }
    if let Some(init) = skeletons.init.take() {
        init.release()?;
    }
    let mut shortened = Vec::new();
    for n in &rest {
        shortened.extend(release_socket_waits(model, TaskId::from(*n), skeletons, into)?);
    }
    for (done, n) in rest.iter().enumerate() {
        if done == rest.len() / 2 {
            fault::at(Point::RestoreHalf)?;
        }
        released.push(skeletons.pid(TaskId::from(*n)));
        release_task(TaskId::from(*n), skeletons)?;
    }
    // Zombies are nobody's to kill.
    skeletons.tasks.clear();
    Ok(shortened)
}

/// Written while everybody is stopped: let go, they go from one stillness into the other.
fn freeze(freezer: &Freezer) -> Result<()> {
    freezer.set(true).map_err(|error| Error::System {
        operation: "freeze",
        object: freezer.dir.display().to_string(),
        errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
    })
}

/// Makes first threads ready. The others have been with their credentials.
fn prepare_leaders(model: &Model, skeletons: &mut Skeletons) -> Result<()> {
    for (n, task) in model.tasks.iter().enumerate() {
        if let Some((thread, remote)) = task.threads.first().zip(skeletons.task(TaskId::from(n)).threads.first_mut()) {
            prepare(thread, general(thread)?, remote)?;
        }
    }
    Ok(())
}

/// What a thread goes on with: extended state now, general registers once it has nothing more to do for us.
pub(super) fn prepare(thread: &Thread, regs: UserRegs, remote: &mut Remote) -> trace::Result<()> {
    remote.tracee().set_xstate(&thread.regs.xstate.0)?;
    (remote.saved, remote.saved_mask) = (regs, thread.blocked);
    Ok(())
}

/// General registers of a thread of the model.
pub(super) fn general(thread: &Thread) -> Result<UserRegs> {
    let regs = thread.regs.general.as_slice();
    UserRegs::read_from_bytes(regs.as_bytes()).map_err(|_| Error::Impossible {
        object: format!("thread {}", thread.tid),
        reason: format!("{} registers in the image, 27 expected", regs.len()),
    })
}

/// Timers and interrupted waits.
fn start_clocks(model: &Model, id: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[id.at()];
    let (remote, scratch) = skeletons.leader(id);
    let mut batch = Batch::new();
    timers::arm(&mut batch, task);
    remote.run_all(&scratch, &batch)?;
    restart::begin_again(task, &mut skeletons.task(id).threads, scratch)
}

/// Of those that share an address space, the last to be released removes our area.
fn drops_scratch(model: &Model, stops: &[usize], n: usize) -> bool {
    let mm = model.tasks[n].mm;
    let sharers = || (0..model.tasks.len()).filter(|t| model.tasks[*t].mm == mm);
    sharers().find(|t| !stops.contains(t)).or_else(|| sharers().next()) == Some(n)
}

fn drop_scratch(id: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let (remote, scratch) = skeletons.leader(id);
    Ok(remote.drop_scratch(&scratch)?)
}

/// After the last batch in a task: the trap at the end of each has made the kernel forget that SIGTRAP is ignored.
fn ignore_trap(model: &Model, id: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    const SIG_IGN: u64 = 1;
    let Some(sighand) = model.tasks[id.at()].sighand else { return Ok(()) };
    let action = &model.sighands[sighand.at()].actions[libc::SIGTRAP as usize - 1];
    if action.handler == SIG_IGN {
        let (remote, scratch) = skeletons.leader(id);
        remote.set_trap_action(&scratch, &signals::raw(action))?;
    }
    Ok(())
}

/// For the next dump of the tree of `root`: since when the waits last that we have begun in the middle.
fn remember_waits(model: &Model, root: Pid, tasks: &[usize], skeletons: &mut Skeletons) {
    let mut waits = Vec::new();
    for n in tasks {
        let remotes = &skeletons.task(TaskId::from(*n)).threads;
        for (thread, remote) in model.tasks[*n].threads.iter().zip(remotes) {
            let (call, left) = match thread.restart {
                Restart::Block { call: Some(call), remaining_ns: Some(left) } => (call, left),
                Restart::Socket { remaining_ns } => (remote.saved.orig_rax as u32, remaining_ns),
                _ => continue,
            };
            waits.extend(waits::begun_elsewhere(remote, call, left));
        }
    }
    sleepers::remember(root, waits.into_iter());
}

/// Those of its threads that wait for a socket with a time-out: while nobody else runs. Into a frozen cgroup their sockets take
/// the time-out that is left, which ends when the tree runs.
fn release_socket_waits(
    model: &Model,
    id: TaskId,
    skeletons: &mut Skeletons,
    into: Into<'_>,
) -> Result<Vec<Shortened>> {
    let left = |thread: &Thread| match thread.restart {
        Restart::Socket { remaining_ns } => Some(remaining_ns),
        _ => None,
    };
    let (mut others, mut shortened) = (Vec::new(), Vec::new());
    let threads = std::mem::take(&mut skeletons.task(id).threads);
    for (thread, remote) in model.tasks[id.at()].threads.iter().zip(threads) {
        match left(thread) {
            Some(left) if into == Into::Life => socket_waits::release(remote, left, Remote::release)?,
            Some(left) => shortened.extend(socket_waits::begin(remote, left, Remote::release)?),
            None => others.push(remote),
        }
    }
    skeletons.task(id).threads = others;
    Ok(shortened)
}

fn release_task(id: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let Some(Skeleton { threads, .. }) = skeletons.tasks.remove(&id) else { return Ok(()) };
    for thread in threads {
        thread.release()?;
    }
    Ok(())
}

/// The signal that stops a process again: the one that did, unless the program would now handle or ignore it.
fn stop_signal(model: &Model, task: &Task, signal: i32) -> i32 {
    let action = |sighand: crate::image::SighandId| model.sighands[sighand.at()].actions.get(signal as usize - 1);
    let default = task.sighand.and_then(action).is_some_and(|a| a.handler == libc::SIG_DFL as u64);
    if default { signal } else { libc::SIGSTOP }
}

fn wait_until_stopped(pid: Pid) -> Result<()> {
    let dir = ProcDir::open(pid)?;
    let (mut buf, deadline) = (Vec::new(), Instant::now() + STOP_DEADLINE);
    while dir.stat(&mut buf)?.state != b'T' {
        if Instant::now() > deadline {
            let reason = "it did not stop again".to_owned();
            return Err(Error::Impossible { object: format!("process {pid}"), reason });
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// A stop that the parent has been told of is not told again, and leaves no signal.
fn parent_knows(model: &Model, id: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[id.at()];
    let Some(parent) = task.parent.filter(|p| skeletons.tasks.contains_key(p)) else { return Ok(()) };
    let of = &model.tasks[parent.at()];
    let unread = matches!(task.state, TaskState::Stopped(_)) && task.stop_reported;
    let mut batch = Batch::new();
    if !unread {
        let flags = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        batch.may(
            libc::SYS_waitid,
            &[libc::P_PID.into(), task.id_seen_by(of).0.into(), 0u64.into(), flags.into(), 0u64.into()],
        );
    }
    if !of.pending.iter().any(|info| signals::signal_of(info) == libc::SIGCHLD) {
        signals::drain(&mut batch);
    }
    let (remote, scratch) = skeletons.leader(parent);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// Process 1 of a new PID namespace goes on waiting for children, without any descriptor of ours.
fn prepare_init(init: &mut Remote, scratch: Scratch) -> Result<()> {
    let mut batch = Batch::new();
    batch.must(libc::SYS_close_range, &[0u64.into(), u32::MAX.into(), 0u64.into()]);
    let name = batch.c_string(b"migrate-init");
    batch.prctl(libc::PR_SET_NAME, name, 0u64);
    init.run_all(&scratch, &batch)?;
    Ok(init.drop_scratch(&scratch)?)
}
