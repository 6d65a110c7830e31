//! Which pages of a live address space have been written since they were last taken.
//!
//! Back ends behind one trait, [`Tracking`]: [`uffd`] (asynchronous write protection, Linux 6.7), [`soft_dirty`]
//! (`CONFIG_MEM_SOFT_DIRTY`; with PAGEMAP_SCAN or without), and [`hash`] (everything is taken each time, what is equal is found when it is written).
//! [`Backend::choose`] takes the first that works. A back end errs on one side only: a page it does not know enough about
//! is taken again.
//!
//! Tracking is a matter of page tables: what is written to a shared object through a descriptor or through another
//! process's mapping is not seen, so only private memory is tracked here.

pub mod hash;
pub mod soft_dirty;
pub mod uffd;

use super::RangeSet;
use crate::image::Pid;
use crate::image::mm::{Backing, Mm};
use crate::kernel::Probe;
use crate::memory::pipeline::default_workers;
use crate::proc::ProcDir;
use crate::proc::maps::{Mapping, Special};
use crate::sys::Errno;
use crate::sys::abi::PageRegion;
use crate::sys::pagemap::{Query, scan};
use std::os::fd::BorrowedFd;
use std::thread::ScopedJoinHandle;

/// Why dirty pages could not be found.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The address space is gone: the process has ended, or runs another program.
    #[error("the memory of process {pid} is gone")]
    Gone {
        /// Process that had it.
        pid: Pid,
    },
    /// The kernel refused.
    #[error("{operation} for process {pid}: {errno}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// For whom.
        pid: Pid,
        /// Kernel's answer.
        errno: Errno,
    },
    /// The process could not be stopped or worked in.
    #[error(transparent)]
    Trace(#[from] crate::trace::Error),
    /// /proc could not be read.
    #[error(transparent)]
    Proc(#[from] crate::proc::Error),
}

impl TrackError {
    /// The process or its address space has ended: nothing is wrong with the tracking.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::Trace(crate::trace::Error::Died { .. }) => true,
            Self::Proc(e) | Self::Trace(crate::trace::Error::Proc(e)) => e.is_gone(),
            _ => false,
        }
    }
}

/// A stretch of addresses that may hold private pages: one mapping, or several neighbours of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// First address past the end.
    pub end: u64,
    /// A private mapping of a file or shared memory object: only pages that differ from it count.
    pub of_file: bool,
}

impl Area {
    /// As page numbers.
    pub fn pages(&self) -> super::PageRange {
        super::PageRange::of_bytes(self.start, self.end)
    }
}

/// As [`scan`], with several threads of ours where the area is large: page tables can be walked, and pages be protected, in two
/// places at once. Regions come in their order.
fn scan_wide(
    pagemap: BorrowedFd<'_>,
    area: &Area,
    query: Query,
    buf: &mut Vec<PageRegion>,
    found: impl FnMut(PageRegion),
) -> Result<(), Errno> {
    /// To begin a thread costs as much as to walk the tables of this much memory, several times over.
    const PART: u64 = 128 << 20;
    /// What one page of the last level of page tables maps.
    const TABLE: u64 = 2 << 20;
    let len = area.end - area.start;
    let parts = (len / PART).min(default_workers() as u64).max(1);
    let part = (len / parts).next_multiple_of(TABLE);
    if parts < 2 {
        return scan(pagemap, area.start, area.end, query, buf, found);
    }
    let walk = |start: u64| -> Result<Vec<PageRegion>, Errno> {
        let mut all = Vec::new();
        let end = (start + part).min(area.end);
        scan(pagemap, start, end, query, &mut Vec::new(), |region| all.push(region))?;
        Ok(all)
    };
    let starts: Vec<u64> = (area.start..area.end).step_by(part as usize).collect();
    let walked: Vec<_> = std::thread::scope(|scope| {
        let begin =
            |start| std::thread::Builder::new().name("scan".to_owned()).spawn_scoped(scope, move || walk(start));
        let helpers: Vec<_> = starts[1..].iter().map(|start| (*start, begin(*start))).collect();
        let own = walk(starts[0]);
        let join = |(start, helper): (u64, std::io::Result<ScopedJoinHandle<'_, _>>)| match helper {
            Ok(helper) => helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // No thread is to be had.
            Err(_) => walk(start),
        };
        std::iter::once(own).chain(helpers.into_iter().map(join)).collect()
    });
    walked.into_iter().collect::<Result<Vec<_>, Errno>>()?.into_iter().flatten().for_each(found);
    Ok(())
}

/// The private mappings of a live process.
pub fn areas_of_maps(maps: &[Mapping]) -> Vec<Area> {
    let special =
        |m: &Mapping| matches!(m.special(), Some(Special::Vdso | Special::Vvar | Special::Vsyscall | Special::Uprobes));
    let private = maps.iter().filter(|m| !m.shared && !special(m));
    private.map(|m| Area { start: m.start, end: m.end, of_file: m.has_file() }).collect()
}

/// The mappings of a model whose pages travel with the address space.
pub fn areas_of_mm(mm: &Mm) -> Vec<Area> {
    let of_file = |backing: &Backing| !matches!(backing, Backing::Anon | Backing::HugeAnon { .. });
    let private = mm.vmas.iter().filter(|v| super::scan::carries_pages(v));
    private.map(|v| Area { start: v.start, end: v.end, of_file: of_file(&v.backing) }).collect()
}

