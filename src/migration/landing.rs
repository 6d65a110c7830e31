//! Pages of rounds at their final place: in the address spaces of a tree that is made while the source still runs.
//!
//! Of each space that the destination has a place for, a [`Plot`] knows which pages can land; the others go to the page
//! store, for the end. The newest content of a page is in exactly one of the two, whatever the order in which rounds send it.

use super::MoveError;
use super::pages::{Run, What};
use crate::memory::pipeline::{ReadPages, WritePages};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Pages read back in one go.
const BATCH_PAGES: u64 = 256;

/// Memory in the making: written as pages come, read again where they have to make way.
pub trait Memory: WritePages + ReadPages {}

impl<T: WritePages + ReadPages> Memory for T {}

/// What is known of the pages of one space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    /// What the tree that stands calls it.
    home: Space,
    /// Pages that can land.
    places: RangeSet,
    /// Pages that have landed: what lies there is the newest content.
    landed: RangeSet,
    /// Pages that hold something which the target no longer has.
    stale: RangeSet,
}

impl Plot {
    /// A plot; `landed` has the pages that are there from the beginning.
    pub fn new(home: Space, places: RangeSet, landed: RangeSet) -> Self {
        Self { home, places, landed, stale: RangeSet::new() }
    }

    /// Pages come: which of them land now (`true`) and which go to the store, in order.
    fn come(&mut self, range: PageRange) -> Vec<(PageRange, bool)> {
        let all: RangeSet = [range].into_iter().collect();
        let here = all.intersection(&self.places);
        for piece in here.iter() {
            self.landed.insert(piece);
            self.stale.remove(piece);
        }
        let elsewhere = all.difference(&self.places);
        elsewhere.iter().for_each(|piece| self.landed.remove(piece));
        let mut pieces: Vec<_> = here.iter().map(|r| (r, true)).chain(elsewhere.iter().map(|r| (r, false))).collect();
        pieces.sort_unstable_by_key(|(r, _)| r.first);
        pieces
    }

    /// Pages are gone. What the store has to be told of: those that can not land.
    fn go(&mut self, range: PageRange) -> RangeSet {
        let all: RangeSet = [range].into_iter().collect();
        for piece in all.intersection(&self.places).iter() {
            self.stale.insert(piece);
        }
        self.landed.remove(range);
        all.difference(&self.places)
    }
}

/// Where pages land.
pub struct Landing {
    plots: HashMap<Space, Mutex<Plot>>,
    memory: Box<dyn Memory>,
}

/// Takes pages (of a space, as rounds name it) with their content.
pub type Out<'a> = dyn FnMut(Space, PageRange, &[u8]) -> Result<(), MoveError> + 'a;

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Pages for the store.
    pub range: PageRange,
    /// Where their content begins in that of the run, pages.
    pub at: u64,
}

impl Landing {
    /// `plots` by the names that rounds use.
    pub fn new(plots: HashMap<Space, Plot>, memory: Box<dyn Memory>) -> Self {
        Self { plots: plots.into_iter().map(|(space, plot)| (space, Mutex::new(plot))).collect(), memory }
    }

