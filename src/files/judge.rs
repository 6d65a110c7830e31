//! The destination's judgement: which files it has, which have to come, and which are in the way.
//!
//! A file is the same without being read where both sides have one file system: on one kernel by device and inode, else where
//! a nonce file made there can be seen here and the inode agrees. Everything else is compared: size, then contents.

use super::{Answer, Order, Question, Result, Use, Wanted, Wish, blocks, failed, is_below, nonce, paths_mut};
use crate::blocker::{Blocker, codes};
use crate::image::fd::PathRef;
use crate::image::{Bytes, Model};
use crate::ops::options::Files;
use crate::sys::{Errno, openat2};
use nix::sys::stat::{FileStat, fstat};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;

/// Files up to this size are compared before the freeze, others while rounds run, bytes.
const SMALL: u64 = 1 << 20;
/// Questions at a time: answers must fit into one message.
const AT_ONCE: usize = 8192;
/// Of the free space, the part that is left free.
const SPARE: u64 = 20;

/// What is known of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Not this module's business, or not comparable.
    Left,
    /// Maybe one that both sides have; a nonce file tells.
    Perhaps,
    /// The very file.
    Shared,
    /// To be compared: so many bytes from the beginning.
    Compare(u64),
    /// It has the same contents.
    Same,
    /// Compared while rounds run.
    Later(u64),
    /// It comes.
    Comes,
    /// It is in the way.
    Blocks(Box<Blocker>),
}

/// One judgement of the files of one offer.
#[derive(Debug)]
pub struct Judge {
    root: OwnedFd,
    wish: Wish,
    files: Vec<Wanted>,
    here: Vec<Option<FileStat>>,
    states: Vec<State>,
    /// Source device and ours, where they are one.
    devices: HashMap<u64, u64>,
    /// Nonce files have been asked for.
    asked: bool,
}

/// What has been found.
#[derive(Debug, Default)]
pub struct Judged {
    /// What the source is to do.
    pub order: Order,
    /// Everything in the way.
    pub blockers: Vec<Blocker>,
    /// Paths that need no further look.
    pub paths: HashSet<Bytes>,
    /// Sizes and times at the source of what has the same contents here; `None` = the very file.
    same: BTreeMap<Bytes, Option<(u64, i64, bool)>>,
    comes: HashSet<Bytes>,
    wish: Wish,
    files: Vec<Wanted>,
}

impl Judge {
    /// Looks at what is here. `same_kernel`: device and inode numbers mean the same on both sides.
    ///
    /// # Errors
    /// Our own root directory cannot be opened.
    pub fn begin(files: Vec<Wanted>, wish: Wish, same_kernel: bool) -> Result<Self> {
        let root = File::open("/").map_err(failed("open", b"/"))?.into();
        let mut judge = Self {
            root,
            here: Vec::with_capacity(files.len()),
            states: Vec::with_capacity(files.len()),
            wish,
            files: Vec::new(),
            devices: HashMap::new(),
            asked: false,
        };
        for wanted in &files {
            let here =
                openat2::open_in_root(&judge.root, &wanted.file.path.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32, 0)
                    .and_then(fstat);
            let state = judge.first_look(wanted, here.as_ref().map_err(|e| *e), same_kernel);
            judge.here.push(here.ok());
            judge.states.push(state);
        }
        judge.files = files;
        Ok(judge)
    }

    fn first_look(&self, wanted: &Wanted, here: std::result::Result<&FileStat, Errno>, same_kernel: bool) -> State {
        let (wish, file) = (&self.wish, &wanted.file);
        let is_file = file.mode & libc::S_IFMT == libc::S_IFREG;
        if wish.mode == Files::Skip && wish.tree_of(&file.path.0).is_none() {
            return State::Left;
        }
        let same_number = here.is_ok_and(|here| here.st_ino == file.inode);
        if same_number && same_kernel && here.is_ok_and(|here| here.st_dev == file.device) {
            return State::Shared;
        }
        let in_tree = wish.tree_of(&file.path.0).is_some();
        if !is_file && !in_tree {
            return State::Left;
        }
        match here {
            Ok(_) if !wanted.is_comparable() && !in_tree => State::Left,
            // Even on one kernel it may be another mount of the same.
            Ok(_) if same_number => State::Perhaps,
            _ if in_tree => State::Comes,
            Ok(here) => self.compare(wanted, here),
            Err(Errno::ENOENT | Errno::ENOTDIR) if wish.copies(wanted.usage) => State::Comes,
            Err(Errno::ENOENT | Errno::ENOTDIR) => blocks_by(missing(file)),
            Err(errno) => blocks_by(Blocker::new(codes::FILE_ACCESS, file.path.to_string()).because(errno.desc())),
        }
    }

