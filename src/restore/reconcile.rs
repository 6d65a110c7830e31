//! From a tree that stands for an earlier model to one that stands for the final one.
//!
//! [`Fit::of`] (pure) says whether that can be done and what stays. What cannot be changed is fixed at creation: ids,
//! parents, sessions, namespaces, shared tables. Everything else that a standing tree has - mappings, threads, shared memory
//! objects - is compared and changed where it differs; contents stay where a mapping stays. Who has ended is ended, who has
//! come is made ([`super::newcomers`]).

use super::cow::{Progress, adapted, common, pages_of};
use super::material::Material;
use super::prebuilt::{self, Prebuilt};
use super::skeleton::{Skeleton, Skeletons, clear, trace_options};
use super::{Options, Result, clock, fd, mm, newcomers, plan, root, sharing, threads};
use crate::image::mm::{Backing, Mm, ShmemKind, Vma};
use crate::image::ns::NsKind;
use crate::image::task::{Task, TaskState};
use crate::image::{GhostId, MmId, Model, ShmemId, TaskId};
use crate::memory::store::PageReader;
use crate::memory::{PageRange, RangeSet, Space};
use crate::ops::options::Cgroup;
use crate::trace::Batch;
use std::collections::{HashMap, HashSet};

/// How a final model fits a tree that stands for an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// For each task of the final model the one of the earlier; `None` = it has come since.
    tasks: Vec<Option<TaskId>>,
    /// For each address space of the final model the earlier one whose contents it keeps; `None` = it begins empty.
    mms: Vec<Option<MmId>>,
    /// For each shared memory object the earlier one that it is.
    shmems: Vec<Option<ShmemId>>,
}

/// Why a tree has to be made anew.
pub type Unfit = &'static str;

impl Fit {
    /// Compares two models. `homes`: spaces of the earlier model that pages came for, and what they are called in the final
    /// one; `None` = they are gone.
    ///
    /// # Errors
    /// What has changed that cannot be changed in a task that exists.
    pub fn of(
        old: &Model,
        new: &Model,
        homes: &HashMap<Space, Option<Space>>,
        options: &Options,
    ) -> std::result::Result<Self, Unfit> {
        same_surroundings(old, new, options)?;
        let tasks = tasks(old, new)?;
        let shmems = shmems(old, new, homes)?;
        let mut mms = vec![None; new.mms.len()];
        for (n, task) in new.tasks.iter().enumerate() {
            let (Some(id), Some(was)) = (task.mm, tasks[n].and_then(|was| old.tasks[was.at()].mm)) else { continue };
            let stays = homes.get(&Space::Mm(was)).is_none_or(|now| *now == Some(Space::Mm(id)));
            mms[id.at()] = Some(was).filter(|_| stays);
        }
        let fit = Self { tasks, mms, shmems };
        fit.segments_stay(old, new)?;
        fit.policies_stay(old, new)?;
        Ok(fit)
    }

    /// Pages of a space of the earlier model that stay where they are.
    pub fn kept(&self, old: &Model, new: &Model, space: Space) -> RangeSet {
        match space {
            Space::Mm(was) => match self.mms.iter().position(|m| *m == Some(was)) {
                None => RangeSet::new(),
                Some(at) => {
                    let theirs = self.translated(&old.mms[was.at()], old, new);
                    pages_of(&common(&theirs.vmas, &new.mms[at].vmas))
                }
            },
            Space::Shmem(was) => {
                let all = PageRange::new(0, crate::image::limits::PAGE_NUMBERS);
                self.shmems.contains(&Some(was)).then_some(all).into_iter().collect()
            }
        }
    }

