//! Empty stopped tasks with the right ids. Who makes whom is decided in [`super::sessions`].

use super::plan::Plan;
use super::{Error, Options, Result, cow};
use crate::image::creds::Seccomp;
use crate::image::mm::PAGE;
use crate::image::{Model, NsId, Pid, TaskId};
use crate::proc::ProcDir;
use crate::proc::maps::Special;
use crate::sys::Errno;
use crate::sys::abi::CloneArgs;
use crate::sys::ptrace::{self, options};
use crate::sys::wait::{self, Status};
use crate::trace::remote::{DATA_LEN, Remote, Scratch, vdso_syscall};
use crate::trace::{self, Batch, Tracee};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The tree in the making. Dropping it kills every task of it.
pub struct Skeletons {
    pub(super) tasks: HashMap<TaskId, Skeleton>,
    /// Where our area lies in all of them.
    pub scratch: Scratch,
    /// Process 1 of a new PID namespace, if one was made.
    pub init: Option<Remote>,
    /// Plays the leader of the session that the root inherited from outside the tree, until groups are made.
    pub session: Option<Remote>,
    /// How far address spaces are.
    pub memory: cow::Progress,
    /// Namespaces of the tree's own.
    pub made: Arc<super::ns::Made>,
    /// Mount namespaces that a task is in, by their inode.
    pub entered: HashMap<NsId, u64>,
    /// Ids differ from ours: the tree has a PID namespace of its own.
    pub new_pids: bool,
    /// Tracing options of all tasks.
    pub options: u64,
    /// What the tree's time namespace adds to CLOCK_MONOTONIC, nanoseconds, if it has one.
    pub clock_offset: Option<i64>,
    /// Terminals of the tree, until its descriptions have been made.
    pub terminals: super::fd::tty::Terminals,
    /// Objects that more than one process has, see [`super::sharing`].
    pub shared: HashSet<(i32, u32)>,
}

/// One task in the making.
pub struct Skeleton {
    /// Process id as we see it.
    pub pid: Pid,
    /// Threads, the leader first.
    pub threads: Vec<Remote>,
}

/// What makes children of traced tasks traced.
pub(super) const FOLLOW: u64 = options::TRACE_FORK | options::TRACE_VFORK | options::TRACE_CLONE;

/// What skeletons are traced with: they die with us, and filters do not apply to what they do for us.
pub(super) fn trace_options(model: &Model) -> u64 {
    let confined = model.tasks.iter().flat_map(|t| &t.threads).any(|t| t.seccomp != Seccomp::Disabled);
    // Refused without CAP_SYS_ADMIN and to a program that has filters itself: only asked for where it is needed.
    let suspend = if confined { options::SUSPEND_SECCOMP } else { 0 };
    options::TRACE_SYSGOOD | options::EXIT_KILL | FOLLOW | suspend
}

impl Skeletons {
    /// One task.
    pub fn task(&mut self, id: TaskId) -> &mut Skeleton {
        self.tasks.get_mut(&id).expect("every task of the model has a skeleton")
    }

    /// Its leader and our area in it.
    pub fn leader(&mut self, id: TaskId) -> (&mut Remote, Scratch) {
        let scratch = self.scratch;
        (&mut self.task(id).threads[0], scratch)
    }

    /// Its process id as we see it.
    pub fn pid(&self, id: TaskId) -> Pid {
        self.tasks[&id].pid
    }

    /// A process for each address space.
    pub fn pids_of_mms(&self, model: &Model) -> Vec<Pid> {
        (0..model.mms.len())
            .map(|mm| {
                let user = model.tasks.iter().position(|t| t.mm.is_some_and(|m| m.at() == mm));
                let skeleton = user.and_then(|task| self.tasks.get(&TaskId::from(task)));
                // While tasks are made, those that are not there yet are not asked for.
                skeleton.map_or(Pid(0), |s| s.pid)
            })
            .collect()
    }
}

impl Drop for Skeletons {
    fn drop(&mut self) {
        self.end();
    }
}

impl Skeletons {
    /// Ends all that have not been let go.
    pub(super) fn end(&mut self) {
        let ours = [self.session.take(), self.init.take()].into_iter().flatten();
        let ours = ours.map(|remote| Skeleton { pid: remote.pid(), threads: vec![remote] });
        for skeleton in self.tasks.drain().map(|(_, s)| s).chain(ours) {
            skeleton.end();
        }
    }
}

impl Skeleton {
    /// Ends the process; its parent, if that is not us, has yet to be told.
    pub(super) fn end(self) {
        // Also threads that were made and not taken before something failed: we trace them.
        let made = ProcDir::open(self.pid).and_then(|dir| dir.tasks()).unwrap_or_default();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid.0), nix::sys::signal::SIGKILL);
        // The leader last: it cannot be reaped while another thread has not been.
        let others = made.into_iter().filter(|tid| *tid != self.pid);
        for tid in others.chain(self.threads.iter().rev().map(Remote::pid)) {
            let _ = wait::wait(tid);
        }
        let _ = wait::try_wait(self.pid);
    }
}