/// What the last look at a stopped address space gives.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Last {
    /// Pages that may have changed since they were taken, or never were.
    pub changed: RangeSet,
    /// Pages that hold nothing of their own (absent, zero, or as in the file). Those in neither set did not change.
    pub empty: RangeSet,
}

/// Finds the pages of one address space that have been written.
pub trait Tracking: Send + std::fmt::Debug {
    /// Pages of these areas that have changed since the last call (the first time: all that hold something). What is
    /// written after this call is found by the next. Pages that cannot be watched are left out: [`Tracking::last`] has them.
    ///
    /// # Errors
    /// [`TrackError::Gone`] when the address space no longer is what it was.
    fn take(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<RangeSet, TrackError>;

    /// The same for a stopped process and the last time.
    ///
    /// # Errors
    /// As [`Tracking::take`].
    fn last(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<Last, TrackError>;

    /// The process must be stopped for [`Tracking::take`], or writes get lost.
    fn stops(&self) -> bool {
        false
    }

    /// Ends the tracking of a process without a long hold on its address space.
    fn end(self: Box<Self>, dir: &ProcDir);

    /// What a tracker process can go on with.
    fn into_uffd(self: Box<Self>) -> Option<uffd::Uffd> {
        None
    }
}

/// The kinds of tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// userfaultfd in asynchronous write-protect mode, PAGEMAP_SCAN.
    WriteProtect,
    /// Soft-dirty bits, by PAGEMAP_SCAN where there is one.
    SoftDirty,
    /// Soft-dirty bits, entry by entry of the pagemap.
    SoftDirtyPagemap,
    /// Everything, compared when it is written.
    Hash,
}

impl Backend {
    /// The best that works here.
    pub fn choose() -> Self {
        [Self::WriteProtect, Self::SoftDirty].into_iter().find(|b| b.works()).unwrap_or(Self::Hash)
    }

    /// Does this kernel have it?
    pub fn works(self) -> bool {
        match self {
            Self::WriteProtect => Probe::WpAsync.works() && Probe::PagemapScan.works(),
            Self::SoftDirty | Self::SoftDirtyPagemap => Probe::SoftDirty.works(),
            Self::Hash => true,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteProtect => "wp",
            Self::SoftDirty => "soft-dirty",
            Self::SoftDirtyPagemap => "soft-dirty-pagemap",
            Self::Hash => "hash",
        }
    }
}

/// Opens the pagemap of a process as it is now.
fn pagemap(dir: &ProcDir) -> Result<std::fs::File, TrackError> {
    Ok(dir.open_file("pagemap", nix::fcntl::OFlag::O_RDONLY)?.into())
}

/// All pages of an area that hold something of its own.
fn held(pid: Pid, area: &Area, pagemap: &std::fs::File, out: &mut RangeSet) -> Result<(), TrackError> {
    let mut found = |start: u64, end: u64| out.insert(super::PageRange::of_bytes(start, end));
    super::scan::held_pages((area.start, area.end), area.of_file, pagemap, &mut found)
        .map_err(|errno| scan_error(pid, errno))
}

fn scan_error(pid: Pid, errno: Errno) -> TrackError {
    match errno {
        Errno::ESRCH => TrackError::Gone { pid },
        errno => TrackError::System { operation: "PAGEMAP_SCAN", pid, errno },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pagemap::category;
    use std::os::fd::AsFd;

    #[test]
    fn a_large_area_is_seen_as_a_small_one_is() {
        const LEN: usize = 300 << 20;
        let own = ProcDir::of_self().unwrap();
        let pagemap = pagemap(&own).unwrap();
        // One page in each MiB, and the neighbours of every place where one thread may leave off.
        let mut memory = vec![0u8; LEN];
        let first = memory.as_ptr() as u64;
        for page in (0..LEN).step_by(1 << 20).flat_map(|at| [at, (at + 4096).min(LEN - 1), at.saturating_sub(4096)]) {
            memory[page] = 1;
        }
        let query = Query { all_of: category::PRESENT, report: category::PRESENT, ..Query::default() };
        let start = first.next_multiple_of(4096);
        let area = Area { start, end: (first + LEN as u64) / 4096 * 4096, of_file: false };
        let (mut wide, mut plain) = (RangeSet::new(), RangeSet::new());
        let range = |r: PageRegion| crate::memory::PageRange::of_bytes(r.start, r.end);
        let mut last = 0;
        scan_wide(pagemap.as_fd(), &area, query, &mut Vec::new(), |r| {
            assert!(r.start >= last, "regions come in their order");
            last = r.end;
            wide.insert(range(r));
        })
        .unwrap();
        scan(pagemap.as_fd(), area.start, area.end, query, &mut Vec::new(), |r| plain.insert(range(r))).unwrap();
        assert!(plain.pages() >= 3 * (LEN as u64 >> 20) - 3, "{}", plain.pages());
        assert_eq!(wide, plain);
        let wrong = Query { flags: u64::MAX, ..query };
        assert_eq!(scan_wide(pagemap.as_fd(), &area, wrong, &mut Vec::new(), |_| {}), Err(Errno::EINVAL));
    }
}
