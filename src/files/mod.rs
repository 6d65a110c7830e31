//! Files that go with a target: what it has open or mapped is compared with what the destination has, and copied where
//! `--files` says so; `--with` names whole trees.
//!
//! The destination asks ([`judge`]) and decides; the source answers, and sends what is wanted in passes ([`send`]): the
//! first before the tree is made ahead of time, others while rounds run, the last in the pause, when the target can write no
//! more. A pass sends what differs from the pass before, block by block ([`blocks`]). What arrives lies under its final name
//! from the first pass on ([`install`]), so that the tree in the making has the very files open; what was there before is kept
//! beside it, and comes back unless the target runs here ([`record`]).
//!
//! Nothing here knows a channel: messages are [`Question`]s, [`Answer`]s and [`op::Op`]s.

pub mod blocks;
pub mod install;
pub mod judge;
pub mod nonce;
pub mod op;
pub mod record;
pub mod send;

use crate::image::fd::{FileKind, PathRef};
use crate::image::mm::Backing;
use crate::image::task::{Task, TaskState};
use crate::image::{Bytes, Model, NsId};
use crate::ops::options::Files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;

/// What could not be done with a file.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {operation} {path}")]
pub struct Error {
    /// What was tried.
    pub operation: &'static str,
    /// With which file.
    pub path: String,
    /// Why not.
    pub source: io::Error,
}

/// What most of this module returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Makes an [`Error`] of an I/O error or an error number.
pub(crate) fn failed<E: Into<io::Error>>(operation: &'static str, path: &[u8]) -> impl FnOnce(E) -> Error {
    let path = String::from_utf8_lossy(path).into_owned();
    move |source| Error { operation, path, source: source.into() }
}

/// What is wanted for files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// `--files`.
    pub mode: Files,
    /// `--with`: directories, none below another.
    #[serde(default)]
    pub with: Vec<PathRef>,
    /// Bytes that these hold.
    #[serde(default)]
    pub with_bytes: u64,
}

impl Wish {
    /// The tree that a path is in.
    pub fn tree_of(&self, path: &[u8]) -> Option<usize> {
        self.with.iter().position(|tree| is_below(path, &tree.path.0))
    }

    /// Whether this kind of use is copied.
    pub fn copies(&self, usage: Use) -> bool {
        match self.mode {
            Files::Auto => usage == Use::Write,
            Files::Copy => true,
            Files::Check | Files::Skip => false,
        }
    }
}

/// Whether a path is `tree` or below it.
pub(crate) fn is_below(path: &[u8], tree: &[u8]) -> bool {
    path.strip_prefix(tree).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// What a target does with a file; the strongest of all it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Stands in it (a directory).
    Place,
    /// Reads it.
    Read,
    /// Runs code of it.
    Code,
    /// Writes to it.
    Write,
}

/// A file of the host's mount namespace that a target has open or mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its path and what it was when the model was made.
    pub file: PathRef,
    /// What it is used for.
    pub usage: Use,
    /// Whoever writes to it appends.
    pub appends: bool,
    /// Mapped, in whatever way.
    pub mapped: bool,
}

impl Wanted {
    /// A regular file on a file system on which size and time mean something.
    pub fn is_comparable(&self) -> bool {
        self.file.mode & libc::S_IFMT == libc::S_IFREG && (self.file.size, self.file.mtime_ns) != (0, 0)
    }
}

/// What a target has open or mapped, or stands in, each path once, in the order of paths: both sides get the same from the
/// same model. Without what is below /proc, which comes and goes with processes, and without what is in a mount namespace of
/// the tree's own.
pub fn wanted(model: &Model) -> Vec<Wanted> {
    let mut all: BTreeMap<&[u8], Wanted> = BTreeMap::new();
    let of_host = |ns: NsId| model.namespaces.get(ns.at()).is_none_or(|ns| ns.of_host);
    for (file, usage, appends, mapped) in uses(model) {
        if file.path.0.starts_with(b"/proc/") || !file.path.0.starts_with(b"/") || !of_host(file.mnt) {
            continue;
        }
        let one = Wanted { file: file.clone(), usage, appends, mapped };
        all.entry(&file.path.0)
            .and_modify(|known| {
                known.appends = match (known.usage, usage) {
                    (Use::Write, Use::Write) => known.appends && appends,
                    (Use::Write, _) => known.appends,
                    _ => appends,
                };
                known.usage = known.usage.max(usage);
                known.mapped |= mapped;
            })
            .or_insert(one);
    }
    all.into_values().collect()
}

/// What both sides talk about: [`wanted`], then the trees of the wish.
pub fn named(wanted: Vec<Wanted>, wish: &Wish) -> Vec<Wanted> {
    let tree = |file: &PathRef| Wanted { file: file.clone(), usage: Use::Write, appends: false, mapped: false };
    wanted.into_iter().chain(wish.with.iter().map(tree)).collect()
}

/// The directory that all of these files are in, if it looks like a program's own: several files in it are written to other
/// than by appending, and it is none that everybody has (`/tmp`, `/srv`). More of it than is open belongs to the target, then.
pub fn data_directory(written: &[&Wanted]) -> Option<Bytes> {
    let mut dirs = written.iter().filter(|wanted| wanted.usage == Use::Write && !wanted.appends).map(|wanted| {
        let path = &wanted.file.path.0;
        &path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or_default()]
    });
    let first = dirs.next()?;
    let mut count = 1;
    let common = dirs.fold(first, |common, dir| {
        count += 1;
        let parts = common.split(|b| *b == b'/').zip(dir.split(|b| *b == b'/'));
        let same = parts.take_while(|(a, b)| a == b).map(|(part, _)| part.len() + 1).sum::<usize>();
        &common[..same.saturating_sub(1)]
    });
    let depth = common.iter().filter(|byte| **byte == b'/').count();
    (count > 1 && depth > 1).then(|| Bytes(common.to_vec()))
}

