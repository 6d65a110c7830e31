//! Pages on their way between targets and the page store, by several workers.
//!
//! Each worker takes a stretch of memory and does everything with it: read, look for zeros, pack, check, write; data is
//! touched while it is in the cache. There is nothing to queue, so nothing that could grow. Workers never touch ptrace:
//! how pages are read or written is the engine's, behind [`ReadPages`] and [`WritePages`].

use super::{
    PageBuffer, PageRange, Space,
    store::{Mark, PageLane, PageReader, PageSink, ResolvedRun, Scratch, Source, StoreError},
};
use crate::image::mm::PAGE;
use std::{
    io,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Below this much memory threads cost more than they bring.
const INLINE_BYTES: u64 = 4 << 20;
/// Pages read, checked and written in one go: fits the second-level cache.
const BATCH_PAGES: u64 = 64;
/// Pages a worker takes at a time, so that its file holds long rows of neighbours.
const GRAIN_PAGES: u64 = 512;

/// A page that could not be read from or written to a target.
#[derive(Debug, thiserror::Error)]
#[error("page at {:#x}", page * PAGE)]
pub struct PageError {
    /// Number of the (first) page.
    pub page: u64,
    /// What the kernel said.
    pub source: io::Error,
}

/// Where pages come from: live address spaces.
pub trait ReadPages: Sync {
    /// Fills `buf` with the content of the ranges, one behind the other. `ranges` are ascending and at most a few dozen.
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError>;
}

impl<T: ReadPages + ?Sized> ReadPages for &T {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        (**self).read(space, ranges, buf)
    }
}

/// Where pages go: address spaces in the making.
pub trait WritePages: Sync {
    /// Writes content to the ranges, which lie in `data` one behind the other.
    fn write(&self, space: Space, ranges: &[PageRange], data: &[u8]) -> Result<(), PageError>;

    /// Sees to it that these pages are zero; fresh anonymous memory is already, a private mapping of a file is not.
    fn zero(&self, space: Space, range: PageRange) -> Result<(), PageError>;
}

/// Why pages did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The target's memory could not be read.
    #[error("cannot read memory of {space}")]
    Read {
        /// Whose memory.
        space: Space,
        /// Where, and why.
        source: PageError,
    },
    /// The target's memory could not be written.
    #[error("cannot write memory of {space}")]
    Write {
        /// Whose memory.
        space: Space,
        /// Where, and why.
        source: PageError,
    },
    /// The page store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A worker panicked: a defect of this program.
    #[error("a page worker has died")]
    Worker,
}

/// Workers that suit this machine: one for each processor this process may use, at most 8. Looked up once: it takes a dozen files
/// of cgroups.
pub fn default_workers() -> usize {
    static WORKERS: OnceLock<usize> = OnceLock::new();
    *WORKERS.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get()).min(8))
}

/// Hands out work until there is none, or a worker has failed.
struct Work<I> {
    items: Mutex<I>,
    failed: AtomicBool,
}

impl<I: Iterator + Send> Work<I> {
    fn next(&self) -> Option<I::Item> {
        if self.failed.load(Ordering::Relaxed) {
            return None;
        }
        self.items.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    /// Runs `worker` on `workers` threads (the calling one is the first) until the work is done.
    fn run(
        items: I,
        workers: usize,
        worker: &(dyn Fn(&Self) -> Result<(), PipelineError> + Sync),
    ) -> Result<(), PipelineError> {
        let work = Self { items: Mutex::new(items), failed: AtomicBool::new(false) };
        let guarded = || {
            let result = worker(&work);
            if result.is_err() {
                work.failed.store(true, Ordering::Relaxed);
            }
            result
        };
        if workers <= 1 {
            return guarded();
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..workers)
                .filter_map(|n| {
                    std::thread::Builder::new().name(format!("pages-{n}")).spawn_scoped(scope, guarded).ok()
                })
                .collect();
            let mut result = guarded();
            for thread in threads {
                result = result.and(thread.join().unwrap_or(Err(PipelineError::Worker)));
            }
            result
        })
    }
}

