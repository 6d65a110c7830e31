//! Reading pages: runs resolved through parent images, checked frame by frame.

use super::{
    ImageDir, StoreError,
    index::{Frame, Index, Packing, RunKind, SpaceEntry},
    writer::first_hole,
};
use crate::image::{Model, limits, manifest::pages_file, mm::PAGE};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

const PAGE_BYTES: usize = PAGE as usize;

/// Reads the pages of one image and its parents. May be shared by threads; each brings its own [`Scratch`].
#[derive(Debug)]
pub struct PageReader {
    /// The image and its parents, the youngest first.
    layers: Vec<Layer>,
    /// Whatever is given is checked, also what was found intact before.
    suspicious: bool,
}

#[derive(Debug)]
struct Layer {
    dir: PathBuf,
    index: Index,
    files: Vec<File>,
    /// Frames that were found intact already, so that small reads need not read them whole again.
    intact: Vec<AtomicBool>,
}

/// Where the content of a run comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From the store: [`PageReader::read_into`].
    Data {
        /// Which image of the chain: 0 = the youngest.
        layer: u16,
        /// Frame with the first page.
        frame: u32,
        /// The first page within that frame; the run may go on in frames that lie right behind it in the file.
        page: u32,
    },
    /// Zeros.
    Zero,
    /// As the pages at the same addresses of [`crate::image::mm::Mm::cow_parent`].
    Inherit,
}

/// Consecutive pages with one source, parents resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolvedRun {
    /// Whose pages.
    pub space: Space,
    /// Which pages.
    pub range: PageRange,
    /// Where their content comes from.
    pub source: Source,
}

/// Frames that a [`Scratch`] keeps: at most a MiB each.
const FRAMES_KEPT: usize = 4;

/// Buffers of one reading thread: the last few frames that were unpacked or read whole.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The one that was used last comes last.
    kept: Vec<Unpacked>,
    packed: Vec<u8>,
    frames_read: u64,
}

/// A frame of a layer, and its pages.
#[derive(Debug, Default)]
struct Unpacked {
    at: (u16, u32),
    pages: PageBuffer,
}

impl Scratch {
    /// Frames that were read whole so far.
    pub fn frames_read(&self) -> u64 {
        self.frames_read
    }

    /// The pages of a frame, which `load` reads if they are not kept.
    fn frame(
        &mut self,
        at: (u16, u32),
        load: impl FnOnce(&mut PageBuffer, &mut Vec<u8>) -> Result<(), StoreError>,
    ) -> Result<&[u8], StoreError> {
        let frame = match self.kept.iter().position(|frame| frame.at == at) {
            Some(found) => self.kept.remove(found),
            None => {
                // Its buffer is used again.
                let full = self.kept.len() == FRAMES_KEPT;
                let mut frame = if full { self.kept.remove(0) } else { Unpacked::default() };
                load(&mut frame.pages, &mut self.packed)?;
                self.frames_read += 1;
                Unpacked { at, ..frame }
            }
        };
        self.kept.push(frame);
        Ok(&self.kept[self.kept.len() - 1].pages)
    }
}

/// How inherited pages are shown.
#[derive(Clone, Copy, PartialEq)]
enum Inherited {
    AsSuch,
    AsContent,
}

