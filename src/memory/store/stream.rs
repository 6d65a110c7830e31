//! An image as one self-checking stream: `--stream`, and what crosses the network.
//!
//! ```text
//! magic "MIGRSTRM" | version u16 | reserved 6
//! frame: kind u8 | packing u8 | space kind u8 | reserved u8 | stored u32 | space u32 | ranges u32 | raw u64 | check u64
//!        | ranges x (first u64, count u64) | payload
//! ```
//! Integers little-endian. The check is the xxh3-64 of ranges and payload, seeded with that of the header and the number of
//! the frame: a frame that is damaged, lost, doubled or out of its place is found at once. The last frame has the BLAKE3 of all
//! checks, so that a stream that ends early is never taken for a whole one. Nothing refers to parent images. Frames come in
//! the order in which things became known: a page given twice has its later content, and the model may come first or last.

use super::{
    Draft, ImageDir, ImageWriter, Mark, PageLane, PageOptions, PageReader, PageSink, Scratch, Source, SpaceInfo,
    StoreError,
};
use crate::image::{
    MmId, Model, ShmemId, codec, limits,
    manifest::{HostSummary, Kind, TreeEntry},
    mm::PAGE,
};
use crate::memory::{PageRange, Space, zero};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: [u8; 8] = *b"MIGRSTRM";
const VERSION: u16 = 1;
const HEADER: usize = 32;
const PAGE_BYTES: usize = PAGE as usize;
/// Pages of one frame at most.
const FRAME_PAGES: usize = 64;
/// Ranges of one frame at most: one for each page, and for marks as many as are given.
const RANGES: u32 = 1 << 20;

const HEAD: u8 = 1;
const SPACE: u8 = 2;
const DATA: u8 = 3;
const MARK: u8 = 4;
const MODEL: u8 = 5;
const END: u8 = 6;
const RENAME: u8 = 7;

/// What can go wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Writing or reading failed.
    #[error("cannot {operation} the stream")]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// It ends before its end.
    #[error("the stream is cut short")]
    Truncated,
    /// It is something else.
    #[error("this is not an image stream")]
    Magic,
    /// A newer program wrote it.
    #[error("the stream has version {found}; this program reads up to {VERSION}")]
    Version {
        /// What it says.
        found: u16,
    },
    /// Something in it is not what a writer writes.
    #[error("the stream is damaged: {0}")]
    Damaged(&'static str),
    /// Its model cannot be decoded.
    #[error("the model in the stream cannot be read")]
    Model(#[from] codec::CodecError),
}

/// The beginning of a stream: whose image it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// What the image is good for.
    pub kind: Kind,
    /// Where it was made.
    pub host: HostSummary,
    /// The processes; empty where they are only known with the model.
    pub tree: Vec<TreeEntry>,
}

/// One thing that a stream says.
#[derive(Debug)]
pub enum Item<'a> {
    /// Whose image it is. Always the first.
    Head(Head),
    /// A space.
    Space(Space, SpaceInfo),
    /// Content of pages: ranges of a space, and their bytes one behind the other.
    Data(Space, &'a [PageRange], &'a [u8]),
    /// Something about pages other than their content.
    Mark(Space, &'a [PageRange], Mark),
    /// Everything about the first space is about the second, or about nothing.
    Rename(Space, Option<Space>),
    /// The model, decoded; not yet looked at by [`crate::image::verify::model`].
    Model(Box<Model>),
    /// The end: all of it was there.
    End,
}

fn broken(operation: &'static str) -> impl FnOnce(io::Error) -> StreamError {
    move |source| match source.kind() {
        io::ErrorKind::UnexpectedEof => StreamError::Truncated,
        _ => StreamError::Io { operation, source },
    }
}

/// A frame's header but for its check.
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    kind: u8,
    packing: u8,
    space: Option<Space>,
    ranges: u32,
    stored: u32,
    raw: u64,
}

