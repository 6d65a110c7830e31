//! Memory that comes after the first instruction: which it can be, and how it is made ready for a fault server
//! ([`crate::memory::lazy`]).
//!
//! Later come pages with content of private anonymous mappings that are not locked. At once come stacks as far as they are
//! in use, what threads and the kernel share (thread areas, rseq, robust lists), private pages of files, shared memory, huge
//! pages, and address spaces that share pages copy-on-write: userfaultfd cannot serve these, or somebody looks at them by
//! another way than through the mapping.
//!
//! The descriptor is made early, while the task is still privileged, and nothing is registered with it before the task is
//! complete: until then nobody waits. A page that somebody has touched by then is found and gets its content there and
//! then.

use super::{Error, Result, skeleton::Skeletons};
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
use crate::trace::fill::userfaultfd;
use crate::trace::pages::TargetPages;
use nix::fcntl::OFlag;
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
}

/// The same, registered: whoever touches one of these pages waits.
#[derive(Debug)]
pub struct Late {
    /// Which address space.
    pub mm: MmId,
    /// A process that has it.
    pub pid: Pid,
    /// Its userfaultfd, with events.
    pub uffd: OwnedFd,
    /// What is missing.
    pub pages: RangeSet,
}

/// Can pages of this address space come later at all? Not where it shares them copy-on-write.
pub(super) fn suits(model: &Model, mm: MmId) -> bool {
    model.mms[mm.at()].cow_parent.is_none() && model.mms.iter().all(|other| other.cow_parent != Some(mm))
}

/// Pages to be loaded now, and those that come later.
pub(super) fn split(model: &Model, mm: MmId, runs: Vec<ResolvedRun>, pages: &PageReader) -> (Vec<ResolvedRun>, Later) {
    let vmas = || model.mms[mm.at()].vmas.iter().filter(|vma| comes_later(vma, &model.mms[mm.at()]));
    let pages_of = |vma: &Vma| PageRange::of_bytes(vma.start, vma.end);
    let areas: Vec<PageRange> = vmas().map(pages_of).collect();
    let threads = model.tasks.iter().filter(|task| task.mm == Some(mm)).flat_map(|task| &task.threads);
    // What was writable once stays accounted only if it has a page when that ends (`mprotect_fixup`).
    let once_writable = vmas().filter(|vma| vma.prot & libc::PROT_WRITE as u32 == 0).map(pages_of);
    let firsts = once_writable.filter_map(|area| {
        let run = runs.iter().find(|run| run.source != Source::Zero && !run.range.intersect(area).is_empty())?;
        Some(PageRange::new(run.range.intersect(area).first, 1))
    });
    let soon: RangeSet = threads.flat_map(needed_soon).chain(firsts).collect();
    let places = areas.iter().copied().collect::<RangeSet>().difference(&soon);
    let mut later = Later { areas, ..Later::default() };
    let mut now = Vec::new();
    for run in runs {
        let all: RangeSet = [run.range].into_iter().collect();
        now.extend(all.difference(&places).iter().map(|range| run.cut(range, pages)));
        // Zeros are what there is anyway.
        if run.source != Source::Zero {
            all.intersection(&places).iter().for_each(|range| later.pages.insert(range));
        }
    }
    // What has no content needs no waiting.
    later.areas.retain(|area| !later.pages.intersection(&[*area].into_iter().collect()).is_empty());
    (now, later)
}

fn comes_later(vma: &Vma, mm: &Mm) -> bool {
    let old_vdso = || mm.old_vdsos.iter().any(|old| old.range().start < vma.end && vma.start < old.range().end);
    vma.backing == Backing::Anon
        && !vma.shared
        && vma.locked.is_none()
        && !vma.sealed
        && !vma.advice.wipe_on_fork
        // The kernel refuses what can never be written.
        && vma.may_write
        && !old_vdso()
}

/// What a thread or the kernel uses at once.
fn needed_soon(thread: &Thread) -> impl Iterator<Item = PageRange> {
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
        let Some(owner) = owner(model, mm) else { continue };
        let (remote, scratch) = skeletons.leader(owner);
        let pid = remote.pid();
        let features = feature::EVENT_FORK
            | feature::EVENT_REMAP
            | feature::EVENT_REMOVE
            | feature::EVENT_UNMAP
            | feature::THREAD_ID;
        let made = userfaultfd(remote, &scratch, 0)?.and_then(|uffd| {
            sys::handshake(uffd.as_fd(), features)?;
            Ok(uffd)
        });
        let uffd = made.map_err(|errno| failed("userfaultfd", pid, errno))?;
        if let Some(later) = skeletons.memory.later.get_mut(&mm) {
            later.uffd = Some(uffd);
        }
    }
    Ok(())
}

fn owner(model: &Model, mm: MmId) -> Option<TaskId> {
    model.tasks.iter().position(|task| task.mm == Some(mm)).map(TaskId::from)
}

fn failed(operation: &'static str, pid: Pid, errno: Errno) -> Error {
    Error::System { operation, object: format!("memory of process {pid} that is to come later"), errno }
}

/// Registers everything that comes later, in tasks that are complete.
pub(super) fn register(model: &Model, skeletons: &mut Skeletons, reader: &PageReader) -> Result<Vec<Late>> {
    let mut late = Vec::new();
    let pids = skeletons.pids_of_mms(model);
    let later = std::mem::take(&mut skeletons.memory.later);
    for (mm, Later { areas, mut pages, uffd }) in later {
        let (pid, Some(uffd)) = (pids[mm.at()], uffd) else { continue };
        let touched = touched(pid, &areas)?.intersection(&pages);
        if !touched.is_empty() {
            load(mm, &touched, reader, &pids)?;
            pages = pages.difference(&touched);
        }
        for area in &areas {
            sys::register(uffd.as_fd(), area.start_byte(), area.bytes(), mode::MISSING)
                .map_err(|errno| failed("UFFDIO_REGISTER", pid, errno))?;
        }
        late.push(Late { mm, pid, uffd, pages });
    }
    late.sort_by_key(|late| late.mm);
    Ok(late)
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
