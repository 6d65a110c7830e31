//! Where an image goes: a directory or a stream, with or without a parent image.

use crate::blocker::codes;
use crate::collect::{ShmemSource, Sources, host};
use crate::failure::{Failure, FailureKind, Result};
use crate::image::manifest::{HostSummary, Kind, Wishes};
use crate::image::{MmId, Model, Pid, ShmemId};
use crate::memory::pipeline::Against;
use crate::memory::rounds::{Tree, Watched};
use crate::memory::store::{
    Compression, Draft, Head, ImageDir, ImageWriter, PageOptions, PageReader, PageSink, PageWriter, SpaceInfo,
    StoreError, StoredPages, StreamWriter, free_bytes,
};
use crate::memory::track::{Backend, hash::Sieve};
use crate::memory::{RangeSet, Space};
use crate::ops::choices;
use crate::ops::options::{DumpOptions, ImagePlace};
use crate::proc::ProcDir;
use std::collections::HashMap;
use std::io::Stdout;
use std::path::Path;
use std::sync::Arc;

/// What pages go into.
enum Out {
    Dir { image: Box<ImageWriter>, pages: Box<PageWriter> },
    Stream(Box<StreamWriter<Stdout>>),
}

/// An image in the making.
pub(crate) struct Place {
    out: Out,
    parent: Option<Parent>,
}

/// The parent image.
struct Parent {
    reader: Arc<PageReader>,
    id: String,
    /// It was made since this boot: only then do identities mean anything.
    same_boot: bool,
    /// Nobody knows what has been written since: pages are compared.
    compare: bool,
}

/// What spaces are known by from one dump to the next.
#[derive(Debug, Default, Clone)]
pub(crate) struct Identities {
    of: HashMap<Space, SpaceInfo>,
}

/// The identity of an address space: its process and when that began.
pub(crate) fn identity(pid: Pid, start_time: u64) -> [u64; 2] {
    [1 << 63 | u64::from(pid.0.cast_unsigned()), start_time]
}

/// [`Against`] with what it borrows.
pub(crate) struct Compare<'a> {
    parent: &'a PageReader,
    space: Box<dyn Fn(Space) -> Option<Space> + Sync + 'a>,
}

impl Identities {
    /// Of spaces that are known by other names from now on.
    pub fn renamed(self, names: &HashMap<Space, Space>) -> Self {
        let name = |space| names.get(&space).copied().unwrap_or(space);
        let renamed = |info: SpaceInfo| {
            let cow_parent = info.cow_parent.and_then(|id| match name(Space::Mm(id)) {
                Space::Mm(id) => Some(id),
                Space::Shmem(_) => None,
            });
            SpaceInfo { cow_parent, ..info }
        };
        Self { of: self.of.into_iter().map(|(space, info)| (name(space), renamed(info))).collect() }
    }
}

impl Compare<'_> {
    /// As the pipeline takes it.
    pub fn get(&self) -> Against<'_> {
        Against { parent: self.parent, space: &*self.space }
    }
}

fn cannot_write(dir: &Path, e: &StoreError) -> Failure {
    Failure::of(format!("cannot write an image to {}", dir.display()), e).code(e.code())
}

/// Opens a parent image.
pub(crate) fn parent_of(dir: &Path) -> Result<(ImageDir, Arc<PageReader>, bool)> {
    let failed = |e: StoreError| {
        let code = e.code();
        Failure::of(format!("cannot use {} as the parent image", dir.display()), &e).kind(FailureKind::Image).code(code)
    };
    let image = ImageDir::open(dir).map_err(failed)?;
    let reader = PageReader::of(&image).map_err(failed)?;
    let same_boot = image.manifest().host.boot_id == crate::proc::sys::boot_id().unwrap_or_default();
    Ok((image, Arc::new(reader), same_boot))
}

impl Place {
    /// Begins an image.
    ///
    /// # Errors
    /// No room, something in the way, a parent that is damaged.
    pub fn begin(options: &DumpOptions, processes: &[Pid], compression: Compression) -> Result<Self> {
        match &options.image {
            ImagePlace::Dir(dir) => Self::in_dir(dir, options.force, options.parent.as_deref(), processes, compression),
            ImagePlace::Stream if options.parent.is_some() => {
                Err(Failure::new("a stream stands for itself: it cannot have a parent image").kind(FailureKind::Usage))
            }
            ImagePlace::Stream => {
                let level = if let Compression::Zstd(level) = compression { Some(level) } else { None };
                let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("cannot write the stream", e);
                let host = host::collect(None).map_err(|e| failed(&e))?;
                let host = HostSummary::of(&Model::empty(host));
                let head = Head { kind: Kind::Full, host, tree: Vec::new(), restore: choices::to_note(&options.state) };
                let stream = StreamWriter::new(std::io::stdout(), level, &head).map_err(|e| failed(&e))?;
                Ok(Self { out: Out::Stream(Box::new(stream)), parent: None })
            }
        }
    }

