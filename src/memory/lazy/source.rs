//! Where pages come from that arrive late.

use super::order::{FAR_PAGES, Fault, Order};
use super::stalls::Waits;
use crate::image::mm::PAGE;
use crate::memory::store::{PageReader, Scratch, StoreError};
use crate::memory::{PageRange, RangeSet, Space};
use std::os::fd::BorrowedFd;

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
    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Arrival>, Lost>;

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

/// The page store of an image.
#[derive(Debug)]
pub struct StoreSource {
    pages: PageReader,
    order: Order,
    scratch: Scratch,
    /// Only what somebody waits for is given.
    pub only_wanted: bool,
}

impl StoreSource {
    /// Reads in this order.
    pub fn new(pages: PageReader, order: Order) -> Self {
        Self { pages: pages.suspicious(), order, scratch: Scratch::default(), only_wanted: false }
    }

    /// Asked for pages although all were given: a defect of this program.
    fn exhausted(&self) -> Lost {
        let range = PageRange::new(0, 0);
        Lost { space: Space::Mm(crate::image::MmId(0)), range, reason: "the image has no more of them".into() }
    }

    fn read(&mut self, space: Space, range: PageRange, data: &mut Vec<u8>) -> Result<(), StoreError> {
        data.clear();
        data.resize(range.bytes() as usize, 0);
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

    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Arrival>, Lost> {
        let asked = self.order.next_wanted().or_else(|| self.order.next_soon(FAR_PAGES));
        let next = if self.only_wanted { asked } else { asked.or_else(|| self.order.next_pages()) };
        let Some(next) = next else { return if self.only_wanted { Ok(None) } else { Err(self.exhausted()) } };
        let (space, range) = (next.space, next.range);
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