fn workers_for(pages: u64, workers: usize) -> usize {
    if pages * PAGE <= INLINE_BYTES { 1 } else { workers.max(1) }
}

/// Ranges of one space, taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Batch {
    space: Space,
    ranges: Vec<PageRange>,
}

impl Batch {
    fn pages(&self) -> u64 {
        self.ranges.iter().map(|r| r.count).sum()
    }
}

/// The plan in batches of one space each with at most `pages` pages.
fn batches(plan: &[(Space, PageRange)], pages: u64) -> impl Iterator<Item = Batch> + Send + '_ {
    let mut rest = plan.iter().copied().filter(|(_, r)| !r.is_empty());
    let mut held: Option<(Space, PageRange)> = rest.next();
    std::iter::from_fn(move || {
        let space = held?.0;
        let mut batch = Batch { space, ranges: Vec::new() };
        let mut room = pages;
        while let Some((_, range)) = held.filter(|(s, _)| *s == space && room > 0) {
            let now = PageRange::new(range.first, range.count.min(room));
            batch.ranges.push(now);
            room -= now.count;
            let left = PageRange::new(now.end(), range.count - now.count);
            held = if left.is_empty() { rest.next() } else { Some((space, left)) };
        }
        Some(batch)
    })
}

/// The image that pages are compared with where nothing tells which of them were written since.
#[derive(Clone, Copy)]
pub struct Against<'a> {
    /// The parent image.
    pub parent: &'a PageReader,
    /// The space of the parent image that is this one, if it has one; the same as in [`super::store::SpaceInfo::parent`].
    pub space: &'a (dyn Fn(Space) -> Option<Space> + Sync),
}

/// Reads the pages of the plan and gives them to the sink (a page store, or a stream). `progress` is told how many bytes
/// were done, batch by batch, from any worker.
///
/// # Errors
/// The first thing that failed; other workers stop after their batch.
pub fn dump_pages(
    source: &dyn ReadPages,
    plan: &[(Space, PageRange)],
    sink: &dyn PageSink,
    workers: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), PipelineError> {
    dump(source, plan, sink, None, workers, progress)
}

/// The same, but pages that are as in the parent image are marked so instead of being written again.
///
/// # Errors
/// As [`dump_pages`]; also when the parent image is damaged.
pub fn dump_changed_pages(
    source: &dyn ReadPages,
    plan: &[(Space, PageRange)],
    sink: &dyn PageSink,
    against: Against<'_>,
    workers: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), PipelineError> {
    dump(source, plan, sink, Some(against), workers, progress)
}

fn dump(
    source: &dyn ReadPages,
    plan: &[(Space, PageRange)],
    sink: &dyn PageSink,
    against: Option<Against<'_>>,
    workers: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), PipelineError> {
    let pages: u64 = plan.iter().map(|(_, r)| r.count).sum();
    if pages == 0 {
        return Ok(());
    }
    Work::run(batches(plan, GRAIN_PAGES), workers_for(pages, workers), &|work| {
        let mut lane = sink.lane()?;
        let mut buf = PageBuffer::of((pages.min(BATCH_PAGES) * PAGE) as usize);
        let mut compared = Compared::default();
        while let Some(grain) = work.next() {
            let parts: Vec<_> = grain.ranges.iter().map(|r| (grain.space, *r)).collect();
            for batch in batches(&parts, BATCH_PAGES) {
                let buf = &mut buf[..(batch.pages() * PAGE) as usize];
                source
                    .read(batch.space, &batch.ranges, buf)
                    .map_err(|source| PipelineError::Read { space: batch.space, source })?;
                let mut rest = &*buf;
                for range in &batch.ranges {
                    let (data, later) = rest.split_at(range.bytes() as usize);
                    match against {
                        None => lane.write_run(batch.space, range.first, data)?,
                        Some(against) => compared.write(&mut *lane, against, batch.space, range.first, data)?,
                    }
                    rest = later;
                }
                progress(buf.len() as u64);
            }
        }
        lane.flush()?;
        Ok(())
    })
}

