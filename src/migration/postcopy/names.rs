//! Pages of the rest that came as their digests: an image that is here has them ([`crate::migration::earlier`]), or what trees share
//! here ([`crate::migration::common_pages`]).
//!
//! The image is opened beside the service of faults, which takes as long as all of its pages take to be digested. What is named
//! until then waits, and so does whoever needs it; what was named and cannot be found is asked for anew, over new links, on
//! which the source names nothing.

use crate::image::mm::PAGE;
use crate::memory::store::Scratch;
use crate::memory::{PageRange, Space};
use crate::migration::common_pages::shelf::{self, CommonShelf};
use crate::migration::earlier::Earlier;
use crate::migration::pages::{DIGEST_BYTES, Run};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Consecutive pages that are read in one go when nobody waits for them.
const BATCH: usize = 32;

type Digest = [u8; DIGEST_BYTES];

/// An image, while it is being opened, and then.
#[derive(Debug)]
enum Image {
    /// There is none, or it cannot be opened.
    None,
    Opening(JoinHandle<Option<Earlier>>),
    Open(Box<Earlier>),
    /// It is no image: trees share this.
    Common(CommonShelf),
}

/// Content was named that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unknown;

/// Pages with their content.
pub(super) type Found = (Space, PageRange, Vec<u8>);

/// Pages that were named.
#[derive(Debug)]
pub(super) struct Names {
    image: Image,
    scratch: Scratch,
    waiting: BTreeMap<(Space, u64), Digest>,
}

impl Names {
    /// Begins to open an image.
    pub(super) fn of(dir: Option<PathBuf>) -> Self {
        let open = |dir: PathBuf| {
            Earlier::open(&dir).inspect_err(|error| tracing::warn!(%error, dir = %dir.display(), "no image")).ok()
        };
        let warn = |error: &std::io::Error| tracing::warn!(%error, "nothing is found of what trees share");
        if let Some(dir) = dir.as_deref().filter(|dir| shelf::is_one(dir)) {
            let common = CommonShelf::open(dir).inspect_err(warn);
            let image = common.map_or(Image::None, Image::Common);
            return Self { image, scratch: Scratch::default(), waiting: BTreeMap::new() };
        }
        let opening = dir.map(|dir| std::thread::Builder::new().spawn(move || open(dir)));
        let image = opening.map_or(Image::None, |thread| thread.map_or(Image::None, Image::Opening));
        Self { image, scratch: Scratch::default(), waiting: BTreeMap::new() }
    }

    /// These pages were named.
    pub(super) fn add(&mut self, run: Run, digests: &[u8]) {
        let (digests, _) = digests.as_chunks::<DIGEST_BYTES>();
        self.waiting
            .extend((run.range.first..run.range.end()).map(|page| (run.space, page)).zip(digests.iter().copied()));
    }