fn space_words(space: Option<Space>) -> (u8, u32) {
    match space {
        None => (0, 0),
        Some(Space::Mm(id)) => (1, id.0),
        Some(Space::Shmem(id)) => (2, id.0),
    }
}

fn space_of(kind: u8, id: u32) -> Result<Option<Space>, StreamError> {
    match kind {
        0 if id == 0 => Ok(None),
        1 => Ok(Some(Space::Mm(MmId(id)))),
        2 => Ok(Some(Space::Shmem(ShmemId(id)))),
        _ => Err(StreamError::Damaged("a frame about a space of an unknown kind")),
    }
}

impl Header {
    fn bytes(&self) -> [u8; HEADER - 8] {
        let (space_kind, space) = space_words(self.space);
        let mut out = [0; HEADER - 8];
        out[..4].copy_from_slice(&[self.kind, self.packing, space_kind, 0]);
        out[4..8].copy_from_slice(&self.stored.to_le_bytes());
        out[8..12].copy_from_slice(&space.to_le_bytes());
        out[12..16].copy_from_slice(&self.ranges.to_le_bytes());
        out[16..24].copy_from_slice(&self.raw.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8; HEADER - 8]) -> Result<Self, StreamError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let id = word(8);
        let space = space_of(bytes[2], id)?;
        let raw = u64::from(word(16)) | u64::from(word(20)) << 32;
        Ok(Self { kind: bytes[0], packing: bytes[1], space, ranges: word(12), stored: word(4), raw })
    }

    fn check(bytes: &[u8], number: u64, ranges: &[u8], payload: &[u8]) -> u64 {
        let mut hash = Xxh3::with_seed(xxh3_64(bytes) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        hash.update(ranges);
        hash.update(payload);
        hash.digest()
    }
}

/// Writes an image as a stream. May be shared by threads; frames go out whole.
pub struct StreamWriter<W> {
    out: Mutex<Out<W>>,
    level: Option<i32>,
}

struct Out<W> {
    inner: W,
    frames: u64,
    checks: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Out<W> {
    fn frame(&mut self, header: Header, ranges: &[u8], payload: &[u8]) -> Result<(), StreamError> {
        let bytes = header.bytes();
        let check = Header::check(&bytes, self.frames, ranges, payload);
        self.frames += 1;
        self.checks.update(&check.to_le_bytes());
        self.bytes += (HEADER + ranges.len() + payload.len()) as u64;
        let parts: [&[u8]; 4] = [&bytes, &check.to_le_bytes(), ranges, payload];
        parts.iter().try_for_each(|part| self.inner.write_all(part)).map_err(broken("write"))
    }
}

impl<W: Write + Send> StreamWriter<W> {
    /// Begins a stream. `level`: zstd level of pages, `None` = as they are. `inner` should be buffered or take large writes.
    pub fn new(mut inner: W, level: Option<i32>, head: &Head) -> Result<Self, StreamError> {
        let mut start = [0; 16];
        start[..8].copy_from_slice(&MAGIC);
        start[8..10].copy_from_slice(&VERSION.to_le_bytes());
        inner.write_all(&start).map_err(broken("write"))?;
        let out = Out { inner, frames: 0, checks: blake3::Hasher::new(), bytes: start.len() as u64 };
        let writer = Self { out: Mutex::new(out), level };
        let head = serde_json::to_vec(head).map_err(|e| broken("write")(e.into()))?;
        writer.whole(HEAD, &head)?;
        Ok(writer)
    }

    fn out(&self) -> MutexGuard<'_, Out<W>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame that is one payload.
    fn whole(&self, kind: u8, payload: &[u8]) -> Result<(), StreamError> {
        let stored = u32::try_from(payload.len()).map_err(|_| StreamError::Damaged("a model of more than 4 GiB"))?;
        self.out().frame(Header { kind, stored, raw: u64::from(stored), ..Header::default() }, &[], payload)
    }