    /// Begins an image in a directory.
    ///
    /// # Errors
    /// As [`Place::begin`].
    pub fn in_dir(
        dir: &Path,
        force: bool,
        parent: Option<&Path>,
        processes: &[Pid],
        compression: Compression,
    ) -> Result<Self> {
        let parent = parent.map(parent_of).transpose()?;
        let mut image = ImageWriter::create(dir, force).map_err(|e| cannot_write(dir, &e))?;
        if parent.is_none() {
            check_room(&image, dir, processes)?;
        }
        if let Some((parent, ..)) = &parent {
            image.set_parent(parent).map_err(|e| cannot_write(dir, &e))?;
        }
        let parent = parent.map(|(image, reader, same_boot)| {
            let id = image.id().to_owned();
            Parent { reader, id, same_boot, compare: true }
        });
        let pages = image.pages(PageOptions { compression, parent: parent.as_ref().map(|p| p.reader.clone()) });
        Ok(Self { out: Out::Dir { image: Box::new(image), pages: Box::new(pages) }, parent })
    }

    /// Where pages go.
    pub fn sink(&self) -> &dyn PageSink {
        match &self.out {
            Out::Dir { pages, .. } => &**pages,
            Out::Stream(stream) => &**stream,
        }
    }

    /// Bytes of pages written so far.
    pub fn bytes(&self) -> u64 {
        match &self.out {
            Out::Dir { pages, .. } => pages.bytes(),
            Out::Stream(stream) => stream.bytes(),
        }
    }

    /// The id of the parent image.
    pub fn parent_id(&self) -> Option<&str> {
        self.parent.as_ref().map(|p| p.id.as_str())
    }

    /// A tracker knows which pages have been written since the parent image: nothing needs to be compared.
    pub fn tracked_since_parent(&mut self) {
        if let Some(parent) = &mut self.parent {
            parent.compare = false;
        }
    }

    /// The pages that the parent image has of this space.
    pub fn pages_of_parent(&self, identity: [u64; 2]) -> Option<RangeSet> {
        let space = self.in_parent(identity)?;
        let entry = self.parent.as_ref()?.reader.index().space(space)?;
        Some(entry.runs.iter().map(|run| run.range).collect())
    }

    /// The parent's space that was this one.
    fn in_parent(&self, identity: [u64; 2]) -> Option<Space> {
        self.parent.as_ref().filter(|p| p.same_boot).and_then(|p| p.reader.by_identity(identity))
    }

    fn info(&self, identity: [u64; 2]) -> SpaceInfo {
        SpaceInfo { identity, parent: self.in_parent(identity), cow_parent: None }
    }

    /// What the spaces of a stopped tree are known by.
    pub fn identities(&self, model: &Model, sources: &Sources) -> Identities {
        let mut of = HashMap::new();
        for (n, (pid, mm)) in sources.mms.iter().zip(&model.mms).enumerate() {
            if let Ok(stat) = ProcDir::open(*pid).and_then(|d| d.stat(&mut Vec::new())) {
                let info = SpaceInfo { cow_parent: mm.cow_parent, ..self.info(identity(*pid, stat.starttime)) };
                of.insert(Space::Mm(MmId::from(n)), info);
            }
        }
        for (n, ShmemSource::File(file)) in sources.shmems.iter().enumerate() {
            if let Ok(stat) = nix::sys::stat::fstat(file) {
                of.insert(Space::Shmem(ShmemId::from(n)), self.info([stat.st_dev, stat.st_ino]));
            }
        }
        Identities { of }
    }

    /// What the spaces of a tree that is watched are known by.
    pub fn live_identities(&self, tree: &mut Tree) -> Identities {
        let info = |w: &Watched| {
            let kin = w.kinship.as_ref().filter(|k| !k.shared.is_empty()).and_then(|k| k.parent);
            let cow_parent = if let Some(Space::Mm(id)) = kin { Some(id) } else { None };
            SpaceInfo { cow_parent, ..self.info(identity(w.dir.pid(), w.start_time)) }
        };
        Identities { of: tree.watched().iter().map(|w| (w.space, info(w))).collect() }
    }

