//! Address spaces that share pages copy-on-write: the parent is filled first, the child is forked from it, and then only
//! what differs is mapped and written anew.
//!
//! A task is born with the mappings of its maker. One that shares nothing with it is emptied at once; one that does is
//! adapted: what it lacks is unmapped, what is new is mapped, and what both have stays, with its pages. Advice that keeps
//! pages from children (`MADV_DONTFORK`, `MADV_WIPEONFORK`) and locks in memory are applied after all forks
//! ([`super::mm::finish`]).

use super::material::Material;
use super::mm;
use super::numa;
use super::skeleton::{Skeletons, clear};
use super::sysv;
use super::{Options, Result, lazy};
use crate::image::mm::{Backing, Mm, PAGE, Vma};
use crate::image::{MmId, Model, TaskId};
use crate::memory::pipeline::{PipelineError, load_pages};
use crate::memory::store::{PageReader, ResolvedRun, Source};
use crate::memory::{PageRange, RangeSet, Space};
use crate::trace::fill::Fill;
use crate::trace::pages::TargetPages;
use crate::trace::{Batch, remote::Remote};
use std::collections::{HashMap, HashSet};

/// Where contents come from.
pub struct Loader<'a> {
    /// The page store; `None` = contents come later, from elsewhere.
    pub pages: Option<&'a PageReader>,
    /// What mappings need.
    pub material: &'a Material,
    /// The caller's choices.
    pub options: &'a Options,
    /// Told about bytes that are done.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// How far address spaces are.
#[derive(Debug, Default)]
pub struct Progress {
    /// Everything is mapped.
    laid_out: HashSet<MmId>,
    /// Contents are in.
    filled: HashSet<MmId>,
    /// Born as a copy of this other one.
    born_of: HashMap<MmId, MmId>,
    /// What of those that were born as copies stayed as it was inherited.
    parts: HashMap<MmId, Vec<Part>>,
    /// Whose mappings are in a task; those of no other task are there but our own area.
    contents: HashMap<TaskId, MmId>,
    /// Pages that come later.
    pub(super) later: HashMap<MmId, lazy::Later>,
    /// The same of shared memory.
    pub(super) later_shared: lazy::shared::Later,
}

impl Progress {
    /// Everything is mapped and filled.
    pub(super) fn complete(model: &Model) -> Self {
        let all: HashSet<MmId> = (0..model.mms.len()).map(MmId::from).collect();
        let tasks = model.tasks.iter().enumerate();
        let contents = tasks.filter_map(|(n, task)| Some((n.into(), task.mm?))).collect();
        Self {
            laid_out: all.clone(),
            filled: all,
            born_of: HashMap::new(),
            parts: HashMap::new(),
            contents,
            later: HashMap::new(),
            later_shared: Default::default(),
        }
    }

    /// The same, but for tasks that are yet to be made.
    pub(super) fn without(mut self, model: &Model, yet: impl Fn(&TaskId) -> bool) -> Self {
        for task in (0..model.tasks.len()).map(TaskId::from).filter(yet) {
            self.contents.remove(&task);
            if let Some(mm) = model.tasks[task.at()].mm {
                self.laid_out.remove(&mm);
                self.filled.remove(&mm);
            }
        }
        self
    }

    /// The address space that this one was born as a copy of.
    pub(super) fn born_of(&self, mm: MmId) -> Option<MmId> {
        self.born_of.get(&mm).copied()
    }

    /// Pages of mappings that stayed as they were inherited.
    pub(super) fn inherited(&self, mm: MmId) -> RangeSet {
        pages_of(self.parts.get(&mm).map_or(&[], Vec::as_slice))
    }
}

/// The address space of a task, if the task is the first in the model that has it.
pub(super) fn own(model: &Model, task: TaskId) -> Option<MmId> {
    let mm = model.tasks[task.at()].mm?;
    let first = model.tasks.iter().position(|t| t.mm == Some(mm));
    (first == Some(task.at())).then_some(mm)
}

