//! Pages as they come, and the states that are made of them.
//!
//! ```text
//! N.pages   contents, each in a place of its own; a place is written to once, until no complete state needs it any more
//! state     the newest complete state: what lies where, and the model ([`super::state`]); renamed to this name, once it is on the disk
//! ```
//! Each session of an attempt begins a file of pages of its own: until it has a complete state, the one before it keeps its own.

use super::layer::{Layer, Mark, Slot};
use super::state::Head;
use super::{Described, PAGES, STATE, Terms};
use crate::image::mm::PAGE;
use crate::memory::store::free_bytes;
use crate::migration::pages::{Run, What};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use xxhash_rust::xxh3::xxh3_64;

/// Room that is left to others, bytes.
const RESERVE_BYTES: u64 = 64 << 20;
/// Room is looked at whenever the file has grown by so many pages: 16 MiB.
const LOOK_EVERY: u64 = 4096;

/// The pages of one attempt, and its newest complete state.
#[derive(Debug)]
pub struct Keeping {
    dir: PathBuf,
    /// Name of the file of pages.
    name: String,
    file: File,
    terms: Terms,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What rounds have brought.
    rounds: Layer,
    /// What was read of a target that stood still, on top of that.
    still: Layer,
    /// Pages go there.
    is_still: bool,
    /// Places that the newest complete state refers to.
    kept: Vec<bool>,
    /// Places that nobody refers to, below the end.
    free: Vec<u64>,
    end: u64,
    /// The end when room was looked at last.
    looked_at: u64,
    /// Why no further state can be kept: pages are missing.
    trouble: Option<String>,
}

impl State {
    /// Places for so many pages; neighbours where that is possible.
    fn allot(&mut self, count: u64) -> Vec<u64> {
        let from = self.free.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
        let mut numbers = self.free.split_off(from);
        numbers.sort_unstable();
        let more = count - numbers.len() as u64;
        numbers.extend(self.end..self.end + more);
        self.end += more;
        numbers
    }

    /// Nobody refers to these any more, unless the newest complete state does.
    fn release(&mut self, numbers: Vec<u64>) {
        let is_kept = |number: &u64| usize::try_from(*number).is_ok_and(|at| self.kept.get(at) == Some(&true));
        let free: Vec<u64> = numbers.into_iter().filter(|number| !is_kept(number)).collect();
        self.free.extend(free);
    }

    fn layer(&mut self) -> &mut Layer {
        if self.is_still { &mut self.still } else { &mut self.rounds }
    }

    /// What was read of a target that stood still, and is not complete, is of no use.
    fn forget_still(&mut self) {
        let still = std::mem::take(&mut self.still);
        self.release(still.slots.into_values().map(|slot| slot.number).collect());
    }

    /// What is there now is the newest complete state.
    fn settle(&mut self) {
        self.kept = vec![false; usize::try_from(self.end).unwrap_or(usize::MAX)];
        for slot in self.rounds.slots.values().chain(self.still.slots.values()) {
            self.kept[slot.number as usize] = true;
        }
        self.free = (0..self.end).filter(|number| !self.kept[*number as usize]).collect();
        self.still = Layer::default();
    }
}

impl Keeping {
    /// Begins to keep pages in this directory, which is made (0700) if it is not there. What is complete there stays.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(dir: &Path, terms: Terms) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let (name, file) = (1u32..)
            .find_map(|number| {
                let name = format!("{number}.{PAGES}");
                let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(&name));
                match made {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                    made => Some(made.map(|file| (name, file))),
                }
            })
            .unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()))?;
        Ok(Self { dir: dir.to_owned(), name, file, terms, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round begins; `is_still`: of a target that stood still, for a state.
    pub fn begins(&self, is_still: bool) {
        let has_room = self.has_room();
        let mut state = self.state();
        state.forget_still();
        state.is_still = is_still;
        if !has_room {
            state.trouble.get_or_insert_with(|| self.no_room().to_string());
        }
    }

    fn has_room(&self) -> bool {
        free_bytes(&self.dir).unwrap_or(u64::MAX) >= RESERVE_BYTES
    }

    fn no_room(&self) -> io::Error {
        io::Error::other(format!("{} has no room for the pages", self.dir.display()))
    }

    /// Takes what came of pages. Whatever does not work out shows when a state is to be kept: nothing else depends on it.
    pub fn take(&self, run: Run, content: &[u8]) {
        if self.state().trouble.is_some() {
            return;
        }
        if let Some(mark) = Mark::of(run.what) {
            let mut state = self.state();
            let freed = state.layer().mark(run.space, run.range, mark);
            return state.release(freed);
        }
        let stored = match run.what {
            What::Data => self.store(run, content),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "pages came that need others")),
        };
        if let Err(error) = stored {
            tracing::warn!(%error, dir = %self.dir.display(), "pages of a stand-by were not stored");
            let mut state = self.state();
            state.trouble.get_or_insert_with(|| error.to_string());
            // Nothing more is kept in this file, and others need the room.
            if !state.kept.contains(&true) {
                let _ = self.file.set_len(0);
            }
        }
    }

    fn store(&self, run: Run, content: &[u8]) -> io::Result<()> {
        let (numbers, has_grown) = {
            let mut state = self.state();
            let numbers = state.allot(run.range.count);
            let has_grown = state.end - state.looked_at >= LOOK_EVERY;
            if has_grown {
                state.looked_at = state.end;
            }
            (numbers, has_grown)
        };
        if has_grown && !self.has_room() {
            return Err(self.no_room());
        }
        let mut rest = content;
        for neighbours in numbers.chunk_by(|a, b| a + 1 == *b) {
            let (part, later) = rest.split_at(neighbours.len() * PAGE as usize);
            self.file.write_all_at(part, neighbours[0] * PAGE)?;
            rest = later;
        }
        let checks = content.chunks_exact(PAGE as usize).map(xxh3_64);
        let slots: Vec<Slot> =
            numbers.iter().zip(checks).map(|(number, check)| Slot { number: *number, check }).collect();
        let mut state = self.state();
        let freed = state.layer().place(run.space, run.range.first, &slots);
        state.release(freed);
        Ok(())
    }

    /// All of a state has come: it is on the disk, and the newest one, when this returns.
    ///
    /// # Errors
    /// Pages could not be stored; the file system's. The state before it is as it was.
    pub fn keep(&self, described: &Described<'_>) -> io::Result<()> {
        let mut state = self.state();
        if let Some(trouble) = &state.trouble {
            return Err(io::Error::other(trouble.clone()));
        }
        self.file.sync_data()?;
        let taken = SystemTime::now() - described.age;
        let since = taken.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let head = Head {
            unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            pages: self.name.clone(),
            names: described.names.to_vec(),
            terms: self.terms.clone(),
            lengths: (0, 0, 0),
        };
        let part = self.dir.join("part");
        head.write(&part, described.model, &[&state.rounds, &state.still])?;
        fs::rename(&part, self.dir.join(STATE))?;
        File::open(&self.dir)?.sync_all()?;
        state.settle();
        drop(state);
        self.remove_others();
        Ok(())
    }

    /// Pages of sessions before this one, which no state has any more.
    fn remove_others(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_of_pages = Path::new(&name).extension().is_some_and(|end| end == PAGES);
            if is_of_pages && name != self.name.as_str() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
#[path = "keeping_tests.rs"]
mod tests;
