//! Processes that have come since a tree was made, and those that have ended: forks of parents whose memory is there by now.

use super::cow::{Loader, drop_pages, lay_out, own};
use super::prebuilt::Prebuilt;
use super::reconcile::Unfit;
use super::sessions::{self, reap_in};
use super::skeleton::{Skeleton, Skeletons};
use super::{Options, Result, sharing};
use crate::image::task::Task;
use crate::image::{MmId, Model, TaskId};
use crate::memory::pipeline::{PipelineError, ReadPages, WritePages, load_pages};
use crate::memory::store::{PageReader, ResolvedRun, Source};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space};
use crate::trace::Batch;
use std::collections::{HashMap, HashSet};

/// Pages copied in one go.
const BATCH_PAGES: u64 = 256;

/// Whether a task can be made in a tree that has its parent.
///
/// # Errors
/// Why it cannot: it would have to be made by somebody else, or before its parent got what it has.
pub(super) fn can_come(model: &Model, id: TaskId) -> std::result::Result<(), Unfit> {
    let task = &model.tasks[id.at()];
    let Some(parent) = task.parent.map(|p| &model.tasks[p.at()]) else {
        return Err("another process is the root");
    };
    let leads = task.sid == task.pid;
    if !leads && task.sid != parent.sid {
        return Err("a process has come that is not in its parent's session");
    }
    if leads && model.ptys.iter().any(|pty| pty.sid == task.sid) {
        return Err("a session with a terminal has begun");
    }
    if task.namespaces != parent.namespaces || task.inner_pids.len() != parent.inner_pids.len() {
        return Err("a process has come that is not in its parent's namespaces");
    }
    if !sharing::alone(model, id) {
        return Err("a process has come that shares tables with another");
    }
    let kin = task.mm.and_then(|mm| model.mms[mm.at()].cow_parent);
    if kin.is_some() && kin != parent.mm {
        return Err("a process has come that shares memory with one that is not its parent");
    }
    Ok(())
}

/// Whether a task of the earlier model can be ended without more than it being gone.
///
/// # Errors
/// Its session goes on without it.
pub(super) fn can_go(task: &Task, new: &Model) -> std::result::Result<(), Unfit> {
    let led = task.sid == task.pid && new.tasks.iter().any(|t| t.sid == task.pid);
    if led || new.ptys.iter().any(|pty| pty.sid == task.pid) {
        Err("the leader of a session has ended")
    } else {
        Ok(())
    }
}

/// Ends those that are in no task of the final model any more; `found` has for each of those the earlier one.
pub(super) fn end_gone(
    old: &Model,
    mut gone: HashMap<TaskId, Skeleton>,
    found: &[Option<TaskId>],
    skeletons: &mut Skeletons,
) -> Result<()> {
    let depth = |task: &TaskId| std::iter::successors(Some(*task), |t| old.tasks[t.at()].parent).count();
    let mut order: Vec<TaskId> = gone.keys().copied().collect();
    order.sort_by_key(|task| std::cmp::Reverse(depth(task)));
    let scratch = skeletons.scratch;
    for id in order {
        let Some(skeleton) = gone.remove(&id) else { continue };
        let task = &old.tasks[id.at()];
        skeleton.end();
        let Some(parent) = task.parent else { continue };
        let stays = found.iter().position(|was| *was == Some(parent)).map(TaskId::from);
        let parent = match stays {
            Some(now) => Some(skeletons.task(now)),
            None => gone.get_mut(&parent),
        };
        if let Some(parent) = parent {
            reap_in(&mut parent.threads[0], scratch, task.pid.0)?;
        }
    }
    Ok(())
}

/// The address spaces of tasks that are yet to be made.
pub(super) fn spaces(model: &Model, come: impl Fn(&TaskId) -> bool) -> HashSet<Space> {
    let come = (0..model.tasks.len()).map(TaskId::from).filter(come);
    come.filter_map(|task| model.tasks[task.at()].mm.map(Space::Mm)).collect()
}

impl Prebuilt<'_> {
    /// Makes a task whose parent is there, with the contents that a store has of it.
    pub(super) fn comes(&mut self, task: TaskId, stored: Option<&PageReader>, options: &Options) -> Result<()> {
        sessions::comes(self.model, task, &mut self.skeletons)?;
        let (remote, scratch) = self.skeletons.leader(task);
        let mut batch = Batch::new();
        self.material.bring(&mut batch);
        remote.run_all(&scratch, &batch)?;
        // What it inherits is not known in full before the source has sent the rest.
        let loader = Loader { pages: None, material: &self.material, options, progress: &|_| {} };
        tracing::debug!("a process has come since the tree was made: {}", self.model.tasks[task.at()].pid);
        lay_out(self.model, task, &mut self.skeletons, &loader)?;
        let Some(mm) = own(self.model, task) else { return Ok(()) };
        let space = Space::Mm(mm);
        let mut runs = Vec::new();
        if let Some(pages) = stored {
            for range in self.carried(space).iter() {
                runs.extend(pages.runs_in(space, range).map_err(PipelineError::Store)?);
            }
        }
        if let Some(parent) = self.skeletons.memory.born_of(mm) {
            self.inherits(task, (parent, mm), &runs)?;
        }
        let Some(pages) = stored else { return Ok(()) };
        Ok(load_pages(pages, &runs, &self.memory()?, options.workers.max(1), &|_| {})?)
    }

    /// A child that was born with its parent's pages: drops those that it does not have, copies those that it has where its
    /// parent's mapping is of another kind. What the source finds out about its pages in the pause comes later.
    fn inherits(&mut self, task: TaskId, (parent, child): (MmId, MmId), runs: &[ResolvedRun]) -> Result<()> {
        let same = self.skeletons.memory.inherited(child);
        let mut inherited: Vec<PageRange> =
            runs.iter().filter(|run| run.source == Source::Inherit).map(|run| run.range).collect();
        inherited.sort_unstable();
        let inherited: RangeSet = inherited.into_iter().collect();
        drop_pages(task, &same.difference(&inherited), &mut self.skeletons)?;
        let moved = inherited.difference(&same);
        let memory = self.memory()?;
        let mut buffer = PageBuffer::default();
        for piece in moved.iter().flat_map(|range| range.pieces(BATCH_PAGES)) {
            buffer.resize(piece.bytes() as usize);
            let (from, to) = (Space::Mm(parent), Space::Mm(child));
            let read = memory.read(from, &[piece], &mut buffer);
            read.map_err(|source| PipelineError::Read { space: from, source })?;
            let written = memory.write(to, &[piece], &buffer);
            written.map_err(|source| PipelineError::Write { space: to, source })?;
        }
        Ok(())
    }
}
