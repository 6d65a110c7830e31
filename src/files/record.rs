//! What was done to the destination's file systems, so that it can be undone: by the session itself, or by whoever finds the
//! record when its program is dead.
//!
//! A line stands in the record before what it tells of is done. It is on the disk before something is put in the place of
//! something else, but for files that come in the pause: those survive the death of the program, not of the host.
//! As long as the session lives it holds the record's lock (flock(2)).

use super::{Result, failed};
use crate::image::Bytes;
use crate::sys::{Errno, openat2};
use nix::fcntl::{AtFlags, Flock, FlockArg, RenameFlags, renameat, renameat2};
use nix::sys::stat::{fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest record that is read, bytes.
const FILE_LIMIT_BYTES: u64 = 64 << 20;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// Something new, or something old that was replaced, is called so.
    Stage {
        /// Its directory.
        dir: Bytes,
        /// Its name there.
        stage: Bytes,
    },
    /// What was staged is put in its place.
    Put {
        /// Its directory.
        dir: Bytes,
        /// Its name before, and that of what was there before after.
        stage: Bytes,
        /// Its name from then on.
        name: Bytes,
        /// Its inode number.
        inode: u64,
        /// Something was there before.
        had: bool,
    },
    /// A directory above it was made.
    Made {
        /// Which.
        path: Bytes,
    },
}

/// What becomes of what was put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays; what was there before goes.
    Keep,
    /// It goes; what was there before comes back.
    Undo,
    /// That is not known yet.
    Leave,
}

/// The record of one attempt, and of those before it whose files are to have the same end.
#[derive(Debug)]
pub struct Record {
    file: Flock<File>,
    path: PathBuf,
    lines: Vec<Line>,
}

/// Where the record of an attempt is, in the directory of journals.
pub fn path(dir: &Path, attempt: &str) -> PathBuf {
    dir.join(format!("{attempt}.files"))
}

impl Record {
    /// Begins one. What this attempt, or else an earlier one, has left goes on in it, so that all is undone together, the newest first.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn begin(dir: &Path, attempt: &str, earlier: &[String]) -> Result<Self> {
        let path = path(dir, attempt);
        let failed = || failed("make", path.as_os_str().as_bytes());
        if let Some(own) = Self::take_over(&path) {
            return Ok(own);
        }
        let left = earlier.iter().find_map(|earlier| Self::take_over(&self::path(dir, earlier)));
        // One that is there all the same belongs to whoever has it locked.
        if let (Some(mut left), false) = (left, path.exists()) {
            fs::rename(&left.path, &path).map_err(failed())?;
            left.path = path;
            return Ok(left);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed())?;
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path).map_err(failed())?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| failed()(errno.into()))?;
        Ok(Self { file, path, lines: Vec::new() })
    }

    /// Writes lines; they survive the death of this program, and of the host if `sync`.
    ///
    /// # Errors
    /// They cannot be written: what they tell of must not be done.
    pub fn write(&mut self, lines: Vec<Line>, sync: bool) -> Result<()> {
        let mut text = Vec::new();
        for line in &lines {
            serde_json::to_writer(&mut text, line).expect("lines have string keys only");
            text.push(b'\n');
        }
        let mut file: &File = &self.file;
        let written = file.write_all(&text).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        written.map_err(failed("write", self.path.as_os_str().as_bytes()))?;
        self.lines.extend(lines);
        Ok(())
    }

    /// What is in it.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Brings it to an end; the record is gone then. What cannot be done is logged, and left.
    pub fn conclude(self, fate: Fate) {
        match fate {
            Fate::Keep => keep(&self.lines),
            Fate::Undo => undo(&self.lines),
            Fate::Leave => return,
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a record of files was left behind");
        }
    }

    /// Takes over a record whose program is dead; `None` if there is none, or its program lives.
    fn take_over(path: &Path) -> Option<Self> {
        let file = OpenOptions::new().append(true).read(true).open(path).ok()?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
        // Whoever had it may have brought it to an end since it was opened.
        if file.metadata().ok()?.nlink() == 0 {
            return None;
        }
        let mut text = Vec::new();
        (&*file).take(FILE_LIMIT_BYTES).read_to_end(&mut text).ok()?;
        // The last line may have been cut off: what it tells of was not done then, and it must not run into the next one.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).ok()?;
        }
        let lines = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Some(Self { file, path: path.to_owned(), lines })
    }
}

