//! Empty stopped tasks with the right ids: parents before children, sessions and groups as they were.

use super::plan::Plan;
use super::{Error, Options, Result, material::Material};
use crate::image::mm::PAGE;
use crate::image::task::TaskState;
use crate::image::{Model, NsPid, Pid, TaskId};
use crate::proc::ProcDir;
use crate::proc::maps::Special;
use crate::sys::Errno;
use crate::sys::abi::CloneArgs;
use crate::sys::ptrace::{self, options};
use crate::sys::wait::{self, Status};
use crate::trace::remote::{DATA_LEN, Remote, Scratch, vdso_syscall};
use crate::trace::{self, Batch, Tracee};
use std::collections::HashMap;

/// The tree in the making. Dropping it kills every task of it.
pub struct Skeletons {
    tasks: HashMap<TaskId, Skeleton>,
    /// Where our area lies in all of them.
    pub scratch: Scratch,
    /// Process 1 of a new PID namespace, if one was made.
    pub init: Option<Remote>,
    /// Plays the leader of the session that the root inherited from outside the tree, until groups are made.
    pub session: Option<Remote>,
    /// Ids differ from ours: the tree has a PID namespace of its own.
    pub new_pids: bool,
}

/// One task in the making.
pub struct Skeleton {
    /// Process id as we see it.
    pub pid: Pid,
    /// Threads, the leader first.
    pub threads: Vec<Remote>,
}

/// What skeletons are traced with: they die with us.
const OPTIONS: u64 =
    options::TRACE_SYSGOOD | options::EXIT_KILL | options::TRACE_FORK | options::TRACE_VFORK | options::TRACE_CLONE;

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
                user.map_or(Pid(0), |task| self.pid(TaskId::from(task)))
            })
            .collect()
    }

    /// All tasks, consumed for the release.
    pub fn into_tasks(mut self) -> (HashMap<TaskId, Skeleton>, Option<Remote>) {
        (std::mem::take(&mut self.tasks), self.init.take())
    }
}

impl Drop for Skeletons {
    fn drop(&mut self) {
        let ours = [self.session.take(), self.init.take()].into_iter().flatten();
        let ours = ours.map(|remote| Skeleton { pid: remote.pid(), threads: vec![remote] });
        for skeleton in self.tasks.drain().map(|(_, s)| s).chain(ours) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(skeleton.pid.0), nix::sys::signal::SIGKILL);
            // The leader last: it cannot be reaped while another thread has not been.
            for thread in skeleton.threads.iter().rev() {
                let _ = wait::wait(thread.pid());
            }
            let _ = wait::try_wait(skeleton.pid);
        }
    }
}