    /// Writes the model.
    pub fn model(&self, model: &Model) -> Result<(), StreamError> {
        self.whole(MODEL, &codec::encode(model)?)
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.out().bytes
    }

    /// Writes the end and gives back what was written to, flushed.
    pub fn finish(self) -> Result<W, StreamError> {
        let mut out = self.out.into_inner().unwrap_or_else(PoisonError::into_inner);
        let digest = out.checks.finalize();
        let header = Header { kind: END, stored: 32, raw: 32, ..Header::default() };
        out.frame(header, &[], digest.as_bytes())?;
        out.inner.flush().map_err(broken("write"))?;
        Ok(out.inner)
    }
}

fn range_bytes(ranges: &[PageRange]) -> Vec<u8> {
    ranges.iter().flat_map(|r| [r.first, r.count]).flat_map(u64::to_le_bytes).collect()
}

const MARKS: [Mark; 3] = [Mark::Zero, Mark::Inherit, Mark::Hole];

fn mark_frame(space: Space, mark: Mark) -> Result<Header, StreamError> {
    let packing = MARKS.iter().position(|m| *m == mark).ok_or(StreamError::Damaged("it refers to a parent image"))?;
    Ok(Header { kind: MARK, packing: packing as u8, space: Some(space), ranges: 1, ..Header::default() })
}

impl<W: Write + Send> PageSink for StreamWriter<W> {
    fn space(&self, space: Space, info: SpaceInfo) -> Result<(), StoreError> {
        let mut payload = Vec::with_capacity(20);
        payload.extend_from_slice(&info.identity[0].to_le_bytes());
        payload.extend_from_slice(&info.identity[1].to_le_bytes());
        payload.extend_from_slice(&info.cow_parent.map_or(u32::MAX, |id| id.0).to_le_bytes());
        let header = Header { kind: SPACE, space: Some(space), stored: 20, raw: 20, ..Header::default() };
        Ok(self.out().frame(header, &[], &payload)?)
    }

    fn mark(&self, space: Space, range: PageRange, mark: Mark) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        Ok(self.out().frame(mark_frame(space, mark)?, &range_bytes(&[range]), &[])?)
    }

    fn rename(&self, from: Space, to: Option<Space>) -> Result<(), StoreError> {
        let (kind, id) = space_words(to);
        let id = id.to_le_bytes();
        let header = Header { kind: RENAME, space: Some(from), stored: 5, raw: 5, ..Header::default() };
        Ok(self.out().frame(header, &[], &[kind, id[0], id[1], id[2], id[3]])?)
    }

    fn lane(&self) -> Result<Box<dyn PageLane + '_>, StoreError> {
        let packer = self.level.map(zstd::bulk::Compressor::new).transpose().map_err(broken("write"))?;
        Ok(Box::new(StreamLane { writer: self, packer, space: None, ranges: Vec::new(), pending: Vec::new() }))
    }
}

/// Gathers pages of one space into frames.
struct StreamLane<'a, W> {
    writer: &'a StreamWriter<W>,
    packer: Option<zstd::bulk::Compressor<'static>>,
    space: Option<Space>,
    ranges: Vec<PageRange>,
    pending: Vec<u8>,
}

