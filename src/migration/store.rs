//! The page store at the destination: an image in the making, on a file system of memory where there is room, that rounds
//! are written into as they come. When the final model is there it becomes a complete image, from which the target is
//! rebuilt as from any other; it is removed with this value.

use super::MoveError;
use super::intake::Intake;
use super::landing::{Landing, Left};
use super::pages::{self, Run, What};
use super::protocol::{AttemptId, SpaceName};
use super::shelf::Fetching;
use crate::image::{MmId, Model, mm::PAGE};
use crate::memory::store::{
    Compression, Draft, ImageDir, ImageWriter, Lane, Mark, PageOptions, PageReader, PageWriter, Scratch, Source,
    SpaceInfo, StoreError, free_bytes,
};
use crate::memory::{PageBuffer, Space};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, DirEntry, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Room that is left to others, bytes.
const RESERVE_BYTES: u64 = 64 << 20;

/// Name of a store's directory, before the number of the attempt.
const PREFIX: &str = "migrate-incoming-";

/// Stores of one move on one host, at most.
const STORES_MAX: u32 = 64;

/// A store that nobody holds is not looked at before this age: its owner may be about to take hold of it.
/// One that takes longer has no store then, and its attempt fails.
const YOUNG: Duration = Duration::from_secs(5);

/// Pages on their way in. Dropped: everything is removed.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// Tells that its owner lives.
    _held: Flock<File>,
    image: Option<ImageWriter>,
    pages: Option<PageWriter>,
    /// Something was stored, or said about a page.
    used: AtomicBool,
}

impl Store {
    /// Begins a store for a target of `memory_bytes` in the first of `places` that has room for it.
    ///
    /// # Errors
    /// [`MoveError::NoRoom`] when none has; [`MoveError::Store`].
    pub fn begin(places: &[&Path], id: AttemptId, memory_bytes: u64, max: Option<u64>) -> Result<Self, MoveError> {
        // A target that is too large is refused by the verdict; a store is needed to get there.
        let wanted = max.map_or(memory_bytes, |max| memory_bytes.min(max));
        let mut best = 0;
        sweep(places);
        for place in places {
            let free = free_bytes(place).unwrap_or(0).saturating_sub(RESERVE_BYTES);
            best = best.max(free);
            if free >= wanted {
                return Self::begin_below(place, id);
            }
        }
        Err(MoveError::NoRoom { wanted, free: best })
    }

    fn begin_below(place: &Path, id: AttemptId) -> Result<Self, MoveError> {
        let mut number = 1;
        loop {
            let dir = match number {
                1 => place.join(format!("{PREFIX}{id}")),
                number => place.join(format!("{PREFIX}{id}-{number}")),
            };
            // The one before may be on its way out; and other destinations of the same move may be on this host.
            match Self::begin_in(&dir) {
                Err(MoveError::Store(StoreError::Io { source, .. }))
                    if source.kind() == std::io::ErrorKind::AlreadyExists && number < STORES_MAX =>
                {
                    number += 1;
                }
                begun => return begun,
            }
        }
    }

    fn begin_in(dir: &Path) -> Result<Self, MoveError> {
        DirBuilder::new().mode(0o700).create(dir).map_err(|source| StoreError::Io {
            operation: "make the directory",
            path: dir.into(),
            source,
        })?;
        let hold =
            |source: std::io::Error| StoreError::Io { operation: "lock the directory", path: dir.into(), source };
        let held = Flock::lock(File::open(dir).map_err(hold)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| hold(errno.into()))?;
        let mut store = Self { dir: dir.into(), _held: held, image: None, pages: None, used: AtomicBool::new(false) };
        let image = ImageWriter::create(&dir.join("image"), false)?;
        store.pages = Some(image.pages(PageOptions { compression: Compression::Off, parent: None }));
        store.image = Some(image);
        Ok(store)
    }