    /// An address space of the earlier model in words of the final one.
    fn translated(&self, mm: &Mm, old: &Model, new: &Model) -> Mm {
        const NONE: u32 = u32::MAX;
        let object = |was: ShmemId| {
            let now = self.shmems.iter().position(|s| *s == Some(was));
            now.map_or(ShmemId(NONE), ShmemId::from)
        };
        let vma = |vma: &Vma| match vma.backing {
            // Not there yet.
            Backing::Descriptor(_) => None,
            Backing::Shmem(was) => Some(Vma { backing: Backing::Shmem(object(was)), ..vma.clone() }),
            Backing::Ghost(_) if old.ghosts != new.ghosts => {
                Some(Vma { backing: Backing::Ghost(GhostId(NONE)), ..vma.clone() })
            }
            _ => Some(vma.clone()),
        };
        Mm { vmas: mm.vmas.iter().filter_map(vma).collect(), ..mm.clone() }
    }

    /// System V segments are attached as a whole: where that has changed, the tree is made anew.
    fn segments_stay(&self, old: &Model, new: &Model) -> std::result::Result<(), Unfit> {
        let is_segment = |model: &Model, vma: &Vma| match vma.backing {
            Backing::Shmem(id) => model.shmems.get(id.at()).is_some_and(|s| matches!(s.kind, ShmemKind::SysV { .. })),
            _ => false,
        };
        for (now, was) in new.mms.iter().zip(&self.mms).filter_map(|(mm, was)| Some((mm, (*was)?))) {
            let theirs = self.translated(&old.mms[was.at()], old, new);
            let key = |v: &Vma| (v.start, v.end, v.offset, v.may_write, v.backing.clone());
            let before: Vec<_> = theirs.vmas.iter().filter(|v| is_segment(new, v)).map(key).collect();
            let after: Vec<_> = now.vmas.iter().filter(|v| is_segment(new, v)).map(key).collect();
            if before != after {
                return Err("System V memory was attached or detached");
            }
        }
        Ok(())
    }

    /// A part of a shared object keeps its NUMA policy, whoever maps it: none is taken away.
    fn policies_stay(&self, old: &Model, new: &Model) -> std::result::Result<(), Unfit> {
        let policy = |v: &Vma| match (&v.backing, &v.numa) {
            (Backing::Shmem(id), Some(policy)) if v.shared => Some((*id, v.offset, v.len(), policy.clone())),
            _ => None,
        };
        let after: Vec<_> = new.mms.iter().flat_map(|mm| &mm.vmas).filter_map(policy).collect();
        let before = old.mms.iter().flat_map(|mm| self.translated(mm, old, new).vmas);
        let there = before.filter_map(|v| policy(&v)).filter(|(id, ..)| id.at() < new.shmems.len());
        let mut gone = there.filter(|policy| !after.contains(policy));
        gone.next().map_or(Ok(()), |_| Err("shared memory has another NUMA policy"))
    }
}

/// What all tasks stand in.
fn same_surroundings(old: &Model, new: &Model, options: &Options) -> std::result::Result<(), Unfit> {
    if old.namespaces.len() != new.namespaces.len()
        || old.namespaces.iter().zip(&new.namespaces).any(|(a, b)| {
            // Contents of a host's namespaces are nobody's to make.
            (a.of_host, b.of_host) != (true, true) && a != b || kind(&a.kind) != kind(&b.kind)
        })
    {
        return Err("its namespaces have changed");
    }
    if !prebuilt::can_stand(new) {
        return Err("shared memory was sealed");
    }
    if trace_options(old) != trace_options(new) {
        return Err("seccomp filters were added");
    }
    let home = |model: &Model| model.root().cgroups.map(|id| model.cgroups[id.at()].clone());
    if options.cgroup == Cgroup::Same && home(old) != home(new) {
        return Err("its cgroup has changed");
    }
    if !fd::tty::same_pairs(old, new) {
        return Err("its terminals have changed");
    }
    Ok(())
}

fn kind(kind: &NsKind) -> std::mem::Discriminant<NsKind> {
    std::mem::discriminant(kind)
}

