//! What has become of each protected page (pure).

use crate::image::mm::PAGE;
use crate::memory::{PageRange, RangeSet};
use std::collections::BTreeMap;

/// A page as it was at the instant.
pub(super) type Content = Box<[u8]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has its content yet.
    Owed,
    /// Somebody reads it: it stays protected until that is done.
    Reading,
    /// Its content is safe: nothing holds a write any more.
    Safe,
}

/// What a write that waits is waiting for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// These pages (the one that is written among them) have to be read first; they are marked as being read.
    Read(Vec<PageRange>),
    /// Somebody reads it just now, and lifts the protection then.
    Wait,
    /// Nothing: its content is safe, or it had none.
    Nothing,
}

/// The pages of one address space that were protected.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Ascending.
    ranges: Vec<PageRange>,
    /// For each range the place of its first page in `states`.
    starts: Vec<usize>,
    states: Vec<State>,
    /// Contents that were read for a write that waited, and are not in the image yet.
    copies: BTreeMap<u64, Content>,
    /// No page before this place is owed.
    cursor: usize,
}

impl Table {
    pub(super) fn new(pages: &RangeSet) -> Self {
        let ranges = pages.ranges().to_vec();
        let mut count = 0;
        let mut starts = Vec::with_capacity(ranges.len());
        for range in &ranges {
            starts.push(count);
            count += range.count as usize;
        }
        Self { ranges, starts, states: vec![State::Owed; count], ..Self::default() }
    }

    /// Pages in all.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// The first of them.
    pub(super) fn first(&self) -> Option<u64> {
        self.ranges.first().map(|range| range.first)
    }

    fn place(&self, page: u64) -> Option<usize> {
        let n = self.ranges.partition_point(|r| r.end() <= page);
        let range = self.ranges.get(n).filter(|r| r.first <= page)?;
        Some(self.starts[n] + (page - range.first) as usize)
    }

    /// The pages of `range` that are owed are marked as being read, and given.
    fn begin(&mut self, range: PageRange) -> Vec<PageRange> {
        let mut found: Vec<PageRange> = Vec::new();
        for page in range.first..range.end() {
            let Some(place) = self.place(page).filter(|place| self.states[*place] == State::Owed) else { continue };
            self.states[place] = State::Reading;
            match found.last_mut() {
                Some(last) if last.end() == page => last.count += 1,
                _ => found.push(PageRange::new(page, 1)),
            }
        }
        found
    }

    /// For the saver, page by page of a range: a content that there is already, or the order to read it.
    pub(super) fn take(&mut self, range: PageRange) -> (Vec<PageRange>, Vec<(u64, Content)>) {
        let to_read = self.begin(range);
        let copied: Vec<u64> = self.copies.range(range.first..range.end()).map(|(page, _)| *page).collect();
        let copies = copied.into_iter().filter_map(|page| Some((page, self.copies.remove(&page)?))).collect();
        (to_read, copies)
    }

    /// Somebody wants to write `page`; `window`: pages around it that may be read along.
    pub(super) fn wanted(&mut self, page: u64, window: PageRange) -> Wanted {
        match self.place(page).map(|place| self.states[place]) {
            None | Some(State::Safe) => Wanted::Nothing,
            Some(State::Reading) => Wanted::Wait,
            Some(State::Owed) => Wanted::Read(self.begin(window)),
        }
    }

    /// The contents of these pages have been read.
    pub(super) fn safe(&mut self, range: PageRange) {
        for page in range.first..range.end() {
            if let Some(place) = self.place(page) {
                self.states[place] = State::Safe;
            }
        }
    }

    /// Keeps what was read for a write that waited.
    pub(super) fn keep(&mut self, page: u64, content: &[u8]) {
        debug_assert_eq!(content.len() as u64, PAGE);
        self.copies.insert(page, content.into());
    }

    /// Pages whose contents are kept.
    pub(super) fn kept(&self) -> RangeSet {
        self.copies.keys().map(|page| PageRange::new(*page, 1)).collect()
    }