    /// Pages that were named and not given yet.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Space, PageRange)> + '_ {
        self.waiting.keys().map(|(space, page)| (*space, PageRange::new(*page, 1)))
    }

    /// The next of them: first what is wanted. `None`: there are none, or the image is not open yet.
    ///
    /// # Errors
    /// One of them is not in the image: nothing that was named waits any more.
    pub(super) fn next(&mut self, wanted: impl Iterator<Item = (Space, PageRange)>) -> Result<Option<Found>, Unknown> {
        if self.waiting.is_empty() || !self.is_open() {
            return Ok(None);
        }
        let named = |(space, pages): (Space, PageRange)| {
            let mut named = self.waiting.range((space, pages.first)..(space, pages.end()));
            named.next().map(|(place, _)| (*place, 1))
        };
        let first = || self.waiting.keys().next().map(|place| (*place, BATCH));
        let Some(((space, first), most)) = wanted.filter_map(named).next().or_else(first) else { return Ok(None) };
        let count = (first..).take(most).take_while(|page| self.waiting.contains_key(&(space, *page))).count();
        let range = PageRange::new(first, count as u64);
        let mut content = vec![0; range.bytes() as usize];
        for (page, content) in (first..).zip(content.chunks_exact_mut(PAGE as usize)) {
            let digest = self.waiting.remove(&(space, page)).ok_or(Unknown)?;
            if !self.read(&digest, content) {
                tracing::warn!(%space, page, "what was named is not here");
                self.waiting.clear();
                self.image = Image::None;
                return Err(Unknown);
            }
        }
        Ok(Some((space, range, content)))
    }

    /// Whether it is known by now what is in the image.
    fn is_open(&mut self) -> bool {
        match std::mem::replace(&mut self.image, Image::None) {
            Image::Opening(thread) if !thread.is_finished() => {
                self.image = Image::Opening(thread);
                return false;
            }
            Image::Opening(thread) => {
                let opened = thread.join().ok().flatten();
                self.image = opened.map_or(Image::None, |image| Image::Open(Box::new(image)));
            }
            image => self.image = image,
        }
        true
    }

    /// Never a wrong page, whatever has happened to the image.
    fn read(&mut self, digest: &Digest, content: &mut [u8]) -> bool {
        let is_read = match &self.image {
            Image::Open(image) => matches!(image.read(digest, content, &mut self.scratch), Ok(true)),
            Image::Common(common) => matches!(common.read(digest, content), Ok(true)),
            Image::None | Image::Opening(_) => false,
        };
        is_read && *blake3::hash(content).as_bytes() == *digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use crate::migration::earlier::{hint, pack, tests::image_of};
    use crate::migration::pages::{Packer, What, unpack};
    use std::collections::HashSet;
    use std::time::{Duration, Instant};

    const SPACE: Space = Space::Mm(MmId(4));

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE as usize]
    }

    fn named(names: &mut Names, first: u64, fills: &[u8]) {
        let digests: Vec<u8> = fills.iter().flat_map(|fill| *blake3::hash(&page(*fill)).as_bytes()).collect();
        names.add(Run::new(SPACE, PageRange::new(first, fills.len() as u64), What::Named), &digests);
    }

    fn next(names: &mut Names, wanted: &[PageRange]) -> Result<Option<Found>, Unknown> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match names.next(wanted.iter().map(|range| (SPACE, *range))) {
                Ok(None) if names.waiting().next().is_some() && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                found => return found,
            }
        }
    }

    #[test]
    fn what_is_wanted_comes_first_and_all_of_it_once() {
        let place = tempfile::tempdir().unwrap();
        let (_store, path) = image_of(place.path(), &[page(1), page(2), page(3)].concat());
        let mut names = Names::of(Some(path));
        named(&mut names, 10, &[1, 2, 3, 1, 1]);
        named(&mut names, 100, &[3]);
        assert_eq!(names.waiting().count(), 6);
        let wanted = [PageRange::new(50, 10), PageRange::new(96, 8), PageRange::new(10, 1)];
        assert_eq!(next(&mut names, &wanted), Ok(Some((SPACE, PageRange::new(100, 1), page(3)))));
        let all = [1, 2, 3, 1, 1].map(page).concat();
        assert_eq!(next(&mut names, &wanted[..1]), Ok(Some((SPACE, PageRange::new(10, 5), all))));
        assert_eq!(next(&mut names, &wanted), Ok(None));
    }

    #[test]
    fn what_is_not_in_the_image_is_said_and_nothing_waits_for_it() {
        let place = tempfile::tempdir().unwrap();
        let (_store, path) = image_of(place.path(), &[page(1), page(2)].concat());
        for dir in [Some(path.clone()), Some(place.path().join("missing")), None] {
            let mut names = Names::of(dir);
            named(&mut names, 10, &[9, 1]);
            assert_eq!(next(&mut names, &[]), Err(Unknown));
            assert_eq!(names.waiting().count(), 0);
        }
        // Damaged after it was opened.
        let mut names = Names::of(Some(path.clone()));
        while !names.is_open() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut files = std::fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path());
        let pages = files.find(|path| path.metadata().unwrap().len() == 2 * PAGE).expect("both pages as they are");
        std::fs::write(pages, vec![7; 2 * PAGE as usize]).unwrap();
        named(&mut names, 11, &[2]);
        assert_eq!(next(&mut names, &[]), Err(Unknown));
    }

    #[test]
    fn what_an_image_has_is_named_and_the_rest_is_sent() {
        let known: HashSet<_> = [1, 2].map(|fill| hint(blake3::hash(&page(fill)).as_bytes())).into();
        let mut packer = Packer::new(None);
        pack(&known, &mut packer, SPACE, 20, &[page(1), page(2), page(9), page(0), page(1)].concat());
        assert_eq!((packer.unsent().named, packer.unsent().zero), (3, 1));
        let mut found = Vec::new();
        unpack(packer.take(), &mut Vec::new(), &mut |run, content| found.push((run.range, run.what, content.len())))
            .unwrap();
        let expected = [
            (PageRange::new(20, 2), What::Named, 2 * DIGEST_BYTES),
            (PageRange::new(22, 1), What::Data, PAGE as usize),
            (PageRange::new(23, 1), What::Zero, 0),
            (PageRange::new(24, 1), What::Named, DIGEST_BYTES),
        ];
        assert_eq!(found, expected);
    }
}
