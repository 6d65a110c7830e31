//! Objects that processes share without being threads: only `clone` gives them, from somebody who has them.

use super::skeleton::Skeletons;
use super::{Error, Result};
use crate::image::task::Task;
use crate::image::{Model, TaskId};
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};
use std::collections::{HashMap, HashSet};

/// Objects that must be shared for the tree to be what it was. An I/O context is only a hint to a scheduler of disks.
const NEEDED: [(i32, &str); 4] = [
    (libc::CLONE_VM, "address space"),
    (libc::CLONE_SIGHAND, "signal handlers"),
    (libc::CLONE_FILES, "descriptor table"),
    (libc::CLONE_FS, "working directory and umask"),
];

/// Flags of clone(2) for what two processes share.
pub fn flags(model: &Model, a: TaskId, b: TaskId) -> u64 {
    let (a, b) = (&model.tasks[a.at()], &model.tasks[b.at()]);
    let (Some(first), Some(second)) = (a.threads.first(), b.threads.first()) else { return 0 };
    let io = first.io_context != 0 && first.io_context == second.io_context;
    let needed = NEEDED.iter().filter(|(flag, _)| object(a, *flag) == object(b, *flag));
    needed.fold(if io { libc::CLONE_IO as u32 as u64 } else { 0 }, |all, (flag, _)| all | *flag as u64)
}

/// Sees to it that a task has an I/O context: one that has none has nothing to share (`copy_io` of the kernel's block/blk-ioc.c).
/// Its priority is set in the end, with everybody's.
pub fn have_io_context(remote: &mut Remote, scratch: Scratch) -> Result<()> {
    const IOPRIO_WHO_PROCESS: u64 = 1;
    let mut batch = Batch::new();
    batch.must(libc::SYS_ioprio_set, &[IOPRIO_WHO_PROCESS.into(), 0u64.into(), 0u64.into()]);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// Which object of a kind a process has.
fn object(task: &Task, flag: i32) -> Option<u32> {
    let leader = task.threads.first()?;
    match flag {
        libc::CLONE_VM => task.mm.map(|id| id.0),
        libc::CLONE_SIGHAND => task.sighand.map(|id| id.0),
        libc::CLONE_FILES => Some(leader.fd_table.0),
        _ => Some(leader.fs.0),
    }
}

/// Objects that more than one process has, as (flag, number).
pub fn shared(model: &Model) -> HashSet<(i32, u32)> {
    let mut seen = HashSet::new();
    let all = model.tasks.iter().flat_map(|t| NEEDED.iter().filter_map(|(flag, _)| Some((*flag, object(t, *flag)?))));
    all.filter(|key| !seen.insert(*key)).collect()
}

/// Whether a task shares nothing with another process that must be shared.
pub fn alone(model: &Model, task: TaskId) -> bool {
    let mut others = (0..model.tasks.len()).map(TaskId::from).filter(|other| *other != task);
    others.all(|other| flags(model, task, other) & needed() == 0)
}

/// Whether the tasks of one model share what those of another do; `found` has for each task of `new` that of `old`, if it was there. What a
/// process shared that has ended meanwhile does not count.
pub fn alike(old: &Model, new: &Model, found: &[Option<TaskId>]) -> bool {
    NEEDED.iter().all(|(flag, _)| {
        let pairs = new
            .tasks
            .iter()
            .zip(found)
            .filter_map(|(now, was)| Some((object(now, *flag)?, object(&old.tasks[(*was)?.at()], *flag)?)));
        let (mut there, mut back) = (HashMap::new(), HashMap::new());
        pairs
            .into_iter()
            .all(|(now, was)| *there.entry(now).or_insert(was) == was && *back.entry(was).or_insert(now) == now)
    })
}

fn needed() -> u64 {
    NEEDED.iter().fold(0, |all, (flag, _)| all | *flag as u64)
}

/// Who has to make a child of `parent`, for it to share what it shared: the parent, or a sibling that is there already.
///
/// # Errors
/// What is shared with somebody who can be neither is named.
pub fn maker(model: &Model, parent: TaskId, child: TaskId, skeletons: &Skeletons) -> Result<TaskId> {
    let of = &model.tasks[child.at()];
    if !NEEDED.iter().any(|(flag, _)| object(of, *flag).is_some_and(|n| skeletons.shared.contains(&(*flag, n)))) {
        return Ok(parent);
    }
    let there = |t: &TaskId| *t != child && skeletons.tasks.contains_key(t);
    let wanted: u64 = skeletons.tasks.keys().fold(0, |all, t| all | flags(model, *t, child)) & needed();
    let gives = |t: TaskId| flags(model, t, child) & wanted == wanted;
    if gives(parent) {
        return Ok(parent);
    }
    // A sibling gets the exit signal of its maker.
    let alike = |t: &TaskId| model.tasks[t.at()].exit_signal == of.exit_signal;
    if let Some(sibling) = model.children(parent).filter(there).filter(alike).find(|t| gives(*t)) {
        return Ok(sibling);
    }
    let missing = wanted & !flags(model, parent, child);
    let what = NEEDED.iter().find(|(flag, _)| missing & *flag as u64 != 0).map_or("something", |(_, name)| name);
    Err(Error::Impossible {
        object: format!("process {}", of.pid),
        reason: format!("it shares its {what} with a process that is neither its parent nor its sibling"),
    })
}
