//! The pager: serves the missing pages of a tree that runs already, and ends when all are in. It outlives the command that has
//! made the tree. Pages come from an image ([`Origin::Image`]), or from wherever whoever starts it says ([`serve::run`]).
//!
//! What would happen to the target if its pages went away must not be zeros: when the pager finds the image damaged it stops
//! every process of the tree and poisons what is missing; when the pager itself is killed, a second small process (the
//! [`guard`]), which has the same descriptors, does. What is missing and why stands in a file in the state directory.
//!
//! Conversation, over a UNIX stream socket in the run-time directory (which is private): a client sends `F` (finish), and
//! gets a line of JSON ([`News`]) about every second, and a last one when all pages are in, or lost; or it asks what is missing,
//! or says what was written to ([`lacks`]); or has the pager end ([`end`]).

mod guard;
pub mod lacks;
pub mod serve;
mod standstill;

use super::held::Held;
use super::{Started, parcel, spawn};
use crate::image::{MmId, Pid, ShmemId};
use crate::memory::lazy::server::VIEWS;
use crate::memory::{PageRange, RangeSet, Space};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// First argument of a pager; not a verb of the command line.
const ENTRY: &str = "pager-process";
/// First argument of its guard.
const GUARD_ENTRY: &str = "pager-guard-process";
/// How long a process of ours may take to begin, or to say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is missing of one address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSpace {
    /// Number of the address space in the model.
    pub mm: u32,
    /// A process that has it.
    pub pid: i32,
    /// (first page, pages), ascending.
    pub missing: Vec<(u64, u64)>,
    /// Pages come write-protected, so that it is known which of them were written to.
    #[serde(default)]
    pub watched: bool,
}

impl KeptSpace {
    /// Of an address space that this process has.
    pub fn new(mm: MmId, pid: Pid, missing: &RangeSet) -> Self {
        let missing = missing.iter().map(|range| (range.first, range.count)).collect();
        Self { mm: mm.0, pid: pid.0, missing, watched: false }
    }

    /// The same as a set.
    pub fn pages(&self) -> RangeSet {
        self.missing.iter().map(|&(first, count)| PageRange::new(first, count)).collect()
    }
}

/// Shared memory that an address space has mapped and that is not all there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptView {
    /// A process that has it.
    pub pid: i32,
    /// (first page of addresses, pages, number of the object in the model, its first page there).
    pub areas: Vec<(u64, u64, u32, u64)>,
}

/// What is missing of a shared memory object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptObject {
    /// Its number in the model.
    pub shmem: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes of the pages it is made of.
    pub unit: u64,
    /// (first page, pages), ascending.
    pub missing: Vec<(u64, u64)>,
}

impl KeptObject {
    /// The same as a set.
    pub fn pages(&self) -> RangeSet {
        self.missing.iter().map(|&(first, count)| PageRange::new(first, count)).collect()
    }
}

/// Where pages come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// From an image.
    Image {
        /// Its directory, absolute.
        dir: PathBuf,
        /// Its id: another one in its place is none of ours.
        id: String,
    },
    /// From the host that the target has left.
    Source {
        /// Its name.
        peer: String,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image { dir, .. } => write!(f, "{}", dir.display()),
            Self::Source { peer } => write!(f, "{peer}"),
        }
    }
}

/// What a pager is handed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The session that has restored.
    pub session: String,
    /// Where pages come from.
    pub origin: Origin,
    /// Processes of the tree as they were restored.
    pub tree: Held,
    /// One for each of the first descriptors.
    pub spaces: Vec<KeptSpace>,
    /// One for each of the descriptors after them.
    pub views: Vec<KeptView>,
    /// One for each of the last descriptors, which are of the objects themselves.
    pub objects: Vec<KeptObject>,
    /// Its socket.
    pub socket: PathBuf,
    /// Written if pages are lost.
    pub report: PathBuf,
}

fn count(kept: &Kept) -> usize {
    kept.spaces.len() + kept.views.len() + kept.objects.len()
}

