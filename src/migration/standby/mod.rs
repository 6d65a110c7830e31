//! `--standby`: a destination that is kept warm keeps the newest consistent state of the target, which can be started there when the
//! source is dead.
//!
//! ```text
//! source                                              destination
//! Round n; pages; marks; RoundEnd n  --------------->  pages go into the tree that is pre-built, and into the pages kept here
//! ... every TIME, between two rounds: the target stands still, is read, and goes on
//! Round n {state}; what rounds have not sent of it -->  into the pages kept here alone, apart from those of the rounds
//! Keep, model  -------------------------------------->  all of it is on the disk: from here on the newest state
//!                                     <--------------  Kept
//! ```
//! A state is what all rounds so far have brought, and on top of that what its own round has: the model as of that moment fits both.
//! The tree that is pre-built for a switch has nothing to do with it, and can be between two rounds at any time.
//!
//! Pages lie in a file, in places of which none is written to again while the newest complete state has a page there ([`keeping`]). So
//! whatever dies at whatever moment, a whole state is there: the newest, or until that is on the disk the one before. It outlives the
//! session, and a reboot of its host. Nobody but a person starts it ([`crate::ops::promote`]), and whatever the target has done since is
//! lost.

pub mod keeping;
mod layer;
pub mod state;

use super::journal::{self, Line, Role};
use super::protocol::{AttemptId, SpaceName};
use serde::{Deserialize, Serialize};
use state::Head;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Name of the newest complete state, in its directory.
const STATE: &str = "state";
/// End of the names of files of pages.
const PAGES: &str = "pages";

/// What a source wants of a destination that stands by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// Between two states, milliseconds.
    pub every_ms: u64,
    /// The name of the source's host (`uname -n`): what it is heard by may be a proxy, an ssh, or an address that has gone since.
    #[serde(default)]
    pub host: String,
    /// Destinations that keep states of the same target, as the source's user has named them.
    pub others: Vec<String>,
}

/// What is to be known beside a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The session, as the source's user knows it.
    pub session: String,
    /// The source.
    pub peer: String,
    /// What was wanted.
    pub standby: Standby,
    /// The choices of the source's user, as JSON.
    pub state: serde_json::Value,
}

/// What became of the state of an attempt, in its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Became {
    /// It is kept.
    Kept,
    /// A person has started it here.
    Promoted,
}

/// Where the state of an attempt is.
pub fn directory(journals: &Path, attempt: AttemptId) -> PathBuf {
    journals.join(format!("{attempt}.standby"))
}

/// Where it is once somebody has begun to start it, so that nobody starts it a second time.
pub fn taken_up(dir: &Path) -> PathBuf {
    dir.with_extension("promoted")
}

/// The image of a state, in such a directory.
pub fn image(dir: &Path) -> PathBuf {
    dir.join("image")
}

/// The image of a state that somebody has begun to start, and has not come to the end.
pub fn left(journals: &Path, attempt: AttemptId) -> Option<PathBuf> {
    let image = image(&taken_up(&directory(journals, attempt)));
    // It has this name when it is complete.
    image.is_dir().then_some(image)
}

/// Those of these lines that are of a session at its destination.
pub fn of_session<'l>(lines: &'l [Line], session: &str) -> impl Iterator<Item = &'l Line> {
    lines.iter().filter(move |line| line.role == Role::Destination && line.session == session)
}

/// Whether another attempt of the session of this line is under way here: it has begun anew, and its source is heard. `lines`: of all
/// journals.
pub fn is_heard(journals: &Path, lines: &[Line], line: &Line) -> bool {
    of_session(lines, &line.session).any(|other| other.attempt != line.attempt && journal::is_decided(journals, other))
}

/// Whether a state of any attempt of the session is kept here, or somebody has begun to start one. `lines`: of all journals.
pub fn is_kept(journals: &Path, lines: &[Line], session: &str) -> bool {
    let is_there = |dir: PathBuf| is_complete(&dir) || taken_up(&dir).exists();
    of_session(lines, session).any(|line| is_there(directory(journals, line.attempt)))
}

/// States that other attempts of a session have left here: it begins anew when all its destinations are lost.
#[derive(Debug)]
pub struct Earlier {
    journals: PathBuf,
    /// Of their journals, as they were.
    lines: Vec<Line>,
}

impl Earlier {
    /// Looks for them. Pages of any session that was killed before it had a state are deleted.
    pub fn find(journals: &Path, session: &str, attempt: AttemptId) -> Self {
        let mut lines = journal::all(journals).unwrap_or_default();
        lines.retain(|line| line.role == Role::Destination && line.attempt != attempt);
        lines.retain(|line| {
            let dir = directory(journals, line.attempt);
            // In this order: who decides about it may be about to complete it.
            let is_dead = dir.exists() && !journal::is_decided(journals, line);
            if line.session != session && is_dead && !is_complete(&dir) {
                forget(&dir);
            }
            line.session == session
                && (dir.exists() || taken_up(&dir).exists() || line.standby == Some(Became::Promoted))
        });
        Self { journals: journals.to_owned(), lines }
    }

    /// Whether one of them is complete.
    pub fn is_kept(&self) -> bool {
        self.lines.iter().any(|line| is_complete(&directory(&self.journals, line.attempt)))
    }

    /// That a person has started one of them, by the last line of its journal.
    pub fn promoted(&self) -> Option<Line> {
        let now = self.lines.iter().filter_map(|line| journal::newest(&self.journals, line));
        now.into_iter().find(|line| line.standby == Some(Became::Promoted))
    }

    /// Their attempts.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptId> {
        self.lines.iter().map(|line| line.attempt)
    }

    /// Deletes them, but for what somebody else decides about.
    pub fn forget(&mut self) {
        self.lines.retain(|line| {
            let is_decided = journal::is_decided(&self.journals, line);
            if !is_decided {
                forget(&directory(&self.journals, line.attempt));
            }
            is_decided
        });
    }
}

/// A state that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// When the target was like this.
    pub taken: SystemTime,
    /// On the disk, bytes: of pages, and of what says which they are.
    pub bytes: u64,
    /// What is to be known beside it.
    pub terms: Terms,
}

/// The newest complete state in this directory; `None`: there is none, or it cannot be read.
pub fn newest(dir: &Path) -> Option<Newest> {
    let head = Head::read(&dir.join(STATE)).inspect_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(%error, dir = %dir.display(), "a state that is kept cannot be read");
        }
    });
    let head = head.ok()?;
    let size = |name: &str| fs::metadata(dir.join(name)).map_or(0, |meta| meta.len());
    Some(Newest { taken: head.taken(), bytes: size(STATE) + size(&head.pages), terms: head.terms })
}

/// Whether a state is complete in this directory.
pub fn is_complete(dir: &Path) -> bool {
    dir.join(STATE).exists()
}

/// Deletes what is kept in this directory. Nothing there is no error.
///
/// # Errors
/// It cannot be deleted.
pub fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Deletes it where nobody can do anything about an error.
pub fn forget(dir: &Path) {
    if let Err(error) = remove(dir) {
        tracing::warn!(%error, dir = %dir.display(), "a state that nobody needs was left behind");
    }
}

/// A state as its source describes it.
#[derive(Debug)]
pub struct Described<'a> {
    /// The model, encoded, as it is made here.
    pub model: &'a [u8],
    /// What that calls the spaces that pages came for.
    pub names: &'a [SpaceName],
    /// How long ago the target was like this.
    pub age: Duration,
}
