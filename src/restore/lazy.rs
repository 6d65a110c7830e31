//! Memory that comes after the first instruction: which it can be, and how it is made ready for a fault server
//! ([`crate::memory::lazy`]).
//!
//! Later come pages with content of private anonymous mappings that are not locked, and of shared memory that nobody reaches
//! but through mappings ([`shared`]). At once come stacks as far as they are in use, what threads and the kernel share
//! (thread areas, rseq, robust lists), private pages of files, private huge pages (a child would need pages of its own from
//! the pool), and private memory that address spaces share copy-on-write: userfaultfd cannot serve these, or somebody looks
//! at them by another way than through the mapping.
//!
//! The descriptor is made early, while the task is still privileged, and nothing is registered with it before the task is
//! complete: until then nobody waits. A page that somebody has touched by then is found and gets its content there and
//! then.

pub mod at_once;
pub mod shared;

use super::{Error, Result, material::Material, skeleton::Skeletons};
use crate::image::mm::{Backing, Mm, Vma};
use crate::image::task::Thread;
use crate::image::{MmId, Model, Pid, TaskId};
use crate::memory::pipeline::{PipelineError, load_pages};
use crate::memory::store::{PageReader, ResolvedRun, Source};
use crate::memory::{PageRange, RangeSet, Space, scan};
use crate::proc::ProcDir;
use crate::sys::pagemap::{self, Query, category};
use crate::sys::userfaultfd::{self as sys, feature, mode};
use crate::sys::{Errno, abi::UserRegs};
use crate::trace::Batch;
use crate::trace::fill::userfaultfd;
use crate::trace::pages::TargetPages;
use nix::fcntl::OFlag;
use shared::{LateObject, LateView};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

/// Around the stack pointer of a thread, bytes: below (red zone and the frame of a signal), and above.
const STACK: (u64, u64) = (16 << 10, 64 << 10);
/// Around the thread pointer, bytes: thread-local variables below, libc's descriptor of the thread above.
const THREAD_AREA: (u64, u64) = (32 << 10, 8 << 10);

/// Pages of one address space that come later.
#[derive(Debug, Default)]
pub struct Later {
    /// Mappings as a whole: what has no content in them is zero at its first touch.
    areas: Vec<PageRange>,
    pages: RangeSet,
    uffd: Option<OwnedFd>,
    /// Writes to them are to be told apart.
    watched: bool,
}

/// Everything that is late.
#[derive(Debug, Default)]
pub struct Late {
    /// Private memory.
    pub spaces: Vec<LateSpace>,
    /// Who has objects mapped that are not all there.
    pub views: Vec<LateView>,
    /// These.
    pub objects: Vec<LateObject>,
}

impl Late {
    /// Nothing is.
    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty() && self.objects.is_empty()
    }
}

/// Private pages that are registered: whoever touches one waits.
#[derive(Debug)]
pub struct LateSpace {
    /// Which address space.
    pub mm: MmId,
    /// A process that has it.
    pub pid: Pid,
    /// Its userfaultfd, with events.
    pub uffd: OwnedFd,
    /// What is missing.
    pub pages: RangeSet,
    /// Pages can come write-protected, without anybody having to answer a write.
    pub watched: bool,
}

/// Can private pages of this address space come later at all? Not where it shares them copy-on-write.
pub(super) fn suits(model: &Model, mm: MmId) -> bool {
    model.mms[mm.at()].cow_parent.is_none() && model.mms.iter().all(|other| other.cow_parent != Some(mm))
}

/// Pages to be loaded now, and those that come later.
pub(super) fn split(model: &Model, mm: MmId, runs: Vec<ResolvedRun>, pages: &PageReader) -> (Vec<ResolvedRun>, Later) {
    let held: RangeSet = runs.iter().filter(|run| run.source != Source::Zero).map(|run| run.range).collect();
    let later = Later::new(model, mm, part(model, mm, &held));
    let whole: RangeSet = areas(model, mm).collect();
    let mut now = Vec::new();
    for run in runs {
        let all: RangeSet = [run.range].into_iter().collect();
        // Zeros are what there is anyway.
        let left = all.difference(if run.source == Source::Zero { &whole } else { &later.pages });
        now.extend(left.iter().map(|range| run.cut(range, pages)));
    }
    (now, later)
}

/// Of the pages with content that an address space holds, those that may come later.
pub fn part(model: &Model, mm: MmId, held: &RangeSet) -> RangeSet {
    // What was writable once stays accounted only if it has a page when that ends (`mprotect_fixup`).
    let vmas = model.mms[mm.at()].vmas.iter().filter(|vma| vma.prot & libc::PROT_WRITE as u32 == 0);
    let firsts = vmas.filter_map(|vma| {
        let own: RangeSet = [PageRange::of_bytes(vma.start, vma.end)].into_iter().collect();
        Some(PageRange::new(held.intersection(&own).ranges().first()?.first, 1))
    });
    let firsts: RangeSet = firsts.collect();
    held.intersection(&places(model, mm)).difference(&firsts)
}