/// A path, its use, whether the use is to append, whether it is mapped.
fn uses(model: &Model) -> impl Iterator<Item = (&PathRef, Use, bool, bool)> {
    let writes = |flags: u32| flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
    let mapped = model.mms.iter().flat_map(move |mm| {
        let vmas = mm.vmas.iter().filter_map(move |vma| match &vma.backing {
            Backing::File { path, flags } if vma.shared && writes(*flags) => Some((path, Use::Write, false, true)),
            Backing::File { path, .. } if vma.prot & libc::PROT_EXEC as u32 != 0 => {
                Some((path, Use::Code, false, true))
            }
            Backing::File { path, .. } => Some((path, Use::Read, false, true)),
            _ => None,
        });
        vmas.chain([(&mm.exe, Use::Code, false, true)])
    });
    let open = model.files.iter().filter_map(move |file| match &file.kind {
        FileKind::Regular(regular) => {
            let is_file = regular.path.mode & libc::S_IFMT == libc::S_IFREG && file.flags & libc::O_PATH as u32 == 0;
            let usage = match (is_file, writes(file.flags)) {
                (false, _) => Use::Place,
                (true, true) => Use::Write,
                (true, false) => Use::Read,
            };
            Some((&regular.path, usage, file.flags & libc::O_APPEND as u32 != 0, false))
        }
        _ => None,
    });
    let alive = |task: &&Task| !matches!(task.state, TaskState::Zombie(_));
    let states = model.tasks.iter().filter(alive).flat_map(|task| &task.threads).map(|thread| thread.fs);
    let places = states.filter_map(|id| model.fs.get(id.at())).flat_map(crate::image::task::Fs::places);
    mapped.chain(open).chain(places.map(|path| (path, Use::Place, false, false)))
}

/// Every path of a model, to be told what it is here.
pub(crate) fn paths_mut(model: &mut Model) -> impl Iterator<Item = &mut PathRef> {
    let mapped = model.mms.iter_mut().flat_map(|mm| {
        let vmas = mm.vmas.iter_mut().filter_map(|vma| match &mut vma.backing {
            Backing::File { path, .. } => Some(path),
            _ => None,
        });
        vmas.chain([&mut mm.exe])
    });
    let open = model.files.iter_mut().filter_map(|file| match &mut file.kind {
        FileKind::Regular(regular) => Some(&mut regular.path),
        _ => None,
    });
    mapped.chain(open)
}

/// What the destination asks about files of the offered model, by their position in [`named`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Digests of the first bytes: file and number of bytes.
    pub digests: Vec<(u32, u64)>,
    /// Beside which files a nonce file would be of use.
    pub nonces: Vec<u32>,
}

/// What the source says to a [`Question`], in its order; `None` = it cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// BLAKE3, hexadecimal.
    pub digests: Vec<Option<String>>,
    /// Nonce files: where, and what they hold.
    pub nonces: Vec<Option<(Bytes, String)>>,
}

/// What the source is to do about files, as the destination has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Files and trees to send, by their position in [`named`].
    pub send: Vec<u32>,
    /// Files whose digest is compared while rounds run, and how many bytes of them.
    pub later: Vec<(u32, u64)>,
    /// Devices of the source that hold the same files at the destination: nothing on them is sent.
    pub shared: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::sample;

    #[test]
    fn a_file_is_named_once_with_its_strongest_use() {
        let mut model = sample();
        model.namespaces.iter_mut().for_each(|ns| ns.of_host = true);
        let all = wanted(&model);
        assert!(all.windows(2).all(|pair| pair[0].file.path < pair[1].file.path), "sorted, each once");
        let exe = &model.mms[0].exe.path;
        assert_eq!(all.iter().find(|one| one.file.path == *exe).unwrap().usage.max(Use::Code), Use::Code);
    }

    #[test]
    fn a_database_is_known_by_where_it_writes() {
        let written = |path: &str, appends| {
            let file = PathRef { path: Bytes(path.as_bytes().to_vec()), ..sample().mms[0].exe.clone() };
            Wanted { file, usage: Use::Write, appends, mapped: false }
        };
        let found = |paths: &[&str]| {
            let all: Vec<Wanted> = paths.iter().map(|path| written(path, false)).collect();
            let all: Vec<&Wanted> = all.iter().collect();
            data_directory(&all).map(|dir| dir.to_string())
        };
        assert_eq!(found(&["/var/db/base/1/2", "/var/db/wal/3"]).as_deref(), Some("/var/db"));
        assert_eq!(found(&["/var/db/a", "/var/db/ab"]).as_deref(), Some("/var/db"));
        assert_eq!(found(&["/var/dba/x", "/var/dbb/x"]), None);
        assert_eq!(found(&["/tmp/a", "/tmp/b"]), None);
        assert_eq!(found(&["/var/db/a"]), None, "one file is one file");
        let logs = [written("/var/log/a", true), written("/var/log/b", true)];
        assert_eq!(data_directory(&logs.iter().collect::<Vec<_>>()), None);
    }

    #[test]
    fn trees_hold_what_is_below_them() {
        let tree = PathRef { path: b"/srv/db".to_vec().into(), ..sample().mms[0].exe.clone() };
        let wish = Wish { with: vec![tree], ..Wish::default() };
        assert_eq!(wish.tree_of(b"/srv/db/a/b"), Some(0));
        assert_eq!(wish.tree_of(b"/srv/db"), Some(0));
        assert_eq!(wish.tree_of(b"/srv/dbx"), None);
    }
}
