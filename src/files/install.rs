//! The destination's end of a pass: what comes is made beside its place, put there when the pass ends, and changed in place by
//! later passes: whoever has it open by then has the file that the target will have.
//!
//! All paths are the source's words. They are resolved below the root without any symbolic link, lead only to what was judged
//! to come or to what the target opened since, and only regular files, directories, symbolic links and FIFOs are made.

use super::op::{Meta, Op, nonsense};
use super::record::{self, Fate, Line, Record};
use super::{Result, Wish, blocks, failed, is_below};
use crate::image::Bytes;
use crate::sys::{Errno, openat2, xattr};
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, mkfifoat, symlinkat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longest path, bytes (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Things that may be put in place one by one; what is in a tree does not count.
const PLACES_MAX: usize = 65_536;

/// Something that has its place: a file, or a whole tree.
#[derive(Debug)]
struct Thing {
    /// The directory it is in.
    dir: Bytes,
    /// What it is called until it is in its place; then, what was there before is.
    stage: Bytes,
    is_in_place: bool,
    inode: u64,
}

/// What comes.
#[derive(Debug)]
pub struct Installer {
    root: OwnedFd,
    record: Option<Record>,
    wish: Wish,
    /// Short and the attempt's own.
    tag: String,
    things: BTreeMap<Bytes, Thing>,
    /// The file that content is for.
    open: Option<(Bytes, File)>,
    /// Attributes of directories, set when nothing more is made in them.
    dirs: Vec<(Bytes, Meta)>,
    last: bool,
    fate: Fate,
}

impl Installer {
    /// Nothing has come yet. `dir`: where the record goes; `earlier`: attempts whose files are to have the same end.
    ///
    /// # Errors
    /// The record cannot be made.
    pub fn begin(dir: &Path, attempt: &str, earlier: &[String], wish: Wish) -> Result<Self> {
        let root = File::open("/").map_err(failed("open", b"/"))?.into();
        let record = Some(Record::begin(dir, attempt, earlier)?);
        let tag = attempt.chars().take(12).collect();
        let (things, dirs) = (BTreeMap::new(), Vec::new());
        Ok(Self { root, record, wish, tag, things, open: None, dirs, last: false, fate: Fate::Undo })
    }

    /// A pass begins; the last one is in the pause.
    pub fn begin_pass(&mut self, last: bool) {
        self.last = last;
    }

    /// Whether a path has come, or is in a tree that has.
    pub fn came(&self, path: &[u8]) -> bool {
        self.things.keys().any(|thing| is_below(path, &thing.0))
    }

    /// One operation of the pass.
    ///
    /// # Errors
    /// It makes no sense, or cannot be done.
    pub fn take(&mut self, op: Op, content: &[u8]) -> Result<()> {
        match op {
            Op::Dir { path, meta, found } => self.dir(path, meta, found),
            Op::File { path } => self.file(path),
            Op::Data { offset } => {
                let (path, file) = self.current()?;
                let fits = offset.checked_add(content.len() as u64).is_some_and(|end| i64::try_from(end).is_ok());
                if !fits {
                    return Err(nonsense(&path.0, "an offset beyond everything"));
                }
                file.write_all_at(content, offset).map_err(failed("write", &path.0))
            }
            Op::Hole { offset, len } => {
                let (path, file) = self.current()?;
                hole(file, path, offset, len)
            }
            Op::End { meta } => {
                let (path, file) = self.open.take().ok_or_else(|| nonsense(b"an end", "of no file"))?;
                i64::try_from(meta.size).map_err(|_| nonsense(&path.0, "a size beyond everything"))?;
                file.set_len(meta.size).map_err(failed("set the length of", &path.0))?;
                set(&file, &meta, &path)
            }
            Op::Link { path, to } => {
                self.in_tree(&path)?;
                self.in_tree(&to)?;
                let ((from_dir, from), (dir, name)) = (self.parent(&to)?, self.parent(&path)?);
                record::remove_all(&dir, os(&name)).map_err(failed("remove", &path.0))?;
                linkat(&from_dir, os(&from), &dir, os(&name), AtFlags::empty()).map_err(failed("link", &path.0))
            }
            Op::Symlink { path, target, meta } => self.symlink(&path, &target, &meta),
            Op::Fifo { path, meta } => {
                self.in_tree(&path)?;
                let (dir, name) = self.parent(&path)?;
                record::remove_all(&dir, os(&name)).map_err(failed("remove", &path.0))?;
                mkfifoat(&dir, os(&name), Mode::from_bits_truncate(0o600)).map_err(failed("make", &path.0))?;
                let mode = Mode::from_bits_truncate(meta.mode);
                own(&dir, &name, &meta, &path)?;
                nix::sys::stat::fchmodat(&dir, os(&name), mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
                    .map_err(failed("set the mode of", &path.0))
            }
            Op::Remove { path } => {
                self.in_tree(&path)?;
                if self.things.contains_key(&path) {
                    return Err(nonsense(&path.0, "a tree does not go"));
                }
                let (dir, name) = self.parent(&path)?;
                self.dirs.retain(|(known, _)| !is_below(&known.0, &path.0));
                record::remove_all(&dir, os(&name)).map_err(failed("remove", &path.0))
            }
            Op::Digest { .. } => Err(nonsense(b"a digest", "among contents")),
        }
    }

    /// The pass is over: everything is complete, and comes to its place.
    ///
    /// # Errors
    /// It cannot.
    pub fn end_pass(&mut self) -> Result<()> {
        if let Some((path, _)) = self.open.take() {
            return Err(nonsense(&path.0, "it has no end"));
        }
        // The innermost first: making a file in a directory changes its time.
        let mut dirs = std::mem::take(&mut self.dirs);
        dirs.sort_by_key(|(path, _)| std::cmp::Reverse(path.0.len()));
        for (path, meta) in dirs {
            let dir = self.open_dir(&self.real(&path))?;
            set(&File::from(dir), &meta, &path)?;
        }
        let mut moves = Vec::new();
        for (path, thing) in self.things.iter().filter(|(_, thing)| !thing.is_in_place) {
            let (_, name) = split(path)?;
            let dir = self.open_dir(&thing.dir)?;
            let had = match fstatat(&dir, os(&name), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(_) => true,
                Err(Errno::ENOENT) => false,
                Err(errno) => return Err(failed("look for", &path.0)(errno)),
            };
            moves.push((path.clone(), dir, name, had));
        }
        if moves.is_empty() {
            return Ok(());
        }
        let line = |(path, _, name, had): &(Bytes, OwnedFd, Bytes, bool)| {
            let thing = &self.things[path];
            let (dir, stage, name) = (thing.dir.clone(), thing.stage.clone(), name.clone());
            Line::Put { dir, stage, name, inode: thing.inode, had: *had }
        };
        let lines = moves.iter().map(line).collect();
        self.write(lines, !self.last)?;
        for (path, dir, name, had) in moves {
            let thing = self.things.get_mut(&path).expect("it was listed");
            record::put(&dir, &thing.stage, &name, had).map_err(failed("put in its place", &path.0))?;
            thing.is_in_place = true;
        }
        Ok(())
    }

    /// What becomes of it when this is dropped; until then, and if nothing is said, it goes.
    pub fn decide(&mut self, fate: Fate) {
        self.fate = fate;
    }

    /// It goes, and what was there before comes back.
    pub fn undo(&mut self) {
        self.open = None;
        self.things.clear();
        if let Some(record) = self.record.take() {
            record.conclude(Fate::Undo);
        }
    }

    fn write(&mut self, lines: Vec<Line>, sync: bool) -> Result<()> {
        match &mut self.record {
            Some(record) => record.write(lines, sync),
            None => Err(nonsense(b"more files", "it is over")),
        }
    }

    fn current(&self) -> Result<(&Bytes, &File)> {
        self.open.as_ref().map(|(path, file)| (path, file)).ok_or_else(|| nonsense(b"content", "of no file"))
    }

    fn in_tree(&self, path: &Bytes) -> Result<()> {
        check(path)?;
        let came = self.things.keys().any(|thing| path.0.len() > thing.0.len() && is_below(&path.0, &thing.0));
        if came && self.wish.tree_of(&path.0).is_some() {
            Ok(())
        } else {
            Err(nonsense(&path.0, "nobody wants it here"))
        }
    }

    /// Where a path is for the time being.
    fn real(&self, path: &Bytes) -> Bytes {
        let staged = self.things.iter().find(|(thing, t)| !t.is_in_place && is_below(&path.0, &thing.0));
        match staged {
            Some((of, thing)) => {
                let mut real = thing.dir.0.clone();
                if real != b"/" {
                    real.push(b'/');
                }
                real.extend(&thing.stage.0);
                real.extend(&path.0[of.0.len()..]);
                Bytes(real)
            }
            None => path.clone(),
        }
    }

    fn open_dir(&self, path: &Bytes) -> Result<OwnedFd> {
        openat2::open_plain(&self.root, &path.0, (libc::O_RDONLY | libc::O_DIRECTORY) as u32, 0)
            .map_err(failed("open", &path.0))
    }

    /// The directory that a path is in for the time being, and its name there.
    fn parent(&self, path: &Bytes) -> Result<(OwnedFd, Bytes)> {
        let (dir, name) = split(&self.real(path))?;
        Ok((self.open_dir(&dir)?, name))
    }

    fn dir(&mut self, path: Bytes, meta: Meta, found: bool) -> Result<()> {
        check(&path)?;
        let is_tree = self.wish.with.iter().any(|tree| tree.path == path);
        if found {
            return self.on_the_way(&path, &meta);
        }
        if is_tree && !self.things.contains_key(&path) {
            let (dir, _) = split(&path)?;
            let stage = self.stage(&dir)?;
            let parent = self.open_dir(&dir)?;
            mkdirat(&parent, os(&stage), Mode::from_bits_truncate(0o700)).map_err(failed("make", &path.0))?;
            let stat = fstatat(&parent, os(&stage), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("stat", &path.0))?;
            self.things.insert(path.clone(), Thing { dir, stage, is_in_place: false, inode: stat.st_ino });
        } else if !is_tree {
            self.in_tree(&path)?;
            let (dir, name) = self.parent(&path)?;
            match mkdirat(&dir, os(&name), Mode::from_bits_truncate(0o700)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed("make", &path.0)(errno)),
            }
        }
        self.dirs.push((path, meta));
        Ok(())
    }

    /// A directory above something that comes.
    fn on_the_way(&mut self, path: &Bytes, meta: &Meta) -> Result<()> {
        let wanted =
            self.wish.copies(super::Use::Write) || self.wish.with.iter().any(|tree| is_below(&tree.path.0, &path.0));
        if !wanted {
            return Err(nonsense(&path.0, "nobody wants it here"));
        }
        let (dir, name) = self.parent(path)?;
        if fstatat(&dir, os(&name), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
            return Ok(());
        }
        self.write(vec![Line::Made { path: path.clone() }], false)?;
        mkdirat(&dir, os(&name), Mode::from_bits_truncate(0o700)).map_err(failed("make", &path.0))?;
        set(&File::from(self.open_dir(path)?), meta, path)
    }

    /// A name in a directory that nobody has, written down.
    fn stage(&mut self, dir: &Bytes) -> Result<Bytes> {
        if self.things.len() >= PLACES_MAX {
            return Err(nonsense(&dir.0, "too many files"));
        }
        // By the lines of the record, which may have been begun by somebody before.
        let number = self.record.as_ref().map_or(0, |record| record.lines().len());
        let stage = Bytes(format!(".migrate-{}-{number}", self.tag).into_bytes());
        self.write(vec![Line::Stage { dir: dir.clone(), stage: stage.clone() }], false)?;
        Ok(stage)
    }

    fn file(&mut self, path: Bytes) -> Result<()> {
        check(&path)?;
        if let Some((open, _)) = &self.open {
            return Err(nonsense(&open.0, "it has no end"));
        }
        const FLAGS: OFlag = OFlag::O_RDWR.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);
        let private = Mode::from_bits_truncate(0o600);
        let fd = if self.wish.tree_of(&path.0).is_some() {
            self.in_tree(&path)?;
            let (dir, name) = self.parent(&path)?;
            openat(&dir, os(&name), FLAGS | OFlag::O_CREAT, private).map_err(failed("make", &path.0))?
        } else if self.things.contains_key(&path) {
            let (dir, name) = self.parent(&path)?;
            let fd = openat(&dir, os(&name), FLAGS, Mode::empty()).map_err(failed("open", &path.0))?;
            let stat = fstat(&fd).map_err(failed("stat", &path.0))?;
            if stat.st_ino != self.things[&path].inode {
                return Err(nonsense(&path.0, "somebody here has put another file in its place"));
            }
            fd
        } else if self.wish.copies(super::Use::Write) {
            let (dir, _) = split(&path)?;
            let stage = self.stage(&dir)?;
            let parent = self.open_dir(&dir)?;
            let fd = openat(&parent, os(&stage), FLAGS | OFlag::O_CREAT | OFlag::O_EXCL, private)
                .map_err(failed("make", &path.0))?;
            let inode = fstat(&fd).map_err(failed("stat", &path.0))?.st_ino;
            self.things.insert(path.clone(), Thing { dir, stage, is_in_place: false, inode });
            fd
        } else {
            return Err(nonsense(&path.0, "nobody wants it here"));
        };
        let mode = fstat(&fd).map_err(failed("stat", &path.0))?.st_mode;
        if mode & libc::S_IFMT != libc::S_IFREG {
            return Err(nonsense(&path.0, "it is no regular file here"));
        }
        self.open = Some((path, File::from(fd)));
        Ok(())
    }

    fn symlink(&mut self, path: &Bytes, target: &Bytes, meta: &Meta) -> Result<()> {
        self.in_tree(path)?;
        let (dir, name) = self.parent(path)?;
        record::remove_all(&dir, os(&name)).map_err(failed("remove", &path.0))?;
        symlinkat(os(target), &dir, os(&name)).map_err(failed("make", &path.0))?;
        own(&dir, &name, meta, path)?;
        let (atime, mtime) = (time(meta.atime_ns), time(meta.mtime_ns));
        utimensat(&dir, os(&name), &atime, &mtime, UtimensatFlags::NoFollowSymlink)
            .map_err(failed("set the time of", &path.0))
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            record.conclude(self.fate);
        }
    }
}

