//! How pages travel: frames of many runs, so that scattered pages do not cost a frame each.
//!
//! ```text
//! | runs: u32 | packing: u8 | spare: 3 | data bytes: u32 | runs x { first page: u64, pages: u32, space: u32, space kind: u8,
//! what: u8, spare: 6 } | data |
//! ```
//! Little-endian. `data` holds the content of the runs that have content, one behind the other, as it is or as one zstd
//! frame. Zero pages and pages that are gone are named, not sent; of pages whose content the destination has already, `data` holds
//! the digest. The highest bit of `what` marks content that is put on the shelf; see [`super::shelf`].

use crate::image::{MmId, ShmemId, limits, mm::PAGE};
use crate::memory::{PageRange, Space, zero};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Content of one frame, unpacked, at most (bytes).
pub const DATA_BYTES_MAX: usize = 1 << 20;

/// Runs of one frame, at most.
pub const RUNS_MAX: usize = 1 << 16;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    runs: U32,
    packing: u8,
    spare: [u8; 3],
    data_bytes: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    first: U64,
    pages: U32,
    space: U32,
    space_kind: u8,
    what: u8,
    spare: [u8; 6],
}

/// What a run says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Its content follows.
    Data,
    /// It is zero.
    Zero,
    /// It is gone since it was last sent.
    Hole,
    /// It is as in the address space this one was forked from.
    Inherit,
    /// Its content follows, and is kept for deltas; see [`super::bases`].
    Keep,
    /// What has changed in it follows, XORed with what was kept.
    Delta,
    /// The digest of its content follows, which is on the shelf; see [`super::shelf`].
    Named,
}

/// Bytes of a digest (BLAKE3).
pub const DIGEST_BYTES: usize = 32;

/// In an [`Entry`]'s `what`: the content goes on the shelf.
const SHELVE: u8 = 0x80;

impl What {
    /// Bytes follow, as many as the pages have.
    pub fn has_content(self) -> bool {
        matches!(self, Self::Data | Self::Keep | Self::Delta)
    }

    /// How many bytes follow for each page.
    fn bytes_a_page(self) -> u64 {
        match self {
            Self::Named => DIGEST_BYTES as u64,
            _ if self.has_content() => PAGE,
            _ => 0,
        }
    }
}

/// Pages of one space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub space: Space,
    /// Which.
    pub range: PageRange,
    /// What about them.
    pub what: What,
    /// The destination keeps their content, to be named by digest later.
    pub shelve: bool,
}

impl Run {
    /// A run of which nothing is kept.
    pub fn new(space: Space, range: PageRange, what: What) -> Self {
        Self { space, range, what, shelve: false }
    }
}

/// Pages that were named instead of sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unsent {
    /// They are zero.
    pub zero: u64,
    /// The destination has had their content before.
    pub named: u64,
}

