//! A tree that stands: all its tasks, stopped, with their mappings and what is in them, and nothing that could not be taken
//! back. A restore from disk completes it at once; the destination of a migration makes it while the source still runs,
//! lets pages come in, and completes it in the pause, from the final model ([`super::reconcile`]).

use super::cgroup::Apart;
use super::material::Material;
use super::plan::Plan;
use super::skeleton::{self, Skeletons};
use super::{
    Options, Restored, Result, cow, creds, fd, lazy, material, mm, ns, plan, sessions, signals, sysv, task, threads,
};
use crate::fault::{self, Point};
use crate::image::mm::{Backing, ShmemKind};
use crate::image::{Model, TaskId};
use crate::memory::pipeline::{PipelineError, load_pages};
use crate::memory::store::{PageReader, ResolvedRun};
use crate::memory::{PageRange, RangeSet, Space, scan};
use crate::trace::pages::TargetPages;

/// A tree that stands. Dropping it ends every task of it.
pub struct Prebuilt<'m> {
    pub(super) model: &'m Model,
    pub(super) plan: Plan,
    // Before what they have mapped: dropped first.
    pub(super) skeletons: Skeletons,
    pub(super) material: Material,
    pub(super) warnings: Vec<String>,
}

impl<'m> Prebuilt<'m> {
    /// Makes all tasks of a model, with the contents of their memory as far as there are any.
    ///
    /// # Errors
    /// Nothing of it is left then.
    pub fn make(
        model: &'m Model,
        pages: Option<&PageReader>,
        options: &Options,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        let mut warnings = Vec::new();
        let plan = plan::plan(model)?;
        let material = material::prepare(model, options, &mut warnings)?;
        fault::at(Point::RestoreMaterial)?;
        let mut later_shared = lazy::shared::Later::default();
        if let Some(pages) = pages {
            later_shared = load_shared(model, pages, &material, options)?;
            fd::shmem::seal_first(model, &material)?;
        }
        let loader = cow::Loader { pages, material: &material, options, progress };
        let mut skeletons = skeleton::make(model, &plan, &loader, options, &mut warnings)?;
        fault::at(Point::RestoreSkeletons)?;
        for task in plan.order.iter().copied() {
            cow::lay_out(model, task, &mut skeletons, &loader)?;
        }
        fault::at(Point::RestoreMappings)?;
        cow::fill_rest(model, &mut skeletons, &loader)?;
        skeletons.memory.later_shared = later_shared;
        lazy::open(model, &mut skeletons)?;
        fault::at(Point::RestorePages)?;
        Ok(Self { model, plan, skeletons, material, warnings })
    }

    /// Makes threads ahead of time, where nothing that comes later wants a process to have only one.
    ///
    /// # Errors
    /// An id is taken.
    pub fn with_threads(mut self) -> Result<Self> {
        for (n, task) in self.model.tasks.iter().enumerate() {
            if ns::ids::namespace(self.model, task).is_none() {
                threads::make(self.model, TaskId::from(n), &mut self.skeletons)?;
            }
        }
        Ok(self)
    }

    /// Leaves these pages for later, see [`lazy`]. `watched`: it is to be known which of them were written to.
    ///
    /// # Errors
    /// They are needed at once, or the kernel does not take it.
    pub fn expect(&mut self, pages: &[(Space, RangeSet)], watched: bool) -> Result<()> {
        lazy::expect(self.model, (pages, watched), &mut self.skeletons, &self.material)
    }