impl PageReader {
    /// Opens the page store of an image with all its parents.
    ///
    /// # Errors
    /// Anything that is missing, damaged, of another version, or no parent of this image.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::of(&ImageDir::open(dir)?)
    }

    /// The page store of an image that is open already, with all its parents.
    pub fn of(image: &ImageDir) -> Result<Self, StoreError> {
        let mut layers = vec![Layer::open(image)?];
        let mut next = image.open_parent()?;
        while let Some(parent) = next {
            // A circle cannot be made of honest manifests (each names its parent's digest); the limit ends any other.
            if layers.len() == limits::CHAIN {
                return Err(StoreError::Chain { path: image.path().to_owned(), limit: limits::CHAIN });
            }
            layers.push(Layer::open(&parent)?);
            next = parent.open_parent()?;
        }
        Ok(Self { layers, suspicious: false })
    }

    /// Checks whatever it gives, also what was found intact before: for whoever reads over so long a time that the files may
    /// be damaged meanwhile. A small read takes a whole frame then.
    #[must_use]
    pub fn suspicious(self) -> Self {
        Self { suspicious: true, ..self }
    }

    /// Images in the chain, this one included.
    pub fn chain(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of the page files of the whole chain.
    pub fn stored_bytes(&self) -> u64 {
        self.layers.iter().flat_map(|l| &l.index.files).sum()
    }

    /// Spaces of the youngest image, ascending.
    pub fn spaces(&self) -> impl Iterator<Item = Space> + '_ {
        self.layers[0].index.spaces.iter().map(|s| s.space)
    }

    /// Does the page store fit the model it came with? Every space is one of the model's, and every page lies in a mapping
    /// or within the object's size.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] with the first page that does not.
    pub fn fits(&self, model: &Model) -> Result<(), StoreError> {
        self.layers[0].index.spaces.iter().try_for_each(|entry| fit(entry, model))
    }

    /// The space of the youngest image with this identity (not 0).
    pub fn by_identity(&self, identity: [u64; 2]) -> Option<Space> {
        let known = |s: &&SpaceEntry| s.identity == identity && identity != [0; 2];
        self.layers[0].index.spaces.iter().find(known).map(|s| s.space)
    }

    /// The index of the youngest image.
    pub fn index(&self) -> &Index {
        &self.layers[0].index
    }

    /// Every run of a space, ascending; what is in none is a hole. Neighbours in one file come as one run.
    pub fn runs(&self, space: Space) -> Result<Vec<ResolvedRun>, StoreError> {
        self.runs_in(space, PageRange::new(0, limits::PAGE_NUMBERS))
    }

    /// The runs of a space within a range.
    pub fn runs_in(&self, space: Space, range: PageRange) -> Result<Vec<ResolvedRun>, StoreError> {
        let mut out = Vec::new();
        self.resolve(0, space, range, Inherited::AsSuch, &mut |run| self.push(&mut out, space, run))?;
        Ok(out)
    }

    /// The runs of a space within a range, inherited pages given by their content.
    pub fn contents_in(&self, space: Space, range: PageRange) -> Result<Vec<ResolvedRun>, StoreError> {
        let mut out = Vec::new();
        self.resolve(0, space, range, Inherited::AsContent, &mut |run| self.push(&mut out, space, run))?;
        Ok(out)
    }

    /// Does the youngest image know every page of the range? The error is the first page it does not.
    pub fn covers(&self, space: Space, range: PageRange) -> Result<(), u64> {
        let runs = self.layers[0].index.space(space).map_or(&[][..], |s| &s.runs);
        first_hole(runs, range).map_or(Ok(()), Err)
    }

    fn resolve(
        &self,
        layer: usize,
        space: Space,
        range: PageRange,
        inherited: Inherited,
        out: &mut dyn FnMut((PageRange, Source)),
    ) -> Result<(), StoreError> {
        let index = &self.layers[layer].index;
        let Some(entry) = index.space(space) else { return Ok(()) };
        let start = entry.runs.partition_point(|r| r.range.end() <= range.first);
        for run in entry.runs[start..].iter().take_while(|r| r.range.first < range.end()) {
            let run = run.cut(run.range.intersect(range));
            let missing = |page| StoreError::NotInParent { space, page };
            match run.kind {
                RunKind::Data { frame, page } => {
                    let layer = u16::try_from(layer).expect("limits::CHAIN is far below 2^16");
                    out((run.range, Source::Data { layer, frame, page }));
                }
                RunKind::Zero => out((run.range, Source::Zero)),
                RunKind::Inherit if layer == 0 && inherited == Inherited::AsSuch => out((run.range, Source::Inherit)),
                RunKind::Inherit => {
                    let from = entry.cow_parent.map(Space::Mm).ok_or_else(|| missing(run.range.first))?;
                    self.complete(layer, from, run.range).map_err(missing)?;
                    // What the parent image inherited, it inherited at its own time: from its own pages.
                    self.resolve(layer, from, run.range, Inherited::AsContent, out)?;
                }
                RunKind::Parent => {
                    let from = entry.parent.filter(|_| layer + 1 < self.layers.len());
                    let from = from.ok_or_else(|| missing(run.range.first))?;
                    self.complete(layer + 1, from, run.range).map_err(missing)?;
                    self.resolve(layer + 1, from, run.range, Inherited::AsContent, out)?;
                }
            }
        }
        Ok(())
    }

    /// Is every page of the range known to this layer? The error is the first that is not.
    fn complete(&self, layer: usize, space: Space, range: PageRange) -> Result<(), u64> {
        let runs = self.layers[layer].index.space(space).map_or(&[][..], |s| &s.runs);
        first_hole(runs, range).map_or(Ok(()), Err)
    }

    /// Appends a run, or lets the last one grow by it.
    fn push(&self, runs: &mut Vec<ResolvedRun>, space: Space, (range, source): (PageRange, Source)) {
        if let Some(last) = runs.last_mut().filter(|last| last.range.end() == range.first) {
            let grows = match (last.source, source) {
                (Source::Data { layer, frame, page }, Source::Data { layer: l, frame: f, page: p }) => {
                    layer == l && self.follows(layer, (frame, page), last.range.count, (f, p))
                }
                (a, b) => a == b,
            };
            if grows {
                last.range.count += range.count;
                return;
            }
        }
        runs.push(ResolvedRun { space, range, source });
    }

    /// Does page `next` lie in the file right behind `count` pages from `first`?
    fn follows(&self, layer: u16, first: (u32, u32), count: u64, next: (u32, u32)) -> bool {
        let frames = &self.layers[usize::from(layer)].index.frames;
        let (a, b) = (&frames[first.0 as usize], &frames[next.0 as usize]);
        if first.0 == next.0 {
            return u64::from(first.1) + count == u64::from(next.1);
        }
        // Frames of one file lie in the order of their numbers and do not overlap, so a frame that begins where the run
        // ends is the one behind the run's last.
        let raw = a.packing == Packing::Raw && b.packing == Packing::Raw && a.file == b.file;
        raw && next.1 == 0 && a.offset + (u64::from(first.1) + count) * PAGE == b.offset
    }

    /// Reads the content of a run of kind [`Source::Data`] or [`Source::Zero`] and checks every frame it touches.
    ///
    /// # Errors
    /// A frame that is damaged or cannot be read; a run that has no content of its own ([`Source::Inherit`]).
    ///
    /// # Panics
    /// When `buf` is not as long as the run.
    pub fn read_into(&self, run: &ResolvedRun, buf: &mut [u8], scratch: &mut Scratch) -> Result<(), StoreError> {
        assert_eq!(buf.len() as u64, run.range.bytes(), "the buffer has the length of the run");
        let (layer, mut frame, mut page) = match run.source {
            Source::Data { layer, frame, page } => (layer, frame, page as usize),
            Source::Zero => {
                buf.fill(0);
                return Ok(());
            }
            Source::Inherit => return Err(StoreError::NoContent { space: run.space, range: run.range }),
        };
        let mut rest = buf;
        while !rest.is_empty() {
            let held = self.frame(layer, frame).pages as usize;
            let now = (held - page).min(rest.len() / PAGE_BYTES);
            let (part, later) = rest.split_at_mut(now * PAGE_BYTES);
            self.read_frame_part(layer, frame, page, part, scratch)?;
            rest = later;
            frame += 1;
            page = 0;
        }
        Ok(())
    }

    /// Pages that lie in one frame with this one if neighbours do: they are cheap to read with it. The page alone where it has no
    /// frame.
    pub fn frame_around(&self, space: Space, page: u64) -> PageRange {
        let alone = PageRange::new(page, 1);
        match self.contents_in(space, alone).ok().and_then(|runs| runs.first().map(|run| run.source)) {
            Some(Source::Data { layer, frame, page: before }) => {
                let first = page.saturating_sub(u64::from(before));
                PageRange::new(first, u64::from(self.frame(layer, frame).pages))
            }
            _ => alone,
        }
    }

    fn frame(&self, layer: u16, frame: u32) -> &Frame {
        &self.layers[usize::from(layer)].index.frames[frame as usize]
    }

    fn read_frame_part(
        &self,
        layer_number: u16,
        number: u32,
        page: usize,
        buf: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), StoreError> {
        let layer = &self.layers[usize::from(layer_number)];
        let frame = &layer.index.frames[number as usize];
        if frame.packing == Packing::Raw {
            if buf.len() == frame.stored as usize {
                layer.read(frame.file, frame.offset, buf)?;
                return layer.check(number, buf);
            }
            if !self.suspicious && layer.intact[number as usize].load(Ordering::Relaxed) {
                return layer.read(frame.file, frame.offset + (page * PAGE_BYTES) as u64, buf);
            }
        }
        let pages = scratch.frame((layer_number, number), |pages, packed| layer.load(number, pages, packed))?;
        buf.copy_from_slice(&pages[page * PAGE_BYTES..][..buf.len()]);
        Ok(())
    }

    /// Frames of every image of the chain, as (image, frame).
    pub fn frames(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        let layers = self.layers.iter().zip(0u16..);
        layers.flat_map(|(layer, n)| (0u32..).take(layer.index.frames.len()).map(move |frame| (n, frame)))
    }

    /// Reads, checks and unpacks one frame; gives its length in the file.
    pub fn verify_frame(&self, (layer, frame): (u16, u32), scratch: &mut Scratch) -> Result<u64, StoreError> {
        let mut pages = PageBuffer::default();
        self.layers[usize::from(layer)].load(frame, &mut pages, &mut scratch.packed)?;
        Ok(u64::from(self.frame(layer, frame).stored))
    }
}