/// Why bytes are no frame of pages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of pages: {0}")]
pub struct PagesError(&'static str);

/// Collects runs and their content until they fill a frame.
#[derive(Debug, Default)]
pub struct Packer {
    entries: Vec<Entry>,
    data: Vec<u8>,
    level: Option<i32>,
    frame: Vec<u8>,
    unsent: Unsent,
}

impl Packer {
    /// A packer; `level` = zstd level, `None` = as they are.
    pub fn new(level: Option<i32>) -> Self {
        Self { level, ..Self::default() }
    }

    /// From this frame on it is packed like this.
    pub fn set_level(&mut self, level: Option<i32>) {
        self.level = level;
    }

    /// Nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of content that wait, as they are.
    pub fn content_bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// Pages that were named so far, in all frames.
    pub fn unsent(&self) -> Unsent {
        self.unsent
    }

    /// No further batch of `bytes` should be added: take the frame first.
    pub fn is_full(&self, bytes: usize) -> bool {
        self.data.len() + bytes > DATA_BYTES_MAX || self.entries.len() + bytes / PAGE as usize + 1 > RUNS_MAX
    }

    /// Adds the content of consecutive pages; zero pages are found here. The caller has asked [`Packer::is_full`].
    pub fn add(&mut self, space: Space, first: u64, content: &[u8]) {
        for (is_zero, pages) in zero::runs(content) {
            let range = PageRange::new(first + pages.start as u64, pages.len() as u64);
            if is_zero {
                self.note(Run::new(space, range, What::Zero));
            } else {
                let content = &content[pages.start * PAGE as usize..pages.end * PAGE as usize];
                self.content(Run::new(space, range, What::Data), content);
            }
        }
    }

    /// Adds a run with its content. The caller has asked [`Packer::is_full`].
    pub fn content(&mut self, run: Run, content: &[u8]) {
        self.note(run);
        self.data.extend_from_slice(content);
    }

    /// Says something about pages without their content.
    pub fn note(&mut self, run: Run) {
        match run.what {
            What::Zero => self.unsent.zero += run.range.count,
            What::Named => self.unsent.named += run.range.count,
            _ => {}
        }
        for piece in run.range.pieces(u32::MAX.into()) {
            let (space_kind, space) = match run.space {
                Space::Mm(MmId(id)) => (0, id),
                Space::Shmem(ShmemId(id)) => (1, id),
            };
            self.entries.push(Entry {
                first: piece.first.into(),
                pages: (piece.count as u32).into(),
                space: space.into(),
                space_kind,
                what: run.what as u8 | if run.shelve { SHELVE } else { 0 },
                spare: [0; 6],
            });
        }
    }

    /// The frame of all that was added; the packer is empty afterwards.
    pub fn take(&mut self) -> &[u8] {
        let packed = self.level.and_then(|level| zstd::bulk::compress(&self.data, level).ok());
        // What does not get smaller travels as it is.
        let packed = packed.filter(|packed| packed.len() < self.data.len());
        let head = Head {
            runs: (self.entries.len() as u32).into(),
            packing: packed.is_some().into(),
            spare: [0; 3],
            data_bytes: (self.data.len() as u32).into(),
        };
        self.frame.clear();
        self.frame.extend_from_slice(head.as_bytes());
        self.frame.extend_from_slice(self.entries.as_bytes());
        self.frame.extend_from_slice(packed.as_deref().unwrap_or(&self.data));
        self.entries.clear();
        self.data.clear();
        &self.frame
    }
}

/// Of a frame of ours: the pages it says something about, and bytes of content in it, unpacked.
pub fn covered(frame: &[u8]) -> (Vec<(Space, PageRange)>, u64) {
    let Ok((head, rest)) = Head::read_from_prefix(frame) else { return (Vec::new(), 0) };
    let (mut pages, mut content) = (Vec::new(), 0);
    for entry in rest.chunks_exact(size_of::<Entry>()).take(head.runs.get() as usize) {
        let Ok(entry) = Entry::read_from_bytes(entry) else { break };
        let id = entry.space.get();
        let space = if entry.space_kind == 0 { Space::Mm(MmId(id)) } else { Space::Shmem(ShmemId(id)) };
        pages.push((space, PageRange::new(entry.first.get(), entry.pages.get().into())));
        if entry.what & !SHELVE == What::Data as u8 {
            content += u64::from(entry.pages.get()) * PAGE;
        }
    }
    (pages, content)
}

/// Reads a frame and hands out its runs, in order, with their content (empty for runs without).
///
/// # Errors
/// Bytes that are no such frame; nothing has been handed out then, except runs before one that is out of bounds.
pub fn unpack(frame: &[u8], buffer: &mut Vec<u8>, each: &mut dyn FnMut(Run, &[u8])) -> Result<(), PagesError> {
    let (head, rest) = Head::read_from_prefix(frame).map_err(|_| PagesError("it is too short"))?;
    let runs = head.runs.get() as usize;
    if runs > RUNS_MAX || head.spare != [0; 3] {
        return Err(PagesError("its head makes no sense"));
    }
    let (entries, packed) =
        <[Entry]>::ref_from_prefix_with_elems(rest, runs).map_err(|_| PagesError("its list of runs is cut short"))?;
    let data_bytes = head.data_bytes.get() as usize;
    if data_bytes > DATA_BYTES_MAX {
        return Err(PagesError("it has too much content"));
    }
    let data = match head.packing {
        0 if packed.len() == data_bytes => packed,
        1 => {
            buffer.resize(data_bytes, 0);
            match zstd::bulk::decompress_to_buffer(packed, buffer.as_mut_slice()) {
                Ok(count) if count == data_bytes => buffer.as_slice(),
                _ => return Err(PagesError("its content cannot be unpacked")),
            }
        }
        _ => return Err(PagesError("its content has the wrong length")),
    };
    let runs = entries.iter().map(read_entry).collect::<Result<Vec<_>, _>>()?;
    // Less than 2^32 pages a run, and few runs: no overflow.
    let wanted: u64 = runs.iter().map(|run| run.range.count * run.what.bytes_a_page()).sum();
    if wanted != data_bytes as u64 {
        return Err(PagesError("runs and content differ in length"));
    }
    let mut rest = data;
    for run in runs {
        let length = (run.range.count * run.what.bytes_a_page()) as usize;
        let (content, later) = rest.split_at(length);
        each(run, content);
        rest = later;
    }
    Ok(())
}

fn read_entry(entry: &Entry) -> Result<Run, PagesError> {
    let id = entry.space.get();
    let space = match entry.space_kind {
        0 => Space::Mm(MmId(id)),
        1 => Space::Shmem(ShmemId(id)),
        _ => return Err(PagesError("a run of an unknown kind of space")),
    };
    let shelve = entry.what & SHELVE != 0;
    let what = match entry.what & !SHELVE {
        0 => What::Data,
        1 => What::Zero,
        2 => What::Hole,
        3 => What::Inherit,
        4 => What::Keep,
        5 => What::Delta,
        6 => What::Named,
        _ => return Err(PagesError("a run of an unknown kind")),
    };
    let range = PageRange::new(entry.first.get(), entry.pages.get().into());
    let in_bounds = range.first < limits::PAGE_NUMBERS && range.count <= limits::PAGE_NUMBERS - range.first;
    if shelve && !what.has_content() {
        return Err(PagesError("a run without content that is to be kept"));
    }
    if !in_bounds || range.is_empty() || entry.spare != [0; 6] {
        return Err(PagesError("a run that is out of bounds"));
    }
    Ok(Run { space, range, what, shelve })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unpacked(frame: &[u8]) -> Result<Vec<(Run, Vec<u8>)>, PagesError> {
        let mut found = Vec::new();
        unpack(frame, &mut Vec::new(), &mut |run, content| found.push((run, content.to_vec())))?;
        Ok(found)
    }

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE as usize]
    }

    #[test]
    fn zeros_are_named_and_content_is_sent() {
        for level in [None, Some(1)] {
            let mut packer = Packer::new(level);
            let space = Space::Mm(MmId(3));
            packer.add(space, 100, &[page(1), page(0), page(0), page(2)].concat());
            packer.note(Run::new(Space::Shmem(ShmemId(1)), PageRange::new(7, 1 << 40), What::Hole));
            let frame = packer.take().to_vec();
            assert!(packer.is_empty());
            let found = unpacked(&frame).unwrap();
            let data: Vec<_> = found.iter().filter(|(run, _)| run.what == What::Data).collect();
            assert_eq!(data.len(), 2);
            assert_eq!((data[0].0.range, &data[0].1), (PageRange::new(100, 1), &page(1)));
            assert_eq!((data[1].0.range, &data[1].1), (PageRange::new(103, 1), &page(2)));
            assert!(found.iter().any(|(run, _)| run.what == What::Zero && run.range == PageRange::new(101, 2)));
            let holes: u64 =
                found.iter().filter(|(run, _)| run.what == What::Hole).map(|(run, _)| run.range.count).sum();
            assert_eq!(holes, 1 << 40, "long runs are cut into pieces");
            assert_eq!(level.is_some(), frame.len() < 2 * PAGE as usize, "compressed or not");
        }
    }

    #[test]
    fn a_full_frame_fits_its_kind() {
        let mut packer = Packer::new(None);
        let mut pages = 0;
        while !packer.is_full(2 * PAGE as usize) {
            packer.add(Space::Mm(MmId(0)), pages * 10, &[page(1), page(0)].concat());
            pages += 1;
        }
        let limit = crate::transport::frame::limit(crate::transport::FrameKind::PAGES).unwrap() as usize;
        assert!(packer.take().len() <= limit);
        assert!(DATA_BYTES_MAX + RUNS_MAX * size_of::<Entry>() + size_of::<Head>() <= limit);
    }

    #[test]
    fn lies_are_refused() {
        let mut packer = Packer::new(None);
        packer.add(Space::Mm(MmId(0)), 5, &page(1));
        let frame = packer.take().to_vec();
        let with = |at: usize, value: u8| {
            let mut frame = frame.clone();
            frame[at] = value;
            unpacked(&frame).unwrap_err().to_string()
        };
        assert!(with(0, 2).contains("wrong length"));
        assert!(with(4, 1).contains("unpacked"));
        assert!(with(4, 9).contains("wrong length"));
        assert!(with(12 + 7, 0xff).contains("out of bounds"), "page number");
        assert!(with(12 + 8, 2).contains("differ in length"), "page count");
        assert!(with(12 + 16, 9).contains("kind of space"));
        assert!(with(12 + 17, 9).contains("unknown kind"));
        assert!(unpacked(&frame[..frame.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            pages in proptest::collection::vec((0u64..1000, 0u8..3, proptest::option::of(any::<u8>())), 0..40),
            level in proptest::option::of(1i32..3),
        ) {
            let mut packer = Packer::new(level);
            for (first, _, fill) in &pages {
                packer.add(Space::Mm(MmId(1)), *first, &page(fill.unwrap_or(0)));
            }
            let found = unpacked(packer.take()).unwrap();
            prop_assert_eq!(found.len(), pages.len());
            for ((first, _, fill), (run, content)) in pages.iter().zip(&found) {
                prop_assert_eq!(run.range, PageRange::new(*first, 1));
                match fill.filter(|fill| *fill != 0) {
                    Some(fill) => prop_assert_eq!(content, &page(fill)),
                    None => prop_assert_eq!(run.what, What::Zero),
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), runs in 0u8..4) {
            let mut bytes = bytes;
            if bytes.len() > 12 {
                let packing = bytes[4] % 2;
                bytes[..8].copy_from_slice(&[runs, 0, 0, 0, packing, 0, 0, 0]);
            }
            let _ = unpacked(&bytes);
        }
    }
}