/// Every task is as it was made, or can be made now; who is gone leaves nobody behind.
fn tasks(old: &Model, new: &Model) -> std::result::Result<Vec<Option<TaskId>>, Unfit> {
    let by_pid: HashMap<i32, TaskId> = old.tasks.iter().enumerate().map(|(n, t)| (t.pid.0, n.into())).collect();
    let found: Vec<Option<TaskId>> = new.tasks.iter().map(|t| by_pid.get(&t.pid.0).copied()).collect();
    for (n, (now, was)) in new.tasks.iter().zip(&found).enumerate() {
        let Some(was) = was.map(|was| &old.tasks[was.at()]) else {
            newcomers::can_come(new, TaskId::from(n))?;
            continue;
        };
        let parent = now.parent.map(|p| found[p.at()]);
        let born_alike = (&now.inner_pids, parent, now.sid, now.exit_signal, now.namespaces)
            == (&was.inner_pids, was.parent.map(Some), was.sid, was.exit_signal, was.namespaces);
        let revived = is_zombie(was) && !is_zombie(now);
        if !born_alike || revived {
            return Err("a process has another parent, session or namespace");
        }
    }
    if !sharing::alike(old, new, &found) {
        return Err("processes share other things");
    }
    for n in (0..old.tasks.len()).filter(|n| !found.contains(&Some(TaskId::from(*n)))) {
        newcomers::can_go(&old.tasks[n], new)?;
    }
    Ok(found)
}

fn is_zombie(task: &Task) -> bool {
    matches!(task.state, TaskState::Zombie(_))
}

fn shmems(
    old: &Model,
    new: &Model,
    homes: &HashMap<Space, Option<Space>>,
) -> std::result::Result<Vec<Option<ShmemId>>, Unfit> {
    let segment = |kind: &ShmemKind| match kind {
        ShmemKind::SysV { id, key, huge_page, creator, .. } => Some((*id, *key, *huge_page, *creator)),
        _ => None,
    };
    let mut taken = vec![false; old.shmems.len()];
    let mut found = Vec::with_capacity(new.shmems.len());
    for (n, shmem) in new.shmems.iter().enumerate() {
        let now = Some(Space::Shmem(n.into()));
        let same = |(at, was): &(usize, &crate::image::mm::Shmem)| match segment(&shmem.kind) {
            Some(key) => segment(&was.kind) == Some(key) && was.size == shmem.size,
            None => homes.get(&Space::Shmem((*at).into())) == Some(&now) && alike(&was.kind, &shmem.kind),
        };
        let at = old.shmems.iter().enumerate().find(same).map(|(at, _)| at);
        if let Some(at) = at {
            taken[at] = true;
        } else if segment(&shmem.kind).is_some() {
            return Err("System V segments have come");
        }
        found.push(at.map(ShmemId::from));
    }
    if old.shmems.iter().zip(taken).any(|(was, taken)| segment(&was.kind).is_some() && !taken) {
        return Err("System V segments have gone");
    }
    Ok(found)
}

/// Objects that are made in the same way; seals come in the end.
fn alike(a: &ShmemKind, b: &ShmemKind) -> bool {
    match (a, b) {
        (ShmemKind::Memfd { name, huge_page, .. }, ShmemKind::Memfd { name: other, huge_page: pages, .. }) => {
            (name, huge_page) == (other, pages)
        }
        (a, b) => a == b,
    }
}

impl<'m> Prebuilt<'m> {
    /// How a later model fits this tree, see [`Fit::of`].
    ///
    /// # Errors
    /// What makes it necessary to make the tree anew.
    pub fn fit(
        &self,
        model: &Model,
        homes: &HashMap<Space, Option<Space>>,
        options: &Options,
    ) -> std::result::Result<Fit, Unfit> {
        if !plan::is_free(model, self.plan.scratch) {
            return Err("something is mapped where its skeletons have their work area");
        }
        if clock::is_late(model, &self.skeletons) {
            return Err("its clock would go back");
        }
        let ids = |model: &Model| -> HashSet<i32> {
            model.tasks.iter().flat_map(|t| t.threads.iter().map(|th| th.tid.0).chain([t.pid.0])).collect()
        };
        // In a PID namespace of the tree's own nobody else has one.
        if !self.skeletons.new_pids && ids(model).difference(&ids(self.model)).any(|id| root::occupant(*id).is_some()) {
            return Err("the id of a process or thread that was made since is in use here");
        }
        Fit::of(self.model, model, homes, options)
    }

