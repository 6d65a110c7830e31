//! What the engine is told of an attempt, and what it gives.

use crate::memory::store::ImageDir;
use crate::memory::{RangeSet, Space};
use crate::migration::landing::Memory;
use crate::migration::postcopy::Later;
use crate::migration::protocol::AttemptId;
use std::collections::HashMap;
use std::path::Path;

/// Who comes.
#[derive(Debug)]
pub struct Introduction<'a> {
    /// The session, as the source's user knows it.
    pub session: &'a str,
    /// From where.
    pub peer: &'a str,
    /// Process id of the root at the source.
    pub target_pid: i32,
    /// Nothing will come: this is only a look.
    pub dry_run: bool,
}

/// Pages that come later.
#[derive(Debug)]
pub struct Expected<'a> {
    /// Names the attempt in paths.
    pub attempt: AttemptId,
    /// Directory of sockets.
    pub run: &'a Path,
    /// Who brings them.
    pub peer: &'a str,
    /// Which, by the names of the final model.
    pub pages: Later,
    /// It is to be known which of them were written to since they came, where that can be told.
    pub watched: bool,
}

/// A tree that was made ahead of time.
pub struct Standing {
    /// Its memory.
    pub memory: Box<dyn Memory>,
    /// Pages that can land in it, and pages that are there, of each space.
    pub spaces: HashMap<Space, (RangeSet, RangeSet)>,
}

/// Where the contents of the target are in the end.
#[derive(Debug)]
pub enum Contents<'a> {
    /// In the tree that was made ahead of time, but for these pages, which the target no longer has.
    Landed(Vec<(Space, RangeSet)>),
    /// In a complete image; what was made ahead of time did not fit.
    Stored(&'a ImageDir),
}

/// Where things lie at the destination.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Directory of journals.
    pub journals: &'a Path,
    /// Directory of sockets, for a guardian.
    pub run: &'a Path,
    /// Directories in which pages may be stored, the preferred first.
    pub stores: &'a [&'a Path],
    /// The most memory a target may have, bytes.
    pub max_memory_bytes: Option<u64>,
}
