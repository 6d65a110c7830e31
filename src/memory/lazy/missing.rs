//! Which pages of one address space are not there yet, and what they are called where they come from. Pure bookkeeping:
//! mremap(2) moves pages away from the addresses they are stored under, munmap(2) and madvise(2) make them void.

use crate::memory::{PageRange, Space};
use std::collections::BTreeMap;

/// Pages from `at` on that come from neighbouring pages of one space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where they belong now.
    pub at: PageRange,
    /// Whose pages they are.
    pub space: Space,
    /// Number of the first one there.
    pub from: u64,
}

impl Piece {
    /// What it is called where it comes from.
    pub fn source(&self) -> PageRange {
        PageRange::new(self.from, self.at.count)
    }

    fn is_at_home(&self) -> bool {
        self.at.first == self.from && matches!(self.space, Space::Mm(_))
    }

    /// The part of it in a range of addresses.
    fn cut(&self, range: PageRange) -> Option<Self> {
        let at = self.at.intersect(range);
        (!at.is_empty()).then(|| Self { at, space: self.space, from: self.from + (at.first - self.at.first) })
    }

    /// The part of it that these pages of its source are.
    fn cut_source(&self, range: PageRange) -> Option<Self> {
        let from = self.source().intersect(range);
        let at = PageRange::new(self.at.first + from.first.saturating_sub(self.from), from.count);
        (!from.is_empty()).then_some(Self { at, space: self.space, from: from.first })
    }
}

/// The missing pages of one address space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// By the first page they belong at.
    pieces: BTreeMap<u64, Piece>,
    pages: u64,
    /// Pieces that are somewhere else than at the address they are stored under.
    moved: usize,
}

impl Missing {
    /// How many pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Everything is in.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces.values().copied()
    }

    /// Adds pages; what was known about these addresses is forgotten.
    pub fn insert(&mut self, piece: Piece) {
        if piece.at.is_empty() {
            return;
        }
        self.remove(piece.at);
        self.put(piece);
    }

    /// The page that belongs at an address, if it is missing: whose, and which.
    pub fn get(&self, page: u64) -> Option<(Space, u64)> {
        let (_, piece) = self.pieces.range(..=page).next_back()?;
        (page < piece.at.end()).then(|| (piece.space, piece.from + (page - piece.at.first)))
    }

    /// Where these pages of a space are missing.
    pub fn places(&self, space: Space, range: PageRange) -> Vec<Piece> {
        let home = self.within(range).filter(|piece| piece.is_at_home() && piece.space == space);
        let mut found: Vec<Piece> = home.filter_map(|piece| piece.cut(range)).collect();
        if self.moved > 0 {
            let away = self.pieces.values().filter(|piece| !piece.is_at_home() && piece.space == space);
            found.extend(away.filter_map(|piece| piece.cut_source(range)));
        }
        found
    }

    /// These addresses miss nothing any more: it has come in, is void, or is not mapped. Gives what was missing.
    pub fn remove(&mut self, range: PageRange) -> Vec<Piece> {
        let touched: Vec<Piece> = self.within(range).collect();
        let mut removed = Vec::new();
        for piece in touched {
            self.take(piece);
            let before = PageRange::new(piece.at.first, range.first.saturating_sub(piece.at.first));
            let after = PageRange::new(range.end(), piece.at.end().saturating_sub(range.end()));
            for rest in [before, after].into_iter().filter_map(|rest| piece.cut(rest)) {
                self.put(rest);
            }
            removed.extend(piece.cut(range));
        }
        removed
    }

    /// `count` pages are at `to` now instead of at `from`; what was at `to` is gone.
    pub fn remap(&mut self, from: u64, to: u64, count: u64) {
        let moved = self.remove(PageRange::new(from, count));
        self.remove(PageRange::new(to, count));
        for piece in moved {
            let at = PageRange::new(to + (piece.at.first - from), piece.at.count);
            self.put(Piece { at, ..piece });
        }
    }

    /// Pieces that touch a range of addresses.
    fn within(&self, range: PageRange) -> impl Iterator<Item = Piece> + '_ {
        let before = self.pieces.range(..range.first).next_back().map(|(first, _)| *first);
        let pieces = self.pieces.range(before.unwrap_or(range.first)..range.end().max(range.first));
        pieces.map(|(_, piece)| *piece).filter(move |piece| !piece.at.intersect(range).is_empty())
    }

    fn put(&mut self, piece: Piece) {
        self.pages += piece.at.count;
        self.moved += usize::from(!piece.is_at_home());
        self.pieces.insert(piece.at.first, piece);
    }

    fn take(&mut self, piece: Piece) {
        self.pages -= piece.at.count;
        self.moved -= usize::from(!piece.is_at_home());
        self.pieces.remove(&piece.at.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{MmId, ShmemId};
    use proptest::prelude::*;

    const OWN: Space = Space::Mm(MmId(0));
    const SHARED: Space = Space::Shmem(ShmemId(0));

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u64, bool, u64),
        Remove(u64, u64),
        Remap(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..60, 0u64..9, any::<bool>(), 0u64..40).prop_map(|(a, n, s, f)| Step::Insert(a, n, s, f)),
            (0u64..60, 0u64..9).prop_map(|(a, n)| Step::Remove(a, n)),
            // The kernel refuses ranges that overlap.
            (0u64..60, 0u64..60, 0u64..9)
                .prop_filter("disjoint", |(a, b, n)| a.abs_diff(*b) >= *n)
                .prop_map(|(a, b, n)| Step::Remap(a, b, n)),
        ]
    }

    proptest! {
        #[test]
        fn as_a_table_of_single_pages(steps in prop::collection::vec(step(), 0..24)) {
            let mut missing = Missing::default();
            let mut table: BTreeMap<u64, (Space, u64)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(at, count, shared, from) => {
                        let (space, from) = if shared { (SHARED, from) } else { (OWN, at) };
                        missing.insert(Piece { at: PageRange::new(at, count), space, from });
                        table.extend((0..count).map(|n| (at + n, (space, from + n))));
                    }
                    Step::Remove(at, count) => {
                        let removed: u64 =
                            missing.remove(PageRange::new(at, count)).iter().map(|piece| piece.at.count).sum();
                        let before = table.len();
                        table.retain(|page, _| !(at..at + count).contains(page));
                        prop_assert_eq!(removed, (before - table.len()) as u64);
                    }
                    Step::Remap(from, to, count) => {
                        missing.remap(from, to, count);
                        let moved: Vec<_> =
                            (0..count).filter_map(|n| Some((to + n, table.remove(&(from + n))?))).collect();
                        table.retain(|page, _| !(to..to + count).contains(page));
                        table.extend(moved);
                    }
                }
                prop_assert_eq!(missing.pages(), table.len() as u64);
                for page in 0..80 {
                    prop_assert_eq!(missing.get(page), table.get(&page).copied());
                }
                for space in [OWN, SHARED] {
                    for first in 0..70 {
                        let mut found: Vec<(u64, u64)> = missing
                            .places(space, PageRange::new(first, 3))
                            .iter()
                            .flat_map(|p| (0..p.at.count).map(|n| (p.at.first + n, p.from + n)))
                            .collect();
                        found.sort_unstable();
                        let here = |from: u64| (first..first + 3).contains(&from);
                        let want: Vec<(u64, u64)> = table
                            .iter()
                            .filter(|(_, (s, from))| *s == space && here(*from))
                            .map(|(at, (_, from))| (*at, *from))
                            .collect();
                        prop_assert_eq!(found, want);
                    }
                }
            }
        }
    }
}
