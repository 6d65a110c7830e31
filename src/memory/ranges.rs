//! Page numbers, ranges of pages, and sets of ranges.

use crate::image::{MmId, ShmemId, mm::PAGE};

/// Whose pages: the first half of the key of a page in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// An address space; a page's number is its address divided by the page size.
    Mm(MmId),
    /// A shared memory object; a page's number is its offset divided by the page size.
    Shmem(ShmemId),
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mm(id) => write!(f, "address space {}", id.0),
            Self::Shmem(id) => write!(f, "shared memory object {}", id.0),
        }
    }
}

/// A range of consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    /// Number of the first page (address or offset divided by the page size).
    pub first: u64,
    /// How many pages.
    pub count: u64,
}

impl PageRange {
    /// `count` pages from page number `first`.
    pub const fn new(first: u64, count: u64) -> Self {
        Self { first, count }
    }

    /// The pages that the bytes `start..end` touch.
    pub const fn of_bytes(start: u64, end: u64) -> Self {
        let first = start / PAGE;
        if end <= start { Self { first, count: 0 } } else { Self { first, count: end.div_ceil(PAGE) - first } }
    }

    /// Number of the first page past the end.
    pub const fn end(self) -> u64 {
        self.first + self.count
    }

    /// Address (or offset) of the first byte.
    pub const fn start_byte(self) -> u64 {
        self.first * PAGE
    }

    /// Address (or offset) of the first byte past the end.
    pub const fn end_byte(self) -> u64 {
        self.end() * PAGE
    }

    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.count * PAGE
    }

    /// No page at all.
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The pages in both. Costs as [`Self::difference`].
    pub fn intersect(self, other: Self) -> Self {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        Self { first, count: end.saturating_sub(first) }
    }

    /// The range in pieces of at most `pages` pages.
    pub fn pieces(self, pages: u64) -> impl Iterator<Item = PageRange> {
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.count == 0 {
                return None;
            }
            let count = rest.count.min(pages.max(1));
            let piece = Self { first: rest.first, count };
            rest = Self { first: rest.first + count, count: rest.count - count };
            Some(piece)
        })
    }
}

/// The position of the first of these ascending ranges, from one on, that ends behind this page. One that is near costs as much as a
/// step to it, one that is far a search: so a set of few ranges is compared with one of many.
fn first_behind(ranges: &[PageRange], from: usize, page: u64) -> usize {
    let rest = ranges.get(from..).unwrap_or_default();
    let mut some = 1;
    while rest.get(some - 1).is_some_and(|range| range.end() <= page) {
        some *= 2;
    }
    from + rest[..some.min(rest.len())].partition_point(|range| range.end() <= page)
}