    /// What has no common file system.
    fn compare(&self, wanted: &Wanted, here: &FileStat) -> State {
        let file = &wanted.file;
        if self.wish.tree_of(&file.path.0).is_some() {
            return State::Comes;
        }
        if here.st_mode & libc::S_IFMT != libc::S_IFREG {
            return blocks_by(differs(wanted, "it is no regular file here".into()));
        }
        if wanted.usage == Use::Write && self.wish.copies(Use::Write) {
            return State::Comes;
        }
        let size = here.st_size as u64;
        if size != file.size && !(wanted.appends && wanted.usage == Use::Write) {
            return self.different(wanted, format!("it is {size} bytes long here, {} at the source", file.size));
        }
        let len = size.min(file.size);
        let soon = wanted.mapped || len <= SMALL || self.wish.mode == Files::Copy;
        if soon { State::Compare(len) } else { State::Later(len) }
    }

    fn different(&self, wanted: &Wanted, reason: String) -> State {
        // Code that others here run as well is not replaced under them.
        if self.wish.copies(wanted.usage) && wanted.usage != Use::Code {
            State::Comes
        } else {
            blocks_by(differs(wanted, reason))
        }
    }

    /// What has to be asked next, if anything.
    pub fn question(&mut self) -> Option<Question> {
        let nonces = if std::mem::replace(&mut self.asked, true) { Vec::new() } else { self.nonces() };
        if !nonces.is_empty() {
            return Some(Question { nonces, digests: Vec::new() });
        }
        // Those that nobody could tell to be the same file.
        for n in 0..self.states.len() {
            if let (State::Perhaps, Some(here)) = (&self.states[n], self.here[n]) {
                self.states[n] = self.compare(&self.files[n], &here);
            }
        }
        let open = self.states.iter().enumerate().filter_map(|(n, state)| match state {
            State::Compare(len) => Some((n as u32, *len)),
            _ => None,
        });
        let digests: Vec<_> = open.take(AT_ONCE).collect();
        (!digests.is_empty()).then_some(Question { digests, nonces: Vec::new() })
    }

    /// A file for each device that may be common, preferably one that the target writes beside.
    fn nonces(&self) -> Vec<u32> {
        let mut best: BTreeMap<u64, usize> = BTreeMap::new();
        for (n, _) in self.states.iter().enumerate().filter(|(_, state)| **state == State::Perhaps) {
            let device = self.files[n].file.device;
            let known = best.entry(device).or_insert(n);
            if self.files[n].usage > self.files[*known].usage {
                *known = n;
            }
        }
        best.into_values().map(|n| n as u32).collect()
    }

    /// What the source has said.
    ///
    /// # Errors
    /// A file here cannot be read.
    pub fn answered(&mut self, question: &Question, answer: &Answer) -> Result<()> {
        for (file, nonce) in question.nonces.iter().zip(&answer.nonces) {
            let Some((path, content)) = nonce else { continue };
            if let Some(ours) = nonce::device(&self.root, path, content)? {
                self.devices.insert(self.files[*file as usize].file.device, ours);
            }
        }
        for n in 0..self.states.len() {
            let ours = self.devices.get(&self.files[n].file.device);
            if self.states[n] == State::Perhaps
                && ours.is_some()
                && ours.copied() == self.here[n].map(|here| here.st_dev)
            {
                self.states[n] = State::Shared;
            }
        }
        let mut theirs = answer.digests.iter();
        for (n, len) in &question.digests {
            let theirs = theirs.next().cloned().flatten();
            let n = *n as usize;
            let path = &self.files[n].file.path;
            let ours = digest_here(&self.root, path, *len)?;
            self.states[n] = if ours.is_some() && ours == theirs {
                State::Same
            } else {
                self.different(&self.files[n], "it has other contents here".into())
            };
        }
        Ok(())
    }

