//! Writing pages: lanes that append in parallel, and the index made of what they wrote.

use super::{
    PageReader, StoreError,
    index::{Frame, Index, Packing, Run, RunKind},
    overlay,
};
use crate::image::{
    MmId, limits,
    manifest::{FileEntry, INDEX_FILE, PagesSummary, digest, pages_file},
    mm::PAGE,
};
use crate::memory::{PageRange, Space, zero};
use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use xxhash_rust::xxh3::xxh3_64;

/// Pages of a raw frame: what one check covers, and about what fits the second-level cache together with its source.
const RAW_FRAME_PAGES: usize = 64;
/// Pages of a compressed frame: less to unpack for one page, and hardly larger than with bigger frames.
const ZSTD_FRAME_PAGES: usize = 32;
const PAGE_BYTES: usize = PAGE as usize;

/// How pages are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// What is fastest for a dump to a directory of this host: off, as any disk that is written through the page cache
    /// takes more bytes a second than a core packs.
    #[default]
    Auto,
    /// As they are.
    Off,
    /// zstd of this level, 1..=19; frames that do not get smaller stay raw.
    Zstd(i32),
}

/// How a page store is written.
#[derive(Debug, Clone, Default)]
pub struct PageOptions {
    /// How pages are packed.
    pub compression: Compression,
    /// The parent image, when there is one: pages marked [`Mark::Parent`] must be in it.
    pub parent: Option<Arc<PageReader>>,
}

/// What is said about pages without giving their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// They are zero.
    Zero,
    /// They are as in the parent image.
    Parent,
    /// They are as in the address space this one was forked from.
    Inherit,
    /// They are gone (unmapped, `MADV_DONTNEED`) since an earlier call.
    Hole,
}

impl Mark {
    fn kind(self) -> Option<RunKind> {
        match self {
            Mark::Zero => Some(RunKind::Zero),
            Mark::Parent => Some(RunKind::Parent),
            Mark::Inherit => Some(RunKind::Inherit),
            Mark::Hole => None,
        }
    }
}

/// What the index says about a space besides its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceInfo {
    /// What the engine knows it by from one dump to the next; 0 = nothing.
    pub identity: [u64; 2],
    /// The same space in the parent image: what [`Mark::Parent`] refers to.
    pub parent: Option<Space>,
    /// The address space it was forked from: what [`Mark::Inherit`] refers to.
    pub cow_parent: Option<MmId>,
}

/// What a finished page store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPages {
    /// Totals.
    pub summary: PagesSummary,
    /// Files it consists of, for the manifest.
    pub files: Vec<FileEntry>,
    /// Pages of each space that have content here or in a parent image.
    pub per_space: BTreeMap<Space, u64>,
}

/// What one call said about a run of pages; the later one wins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub space: Space,
    pub range: PageRange,
    /// Order of the calls over all lanes.
    pub sequence: u64,
    /// `None`: gone.
    pub kind: Option<RunKind>,
}

/// Writes the pages of one image. May be shared by threads: each takes a [`Lane`] (or uses [`PageWriter::write_run`]).
///
/// Where the same page is given more than once, the call that began last wins: a caller that sends rounds has to let one
/// end before the next begins.
#[derive(Debug)]
pub struct PageWriter {
    dir: PathBuf,
    compression: Compression,
    parent: Option<Arc<PageReader>>,
    sequence: AtomicU64,
    lanes: Mutex<Lanes>,
    marks: Mutex<Vec<Record>>,
    spaces: Mutex<BTreeMap<Space, SpaceInfo>>,
    names: Mutex<BTreeMap<Space, Option<Space>>>,
}

#[derive(Debug, Default)]
struct Lanes {
    idle: Vec<LaneState>,
    made: usize,
}

