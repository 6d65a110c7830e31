//! userfaultfd in asynchronous write-protect mode with PAGEMAP_SCAN (Linux 6.7).
//!
//! The descriptor is made by one remote system call in a brief stop ([`Uffd::arm`]); everything else is done from outside while
//! the target runs. Closing the descriptor ends the tracking and leaves no trace. Properties relied on (measured on 6.18):
//! - A page that was never protected shows as written, so new mappings, pages that `mremap` moved, children after a fork
//!   and a program after exec are all "changed" without further ado.
//! - Protecting only present and swapped pages leaves no markers in holes. A page that is dropped (`MADV_DONTNEED`) shows as
//!   absent; where a whole page table is freed with it (6.14) nothing shows at all, so the last scan asks for what is
//!   *absent*, not for what was written and is absent now.
//! - In a private file mapping a dropped page leaves a marker that reads as swapped and clean: such pages are taken again.
//! - Kernels before 6.13 keep protection bits on pages that `mremap` moves, so a mapping that had to be registered anew is
//!   taken as a whole.

use super::{Area, Last, TrackError, Tracking, held, pagemap, scan_error, scan_wide};
use crate::image::Pid;
use crate::memory::{PageRange, RangeSet, unprotect};
use crate::proc::ProcDir;
use crate::proc::maps::Special;
use crate::sys::abi::PageRegion;
use crate::sys::pagemap::{CHECK_WPASYNC, Query, WP_MATCHING, category, guard_category};
use crate::sys::userfaultfd::{self as sys, feature, mode};
use crate::sys::{Errno, fd, procmap};
use crate::trace::freeze::FrozenProcess;
use crate::trace::{Batch, Results};
use nix::fcntl::OFlag;
use std::os::fd::{AsFd, OwnedFd};

/// Makes a userfaultfd for synchronous protection in a stopped process and takes it out: the process keeps nothing of it.
/// Writes of the kernel wait as others do.
///
/// # Errors
/// What the kernel refuses: no descriptor left in the target (`EMFILE`), or no userfaultfd for its user (`EPERM`: for most
/// users, `vm.unprivileged_userfaultfd`).
pub fn arm_synchronous(process: &mut FrozenProcess) -> Result<OwnedFd, TrackError> {
    make(process, 0, feature::PAGEFAULT_FLAG_WP)
}

fn make(process: &mut FrozenProcess, flags: i32, features: u64) -> Result<OwnedFd, TrackError> {
    let pid = process.pid;
    let failed = |operation| move |errno| TrackError::System { operation, pid, errno };
    let maps = process.dir.maps(&mut Vec::new())?;
    let vdso = maps.iter().find(|m| m.special() == Some(Special::Vdso)).map(|m| m.start);
    let scratch = process.ensure_scratch(vdso)?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | flags;
    // In one batch: the process keeps nothing of it also if we die in between.
    let mut batch = Batch::new();
    let made = batch.must(libc::SYS_userfaultfd, &[flags.into()]);
    batch.show();
    let closed = batch.may(libc::SYS_close, &[made.into()]);
    let take = |results: &Results| {
        let number = results.get(made)?;
        fd::pidfd_open(pid).and_then(|pidfd| fd::pidfd_getfd(pidfd.as_fd(), number as u32))
    };
    let (results, taken) = process.leader().run_shown(&scratch, &batch, take)?;
    results.get(made).map_err(failed("userfaultfd inside the process"))?;
    let uffd = taken.unwrap_or(Err(Errno::ECANCELED)).map_err(failed("pidfd_getfd"))?;
    results.get(closed).map_err(failed("close inside the process"))?;
    sys::handshake(uffd.as_fd(), features).map_err(failed("UFFDIO_API"))?;
    Ok(uffd)
}

/// Tracks one address space.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    /// What we have registered and believe to be so still.
    tracked: RangeSet,
    /// Faults of the kernel could be handled, too.
    kernel_faults: bool,
    buf: Vec<PageRegion>,
}