/// Is every page of the space where the model has memory?
fn fit(entry: &SpaceEntry, model: &Model) -> Result<(), StoreError> {
    let foreign = |page| StoreError::Foreign { space: entry.space, page };
    let first = entry.runs.first().map_or(0, |r| r.range.first);
    let mut places = RangeSet::new();
    match entry.space {
        Space::Mm(id) => {
            let mm = model.mms.get(id.at()).ok_or_else(|| foreign(first))?;
            if entry.cow_parent.is_some() && entry.cow_parent != mm.cow_parent {
                return Err(foreign(first));
            }
            mm.vmas.iter().for_each(|vma| places.insert(PageRange::of_bytes(vma.start, vma.end)));
        }
        Space::Shmem(id) => {
            let shmem = model.shmems.get(id.at()).ok_or_else(|| foreign(first))?;
            places.insert(PageRange::of_bytes(0, shmem.size));
        }
    }
    let held: RangeSet = entry.runs.iter().map(|r| r.range).collect();
    held.difference(&places).ranges().first().map_or(Ok(()), |outside| Err(foreign(outside.first)))
}

impl ResolvedRun {
    /// The run in pieces that do not cross frames: a piece that is a whole frame is checked without reading it twice.
    pub fn by_frame<'a>(&self, reader: &'a PageReader) -> impl Iterator<Item = ResolvedRun> + use<'a> {
        let mut rest = *self;
        std::iter::from_fn(move || {
            if rest.range.is_empty() {
                return None;
            }
            let mut piece = rest;
            if let Source::Data { layer, frame, page } = rest.source {
                let held = reader.frame(layer, frame).pages;
                piece.range.count = piece.range.count.min(u64::from(held - page));
                rest.source = Source::Data { layer, frame: frame + 1, page: 0 };
            }
            rest.range = PageRange::new(piece.range.end(), rest.range.count - piece.range.count);
            Some(piece)
        })
    }

    /// The part of the run with these pages, which are all in it.
    pub fn cut(&self, range: PageRange, reader: &PageReader) -> Self {
        let mut skip = range.first - self.range.first;
        let source = match self.source {
            Source::Data { layer, mut frame, page } => {
                skip += u64::from(page);
                while skip >= u64::from(reader.frame(layer, frame).pages) {
                    skip -= u64::from(reader.frame(layer, frame).pages);
                    frame += 1;
                }
                Source::Data { layer, frame, page: u32::try_from(skip).expect("below the pages of a frame") }
            }
            other => other,
        };
        Self { space: self.space, range, source }
    }
}