/// A set of pages: ascending ranges that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet {
    ranges: Vec<PageRange>,
}

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Ascending, disjoint, not touching.
    pub fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    /// Ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.ranges.iter().copied()
    }

    /// Pages in all.
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|r| r.count).sum()
    }

    /// No page at all.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Is this page in the set?
    pub fn contains(&self, page: u64) -> bool {
        let n = self.ranges.partition_point(|r| r.end() <= page);
        self.ranges.get(n).is_some_and(|r| r.first <= page)
    }

    /// The part of the set that lies in a range: costs no more than that part and a search.
    pub fn within(&self, range: PageRange) -> Self {
        let from = self.ranges.partition_point(|r| r.end() <= range.first);
        let parts = self.ranges[from..].iter().take_while(|r| r.first < range.end());
        Self { ranges: parts.map(|r| r.intersect(range)).filter(|r| !r.is_empty()).collect() }
    }

    /// Adds pages; appending in ascending order is constant time.
    pub fn insert(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.end() == range.first => last.count += range.count,
            Some(last) if last.end() > range.first => self.insert_inside(range),
            _ => self.ranges.push(range),
        }
    }

    fn insert_inside(&mut self, range: PageRange) {
        // Everything that overlaps or touches melts into one.
        let from = self.ranges.partition_point(|r| r.end() < range.first);
        let to = self.ranges.partition_point(|r| r.first <= range.end());
        let mut merged = range;
        if from < to {
            let first = merged.first.min(self.ranges[from].first);
            let end = merged.end().max(self.ranges[to - 1].end());
            merged = PageRange::new(first, end - first);
        }
        self.ranges.splice(from..to, [merged]);
    }

    /// Takes pages out.
    pub fn remove(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let from = self.ranges.partition_point(|r| r.end() <= range.first);
        let to = self.ranges.partition_point(|r| r.first < range.end());
        if from >= to {
            return;
        }
        let left = PageRange::new(self.ranges[from].first, range.first.saturating_sub(self.ranges[from].first));
        let last_end = self.ranges[to - 1].end();
        let right = PageRange::new(range.end(), last_end.saturating_sub(range.end()));
        self.ranges.splice(from..to, [left, right].into_iter().filter(|r| !r.is_empty()));
    }

    /// The pages in either.
    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<_> = self.ranges.iter().chain(&other.ranges).copied().collect();
        all.sort_unstable();
        all.into_iter().collect()
    }

    /// The pages in both. Costs as [`Self::difference`].
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut a, mut b) = (0, 0);
        let mut out = Self::new();
        while let (Some(x), Some(y)) = (self.ranges.get(a), other.ranges.get(b)) {
            out.insert(x.intersect(*y));
            if x.end() <= y.end() {
                a = first_behind(&self.ranges, a + 1, y.first);
            } else {
                b = first_behind(&other.ranges, b + 1, x.first);
            }
        }
        out
    }

    /// The pages of this set that are not in the other. Costs no more than the smaller of the two, and a search for each of its ranges.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::new();
        let mut b = 0;
        for range in self.iter() {
            let mut at = range.first;
            b = first_behind(&other.ranges, b, at);
            let mut next = b;
            while let Some(o) = other.ranges.get(next).filter(|o| o.first < range.end()) {
                out.insert(PageRange::new(at, o.first.saturating_sub(at)));
                at = o.end();
                next += 1;
            }
            out.insert(PageRange::new(at, range.end().saturating_sub(at)));
        }
        out
    }
}

impl FromIterator<PageRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = PageRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn some_ranges() -> impl Strategy<Value = Vec<PageRange>> {
        prop::collection::vec((0u64..60, 0u64..9).prop_map(|(f, c)| PageRange::new(f, c)), 0..12)
    }

    fn naive(ranges: &[PageRange]) -> BTreeSet<u64> {
        ranges.iter().flat_map(|r| r.first..r.end()).collect()
    }

    fn well_formed(set: &RangeSet) -> bool {
        set.ranges.iter().all(|r| r.count > 0) && set.ranges.windows(2).all(|w| w[0].end() < w[1].first)
    }

    proptest! {
        #[test]
        fn equals_a_plain_set(a in some_ranges(), b in some_ranges(), cut in some_ranges()) {
            let (sa, sb): (RangeSet, RangeSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            let (na, nb) = (naive(&a), naive(&b));
            prop_assert!(well_formed(&sa));
            prop_assert_eq!(naive(sa.ranges()), na.clone());
            for (set, want) in [
                (sa.union(&sb), na.union(&nb).copied().collect::<BTreeSet<_>>()),
                (sa.intersection(&sb), na.intersection(&nb).copied().collect()),
                (sa.difference(&sb), na.difference(&nb).copied().collect()),
            ] {
                prop_assert!(well_formed(&set));
                prop_assert_eq!(set.pages(), want.len() as u64);
                prop_assert_eq!(naive(set.ranges()), want);
            }
            for range in &cut {
                let part = sa.within(*range);
                prop_assert!(well_formed(&part));
                let want: BTreeSet<u64> = na.iter().copied().filter(|p| range.first <= *p && *p < range.end()).collect();
                prop_assert_eq!(naive(part.ranges()), want);
            }
            let (mut set, mut want) = (sa, na);
            for range in cut {
                set.remove(range);
                want.retain(|p| !(range.first..range.end()).contains(p));
            }
            prop_assert!(well_formed(&set));
            for page in 0..70 {
                prop_assert_eq!(set.contains(page), want.contains(&page));
            }
        }
    }

    #[test]
    fn bytes_cover_whole_pages() {
        assert_eq!(PageRange::of_bytes(4096, 8192), PageRange::new(1, 1));
        assert_eq!(PageRange::of_bytes(4095, 8193), PageRange::new(0, 3));
        assert!(PageRange::of_bytes(5000, 5000).is_empty());
        assert_eq!(PageRange::new(3, 7).pieces(3).map(|r| r.count).collect::<Vec<_>>(), [3, 3, 1]);
    }
}
