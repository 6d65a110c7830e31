//! One thread's way into a page store: a page file of its own, in frames.

use super::{
    Compression, Mark, PageWriter, StoreError,
    index::{Frame, Packing, RunKind},
    writer::{Record, locked},
};
use crate::image::{manifest::pages_file, mm::PAGE};
use crate::memory::{PageRange, Space, zero};
use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

/// Pages of a raw frame: what one check covers, and about what fits the second-level cache together with its source.
const RAW_FRAME_PAGES: usize = 64;
/// Pages of a compressed frame: less to unpack for one page, and hardly larger than with bigger frames.
const ZSTD_FRAME_PAGES: usize = 32;
const PAGE_BYTES: usize = PAGE as usize;

/// One appender with a page file of its own.
pub(super) struct LaneState {
    pub(super) number: u16,
    path: PathBuf,
    file: File,
    /// Where the next frame goes.
    pub(super) offset: u64,
    /// Frames written; their position here is local to the lane.
    pub(super) frames: Vec<Frame>,
    pub(super) records: Vec<Record>,
    /// Pages of the next frame, not written yet.
    pending: Vec<u8>,
    frame_bytes: usize,
    packer: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for LaneState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("path", &self.path).field("offset", &self.offset).finish_non_exhaustive()
    }
}

/// A thread's place in a [`PageWriter`].
#[derive(Debug)]
pub struct Lane<'a> {
    pub(super) writer: &'a PageWriter,
    pub(super) state: Option<LaneState>,
}

impl Lane<'_> {
    /// Writes the content of consecutive pages: `data` is a whole number of pages. Pages that are zero are noted as such
    /// and take no room. Other pages are on their way to the disk when [`PageWriter::finish`] has returned.
    ///
    /// # Errors
    /// A full disk, and whatever else the file system says.
    ///
    /// # Panics
    /// When `data` is not a whole number of pages.
    pub fn write_run(&mut self, space: Space, first_page: u64, data: &[u8]) -> Result<(), StoreError> {
        assert!(data.len().is_multiple_of(PAGE_BYTES), "pages are written whole");
        let sequence = self.writer.sequence.fetch_add(1, Ordering::Relaxed);
        let state = self.state.as_mut().expect("a lane has its state until it is dropped");
        let before = state.offset;
        for (zero, pages) in zero::runs(data) {
            let range = PageRange::new(first_page + pages.start as u64, pages.len() as u64);
            if zero {
                state.note(Record { space, range, sequence, kind: Some(RunKind::Zero) });
            } else {
                let bytes = &data[pages.start * PAGE_BYTES..pages.end * PAGE_BYTES];
                state.append(Record { space, range, sequence, kind: None }, bytes)?;
            }
        }
        self.writer.written.fetch_add(state.offset - before, Ordering::Relaxed);
        Ok(())
    }
}

impl Lane<'_> {
    /// Says something about pages without giving their content, as [`PageWriter::mark`] does, but without a lock.
    pub fn mark(&mut self, space: Space, range: PageRange, mark: Mark) {
        if !range.is_empty() {
            let sequence = self.writer.sequence.fetch_add(1, Ordering::Relaxed);
            let state = self.state.as_mut().expect("a lane has its state until it is dropped");
            state.note(Record { space, range, sequence, kind: mark.kind() });
        }
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.state.take().filter(|_| !std::thread::panicking()) {
            locked(&self.writer.lanes).idle.push(state);
        }
    }
}

impl LaneState {
    pub(super) fn create(dir: &Path, number: usize, compression: Compression) -> Result<Self, StoreError> {
        let path = dir.join(pages_file(number));
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        let (packer, pages) = match compression {
            Compression::Auto | Compression::Off => (None, RAW_FRAME_PAGES),
            Compression::Zstd(level) => {
                let packer =
                    zstd::bulk::Compressor::new(level).map_err(StoreError::io("set up compression for", &path))?;
                (Some(packer), ZSTD_FRAME_PAGES)
            }
        };
        Ok(Self {
            number: u16::try_from(number).expect("there are at most limits::PAGE_FILES"),
            path,
            file,
            offset: 0,
            frames: Vec::new(),
            records: Vec::new(),
            pending: Vec::new(),
            frame_bytes: pages * PAGE_BYTES,
            packer,
            packed: Vec::new(),
        })
    }