    /// Begins anew, empty. What was stored is removed with the value that is returned, or at once if it has been `used`.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn renew(
        &mut self,
        places: &[&Path],
        id: AttemptId,
        (bytes, max): (u64, Option<u64>),
        used: bool,
    ) -> Result<Self, MoveError> {
        if used {
            let path = self.dir.join("image");
            fs::remove_dir_all(&path).map_err(|source| StoreError::Io {
                operation: "remove the directory",
                path,
                source,
            })?;
        }
        let new = Self::begin(places, id, bytes, max)?;
        Ok(std::mem::replace(self, new))
    }

    /// Stores what an image has that was made of a store with these names.
    ///
    /// # Errors
    /// The image cannot be read, or there is no room.
    pub fn take_back(&self, image: &ImageDir, names: &[SpaceName]) -> Result<(), MoveError> {
        let reader = PageReader::of(image)?;
        let (mut taker, mut scratch, mut content) = (self.taker(), Scratch::default(), PageBuffer::default());
        for name in names {
            let (Some(home), space) = (name.model.map(Space::from), Space::from(name.sent_as)) else { continue };
            for run in reader.runs(home)?.iter().flat_map(|run| run.by_frame(&reader)) {
                content.resize(0);
                let what = match run.source {
                    Source::Data { .. } => {
                        content.resize(run.range.bytes() as usize);
                        reader.read_into(&run, &mut content, &mut scratch)?;
                        What::Data
                    }
                    Source::Zero => What::Zero,
                    Source::Inherit => What::Inherit,
                };
                taker.store(Run::new(space, run.range, what), &content)?;
            }
        }
        Ok(())
    }

    /// Bytes of pages that can still be stored.
    pub fn room_bytes(&self) -> u64 {
        free_bytes(&self.dir).unwrap_or(0).saturating_sub(RESERVE_BYTES)
    }

    /// A place for one thread to store frames of pages.
    pub fn taker(&self) -> Taker<'_> {
        Taker { pages: self.pages.as_ref(), used: &self.used, lane: None, buffer: Vec::new() }
    }

    /// Whether anything was stored.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Everything is there: a complete image. `names` say what spaces are called in the model; those it does not name go.
    pub fn finish(&mut self, model: &Model, names: &[SpaceName]) -> Result<ImageDir, MoveError> {
        let (Some(pages), Some(mut image)) = (self.pages.take(), self.image.take()) else {
            return Err(MoveError::Names { reason: "the store was finished before".into() });
        };
        let mut renamed = BTreeMap::new();
        for name in names {
            let model_space = name.model.map(Space::from);
            if renamed.insert(Space::from(name.sent_as), model_space).is_some() {
                return Err(MoveError::Names { reason: format!("{} is named twice", Space::from(name.sent_as)) });
            }
            if let Some(space) = model_space {
                let known = match space {
                    Space::Mm(id) => id.at() < model.mms.len(),
                    Space::Shmem(id) => id.at() < model.shmems.len(),
                };
                if !known || name.cow_parent.is_some_and(|parent| parent as usize >= model.mms.len()) {
                    return Err(MoveError::Names { reason: format!("{space} is not in the model") });
                }
                let cow_parent = name.cow_parent.map(MmId);
                pages.space(space, SpaceInfo { cow_parent, ..SpaceInfo::default() });
            }
        }
        let mut taken: Vec<Space> = renamed.values().flatten().copied().collect();
        taken.sort_unstable();
        if taken.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(MoveError::Names { reason: "two spaces have one name in the model".into() });
        }
        let stored = pages.finish_renamed(&|space| renamed.get(&space).copied().flatten())?;
        image.write_model(model)?;
        let draft = Draft::of(model, &stored);
        Ok(image.commit(draft, stored)?)
    }
}

/// Where stores are made, the first that has room. Memory first: contents are read back once, a moment later.
pub fn places(state_dir: &Path) -> [&Path; 3] {
    [Path::new("/dev/shm"), Path::new("/var/tmp"), state_dir]
}

/// Removes stores of this user whose owners were killed: on a file system of memory they would take it for good.
pub fn sweep(places: &[&Path]) {
    places.iter().for_each(|place| remove_abandoned(place, YOUNG));
}