/// Makes all tasks.
pub fn make(
    model: &Model,
    plan: &Plan,
    material: &Material,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<Skeletons> {
    let _ = material;
    let scratch = Scratch { code: plan.scratch, data: plan.scratch + PAGE, data_len: DATA_LEN };
    let mut skeletons = Skeletons { tasks: HashMap::new(), scratch, init: None, session: None, new_pids: false };
    let place = super::cgroup::prepare(model, &options.cgroup, &options.name, warnings)?;
    let root = super::root::make(model, options, &place, &mut skeletons, warnings)?;
    skeletons.tasks.insert(TaskId(0), root);
    children(model, TaskId(0), &mut skeletons)?;
    Ok(skeletons)
}

/// Takes hold of a fresh copy of ourselves: seized, stopped, with a scratch area.
pub(super) fn hold(child: Pid, scratch: Scratch) -> Result<Remote> {
    let tracee = match Tracee::seize(child, OPTIONS) {
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
    batch.munmap(0, scratch.code);
    let end = scratch.data + scratch.data_len;
    batch.munmap(end, crate::arch::USER_END - end);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// Makes the children of a task, and theirs. A child inherits its maker's session, so those that stayed behind in the
/// session that the task left are made before it leaves.
fn children(model: &Model, parent: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[parent.at()];
    if matches!(task.state, TaskState::Zombie(_)) {
        return Ok(());
    }
    let leads = task.sid == task.pid;
    let inherited = task.parent.map(|p| model.tasks[p.at()].sid);
    let (before, after): (Vec<TaskId>, Vec<TaskId>) = model
        .children(parent)
        .partition(|c| leads && Some(model.tasks[c.at()].sid) == inherited && model.tasks[c.at()].sid != task.sid);
    for child in before {
        child_of(model, parent, child, skeletons)?;
    }
    if leads {
        let (remote, scratch) = skeletons.leader(parent);
        let mut batch = Batch::new();
        batch.must(libc::SYS_setsid, &[]);
        remote.run_all(&scratch, &batch)?;
    }
    let mut helpers: HashMap<NsPid, Remote> = HashMap::new();
    for child in after {
        let sid = model.tasks[child.at()].sid;
        let own = sid == model.tasks[child.at()].pid;
        if own || sid == task.sid || model.task_of(sid).is_none() && Some(sid) == super::root::outer_session(model) {
            child_of(model, parent, child, skeletons)?;
        } else {
            child_in_dead_session(model, parent, child, skeletons, &mut helpers)?;
        }
    }
    for (_, helper) in helpers {
        end_helper(helper, skeletons, parent)?;
    }
    for child in model.children(parent) {
        children(model, child, skeletons)?;
    }
    Ok(())
}

fn child_of(model: &Model, parent: TaskId, child: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[child.at()];
    let mut flags = sharing_flags(model, parent, child);
    let scratch = skeletons.scratch;
    if task.exit_signal < 0 {
        flags |= libc::CLONE_PARENT as u64;
    }
    let maker = &mut skeletons.task(parent).threads[0];
    let remote = clone_from(maker, scratch, flags, task.exit_signal, &ids(task))?;
    let pid = remote.pid();
    skeletons.tasks.insert(child, Skeleton { pid, threads: vec![remote] });
    Ok(())
}

fn ids(task: &crate::image::task::Task) -> Vec<i32> {
    task.inner_pids.iter().rev().chain([&task.pid]).map(|id| id.0).collect()
}

/// A child whose session leader has ended: a helper takes the leader's id, opens the session, and makes the child as its
/// sibling.
fn child_in_dead_session(
    model: &Model,
    parent: TaskId,
    child: TaskId,
    skeletons: &mut Skeletons,
    helpers: &mut HashMap<NsPid, Remote>,
) -> Result<()> {
    let task = &model.tasks[child.at()];
    let scratch = skeletons.scratch;
    if !helpers.contains_key(&task.sid) {
        let maker = &mut skeletons.task(parent).threads[0];
        let mut helper = clone_from(maker, scratch, 0, 0, &[task.sid.0])?;
        let mut batch = Batch::new();
        batch.must(libc::SYS_setsid, &[]);
        helper.run_all(&scratch, &batch)?;
        helpers.insert(task.sid, helper);
    }
    let helper = helpers.get_mut(&task.sid).expect("inserted above");
    let remote = clone_from(helper, scratch, libc::CLONE_PARENT as u64, task.exit_signal, &ids(task))?;
    let pid = remote.pid();
    skeletons.tasks.insert(child, Skeleton { pid, threads: vec![remote] });
    Ok(())
}

/// Ends a helper and has its parent reap it. It was made without an exit signal, so nobody is told.
fn end_helper(helper: Remote, skeletons: &mut Skeletons, parent: TaskId) -> Result<()> {
    kill_traced(helper)?;
    let (remote, scratch) = skeletons.leader(parent);
    reap_in(remote, scratch)
}

fn kill_traced(helper: Remote) -> Result<()> {
    let pid = helper.pid();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL);
    drop(helper);
    wait::wait(pid).map(drop).map_err(|errno| Error::System {
        operation: "wait",
        object: format!("helper {pid}"),
        errno,
    })
}

/// Has a task reap a child that was made without an exit signal.
fn reap_in(parent: &mut Remote, scratch: Scratch) -> Result<()> {
    let mut batch = Batch::new();
    let flags = libc::__WCLONE | libc::WNOHANG;
    batch.may(libc::SYS_wait4, &[(-1i32).into(), 0u64.into(), flags.into(), 0u64.into()]);
    parent.run_all(&scratch, &batch)?;
    Ok(())
}

/// Objects that parent and child share without being threads.
fn sharing_flags(model: &Model, parent: TaskId, child: TaskId) -> u64 {
    let (p, c) = (&model.tasks[parent.at()], &model.tasks[child.at()]);
    let (Some(pt), Some(ct)) = (p.threads.first(), c.threads.first()) else { return 0 };
    let mut flags = 0;
    if p.mm == c.mm {
        flags |= libc::CLONE_VM;
    }
    if p.sighand == c.sighand {
        flags |= libc::CLONE_SIGHAND;
    }
    if pt.fd_table == ct.fd_table {
        flags |= libc::CLONE_FILES;
    }
    if pt.fs == ct.fs {
        flags |= libc::CLONE_FS;
    }
    if pt.io_context != 0 && pt.io_context == ct.io_context {
        flags |= libc::CLONE_IO as i32;
    }
    flags as u64
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
    let call = batch.clone3(&args, set_tid, false);
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

/// Puts every task into its process group: leaders first, then members; dead leaders are played by helpers.
pub fn process_groups(model: &Model, plan: &Plan, skeletons: &mut Skeletons) -> Result<()> {
    let mut helpers = Vec::new();
    let scratch = skeletons.scratch;
    for &(pgid, sid) in &plan.dead_groups {
        let helper = match model.task_of(sid).filter(|t| !is_zombie(model, *t)) {
            Some(maker) => clone_from(&mut skeletons.task(maker).threads[0], scratch, 0, 0, &[pgid.0])
                .map(|helper| (Some(maker), helper)),
            None => match &mut skeletons.session {
                Some(leader) if leader.pid().0 != pgid.0 => {
                    clone_from(leader, scratch, 0, 0, &[pgid.0]).map(|helper| (None, helper))
                }
                _ => continue,
            },
        };
        let (maker, mut helper) = match helper {
            Ok(made) => made,
            // Somebody has the number: the group cannot be made, its members stay in the group of their session.
            Err(Error::PidInUse { .. }) => continue,
            Err(e) => return Err(e),
        };
        set_group(&mut helper, scratch, 0)?;
        helpers.push((maker, pgid, helper));
    }
    let (leaders, members): (Vec<_>, Vec<_>) =
        plan.order.iter().copied().partition(|t| model.tasks[t.at()].pgid == model.tasks[t.at()].pid);
    for id in leaders.into_iter().chain(members) {
        let task = &model.tasks[id.at()];
        let exists = model.task_of(task.pgid).is_some() || helpers.iter().any(|h| h.1 == task.pgid);
        if task.sid == task.pid || task.pgid.0 == 0 || !exists {
            continue;
        }
        let (remote, scratch) = skeletons.leader(id);
        set_group(remote, scratch, task.pgid.0)?;
    }
    for (maker, _, helper) in helpers {
        match maker {
            Some(maker) => end_helper(helper, skeletons, maker)?,
            None => {
                kill_traced(helper)?;
                let leader = skeletons.session.as_mut().expect("it has made the helper");
                reap_in(leader, scratch)?;
            }
        }
    }
    if let Some(leader) = skeletons.session.take() {
        kill_traced(leader)?;
        if let Some(init) = &mut skeletons.init {
            reap_in(init, scratch)?;
        }
    }
    Ok(())
}

fn set_group(remote: &mut Remote, scratch: Scratch, pgid: i32) -> Result<()> {
    let mut batch = Batch::new();
    batch.must(libc::SYS_setpgid, &[0u64.into(), pgid.into()]);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

fn is_zombie(model: &Model, task: TaskId) -> bool {
    matches!(model.tasks[task.at()].state, TaskState::Zombie(_))
}