impl Uffd {
    /// Makes one in a stopped process, of which the process keeps nothing. Nothing is registered yet.
    ///
    /// # Errors
    /// What the kernel refuses: no descriptor left in the target (`EMFILE`), or no userfaultfd for it (`EPERM`).
    pub fn arm(process: &mut FrozenProcess) -> Result<Self, TrackError> {
        match make(process, 0, feature::WP_ASYNC) {
            Ok(fd) => Ok(Self::kept(fd, RangeSet::new(), true)),
            // As most users may make one: good for everything but a quick end, see `memory::unprotect`.
            Err(TrackError::System { errno: Errno::EPERM, .. }) => {
                let fd = make(process, sys::UFFD_USER_MODE_ONLY, feature::WP_ASYNC)?;
                Ok(Self::kept(fd, RangeSet::new(), false))
            }
            Err(e) => Err(e),
        }
    }

    /// One that a tracker process has kept, with what is registered; `kernel_faults`: as [`Uffd::into_parts`] gave it.
    pub fn kept(fd: OwnedFd, tracked: RangeSet, kernel_faults: bool) -> Self {
        Self { fd, tracked, kernel_faults, buf: Vec::new() }
    }

    /// For a tracker process: the descriptor, what is registered, and whether faults of the kernel could be handled.
    pub fn into_parts(self) -> (OwnedFd, RangeSet, bool) {
        (self.fd, self.tracked, self.kernel_faults)
    }

    /// Everything counts as written.
    pub fn anew(self) -> Self {
        Self { tracked: RangeSet::new(), ..self }
    }

    fn covers(&self, area: &Area) -> bool {
        self.tracked.within(area.pages()).ranges() == [area.pages()]
    }

    /// Protects what matches and gives it. `EPERM`: not, or not all, under asynchronous protection.
    fn protect(&mut self, area: &Area, pagemap: &std::fs::File, all: bool, out: &mut RangeSet) -> Result<(), Errno> {
        let not = category::PFN_ZERO | guard_category() | if area.of_file { category::FILE } else { 0 };
        let query = Query {
            flags: WP_MATCHING | CHECK_WPASYNC,
            all_of: not | if all { 0 } else { category::WRITTEN },
            inverted: not,
            any_of: category::PRESENT | category::SWAPPED,
            report: category::PRESENT,
        };
        scan_wide(pagemap.as_fd(), area, query, &mut self.buf, |r| {
            out.insert(PageRange::of_bytes(r.start, r.end));
        })
    }

    /// Dropped pages of private file mappings hide behind markers, see above.
    fn markers(&mut self, area: &Area, pagemap: &std::fs::File, out: &mut RangeSet) -> Result<(), Errno> {
        let query = Query {
            all_of: category::SWAPPED | category::PRESENT,
            inverted: category::PRESENT,
            report: category::SWAPPED,
            ..Query::default()
        };
        let mut found = RangeSet::new();
        scan_wide(pagemap.as_fd(), area, query, &mut self.buf, |r| {
            found.insert(PageRange::of_bytes(r.start, r.end));
        })?;
        *out = out.union(&found);
        Ok(())
    }

    fn take_area(&mut self, pid: Pid, area: &Area, files: &Files) -> Result<RangeSet, TrackError> {
        let pagemap = &files.pagemap;
        let mut found = RangeSet::new();
        if self.covers(area) {
            match self.protect(area, pagemap, false, &mut found) {
                Ok(()) if area.of_file => {
                    self.markers(area, pagemap, &mut found).map_err(|e| scan_error(pid, e))?;
                    return Ok(found);
                }
                Ok(()) => return Ok(found),
                // Another mapping lies there now.
                Err(Errno::EPERM) => self.tracked.remove(area.pages()),
                Err(errno) => return Err(scan_error(pid, errno)),
            }
        }
        let Some(end) = files.room_of(area) else { return Ok(RangeSet::new()) };
        match sys::register(self.fd.as_fd(), area.start, end - area.start, mode::WP) {
            Ok(()) => {}
            Err(Errno::ENOMEM | Errno::ESRCH) => return Err(TrackError::Gone { pid }),
            // Not of a kind that can be watched, watched by somebody else, or unmapped meanwhile.
            Err(errno) => {
                tracing::debug!("process {pid}: {:#x}-{:#x} cannot be tracked: {errno}", area.start, area.end);
                return Ok(RangeSet::new());
            }
        }
        let mut found = RangeSet::new();
        match self.protect(area, pagemap, true, &mut found) {
            Ok(()) => {
                self.tracked.insert(area.pages());
                Ok(found)
            }
            // The descriptor belongs to another address space than the process has now, or the mapping has changed again.
            Err(Errno::EPERM) => Ok(RangeSet::new()),
            Err(errno) => Err(scan_error(pid, errno)),
        }
    }

