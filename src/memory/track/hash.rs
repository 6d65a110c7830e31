//! Without help of the kernel: every page is taken each time, and left out when it is written if it is what the image
//! has already, by an xxh3-128 of what was written in this run. (Against a parent image pages are compared byte for byte:
//! [`crate::memory::pipeline::dump_changed_pages`].)

use super::{Area, Last, TrackError, Tracking, held, pagemap};
use crate::image::mm::PAGE;
use crate::memory::store::{Mark, PageLane, PageSink, SpaceInfo, StoreError};
use crate::memory::{PageRange, RangeSet, Space};
use crate::proc::ProcDir;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_128;

/// Gives every page that holds something.
#[derive(Debug)]
pub struct Everything;

fn all_held(dir: &ProcDir, areas: &[Area]) -> Result<RangeSet, TrackError> {
    let pagemap = pagemap(dir)?;
    let mut all = RangeSet::new();
    for area in areas {
        held(dir.pid(), area, &pagemap, &mut all)?;
    }
    Ok(all)
}

impl Tracking for Everything {
    fn take(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<RangeSet, TrackError> {
        all_held(dir, areas)
    }

    fn last(&mut self, dir: &ProcDir, areas: &[Area]) -> Result<Last, TrackError> {
        let changed = all_held(dir, areas)?;
        let areas: RangeSet = areas.iter().map(Area::pages).collect();
        Ok(Last { empty: areas.difference(&changed), changed })
    }

    fn end(self: Box<Self>, _dir: &ProcDir) {}
}

const PAGE_BYTES: usize = PAGE as usize;

/// A page sink that leaves out pages which are what was written for them before. 16 bytes of memory a page.
pub struct Sieve<'a> {
    inner: &'a dyn PageSink,
    /// xxh3-128 by space and page number.
    written: Mutex<HashMap<(Space, u64), u128>>,
}

impl<'a> Sieve<'a> {
    /// In front of another sink.
    pub fn new(inner: &'a dyn PageSink) -> Self {
        Self { inner, written: Mutex::default() }
    }

    fn forget(&self, space: Space, range: PageRange) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for page in range.first..range.end() {
            written.remove(&(space, page));
        }
    }

    /// Calls `write` for every run of pages that differ, and notes them.
    fn differing(
        &self,
        space: Space,
        first: u64,
        data: &[u8],
        write: &mut dyn FnMut(Range<usize>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let hashes: Vec<u128> = data.chunks_exact(PAGE_BYTES).map(xxh3_128).collect();
        let differs: Vec<bool> = {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            let mut differs =
                |(n, hash): (usize, &u128)| written.insert((space, first + n as u64), *hash) != Some(*hash);
            hashes.iter().enumerate().map(&mut differs).collect()
        };
        let mut at = 0;
        for run in differs.chunk_by(|a, b| a == b) {
            if run[0] {
                write(at..at + run.len())?;
            }
            at += run.len();
        }
        Ok(())
    }
}

impl PageSink for Sieve<'_> {
    fn space(&self, space: Space, info: SpaceInfo) -> Result<(), StoreError> {
        self.inner.space(space, info)
    }

    fn mark(&self, space: Space, range: PageRange, mark: Mark) -> Result<(), StoreError> {
        self.forget(space, range);
        self.inner.mark(space, range, mark)
    }

    fn rename(&self, from: Space, to: Option<Space>) -> Result<(), StoreError> {
        self.inner.rename(from, to)
    }

    fn lane(&self) -> Result<Box<dyn PageLane + '_>, StoreError> {
        Ok(Box::new(SieveLane { sieve: self, inner: self.inner.lane()? }))
    }
}

struct SieveLane<'a> {
    sieve: &'a Sieve<'a>,
    inner: Box<dyn PageLane + 'a>,
}

impl PageLane for SieveLane<'_> {
    fn write_run(&mut self, space: Space, first: u64, data: &[u8]) -> Result<(), StoreError> {
        let inner = &mut self.inner;
        self.sieve.differing(space, first, data, &mut |pages| {
            let bytes = &data[pages.start * PAGE_BYTES..pages.end * PAGE_BYTES];
            inner.write_run(space, first + pages.start as u64, bytes)
        })
    }

    fn mark(&mut self, space: Space, range: PageRange, mark: Mark) -> Result<(), StoreError> {
        self.sieve.forget(space, range);
        self.inner.mark(space, range, mark)
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;

    /// Notes what arrives.
    #[derive(Default)]
    struct Noted(Mutex<Vec<PageRange>>);

    impl PageSink for Noted {
        fn space(&self, _: Space, _: SpaceInfo) -> Result<(), StoreError> {
            Ok(())
        }
        fn mark(&self, _: Space, _: PageRange, _: Mark) -> Result<(), StoreError> {
            Ok(())
        }
        fn rename(&self, _: Space, _: Option<Space>) -> Result<(), StoreError> {
            Ok(())
        }
        fn lane(&self) -> Result<Box<dyn PageLane + '_>, StoreError> {
            Ok(Box::new(NotedLane(self)))
        }
    }

    struct NotedLane<'a>(&'a Noted);

    impl PageLane for NotedLane<'_> {
        fn write_run(&mut self, _: Space, first: u64, data: &[u8]) -> Result<(), StoreError> {
            self.0.0.lock().unwrap().push(PageRange::new(first, (data.len() / PAGE_BYTES) as u64));
            Ok(())
        }
        fn mark(&mut self, _: Space, _: PageRange, _: Mark) -> Result<(), StoreError> {
            Ok(())
        }
        fn flush(&mut self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    #[test]
    fn only_what_differs_passes() {
        let space = Space::Mm(MmId(0));
        let noted = Noted::default();
        let sieve = Sieve::new(&noted);
        let mut data = vec![7u8; 5 * PAGE_BYTES];
        let passed = |data: &[u8]| {
            sieve.lane().unwrap().write_run(space, 100, data).unwrap();
            std::mem::take(&mut *noted.0.lock().unwrap())
        };
        assert_eq!(passed(&data), [PageRange::new(100, 5)]);
        assert_eq!(passed(&data), []);
        data[PAGE_BYTES] = 1;
        data[3 * PAGE_BYTES + 9] = 1;
        data[4 * PAGE_BYTES] = 1;
        assert_eq!(passed(&data), [PageRange::new(101, 1), PageRange::new(103, 2)]);
        // What was said to be gone is written again when it comes back as it was.
        sieve.mark(space, PageRange::new(102, 1), Mark::Hole).unwrap();
        assert_eq!(passed(&data), [PageRange::new(102, 1)]);
    }
}