fn remove_abandoned(place: &Path, young: Duration) {
    let abandoned = |entry: &DirEntry| {
        let meta = entry.metadata().ok()?;
        let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw();
        let old = meta.modified().ok()?.elapsed().ok()? >= young;
        let named = entry.file_name().to_str()?.starts_with(PREFIX);
        (ours && old && named).then_some(())?;
        Flock::lock(File::open(entry.path()).ok()?, FlockArg::LockExclusiveNonblock).ok()
    };
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if let Some(_held) = abandoned(&entry)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, dir = %entry.path().display(), "an abandoned page store was not removed");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.pages = None;
        self.image = None;
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "the page store of an attempt was not removed");
        }
    }
}

/// One thread's way into the store.
pub struct Taker<'a> {
    pages: Option<&'a PageWriter>,
    used: &'a AtomicBool,
    lane: Option<Lane<'a>>,
    buffer: Vec<u8>,
}

impl Taker<'_> {
    /// Takes what a frame says: what can land lands, the rest is stored.
    pub(super) fn take(&mut self, frame: &[u8], into: Intake<'_>, fetching: &mut Fetching) -> Result<(), MoveError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut result = Ok(());
        pages::unpack(frame, &mut buffer, &mut |run, content| {
            if result.is_err() {
                return;
            }
            let mut take = |run, content: &[u8]| self.take_content(run, content, into);
            result = match run.what {
                What::Named => into.shelf.fetch(run, content, fetching, &mut take),
                _ => take(run, content),
            };
        })
        .map_err(|error| MoveError::Frame { reason: error.to_string() })?;
        self.buffer = buffer;
        result
    }

    fn take_content(&mut self, run: Run, content: &[u8], into: Intake<'_>) -> Result<(), MoveError> {
        let (run, content) = into.bases.take(run, content)?;
        if run.shelve {
            into.shelf.keep(&content)?;
        }
        into.standby.iter().for_each(|keeping| keeping.take(run, &content));
        if into.of_state { Ok(()) } else { self.take_run(run, &content, into.landing) }
    }

    fn take_run(&mut self, run: Run, content: &[u8], landing: Option<&Landing>) -> Result<(), MoveError> {
        let Some(landing) = landing else { return self.store(run, content) };
        for Left { range, at } in landing.take(run, content)? {
            let from = (at * PAGE) as usize;
            let part = if content.is_empty() { content } else { &content[from..from + range.bytes() as usize] };
            self.store(Run { range, ..run }, part)?;
        }
        Ok(())
    }

    /// Stores a run.
    pub fn store(&mut self, run: Run, content: &[u8]) -> Result<(), MoveError> {
        let Some(pages) = self.pages else {
            return Err(MoveError::Names { reason: "pages came that have no place".into() });
        };
        self.used.store(true, Ordering::Relaxed);
        let mark = match run.what {
            What::Data => {
                if self.lane.is_none() {
                    self.lane = Some(pages.lane()?);
                }
                let lane = self.lane.as_mut().expect("made above");
                return Ok(lane.write_run(run.space, run.range.first, content)?);
            }
            What::Zero => Mark::Zero,
            What::Hole => Mark::Hole,
            What::Inherit => Mark::Inherit,
            What::Keep | What::Delta | What::Named => {
                return Err(MoveError::Frame { reason: "a delta or a digest where nothing was sent before".into() });
            }
        };
        pages.mark(run.space, run.range, mark);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_whose_owner_was_killed_is_removed_by_the_next() {
        let place = tempfile::tempdir().unwrap();
        let dir = |name: &str| place.path().join(name);
        let held = Store::begin_in(&dir("migrate-incoming-held")).unwrap();
        for name in ["migrate-incoming-dead", "somebody-elses"] {
            fs::create_dir(dir(name)).unwrap();
            fs::write(dir(name).join("pages"), "memory").unwrap();
        }
        remove_abandoned(place.path(), YOUNG);
        assert!(dir("migrate-incoming-dead").exists(), "it is young");
        remove_abandoned(place.path(), Duration::ZERO);
        let there = ["migrate-incoming-dead", "somebody-elses", "migrate-incoming-held"].map(|name| dir(name).exists());
        assert_eq!(there, [false, true, true]);
        drop(held);
        assert!(!dir("migrate-incoming-held").exists());
    }
}
