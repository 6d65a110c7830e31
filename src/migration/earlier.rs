//! An image that the destination has already (`--base`): what a page of it holds need not travel.
//!
//! The destination digests the pages of the image before it gives its verdict, and sends the beginnings of the digests
//! ([`HINT_BYTES`] of each) behind it. The source names what it finds among them as it names what lies on the shelf
//! ([`super::shelf`]): by the whole digest, against which the destination checks what it reads from the image. Two contents
//! whose digests begin alike thus end the move before anything is handed over; they never become a wrong page.

use super::MoveError;
use super::pages::{DIGEST_BYTES, Packer, Run, What};
use crate::image::limits::FRAME_PAGES;
use crate::image::mm::PAGE;
use crate::memory::store::{PageReader, ResolvedRun, Scratch, Source, StoreError};
use crate::memory::{PageBuffer, PageRange, Space, zero};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Of each digest so much is sent ahead.
pub const HINT_BYTES: usize = 16;

/// Pages of an image that are known, at most: 4 GiB. Their digests are 16 MiB on the link.
pub const EARLIER_MAX: usize = 1 << 20;

/// The longest list of them, bytes.
pub const LIST_BYTES_MAX: u64 = (EARLIER_MAX * HINT_BYTES) as u64;

/// The beginning of a digest.
pub type Hint = [u8; HINT_BYTES];

/// The beginning of a digest.
pub fn hint(digest: &[u8; DIGEST_BYTES]) -> Hint {
    *digest.first_chunk().expect("a digest is longer")
}

/// An image that is open, and where in it is what.
#[derive(Debug)]
pub struct Earlier {
    reader: PageReader,
    /// Each within one frame.
    runs: Vec<ResolvedRun>,
    /// Number of the run, and of the page in it.
    places: HashMap<Hint, (u32, u32)>,
}

impl Earlier {
    /// Opens an image and digests its pages.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        // It may be replaced while it is read: what is read is checked each time.
        let reader = PageReader::open(dir)?.suspicious();
        let (mut runs, mut places) = (Vec::new(), HashMap::new());
        let (mut content, mut scratch) = (PageBuffer::default(), Scratch::default());
        let spaces: Vec<_> = reader.spaces().collect();
        'all: for space in spaces {
            for run in reader.runs(space)?.iter().flat_map(|run| run.by_frame(&reader)) {
                if !matches!(run.source, Source::Data { .. }) {
                    continue;
                }
                content.resize(run.range.bytes() as usize);
                reader.read_into(&run, &mut content, &mut scratch)?;
                for (n, page) in (0u32..).zip(content.chunks_exact(PAGE as usize)) {
                    places.entry(hint(blake3::hash(page).as_bytes())).or_insert((runs.len() as u32, n));
                }
                runs.push(run);
                if places.len() + FRAME_PAGES as usize > EARLIER_MAX {
                    break 'all;
                }
            }
        }
        Ok(Self { reader, runs, places })
    }

    /// What is known, for the source.
    pub fn hints(&self) -> Vec<u8> {
        self.places.keys().flatten().copied().collect()
    }

    /// Where the page lies that may have this digest: neighbours in this order share a frame, which is unpacked as a whole.
    pub fn place(&self, digest: &[u8; DIGEST_BYTES]) -> Option<(u32, u32)> {
        self.places.get(&hint(digest)).copied()
    }

    /// Reads the page that may have this digest; whether there is one. The caller checks it.
    ///
    /// # Errors
    /// The image is damaged, or cannot be read any more.
    pub fn read(
        &self,
        digest: &[u8; DIGEST_BYTES],
        content: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<bool, MoveError> {
        let Some((run, page)) = self.place(digest) else { return Ok(false) };
        let run = &self.runs[run as usize];
        let page = run.cut(PageRange::new(run.range.first + u64::from(page), 1), &self.reader);
        self.reader.read_into(&page, content, scratch)?;
        Ok(true)
    }
}

/// Adds the content of consecutive pages to a frame, named where an image has it. The caller has asked [`Packer::is_full`].
pub fn pack(known: &HashSet<Hint>, packer: &mut Packer, space: Space, first: u64, content: &[u8]) {
    for (is_zero, places) in zero::runs(content) {
        let mut at = first + places.start as u64;
        if is_zero {
            packer.note(Run::new(space, PageRange::new(at, places.len() as u64), What::Zero));
            continue;
        }
        let mut rest = &content[places.start * PAGE as usize..places.end * PAGE as usize];
        let digests: Vec<[u8; DIGEST_BYTES]> =
            rest.chunks_exact(PAGE as usize).map(|page| *blake3::hash(page).as_bytes()).collect();
        let is_known = |digest: &[u8; DIGEST_BYTES]| known.contains(&hint(digest));
        for same in digests.chunk_by(|a, b| is_known(a) == is_known(b)) {
            let range = PageRange::new(at, same.len() as u64);
            let (content, later) = rest.split_at(range.bytes() as usize);
            match is_known(&same[0]) {
                true => packer.content(Run::new(space, range, What::Named), same.as_flattened()),
                false => packer.content(Run::new(space, range, What::Data), content),
            }
            (at, rest) = (range.end(), later);
        }
    }
}