impl Kept {
    /// Everything that is missing.
    pub fn owed(&self) -> impl Iterator<Item = (Space, RangeSet)> + '_ {
        let spaces = self.spaces.iter().map(|space| (Space::Mm(MmId(space.mm)), space.pages()));
        spaces.chain(self.objects.iter().map(|object| (Space::Shmem(ShmemId(object.shmem)), object.pages())))
    }

    /// The process of an address space or a view, by the number that a server has given it.
    fn process(&self, n: usize) -> Option<i32> {
        match n.checked_sub(VIEWS) {
            Some(view) => self.views.get(view).map(|view| view.pid),
            None => self.spaces.get(n).map(|space| space.pid),
        }
    }
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum News {
    /// So many pages are missing.
    Missing(u64),
    /// All are in.
    Complete,
    /// They will not come: why, and what was done.
    Lost(String),
}

/// Where the pager of a session listens.
pub fn socket_path(run: &Path, session: &str) -> PathBuf {
    run.join(format!("pager-{session}.sock"))
}

/// A process of ours that waits to be told what it is for: started ahead of time, as that costs milliseconds. It ends by
/// itself when this is dropped.
#[derive(Debug)]
pub struct Ready {
    child: Started,
    socket: UnixStream,
}

impl Ready {
    /// A pager that reads an image, which it has to be [told](Self::announce).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn pager() -> io::Result<Self> {
        Self::pager_as(ENTRY)
    }

    /// Which image it will have to read (or might): it opens it, and what takes long with a large one is done when it is left the tree.
    ///
    /// # Errors
    /// It has ended.
    pub fn announce(&mut self, image: &impl Serialize) -> io::Result<()> {
        parcel::send(&mut self.socket, image, &[])
    }

    /// One with another first argument: of a process whose main function is [`serve::run`] with a source of its own. What that needs
    /// to know first it is [told](Self::announce).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn pager_as(entry: &str) -> io::Result<Self> {
        let (child, socket) = spawn(entry)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { child, socket })
    }

    /// Leaves the tree to it. When this returns it serves, and a guard watches over it.
    ///
    /// # Errors
    /// It does not serve: the tree must not run.
    pub fn leave(self, kept: &Kept, descriptors: &[OwnedFd]) -> io::Result<()> {
        let run = kept.socket.parent().unwrap_or(Path::new("/"));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(run)?;
        self.hand_over(kept, descriptors).map(drop)
    }

    /// Hands over; its socket, once it has answered. A process that does not is ended.
    fn hand_over(self, kept: &Kept, descriptors: &[OwnedFd]) -> io::Result<UnixStream> {
        let Self { child, mut socket } = self;
        let answered = parcel::send(&mut socket, kept, descriptors).and_then(|()| socket.read_exact(&mut [0]));
        if let Err(error) = answered {
            child.kill();
            return Err(error);
        }
        Ok(socket)
    }
}

/// First byte of a client that has the pager end, see [`end`].
const END: u8 = b'E';

/// Ends the pager that listens here, whatever is missing; nothing where there is none. Only for a tree that stands still and is about
/// to be ended: what is missing is zero from here on.
///
/// # Errors
/// It does not end.
pub fn end(socket: &Path) -> io::Result<()> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(()),
        Err(e) => return Err(e),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[END])?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Sockets of the pagers of this host.
pub fn sockets(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten().map(|entry| entry.path());
    let name = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"pager-") && n.as_encoded_bytes().ends_with(b".sock"))
    };
    entries.filter(name).collect()
}

/// A pager that was asked to finish.
#[derive(Debug)]
pub struct Watch(BufReader<UnixStream>);

impl Watch {
    /// Asks the pager that listens here; `None` if none does.
    pub fn begin(socket: &Path) -> Option<Self> {
        let mut stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(e) => {
                if e.kind() == io::ErrorKind::ConnectionRefused {
                    // Left behind by one that was killed.
                    let _ = std::fs::remove_file(socket);
                }
                return None;
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(b"F").ok()?;
        Some(Self(BufReader::new(stream)))
    }

    /// What it says next.
    ///
    /// # Errors
    /// It says nothing for long, or has ended without a last word.
    pub fn news(&mut self) -> io::Result<News> {
        const LINE_MAX: u64 = 1 << 16;
        let mut line = String::new();
        (&mut self.0).take(LINE_MAX).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }
}

/// The main function of a process of ours with this first argument.
pub fn entry(argument: &OsStr) -> Option<fn() -> u8> {
    match argument.to_str() {
        Some(ENTRY) => Some(serve::main),
        Some(GUARD_ENTRY) => Some(guard::main),
        _ => None,
    }
}