impl Layer {
    fn open(image: &ImageDir) -> Result<Self, StoreError> {
        let dir = image.path().to_owned();
        let index = image.index()?;
        let mut files = Vec::with_capacity(index.files.len());
        for (n, bytes) in index.files.iter().enumerate() {
            let path = dir.join(pages_file(n));
            let (file, found) = super::dir::open_plain(&path)?;
            if found != *bytes {
                return Err(StoreError::Damaged { path, what: format!("it has {found} bytes instead of {bytes}") });
            }
            files.push(file);
        }
        let intact = index.frames.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self { dir, index, files, intact })
    }

    fn path(&self, file: u16) -> PathBuf {
        self.dir.join(pages_file(usize::from(file)))
    }

    fn read(&self, file: u16, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let read = self.files[usize::from(file)].read_exact_at(buf, offset);
        read.map_err(|e| StoreError::io("read", self.path(file))(e))
    }

    fn check(&self, number: u32, stored: &[u8]) -> Result<(), StoreError> {
        let frame = &self.index.frames[number as usize];
        if super::frame_check(stored) != frame.check {
            let what = format!("the checksum of the {} bytes at {} does not match", frame.stored, frame.offset);
            return Err(StoreError::Damaged { path: self.path(frame.file), what });
        }
        self.intact[number as usize].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads, checks and unpacks a frame into `pages`.
    fn load(&self, number: u32, pages: &mut PageBuffer, packed: &mut Vec<u8>) -> Result<(), StoreError> {
        let frame = &self.index.frames[number as usize];
        let raw = frame.pages as usize * PAGE_BYTES;
        pages.resize(raw);
        packed.resize(frame.stored as usize, 0);
        let into = if frame.packing == Packing::Raw { &mut pages[..] } else { &mut packed[..] };
        self.read(frame.file, frame.offset, into)?;
        self.check(number, into)?;
        if frame.packing == Packing::Zstd {
            let unpacked = zstd::zstd_safe::decompress(&mut pages[..], packed);
            if unpacked != Ok(raw) {
                let what = format!("the {} bytes at {} do not unpack to {raw}", frame.stored, frame.offset);
                return Err(StoreError::Damaged { path: self.path(frame.file), what });
            }
        }
        Ok(())
    }
}
