//! The page index (`index.bin`): which pages an image holds, and where.
//!
//! ```text
//! magic "MIGRPIDX" | version u16 | reserved u16 | files u32 | frames u32 | spaces u32
//! file:  bytes u64
//! frame: offset u64 | check u64 | stored u32 | pages u32 | file u16 | packing u16 | reserved u32
//! space: kind u16 | parent kind u16 (0xffff = none) | id u32 | parent id u32 | forked from u32 (2^32-1 = none) |
//!        identity 2 x u64 | runs u64
//! run:   first page u64 | count and kind u64 (count << 2 | kind) | frame u32 | page in frame u32
//! check: xxh3-64 of everything before
//! ```
//! All integers little-endian. The manifest has the BLAKE3 of the whole file. A decoded index is sound: every reference
//! is in range and every list in order.

use super::StoreError;
use crate::image::{MmId, ShmemId, limits, mm::PAGE};
use crate::memory::{PageRange, Space};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: [u8; 8] = *b"MIGRPIDX";
const VERSION: u16 = 1;
const NO_PARENT: u16 = 0xffff;

/// How a frame lies in its page file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is, at a multiple of the page size.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// A piece of a page file that is read and checked as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Number of the page file.
    pub file: u16,
    /// How it lies there.
    pub packing: Packing,
    /// Where it lies, bytes.
    pub offset: u64,
    /// Bytes in the file.
    pub stored: u32,
    /// Pages it holds.
    pub pages: u32,
    /// xxh3-64 of the stored bytes.
    pub check: u64,
}

/// What is known about a run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Content: these pages of a frame.
    Data {
        /// Position in [`Index::frames`].
        frame: u32,
        /// First page within it.
        page: u32,
    },
    /// Zeros.
    Zero,
    /// As in the parent image.
    Parent,
    /// As in the address space this one was forked from.
    Inherit,
}

/// Consecutive pages of which the same is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which pages.
    pub range: PageRange,
    /// What is known.
    pub kind: RunKind,
}

/// One space with its pages; a page in no run is a hole: never populated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceEntry {
    /// Which space.
    pub space: Space,
    /// What the engine knows it by from one dump to the next (start time and pid, device and inode); 0 = nothing.
    pub identity: [u64; 2],
    /// The space of the parent image that runs of kind `Parent` refer to.
    pub parent: Option<Space>,
    /// The address space that runs of kind `Inherit` refer to: [`crate::image::mm::Mm::cow_parent`].
    pub cow_parent: Option<MmId>,
    /// Ascending, not overlapping.
    pub runs: Vec<Run>,
}

/// The whole index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// Lengths of the page files.
    pub files: Vec<u64>,
    /// Frames of all files.
    pub frames: Vec<Frame>,
    /// Spaces, ascending.
    pub spaces: Vec<SpaceEntry>,
}

fn space_words(space: Space) -> (u16, u32) {
    match space {
        Space::Mm(id) => (0, id.0),
        Space::Shmem(id) => (1, id.0),
    }
}

fn space_of(kind: u16, id: u32) -> Result<Space, StoreError> {
    match kind {
        0 => Ok(Space::Mm(MmId(id))),
        1 => Ok(Space::Shmem(ShmemId(id))),
        _ => Err(bad("a space of an unknown kind")),
    }
}

fn bad(what: &'static str) -> StoreError {
    StoreError::Index { what }
}

impl Index {
    /// The entry of a space.
    pub fn space(&self, space: Space) -> Option<&SpaceEntry> {
        self.spaces.binary_search_by_key(&space, |s| s.space).ok().map(|n| &self.spaces[n])
    }

    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        let runs: usize = self.spaces.iter().map(|s| s.runs.len()).sum();
        let size = 32 + 8 * self.files.len() + 32 * self.frames.len() + 40 * self.spaces.len() + 24 * runs;
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        for count in [self.files.len(), self.frames.len(), self.spaces.len()] {
            out.extend_from_slice(&u32::try_from(count).expect("counts are held to 2^32 when written").to_le_bytes());
        }
        for bytes in &self.files {
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        for frame in &self.frames {
            frame.encode(&mut out);
        }
        for space in &self.spaces {
            space.encode(&mut out);
        }
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        out
    }