    /// The same tree for the final model, with the contents of a store. Pages that stay are those of [`Fit::kept`].
    ///
    /// # Errors
    /// Nothing of the tree is left then.
    pub fn adopt(self, model: &'m Model, fit: &Fit, stored: Option<&PageReader>, options: &Options) -> Result<Self> {
        let Self { model: old, plan, mut skeletons, mut material, warnings } = self;
        clock::catch_up(model, &skeletons);
        let plan = plan::with_scratch(model, plan.scratch);
        material.renew(old, model, &fit.shmems, options)?;
        let mut gone: HashMap<TaskId, Skeleton> = std::mem::take(&mut skeletons.tasks);
        for (n, was) in fit.tasks.iter().enumerate() {
            if let Some(skeleton) = was.and_then(|was| gone.remove(&was)) {
                skeletons.tasks.insert(n.into(), skeleton);
            }
        }
        newcomers::end_gone(old, gone, &fit.tasks, &mut skeletons)?;
        skeletons.shared = sharing::shared(model);
        for (n, was) in fit.tasks.iter().enumerate() {
            let Some(was) = was else { continue };
            threads::settle(&old.tasks[was.at()], model, n.into(), &mut skeletons)?;
        }
        let come = |task: &TaskId| fit.tasks[task.at()].is_none();
        fit.adapt_memory(old, model, &mut skeletons, &material)?;
        skeletons.memory = Progress::complete(model).without(model, come);
        fd::tty::renew(model, &skeletons)?;
        let mut tree = Self { model, plan, skeletons, material, warnings };
        let newest: HashSet<Space> = newcomers::spaces(model, come);
        if let Some(pages) = stored {
            tree.load(pages, |space| !newest.contains(&space), options)?;
        }
        for task in tree.plan.order.clone().into_iter().filter(come) {
            tree.comes(task, stored, options)?;
        }
        Ok(tree)
    }
}