/// Before children of a task are made: fills its address space if any of them shares pages with it.
pub fn before_children(model: &Model, parent: TaskId, skeletons: &mut Skeletons, loader: &Loader<'_>) -> Result<()> {
    let Some(mm) = model.tasks[parent.at()].mm else { return Ok(()) };
    let shares = |child: TaskId| own(model, child).is_some_and(|c| model.mms[c.at()].cow_parent == Some(mm));
    if !model.children(parent).any(shares) || skeletons.memory.filled.contains(&mm) {
        return Ok(());
    }
    let Some(owner) = model.tasks.iter().position(|t| t.mm == Some(mm)).map(TaskId::from) else { return Ok(()) };
    lay_out(model, owner, skeletons, loader)?;
    fill(model, &[mm], skeletons, loader)
}

/// After a task was made by this other one: notes what it was born with, or empties it.
pub fn born(model: &Model, maker: TaskId, child: TaskId, remote: &mut Remote, skeletons: &mut Skeletons) -> Result<()> {
    let Some(inherited) = skeletons.memory.contents.get(&maker).copied() else { return Ok(()) };
    match model.tasks[child.at()].mm {
        // It ends before anybody looks at its memory.
        None => {}
        // The very same.
        Some(mm) if mm == inherited => {}
        Some(mm) if model.mms[mm.at()].cow_parent == Some(inherited) => {
            skeletons.memory.born_of.insert(mm, inherited);
        }
        Some(_) => return clear(remote, skeletons.scratch),
    }
    skeletons.memory.contents.insert(child, inherited);
    Ok(())
}

/// Maps what a task has, if it is the first with its address space and that was not done yet.
pub fn lay_out(model: &Model, task: TaskId, skeletons: &mut Skeletons, loader: &Loader<'_>) -> Result<()> {
    sysv::enter(task, skeletons, loader.material)?;
    let Some(id) = own(model, task) else { return Ok(()) };
    if !skeletons.memory.laid_out.insert(id) {
        return Ok(());
    }
    skeletons.memory.contents.insert(task, id);
    let Some(parent) = skeletons.memory.born_of.get(&id) else {
        return mm::lay_out(model, task, skeletons, loader.material);
    };
    let (theirs, ours) = (&model.mms[parent.at()], &model.mms[id.at()]);
    let mut parts = common(&theirs.vmas, &ours.vmas);
    // What is made ahead of time may yet turn out to be inherited.
    if let (Some(pages), None) = (loader.pages, loader.options.read_at) {
        let runs = pages.runs(Space::Mm(id)).map_err(PipelineError::Store)?;
        let inherited = runs.iter().filter(|run| run.source == Source::Inherit).map(|run| run.range).collect();
        retain_inherited(&mut parts, &ours.vmas, &inherited);
    }
    let mut batch = Batch::new();
    adapted(&mut batch, theirs, ours, &parts, loader.material);
    let (remote, scratch) = skeletons.leader(task);
    remote.run_all(&scratch, &batch)?;
    skeletons.memory.parts.insert(id, parts);
    Ok(())
}

/// Fills every address space that is not filled yet.
pub fn fill_rest(model: &Model, skeletons: &mut Skeletons, loader: &Loader<'_>) -> Result<()> {
    let rest: Vec<MmId> =
        (0..model.mms.len()).map(MmId::from).filter(|mm| !skeletons.memory.filled.contains(mm)).collect();
    fill(model, &rest, skeletons, loader)
}

fn fill(model: &Model, mms: &[MmId], skeletons: &mut Skeletons, loader: &Loader<'_>) -> Result<()> {
    let Some(pages) = loader.pages else { return Ok(()) };
    let mut runs = Vec::new();
    for &mm in mms {
        match skeletons.memory.born_of.get(&mm).copied() {
            None if loader.options.lazy && lazy::suits(model, mm) => {
                let (now, later) = lazy::split(model, mm, contents(pages, mm)?, pages);
                runs.extend(now);
                skeletons.memory.later.insert(mm, later);
            }
            None => runs.extend(contents(pages, mm)?),
            Some(parent) => runs.extend(differences(model, parent, mm, skeletons, pages)?),
        }
    }
    let mut dest = TargetPages::new(skeletons.pids_of_mms(model), Vec::new());
    for &mm in mms {
        if skeletons.memory.born_of.contains_key(&mm) {
            continue;
        }
        if let Some(fill) = fresh(model, mm, &runs, skeletons)? {
            dest.fills.insert(mm, fill);
        }
    }
    load_pages(pages, &runs, &dest, loader.options.workers.max(1), loader.progress)?;
    skeletons.memory.filled.extend(mms);
    Ok(())
}

