//! The source's end of a pass: what differs from the pass before.
//!
//! A file is read again when its size, its times or its inode have changed. Times say nothing of writes through a shared
//! mapping, nor of a write in the same instant as the last look, nor, on memory file systems, of mappings that are gone again:
//! such files are always read, and their blocks are compared with what was sent.

use super::blocks::{self, Digest, Out};
use super::nonce::is_network;
use super::op::{Meta, Op};
use super::{Error, failed, is_below};
use crate::image::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Times are not older than what they tell of by more than this: FAT counts in two seconds.
const GRAIN: Duration = Duration::from_millis(2500);

/// Things in all trees together.
const THINGS_MAX: usize = 4 << 20;

/// What tells that a file has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Signature {
    kind: u32,
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Signature {
    fn of(meta: &Metadata) -> Self {
        Self {
            kind: meta.mode() & libc::S_IFMT,
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// What was sent of a path.
#[derive(Debug)]
struct Known {
    signature: Signature,
    /// Of a regular file.
    blocks: Vec<Digest>,
    /// The signature proves nothing.
    always: bool,
    /// It was sent as another name of this one.
    link: Option<Bytes>,
}

/// What a pass sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Files with content that was sent.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// What is sent, and what of it the destination has.
#[derive(Debug, Default)]
pub struct Sender {
    files: Vec<Bytes>,
    trees: Vec<Bytes>,
    known: BTreeMap<Bytes, Known>,
    /// Directories above, said already.
    above: HashSet<Bytes>,
}

impl Sender {
    /// These files and trees.
    pub fn new(files: Vec<Bytes>, trees: Vec<Bytes>) -> Self {
        Self { files, trees, ..Self::default() }
    }

    /// One more file, if it is not among them.
    pub fn add(&mut self, path: &Bytes) {
        let in_tree = self.trees.iter().any(|tree| is_below(&path.0, &tree.0));
        if !in_tree && !self.files.contains(path) {
            self.files.push(path.clone());
        }
    }

    /// There is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.trees.is_empty()
    }

    /// Sends what has changed. `mapped`: paths that the target writes to by its memory.
    ///
    /// # Errors
    /// A file cannot be read; those of `out`.
    pub fn pass<E: From<Error>>(&mut self, mapped: &HashSet<Bytes>, out: &mut Out<'_, E>) -> Result<Sent, E> {
        let mut pass = Pass { sender: self, mapped, out, sent: Sent::default(), links: HashMap::new() };
        for path in pass.sender.files.clone() {
            match fs::symlink_metadata(os(&path)) {
                Ok(meta) if meta.is_file() => {
                    pass.above(&path)?;
                    pass.file(&path, &meta)?;
                }
                // Renamed, removed or replaced since: the final model says what became of it.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(E::from(failed("look at", &path.0)(e))),
            }
        }
        for tree in pass.sender.trees.clone() {
            pass.tree(&tree)?;
        }
        Ok(pass.sent)
    }
}

/// One pass.
struct Pass<'a, 'o, E> {
    sender: &'a mut Sender,
    mapped: &'a HashSet<Bytes>,
    out: &'a mut Out<'o, E>,
    sent: Sent,
    /// The first name of files with several.
    links: HashMap<(u64, u64), Bytes>,
}

impl<E: From<Error>> Pass<'_, '_, E> {
    fn say(&mut self, op: &Op) -> Result<(), E> {
        (self.out)(Some(op), &[])
    }

    /// The directories that a path is in, the outermost first.
    fn above(&mut self, path: &Bytes) -> Result<(), E> {
        let ends = path.0.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(n, _)| n);
        for end in ends.collect::<Vec<_>>() {
            let dir = Bytes(path.0[..end].to_vec());
            if self.sender.above.insert(dir.clone()) {
                let meta = Meta::of(&open(&dir, libc::O_DIRECTORY)?, &dir.0)?;
                self.say(&Op::Dir { path: dir, meta, found: true })?;
            }
        }
        Ok(())
    }

    /// A regular file: its content and attributes, as far as they differ from what was sent.
    fn file(&mut self, path: &Bytes, meta: &Metadata) -> Result<(), E> {
        let signature = Signature::of(meta);
        let mapped = self.mapped.contains(path);
        if let Some(known) = self.sender.known.get(path)
            && known.signature == signature
            && !known.always
            && !mapped
        {
            return Ok(());
        }
        let looked = SystemTime::now();
        let Some(file) = open_if_there(path)? else { return Ok(()) };
        let now = file.metadata().map_err(failed("stat", &path.0))?;
        let signature = Signature::of(&now);
        let known = self.sender.known.remove(path);
        if !now.is_file() {
            // It was replaced a moment ago: another time.
            return Ok(());
        }
        let before = known.map(|known| known.blocks).unwrap_or_default();
        self.say(&Op::File { path: path.clone() })?;
        let (out, sent) = (&mut *self.out, &mut self.sent);
        let mut bytes = 0;
        let blocks = blocks::changed(&file, &path.0, now.len(), &before, &mut |op, content| {
            bytes += content.len() as u64;
            out(op, content)
        })?;
        sent.bytes += bytes;
        sent.files += u64::from(bytes > 0);
        let meta = Meta { size: now.len(), ..Meta::of(&file, &path.0)? };
        self.say(&Op::End { meta })?;
        let always = mapped || is_fresh(&now, looked) || is_blind(&file, path);
        self.sender.known.insert(path.clone(), Known { signature, blocks, always, link: None });
        Ok(())
    }

    fn tree(&mut self, tree: &Bytes) -> Result<(), E> {
        self.above(tree)?;
        let device = fs::symlink_metadata(os(tree)).map_err(failed("look at", &tree.0))?.dev();
        let mut seen = HashSet::new();
        let mut rest = vec![tree.clone()];
        while let Some(path) = rest.pop() {
            let meta = match fs::symlink_metadata(os(&path)) {
                Ok(meta) => meta,
                // Gone since its directory was read.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(E::from(failed("look at", &path.0)(e))),
            };
            if meta.dev() != device {
                let error = io::Error::other("another file system is mounted there");
                return Err(E::from(failed("ship", &path.0)(error)));
            }
            if seen.len() >= THINGS_MAX {
                return Err(E::from(failed("ship", &tree.0)(io::Error::other("there are too many files in it"))));
            }
            if self.thing(&path, &meta)? {
                seen.insert(path.clone());
                if meta.is_dir() {
                    rest.extend(children(&path)?);
                }
            }
        }
        self.gone(tree, &seen)
    }

    /// Anything in a tree; whether it is a thing that can be sent.
    fn thing(&mut self, path: &Bytes, meta: &Metadata) -> Result<bool, E> {
        let signature = Signature::of(meta);
        if self.sender.known.get(path).is_some_and(|known| known.signature.kind != signature.kind) {
            self.forget(path)?;
        }
        let kind = meta.file_type();
        if kind.is_file() && meta.nlink() > 1 {
            let first = self.links.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone()).clone();
            if first != *path {
                return self.link(path, &first, signature).map(|()| true);
            }
        }
        if kind.is_file() {
            if self.sender.known.get(path).is_some_and(|known| known.link.is_some()) {
                // It is a file of its own now: writing to it must not reach the other name.
                self.forget(path)?;
            }
            return self.file(path, meta).map(|()| true);
        }
        if kind.is_socket() {
            // Made by whoever binds it.
            return Ok(false);
        }
        let is_same = self.sender.known.get(path).is_some_and(|known| known.signature == signature && !known.always);
        if !is_same {
            let looked = SystemTime::now();
            let op = self.described(path, meta)?;
            self.say(&op)?;
            let known = Known { signature, blocks: Vec::new(), always: is_fresh(meta, looked), link: None };
            self.sender.known.insert(path.clone(), known);
        }
        Ok(true)
    }

    fn described(&mut self, path: &Bytes, meta: &Metadata) -> Result<Op, E> {
        let kind = meta.file_type();
        let path = path.clone();
        Ok(if kind.is_dir() {
            let meta = Meta::of(&open(&path, libc::O_DIRECTORY)?, &path.0)?;
            Op::Dir { path, meta, found: false }
        } else if kind.is_symlink() {
            let target = fs::read_link(os(&path)).map_err(failed("read", &path.0))?;
            Op::Symlink { path, target: Bytes(target.into_os_string().into_vec()), meta: Meta::plain(meta) }
        } else if kind.is_fifo() {
            Op::Fifo { path, meta: Meta::plain(meta) }
        } else {
            return Err(E::from(failed("ship", &path.0)(io::Error::other("it is a device"))));
        })
    }

    fn link(&mut self, path: &Bytes, first: &Bytes, signature: Signature) -> Result<(), E> {
        let is_same = self.sender.known.get(path).is_some_and(|known| {
            known.link.as_ref() == Some(first)
                && (known.signature.device, known.signature.inode) == (signature.device, signature.inode)
        });
        if !is_same {
            self.say(&Op::Link { path: path.clone(), to: first.clone() })?;
            let known = Known { signature, blocks: Vec::new(), always: false, link: Some(first.clone()) };
            self.sender.known.insert(path.clone(), known);
        }
        Ok(())
    }

    /// What was sent of a tree and is no more.
    fn gone(&mut self, tree: &Bytes, seen: &HashSet<Bytes>) -> Result<(), E> {
        let known = self.sender.known.keys().filter(|path| is_below(&path.0, &tree.0) && !seen.contains(*path));
        for path in known.cloned().collect::<Vec<_>>() {
            // With the directory it was in, perhaps.
            if self.sender.known.contains_key(&path) {
                self.forget(&path)?;
            }
        }
        Ok(())
    }

    /// Something else is there now, or nothing.
    fn forget(&mut self, path: &Bytes) -> Result<(), E> {
        self.sender.known.retain(|known, _| !is_below(&known.0, &path.0));
        self.say(&Op::Remove { path: path.clone() })
    }
}

