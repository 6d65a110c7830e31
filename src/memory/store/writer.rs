//! Writing pages: lanes that append in parallel, and the index made of what they wrote.

use super::{
    Lane, PageReader, StoreError,
    index::{Index, Run, RunKind},
    lane::LaneState,
    overlay,
};
use crate::image::{
    MmId, limits,
    manifest::{FileEntry, INDEX_FILE, PagesSummary, digest, pages_file},
};
use crate::memory::{PageRange, Space};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

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
    pub(super) fn kind(self) -> Option<RunKind> {
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
    pub(super) sequence: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) lanes: Mutex<Lanes>,
    marks: Mutex<Vec<Record>>,
    spaces: Mutex<BTreeMap<Space, SpaceInfo>>,
    names: Mutex<BTreeMap<Space, Option<Space>>>,
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    pub(super) idle: Vec<LaneState>,
    made: usize,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
            written: AtomicU64::new(0),
            lanes: Mutex::default(),
            marks: Mutex::default(),
            spaces: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// Bytes of pages written to files so far.
    pub fn bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
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
