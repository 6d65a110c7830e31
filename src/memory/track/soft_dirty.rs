//! Soft-dirty bits: `/proc/PID/clear_refs` and bit 55 of the pagemap (`CONFIG_MEM_SOFT_DIRTY`, any kernel since 3.11), read
//! entry by entry or, since Linux 6.7, by `PAGEMAP_SCAN`, which passes over what is not there.
//!
//! Reading the bits and clearing them are two steps, so the process is stopped for both. A new mapping that the kernel
//! merges with its neighbour makes both dirty as a whole: more pages than necessary, never fewer.

use super::{Area, Last, TrackError, Tracking, pagemap, scan_error};
use crate::image::Pid;
use crate::image::mm::PAGE;
use crate::memory::{PageRange, RangeSet};
use crate::proc::ProcDir;
use crate::proc::pagemap::{Entry, entries, offset_of};
use crate::sys::Errno;
use crate::sys::abi::PageRegion;
use crate::sys::pagemap::{self, Query, category, guard_category};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Tracks one address space.
#[derive(Debug)]
pub struct SoftDirty {
    /// The bits have been cleared once: from then on they mean something.
    begun: bool,
    /// `PAGEMAP_SCAN` is there, and wanted.
    scans: bool,
    buf: Vec<PageRegion>,
}

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Changed,
    Unchanged,
    Empty,
}

fn class(entry: Entry, of_file: bool, begun: bool) -> Class {
    if !entry.has_content() || of_file && entry.is_present() && entry.is_file() {
        Class::Empty
    } else if !begun || entry.is_soft_dirty() {
        Class::Changed
    } else {
        Class::Unchanged
    }
}

impl SoftDirty {
    /// Nothing has been taken yet; `scans` = by `PAGEMAP_SCAN`.
    pub fn new(scans: bool) -> Self {
        Self { begun: false, scans, buf: Vec::new() }
    }

    fn look(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<Last, TrackError> {
        let pagemap = pagemap(dir)?;
        let mut last = Last::default();
        for area in areas {
            if self.scans {
                self.scan(area, &pagemap, &mut last).map_err(|errno| scan_error(dir.pid(), errno))?;
            } else {
                self.read(dir.pid(), area, &pagemap, &mut last)?;
            }
        }
        Ok(last)
    }

    fn scan(&mut self, area: &Area, pagemap: &File, last: &mut Last) -> Result<(), Errno> {
        let held = category::PRESENT | category::SWAPPED;
        let not = category::PFN_ZERO | guard_category() | if area.of_file { category::FILE } else { 0 };
        let query = Query { any_of: held, report: held | category::SOFT_DIRTY | not, ..Query::default() };
        let mut content = RangeSet::new();
        let begun = self.begun;
        pagemap::scan(pagemap.as_fd(), area.start, area.end, query, &mut self.buf, |region| {
            if region.categories & not == 0 {
                let range = PageRange::of_bytes(region.start, region.end);
                content.insert(range);
                if !begun || region.categories & category::SOFT_DIRTY != 0 {
                    last.changed.insert(range);
                }
            }
        })?;
        let all: RangeSet = [area.pages()].into_iter().collect();
        all.difference(&content).iter().for_each(|range| last.empty.insert(range));
        Ok(())
    }

    fn read(&self, pid: Pid, area: &Area, pagemap: &File, last: &mut Last) -> Result<(), TrackError> {
        let failed = |errno| TrackError::System { operation: "read pagemap", pid, errno };
        let mut buf = vec![0u8; 1 << 16];
        let mut page = area.start / PAGE;
        let end = area.end / PAGE;
        while page < end {
            let want = ((end - page) as usize * Entry::SIZE).min(buf.len());
            let n = pagemap
                .read_at(&mut buf[..want], offset_of(page * PAGE))
                .map_err(|e| failed(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))))?;
            if n < Entry::SIZE {
                return Err(TrackError::Gone { pid });
            }
            for entry in entries(&buf[..n]) {
                match class(entry, area.of_file, self.begun) {
                    Class::Changed => last.changed.insert(PageRange::new(page, 1)),
                    Class::Empty => last.empty.insert(PageRange::new(page, 1)),
                    Class::Unchanged => {}
                }
                page += 1;
            }
        }
        Ok(())
    }
}

impl Tracking for SoftDirty {
    fn take(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<RangeSet, TrackError> {
        let found = self.look(dir, areas)?.changed;
        dir.write("clear_refs", b"4")?;
        self.begun = true;
        Ok(found)
    }

    fn last(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<Last, TrackError> {
        self.look(dir, areas)
    }

    fn stops(&self) -> bool {
        true
    }

    fn end(self: Box<Self>, _dir: &ProcDir) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_become_classes() {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE: u64 = 1 << 61;
        const DIRTY: u64 = 1 << 55;
        let of = |bits, of_file, begun| class(Entry(bits), of_file, begun);
        assert_eq!(of(PRESENT | DIRTY, false, true), Class::Changed);
        assert_eq!(of(PRESENT, false, true), Class::Unchanged);
        // Before the bits were cleared for the first time they say nothing.
        assert_eq!(of(PRESENT, false, false), Class::Changed);
        assert_eq!(of(SWAPPED | DIRTY, false, true), Class::Changed);
        assert_eq!(of(SWAPPED, false, true), Class::Unchanged);
        // A hole of a new mapping carries the bit, too.
        assert_eq!(of(DIRTY, false, true), Class::Empty);
        assert_eq!(of(PRESENT | FILE | DIRTY, true, true), Class::Empty);
        assert_eq!(of(PRESENT | DIRTY, true, true), Class::Changed);
    }
}
