//! Shared memory that comes after the first instruction.
//!
//! It can only where nobody reaches it but through mappings that are served: a read(2) of a memfd, or a mapping made from its
//! descriptor later, finds zeros where pages are missing, and so does a new shmat(2) of a System V segment. [`reason`] says
//! what stands in the way.

use super::{failed, needed_soon};
use crate::image::fd::FileKind;
use crate::image::mm::{Backing, PAGE, Shmem, ShmemKind, Vma};
use crate::image::{MmId, Model, Pid, ShmemId};
use crate::memory::lazy::Area;
use crate::memory::pipeline::{PipelineError, load_pages};
use crate::memory::store::{PageReader, ResolvedRun, Source};
use crate::memory::{PageRange, RangeSet, Space, scan};
use crate::restore::material::Material;
use crate::restore::skeleton::Skeletons;
use crate::restore::{Error, Result};
use crate::sys::Errno;
use crate::sys::userfaultfd::{self as sys, mode};
use crate::trace::pages::TargetPages;
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

/// Largest page that is brought late, bytes: who touches one waits for all of it.
const UNIT_MAX: u64 = 2 << 20;

/// Objects with pages that come later.
#[derive(Debug, Default)]
pub struct Later {
    objects: HashMap<ShmemId, (OwnedFd, RangeSet)>,
    uffds: HashMap<MmId, OwnedFd>,
}

/// Shared memory that an address space has mapped, registered: whoever touches what is missing waits.
#[derive(Debug)]
pub struct LateView {
    /// A process that has it.
    pub pid: Pid,
    /// Its userfaultfd, with events, for nothing else.
    pub uffd: OwnedFd,
    /// What is where.
    pub areas: Vec<Area>,
}

/// An object that is not all there.
#[derive(Debug)]
pub struct LateObject {
    /// Which.
    pub id: ShmemId,
    /// The object.
    pub file: OwnedFd,
    /// Bytes.
    pub size: u64,
    /// Bytes of the pages it is made of.
    pub unit: u64,
    /// What is missing.
    pub pages: RangeSet,
}

/// Bytes of the pages that an object is made of.
fn unit(shmem: &Shmem) -> u64 {
    match shmem.kind {
        ShmemKind::HugeAnon { page_size } => page_size,
        ShmemKind::Memfd { huge_page, .. } | ShmemKind::SysV { huge_page, .. } => huge_page.max(PAGE),
        ShmemKind::Anon => PAGE,
    }
}

/// Is it made of huge pages?
pub fn is_huge(model: &Model, id: ShmemId) -> bool {
    unit(&model.shmems[id.at()]) > PAGE
}

/// Why no page of this object can come later; `None` if pages can.
pub fn reason(model: &Model, id: ShmemId) -> Option<&'static str> {
    let shmem = &model.shmems[id.at()];
    let views = || mappings(model, id).map(|(_, vma)| vma);
    let of_kind = match shmem.kind {
        ShmemKind::SysV { .. } => Some("whoever knows its id can attach it anew"),
        ShmemKind::Memfd { seals, .. } if seals & !(libc::F_SEAL_SEAL as u32) != 0 => Some("it is sealed"),
        _ => None,
    };
    let is_open = || model.files.iter().any(|file| matches!(&file.kind, FileKind::Shmem(open) if open.shmem == id));
    of_kind
        .or_else(|| is_open().then_some("a descriptor of it is open"))
        .or_else(|| (unit(shmem) > UNIT_MAX).then_some("its pages are too large to be waited for"))
        .or_else(|| views().any(|vma| !vma.shared).then_some("it has private mappings"))
        .or_else(|| views().any(|vma| !vma.may_write).then_some("it was mapped for reading alone"))
        .or_else(|| views().any(|vma| vma.locked.is_some()).then_some("it is locked in memory"))
        .or_else(|| views().any(|vma| vma.sealed).then_some("its mappings are sealed"))
        .or_else(|| views().next().is_none().then_some("nobody has it mapped"))
}

