//! Where pages come from that arrive late.

use super::order::{FAR_PAGES, Fault, NEAR_PAGES, Next, Order};
use super::stalls::Waits;
use super::touches::Touches;
use crate::image::mm::PAGE;
use crate::memory::store::{PageReader, Scratch, StoreError};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// Pages whose content is [`Source::next`]'s.
pub type Arrival = (Space, PageRange);

/// Pages that will not come.
#[derive(Debug, thiserror::Error)]
#[error("{space}: pages {:#x}..{:#x} are lost", range.start_byte(), range.end_byte())]
pub struct Lost {
    /// Whose pages.
    pub space: Space,
    /// Which.
    pub range: PageRange,
    /// Why.
    #[source]
    pub reason: Box<dyn std::error::Error + Send + Sync>,
}

/// Contents of pages that are missing. Gives each page once.
pub trait Source {
    /// Somebody waits for a page: it comes before all others. No harm if it has come.
    fn want(&mut self, fault: Fault);

    /// Pages that are here now, with their content in `data`; `None` = none at this moment.
    ///
    /// # Errors
    /// Pages that will never come.
    fn next(&mut self, data: &mut PageBuffer) -> Result<Option<Arrival>, Lost>;

    /// These become readable when there may be more; none, where [`Self::next`] never has to wait.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Somebody waits until all of these are there.
    fn soon(&mut self, _: Space, _: &RangeSet) {}

    /// Somebody waits for all of them.
    fn hurry(&mut self) {}

    /// Everything is in; who has waited for it.
    fn finish(&mut self, _: &[Waits]) {}
}

/// The page store of an image. A frame is read and checked as a whole, so all of it is given at once: what somebody waits for
/// first, then the rest.
#[derive(Debug)]
pub struct StoreSource {
    pages: PageReader,
    order: Order,
    scratch: Scratch,
    /// Of the frame that was read last.
    rest: VecDeque<Arrival>,
    /// Where it stands what was touched first the last time, and of which image; read when nobody waits.
    pub touched_before: Option<(PathBuf, String)>,
    /// Only what somebody waits for is given.
    pub only_wanted: bool,
}

impl StoreSource {
    /// Reads in this order.
    pub fn new(pages: PageReader, order: Order) -> Self {
        let (scratch, rest) = (Scratch::default(), VecDeque::new());
        Self { pages: pages.suspicious(), order, scratch, rest, touched_before: None, only_wanted: false }
    }

    /// What is given next; `None` = all was.
    fn choose(&mut self) -> Option<Arrival> {
        if let Some(rest) = self.rest.pop_front() {
            return Some(rest);
        }
        let asked = self.order.next_wanted().or_else(|| self.order.next_soon(FAR_PAGES));
        if self.only_wanted {
            return asked.map(|next| (next.space, next.range));
        }
        if let Some((path, image)) = self.touched_before.take_if(|_| asked.is_none()) {
            self.order.first(Touches::read(&path, &image).iter());
        }
        let next = asked.or_else(|| self.order.next_pages())?;
        Some(self.with_its_frame(next))
    }

    /// The pages that were chosen, with those behind them; what else their frame holds follows.
    fn with_its_frame(&mut self, Next { space, range, urgent }: Next) -> Arrival {
        let frame = self.pages.frame_around(space, range.first);
        let mut all = self.order.take_all(space, frame);
        all.insert(range);
        let found = all.iter().find(|part| part.end() > range.first);
        let whole = found.unwrap_or(range);
        // Who waits goes on at once, and mostly to the next pages.
        let most = if urgent { range.count.max(NEAR_PAGES) } else { u64::MAX };
        let first = if urgent { range.first } else { whole.first };
        let now = PageRange::new(first, (whole.end() - first).min(most));
        all.remove(now);
        self.rest.extend(all.iter().map(|range| (space, range)));
        (space, now)
    }

    /// Asked for pages although all were given: a defect of this program.
    fn exhausted(&self) -> Lost {
        let range = PageRange::new(0, 0);
        Lost { space: Space::Mm(crate::image::MmId(0)), range, reason: "the image has no more of them".into() }
    }

    fn read(&mut self, space: Space, range: PageRange, data: &mut PageBuffer) -> Result<(), StoreError> {
        // Every byte of it is read.
        data.resize(range.bytes() as usize);
        let mut there = 0;
        for run in self.pages.contents_in(space, range)? {
            let at = ((run.range.first - range.first) * PAGE) as usize;
            self.pages.read_into(&run, &mut data[at..at + run.range.bytes() as usize], &mut self.scratch)?;
            there += run.range.count;
        }
        // Only pages with content are owed.
        if there == range.count { Ok(()) } else { Err(StoreError::NoContent { space, range }) }
    }
}

impl Source for StoreSource {
    fn want(&mut self, fault: Fault) {
        self.order.fault(fault);
    }

    fn next(&mut self, data: &mut PageBuffer) -> Result<Option<Arrival>, Lost> {
        let Some((space, range)) = self.choose() else {
            return if self.only_wanted { Ok(None) } else { Err(self.exhausted()) };
        };
        self.read(space, range, data).map_err(|e| Lost { space, range, reason: Box::new(e) })?;
        Ok(Some((space, range)))
    }

    fn soon(&mut self, space: Space, pages: &RangeSet) {
        pages.iter().for_each(|range| self.order.soon(space, range));
    }

    fn hurry(&mut self) {
        self.only_wanted = false;
    }
}
