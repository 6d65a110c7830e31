//! What a guard was told, written down: should it be killed with its owner, a later program gives back in its place.
//!
//! A file in the run-time directory: a line with the owner and its guard, then a line a message. It is not synced: after a power
//! loss there is nothing left to be given back. Descriptors are found again by the number of their socket, in whichever process
//! has it. Whoever ends in peace of the two removes the file.

use super::{Entrusted, Message, take};
use crate::companion::held::Held;
use crate::image::Pid;
use crate::proc::ProcDir;
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What these files are called.
const NAME: (&str, &str) = ("guard-", ".will");
/// Longest file that is read, bytes: that of some ten thousand connections.
const MAX: u64 = 64 << 20;

/// The first line: process ids and when each began (clock ticks after boot).
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    boot_id: String,
    owner: (i32, u64),
    guard: (i32, u64),
}

/// Another line.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    message: Message,
    /// Inode numbers of the sockets that came with it.
    sockets: Vec<u64>,
}

/// The file of a guard, from its owner's side.
#[derive(Debug)]
pub(super) struct Will {
    file: File,
}

/// Where the one of this owner is, in this run-time directory.
pub(super) fn path(run: &Path, owner: u32, number: u32) -> PathBuf {
    run.join(format!("{}{owner}-{number}{}", NAME.0, NAME.1))
}

impl Will {
    /// Begins one of this program and this guard.
    pub fn begin(path: &Path, guard: u32) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        let will = Self { file };
        let boot_id = crate::proc::sys::boot_id().map_err(io::Error::other)?;
        will.add(&Head { boot_id, owner: born(std::process::id() as i32)?, guard: born(guard as i32)? })?;
        Ok(will)
    }

    /// What the guard is about to be told.
    pub fn note(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let inode = |fd: &BorrowedFd<'_>| Ok(File::from(fd.try_clone_to_owned()?).metadata()?.ino());
        let sockets = fds.iter().map(inode).collect::<io::Result<_>>()?;
        self.add(&Entry { message: message.clone(), sockets })
    }

    fn add(&self, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(io::Error::other)?;
        bytes.push(b'\n');
        (&self.file).write_all(&bytes)
    }
}

fn born(pid: i32) -> io::Result<(i32, u64)> {
    let stat = ProcDir::open(Pid(pid)).and_then(|dir| dir.stat(&mut Vec::new()));
    Ok((pid, stat.map_err(io::Error::other)?.starttime))
}

/// Gives back what dead guards of dead owners were to give back; how many there were. What nobody knows the owner of stays as it is,
/// but for that of this target, where a person, or who speaks for one, has decided that it is to run.
pub fn execute(run: &Path, decided: Option<&Held>) -> usize {
    let mut done = 0;
    for (path, entrusted) in orphaned(run) {
        let is_decided = || decided.and_then(Held::root).is_some_and(|root| entrusted.root() == Some(root));
        if entrusted.held && !is_decided() {
            continue;
        }
        entrusted.give_back(|| {});
        let _ = fs::remove_file(path);
        done += 1;
    }
    done
}

/// The target has ended here for good: what was locked stays so, for a silent end.
pub fn forget(run: &Path, target: &Held) {
    for (path, mut entrusted) in orphaned(run) {
        if entrusted.root() == target.root() {
            entrusted.forget();
            let _ = fs::remove_file(path);
        }
    }
}

/// Files whose owner and guard have died.
fn orphaned(run: &Path) -> Vec<(PathBuf, Entrusted)> {
    let files = fs::read_dir(run).into_iter().flatten().flatten().map(|file| file.path());
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(NAME.0) && name.ends_with(NAME.1)
    };
    let mut found = Vec::new();
    for path in files.filter(is_one) {
        match read(&path) {
            Ok(Some(entrusted)) => found.push((path, entrusted)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what a guard had to give back cannot be read")
            }
        }
    }
    found
}

/// `None` while somebody lives who sees to it.
fn read(path: &Path) -> io::Result<Option<Entrusted>> {
    if path.metadata()?.len() > MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines();
    let head: Head = serde_json::from_str(lines.next().unwrap_or_default())?;
    if [head.owner, head.guard].iter().any(lives) {
        return Ok(None);
    }
    let mut entrusted = Entrusted::default();
    if crate::proc::sys::boot_id().is_ok_and(|boot_id| boot_id == head.boot_id) {
        // A last line that is torn was not told either.
        let entries: Vec<Entry> = lines.map_while(|line| serde_json::from_str(line).ok()).collect();
        let sockets = sockets(&entries.iter().flat_map(|entry| entry.sockets.iter().copied()).collect());
        entries.into_iter().for_each(|entry| replay(&mut entrusted, entry, &sockets));
    }
    Ok(Some(entrusted))
}

fn replay(entrusted: &mut Entrusted, Entry { message, sockets: wanted }: Entry, sockets: &HashMap<u64, OwnedFd>) {
    let found: Vec<Option<OwnedFd>> =
        wanted.iter().map(|inode| sockets.get(inode).and_then(|fd| fd.try_clone().ok())).collect();
    // Those that are closed by now need nothing.
    let message = match message {
        Message::Locked(terms) => {
            let open = terms.into_iter().zip(&found).filter_map(|(terms, fd)| fd.is_some().then_some(terms));
            Message::Locked(open.collect())
        }
        Message::Gated(_) => Message::Gated(found.iter().flatten().count()),
        other => other,
    };
    take(entrusted, None, message, found.into_iter().flatten().collect());
}

fn lives(process: &(i32, u64)) -> bool {
    let stat = ProcDir::open(Pid(process.0)).and_then(|dir| dir.stat(&mut Vec::new()));
    stat.is_ok_and(|stat| stat.starttime == process.1 && !matches!(stat.state, b'Z' | b'X'))
}

/// Duplicates of these sockets, of whoever has them.
fn sockets(wanted: &HashSet<u64>) -> HashMap<u64, OwnedFd> {
    let mut found = HashMap::new();
    let processes = crate::proc::task::processes().unwrap_or_default();
    for dir in processes.into_iter().filter_map(|pid| ProcDir::open(pid).ok()) {
        if found.len() == wanted.len() {
            break;
        }
        for number in dir.fds().unwrap_or_default() {
            let link = dir.readlink(&format!("fd/{number}")).map(|link| link.0).unwrap_or_default();
            let Some(inode) = inode_of(&link).filter(|inode| wanted.contains(inode)) else { continue };
            if let Ok(fd) = pidfd_open(dir.pid()).and_then(|pidfd| pidfd_getfd(pidfd.as_fd(), number)) {
                found.insert(inode, fd);
            }
        }
    }
    found
}

fn inode_of(link: &[u8]) -> Option<u64> {
    std::str::from_utf8(link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?).ok()?.parse().ok()
}