    /// Nothing more is to be asked.
    ///
    /// # Errors
    /// A file system cannot be asked for its space.
    pub fn judged(self) -> Result<Judged> {
        let mut wish = self.wish.clone();
        // A tree that both sides have is none that comes.
        wish.with.retain(|tree| {
            let of = self.files.iter().rposition(|wanted| wanted.file.path == tree.path);
            of.is_some_and(|n| self.states[n] == State::Comes)
        });
        let mut coming_bytes = if wish.with.is_empty() { 0 } else { wish.with_bytes };
        let mut judged = Judged { wish, ..Judged::default() };
        for (n, (wanted, state)) in self.files.iter().zip(&self.states).enumerate() {
            let path = wanted.file.path.clone();
            let place = n as u32;
            match state {
                State::Left | State::Perhaps | State::Compare(_) => continue,
                State::Shared => {
                    if wanted.usage == Use::Write && !judged.order.shared.contains(&wanted.file.device) {
                        judged.order.shared.push(wanted.file.device);
                    }
                    judged.same.insert(path.clone(), None);
                }
                State::Same | State::Later(_) => {
                    let appends = wanted.appends && wanted.usage == Use::Write;
                    judged.same.insert(path.clone(), Some((wanted.file.size, wanted.file.mtime_ns, appends)));
                    if let State::Later(len) = state {
                        judged.order.later.push((place, *len));
                    }
                }
                State::Comes => {
                    let of_tree = judged.wish.tree_of(&path.0);
                    // A tree stands behind all files.
                    let is_tree = n + self.wish.with.len() >= self.files.len();
                    if of_tree.is_none() || is_tree {
                        judged.order.send.push(place);
                        coming_bytes += if is_tree { 0 } else { wanted.file.size };
                    }
                    judged.comes.insert(path.clone());
                }
                State::Blocks(blocker) => judged.blockers.push((**blocker).clone()),
            }
            judged.paths.insert(path);
        }
        let places: Vec<Bytes> = judged.order.send.iter().map(|n| self.files[*n as usize].file.path.clone()).collect();
        for wanted in self.files.iter().filter(|wanted| wanted.usage == Use::Place) {
            // Made on the way to what comes.
            let above = |path: &Bytes| is_below(&path.0, &wanted.file.path.0);
            if places.iter().any(above) {
                judged.paths.insert(wanted.file.path.clone());
            }
        }
        judged.blockers.extend(unfit(&self.root, &places, &judged.wish));
        judged.blockers.extend(no_space(&self.root, &places, coming_bytes)?);
        judged.files = self.files;
        Ok(judged)
    }
}

impl Judged {
    /// What is copied, and what else may be: everything, below the trees alone, or nothing.
    pub fn may_come(&self, path: &[u8]) -> bool {
        self.wish.tree_of(path).is_some() || matches!(self.wish.mode, Files::Auto | Files::Copy)
    }

    /// What the source's user wants.
    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// Puts in what the files are here, so that they are opened as they are; not of those that have changed at the source
    /// since they were compared. `came`: whether a path was sent.
    pub fn adapt(&self, model: &mut Model, came: &dyn Fn(&[u8]) -> bool) {
        let Ok(root) = File::open("/").map(OwnedFd::from) else { return };
        for file in paths_mut(model) {
            let trusted = match self.same.get(&file.path) {
                Some(None) => true,
                Some(Some((size, mtime_ns, appends))) => {
                    (file.size, file.mtime_ns) == (*size, *mtime_ns) || *appends && file.size >= *size
                }
                None => came(&file.path.0),
            };
            if trusted {
                put_in(&root, file);
            }
        }
    }

    /// The digest of a file that was left for later.
    ///
    /// # Errors
    /// It differs, as a blocker; or it cannot be read here.
    pub fn later(&self, file: u32, len: u64, digest: Option<&str>) -> Result<Option<Blocker>> {
        let Some(wanted) = self.files.get(file as usize).filter(|_| self.order.later.contains(&(file, len))) else {
            return Err(super::op::nonsense(b"a digest", "nobody has asked for it"));
        };
        let root = File::open("/").map_err(failed("open", b"/"))?.into();
        let ours = digest_here(&root, &wanted.file.path, len)?;
        let same = ours.is_some() && ours.as_deref() == digest;
        Ok((!same).then(|| differs(wanted, "it has other contents here".into())))
    }
}