/// A change may have come after the look and have the same time.
fn is_fresh(meta: &Metadata, looked: SystemTime) -> bool {
    let limit = looked.checked_sub(GRAIN).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let limit = limit.map_or(0, |at| i64::try_from(at.as_secs()).unwrap_or(i64::MAX));
    meta.mtime().max(meta.ctime()) >= limit
}

/// File systems whose times do not tell of all writes: those in memory (a mapping may have come and gone), and those whose
/// times another host sets.
fn is_blind(file: &File, path: &Bytes) -> bool {
    const MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    let in_memory =
        nix::sys::statfs::fstatfs(file).is_ok_and(|fs| MEMORY.contains(&(fs.filesystem_type().0 & 0xffff_ffff)));
    in_memory || is_network(Path::new(os(path)))
}

fn os(path: &Bytes) -> &OsStr {
    OsStr::from_bytes(&path.0)
}

fn open(path: &Bytes, flags: i32) -> Result<File, Error> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | flags).open(os(path)).map_err(failed("open", &path.0))
}

/// `None`: it is gone since it was looked at.
fn open_if_there(path: &Bytes) -> Result<Option<File>, Error> {
    match open(path, libc::O_NONBLOCK) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn children(path: &Bytes) -> Result<Vec<Bytes>, Error> {
    let entries = match fs::read_dir(os(path)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed("list", &path.0)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", &path.0))?;
        found.push(Bytes([&path.0[..], b"/", entry.file_name().as_bytes()].concat()));
    }
    // The first name of a file with several is the same in every pass.
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Bytes and things in trees, as far as they can be counted.
pub fn size(trees: &[Bytes]) -> u64 {
    let mut rest = trees.to_vec();
    let mut bytes = 0;
    while let Some(path) = rest.pop() {
        let Ok(meta) = fs::symlink_metadata(os(&path)) else { continue };
        bytes += if meta.is_file() { meta.blocks() * 512 } else { 0 };
        if meta.is_dir() {
            rest.extend(children(&path).unwrap_or_default());
        }
    }
    bytes
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
