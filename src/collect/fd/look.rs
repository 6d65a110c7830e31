//! What is to be seen of descriptors through `/proc`, and through duplicates that are closed at once.
//!
//! It takes no tracer: of many it is looked for by threads of ours beside the one that traces, on processors that the stopped tree
//! leaves idle. What cannot change about a file that is open was seen before the tree stopped ([`ahead`]), as far as its inode
//! still is the same; where it lies is looked up again.

use crate::collect::{Error, Result};
use crate::image::{Bytes, Pid};
use crate::memory::pipeline::default_workers;
use crate::proc::ProcDir;
use crate::proc::fdinfo::FdInfo;
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use crate::sys::{Errno, fcntl, pidfd};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FileStat, fstatat};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewer descriptors than this are looked at by the calling thread: to make another one costs as much.
const FEW: usize = 64;

/// So many are taken at once.
const HANDFUL: usize = 16;

/// A descriptor as it was seen.
#[derive(Debug)]
pub struct Seen {
    /// Text of the link in `/proc/PID/fd`.
    pub link: Bytes,
    /// What it refers to.
    pub stat: FileStat,
    /// `fdinfo`.
    pub info: FdInfo,
    /// The number that tells eventfds apart (Linux 5.2); 0 for everything else.
    pub eventfd_id: u64,
    /// The link as a path leads to it, seen from this program.
    pub named: bool,
    /// Who gets its signals, and which one.
    pub owner: (fcntl::Owner, i32),
}

/// A descriptor as it was seen before the tree stopped.
#[derive(Debug)]
struct Glance {
    link: Bytes,
    stat: FileStat,
    mnt_id: u32,
    ino: u64,
}

/// Descriptors that were seen before the tree stopped, by whose they are and their numbers.
#[derive(Debug, Default)]
pub struct Known(HashMap<(Pid, u32), Glance>);

/// A task that has a descriptor table, and that table's numbers.
#[derive(Debug)]
pub struct Holder<'a> {
    /// Its directory.
    pub dir: &'a ProcDir,
    /// Its numbers.
    pub fds: Vec<u32>,
    pidfd: OwnedFd,
}

impl<'a> Holder<'a> {
    /// Lists the table.
    ///
    /// # Errors
    /// The task is gone, or nobody may look at it.
    pub fn open(dir: &'a ProcDir) -> Result<Self> {
        let pid = dir.pid();
        let failed = |errno| Error::System { operation: "pidfd_open", object: format!("task {pid}"), errno };
        // A thread's id is refused without PIDFD_THREAD, and with it a kernel before 6.9 refuses everybody's.
        let pidfd = pidfd_open(pid).or_else(|_| pidfd::open_thread(pid)).map_err(failed)?;
        Ok(Self { dir, fds: dir.fds()?, pidfd })
    }

    /// The process, as a descriptor.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// Looks at one of its descriptors.
    fn look(&self, fd: u32, known: &Known, buf: &mut Vec<u8>) -> Result<Seen> {
        let info = self.dir.fdinfo(fd, buf)?;
        let eventfd_id = eventfd_id(buf);
        let (link, stat, named) = match known.get(self.dir.pid(), fd, &info) {
            Some((link, stat, named)) => (link.clone(), stat, named),
            None => anew(self.dir, fd)?,
        };
        let object = || format!("pid {} fd {fd} ({link})", self.dir.pid());
        let owner = match info.flags & libc::O_PATH as u32 {
            0 => {
                let failed = |errno| Error::System { operation: "pidfd_getfd", object: object(), errno };
                owner(pidfd_getfd(self.pidfd.as_fd(), fd).map_err(failed)?.as_fd(), object)?
            }
            _ => Default::default(),
        };
        Ok(Seen { link, stat, info, eventfd_id, named, owner })
    }
}

impl Known {
    /// What is known of a descriptor, if the file behind it is the same: its link, and where that leads now.
    fn get(&self, pid: Pid, fd: u32, info: &FdInfo) -> Option<(&Bytes, FileStat, bool)> {
        let glance = self.0.get(&(pid, fd))?;
        if info.ino != Some(glance.ino) || info.mnt_id != glance.mnt_id {
            return None;
        }
        // Kinds of pipes and sockets that have no path are named after their inodes.
        if glance.link.0.starts_with(b"pipe:[") || glance.link.0.starts_with(b"socket:[") {
            return Some((&glance.link, glance.stat, false));
        }
        // A file may have been renamed, and another have its name: then it is looked at anew.
        let there = there(&glance.link)?;
        is_same(&there, &glance.stat).then_some((&glance.link, there, true))
    }
}