fn put_in(root: &OwnedFd, file: &mut PathRef) {
    let comparable = file.mode & libc::S_IFMT == libc::S_IFREG && (file.size, file.mtime_ns) != (0, 0);
    let seen = openat2::open_in_root(root, &file.path.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32, 0).and_then(fstat);
    if let (true, Ok(here)) = (comparable, seen) {
        file.size = here.st_size as u64;
        file.mtime_ns = here.st_mtime.saturating_mul(1_000_000_000).saturating_add(here.st_mtime_nsec);
    }
}

fn digest_here(root: &OwnedFd, path: &Bytes, len: u64) -> Result<Option<String>> {
    let flags = (libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK) as u32;
    let fd = openat2::open_in_root(root, &path.0, flags, 0).map_err(failed("open", &path.0))?;
    blocks::whole(&File::from(fd), path, len)
}

fn blocks_by(blocker: Blocker) -> State {
    State::Blocks(Box::new(blocker))
}

fn missing(file: &PathRef) -> Blocker {
    Blocker::new(codes::FILE_MISSING, file.path.to_string()).because("it does not exist here")
}

fn differs(wanted: &Wanted, reason: String) -> Blocker {
    let code = if wanted.usage == Use::Code { codes::CODE_DIFFERS } else { codes::FILE_CHANGED };
    Blocker::new(code, wanted.file.path.to_string()).because(reason)
}

/// Places that files cannot come to.
fn unfit(root: &OwnedFd, places: &[Bytes], wish: &Wish) -> Vec<Blocker> {
    let unfit = |path: &Bytes| {
        let reason = match nearest(root, &path.0) {
            Err(Errno::ELOOP) => "a symbolic link is on the way there",
            Err(Errno::ENOTDIR) => "a file is on the way there",
            Err(errno) => errno.desc(),
            Ok(_) if wish.with.iter().any(|tree| tree.path == *path) && is_mount_point(root, path) => {
                "it is a mount point here"
            }
            Ok(_) => return None,
        };
        Some(Blocker::new(codes::FILE_PLACE, path.to_string()).because(reason))
    };
    places.iter().filter_map(unfit).collect()
}

/// The nearest directory above a path that exists.
fn nearest(root: &OwnedFd, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let mut dir = path;
    loop {
        dir = &dir[..dir.iter().rposition(|byte| *byte == b'/').unwrap_or_default()];
        let at = if dir.is_empty() { &b"/"[..] } else { dir };
        match openat2::open_plain(root, at, (libc::O_PATH | libc::O_DIRECTORY) as u32, 0) {
            Err(Errno::ENOENT) if !dir.is_empty() => {}
            opened => return opened,
        }
    }
}

fn is_mount_point(root: &OwnedFd, path: &Bytes) -> bool {
    let of = |path: &[u8]| openat2::open_plain(root, path, libc::O_PATH as u32, 0).and_then(fstat);
    let (own, above) = (of(&path.0), nearest(root, &path.0).and_then(fstat));
    matches!((own, above), (Ok(own), Ok(above)) if own.st_dev != above.st_dev)
}

/// The file systems of the places must hold all of it; where there are several, each.
fn no_space(root: &OwnedFd, places: &[Bytes], bytes: u64) -> Result<Vec<Blocker>> {
    let mut seen = HashSet::new();
    let mut blockers = Vec::new();
    for path in places {
        let Ok(dir) = nearest(root, &path.0) else { continue };
        let device = fstat(&dir).map_err(failed("stat", &path.0))?.st_dev;
        if !seen.insert(device) {
            continue;
        }
        let fs = nix::sys::statvfs::fstatvfs(&dir).map_err(failed("ask for the space of", &path.0))?;
        let free = fs.blocks_available().saturating_mul(fs.fragment_size());
        if bytes > free - free / SPARE {
            let reason = format!("{bytes} bytes are to come, {free} are free");
            blockers.push(Blocker::new(codes::FILE_SPACE, path.to_string()).because(reason));
        }
    }
    Ok(blockers)
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