/// Below this many pages a mapping is filled by ordinary writes: each registration costs a few microseconds.
const FILL_PAGES: u64 = 256;

/// Large anonymous mappings of an address space that nobody has touched are filled page by page, if there are any. Not
/// where the kernel would use huge pages: those are faster still.
fn fresh(model: &Model, mm: MmId, runs: &[ResolvedRun], skeletons: &mut Skeletons) -> Result<Option<Fill>> {
    let always = crate::proc::sys::huge_pages_everywhere();
    let content = |r: &&ResolvedRun| r.space == Space::Mm(mm) && r.source != Source::Zero;
    let held: RangeSet = runs.iter().filter(content).map(|run| run.range).collect();
    if held.pages() < FILL_PAGES {
        return Ok(None);
    }
    let suits = |vma: &&Vma| {
        let pages = PageRange::of_bytes(vma.start, vma.end);
        let huge = vma.advice.huge || always && !vma.advice.no_huge;
        vma.backing == Backing::Anon
            && !vma.shared
            && !huge
            && pages.count >= FILL_PAGES
            && held.intersection(&[pages].into_iter().collect()).pages() >= FILL_PAGES
    };
    let areas: Vec<(u64, u64)> = model.mms[mm.at()].vmas.iter().filter(suits).map(|v| (v.start, v.end)).collect();
    let owner = model.tasks.iter().position(|t| t.mm == Some(mm)).map(TaskId::from);
    let (Some(owner), false) = (owner, areas.is_empty()) else { return Ok(None) };
    let (remote, scratch) = skeletons.leader(owner);
    Ok(Fill::begin(remote, &scratch, &areas)?)
}

fn contents(pages: &PageReader, mm: MmId) -> Result<Vec<ResolvedRun>> {
    let all = PageRange::new(0, crate::image::limits::PAGE_NUMBERS);
    Ok(pages.contents_in(Space::Mm(mm), all).map_err(PipelineError::Store)?)
}

/// What has to be written into a child that was born of its filled parent. Pages that the parent has and the child has not
/// are dropped here.
fn differences(
    model: &Model,
    parent: MmId,
    child: MmId,
    skeletons: &mut Skeletons,
    pages: &PageReader,
) -> Result<Vec<ResolvedRun>> {
    let common = skeletons.memory.inherited(child);
    let mut runs = Vec::new();
    let mut held = RangeSet::new();
    for run in pages.runs(Space::Mm(child)).map_err(PipelineError::Store)? {
        held.insert(run.range);
        if run.source != Source::Inherit {
            runs.push(run);
            continue;
        }
        // Inherited, but not where the mapping itself was: written like any other page.
        let all: RangeSet = [run.range].into_iter().collect();
        for range in all.difference(&common).ranges() {
            runs.extend(pages.contents_in(Space::Mm(child), *range).map_err(PipelineError::Store)?);
        }
    }
    let filled: RangeSet = contents(pages, parent)?.iter().map(|run| run.range).collect();
    let surplus = filled.intersection(&common).difference(&held);
    let owner = model.tasks.iter().position(|t| t.mm == Some(child)).map(TaskId::from);
    let Some(owner) = owner else { return Ok(runs) };
    drop_pages(owner, &surplus, skeletons)?;
    Ok(runs)
}

/// Drops pages of a task's memory: private ones begin anew, as zeros or as their file has them.
pub(super) fn drop_pages(task: TaskId, pages: &RangeSet, skeletons: &mut Skeletons) -> Result<()> {
    let (remote, scratch) = skeletons.leader(task);
    for part in pages.ranges().chunks(4096) {
        let mut batch = Batch::new();
        for range in part {
            batch.madvise(range.start_byte(), range.bytes(), libc::MADV_DONTNEED);
        }
        remote.run_all(&scratch, &batch)?;
    }
    Ok(())
}