fn os(bytes: &Bytes) -> &OsStr {
    OsStr::from_bytes(&bytes.0)
}

/// A path that can only mean one thing.
fn check(path: &Bytes) -> Result<()> {
    let mut parts = path.0.strip_prefix(b"/").unwrap_or_default().split(|byte| *byte == b'/');
    let plain = path.0.len() <= PATH_MAX
        && !path.0.contains(&0)
        && path.0.starts_with(b"/")
        && parts.all(|part| !part.is_empty() && part != b"." && part != b"..");
    if plain { Ok(()) } else { Err(nonsense(&path.0, "it is no plain absolute path")) }
}

fn split(path: &Bytes) -> Result<(Bytes, Bytes)> {
    let at =
        path.0.iter().rposition(|byte| *byte == b'/').ok_or_else(|| nonsense(&path.0, "it is no absolute path"))?;
    Ok((Bytes(path.0[..at.max(1)].to_vec()), Bytes(path.0[at + 1..].to_vec())))
}

fn hole(file: &File, path: &Bytes, offset: u64, len: u64) -> Result<()> {
    let size = file.metadata().map_err(failed("stat", &path.0))?.len();
    let end = offset.saturating_add(len).min(size);
    if len > blocks::BLOCK {
        return Err(nonsense(&path.0, "a hole that is too long"));
    }
    if offset >= end {
        return Ok(());
    }
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file.as_fd(), flags, offset as i64, (end - offset) as i64) {
        // It reads the same.
        Err(Errno::EOPNOTSUPP) => {
            file.write_all_at(&vec![0; (end - offset) as usize], offset).map_err(failed("write", &path.0))
        }
        done => done.map_err(failed("make a hole in", &path.0)),
    }
}