    /// Adds a record, or lets the last one grow by it.
    fn note(&mut self, record: Record) {
        if let Some(last) = self.records.last_mut() {
            // Only within one call, so that the order over all lanes stays exact.
            if last.sequence == record.sequence && last.space == record.space && last.range.end() == record.range.first
            {
                let grows = match (last.kind, record.kind) {
                    (Some(RunKind::Data { frame, page }), Some(RunKind::Data { frame: next, page: at })) => {
                        frame == next && u64::from(page) + last.range.count == u64::from(at)
                    }
                    (a, b) => a == b,
                };
                if grows {
                    last.range.count += record.range.count;
                    return;
                }
            }
        }
        self.records.push(record);
    }

    /// Notes that the next `pages` of the record are the content of the frame that comes next, from this page on.
    fn note_data(&mut self, record: &mut Record, page: usize, pages: usize) -> Result<(), StoreError> {
        let frame = u32::try_from(self.frames.len()).map_err(|_| StoreError::TooMany { what: "frames" })?;
        let page = u32::try_from(page).expect("a frame has at most limits::FRAME_PAGES");
        let range = PageRange::new(record.range.first, pages as u64);
        self.note(Record { range, kind: Some(RunKind::Data { frame, page }), ..*record });
        record.range = PageRange::new(range.end(), record.range.count - range.count);
        Ok(())
    }

    fn append(&mut self, mut record: Record, mut data: &[u8]) -> Result<(), StoreError> {
        while !data.is_empty() {
            if self.packer.is_none() && self.pending.is_empty() && data.len() >= self.frame_bytes {
                // Whole frames go straight from the caller's buffer, in one write.
                let (whole, rest) = data.split_at(data.len() / self.frame_bytes * self.frame_bytes);
                let start = self.offset;
                for frame in whole.chunks_exact(self.frame_bytes) {
                    self.note_data(&mut record, 0, frame.len() / PAGE_BYTES)?;
                    self.push_frame(Packing::Raw, frame, frame.len() / PAGE_BYTES);
                }
                self.file.write_all_at(whole, start).map_err(StoreError::io("write", &self.path))?;
                data = rest;
                continue;
            }
            let room = self.frame_bytes - self.pending.len();
            let (now, rest) = data.split_at(room.min(data.len()));
            self.note_data(&mut record, self.pending.len() / PAGE_BYTES, now.len() / PAGE_BYTES)?;
            self.pending.extend_from_slice(now);
            data = rest;
            if self.pending.len() == self.frame_bytes {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Enters a frame at the present offset and moves that on.
    fn push_frame(&mut self, packing: Packing, stored: &[u8], pages: usize) {
        self.frames.push(Frame {
            file: self.number,
            packing,
            offset: self.offset,
            stored: u32::try_from(stored.len()).expect("a frame is at most 1 MiB"),
            pages: u32::try_from(pages).expect("a frame has at most limits::FRAME_PAGES"),
            check: super::frame_check(stored),
        });
        self.offset += stored.len() as u64;
    }

    /// Writes the pages that are pending as one frame.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let pages = pending.len() / PAGE_BYTES;
        let mut packed = std::mem::take(&mut self.packed);
        let small = match &mut self.packer {
            None => false,
            Some(packer) => {
                packed.clear();
                packed.reserve(zstd::zstd_safe::compress_bound(pending.len()));
                let n = packer
                    .compress_to_buffer(&pending, &mut packed)
                    .map_err(StoreError::io("compress for", &self.path))?;
                // Less than an eighth gained is not worth unpacking.
                n < pending.len() / 8 * 7
            }
        };
        let (packing, stored) = if small { (Packing::Zstd, &packed) } else { (Packing::Raw, &pending) };
        if packing == Packing::Raw {
            self.offset = self.offset.next_multiple_of(PAGE);
        }
        let start = self.offset;
        self.push_frame(packing, stored, pages);
        self.file.write_all_at(stored, start).map_err(StoreError::io("write", &self.path))?;
        self.pending = pending;
        self.pending.clear();
        self.packed = packed;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(StoreError::io("sync", &self.path))
    }
}