/// Buffers for the comparison with a parent image.
#[derive(Default)]
struct Compared {
    scratch: Scratch,
    content: PageBuffer,
}

impl Compared {
    /// Writes the pages that differ from the parent's and marks the others. At most [`BATCH_PAGES`] pages.
    fn write(
        &mut self,
        lane: &mut dyn PageLane,
        against: Against<'_>,
        space: Space,
        first: u64,
        data: &[u8],
    ) -> Result<(), PipelineError> {
        let same = match (against.space)(space) {
            None => 0,
            Some(theirs) => self.same(against.parent, theirs, first, data)?,
        };
        let bytes = PAGE as usize;
        let pages = data.len() / bytes;
        let mut at = 0;
        while at < pages {
            let kind = same >> at & 1;
            let until = (at..pages).find(|n| same >> n & 1 != kind).unwrap_or(pages);
            let range = PageRange::new(first + at as u64, (until - at) as u64);
            if kind == 1 {
                lane.mark(space, range, Mark::Parent)?;
            } else {
                lane.write_run(space, range.first, &data[at * bytes..until * bytes])?;
            }
            at = until;
        }
        Ok(())
    }

    /// Which pages are as in the parent: bit n for the n-th. Zeros are never: to say so costs no more than to refer to them.
    fn same(&mut self, parent: &PageReader, theirs: Space, first: u64, data: &[u8]) -> Result<u64, PipelineError> {
        let mut same = 0;
        let range = PageRange::new(first, data.len() as u64 / PAGE);
        for piece in parent.contents_in(theirs, range)?.iter().flat_map(|run| run.by_frame(parent)) {
            if !matches!(piece.source, Source::Data { .. }) {
                continue;
            }
            self.content.resize(piece.range.bytes() as usize);
            parent.read_into(&piece, &mut self.content, &mut self.scratch)?;
            let skip = piece.range.first - first;
            let ours = data[(skip * PAGE) as usize..].chunks_exact(PAGE as usize);
            for ((theirs, ours), n) in self.content.chunks_exact(PAGE as usize).zip(ours).zip(skip..) {
                same |= u64::from(theirs == ours) << n;
            }
        }
        Ok(same)
    }
}

// A batch fits the bits of one word.
const _: () = assert!(BATCH_PAGES <= 64);

/// Appends a range, or lets the last one grow by it.
fn append(ranges: &mut Vec<PageRange>, range: PageRange) {
    match ranges.last_mut() {
        Some(last) if last.end() == range.first => last.count += range.count,
        _ => ranges.push(range),
    }
}

/// Pieces of runs that are loaded together: all with content, or a single one without.
fn load_batches<'a>(
    runs: &'a [ResolvedRun],
    reader: &'a PageReader,
) -> impl Iterator<Item = Vec<ResolvedRun>> + Send + 'a {
    let mut pieces = runs.iter().flat_map(|run| run.by_frame(reader)).peekable();
    std::iter::from_fn(move || {
        let first = pieces.next()?;
        let mut batch = vec![first];
        let mut pages = first.range.count;
        let content = |run: &ResolvedRun| matches!(run.source, Source::Data { .. });
        if content(&first) {
            let fits = |next: &ResolvedRun, pages: u64| {
                content(next) && next.space == first.space && pages + next.range.count <= BATCH_PAGES
            };
            while let Some(next) = pieces.next_if(|next| fits(next, pages)) {
                pages += next.range.count;
                batch.push(next);
            }
        }
        Some(batch)
    })
}

