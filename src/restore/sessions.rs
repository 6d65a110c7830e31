//! Parents, sessions and process groups: who has to make whom, so that everybody ends up where he was.
//!
//! A session and a parent are inherited from the maker and can only be changed by leaving (setsid) or by the maker's end.
//! Most tasks are made by their parent. One that was adopted is made by somebody who is in its session: as a sibling
//! (`CLONE_PARENT`) where that gives the right parent, else through a helper whose end lets it be adopted again. Leaders
//! that are gone are played by helpers that take their ids.

use super::plan::Plan;
use super::skeleton::{Skeleton, Skeletons, clone_from};
use super::{Error, Options, Result, cow, fd, sharing};
use crate::image::task::{Task, TaskState};
use crate::image::{Model, NsPid, TaskId};
use crate::sys::wait;
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};

/// Makes everybody below the root, which is there.
pub fn descendants(model: &Model, skeletons: &mut Skeletons, loader: &cow::Loader<'_>) -> Result<()> {
    let mut adopted = Vec::new();
    children(model, TaskId(0), skeletons, loader, &mut adopted)?;
    while !adopted.is_empty() {
        let mut later = Vec::new();
        let before = adopted.len();
        for child in adopted {
            if in_session(model, child, skeletons)? {
                children(model, child, skeletons, loader, &mut later)?;
            } else {
                later.push(child);
            }
        }
        if later.len() == before {
            adopted = later;
            // Nobody of these sessions is there: play the leader of one, its other members follow from the first.
            let child = adopted.remove(0);
            in_dead_session(model, child, skeletons)?;
            children(model, child, skeletons, loader, &mut adopted)?;
        } else {
            adopted = later;
        }
    }
    Ok(())
}

/// Makes the children of a task, and theirs, but for those that it cannot have made itself. A child inherits its maker's
/// session, so those that stayed behind in the session that the task left are made before it leaves.
fn children(
    model: &Model,
    parent: TaskId,
    skeletons: &mut Skeletons,
    loader: &cow::Loader<'_>,
    adopted: &mut Vec<TaskId>,
) -> Result<()> {
    cow::before_children(model, parent, skeletons, loader)?;
    let task = &model.tasks[parent.at()];
    let leads = task.sid == task.pid;
    let inherited = task.parent.map(|p| model.tasks[p.at()].sid);
    let sid = |child: &TaskId| model.tasks[child.at()].sid;
    let (before, after): (Vec<TaskId>, Vec<TaskId>) =
        model.children(parent).partition(|c| leads && Some(sid(c)) == inherited && sid(c) != task.sid);
    for child in before {
        child_of(model, parent, child, skeletons)?;
    }
    if leads {
        let scratch = skeletons.scratch;
        let remote = &mut skeletons.tasks.get_mut(&parent).expect("it makes its children").threads[0];
        lead_session(remote, scratch)?;
        fd::tty::acquire(model, task.sid, &skeletons.terminals, remote, scratch)?;
    }
    for child in after {
        if sid(&child) == model.tasks[child.at()].pid || sid(&child) == task.sid {
            child_of(model, parent, child, skeletons)?;
        } else {
            adopted.push(child);
        }
    }
    for child in model.children(parent) {
        if skeletons.tasks.contains_key(&child) {
            children(model, child, skeletons, loader, adopted)?;
        }
    }
    Ok(())
}

