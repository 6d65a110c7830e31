//! What is known of pages: where their content lies, or what is said of them without content.

use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::pages::What;
use std::collections::BTreeMap;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the content of a page lies: the number of its place in the file of pages, and the check of what is there (XXH3 of 64 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub number: u64,
    pub check: u64,
}

/// Pages without content of their own, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    Zero,
    /// As in the address space that theirs was forked from.
    Inherit,
    Hole,
}

impl Mark {
    const ALL: [Self; 3] = [Self::Zero, Self::Inherit, Self::Hole];

    /// What a run without content says.
    pub fn of(what: What) -> Option<Self> {
        match what {
            What::Zero => Some(Self::Zero),
            What::Inherit => Some(Self::Inherit),
            What::Hole => Some(Self::Hole),
            What::Data | What::Keep | What::Delta | What::Named => None,
        }
    }
}

/// Pages of all spaces, by the names that rounds have for these: of each page one thing at most.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub slots: BTreeMap<(Space, u64), Slot>,
    pub marks: BTreeMap<(Space, Mark), RangeSet>,
}

/// What a row of a state says, on the disk.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Row {
    first: U64,
    pages: U64,
    /// Of the first page; the others follow.
    slot: U64,
    space: U32,
    /// 0: an address space, 1: a shared memory object.
    kind: u8,
    /// 0: content, else 1 more than the place of the mark in [`Mark::ALL`].
    what: u8,
    spare: [u8; 2],
}

/// The check of a page with content, on the disk; in the order of the rows.
pub(super) type Check = U64;

impl Layer {
    /// Nothing is known of these any more; places that nobody refers to from here.
    fn clear(&mut self, space: Space, range: PageRange) -> Vec<u64> {
        for mark in Mark::ALL {
            if let Some(ranges) = self.marks.get_mut(&(space, mark)) {
                ranges.remove(range);
            }
        }
        let keys: Vec<_> = self.slots.range((space, range.first)..(space, range.end())).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| Some(self.slots.remove(key)?.number)).collect()
    }

    /// This is so from here on; places that nobody refers to from here.
    pub fn mark(&mut self, space: Space, range: PageRange, mark: Mark) -> Vec<u64> {
        let freed = self.clear(space, range);
        self.marks.entry((space, mark)).or_default().insert(range);
        freed
    }

    /// Pages, from this one on, have their content there; places that nobody refers to from here.
    pub fn place(&mut self, space: Space, first: u64, slots: &[Slot]) -> Vec<u64> {
        let freed = self.clear(space, PageRange::new(first, slots.len() as u64));
        self.slots.extend((first..).map(|page| (space, page)).zip(slots.iter().copied()));
        freed
    }

    /// As it is written: rows, and the checks of pages with content.
    pub fn rows(&self) -> (Vec<Row>, Vec<Check>) {
        let mut rows: Vec<Row> = Vec::new();
        let mut last: Option<(Space, u64, u64)> = None;
        for ((space, page), slot) in &self.slots {
            match rows.last_mut().filter(|_| last == Some((*space, *page, slot.number))) {
                Some(row) => row.pages += 1,
                None => rows.push(Row::new(*space, PageRange::new(*page, 1), slot.number, 0)),
            }
            last = Some((*space, page + 1, slot.number + 1));
        }
        for ((space, mark), ranges) in &self.marks {
            let what = Mark::ALL.iter().position(|one| one == mark).map_or(0, |place| place as u8 + 1);
            rows.extend(ranges.iter().map(|range| Row::new(*space, range, 0, what)));
        }
        (rows, self.slots.values().map(|slot| slot.check.into()).collect())
    }

    /// Puts rows on top of what is there, and takes their checks from the others; `None`: they make no sense.
    pub fn apply(&mut self, rows: &[Row], checks: &mut &[Check]) -> Option<()> {
        for row in rows {
            let (space, range) = (row.space()?, row.range()?);
            if row.what == 0 {
                let count = usize::try_from(range.count).ok().filter(|count| *count <= checks.len())?;
                let (theirs, rest) = checks.split_at(count);
                row.slot.get().checked_add(range.count)?;
                let numbers = row.slot.get()..;
                let slots: Vec<Slot> =
                    numbers.zip(theirs).map(|(number, check)| Slot { number, check: check.get() }).collect();
                self.place(space, range.first, &slots);
                *checks = rest;
            } else {
                self.mark(space, range, *Mark::ALL.get(usize::from(row.what) - 1)?);
            }
        }
        Some(())
    }
}