/// Makes all tasks.
pub fn make(
    model: &Model,
    plan: &Plan,
    loader: &cow::Loader<'_>,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<Skeletons> {
    let scratch = Scratch { code: plan.scratch, data: plan.scratch + PAGE, data_len: DATA_LEN };
    let mut skeletons = Skeletons {
        tasks: HashMap::new(),
        scratch,
        init: None,
        session: None,
        memory: cow::Progress::default(),
        made: Arc::clone(&loader.material.made),
        entered: HashMap::new(),
        new_pids: false,
        options: trace_options(model),
        clock_offset: None,
        terminals: Default::default(),
        shared: super::sharing::shared(model),
    };
    let place = super::cgroup::prepare(model, &options.cgroup, &options.name, warnings)?;
    let root = super::root::make(model, options, &place, &mut skeletons, warnings)?;
    skeletons.tasks.insert(TaskId(0), root);
    skeletons.terminals = super::fd::tty::prepare(model, &skeletons, warnings)?;
    super::sessions::descendants(model, &mut skeletons, loader)?;
    super::ns::enter::mounts_of_all(model, &mut skeletons)?;
    Ok(skeletons)
}

/// Takes hold of a fresh copy of ourselves: seized, stopped, with a scratch area.
pub(super) fn hold(child: Pid, skeletons: &Skeletons) -> Result<Remote> {
    let scratch = skeletons.scratch;
    let tracee = match Tracee::seize(child, skeletons.options) {
        Ok(tracee) => tracee,
        Err(e) => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0), nix::sys::signal::SIGKILL);
            let _ = wait::wait(child);
            return Err(e.into());
        }
    };
    tracee.interrupt()?;
    let (tracee, _) = tracee.wait()?;
    let mut remote = Remote::new(tracee)?;
    let maps = ProcDir::open(child)?.maps(&mut Vec::new())?;
    let vdso = maps.iter().find(|m| m.special() == Some(Special::Vdso)).map(|m| m.start);
    let ip = vdso.and_then(vdso_syscall).ok_or_else(|| trace::Error::Call {
        pid: child,
        call: "first system call (no vDSO)".to_owned(),
        errno: Errno::ENOEXEC,
    })?;
    let made = remote.make_scratch(ip, Some(scratch.code))?;
    debug_assert_eq!(made, scratch);
    Ok(remote)
}

/// Unmaps everything but the scratch area.
pub(super) fn empty(remote: &mut Remote, scratch: Scratch) -> Result<()> {
    let rseq = ptrace::rseq_configuration(remote.pid()).unwrap_or_default();
    let mut batch = Batch::new();
    if rseq.address != 0 {
        // Its area is about to be unmapped: the kernel would kill the task on its next return to user mode.
        const RSEQ_FLAG_UNREGISTER: u32 = 1;
        let args = [rseq.address.into(), rseq.size.into(), RSEQ_FLAG_UNREGISTER.into(), rseq.signature.into()];
        batch.must(libc::SYS_rseq, &args);
    }
    batch.must(libc::SYS_set_tid_address, &[0u64.into()]);
    batch.must(libc::SYS_set_robust_list, &[0u64.into(), 24u64.into()]);
    unmap_all(&mut batch, scratch);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

fn unmap_all(batch: &mut Batch, scratch: Scratch) {
    batch.munmap(0, scratch.code);
    let end = scratch.data + scratch.data_len;
    batch.munmap(end, crate::arch::USER_END - end);
}

/// Unmaps everything but the scratch area in a task that was born with its maker's memory.
pub(super) fn clear(remote: &mut Remote, scratch: Scratch) -> Result<()> {
    let mut batch = Batch::new();
    unmap_all(&mut batch, scratch);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// A stopped child of a stopped task.
pub(super) fn clone_from(
    maker: &mut Remote,
    scratch: Scratch,
    flags: u64,
    exit_signal: i32,
    set_tid: &[i32],
) -> Result<Remote> {
    let mut batch = Batch::new();
    let args = CloneArgs { flags, exit_signal: exit_signal.max(0) as u64, ..CloneArgs::default() };
    let call = batch.clone3(&args, set_tid);
    let results = maker.run(&scratch, &batch)?;
    match results.get(call) {
        Ok(_) => {}
        Err(Errno::EEXIST) => {
            return Err(Error::PidInUse {
                pid: set_tid.first().copied().unwrap_or(0),
                occupant: "another task".to_owned(),
            });
        }
        Err(errno) => {
            return Err(Error::System { operation: "clone3", object: format!("pid {set_tid:?}"), errno });
        }
    }
    // Attached by the kernel (TRACE_FORK): its first stop comes before it has run anything.
    let child = maker.last_child.take().ok_or_else(|| Error::Impossible {
        object: format!("pid {set_tid:?}"),
        reason: "the kernel did not report the new task".to_owned(),
    })?;
    let (tracee, status) = Tracee::attached(child).wait()?;
    match status {
        Status::EventStop(_) | Status::Signal(_) => Ok(Remote::new(tracee)?),
        other => Err(trace::Error::OddStop { pid: child, what: "its first stop", status: format!("{other:?}") }.into()),
    }
}