/// Opens a session.
pub(super) fn lead_session(remote: &mut Remote, scratch: Scratch) -> Result<()> {
    let mut batch = Batch::new();
    batch.must(libc::SYS_setsid, &[]);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// Makes a task whose parent is there, in the parent's session or one of its own.
pub(super) fn comes(model: &Model, child: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[child.at()];
    child_of(model, task.parent.unwrap_or(TaskId(0)), child, skeletons)?;
    if task.sid == task.pid {
        let (remote, scratch) = skeletons.leader(child);
        lead_session(remote, scratch)?;
    }
    Ok(())
}

fn child_of(model: &Model, parent: TaskId, child: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[child.at()];
    let scratch = skeletons.scratch;
    let maker = sharing::maker(model, parent, child, skeletons)?;
    let shared = sharing::flags(model, maker, child);
    let from = &mut skeletons.task(maker).threads[0];
    if shared & libc::CLONE_IO as u32 as u64 != 0 {
        sharing::have_io_context(from, scratch)?;
    }
    let remote = if maker == parent {
        clone_from(from, scratch, shared, task.exit_signal, &ids(task))?
    } else {
        clone_from(from, scratch, shared | libc::CLONE_PARENT as u64, 0, &ids(task))?
    };
    add(model, maker, child, remote, skeletons)
}

/// Adds a task that this other one has made, directly or through a helper.
fn add(model: &Model, maker: TaskId, child: TaskId, mut remote: Remote, skeletons: &mut Skeletons) -> Result<()> {
    let pid = remote.pid();
    let cleared = cow::born(model, maker, child, &mut remote, skeletons);
    skeletons.tasks.insert(child, Skeleton { pid, threads: vec![remote] });
    cleared
}

fn ids(task: &Task) -> Vec<i32> {
    task.inner_pids.iter().rev().chain([&task.pid]).map(|id| id.0).collect()
}

/// Somebody who is in a session already; zombies (they live as long as we build) rather than others, siblings first.
fn member_of(model: &Model, sid: NsPid, parent: Option<TaskId>, skeletons: &Skeletons) -> Option<TaskId> {
    let members = skeletons.tasks.keys().copied().filter(|t| model.tasks[t.at()].sid == sid);
    members.min_by_key(|t| {
        let task = &model.tasks[t.at()];
        (task.parent != parent || task.exit_signal != libc::SIGCHLD, !is_zombie(task), *t)
    })
}

/// Makes an adopted task by somebody who is in its session; false if nobody is yet.
fn in_session(model: &Model, child: TaskId, skeletons: &mut Skeletons) -> Result<bool> {
    let task = &model.tasks[child.at()];
    let Some(member) = member_of(model, task.sid, task.parent, skeletons) else { return Ok(false) };
    let scratch = skeletons.scratch;
    let of = &model.tasks[member.at()];
    // The kernel gives a sibling the exit signal of its maker, and an adopted task SIGCHLD.
    if of.parent == task.parent && of.exit_signal == libc::SIGCHLD {
        let maker = &mut skeletons.task(member).threads[0];
        let remote = clone_from(maker, scratch, libc::CLONE_PARENT as u64, 0, &ids(task))?;
        add(model, member, child, remote, skeletons)?;
    } else if is_zombie(of) {
        // Adopted when the zombie ends.
        adopts(model, child, skeletons)?;
        let maker = &mut skeletons.task(member).threads[0];
        let remote = clone_from(maker, scratch, 0, libc::SIGCHLD, &ids(task))?;
        add(model, member, child, remote, skeletons)?;
    } else {
        adopts(model, child, skeletons)?;
        let mut helper = clone_from(&mut skeletons.task(member).threads[0], scratch, 0, 0, &[])?;
        let remote = clone_from(&mut helper, scratch, 0, libc::SIGCHLD, &ids(task))?;
        add(model, member, child, remote, skeletons)?;
        end_helper(helper, skeletons, member)?;
    }
    Ok(true)
}

/// Makes sure that whoever has the task for a child adopts it now.
fn adopts(model: &Model, child: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let Some(parent) = model.tasks[child.at()].parent else { return Ok(()) };
    let (remote, scratch) = skeletons.leader(parent);
    let mut batch = Batch::new();
    batch.prctl(libc::PR_SET_CHILD_SUBREAPER, 1u64, 0u64);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// A child whose session leader has ended, the first of the session: a helper takes the leader's id, opens the session,
/// and makes the child as its sibling.
fn in_dead_session(model: &Model, child: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[child.at()];
    let scratch = skeletons.scratch;
    let parent = task.parent.unwrap_or(TaskId(0));
    let maker = &mut skeletons.task(parent).threads[0];
    let mut helper = clone_from(maker, scratch, 0, task.exit_signal, &[task.sid.0])?;
    lead_session(&mut helper, scratch)?;
    let remote = clone_from(&mut helper, scratch, libc::CLONE_PARENT as u64, 0, &ids(task))?;
    add(model, parent, child, remote, skeletons)?;
    end_helper(helper, skeletons, parent)
}

/// Ends a helper and has its parent reap it. The signal that its end may have queued is thrown away with those of zombies.
fn end_helper(helper: Remote, skeletons: &mut Skeletons, parent: TaskId) -> Result<()> {
    let id = end(helper)?;
    let (remote, scratch) = skeletons.leader(parent);
    reap_in(remote, scratch, id)
}

/// Ends a helper; its id as its parent sees it.
fn end(helper: Remote) -> Result<i32> {
    let pid = helper.pid();
    let status = crate::proc::ProcDir::open(pid)?.status(&mut Vec::new())?;
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL);
    drop(helper);
    wait::wait(pid).map_err(|errno| Error::System { operation: "wait", object: format!("helper {pid}"), errno })?;
    Ok(status.ns_pid.last().copied().unwrap_or(pid.0))
}

pub(super) fn reap_in(parent: &mut Remote, scratch: Scratch, id: i32) -> Result<()> {
    let mut batch = Batch::new();
    batch.must(libc::SYS_wait4, &[id.into(), 0u64.into(), libc::__WALL.into(), 0u64.into()]);
    parent.run_all(&scratch, &batch)?;
    Ok(())
}

/// Who made the helper that plays the leader of a group.
enum Maker {
    Task(TaskId),
    /// The helper that plays the leader of the session that the root inherited.
    Session,
}

/// Puts every task into its process group: leaders first, then members; dead leaders are played by helpers.
pub fn process_groups(model: &Model, plan: &Plan, options: &Options, skeletons: &mut Skeletons) -> Result<()> {
    let mut helpers = Vec::new();
    let (scratch, root) = (skeletons.scratch, model.root());
    for &(pgid, sid) in &plan.dead_groups {
        let outer = sid == root.sid && model.task_of(sid).is_none();
        let (maker, made) = match &mut skeletons.session {
            Some(leader) if outer => (Maker::Session, clone_from(leader, scratch, 0, libc::SIGCHLD, &[pgid.0])),
            // The root is in our session, and in our group.
            None if outer && pgid == root.pgid && !options.own_session => continue,
            _ => {
                let Some(maker) = member_of(model, sid, None, skeletons) else { continue };
                let remote = &mut skeletons.task(maker).threads[0];
                (Maker::Task(maker), clone_from(remote, scratch, 0, libc::SIGCHLD, &[pgid.0]))
            }
        };
        match made {
            Ok(mut helper) => {
                set_group(&mut helper, scratch, 0)?;
                helpers.push((pgid, maker, helper));
            }
            // Somebody has the number: the members stay in the group of their session.
            Err(Error::PidInUse { .. }) if outer || !model.tasks.iter().any(|t| t.pgid == pgid) => {
                tracing::debug!("process group {pgid} could not be made again: its number is in use");
            }
            Err(e) => return Err(e),
        }
    }
    let (leaders, members): (Vec<_>, Vec<_>) =
        plan.order.iter().copied().partition(|t| model.tasks[t.at()].pgid == model.tasks[t.at()].pid);
    for id in leaders.into_iter().chain(members) {
        let task = &model.tasks[id.at()];
        let exists = model.task_of(task.pgid).is_some() || helpers.iter().any(|(pgid, _, _)| *pgid == task.pgid);
        if task.sid == task.pid || task.pgid.0 == 0 || !exists {
            continue;
        }
        let (remote, scratch) = skeletons.leader(id);
        set_group(remote, scratch, task.pgid.0)?;
    }
    fd::tty::foreground(model, skeletons)?;
    for (_, maker, helper) in helpers {
        match maker {
            Maker::Task(maker) => end_helper(helper, skeletons, maker)?,
            Maker::Session => {
                let id = end(helper)?;
                let leader = skeletons.session.as_mut().expect("it has made the helper");
                reap_in(leader, scratch, id)?;
            }
        }
    }
    if let Some(leader) = skeletons.session.take() {
        let id = end(leader)?;
        if let Some(init) = &mut skeletons.init {
            reap_in(init, scratch, id)?;
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

fn is_zombie(task: &Task) -> bool {
    matches!(task.state, TaskState::Zombie(_))
}