/// Writes runs of the store to where they belong. Inherited runs are passed over: their pages came with the fork (take
/// [`PageReader::contents_in`] where there is none).
///
/// # Errors
/// The first thing that failed; other workers stop after their batch.
pub fn load_pages(
    reader: &PageReader,
    runs: &[ResolvedRun],
    dest: &dyn WritePages,
    workers: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), PipelineError> {
    let content = |run: &&ResolvedRun| matches!(run.source, Source::Data { .. });
    let pages: u64 = runs.iter().filter(content).map(|r| r.range.count).sum();
    Work::run(load_batches(runs, reader), workers_for(pages, workers), &|work| {
        let mut loader =
            Loader { reader, dest, scratch: Scratch::default(), buf: PageBuffer::default(), ranges: Vec::new() };
        while let Some(batch) = work.next() {
            let space = batch[0].space;
            let written =
                |result: Result<(), PageError>| result.map_err(|source| PipelineError::Write { space, source });
            match batch[0].source {
                Source::Inherit => {}
                // In pieces: a run of zeros can be as long as an address space.
                Source::Zero => {
                    for piece in batch[0].range.pieces(GRAIN_PAGES) {
                        written(dest.zero(space, piece))?;
                    }
                }
                // Through a buffer that stays in the cache, on tmpfs as well: to map a file, touch all of it and unmap it again
                // costs more (220 ms a GiB, of which 90 for the unmapping by one thread, against 175).
                Source::Data { .. } => progress(loader.copy(&batch)?),
            }
        }
        Ok(())
    })
}

/// Buffers of one loading thread.
struct Loader<'a> {
    reader: &'a PageReader,
    dest: &'a dyn WritePages,
    scratch: Scratch,
    buf: PageBuffer,
    ranges: Vec<PageRange>,
}

impl Loader<'_> {
    /// Reads the runs of one space and writes them in one go; gives their bytes.
    fn copy(&mut self, batch: &[ResolvedRun]) -> Result<u64, PipelineError> {
        self.ranges.clear();
        batch.iter().for_each(|r| append(&mut self.ranges, r.range));
        let bytes = self.ranges.iter().map(|r| r.bytes() as usize).sum::<usize>();
        self.buf.resize(bytes);
        let mut rest = &mut self.buf[..];
        for run in batch {
            let (part, later) = rest.split_at_mut(run.range.bytes() as usize);
            self.reader.read_into(run, part, &mut self.scratch)?;
            rest = later;
        }
        let space = batch[0].space;
        let written = self.dest.write(space, &self.ranges, &self.buf);
        written.map_err(|source| PipelineError::Write { space, source })?;
        Ok(bytes as u64)
    }
}

/// Damaged frames that [`verify_pages`] gives at most.
const DAMAGES: usize = 100;

/// Reads and checks every frame of an image and its parents; gives what is damaged (the first hundred).
pub fn verify_pages(reader: &PageReader, workers: usize, progress: &(dyn Fn(u64) + Sync)) -> Vec<StoreError> {
    let damages = Mutex::new(Vec::new());
    let pages = reader.frames().count() as u64 * BATCH_PAGES;
    let run = Work::run(reader.frames(), workers_for(pages, workers), &|work| {
        let mut scratch = Scratch::default();
        while let Some(frame) = work.next() {
            match reader.verify_frame(frame, &mut scratch) {
                Ok(bytes) => progress(bytes),
                Err(damage) => {
                    let mut damages = damages.lock().unwrap_or_else(PoisonError::into_inner);
                    if damages.len() < DAMAGES {
                        damages.push(damage);
                    }
                }
            }
        }
        Ok(())
    });
    let mut damages = damages.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Err(PipelineError::Store(error)) = run {
        damages.push(error);
    }
    damages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;

    #[test]
    fn batches_keep_order_and_size() {
        let (a, b) = (Space::Mm(MmId(0)), Space::Mm(MmId(1)));
        let plan = [
            (a, PageRange::new(0, 5)),
            (a, PageRange::new(9, 0)),
            (a, PageRange::new(10, 2)),
            (b, PageRange::new(0, 9)),
        ];
        let found: Vec<_> = batches(&plan, 4).collect();
        let batch = |space, ranges: &[(u64, u64)]| Batch {
            space,
            ranges: ranges.iter().map(|(f, c)| PageRange::new(*f, *c)).collect(),
        };
        let want = [
            batch(a, &[(0, 4)]),
            batch(a, &[(4, 1), (10, 2)]),
            batch(b, &[(0, 4)]),
            batch(b, &[(4, 4)]),
            batch(b, &[(8, 1)]),
        ];
        assert_eq!(found, want);
        assert_eq!(batches(&[], 4).count(), 0);
    }
}