/// What came of [`Earlier::hints`].
///
/// # Errors
/// In words, what is wrong with it.
pub fn read_hints(bytes: &[u8]) -> Result<impl Iterator<Item = Hint> + '_, String> {
    let (hints, rest) = bytes.as_chunks::<HINT_BYTES>();
    match rest.is_empty() {
        true => Ok(hints.iter().copied()),
        false => Err(format!("{} bytes are no list of digests", bytes.len())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image::MmId;
    use crate::migration::protocol::{AttemptId, SpaceName};
    use crate::migration::store::Store;
    use std::fs;

    const SPACE: Space = Space::Mm(MmId(0));

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE as usize]
    }

    /// An image with pages of these contents, and zero ones; it is gone with the store.
    fn image(place: &Path, fills: &[u8]) -> (Store, std::path::PathBuf) {
        let content: Vec<u8> = fills.iter().flat_map(|fill| page(*fill)).collect();
        image_of(place, &content)
    }

    /// The same with pages as they are.
    pub fn image_of(place: &Path, content: &[u8]) -> (Store, std::path::PathBuf) {
        let mut store = Store::begin(&[place], AttemptId([3; 16]), 0, None).unwrap();
        let mut taker = store.taker();
        let range = PageRange::new(16, content.len() as u64 / PAGE);
        taker.store(Run::new(SPACE, range, What::Data), content).unwrap();
        taker.store(Run::new(SPACE, PageRange::new(range.end(), 9), What::Zero), &[]).unwrap();
        drop(taker);
        let names = [SpaceName { sent_as: SPACE.into(), model: Some(SPACE.into()), cow_parent: None }];
        let path = store.finish(&crate::image::tests::sample(), &names).unwrap().path().to_owned();
        (store, path)
    }

    fn read(earlier: &Earlier, fill: u8) -> Result<Option<Vec<u8>>, MoveError> {
        let mut content = page(0);
        Ok(earlier
            .read(blake3::hash(&page(fill)).as_bytes(), &mut content, &mut Scratch::default())?
            .then_some(content))
    }

    #[test]
    fn what_an_image_has_is_known_and_read() {
        let place = tempfile::tempdir().unwrap();
        let (_store, path) = image(place.path(), &[1, 2, 1, 3, 2, 200]);
        let earlier = Earlier::open(&path).unwrap();
        let mut hints: Vec<_> = read_hints(&earlier.hints()).unwrap().collect();
        let mut wanted: Vec<_> = [1, 2, 3, 200].map(|fill| hint(blake3::hash(&page(fill)).as_bytes())).into();
        hints.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(hints, wanted, "each content once, and no zero page");
        for fill in [1, 200, 3, 2, 1] {
            assert_eq!(read(&earlier, fill).unwrap().unwrap(), page(fill));
        }
        assert!(read(&earlier, 4).unwrap().is_none());
        assert!(read_hints(&earlier.hints()[1..]).is_err());
    }

    #[test]
    fn frames_that_take_turns_are_unpacked_once() {
        let place = tempfile::tempdir().unwrap();
        let fills: Vec<u8> = (1..=250).collect();
        let (_store, path) = image(place.path(), &fills);
        let earlier = Earlier::open(&path).unwrap();
        let (mut content, mut scratch) = (page(0), Scratch::default());
        for fill in (0..62).flat_map(|n| [1 + n, 65 + n, 129 + n, 193 + n]).filter(|fill| *fill <= 250) {
            assert!(earlier.read(blake3::hash(&page(fill)).as_bytes(), &mut content, &mut scratch).unwrap());
            assert_eq!(content, page(fill));
        }
        assert_eq!(scratch.frames_read(), 4, "of 64 pages each");
    }

    #[test]
    fn an_image_that_is_damaged_or_missing_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let (_store, path) = image(place.path(), &[1, 2, 3, 4]);
        let earlier = Earlier::open(&path).unwrap();
        let pages = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| fs::metadata(path).unwrap().len() == 4 * PAGE);
        let pages = pages.expect("a file of the four pages as they are");
        let mut bytes = fs::read(&pages).unwrap();
        bytes[PAGE as usize + 9] ^= 1;
        fs::write(&pages, bytes).unwrap();
        assert!(read(&earlier, 2).is_err(), "also after it was opened");
        assert!(Earlier::open(&path).is_err() && Earlier::open(place.path()).is_err());
    }
}