    /// Lands what can land of a run; what is left for the store.
    ///
    /// # Errors
    /// Memory of the tree cannot be written, or a run that makes no sense for pages that have landed.
    pub fn take(&self, run: Run, content: &[u8]) -> Result<Vec<Left>, MoveError> {
        let whole = Left { range: run.range, at: 0 };
        let Some(plot) = self.plots.get(&run.space) else { return Ok(vec![whole]) };
        let mut plot = plot.lock().unwrap_or_else(PoisonError::into_inner);
        let home = plot.home;
        let left = |range: PageRange| Left { range, at: range.first - run.range.first };
        let pieces = match run.what {
            What::Data | What::Zero => plot.come(run.range),
            What::Hole => return Ok(plot.go(run.range).iter().map(left).collect()),
            What::Inherit | What::Keep | What::Delta | What::Named => {
                let reason = format!("{} has its own pages already", run.space);
                return Err(MoveError::Names { reason });
            }
        };
        drop(plot);
        let page = crate::image::mm::PAGE;
        let failed = |source| MoveError::Landing { space: home, source };
        for (piece, _) in pieces.iter().filter(|(_, lands)| *lands) {
            let from = ((piece.first - run.range.first) * page) as usize;
            match run.what {
                What::Data => {
                    let part = &content[from..from + piece.bytes() as usize];
                    self.memory.write(home, &[*piece], part).map_err(failed)?;
                }
                _ => piece.pieces(BATCH_PAGES).try_for_each(|p| self.memory.zero(home, p)).map_err(failed)?,
            }
        }
        Ok(pieces.into_iter().filter(|(_, lands)| !lands).map(|(range, _)| left(range)).collect())
    }