    fn last_tracked(&mut self, pid: Pid, area: &Area, map: &std::fs::File, last: &mut Last) -> Result<(), TrackError> {
        let of_file = area.of_file;
        let query = Query {
            inverted: category::PRESENT | category::WP_ALLOWED,
            any_of: category::WRITTEN | category::PRESENT | category::WP_ALLOWED,
            report: category::WRITTEN
                | category::PRESENT
                | category::SWAPPED
                | category::PFN_ZERO
                | category::WP_ALLOWED
                | guard_category()
                | if of_file { category::FILE } else { 0 },
            ..Query::default()
        };
        scan_wide(map.as_fd(), area, query, &mut self.buf, |r| {
            let has = |c| r.categories & c != 0;
            let range = PageRange::of_bytes(r.start, r.end);
            let held = has(category::PRESENT | category::SWAPPED) && !has(guard_category());
            if !held || has(category::PFN_ZERO) || has(category::FILE) {
                last.empty.insert(range);
            } else if of_file || has(category::WRITTEN) || !has(category::WP_ALLOWED) {
                last.changed.insert(range);
            }
        })
        .map_err(|errno| scan_error(pid, errno))
    }
}

impl Tracking for Uffd {
    fn take(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<RangeSet, TrackError> {
        let files = Files { pagemap: pagemap(dir)?, maps: dir.open_file("maps", OFlag::O_RDONLY)? };
        let mut all = RangeSet::new();
        for area in areas {
            for range in self.take_area(dir.pid(), area, &files)?.ranges() {
                all.insert(*range);
            }
        }
        Ok(all)
    }

    fn last(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<Last, TrackError> {
        let (pid, pagemap) = (dir.pid(), pagemap(dir)?);
        let mut last = Last::default();
        for area in areas {
            let whole: RangeSet = [area.pages()].into_iter().collect();
            let part = |r: &PageRange| Area { start: r.start_byte(), end: r.end_byte(), of_file: area.of_file };
            let inside = self.tracked.within(area.pages());
            let outside = whole.difference(&inside);
            let mut parts: Vec<(Area, bool)> = inside.ranges().iter().map(|r| (part(r), true)).collect();
            parts.extend(outside.ranges().iter().map(|r| (part(r), false)));
            parts.sort_unstable_by_key(|(a, _)| a.start);
            for (area, tracked) in parts {
                if tracked {
                    self.last_tracked(pid, &area, &pagemap, &mut last)?;
                } else {
                    let mut found = RangeSet::new();
                    held(pid, &area, &pagemap, &mut found)?;
                    let all: RangeSet = [area.pages()].into_iter().collect();
                    found.iter().for_each(|r| last.changed.insert(r));
                    all.difference(&found).iter().for_each(|r| last.empty.insert(r));
                }
            }
        }
        Ok(last)
    }

    fn end(self: Box<Self>, dir: &ProcDir) {
        unprotect::lift_all(self.fd.as_fd(), dir, &self.tracked);
        if self.kernel_faults {
            unprotect::let_go(self.fd.as_fd(), dir, &self.tracked);
        }
    }

    fn into_uffd(self: Box<Self>) -> Option<Uffd> {
        Some(*self)
    }
}

/// What is open of a process during a round.
struct Files {
    pagemap: std::fs::File,
    maps: OwnedFd,
}

impl Files {
    /// Where the next mapping begins, if this area is still exactly one: to register what has become a part of one would split it,
    /// and an mremap(2) of the target over both halves fail. It may grow in this moment, so the room behind it is registered, too.
    /// Where the kernel cannot be asked (before 6.11) the area is as it was a moment ago.
    fn room_of(&self, area: &Area) -> Option<u64> {
        match procmap::with_room(self.maps.as_fd(), area.start) {
            Ok(found) => found.filter(|(end, _)| *end == area.end).map(|(_, next)| next),
            Err(_) => Some(area.end),
        }
    }
}