    /// The content of every page is safe, and given.
    pub(super) fn is_done(&self) -> bool {
        self.copies.is_empty() && self.states.iter().all(|state| *state == State::Safe)
    }

    /// The next pages that are owed, at most `limit` of them; empty = none is.
    pub(super) fn next(&mut self, limit: u64) -> Vec<PageRange> {
        while self.states.get(self.cursor).is_some_and(|state| *state != State::Owed) {
            self.cursor += 1;
        }
        let mut found: Vec<PageRange> = Vec::new();
        let (mut left, mut place) = (limit, self.cursor);
        let mut n = self.starts.partition_point(|start| *start <= place).saturating_sub(1);
        while left > 0 && place < self.states.len() {
            while place >= self.starts[n] + self.ranges[n].count as usize {
                n += 1;
            }
            let page = self.ranges[n].first + (place - self.starts[n]) as u64;
            if self.states[place] == State::Owed {
                left -= 1;
                match found.last_mut() {
                    Some(last) if last.end() == page => last.count += 1,
                    _ => found.push(PageRange::new(page, 1)),
                }
            }
            place += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> Table {
        Table::new(&[PageRange::new(10, 4), PageRange::new(20, 2)].into_iter().collect())
    }

    #[test]
    fn a_page_is_read_once_and_written_only_when_it_is_safe() {
        let mut table = table();
        let window = PageRange::new(8, 8);
        assert_eq!(table.take(PageRange::new(12, 1)).0, [PageRange::new(12, 1)]);
        assert_eq!(table.wanted(12, window), Wanted::Wait);
        assert_eq!(table.wanted(9, window), Wanted::Nothing);
        assert_eq!(table.wanted(10, window), Wanted::Read(vec![PageRange::new(10, 2), PageRange::new(13, 1)]));
        assert_eq!(table.next(10), [PageRange::new(20, 2)]);
        table.keep(10, &[7; PAGE as usize]);
        table.safe(PageRange::new(10, 1));
        assert_eq!(table.wanted(10, window), Wanted::Nothing);
        assert_eq!(table.kept().ranges(), [PageRange::new(10, 1)]);
        let (to_read, copies) = table.take(PageRange::new(8, 4));
        assert!(to_read.is_empty());
        assert_eq!(copies.len(), 1);
        assert!(table.kept().is_empty());
    }

    proptest! {
        /// Whatever the order of writes and of the saver: each page reaches the image once.
        #[test]
        fn each_page_is_given_once(
            ranges in prop::collection::vec((0u64..200, 1u64..9), 1..20),
            steps in prop::collection::vec((any::<bool>(), 0u64..210, 1u64..30), 0..60),
        ) {
            let pages: RangeSet = ranges.into_iter().map(|(first, count)| PageRange::new(first, count)).collect();
            let mut table = Table::new(&pages);
            let mut given: BTreeMap<u64, u32> = BTreeMap::new();
            let mut save = |table: &mut Table, range: PageRange| {
                let (to_read, copies) = table.take(range);
                to_read.iter().for_each(|r| table.safe(*r));
                let read = to_read.iter().flat_map(|r| r.first..r.end());
                read.chain(copies.iter().map(|(page, _)| *page)).for_each(|page| *given.entry(page).or_default() += 1);
            };
            for (write, first, count) in steps {
                let range = PageRange::new(first, count);
                if write {
                    if let Wanted::Read(found) = table.wanted(first, range) {
                        for page in found.iter().flat_map(|r| r.first..r.end()) {
                            table.keep(page, &[0; PAGE as usize]);
                            table.safe(PageRange::new(page, 1));
                        }
                    }
                } else {
                    save(&mut table, range);
                }
            }
            loop {
                let next: Vec<PageRange> = table.next(7).into_iter().chain(table.kept().iter()).collect();
                if next.is_empty() {
                    break;
                }
                next.into_iter().for_each(|range| save(&mut table, range));
            }
            let all: BTreeMap<u64, u32> = pages.iter().flat_map(|r| r.first..r.end()).map(|page| (page, 1)).collect();
            prop_assert_eq!(given, all);
            prop_assert!(table.is_done());
        }
    }
}