/// Sets all attributes but the length.
fn set(file: &File, meta: &Meta, path: &Bytes) -> Result<()> {
    let stat = fstat(file).map_err(failed("stat", &path.0))?;
    if (stat.st_uid, stat.st_gid) != (meta.uid, meta.gid) {
        fchown(file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
            .map_err(failed("give to its owner", &path.0))?;
    }
    // After the owner, which takes set-id bits and capabilities away.
    fchmod(file, Mode::from_bits_truncate(meta.mode & 0o7777)).map_err(failed("set the mode of", &path.0))?;
    attributes(file, meta, path)?;
    futimens(file, &time(meta.atime_ns), &time(meta.mtime_ns)).map_err(failed("set the time of", &path.0))
}

/// Attributes of this host's security modules are this host's business.
const LOCAL: [&[u8]; 4] = [b"security.selinux", b"security.ima", b"security.evm", b"security.apparmor"];

fn attributes(file: &File, meta: &Meta, path: &Bytes) -> Result<()> {
    let failed = || failed("set an extended attribute of", &path.0);
    let here = xattr::all(file).map_err(failed())?;
    let is_local = |name: &[u8]| LOCAL.contains(&name);
    for (name, _) in here.iter().filter(|(name, _)| !is_local(name)) {
        if !meta.xattrs.iter().any(|(wanted, _)| wanted.0 == *name) {
            xattr::remove(file, name).map_err(failed())?;
        }
    }
    for (name, value) in meta.xattrs.iter().filter(|(name, _)| !is_local(&name.0)) {
        if !here.iter().any(|(known, content)| *known == name.0 && *content == value.0) {
            xattr::set(file, &name.0, &value.0).map_err(failed())?;
        }
    }
    Ok(())
}

/// Gives a name that is not opened to its owner.
fn own(dir: &OwnedFd, name: &Bytes, meta: &Meta, path: &Bytes) -> Result<()> {
    let stat = fstatat(dir, os(name), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("stat", &path.0))?;
    if (stat.st_uid, stat.st_gid) == (meta.uid, meta.gid) {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    fchownat(dir, os(name), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("give to its owner", &path.0))
}

fn time(ns: i64) -> TimeSpec {
    TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
}

/// The error of an operation that could not even be read.
pub fn unreadable(error: io::Error) -> super::Error {
    failed("read an operation of", b"a pass")(error)
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