/// Looks at the descriptors of processes that run, if there are many: what cannot change about them while they are open need not be
/// looked at when the tree is stopped. Those that come and go are passed over.
pub fn ahead(pids: impl Iterator<Item = Pid>) -> Known {
    let dirs: Vec<ProcDir> = pids.filter_map(|pid| ProcDir::open(pid).ok()).collect();
    let holders: Vec<Holder<'_>> = dirs.iter().filter_map(|dir| Holder::open(dir).ok()).collect();
    let none = Known::default();
    let jobs = holders.iter().map(|holder| holder.fds.len()).sum();
    if jobs < FEW {
        return none;
    }
    let mut known = HashMap::with_capacity(jobs);
    for (holder, fd, glance) in beside(&holders, |holder, fd, buf| glance(holder.dir, fd, buf)) {
        known.extend(glance.map(|glance| ((holder.dir.pid(), fd), glance)));
    }
    Known(known)
}

/// `None`: it is gone, or the kernel does not tell its inode.
fn glance(dir: &ProcDir, fd: u32, buf: &mut Vec<u8>) -> Option<Glance> {
    let name = format!("fd/{fd}");
    let (link, stat) = (dir.readlink(&name).ok()?, dir.stat_of(&name).ok()?);
    // Last, so that it is no earlier file's: what it says is compared with the stopped tree's.
    let FdInfo { ino: Some(ino), mnt_id, .. } = dir.fdinfo(fd, buf).ok()? else { return None };
    Some(Glance { link, stat, mnt_id, ino })
}

/// Looks at all descriptors of these tasks of a stopped tree, in their order.
///
/// # Errors
/// That of the first that could not be looked at.
pub fn all(holders: &[Holder<'_>], known: &Known) -> Result<Vec<Seen>> {
    let seen = beside(holders, |holder, fd, buf| holder.look(fd, known, buf));
    seen.into_iter().map(|(_, _, seen)| seen).collect()
}

/// A descriptor of this program, which it has from a queue of the target.
///
/// # Errors
/// It cannot be looked at.
pub fn in_flight(own: &ProcDir, fd: BorrowedFd<'_>, number: u32, buf: &mut Vec<u8>) -> Result<Seen> {
    let info = own.fdinfo(number, buf)?;
    let eventfd_id = eventfd_id(buf);
    let (link, stat, named) = anew(own, number)?;
    let owner = match info.flags & libc::O_PATH as u32 {
        0 => owner(fd, || format!("a descriptor in flight ({link})"))?,
        _ => Default::default(),
    };
    Ok(Seen { link, stat, info, eventfd_id, named, owner })
}

/// The link of a descriptor that nothing is known of, what it refers to, and whether that link leads there as a path.
fn anew(dir: &ProcDir, fd: u32) -> Result<(Bytes, FileStat, bool)> {
    let name = format!("fd/{fd}");
    let (link, stat) = (dir.readlink(&name)?, dir.stat_of(&name)?);
    let named = there(&link).is_some_and(|there| is_same(&there, &stat));
    Ok((link, stat, named))
}

fn owner(fd: BorrowedFd<'_>, object: impl Fn() -> String) -> Result<(fcntl::Owner, i32)> {
    let failed = |operation| {
        let object = &object;
        move |errno: Errno| Error::System { operation, object: object(), errno }
    };
    let owner = fcntl::owner(fd).map_err(failed("fcntl F_GETOWN_EX"))?;
    Ok((owner, fcntl::signal(fd).map_err(failed("fcntl F_GETSIG"))?))
}

/// What a link leads to as a path, seen from here.
fn there(link: &Bytes) -> Option<FileStat> {
    let is_path = link.0.starts_with(b"/");
    is_path.then(|| fstatat(AT_FDCWD, OsStr::from_bytes(&link.0), AtFlags::AT_SYMLINK_NOFOLLOW).ok()).flatten()
}

fn is_same(a: &FileStat, b: &FileStat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn eventfd_id(fdinfo: &[u8]) -> u64 {
    let line = fdinfo.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"eventfd-id:"));
    let number = line.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.trim().parse().ok());
    number.unwrap_or(0)
}

