//! Reading a stream.

use super::{
    DATA, END, FRAME_PAGES, HEAD, HEADER, Header, Item, MAGIC, MARK, MARKS, MODEL, PAGE_BYTES, RANGES, RENAME, SPACE,
    StreamError, VERSION, broken, space_of,
};
use crate::image::{MmId, codec, limits, mm::PAGE};
use crate::memory::PageRange;
use crate::memory::store::SpaceInfo;
use std::io::Read;

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