/// Brings the record of an attempt whose program is dead to an end.
pub fn conclude(dir: &Path, attempt: &str, fate: Fate) {
    if let Some(record) = Record::take_over(&path(dir, attempt)) {
        record.conclude(fate);
    }
}

/// Brings all records whose programs are dead to an end; `fate` says which, by the name of the attempt.
pub fn sweep(dir: &Path, fate: &dyn Fn(&str) -> Fate) {
    let is_record = |path: &PathBuf| path.extension().is_some_and(|end| end == "files");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries.filter(is_record).collect();
    // The newest first: what it has put aside may be what one before it has put there.
    paths.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).and_then(|meta| meta.modified()).ok()));
    for path in paths {
        let Some(attempt) = path.file_stem().and_then(OsStr::to_str) else { continue };
        if let Some(record) = Record::take_over(&path) {
            // Asked while the lock is held: nobody else decides about it meanwhile.
            record.conclude(fate(attempt));
        }
    }
}

/// The name of what a file system that cannot exchange has moved out of the way.
fn old(stage: &Bytes) -> OsString {
    OsString::from_vec([&stage.0[..], b"-old"].concat())
}

/// Puts what is staged in its place, and what is there in its own.
///
/// # Errors
/// Nothing has been moved.
pub(super) fn put(dir: &OwnedFd, stage: &Bytes, name: &Bytes, had: bool) -> std::result::Result<(), Errno> {
    let (from, to) = (OsStr::from_bytes(&stage.0), OsStr::from_bytes(&name.0));
    let flags = if had { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
    match renameat2(dir, from, dir, to, flags) {
        // A file system that cannot.
        Err(Errno::EINVAL | Errno::ENOSYS) => {}
        done => return done,
    }
    if had {
        renameat(dir, to, dir, old(stage).as_os_str())?;
    }
    renameat(dir, from, dir, to).inspect_err(|_| {
        if had {
            let _ = renameat(dir, old(stage).as_os_str(), dir, to);
        }
    })
}

fn open_dir(dir: &Bytes) -> Option<OwnedFd> {
    let root: OwnedFd = File::open("/").ok()?.into();
    openat2::open_plain(root, &dir.0, (libc::O_RDONLY | libc::O_DIRECTORY) as u32, 0).ok()
}

fn inode(dir: &OwnedFd, name: &OsStr) -> Option<u64> {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_ino)
}

fn undo(lines: &[Line]) {
    for line in lines.iter().rev() {
        match line {
            Line::Put { dir, stage, name, inode: ours, had } => {
                let Some(dir) = open_dir(dir) else { continue };
                let (to, aside) = (OsStr::from_bytes(&name.0), old(stage));
                let old_is_aside = *had && inode(&dir, &aside).is_some();
                let moved = if old_is_aside {
                    // What is in its place, if anything is, is ours.
                    let back =
                        inode(&dir, to).map_or(Ok(()), |_| renameat(&dir, to, &dir, OsStr::from_bytes(&stage.0)));
                    back.and_then(|()| renameat(&dir, aside.as_os_str(), &dir, to))
                } else if inode(&dir, to) == Some(*ours) {
                    let flags = if *had { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::empty() };
                    match renameat2(&dir, to, &dir, OsStr::from_bytes(&stage.0), flags) {
                        Err(Errno::EINVAL | Errno::ENOSYS) if !*had => {
                            renameat(&dir, to, &dir, OsStr::from_bytes(&stage.0))
                        }
                        moved => moved,
                    }
                } else {
                    Ok(())
                };
                if let Err(error) = moved {
                    tracing::error!(%error, %name, %stage, "a file could not be put back");
                }
            }
            Line::Stage { dir, stage } => remove_staged(dir, stage),
            Line::Made { path } => {
                let at = path.0.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
                let (above, name) = (Bytes(path.0[..at.max(1)].to_vec()), OsStr::from_bytes(&path.0[at + 1..]));
                if let Some(above) = open_dir(&above)
                    && let Err(error) = unlinkat(&above, name, UnlinkatFlags::RemoveDir)
                {
                    tracing::warn!(%error, %path, "a directory was left behind");
                }
            }
        }
    }
}