/// A part of a mapping that stays as it was inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Positions of the mappings.
    theirs: usize,
    ours: usize,
}

/// Could one mapping be a piece of the other?
fn alike(a: &Vma, b: &Vma) -> bool {
    let kept = match a.backing {
        Backing::Anon => true,
        Backing::Shmem(_) | Backing::File { .. } | Backing::Ghost(_) => {
            a.offset.wrapping_sub(a.start) == b.offset.wrapping_sub(b.start)
        }
        _ => false,
    };
    // Of a shared object one may have what the other may only read, and a policy of one is for both.
    kept && a.backing == b.backing
        && (!a.shared || (a.may_write, &a.numa) == (b.may_write, &b.numa))
        && (a.shared, a.grows_down, a.no_reserve, a.advice.huge, a.guarded)
            == (b.shared, b.grows_down, b.no_reserve, b.advice.huge, b.guarded)
}

/// What the two address spaces have in common, ascending.
pub(super) fn common(theirs: &[Vma], ours: &[Vma]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut from = 0;
    for (n, vma) in ours.iter().enumerate() {
        while theirs.get(from).is_some_and(|t| t.end <= vma.start) {
            from += 1;
        }
        for (m, other) in theirs.iter().enumerate().skip(from).take_while(|(_, t)| t.start < vma.end) {
            if alike(other, vma) {
                let (start, end) = (other.start.max(vma.start), other.end.min(vma.end));
                parts.push(Part { start, end, theirs: m, ours: n });
            }
        }
    }
    parts
}

/// The pages of parts.
pub(super) fn pages_of(parts: &[Part]) -> RangeSet {
    parts.iter().map(|part| PageRange::of_bytes(part.start, part.end)).collect()
}

/// Keeps no part of a private mapping of which no page is inherited: parent and child have made it after the fork, each its
/// own, at the same place. The kernel merges nothing with a mapping that a fork has copied: what the program has as one
/// mapping would be several, and mremap(2) of it fail.
fn retain_inherited(parts: &mut Vec<Part>, ours: &[Vma], inherited: &RangeSet) {
    parts.retain(|part| {
        let vma = &ours[part.ours];
        let all: RangeSet = [PageRange::of_bytes(vma.start, vma.end)].into_iter().collect();
        vma.shared || vma.backing != Backing::Anon || !inherited.intersection(&all).is_empty()
    });
}

/// From the parent's mappings (or those of an earlier time) to the child's: these parts stay, ascending.
pub(super) fn adapted(batch: &mut Batch, theirs: &Mm, ours: &Mm, parts: &[Part], material: &Material) {
    let kept = pages_of(parts);
    let whole = |v: &Vma| -> RangeSet { [PageRange::of_bytes(v.start, v.end)].into_iter().collect() };
    let same_vdso = theirs.vdso == ours.vdso;
    let special = |v: &Vma| matches!(v.backing, Backing::Vdso | Backing::Vvar);
    for vma in theirs.vmas.iter().filter(|v| !(same_vdso && special(v))) {
        for range in whole(vma).difference(&kept).ranges() {
            batch.munmap(range.start_byte(), range.bytes());
        }
    }
    if let Some(block) = ours.vdso.filter(|_| !same_vdso) {
        mm::map_vdso(batch, block);
    }
    sysv::attach(batch, ours.vmas.iter().filter(|v| !whole(v).difference(&kept).is_empty()), material);
    let mut rest = parts;
    for (n, vma) in ours.vmas.iter().enumerate() {
        let (own, later) = rest.split_at(rest.partition_point(|part| part.ours == n));
        let grow = own.iter().enumerate().filter_map(|(at, part)| Some((part, grown(part, rest.get(at + 1), vma)?)));
        let come: RangeSet = grow.map(|(part, to)| extend(batch, part, to)).collect();
        rest = later;
        for range in whole(vma).difference(&kept).difference(&come).ranges() {
            let start = range.start_byte();
            let offset = if vma.backing == Backing::Anon { 0 } else { vma.offset + (start - vma.start) };
            mm::map(batch, &Vma { start, end: range.end_byte(), offset, ..vma.clone() }, material);
        }
    }
    for (at, part) in parts.iter().enumerate() {
        let vma = &ours.vmas[part.ours];
        let length = grown(part, parts.get(at + 1), vma).unwrap_or(part.end) - part.start;
        let (from, to) = (mm::first_prot(&theirs.vmas[part.theirs]), mm::first_prot(vma));
        if from != to {
            batch.mprotect(part.start, length, to);
        }
        if theirs.vmas[part.theirs].numa != vma.numa {
            numa::bind(batch, (part.start, length), vma.numa.as_ref());
        }
    }
}