impl Row {
    fn new(space: Space, range: PageRange, slot: u64, what: u8) -> Self {
        let (kind, id) = match space {
            Space::Mm(id) => (0, id.0),
            Space::Shmem(id) => (1, id.0),
        };
        let (first, pages) = (range.first.into(), range.count.into());
        Self { first, pages, slot: slot.into(), space: id.into(), kind, what, spare: [0; 2] }
    }

    fn space(&self) -> Option<Space> {
        match self.kind {
            0 => Some(Space::Mm(crate::image::MmId(self.space.get()))),
            1 => Some(Space::Shmem(crate::image::ShmemId(self.space.get()))),
            _ => None,
        }
    }

    fn range(&self) -> Option<PageRange> {
        use crate::image::limits::PAGE_NUMBERS;
        let range = PageRange::new(self.first.get(), self.pages.get());
        let is_sound = !range.is_empty() && range.first < PAGE_NUMBERS && range.count <= PAGE_NUMBERS - range.first;
        is_sound.then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use proptest::prelude::*;

    const MM: Space = Space::Mm(MmId(3));

    fn slots(from: u64, count: u64) -> Vec<Slot> {
        (from..from + count).map(|number| Slot { number, check: number * 7 }).collect()
    }

    #[test]
    fn the_last_that_was_said_of_a_page_holds() {
        let mut layer = Layer::default();
        assert!(layer.place(MM, 10, &slots(0, 4)).is_empty());
        assert_eq!(layer.mark(MM, PageRange::new(11, 2), Mark::Zero), [1, 2]);
        assert_eq!(layer.place(MM, 12, &slots(9, 1)), Vec::<u64>::new());
        assert_eq!(layer.slots.keys().map(|(_, page)| *page).collect::<Vec<_>>(), [10, 12, 13]);
        assert_eq!(layer.marks[&(MM, Mark::Zero)].ranges(), [PageRange::new(11, 1)]);
        assert_eq!(layer.mark(MM, PageRange::new(0, 1 << 40), Mark::Hole), [0, 9, 3]);
        assert!(layer.slots.is_empty());
    }

    #[test]
    fn rows_that_make_no_sense_are_refused() {
        let mut layer = Layer::default();
        layer.place(MM, 10, &slots(0, 4));
        let (rows, checks) = layer.rows();
        let apply = |row: Row| Layer::default().apply(&[row], &mut &checks[..]);
        assert!(rows.len() == 1 && apply(rows[0]).is_some());
        assert!(apply(Row { pages: 5.into(), ..rows[0] }).is_none(), "more pages than checks");
        assert!(apply(Row { pages: 0.into(), ..rows[0] }).is_none());
        assert!(apply(Row { first: u64::MAX.into(), ..rows[0] }).is_none());
        assert!(apply(Row { kind: 2, ..rows[0] }).is_none());
        assert!(apply(Row { what: 4, ..rows[0] }).is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(steps in prop::collection::vec((0u64..40, 1u64..9, 0usize..4, 0u64..100), 0..30)) {
            let mut layer = Layer::default();
            for (first, count, what, slot) in steps {
                match what {
                    0 => layer.place(MM, first, &slots(slot, count)),
                    mark => layer.mark(MM, PageRange::new(first, count), Mark::ALL[mark - 1]),
                };
            }
            let (rows, checks) = layer.rows();
            let (mut read, mut rest) = (Layer::default(), &checks[..]);
            prop_assert!(read.apply(&rows, &mut rest).is_some() && rest.is_empty());
            prop_assert_eq!(read.slots, layer.slots);
            read.marks.retain(|_, ranges| !ranges.is_empty());
            layer.marks.retain(|_, ranges| !ranges.is_empty());
            prop_assert_eq!(read.marks, layer.marks);
        }
    }
}