impl<W: Write + Send> PageLane for StreamLane<'_, W> {
    fn write_run(&mut self, space: Space, first_page: u64, data: &[u8]) -> Result<(), StoreError> {
        assert!(data.len().is_multiple_of(PAGE_BYTES), "pages are written whole");
        if self.space != Some(space) {
            self.flush()?;
            self.space = Some(space);
        }
        for (zero, pages) in zero::runs(data) {
            let first = first_page + pages.start as u64;
            if zero {
                self.mark(space, PageRange::new(first, pages.len() as u64), Mark::Zero)?;
                continue;
            }
            let mut rest = &data[pages.start * PAGE_BYTES..pages.end * PAGE_BYTES];
            let mut at = first;
            while !rest.is_empty() {
                let room = FRAME_PAGES * PAGE_BYTES - self.pending.len();
                let (now, later) = rest.split_at(room.min(rest.len()));
                let count = (now.len() / PAGE_BYTES) as u64;
                match self.ranges.last_mut() {
                    Some(last) if last.end() == at => last.count += count,
                    _ => self.ranges.push(PageRange::new(at, count)),
                }
                self.pending.extend_from_slice(now);
                at += count;
                rest = later;
                if self.pending.len() == FRAME_PAGES * PAGE_BYTES {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    fn mark(&mut self, space: Space, range: PageRange, mark: Mark) -> Result<(), StoreError> {
        // Pages that are pending and those marked may be the same only if the caller gave both: keep their order.
        if self.ranges.iter().any(|r| !r.intersect(range).is_empty()) {
            self.flush()?;
        }
        self.writer.mark(space, range, mark)
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let Some(space) = self.space.filter(|_| !self.pending.is_empty()) else { return Ok(()) };
        let raw = self.pending.len() as u64;
        let packed = match &mut self.packer {
            None => None,
            Some(packer) => Some(packer.compress(&self.pending).map_err(broken("write"))?),
        };
        let packed = packed.filter(|p| p.len() < self.pending.len());
        let payload = packed.as_ref().unwrap_or(&self.pending);
        let header = Header {
            kind: DATA,
            packing: u8::from(packed.is_some()),
            space: Some(space),
            ranges: u32::try_from(self.ranges.len()).expect("not more than pages of a frame"),
            stored: u32::try_from(payload.len()).expect("not more than a frame"),
            raw,
        };
        self.writer.out().frame(header, &range_bytes(&self.ranges), payload)?;
        self.ranges.clear();
        self.pending.clear();
        Ok(())
    }
}

/// Reads a stream, frame by frame, without seeking.
pub struct StreamReader<R> {
    inner: R,
    frames: u64,
    checks: blake3::Hasher,
    ended: bool,
    ranges: Vec<PageRange>,
    payload: Vec<u8>,
    unpacked: Vec<u8>,
}

impl<R: Read> StreamReader<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// Something that is no stream, or of a newer version.
    pub fn new(mut inner: R) -> Result<Self, StreamError> {
        let mut start = [0; 16];
        inner.read_exact(&mut start).map_err(broken("read"))?;
        if start[..8] != MAGIC {
            return Err(StreamError::Magic);
        }
        let found = u16::from_le_bytes([start[8], start[9]]);
        if found != VERSION {
            return Err(StreamError::Version { found });
        }
        if start[10..] != [0; 6] {
            return Err(StreamError::Damaged("reserved bytes are not zero"));
        }
        let checks = blake3::Hasher::new();
        Ok(Self { inner, frames: 0, checks, ended: false, ranges: vec![], payload: vec![], unpacked: vec![] })
    }

    /// The next thing it says; after [`Item::End`] there is none.
    ///
    /// # Errors
    /// Anything that is damaged, out of place, or missing.
    pub fn next_item(&mut self) -> Result<Item<'_>, StreamError> {
        if self.ended {
            return Err(StreamError::Damaged("it goes on after its end"));
        }
        let header = self.read_frame()?;
        if (header.kind == HEAD) != (self.frames == 1) {
            return Err(StreamError::Damaged("its head is not at its beginning"));
        }
        let space = || header.space.ok_or(StreamError::Damaged("a frame about no space"));
        match header.kind {
            HEAD => {
                let head = serde_json::from_slice(&self.payload);
                head.map(Item::Head).map_err(|_| StreamError::Damaged("its head cannot be read"))
            }
            SPACE => Ok(Item::Space(space()?, self.space_info()?)),
            DATA => {
                self.unpack(&header)?;
                Ok(Item::Data(space()?, &self.ranges, &self.unpacked))
            }
            MARK => {
                let mark = MARKS.get(usize::from(header.packing)).ok_or(StreamError::Damaged("an unknown mark"))?;
                Ok(Item::Mark(space()?, &self.ranges, *mark))
            }
            RENAME => match *self.payload.as_slice() {
                [kind, a, b, c, d] => Ok(Item::Rename(space()?, space_of(kind, u32::from_le_bytes([a, b, c, d]))?)),
                _ => Err(StreamError::Damaged("a malformed name of a space")),
            },
            MODEL => Ok(Item::Model(Box::new(codec::decode(&self.payload)?))),
            END => {
                self.ended = true;
                Ok(Item::End)
            }
            _ => Err(StreamError::Damaged("a frame of an unknown kind")),
        }
    }

    /// Reads a frame, checks it, and leaves its ranges and payload.
    fn read_frame(&mut self) -> Result<Header, StreamError> {
        let mut bytes = [0; HEADER];
        self.inner.read_exact(&mut bytes).map_err(broken("read"))?;
        let (fields, check) = bytes.split_first_chunk::<{ HEADER - 8 }>().expect("a header is longer than its fields");
        let check = u64::from_le_bytes(check.try_into().expect("the check has eight bytes"));
        let header = Header::parse(fields)?;
        let limit = match header.kind {
            DATA => (FRAME_PAGES * PAGE_BYTES) as u64,
            HEAD => limits::MANIFEST_BYTES,
            _ => limits::MODEL_BYTES,
        };
        if header.ranges > RANGES || u64::from(header.stored) > limit {
            return Err(StreamError::Damaged("a frame of an impossible length"));
        }
        let mut ranges = Vec::new();
        read_some(&mut self.inner, u64::from(header.ranges) * 16, &mut ranges)?;
        read_some(&mut self.inner, u64::from(header.stored), &mut self.payload)?;
        if check != Header::check(fields, self.frames, &ranges, &self.payload) {
            return Err(StreamError::Damaged("the checksum of a frame does not match"));
        }
        if header.kind == END && self.payload != self.checks.finalize().as_bytes() {
            return Err(StreamError::Damaged("its digest does not match"));
        }
        self.frames += 1;
        self.checks.update(&check.to_le_bytes());
        self.ranges.clear();
        for range in ranges.as_chunks::<16>().0 {
            let (first, count) = range.split_at(8);
            let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
            let range = PageRange::new(number(first), number(count));
            let sane = range.count > 0 && range.count <= limits::PAGE_NUMBERS;
            if !sane || range.first > limits::PAGE_NUMBERS - range.count {
                return Err(StreamError::Damaged("a range of impossible pages"));
            }
            self.ranges.push(range);
        }
        Ok(header)
    }

    fn space_info(&self) -> Result<SpaceInfo, StreamError> {
        let bytes: &[u8; 20] =
            self.payload.as_slice().try_into().map_err(|_| StreamError::Damaged("a malformed space"))?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let cow_parent = u32::from_le_bytes(bytes[16..].try_into().expect("four bytes"));
        let cow_parent = Some(cow_parent).filter(|id| *id != u32::MAX).map(MmId);
        Ok(SpaceInfo { identity: [word(0), word(8)], parent: None, cow_parent })
    }

    fn unpack(&mut self, header: &Header) -> Result<(), StreamError> {
        let raw = self.ranges.iter().map(|r| r.count).fold(0u64, u64::saturating_add).saturating_mul(PAGE);
        if raw != header.raw || raw == 0 || raw > (FRAME_PAGES * PAGE_BYTES) as u64 {
            return Err(StreamError::Damaged("content that does not fit its pages"));
        }
        if header.packing == 0 {
            std::mem::swap(&mut self.unpacked, &mut self.payload);
        } else {
            self.unpacked.clear();
            self.unpacked.reserve(raw as usize);
            let unpacked = zstd::zstd_safe::decompress(&mut self.unpacked, &self.payload);
            unpacked.map_err(|_| StreamError::Damaged("content that cannot be unpacked"))?;
        }
        if self.unpacked.len() as u64 != raw {
            return Err(StreamError::Damaged("content that does not fit its pages"));
        }
        Ok(())
    }
}

/// Reads so many bytes; memory is asked for as they arrive, not as they are announced.
fn read_some(inner: &mut impl Read, bytes: u64, into: &mut Vec<u8>) -> Result<(), StreamError> {
    into.clear();
    let read = inner.by_ref().take(bytes).read_to_end(into).map_err(broken("read"))?;
    if read as u64 == bytes { Ok(()) } else { Err(StreamError::Truncated) }
}

/// Sends an image that lies in a directory. Parents are resolved: the stream stands for itself.
///
/// # Errors
/// An image that is damaged, a stream that breaks.
pub fn send<W: Write + Send>(image: &ImageDir, out: W, level: Option<i32>) -> Result<W, StoreError> {
    let manifest = image.manifest();
    let head = Head { kind: manifest.kind, host: manifest.host.clone(), tree: manifest.tree.clone() };
    let stream = StreamWriter::new(out, level, &head)?;
    if manifest.kind == Kind::Full {
        stream.model(&image.model()?)?;
    }
    let reader = PageReader::of(image)?;
    let mut scratch = Scratch::default();
    let mut buf = Vec::new();
    let mut lane = stream.lane()?;
    for entry in &reader.index().spaces {
        let info = SpaceInfo { identity: entry.identity, parent: None, cow_parent: entry.cow_parent };
        stream.space(entry.space, info)?;
        for piece in reader.runs(entry.space)?.iter().flat_map(|run| run.by_frame(&reader)) {
            match piece.source {
                Source::Zero => lane.mark(entry.space, piece.range, Mark::Zero)?,
                Source::Inherit => lane.mark(entry.space, piece.range, Mark::Inherit)?,
                Source::Data { .. } => {
                    buf.resize(piece.range.bytes() as usize, 0);
                    reader.read_into(&piece, &mut buf, &mut scratch)?;
                    lane.write_run(entry.space, piece.range.first, &buf)?;
                }
            }
        }
    }
    lane.flush()?;
    drop(lane);
    Ok(stream.finish()?)
}

/// Receives a stream into a directory: the image appears there when all of it has arrived and was found good.
///
/// # Errors
/// A stream that breaks, is damaged or cut short; a disk that is full. Then there is no image.
pub fn receive(input: impl Read, mut image: ImageWriter, options: PageOptions) -> Result<ImageDir, StoreError> {
    let mut stream = StreamReader::new(input)?;
    let pages = image.pages(options);
    let mut head = None;
    let mut model = None;
    {
        let mut lane = pages.lane()?;
        loop {
            match stream.next_item()? {
                Item::Head(found) => head = Some(found),
                Item::Space(space, info) => pages.space(space, info),
                Item::Data(space, ranges, mut data) => {
                    for range in ranges {
                        let (now, later) = data.split_at(range.bytes() as usize);
                        lane.write_run(space, range.first, now)?;
                        data = later;
                    }
                }
                Item::Mark(space, ranges, mark) => ranges.iter().for_each(|range| lane.mark(space, *range, mark)),
                Item::Rename(from, to) => pages.rename(from, to),
                Item::Model(found) => model = Some(found),
                Item::End => break,
            }
        }
    }
    let head = head.ok_or(StreamError::Damaged("it has no head"))?;
    let stored = pages.finish()?;
    let draft = match (&model, head.kind) {
        (Some(model), Kind::Full) => {
            image.write_model(model)?;
            Draft { host: head.host, ..Draft::of(model, &stored) }
        }
        (None, Kind::Memory) => Draft { kind: Kind::Memory, host: head.host, tree: head.tree },
        _ => return Err(StreamError::Damaged("its model is missing, or one too many").into()),
    };
    image.commit(draft, stored)
}