fn mappings(model: &Model, id: ShmemId) -> impl Iterator<Item = (MmId, &Vma)> {
    let all = model.mms.iter().enumerate().flat_map(|(mm, of)| of.vmas.iter().map(move |vma| (MmId::from(mm), vma)));
    all.filter(move |(_, vma)| vma.backing == Backing::Shmem(id))
}

/// Where pages of an object may come later.
pub(super) fn places(model: &Model, id: ShmemId) -> RangeSet {
    if reason(model, id).is_some() {
        return RangeSet::new();
    }
    let shmem = &model.shmems[id.at()];
    let mut places: RangeSet =
        [PageRange::new(0, shmem.size.div_ceil(PAGE))].into_iter().filter(|range| !range.is_empty()).collect();
    for (mm, vma) in mappings(model, id) {
        let at = PageRange::of_bytes(vma.start, vma.end);
        let threads = model.tasks.iter().filter(|task| task.mm == Some(mm)).flat_map(|task| &task.threads);
        for soon in threads.flat_map(needed_soon).map(|soon| soon.intersect(at)).filter(|soon| !soon.is_empty()) {
            if is_huge(model, id) {
                // All or nothing: of a single huge page nobody can tell whether it is there.
                return RangeSet::new();
            }
            places.remove(PageRange::new(soon.first - at.first + vma.offset / PAGE, soon.count));
        }
    }
    places
}

/// Of the pages with content that an object holds, those that may come later.
pub fn part(model: &Model, id: ShmemId, held: &RangeSet) -> RangeSet {
    held.intersection(&places(model, id))
}

/// Pages to be loaded now, and those that come later, of all objects.
pub(in crate::restore) fn split(
    model: &Model,
    runs: Vec<ResolvedRun>,
    pages: &PageReader,
    material: &Material,
) -> Result<(Vec<ResolvedRun>, Later)> {
    let mut held: HashMap<ShmemId, RangeSet> = HashMap::new();
    for run in runs.iter().filter(|run| run.source != Source::Zero) {
        if let Space::Shmem(id) = run.space {
            held.entry(id).or_default().insert(run.range);
        }
    }
    let mut later = Later::default();
    for (id, held) in &held {
        later.expect(*id, part(model, *id, held), material)?;
    }
    let mut now = Vec::new();
    for run in runs {
        let Space::Shmem(id) = run.space else { continue };
        let all: RangeSet = [run.range].into_iter().collect();
        match later.objects.get(&id) {
            // Zeros are what there is anyway.
            Some(_) if run.source == Source::Zero => {}
            Some((_, later)) => now.extend(all.difference(later).iter().map(|range| run.cut(range, pages))),
            None => now.push(run),
        }
    }
    Ok((now, later))
}

impl Later {
    /// These pages of an object come later.
    pub(super) fn expect(&mut self, id: ShmemId, pages: RangeSet, material: &Material) -> Result<()> {
        if !pages.is_empty() {
            let file = material.shmem_file(id).try_clone().map_err(|_| of_object("dup", Errno::EMFILE))?;
            self.objects.insert(id, (file, pages));
        }
        Ok(())
    }

    /// Address spaces that have any of them mapped.
    pub(super) fn mms(&self, model: &Model) -> Vec<MmId> {
        let mut mms: Vec<MmId> = self.objects.keys().flat_map(|id| mappings(model, *id).map(|(mm, _)| mm)).collect();
        mms.sort();
        mms.dedup();
        mms
    }

    /// The userfaultfd of one of these.
    pub(super) fn opened(&mut self, mm: MmId, uffd: OwnedFd) {
        self.uffds.insert(mm, uffd);
    }

    fn areas(&self, model: &Model, mm: MmId) -> Vec<Area> {
        let area = |vma: &Vma| match vma.backing {
            Backing::Shmem(object) if self.objects.contains_key(&object) => {
                Some(Area { at: PageRange::of_bytes(vma.start, vma.end), object, from: vma.offset / PAGE })
            }
            _ => None,
        };
        model.mms[mm.at()].vmas.iter().filter_map(area).collect()
    }
}

