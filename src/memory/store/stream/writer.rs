//! Writing a stream.

use super::{
    DATA, END, FRAME_PAGES, HEAD, HEADER, Head, Header, MAGIC, MARK, MARKS, MODEL, PAGE_BYTES, RENAME, SPACE,
    StreamError, VERSION, broken, space_words,
};
use crate::image::{Model, codec};
use crate::memory::store::{Mark, PageLane, PageSink, SpaceInfo, StoreError};
use crate::memory::{PageRange, Space, zero};
use std::{
    io::Write,
    sync::{Mutex, MutexGuard, PoisonError},
};

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