fn keep(lines: &[Line]) {
    let mut synced = HashSet::new();
    for line in lines {
        let Line::Stage { dir, stage } = line else { continue };
        remove_staged(dir, stage);
        let Some(dir) = open_dir(dir) else { continue };
        let is_new = fstat(&dir).is_ok_and(|stat| synced.insert(stat.st_dev));
        if is_new && let Err(error) = nix::unistd::syncfs(&dir) {
            tracing::warn!(%error, "files that came may not be on the disk yet");
        }
    }
}

/// Removes what has such a name, whatever it is: it is ours, or what was replaced.
fn remove_staged(dir: &Bytes, stage: &Bytes) {
    let Some(opened) = open_dir(dir) else { return };
    for name in [OsStr::from_bytes(&stage.0).to_owned(), old(stage)] {
        if let Err(error) = remove_all(&opened, &name) {
            tracing::warn!(%error, %dir, ?name, "a file was left behind");
        }
    }
}

/// Removes a name with all that is below it; no symbolic link is followed. No harm if there is nothing.
pub(super) fn remove_all(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        // Through the descriptor: nobody can put another directory in the way.
        Err(Errno::EISDIR | Errno::EPERM) => {
            fs::remove_dir_all(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(path: &Path) -> Bytes {
        Bytes(path.as_os_str().as_bytes().to_vec())
    }

    /// A directory with an old file, a new one beside it, and the record that says so.
    fn staged(dir: &Path, had: bool) -> (Record, OwnedFd) {
        if had {
            fs::write(dir.join("data"), "old").unwrap();
        }
        fs::write(dir.join(".stage"), "new").unwrap();
        let mut record = Record::begin(&dir.join("journals"), "a1", &[]).unwrap();
        let opened = open_dir(&bytes(dir)).unwrap();
        let inode = inode(&opened, OsStr::new(".stage")).unwrap();
        let (stage, name) = (Bytes(b".stage".to_vec()), Bytes(b"data".to_vec()));
        let lines = vec![
            Line::Stage { dir: bytes(dir), stage: stage.clone() },
            Line::Put { dir: bytes(dir), stage, name, inode, had },
        ];
        record.write(lines, true).unwrap();
        (record, opened)
    }

    fn content(dir: &Path) -> Option<String> {
        assert!(!dir.join(".stage").exists() && !dir.join(".stage-old").exists(), "nothing is left beside it");
        assert!(!path(&dir.join("journals"), "a1").exists(), "the record is gone");
        fs::read_to_string(dir.join("data")).ok()
    }

    #[test]
    fn what_was_there_comes_back_or_goes_whenever_the_program_died() {
        for had in [false, true] {
            for was_put in [false, true] {
                for (fate, wanted) in [(Fate::Undo, had.then_some("old")), (Fate::Keep, Some("new"))] {
                    if fate == Fate::Keep && !was_put {
                        continue;
                    }
                    let dir = tempfile::tempdir().unwrap();
                    let (record, opened) = staged(dir.path(), had);
                    if was_put {
                        put(&opened, &Bytes(b".stage".to_vec()), &Bytes(b"data".to_vec()), had).unwrap();
                    }
                    let journals = dir.path().join("journals");
                    sweep(&journals, &|_| panic!("it is locked: its program lives"));
                    drop(record);
                    sweep(&journals, &|_| Fate::Leave);
                    sweep(&journals, &|attempt| if attempt == "a1" { fate } else { Fate::Leave });
                    assert_eq!(content(dir.path()).as_deref(), wanted, "{had} {was_put} {fate:?}");
                }
            }
        }
    }

    #[test]
    fn a_record_is_not_lost_under_that_of_an_earlier_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let line = |stage: &str| Line::Stage { dir: bytes(dir.path()), stage: Bytes(stage.into()) };
        for attempt in ["a1", "a2"] {
            Record::begin(dir.path(), attempt, &[]).unwrap().write(vec![line(attempt)], false).unwrap();
        }
        let record = Record::begin(dir.path(), "a2", &["a1".to_owned()]).unwrap();
        assert_eq!(record.lines(), [line("a2")], "its own");
        assert!(Record::begin(dir.path(), "a2", &["a1".to_owned()]).is_err(), "somebody has it");
        assert!(path(dir.path(), "a1").exists());
    }

    /// The first attempt has died in the middle of a line, and the second puts another file in the place of its own.
    #[test]
    fn what_two_attempts_have_brought_has_one_end() {
        for (fate, wanted) in [(Fate::Undo, "old"), (Fate::Keep, "newer")] {
            let dir = tempfile::tempdir().unwrap();
            let (record, opened) = staged(dir.path(), true);
            put(&opened, &Bytes(b".stage".to_vec()), &Bytes(b"data".to_vec()), true).unwrap();
            (&*record.file).write_all(b"{\"stage\":{").unwrap();
            drop(record);
            let journals = dir.path().join("journals");
            let mut record = Record::begin(&journals, "a2", &["a0".to_owned(), "a1".to_owned()]).unwrap();
            assert!(!path(&journals, "a1").exists() && record.lines().len() == 2);
            fs::write(dir.path().join(".again"), "newer").unwrap();
            let inode = inode(&opened, OsStr::new(".again")).unwrap();
            let (stage, name) = (Bytes(b".again".to_vec()), Bytes(b"data".to_vec()));
            let (at, had) = (bytes(dir.path()), true);
            let line = Line::Stage { dir: at.clone(), stage: stage.clone() };
            record
                .write(vec![line, Line::Put { dir: at, stage: stage.clone(), name: name.clone(), inode, had }], true)
                .unwrap();
            put(&opened, &stage, &name, true).unwrap();
            drop(record);
            sweep(&journals, &|attempt| if attempt == "a2" { fate } else { Fate::Leave });
            assert_eq!(content(dir.path()).as_deref(), Some(wanted), "{fate:?}");
            assert!(!dir.path().join(".again").exists() && !path(&journals, "a2").exists());
        }
    }

    #[test]
    fn what_somebody_else_has_put_there_since_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (record, opened) = staged(dir.path(), false);
        put(&opened, &Bytes(b".stage".to_vec()), &Bytes(b"data".to_vec()), false).unwrap();
        fs::write(dir.path().join("other"), "theirs").unwrap();
        fs::rename(dir.path().join("other"), dir.path().join("data")).unwrap();
        record.conclude(Fate::Undo);
        assert_eq!(content(dir.path()).as_deref(), Some("theirs"));
    }

    #[test]
    fn directories_on_the_way_are_removed_unless_somebody_uses_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/x"), "").unwrap();
        let mut record = Record::begin(&dir.path().join("journals"), "a1", &[]).unwrap();
        let made = |path: &str| Line::Made { path: bytes(&dir.path().join(path)) };
        record.write(vec![made("a"), made("a/b")], false).unwrap();
        record.conclude(Fate::Undo);
        assert!(dir.path().join("a/x").exists() && !dir.path().join("a/b").exists());
    }
}