    /// Gives the tree everything but its first instruction.
    ///
    /// # Errors
    /// Nothing of the tree is left then.
    pub fn complete(self, options: &Options) -> Result<Restored<'m>> {
        let Self { model, plan, mut skeletons, mut material, mut warnings } = self;
        sysv::settle(model, &mut skeletons, &material)?;
        // Before anybody enters a user namespace: helpers take the ids of leaders that are gone.
        sessions::process_groups(model, &plan, options, &mut skeletons)?;
        fault::at(Point::RestoreGroups)?;
        for task in plan.order.iter().copied() {
            mm::finish(model, task, &mut skeletons, &material, options.identity.is_some())?;
            ns::ids::enter(model, task, &mut skeletons)?;
            threads::make(model, task, &mut skeletons)?;
        }
        fault::at(Point::RestoreThreads)?;
        let mut opened = fd::make_all(model, &mut skeletons, &material, options, &mut warnings)?;
        task::enter_removed(model, &mut skeletons, &material)?;
        fd::install_all(model, &opened, &mut skeletons, &material)?;
        fault::at(Point::RestoreFiles)?;
        task::end_zombies(model, &mut skeletons)?;
        fault::at(Point::RestoreZombies)?;
        for task in plan.order.iter().copied() {
            task::finish(model, task, &mut skeletons, &mut warnings)?;
        }
        fd::finish(model, &opened, &mut skeletons)?;
        let sleeping = std::mem::take(&mut opened.sleeping);
        drop(opened);
        fault::at(Point::RestoreTasks)?;
        let own = creds::Own::read();
        for task in plan.order.iter().copied() {
            creds::set(model, task, &own, &mut skeletons, &mut warnings)?;
        }
        fault::at(Point::RestoreCreds)?;
        for task in plan.order.iter().copied() {
            signals::queue(model, task, &mut skeletons)?;
        }
        for task in plan.order.iter().copied() {
            task::schedule(model, task, &mut skeletons, &mut warnings)?;
        }
        fault::at(Point::RestoreSignals)?;
        let segments = std::mem::take(&mut material.segments);
        let apart = Apart::of(model, &options.cgroup, |task| skeletons.pid(task));
        Ok(Restored { model, sleeping, segments, skeletons, apart, warnings })
    }

    /// The model that the tree stands for.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Where contents of its memory are read and written, by the model's names.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn memory(&self) -> Result<TargetPages> {
        let shared = self.material.shared_pages()?;
        let private = TargetPages::new(self.skeletons.pids_of_mms(self.model), Vec::new());
        Ok(TargetPages { shmems: shared.shmems, ..private })
    }

    /// Pages that have a place now: of mappings that stay what they are when the tree is completed, and of shared memory.
    pub fn places(&self, space: Space) -> RangeSet {
        let pages = |start, end| PageRange::of_bytes(start, end);
        match space {
            Space::Mm(id) => {
                let kept = |b: &Backing| matches!(b, Backing::Anon | Backing::File { .. } | Backing::Shmem(_));
                let vmas = self.model.mms.get(id.at()).map_or(&[][..], |mm| &mm.vmas);
                vmas.iter()
                    .filter(|v| scan::carries_pages(v) && kept(&v.backing))
                    .map(|v| pages(v.start, v.end))
                    .collect()
            }
            Space::Shmem(id) => {
                let size = self.model.shmems.get(id.at()).map_or(0, |shmem| shmem.size);
                [PageRange::new(0, size.div_ceil(crate::image::mm::PAGE))]
                    .into_iter()
                    .filter(|r| !r.is_empty())
                    .collect()
            }
        }
    }

    /// Pages of a space that the tree has once it is complete.
    pub(super) fn carried(&self, space: Space) -> RangeSet {
        match space {
            Space::Mm(id) => {
                let vmas = self.model.mms.get(id.at()).map_or(&[][..], |mm| &mm.vmas);
                let carried = vmas.iter().filter(|v| scan::carries_pages(v));
                carried.map(|v| PageRange::of_bytes(v.start, v.end)).collect()
            }
            Space::Shmem(_) => self.places(space),
        }
    }

    /// Puts the contents of a store where they belong, those of the `wanted` spaces. What it has of mappings that are gone
    /// by now stays where it is.
    pub(super) fn load(&self, pages: &PageReader, wanted: impl Fn(Space) -> bool, options: &Options) -> Result<()> {
        let mut runs = Vec::new();
        for space in pages.spaces().filter(|space| wanted(*space)) {
            for range in self.carried(space).iter() {
                runs.extend(pages.contents_in(space, range).map_err(PipelineError::Store)?);
            }
        }
        Ok(load_pages(pages, &runs, &self.memory()?, options.workers.max(1), &|_| {})?)
    }

    /// Drops pages that the target no longer has, by the model's names.
    ///
    /// # Errors
    /// A skeleton cannot be worked with.
    pub fn drop_pages(&mut self, space: Space, pages: &RangeSet) -> Result<()> {
        match space {
            Space::Mm(id) => {
                let owner = self.model.tasks.iter().position(|t| t.mm == Some(id)).map(TaskId::from);
                let Some(owner) = owner else { return Ok(()) };
                let mapped = self.carried(space);
                cow::drop_pages(owner, &pages.intersection(&mapped), &mut self.skeletons)
            }
            Space::Shmem(id) => self.material.punch(id, pages),
        }
    }
}

/// Can a tree like this one stand before its contents are there? What is sealed against writing has to be filled before it
/// is sealed, and sealed before it is mapped.
pub fn can_stand(model: &Model) -> bool {
    let sealed =
        |kind: &ShmemKind| matches!(kind, ShmemKind::Memfd { seals, .. } if seals & fd::shmem::SEAL_WRITE != 0);
    !model.shmems.iter().any(|shmem| sealed(&shmem.kind))
}

/// Loads shared memory but for what comes later.
fn load_shared(
    model: &Model,
    pages: &PageReader,
    material: &Material,
    options: &Options,
) -> Result<lazy::shared::Later> {
    let mut runs = runs(pages, |space| matches!(space, Space::Shmem(_)))?;
    let mut later = lazy::shared::Later::default();
    if options.lazy {
        (runs, later) = lazy::shared::split(model, runs, pages, material)?;
    }
    load_pages(pages, &runs, &material.shared_pages()?, options.workers.max(1), &|_| {})?;
    Ok(later)
}

fn runs(pages: &PageReader, wanted: impl Fn(Space) -> bool) -> Result<Vec<ResolvedRun>> {
    let mut all = Vec::new();
    for space in pages.spaces().filter(|s| wanted(*s)) {
        all.extend(pages.runs(space).map_err(PipelineError::Store)?);
    }
    Ok(all)
}