/// Where a part has to grow to: up to the next one, or to the end of the mapping it is a part of. A mapping that has grown
/// is one for mremap(2); a new one beside it may not be merged with it by the kernel.
fn grown(part: &Part, next: Option<&Part>, vma: &Vma) -> Option<u64> {
    // Attached as a whole, if it is a System V segment; and of an object nothing is to be found out here.
    let object = matches!(vma.backing, Backing::Shmem(_));
    let to = next.map_or(vma.end, |next| next.start.min(vma.end));
    (!object && to > part.end).then_some(to)
}

/// Grows a mapping that ends where this part ends. Its last page is enough to name it: earlier ones may differ in what the
/// model leaves out.
fn extend(batch: &mut Batch, part: &Part, to: u64) -> PageRange {
    let last = part.end - PAGE;
    batch.must(libc::SYS_mremap, &[last.into(), PAGE.into(), (to - last).into(), 0u64.into()]);
    PageRange::of_bytes(part.end, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::mm::Advice;

    fn anon(start: u64, end: u64) -> Vma {
        Vma {
            start,
            end,
            prot: 3,
            backing: Backing::Anon,
            shared: false,
            offset: 0,
            grows_down: false,
            locked: None,
            no_reserve: false,
            accounted: true,
            advice: Advice::default(),
            may_write: true,
            numa: None,
            sealed: false,
            pkey: 0,
            guards: Vec::new(),
            guarded: false,
            anon_name: None,
        }
    }

    #[test]
    fn parts_of_mappings_stay() {
        let theirs = [anon(0x1000, 0x5000), anon(0x8000, 0x9000), anon(0xa000, 0xc000)];
        let ours = [anon(0x2000, 0x3000), anon(0x4000, 0x6000), anon(0x8000, 0x9000)];
        let found: Vec<_> = common(&theirs, &ours).into_iter().map(|p| (p.start, p.end, p.theirs, p.ours)).collect();
        assert_eq!(found, [(0x2000, 0x3000, 0, 0), (0x4000, 0x5000, 0, 1), (0x8000, 0x9000, 1, 2)]);
        let mut stack = anon(0x8000, 0x9000);
        stack.grows_down = true;
        assert!(common(&theirs, &[stack]).is_empty());
    }

    #[test]
    fn what_was_made_after_the_fork_is_nobodys_inheritance() {
        let theirs = [anon(0x1000, 0x5000), anon(0x8000, 0x9000)];
        let ours = [anon(0x2000, 0x7000), anon(0x8000, 0x9000)];
        let mut parts = common(&theirs, &ours);
        retain_inherited(&mut parts, &ours, &[PageRange::new(8, 1)].into_iter().collect());
        assert_eq!(parts.iter().map(|p| (p.start, p.end)).collect::<Vec<_>>(), [(0x8000, 0x9000)]);
    }

    #[test]
    fn parts_grow_to_the_next_one_or_to_the_end() {
        let theirs = [anon(0x2000, 0x3000), anon(0x5000, 0x6000)];
        let ours = [anon(0x1000, 0x8000)];
        let parts = common(&theirs, &ours);
        let to = |at: usize| grown(&parts[at], parts.get(at + 1), &ours[0]);
        assert_eq!((parts.len(), to(0), to(1)), (2, Some(0x5000), Some(0x8000)));
        let same = common(&theirs, &theirs);
        assert_eq!(grown(&same[0], same.get(1), &theirs[0]), None, "it has not grown");
    }
}