    /// Spaces that pages can have landed in: as rounds name them, and as the tree does.
    pub fn spaces(&self) -> impl Iterator<Item = (Space, Space)> + '_ {
        self.plots.iter().map(|(name, plot)| (*name, plot.lock().unwrap_or_else(PoisonError::into_inner).home))
    }

    /// Hands out the pages that have landed and do not stay, as rounds name them; `kept` says which stay of a space (as rounds
    /// name it, and as the tree does), or need not be kept at all.
    ///
    /// # Errors
    /// Memory of the tree cannot be read; whatever `out` fails with.
    pub fn take_out(&self, kept: &dyn Fn(Space, Space) -> RangeSet, out: &mut Out<'_>) -> Result<(), MoveError> {
        let mut buffer = PageBuffer::default();
        for (name, plot) in &self.plots {
            let plot = plot.lock().unwrap_or_else(PoisonError::into_inner);
            for piece in plot.landed.difference(&kept(*name, plot.home)).iter().flat_map(|r| r.pieces(BATCH_PAGES)) {
                buffer.resize(piece.bytes() as usize);
                self.memory
                    .read(plot.home, &[piece], &mut buffer)
                    .map_err(|source| MoveError::Landing { space: plot.home, source })?;
                out(*name, piece, &buffer)?;
            }
        }
        Ok(())
    }

    /// Pages whose content the target no longer has, as the tree names their spaces.
    pub fn stale(&self) -> Vec<(Space, RangeSet)> {
        let plots = self.plots.values().map(|plot| plot.lock().unwrap_or_else(PoisonError::into_inner));
        plots.map(|plot| (plot.home, plot.stale.clone())).filter(|(_, pages)| !pages.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use crate::image::mm::PAGE;
    use crate::memory::pipeline::PageError;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const SENT: Space = Space::Mm(MmId(1 << 24));
    const HOME: Space = Space::Mm(MmId(0));

    /// Memory that remembers what was written where.
    #[derive(Clone, Default)]
    struct Ground(Arc<Mutex<BTreeMap<u64, u8>>>);

    impl WritePages for Ground {
        fn write(&self, space: Space, ranges: &[PageRange], data: &[u8]) -> Result<(), PageError> {
            assert_eq!(space, HOME);
            let pages = ranges.iter().flat_map(|r| r.first..r.end());
            self.0.lock().unwrap().extend(pages.zip(data.chunks(PAGE as usize).map(|c| c[0])));
            Ok(())
        }

        fn zero(&self, space: Space, range: PageRange) -> Result<(), PageError> {
            self.write(space, &[range], &vec![0; range.bytes() as usize])
        }
    }

    impl ReadPages for Ground {
        fn read(&self, _: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
            let pages = ranges.iter().flat_map(|r| r.first..r.end());
            let memory = self.0.lock().unwrap();
            buf.chunks_mut(PAGE as usize).zip(pages).for_each(|(c, page)| c.fill(memory[&page]));
            Ok(())
        }
    }

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        ranges.iter().map(|(first, count)| PageRange::new(*first, *count)).collect()
    }

    /// What a program does to its pages, and what rounds tell of it.
    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, u64, u8),
        Zero(u64, u64),
        Unmap(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0u64..40, 1u64..9);
        prop_oneof![
            4 => (range(), 1u8..).prop_map(|((f, n), v)| Step::Write(f, n, v)),
            1 => range().prop_map(|(f, n)| Step::Zero(f, n)),
            2 => range().prop_map(|(f, n)| Step::Unmap(f, n)),
        ]
    }

    fn places() -> impl Strategy<Value = RangeSet> {
        proptest::collection::vec((0u64..48, 1u64..8), 0..6).prop_map(|mut ranges| {
            ranges.sort_unstable();
            set(&ranges)
        })
    }

    proptest! {
        /// Whatever comes in whatever order: put together from the landed pages that stay, the store, and the notes of what is
        /// gone, memory is what the program has.
        #[test]
        fn the_newest_content_wins(
            steps in proptest::collection::vec(step(), 0..60),
            places in places(),
            stays in places(),
        ) {
            let (ground, mut store, mut truth) = (Ground::default(), BTreeMap::new(), BTreeMap::new());
            let plot = Plot::new(HOME, places, RangeSet::new());
            let landing = Landing::new([(SENT, plot)].into(), Box::new(ground.clone()));
            for step in steps {
                let (first, count, what, value) = match step {
                    Step::Write(first, count, value) => (first, count, What::Data, Some(value)),
                    Step::Zero(first, count) => (first, count, What::Zero, Some(0)),
                    Step::Unmap(first, count) => (first, count, What::Hole, None),
                };
                let range = PageRange::new(first, count);
                let content = vec![value.unwrap_or(0); range.bytes() as usize];
                let run = Run::new(SENT, range, what);
                let left = landing.take(run, if what == What::Data { &content } else { &[] }).unwrap();
                for Left { range: part, at } in left {
                    prop_assert_eq!(part.first, first + at);
                    for page in part.first..part.end() {
                        match value {
                            Some(value) => drop(store.insert(page, value)),
                            None => drop(store.remove(&page)),
                        }
                    }
                }
                for page in first..range.end() {
                    match value {
                        Some(value) => drop(truth.insert(page, value)),
                        None => drop(truth.remove(&page)),
                    }
                }
            }
            // The end: what does not stay goes to the store, which has nothing newer of it.
            let mut after: BTreeMap<u64, u8> = ground.0.lock().unwrap().clone();
            after.retain(|page, _| stays.contains(*page));
            landing.take_out(&|_, _| stays.clone(), &mut |space, range, content| {
                assert_eq!(space, SENT);
                for (page, content) in (range.first..range.end()).zip(content.chunks(PAGE as usize)) {
                    assert_eq!(store.insert(page, content[0]), None, "page {page} was in both");
                }
                Ok(())
            }).unwrap();
            for (_, pages) in landing.stale() {
                after.retain(|page, _| !pages.contains(*page));
            }
            after.extend(store);
            prop_assert_eq!(after, truth);
        }
    }

    #[test]
    fn pages_of_unknown_spaces_are_left() {
        let landing = Landing::new(HashMap::new(), Box::new(Ground::default()));
        let range = PageRange::new(3, 2);
        let run = Run::new(SENT, range, What::Zero);
        assert_eq!(landing.take(run, &[]).unwrap(), [Left { range, at: 0 }]);
    }

    #[test]
    fn what_has_landed_is_not_inherited() {
        let plot = Plot::new(HOME, set(&[(0, 10)]), RangeSet::new());
        let landing = Landing::new([(SENT, plot)].into(), Box::new(Ground::default()));
        let run = Run::new(SENT, PageRange::new(3, 2), What::Inherit);
        assert!(matches!(landing.take(run, &[]), Err(MoveError::Names { .. })));
    }
}