impl Fit {
    /// Changes the mappings of all that were there before.
    fn adapt_memory(&self, old: &Model, model: &Model, skeletons: &mut Skeletons, material: &Material) -> Result<()> {
        for (n, was) in self.mms.iter().enumerate() {
            let id = MmId::from(n);
            let owner = model.tasks.iter().position(|t| t.mm == Some(id)).map(TaskId::from);
            let Some(owner) = owner.filter(|owner| self.tasks[owner.at()].is_some()) else { continue };
            let (remote, scratch) = skeletons.leader(owner);
            let mut batch = Batch::new();
            material.bring(&mut batch);
            match was {
                Some(was) => {
                    let theirs = self.translated(&old.mms[was.at()], old, model);
                    let parts = common(&theirs.vmas, &model.mms[n].vmas);
                    adapted(&mut batch, &theirs, &model.mms[n], &parts, material);
                    remote.run_all(&scratch, &batch)?;
                }
                None => {
                    remote.run_all(&scratch, &batch)?;
                    clear(remote, scratch)?;
                    mm::lay_out(model, owner, skeletons, material)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::NsPid;
    use crate::image::tests::sample;

    /// Everything is called as it was.
    fn same(model: &Model) -> HashMap<Space, Option<Space>> {
        let mms = (0..model.mms.len()).map(|n| Space::Mm(n.into()));
        let shmems = (0..model.shmems.len()).map(|n| Space::Shmem(n.into()));
        mms.chain(shmems).map(|space| (space, Some(space))).collect()
    }

    fn fit(old: &Model, new: &Model, homes: &HashMap<Space, Option<Space>>) -> std::result::Result<Fit, Unfit> {
        Fit::of(old, new, homes, &Options::default())
    }

    /// The sample, with nothing that must be complete before it is mapped.
    fn sampled() -> Model {
        let mut model = sample();
        for shmem in &mut model.shmems {
            if let ShmemKind::Memfd { seals, .. } = &mut shmem.kind {
                *seals = 0;
            }
        }
        model
    }

    #[test]
    fn a_tree_that_has_not_changed_stays_as_it_is() {
        let model = sampled();
        let fits = fit(&model, &model, &same(&model)).unwrap();
        assert!(fits.tasks.iter().enumerate().all(|(n, was)| *was == Some(n.into())));
        assert!(fits.mms.iter().enumerate().all(|(n, was)| *was == Some(MmId::from(n))));
        assert!(fits.shmems.iter().enumerate().all(|(n, was)| *was == Some(ShmemId::from(n))));
        let anonymous = model.mms[0].vmas.iter().find(|vma| vma.backing == Backing::Anon && !vma.shared).unwrap();
        let kept = fits.kept(&model, &model, Space::Mm(MmId(0)));
        assert!(kept.contains(PageRange::of_bytes(anonymous.start, anonymous.end).first));
    }

    #[test]
    fn processes_come_and_go() {
        let old = sampled();
        let last = old.tasks.len() - 1;
        let mut without = old.clone();
        without.tasks.pop();
        let fits = fit(&old, &without, &same(&old)).unwrap();
        assert_eq!(fits.tasks, (0..last).map(|n| Some(TaskId::from(n))).collect::<Vec<_>>());
        // A child like any other, that has its parent's session and tables of its own.
        let mut come = old.clone();
        let parent = come.tasks[last].parent.map(|p| come.tasks[p.at()].clone()).unwrap();
        let child = &mut come.tasks[last];
        (child.pid, child.sid, child.namespaces) = (NsPid(31_999), parent.sid, parent.namespaces);
        child.inner_pids = parent.inner_pids.clone();
        child.threads.clear();
        child.mm = None;
        let fits = fit(&old, &come, &same(&old)).unwrap();
        assert_eq!((fits.tasks[last], fits.tasks[0]), (None, Some(TaskId(0))));
    }

    #[test]
    fn what_is_fixed_at_creation_makes_a_tree_unfit() {
        let old = sampled();
        type Change = fn(&mut Model);
        let changes: [(&str, Change); 4] = [
            ("a process has come in another session", |m| {
                let child = m.tasks.last_mut().unwrap();
                (child.pid, child.sid) = (NsPid(31_999), NsPid(31_998));
            }),
            ("a session was begun", |m| m.tasks[1].sid = m.tasks[1].pid),
            ("somebody else adopted it", |m| m.tasks[2].parent = m.tasks[2].parent.map(|p| TaskId(1 - p.0.min(1)))),
            ("shared memory was sealed", |m| {
                let seals = fd::shmem::SEAL_WRITE;
                let kind = ShmemKind::Memfd { name: b"x".to_vec().into(), seals, huge_page: 0 };
                m.shmems.push(crate::image::mm::Shmem { size: 1, kind, mode: 0, uid: 0, gid: 0 });
            }),
        ];
        for (name, change) in changes {
            let mut new = old.clone();
            change(&mut new);
            assert!(new != old && fit(&old, &new, &same(&old)).is_err(), "{name}");
        }
    }

    #[test]
    fn another_program_begins_with_empty_memory() {
        let model = sampled();
        let mut homes = same(&model);
        // Its pages came for an address space that is gone.
        homes.insert(Space::Mm(MmId(0)), None);
        let fits = fit(&model, &model, &homes).unwrap();
        assert_eq!(fits.mms[0], None);
        assert!(fits.kept(&model, &model, Space::Mm(MmId(0))).is_empty());
    }

    #[test]
    fn mappings_of_another_kind_do_not_keep_their_pages() {
        let old = sampled();
        let mut new = old.clone();
        let at = new.mms[0].vmas.iter().position(|vma| vma.backing == Backing::Anon && !vma.shared).unwrap();
        new.mms[0].vmas[at].backing = Backing::HugeAnon { page_size: 2 << 20 };
        let fits = fit(&old, &new, &same(&old)).unwrap();
        let pages = PageRange::of_bytes(old.mms[0].vmas[at].start, old.mms[0].vmas[at].end);
        assert!(!fits.kept(&old, &new, Space::Mm(MmId(0))).contains(pages.first));
    }
}