    /// Reads the file's content; what comes back is sound.
    ///
    /// # Errors
    /// [`StoreError::Index`] for anything that [`Index::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let (content, check) = bytes.split_last_chunk::<8>().ok_or(bad("it is cut short"))?;
        let mut input = Input(content.strip_prefix(&MAGIC).ok_or(bad("it does not start as one"))?);
        let version = input.u16()?;
        if version != VERSION {
            return Err(StoreError::IndexVersion { found: version, known: VERSION });
        }
        if xxh3_64(content) != u64::from_le_bytes(*check) {
            return Err(bad("its checksum does not match"));
        }
        input.zero(2)?;
        let (files, frames, spaces) = (input.count(8)?, input.count(32)?, input.count(40)?);
        if files > limits::PAGE_FILES {
            return Err(bad("too many page files"));
        }
        let mut index = Self::default();
        for _ in 0..files {
            index.files.push(input.u64()?);
        }
        index.frames.reserve_exact(input.at_most(frames, 32)?);
        for _ in 0..frames {
            let frame = Frame::decode(&mut input, &index.files)?;
            // In the order of the files and without overlap: readers rely on it when they join neighbours.
            if index.frames.last().is_some_and(|last| (last.file, last.end()) > (frame.file, frame.offset)) {
                return Err(bad("its frames are out of order"));
            }
            index.frames.push(frame);
        }
        for _ in 0..spaces {
            let space = SpaceEntry::decode(&mut input, &index.frames)?;
            if index.spaces.last().is_some_and(|last| last.space >= space.space) {
                return Err(bad("its spaces are out of order"));
            }
            index.spaces.push(space);
        }
        if !input.0.is_empty() {
            return Err(bad("there is something after its end"));
        }
        index.check_cow_parents()?;
        Ok(index)
    }

    /// Address spaces are forked from others of the index, in chains of a sane length and never in a circle.
    fn check_cow_parents(&self) -> Result<(), StoreError> {
        // Depths that are known already; each chain is walked only up to the first of those.
        let mut depths: Vec<Option<usize>> = vec![None; self.spaces.len()];
        for start in 0..self.spaces.len() {
            let mut chain = Vec::new();
            let mut at = Some(start);
            let mut depth = 0;
            while let Some(n) = at {
                if let Some(known) = depths[n] {
                    depth = known + 1;
                    break;
                }
                chain.push(n);
                if chain.len() > limits::COW_CHAIN {
                    return Err(bad("address spaces forked from each other too often"));
                }
                at = match self.spaces[n].cow_parent {
                    None => None,
                    Some(id) => {
                        let found = self.spaces.binary_search_by_key(&Space::Mm(id), |s| s.space);
                        Some(found.map_err(|_| bad("an address space forked from one that is not there"))?)
                    }
                };
            }
            for n in chain.into_iter().rev() {
                depths[n] = Some(depth);
                depth += 1;
            }
            if depth > limits::COW_CHAIN {
                return Err(bad("address spaces forked from each other too often"));
            }
        }
        Ok(())
    }
}