    /// How pages are compared with the parent image, if there is one.
    pub fn against<'a>(&'a self, identities: &'a Identities) -> Option<Compare<'a>> {
        let parent = &*self.parent.as_ref().filter(|p| p.compare)?.reader;
        let space = Box::new(|space: Space| identities.of.get(&space).and_then(|i| i.parent));
        Some(Compare { parent, space })
    }

    /// Notes in the image what its spaces are known by.
    ///
    /// # Errors
    /// A stream that breaks.
    pub fn declare(&self, out: &dyn PageSink, identities: &Identities) -> std::result::Result<(), StoreError> {
        identities.of.iter().try_for_each(|(space, info)| out.space(*space, *info))
    }

    /// Completes the image: synced and renamed when this returns. `wishes`: what a restore does that is not told otherwise (a
    /// stream has said it at its beginning).
    ///
    /// # Errors
    /// A full disk; then there is no image.
    pub fn finish(self, model: &Model, wishes: Wishes) -> Result<()> {
        let failed = |e: StoreError| Failure::of("cannot write the image", &e).code(e.code());
        match self.out {
            Out::Dir { mut image, pages } => {
                let stored = pages.finish().map_err(failed)?;
                image.write_model(model).map_err(failed)?;
                let draft = Draft { restore: wishes, ..Draft::of(model, &stored) };
                image.commit(draft, stored).map_err(failed)?;
            }
            Out::Stream(stream) => {
                stream.model(model).and_then(|()| stream.finish()).map_err(|e| failed(e.into()))?;
            }
        }
        Ok(())
    }

    /// Completes an image of memory alone; gives its id.
    ///
    /// # Errors
    /// A full disk; then there is no image.
    pub fn finish_memory(self, draft: impl FnOnce(&StoredPages) -> Draft) -> Result<String> {
        let failed = |e: StoreError| Failure::of("cannot write the image", &e).code(e.code());
        let Out::Dir { image, pages } = self.out else {
            return Err(Failure::new("memory alone cannot be sent as a stream").kind(FailureKind::Usage));
        };
        let stored = pages.finish().map_err(failed)?;
        let draft = draft(&stored);
        Ok(image.commit(draft, stored).map_err(failed)?.id().to_owned())
    }
}

/// Refuses before anything is stopped what cannot fit. Pages that processes share copy-on-write count once for each in
/// their resident sizes, so where those do not fit the kernel is asked for the proportional ones, which takes longer.
fn check_room(image: &ImageWriter, dir: &Path, processes: &[Pid]) -> Result<()> {
    let Ok(free) = free_bytes(image.partial_path()) else { return Ok(()) };
    let mut buf = Vec::new();
    let mut sum = |size: &mut dyn FnMut(&ProcDir, &mut Vec<u8>) -> u64| -> u64 {
        processes.iter().filter_map(|pid| Some(size(&ProcDir::open(*pid).ok()?, &mut buf))).sum()
    };
    let resident =
        sum(&mut |p, buf| p.status(buf).ok().and_then(|s| s.memory).map_or(0, |m| m.rss_anon + m.rss_shmem + m.swap));
    if resident <= free {
        return Ok(());
    }
    let needed = sum(&mut |p, buf| p.smaps_rollup(buf).map_or(0, |s| s.pss + s.swap));
    if needed <= free {
        return Ok(());
    }
    let what = format!("the image needs about {needed} bytes, {} has {free} bytes free", dir.display());
    Err(Failure::new(what).code(codes::DISK_SPACE).hint("make room there, or choose another directory with -D"))
}

/// The sink of a dump, with what stands in front of it.
pub(crate) struct Sink<'p> {
    plain: &'p dyn PageSink,
    sieve: Option<Sieve<'p>>,
    backend: Backend,
}

impl<'p> Sink<'p> {
    /// For this way of tracking.
    pub fn of(place: &'p Place, backend: Backend) -> Self {
        let plain = place.sink();
        Self { plain, sieve: (backend == Backend::Hash).then(|| Sieve::new(plain)), backend }
    }

    /// What pages are given to.
    pub fn get(&self) -> &dyn PageSink {
        match &self.sieve {
            Some(sieve) => sieve,
            None => self.plain,
        }
    }

    /// How pages are tracked.
    pub fn backend(&self) -> Backend {
        self.backend
    }
}