/// Registers everything, in tasks that are complete. What was touched by then is read from the store, or, if there is none,
/// dropped again.
pub(super) fn register(
    model: &Model,
    skeletons: &mut Skeletons,
    reader: Option<&PageReader>,
) -> Result<(Vec<LateView>, Vec<LateObject>)> {
    let mut later = std::mem::take(&mut skeletons.memory.later_shared);
    for (id, (file, pages)) in &mut later.objects {
        settle(*id, &model.shmems[id.at()], file, pages, reader)?;
    }
    let pids = skeletons.pids_of_mms(model);
    let mut views = Vec::new();
    let mut mms: Vec<MmId> = later.uffds.keys().copied().collect();
    mms.sort();
    for mm in mms {
        let (Some(uffd), pid, areas) = (later.uffds.remove(&mm), pids[mm.at()], later.areas(model, mm)) else {
            continue;
        };
        for Area { at, .. } in &areas {
            sys::register(uffd.as_fd(), at.start_byte(), at.bytes(), mode::MISSING)
                .map_err(|errno| failed("UFFDIO_REGISTER", pid, errno))?;
        }
        views.push(LateView { pid, uffd, areas });
    }
    let mut objects: Vec<LateObject> = Vec::new();
    for (id, (file, pages)) in later.objects {
        let shmem = &model.shmems[id.at()];
        objects.push(LateObject { id, file, size: shmem.size, unit: unit(shmem), pages });
    }
    objects.sort_by_key(|object| object.id);
    Ok((views, objects))
}

/// Sees to it that exactly the pages that are missing are not there.
fn settle(id: ShmemId, shmem: &Shmem, file: &OwnedFd, pages: &mut RangeSet, reader: Option<&PageReader>) -> Result<()> {
    let there = |pages: &RangeSet| touched(id, shmem, file).map(|touched| touched.intersection(pages));
    let touched = there(pages)?;
    if touched.is_empty() {
        return Ok(());
    }
    if let Some(reader) = reader {
        load(id, &touched, reader, file)?;
        *pages = pages.difference(&touched);
        return Ok(());
    }
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for range in touched.iter() {
        fallocate(file, hole, range.start_byte() as i64, range.bytes() as i64)
            .map_err(|errno| of_object("fallocate", errno))?;
    }
    // The kernel only clears a part of a huge page that it cannot split.
    if there(pages)?.is_empty() {
        return Ok(());
    }
    let reason = "pages that were to come later are there and cannot be dropped".to_owned();
    Err(Error::Impossible { object: "shared memory".to_owned(), reason })
}

/// Pages that somebody has made. Of huge pages only whether there are any can be told: then all count.
fn touched(id: ShmemId, shmem: &Shmem, file: &OwnedFd) -> Result<RangeSet> {
    if unit(shmem) > PAGE {
        let any = nix::sys::stat::fstat(file).map_err(|errno| of_object("fstat", errno))?.st_blocks > 0;
        return Ok([PageRange::new(0, shmem.size.div_ceil(PAGE))].into_iter().filter(|_| any).collect());
    }
    let there = scan::shared_pages(id, shmem.size, file.as_fd()).map_err(|errno| of_object("lseek", errno))?;
    Ok(there.into_iter().map(|(_, range)| range).collect())
}

fn load(id: ShmemId, pages: &RangeSet, reader: &PageReader, file: &OwnedFd) -> Result<()> {
    let mut runs = Vec::new();
    for range in pages.iter() {
        runs.extend(reader.contents_in(Space::Shmem(id), range).map_err(PipelineError::Store)?);
    }
    let file = || file.try_clone().map_err(|_| of_object("dup", Errno::EMFILE));
    // By their numbers; nobody asks for the others.
    let files = (0..=id.at()).map(|_| file()).collect::<Result<Vec<_>>>()?;
    Ok(load_pages(reader, &runs, &TargetPages::new(Vec::new(), files), 1, &|_| {})?)
}

fn of_object(operation: &'static str, errno: Errno) -> Error {
    Error::System { operation, object: "shared memory that is to come later".to_owned(), errno }
}