/// One appender with a page file of its own.
struct LaneState {
    number: u16,
    path: PathBuf,
    file: File,
    /// Where the next frame goes.
    offset: u64,
    /// Frames written; their position here is local to the lane.
    frames: Vec<Frame>,
    records: Vec<Record>,
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A worker that panicked takes its own lane with it; lists stay whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PageWriter {
    /// A writer of page files in this directory (that of an image in the making).
    pub(super) fn new(dir: &Path, options: PageOptions) -> Self {
        Self {
            dir: dir.to_owned(),
            compression: options.compression,
            parent: options.parent,
            sequence: AtomicU64::new(0),
            lanes: Mutex::default(),
            marks: Mutex::default(),
            spaces: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// Declares a space; one that is only written to needs no declaration.
    pub fn space(&self, space: Space, info: SpaceInfo) {
        locked(&self.spaces).insert(space, info);
    }

    /// An appender for the calling thread. Fails where no page file can be made.
    pub fn lane(&self) -> Result<Lane<'_>, StoreError> {
        let number = {
            let mut lanes = locked(&self.lanes);
            if let Some(state) = lanes.idle.pop() {
                return Ok(Lane { writer: self, state: Some(state) });
            }
            if lanes.made == limits::PAGE_FILES {
                return Err(StoreError::TooMany { what: "page files" });
            }
            lanes.made += 1;
            lanes.made - 1
        };
        let state = LaneState::create(&self.dir, number, self.compression)?;
        Ok(Lane { writer: self, state: Some(state) })
    }

    /// Writes whole pages on a lane that is free. See [`Lane::write_run`].
    pub fn write_run(&self, space: Space, first_page: u64, data: &[u8]) -> Result<(), StoreError> {
        self.lane()?.write_run(space, first_page, data)
    }

    /// Says something about pages without giving their content.
    pub fn mark(&self, space: Space, range: PageRange, mark: Mark) {
        if !range.is_empty() {
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
            locked(&self.marks).push(Record { space, range, sequence, kind: mark.kind() });
        }
    }

    /// Everything said about `from`, before and after, is about `to`; `None`: about nothing. For pages that are written
    /// before it is known what their space is called.
    pub fn rename(&self, from: Space, to: Option<Space>) {
        locked(&self.names).insert(from, to);
    }

    /// Writes what is pending, makes the index, and syncs everything to the disk.
    ///
    /// # Errors
    /// A full disk; a page marked as in the parent that the parent does not have.
    pub fn finish(self) -> Result<StoredPages, StoreError> {
        self.finish_renamed(&Some)
    }

    /// As [`PageWriter::finish`], for pages that were written before it was known what their spaces are called in the
    /// model: `name` gives the final name of a space that was written to, or `None` if it goes. Declarations
    /// ([`PageWriter::space`]) are by final names.
    ///
    /// # Errors
    /// As for [`PageWriter::finish`].
    pub fn finish_renamed(self, name: &dyn Fn(Space) -> Option<Space>) -> Result<StoredPages, StoreError> {
        let mut lanes = self.lanes.into_inner().unwrap_or_else(PoisonError::into_inner).idle;
        lanes.sort_by_key(|l| l.number);
        for (n, lane) in lanes.iter().enumerate() {
            if usize::from(lane.number) != n {
                // A worker panicked: what it had written is not known.
                return Err(StoreError::Damaged { path: self.dir.clone(), what: "a page worker has died".into() });
            }
        }
        let mut records = self.marks.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut index = Index::default();
        for lane in &mut lanes {
            lane.flush()?;
            let base = u32::try_from(index.frames.len()).map_err(|_| StoreError::TooMany { what: "frames" })?;
            index.files.push(lane.offset);
            index.frames.append(&mut lane.frames);
            records.extend(lane.records.drain(..).map(|r| r.in_frames_from(base)));
        }
        if index.frames.len() > u32::MAX as usize {
            return Err(StoreError::TooMany { what: "frames" });
        }
        let names = self.names.into_inner().unwrap_or_else(PoisonError::into_inner);
        let renamed = |space: Space| names.get(&space).copied().unwrap_or(Some(space));
        records.retain_mut(|r| renamed(r.space).and_then(name).map(|space| r.space = space).is_some());
        let spaces = self.spaces.into_inner().unwrap_or_else(PoisonError::into_inner);
        let spaces = spaces.into_iter().filter_map(|(space, info)| Some((renamed(space)?, info))).collect();
        index.spaces = overlay::spaces(records, &spaces);
        check_parents(&index, self.parent.as_deref())?;
        sync(&lanes)?;
        let encoded = index.encode();
        let path = self.dir.join(INDEX_FILE);
        super::dir::write_synced(&path, &encoded)?;
        Ok(stored(&index, &encoded))
    }
}

/// Every page that is said to be in the parent image is, and every inherited one where it comes from.
fn check_parents(index: &Index, parent: Option<&PageReader>) -> Result<(), StoreError> {
    for entry in &index.spaces {
        for run in &entry.runs {
            let missing = StoreError::NotInParent { space: entry.space, page: run.range.first };
            match run.kind {
                RunKind::Parent => {
                    let (Some(parent), Some(space)) = (parent, entry.parent) else { return Err(missing) };
                    parent
                        .covers(space, run.range)
                        .map_err(|page| StoreError::NotInParent { space: entry.space, page })?;
                }
                RunKind::Inherit => {
                    let from = entry.cow_parent.and_then(|id| index.space(Space::Mm(id))).ok_or(missing)?;
                    if let Some(page) = first_hole(&from.runs, run.range) {
                        return Err(StoreError::NotInParent { space: entry.space, page });
                    }
                }
                RunKind::Data { .. } | RunKind::Zero => {}
            }
        }
    }
    Ok(())
}

/// The first page of a range that none of the runs (ascending) has.
pub(super) fn first_hole(runs: &[Run], range: PageRange) -> Option<u64> {
    let mut at = range.first;
    let start = runs.partition_point(|r| r.range.end() <= at);
    for run in &runs[start..] {
        if at >= range.end() || run.range.first > at {
            break;
        }
        at = run.range.end();
    }
    (at < range.end()).then_some(at)
}

/// Brings page files to the disk, at once: on a real disk each may take its time.
fn sync(lanes: &[LaneState]) -> Result<(), StoreError> {
    match lanes {
        [] => Ok(()),
        [lane] => lane.sync(),
        [first, others @ ..] => std::thread::scope(|scope| {
            let threads: Vec<_> = others.iter().map(|lane| scope.spawn(|| lane.sync())).collect();
            let mut result = first.sync();
            for thread in threads {
                result = result.and(thread.join().expect("a sync does not panic"));
            }
            result
        }),
    }
}

fn stored(index: &Index, encoded: &[u8]) -> StoredPages {
    let mut summary = PagesSummary { stored_bytes: index.files.iter().sum(), ..PagesSummary::default() };
    let mut per_space = BTreeMap::new();
    for entry in &index.spaces {
        let mut held = 0;
        for run in &entry.runs {
            let count = run.range.count;
            match run.kind {
                RunKind::Data { .. } => summary.data += count,
                RunKind::Zero => summary.zero += count,
                RunKind::Parent => summary.parent += count,
                RunKind::Inherit => summary.inherit += count,
            }
            if run.kind != RunKind::Zero {
                held += count;
            }
        }
        per_space.insert(entry.space, held);
    }
    let page_file = |(n, bytes): (usize, &u64)| FileEntry { name: pages_file(n), bytes: *bytes, blake3: None };
    let mut files: Vec<_> = index.files.iter().enumerate().map(page_file).collect();
    let bytes = encoded.len() as u64;
    files.push(FileEntry { name: INDEX_FILE.into(), bytes, blake3: Some(digest(encoded)) });
    StoredPages { summary, files, per_space }
}

impl Record {
    /// The record with frame numbers of its lane turned into frame numbers of the index.
    fn in_frames_from(self, base: u32) -> Self {
        match self.kind {
            Some(RunKind::Data { frame, page }) => {
                Self { kind: Some(RunKind::Data { frame: frame.saturating_add(base), page }), ..self }
            }
            _ => self,
        }
    }
}

/// A thread's place in a [`PageWriter`].
#[derive(Debug)]
pub struct Lane<'a> {
    writer: &'a PageWriter,
    state: Option<LaneState>,
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
        for (zero, pages) in zero::runs(data) {
            let range = PageRange::new(first_page + pages.start as u64, pages.len() as u64);
            if zero {
                state.note(Record { space, range, sequence, kind: Some(RunKind::Zero) });
            } else {
                let bytes = &data[pages.start * PAGE_BYTES..pages.end * PAGE_BYTES];
                state.append(Record { space, range, sequence, kind: None }, bytes)?;
            }
        }
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
    fn create(dir: &Path, number: usize, compression: Compression) -> Result<Self, StoreError> {
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
            check: xxh3_64(stored),
        });
        self.offset += stored.len() as u64;
    }

    /// Writes the pages that are pending as one frame.
    fn flush(&mut self) -> Result<(), StoreError> {
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

    fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(StoreError::io("sync", &self.path))
    }
}