/// Looks at every descriptor, by as many threads as pay; in their order.
fn beside<'h, 'a, T: Send>(
    holders: &'h [Holder<'a>],
    look: impl Fn(&Holder<'a>, u32, &mut Vec<u8>) -> T + Sync,
) -> Vec<(&'h Holder<'a>, u32, T)> {
    let jobs: Vec<(&Holder<'_>, u32)> =
        holders.iter().flat_map(|holder| holder.fds.iter().map(move |fd| (holder, *fd))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut buf, mut part) = (Vec::new(), Vec::new());
        loop {
            let from = next.fetch_add(HANDFUL, Ordering::Relaxed);
            let Some(handful) = jobs.get(from..jobs.len().min(from + HANDFUL)).filter(|jobs| !jobs.is_empty()) else {
                return part;
            };
            part.extend(handful.iter().enumerate().map(|(n, (holder, fd))| (from + n, look(holder, *fd, &mut buf))));
        }
    };
    let helpers = if jobs.len() < FEW { 0 } else { default_workers().saturating_sub(1).max(1) };
    let mut seen: Vec<(usize, T)> = std::thread::scope(|scope| {
        // Who is not to be had looks at nothing: the others do.
        let begin = |_| std::thread::Builder::new().name("look".to_owned()).spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (0..helpers).filter_map(begin).collect();
        let mut all = work();
        for helper in helpers {
            all.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    });
    seen.sort_unstable_by_key(|(n, _)| *n);
    seen.into_iter().zip(&jobs).map(|((_, seen), (holder, fd))| (*holder, *fd, seen)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn look(file: &File, known: &Known) -> Seen {
        let own = ProcDir::of_self().unwrap();
        Holder::open(&own).unwrap().look(file.as_raw_fd() as u32, known, &mut Vec::new()).unwrap()
    }

    fn known_of(file: &File) -> Known {
        let own = ProcDir::of_self().unwrap();
        let fd = file.as_raw_fd() as u32;
        let glance = glance(&own, fd, &mut Vec::new()).expect("Linux 5.14 or newer");
        Known(HashMap::from([((own.pid(), fd), glance)]))
    }

    /// What matters of it.
    fn told(seen: &Seen) -> (Bytes, u64, u64, i64, bool) {
        (seen.link.clone(), seen.stat.st_ino, seen.stat.st_size as u64, seen.info.pos, seen.named)
    }

    #[test]
    fn what_is_known_is_seen_as_what_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = File::create_new(&path).unwrap();
        let known = known_of(&file);
        let check = |named: bool| {
            let seen = look(&file, &known);
            assert_eq!(told(&seen), told(&look(&file, &Known::default())));
            assert_eq!(seen.named, named);
            seen
        };
        // Size and offset are those of now.
        std::io::Write::write_all(&mut &file, b"1234").unwrap();
        assert_eq!((check(true).stat.st_size, check(true).info.pos), (4, 4));
        std::fs::rename(&path, dir.path().join("b")).unwrap();
        assert!(check(true).link.0.ends_with(b"/b"));
        // Another file with its old name.
        std::fs::write(&path, "").unwrap();
        assert!(check(true).link.0.ends_with(b"/b"));
        std::fs::remove_file(dir.path().join("b")).unwrap();
        assert!(check(false).link.0.ends_with(b"/b (deleted)"));
    }

    #[test]
    fn another_file_under_a_known_number_is_looked_at_anew() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| File::create_new(dir.path().join(name)).unwrap());
        let known = known_of(&a);
        let other =
            Known(known.0.into_iter().map(|((pid, _), glance)| ((pid, b.as_raw_fd() as u32), glance)).collect());
        assert_eq!(told(&look(&b, &other)), told(&look(&b, &Known::default())));
    }

    #[test]
    fn few_and_many_come_in_their_order() {
        let own = ProcDir::of_self().unwrap();
        let [a, b] = [File::open("/dev/null").unwrap(), File::open("/proc/self/exe").unwrap()];
        for times in [1, FEW] {
            let mut holder = Holder::open(&own).unwrap();
            holder.fds = [a.as_raw_fd() as u32, b.as_raw_fd() as u32].repeat(times);
            let seen = all(&[holder], &Known::default()).unwrap();
            assert_eq!(seen.len(), 2 * times);
            for pair in seen.chunks(2) {
                assert!(pair[0].link.0 == b"/dev/null" && pair[0].named && pair[1].link.0 != b"/dev/null", "{pair:?}");
            }
        }
        let mut holder = Holder::open(&own).unwrap();
        holder.fds = vec![a.as_raw_fd() as u32, u32::MAX];
        assert!(all(&[holder], &Known::default()).is_err());
    }
}