/// Where pages may come later.
fn places(model: &Model, mm: MmId) -> RangeSet {
    if !suits(model, mm) {
        return RangeSet::new();
    }
    let threads = model.tasks.iter().filter(|task| task.mm == Some(mm)).flat_map(|task| &task.threads);
    areas(model, mm).collect::<RangeSet>().difference(&threads.flat_map(needed_soon).collect())
}

/// Mappings in which pages may come later.
fn areas(model: &Model, mm: MmId) -> impl Iterator<Item = PageRange> + '_ {
    let mm = &model.mms[mm.at()];
    mm.vmas.iter().filter(|vma| comes_later(vma, mm)).map(|vma| PageRange::of_bytes(vma.start, vma.end))
}

impl Later {
    /// These pages, which are all in mappings that suit.
    fn new(model: &Model, mm: MmId, pages: RangeSet) -> Self {
        // A mapping without any needs no waiting.
        let holds = |area: &PageRange| !pages.intersection(&[*area].into_iter().collect()).is_empty();
        Self { areas: areas(model, mm).filter(holds).collect(), pages, uffd: None, watched: false }
    }
}

/// The same for pages that no image has. `watched`: it is to be known which of them were written to, where this kernel can tell.
///
/// # Errors
/// They are not where pages can come later, or the kernel does not take it.
pub(super) fn expect(
    model: &Model,
    (pages, watched): (&[(Space, RangeSet)], bool),
    skeletons: &mut Skeletons,
    material: &Material,
) -> Result<()> {
    let watched = watched && can_watch();
    for (space, pages) in pages {
        let places = match *space {
            Space::Mm(mm) if mm.at() < model.mms.len() => places(model, mm),
            Space::Shmem(id) if id.at() < model.shmems.len() => shared::places(model, id),
            _ => RangeSet::new(),
        };
        if !pages.difference(&places).is_empty() {
            let reason = "pages were to come later that are needed at once".to_owned();
            return Err(Error::Impossible { object: format!("memory of {space}"), reason });
        }
        match *space {
            Space::Mm(mm) => {
                let later = Later { watched, ..Later::new(model, mm, pages.clone()) };
                skeletons.memory.later.insert(mm, later);
            }
            Space::Shmem(id) => skeletons.memory.later_shared.expect(id, pages.clone(), material)?,
        }
    }
    open(model, skeletons)
}

fn comes_later(vma: &Vma, mm: &Mm) -> bool {
    let old_vdso = || mm.old_vdsos.iter().any(|old| old.range().start < vma.end && vma.start < old.range().end);
    vma.backing == Backing::Anon
        && !vma.shared
        && vma.locked.is_none()
        && !vma.sealed
        // One that grows tells nobody.
        && !vma.grows_down
        && !vma.advice.wipe_on_fork
        // The kernel refuses what can never be written.
        && vma.may_write
        && !old_vdso()
}

/// What a thread or the kernel uses at once.
pub(super) fn needed_soon(thread: &Thread) -> impl Iterator<Item = PageRange> {
    let regs = UserRegs::read_from_bytes(thread.regs.general.as_slice().as_bytes()).ok();
    let around =
        |at: u64, (below, above): (u64, u64)| PageRange::of_bytes(at.saturating_sub(below), at.saturating_add(above));
    let used = regs.map(|regs| [around(regs.rsp, STACK), around(regs.fs_base, THREAD_AREA), around(regs.rip, (0, 16))]);
    let shared = [thread.clear_child_tid, thread.robust_list.0, thread.rseq.map_or(0, |rseq| rseq.address)];
    let shared = shared.into_iter().filter(|at| *at != 0).map(move |at| around(at, (0, 64)));
    used.into_iter().flatten().chain(shared)
}

/// Makes the descriptors, while tasks may still have them.
pub(super) fn open(model: &Model, skeletons: &mut Skeletons) -> Result<()> {
    skeletons.memory.later.retain(|_, later| !later.pages.is_empty());
    let mms: Vec<MmId> = skeletons.memory.later.keys().copied().collect();
    for mm in mms {
        let watched = skeletons.memory.later.get(&mm).is_some_and(|later| later.watched);
        let uffd = open_one(model, mm, if watched { feature::WP_ASYNC } else { 0 }, skeletons)?;
        if let Some(later) = skeletons.memory.later.get_mut(&mm) {
            later.uffd = uffd;
        }
    }
    for mm in skeletons.memory.later_shared.mms(model) {
        if let Some(uffd) = open_one(model, mm, 0, skeletons)? {
            skeletons.memory.later_shared.opened(mm, uffd);
        }
    }
    Ok(())
}

/// Whether pages can come write-protected (Linux 6.7).
fn can_watch() -> bool {
    let known = sys::open(true).and_then(|fd| sys::handshake(fd.as_fd(), 0));
    known.is_ok_and(|features| features & feature::WP_ASYNC != 0)
}

