//! Where pages are read from: the running tree, the stopped one, or a copy that was made in the pause.

use super::Objects;
use crate::image::Pid;
use crate::image::mm::PAGE;
use crate::memory::pipeline::{PageError, ReadPages};
use crate::memory::{PageBuffer, PageRange, Space};
use crate::trace::pages::{Sharing, TargetPages, read_living};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Memory of a running tree.
#[derive(Debug)]
pub struct Live<'r> {
    pub(super) mms: HashMap<Space, (Pid, &'r Sharing)>,
    pub(super) shared: Option<&'r Objects>,
    pub(super) unread: &'r Mutex<Vec<(Space, PageRange)>>,
}

impl ReadPages for Live<'_> {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        if let Some(read) = self.shared.and_then(|objects| objects.read(space, ranges, buf)) {
            return read;
        }
        let unread = |pages: &[PageRange]| {
            let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
            unread.extend(pages.iter().map(|page| (space, *page)));
        };
        let mut gone = Vec::new();
        let read = self
            .mms
            .get(&space)
            .map(|from| read_living(*from, ranges, buf, &mut |page| gone.push(PageRange::new(page, 1))));
        match read {
            Some(Ok(())) => unread(&gone),
            // It has ended.
            None | Some(Err(_)) => {
                buf.fill(0);
                unread(ranges);
            }
        }
        Ok(())
    }
}

/// Memory of a stopped tree, also by the names that rounds gave.
#[derive(Debug)]
pub struct Named<'a> {
    pages: &'a TargetPages,
    names: HashMap<Space, Space>,
}

impl<'a> Named<'a> {
    /// `pages` by the model's ids, `names` from [`Residual::names`].
    pub fn new(pages: &'a TargetPages, names: &[(Space, Option<Space>)]) -> Self {
        Self { pages, names: names.iter().filter_map(|(from, to)| Some((*from, (*to)?))).collect() }
    }
}

impl ReadPages for Named<'_> {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        self.pages.read(self.names.get(&space).copied().unwrap_or(space), ranges, buf)
    }
}

/// Contents of pages, copied in the pause to be written after it.
#[derive(Debug, Default)]
pub struct Copied {
    /// Ascending within a space, with the place in `bytes`.
    places: HashMap<Space, Vec<(PageRange, usize)>>,
    bytes: PageBuffer,
}

impl Copied {
    /// Copies the pages of a plan.
    ///
    /// # Errors
    /// A page that cannot be read.
    pub fn of(source: &dyn ReadPages, plan: &[(Space, PageRange)]) -> Result<Self, PageError> {
        const RANGES: usize = 512;
        let pages: u64 = plan.iter().map(|(_, r)| r.count).sum();
        let mut copied = Self { places: HashMap::new(), bytes: PageBuffer::of((pages * PAGE) as usize) };
        let mut at = 0;
        for part in plan.chunk_by(|a, b| a.0 == b.0).flat_map(|same| same.chunks(RANGES)) {
            let space = part[0].0;
            let ranges: Vec<PageRange> = part.iter().map(|(_, r)| *r).collect();
            let bytes: usize = ranges.iter().map(|r| r.bytes() as usize).sum();
            source.read(space, &ranges, &mut copied.bytes[at..at + bytes])?;
            let places = copied.places.entry(space).or_default();
            for range in ranges {
                places.push((range, at));
                at += range.bytes() as usize;
            }
        }
        copied.places.values_mut().for_each(|p| p.sort_unstable());
        Ok(copied)
    }
}

impl ReadPages for Copied {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        let missing =
            |page| PageError { page, source: std::io::Error::new(std::io::ErrorKind::NotFound, "it was not copied") };
        let places = self.places.get(&space).map_or(&[][..], Vec::as_slice);
        let mut rest = buf;
        for range in ranges {
            let mut page = range.first;
            while page < range.end() {
                let n = places.partition_point(|(r, _)| r.end() <= page);
                let (held, at) = *places.get(n).filter(|(r, _)| r.first <= page).ok_or_else(|| missing(page))?;
                let count = held.end().min(range.end()) - page;
                let (part, later) = rest.split_at_mut((count * PAGE) as usize);
                let from = at + ((page - held.first) * PAGE) as usize;
                part.copy_from_slice(&self.bytes[from..from + part.len()]);
                rest = later;
                page += count;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;

    #[test]
    fn copied_pages_come_back_in_any_pieces() {
        struct Numbers;
        impl ReadPages for Numbers {
            fn read(&self, _: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
                let pages = ranges.iter().flat_map(|r| r.first..r.end());
                buf.chunks_exact_mut(PAGE as usize).zip(pages).for_each(|(b, page)| b.fill(page as u8));
                Ok(())
            }
        }
        let space = Space::Mm(MmId(3));
        let plan = [(space, PageRange::new(10, 4)), (space, PageRange::new(20, 2)), (space, PageRange::new(14, 1))];
        let copied = Copied::of(&Numbers, &plan).unwrap();
        let mut buf = vec![0; 4 * PAGE as usize];
        copied.read(space, &[PageRange::new(12, 3), PageRange::new(21, 1)], &mut buf).unwrap();
        let firsts: Vec<u8> = buf.chunks_exact(PAGE as usize).map(|p| p[0]).collect();
        assert_eq!(firsts, [12, 13, 14, 21]);
        assert!(copied.read(space, &[PageRange::new(22, 1)], &mut buf[..PAGE as usize]).is_err());
        assert!(copied.read(Space::Mm(MmId(4)), &[PageRange::new(12, 1)], &mut buf[..PAGE as usize]).is_err());
    }
}