impl Frame {
    /// The first byte past it in its file.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.stored)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.check.to_le_bytes());
        out.extend_from_slice(&self.stored.to_le_bytes());
        out.extend_from_slice(&self.pages.to_le_bytes());
        out.extend_from_slice(&self.file.to_le_bytes());
        let packing: u16 = match self.packing {
            Packing::Raw => 0,
            Packing::Zstd => 1,
        };
        out.extend_from_slice(&packing.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    fn decode(input: &mut Input<'_>, files: &[u64]) -> Result<Self, StoreError> {
        let (offset, check, stored, pages) = (input.u64()?, input.u64()?, input.u32()?, input.u32()?);
        let file = input.u16()?;
        let packing = match input.u16()? {
            0 => Packing::Raw,
            1 => Packing::Zstd,
            _ => return Err(bad("a frame of an unknown packing")),
        };
        input.zero(4)?;
        let length = *files.get(usize::from(file)).ok_or(bad("a frame in a file that is not there"))?;
        if pages == 0 || pages > limits::FRAME_PAGES {
            return Err(bad("a frame with an impossible number of pages"));
        }
        if offset.checked_add(u64::from(stored)).is_none_or(|end| end > length) {
            return Err(bad("a frame past the end of its file"));
        }
        let raw = u64::from(pages) * PAGE;
        let fits = match packing {
            Packing::Raw => u64::from(stored) == raw && offset % PAGE == 0,
            Packing::Zstd => u64::from(stored) < raw && stored > 0,
        };
        if !fits {
            return Err(bad("a frame of an impossible length"));
        }
        Ok(Self { file, packing, offset, stored, pages, check })
    }
}

impl SpaceEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, id) = space_words(self.space);
        let (parent_kind, parent_id) = self.parent.map_or((NO_PARENT, 0), space_words);
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&parent_kind.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&parent_id.to_le_bytes());
        out.extend_from_slice(&self.cow_parent.map_or(u32::MAX, |id| id.0).to_le_bytes());
        out.extend_from_slice(&self.identity[0].to_le_bytes());
        out.extend_from_slice(&self.identity[1].to_le_bytes());
        out.extend_from_slice(&(self.runs.len() as u64).to_le_bytes());
        for run in &self.runs {
            let (kind, frame, page) = match run.kind {
                RunKind::Data { frame, page } => (0, frame, page),
                RunKind::Zero => (1, 0, 0),
                RunKind::Parent => (2, 0, 0),
                RunKind::Inherit => (3, 0, 0),
            };
            out.extend_from_slice(&run.range.first.to_le_bytes());
            out.extend_from_slice(&(run.range.count << 2 | kind).to_le_bytes());
            out.extend_from_slice(&frame.to_le_bytes());
            out.extend_from_slice(&page.to_le_bytes());
        }
    }

    fn decode(input: &mut Input<'_>, frames: &[Frame]) -> Result<Self, StoreError> {
        let (kind, parent_kind) = (input.u16()?, input.u16()?);
        let (id, parent_id) = (input.u32()?, input.u32()?);
        let cow_parent = Some(input.u32()?).filter(|id| *id != u32::MAX).map(MmId);
        let space = space_of(kind, id)?;
        let parent = match parent_kind {
            NO_PARENT if parent_id == 0 => None,
            kind => Some(space_of(kind, parent_id)?),
        };
        let identity = [input.u64()?, input.u64()?];
        let count = usize::try_from(input.u64()?).map_err(|_| bad("it is cut short"))?;
        let mut runs: Vec<Run> = Vec::with_capacity(input.at_most(count, 24)?);
        let mut end = 0;
        for _ in 0..count {
            let run = Run::decode(input, frames)?;
            if run.range.first < end {
                return Err(bad("its runs are out of order"));
            }
            if run.kind == RunKind::Parent && parent.is_none() {
                return Err(bad("pages of a parent that is not named"));
            }
            if run.kind == RunKind::Inherit && cow_parent.is_none() {
                return Err(bad("inherited pages without an address space they come from"));
            }
            end = run.range.end();
            runs.push(run);
        }
        Ok(Self { space, identity, parent, cow_parent, runs })
    }
}

impl Run {
    /// The part of the run with these pages, which are all in it.
    pub fn cut(&self, range: PageRange) -> Self {
        let skipped = u32::try_from(range.first - self.range.first).unwrap_or(u32::MAX);
        let kind = match self.kind {
            RunKind::Data { frame, page } => RunKind::Data { frame, page: page + skipped },
            other => other,
        };
        Self { range, kind }
    }

    fn decode(input: &mut Input<'_>, frames: &[Frame]) -> Result<Self, StoreError> {
        let (first, word, frame, page) = (input.u64()?, input.u64()?, input.u32()?, input.u32()?);
        let count = word >> 2;
        if count == 0 || count > limits::PAGE_NUMBERS || first > limits::PAGE_NUMBERS - count {
            return Err(bad("a run of impossible pages"));
        }
        let kind = match word & 3 {
            0 => {
                let held = frames.get(frame as usize).ok_or(bad("a run in a frame that is not there"))?.pages;
                if u64::from(page) + count > u64::from(held) {
                    return Err(bad("a run past the end of its frame"));
                }
                RunKind::Data { frame, page }
            }
            _ if frame != 0 || page != 0 => return Err(bad("a run without content has a place")),
            1 => RunKind::Zero,
            2 => RunKind::Parent,
            _ => RunKind::Inherit,
        };
        Ok(Self { range: PageRange::new(first, count), kind })
    }
}

/// A cursor over the content.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(bad("it is cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, StoreError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, StoreError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, StoreError> {
        self.take().map(u64::from_le_bytes)
    }

    fn zero(&mut self, n: usize) -> Result<(), StoreError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(bad("it is cut short"))?;
        self.0 = rest;
        if head.iter().all(|b| *b == 0) { Ok(()) } else { Err(bad("reserved bytes are not zero")) }
    }

    /// A count of records of `size` bytes each that may still follow.
    fn count(&mut self, size: usize) -> Result<usize, StoreError> {
        let count = self.u32()? as usize;
        self.at_most(count, size)
    }

    fn at_most(&self, count: usize, size: usize) -> Result<usize, StoreError> {
        if count.checked_mul(size).is_none_or(|bytes| bytes > self.0.len()) {
            return Err(bad("it is cut short"));
        }
        Ok(count)
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