fn open_one(model: &Model, mm: MmId, more: u64, skeletons: &mut Skeletons) -> Result<Option<OwnedFd>> {
    let Some(owner) = owner(model, mm) else { return Ok(None) };
    let (remote, scratch) = skeletons.leader(owner);
    let pid = remote.pid();
    let features =
        feature::EVENT_FORK | feature::EVENT_REMAP | feature::EVENT_REMOVE | feature::EVENT_UNMAP | feature::THREAD_ID;
    let made = userfaultfd(remote, &scratch, 0)?.and_then(|uffd| {
        sys::handshake(uffd.as_fd(), features | more)?;
        Ok(uffd)
    });
    made.map(Some).map_err(|errno| failed("userfaultfd", pid, errno))
}

fn owner(model: &Model, mm: MmId) -> Option<TaskId> {
    model.tasks.iter().position(|task| task.mm == Some(mm)).map(TaskId::from)
}

pub(super) fn failed(operation: &'static str, pid: Pid, errno: Errno) -> Error {
    Error::System { operation, object: format!("memory of process {pid} that is to come later"), errno }
}

/// Registers everything that comes later, in tasks that are complete. What was touched by then is read from the store, or, if
/// there is none, dropped again.
pub(super) fn register(model: &Model, skeletons: &mut Skeletons, reader: Option<&PageReader>) -> Result<Late> {
    let (views, objects) = shared::register(model, skeletons, reader)?;
    let mut spaces = Vec::new();
    let pids = skeletons.pids_of_mms(model);
    let later = std::mem::take(&mut skeletons.memory.later);
    for (mm, Later { areas, mut pages, uffd, watched }) in later {
        let (pid, Some(uffd)) = (pids[mm.at()], uffd) else { continue };
        let touched = touched(pid, &areas)?.intersection(&pages);
        match reader {
            _ if touched.is_empty() => {}
            Some(reader) => {
                load(mm, &touched, reader, &pids)?;
                pages = pages.difference(&touched);
            }
            None => drop_pages(model, mm, &touched, skeletons)?,
        }
        let mode = if watched { mode::MISSING | mode::WP } else { mode::MISSING };
        for area in &areas {
            sys::register(uffd.as_fd(), area.start_byte(), area.bytes(), mode)
                .map_err(|errno| failed("UFFDIO_REGISTER", pid, errno))?;
        }
        spaces.push(LateSpace { mm, pid, uffd, pages, watched });
    }
    spaces.sort_by_key(|space| space.mm);
    Ok(Late { spaces, views, objects })
}

/// Pages that somebody has made by touching them: the zero page as well.
fn touched(pid: Pid, areas: &[PageRange]) -> Result<RangeSet> {
    let pagemap = File::from(ProcDir::open(pid)?.open_file("pagemap", OFlag::O_RDONLY)?);
    let mut found = RangeSet::new();
    let query = Query { any_of: category::PRESENT | category::SWAPPED, report: category::PRESENT, ..Query::default() };
    for area in areas {
        let (start, end) = (area.start_byte(), area.end_byte());
        let scanned = pagemap::scan(pagemap.as_fd(), start, end, query, &mut Vec::new(), |region| {
            found.insert(PageRange::of_bytes(region.start, region.end));
        });
        match scanned {
            // Before Linux 6.7.
            Err(Errno::ENOTTY) => scan::held_pages((start, end), false, &pagemap, &mut |start, end| {
                found.insert(PageRange::of_bytes(start, end));
            }),
            scanned => scanned,
        }
        .map_err(|errno| failed("scan", pid, errno))?;
    }
    Ok(found)
}

fn drop_pages(model: &Model, mm: MmId, pages: &RangeSet, skeletons: &mut Skeletons) -> Result<()> {
    let Some(owner) = owner(model, mm) else { return Ok(()) };
    let (remote, scratch) = skeletons.leader(owner);
    let mut batch = Batch::new();
    for range in pages.iter() {
        batch.madvise(range.start_byte(), range.bytes(), libc::MADV_DONTNEED);
    }
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

fn load(mm: MmId, pages: &RangeSet, reader: &PageReader, pids: &[Pid]) -> Result<()> {
    let mut runs = Vec::new();
    for range in pages.iter() {
        runs.extend(reader.contents_in(Space::Mm(mm), range).map_err(PipelineError::Store)?);
    }
    Ok(load_pages(reader, &runs, &TargetPages::new(pids.to_vec(), Vec::new()), 1, &|_| {})?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_a_threads_pointers_is_needed_soon() {
        let mut model = crate::image::tests::sample();
        let mut thread = model.tasks[0].threads.remove(0);
        thread.regs.general = vec![0; 27];
        thread.regs.general[19] = 0x7000_0000;
        thread.regs.general[21] = 0x5000_0040;
        (thread.clear_child_tid, thread.robust_list, thread.rseq) = (0x4000_0ff0, (0, 0), None);
        let soon: RangeSet = needed_soon(&thread).collect();
        for inside in [0x7000_0000u64, 0x7000_0000 - 128, 0x5000_0040, 0x4000_0ff0, 0x4000_1010] {
            assert!(soon.contains(inside / 4096), "{inside:#x}");
        }
        assert!(!soon.contains(0x7010_0000 / 4096));
    }
}
