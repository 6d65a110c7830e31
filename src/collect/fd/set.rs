//! The open file descriptions of a tree: which descriptors share one, and how to get at each.
//!
//! kcmp(2) tells whether two descriptors refer to the same description. It is only asked among descriptors that agree in
//! all that `/proc` shows, and its order makes each such group a sorted list: n descriptors cost n log n comparisons.

use super::classify::{Class, Look, classify};
use super::look::{self, Holder, Known, Seen};
use crate::collect::{Cx, Error, Result};
use crate::image::fd::{FdEntry, FdTable};
use crate::image::{Bytes, FdTableId, FileId, Pid};
use crate::proc::ProcDir;
use crate::proc::fdinfo::FdInfo;
use crate::sys::fd::{Kcmp, kcmp, pidfd_getfd, pidfd_open};
use crate::sys::{Errno, fcntl, pidfd};
use nix::sys::stat::FileStat;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `O_CLOEXEC` is shown in the flags of a description but belongs to the descriptor.
pub const CLOEXEC: u32 = libc::O_CLOEXEC as u32;

/// One open file description, with a descriptor through which it is reached.
#[derive(Debug)]
pub struct Description {
    /// Task (process or thread) that has the descriptor; ourselves for one that was in flight.
    pub holder: Pid,
    /// The process to name in messages.
    pub pid: Pid,
    /// Its position in the frozen tree; that of a process that could receive it for one in flight.
    pub at: usize,
    /// The descriptor's number in the holder's table.
    pub fd: u32,
    /// The holder's table; `None` for one in flight.
    pub table: Option<FdTableId>,
    /// Text of the link in `/proc/PID/fd`.
    pub link: Bytes,
    /// What it refers to.
    pub stat: FileStat,
    /// `fdinfo`.
    pub info: FdInfo,
    /// What it is.
    pub class: Class,
    /// The link as a path leads to it, seen from this program.
    pub named: bool,
    /// Who gets its signals, and which one.
    pub owner: (fcntl::Owner, i32),
    /// See [`Seen::eventfd_id`].
    eventfd_id: u64,
    /// Our own duplicate of one in flight.
    kept: Option<OwnedFd>,
}

impl Description {
    /// Device and inode of the object.
    pub fn inode(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// The flags without `O_CLOEXEC`.
    pub fn flags(&self) -> u32 {
        self.info.flags & !CLOEXEC
    }

    /// It can be read from.
    pub fn reads(&self) -> bool {
        self.info.flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32
    }

    /// It can be written to.
    pub fn writes(&self) -> bool {
        self.info.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
    }

    /// How messages name it: `pid 12 fd 7 (anon_inode:[io_uring])`.
    pub fn object(&self) -> String {
        if self.kept.is_some() {
            format!("pid {}, in flight ({})", self.pid, self.link)
        } else {
            format!("pid {} fd {} ({})", self.pid, self.fd, self.link)
        }
    }

    /// A failed system call about it.
    pub fn failed(&self, operation: &'static str) -> impl FnOnce(Errno) -> Error + use<> {
        let object = self.object();
        move |errno| Error::System { operation, object, errno }
    }
}

/// What descriptors of one description agree in, whatever a process outside does with it meanwhile: device, inode, and
/// the number of an eventfd.
type Key = (u64, u64, u64);

/// A POSIX, flock or OFD lock as shown for a descriptor of a table.
#[derive(Debug, Clone, Copy)]
pub struct SeenLock {
    /// The process that has the table, by position.
    pub at: usize,
    /// The description.
    pub file: FileId,
    /// The line.
    pub lock: crate::proc::locks::Lock,
}

/// All descriptions, in order of discovery: the position is the [`FileId`].
#[derive(Debug, Default)]
pub struct Descriptions {
    list: Vec<Description>,
    by_key: HashMap<Key, Vec<FileId>>,
    /// Everything sorted by the kernel's order, made when first needed.
    sorted: Vec<FileId>,
    pidfds: HashMap<Pid, OwnedFd>,
    magics: HashMap<u64, i64>,
    /// Locks seen on the way, also of descriptors whose description was known.
    pub locks: Vec<SeenLock>,
}

impl std::ops::Index<FileId> for Descriptions {
    type Output = Description;
    fn index(&self, id: FileId) -> &Description {
        &self.list[id.at()]
    }
}

impl Descriptions {
    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (FileId, &Description)> {
        self.list.iter().enumerate().map(|(n, d)| (FileId::from(n), d))
    }

    /// Reads all descriptor tables.
    pub fn scan(&mut self, cx: &mut Cx<'_>, known: &Known) -> Result<Vec<FdTable>> {
        let owners: Vec<(FdTableId, (usize, usize))> = cx.tables().collect();
        let processes = &cx.frozen.processes;
        let thread_dir = |&(_, (at, thread)): &(FdTableId, (usize, usize))| {
            let (process, tid) = (&processes[at], processes[at].threads[thread].pid());
            if tid == process.pid { Ok(None) } else { process.dir.thread(tid).map(Some) }
        };
        let dirs = owners.iter().map(thread_dir).collect::<std::result::Result<Vec<_>, _>>()?;
        let own_dirs = owners.iter().map(|(_, (at, _))| &processes[*at].dir);
        let holders = dirs.iter().zip(own_dirs).map(|(thread, own)| Holder::open(thread.as_ref().unwrap_or(own)));
        let holders = holders.collect::<Result<Vec<_>>>()?;
        let mut seen = look::all(&holders, known)?.into_iter();
        let mut tables = Vec::with_capacity(owners.len());
        for ((table, (at, _)), holder) in owners.into_iter().zip(holders) {
            let mut entries = Vec::with_capacity(holder.fds.len());
            for (fd, seen) in holder.fds.iter().zip(&mut seen) {
                let cloexec = seen.info.flags & CLOEXEC != 0;
                let locks = seen.info.locks.clone();
                let known = self.describe(holder.dir, *fd, seen);
                let file = self.identify(Description { pid: processes[at].pid, at, table: Some(table), ..known })?;
                self.locks.extend(locks.into_iter().map(|lock| SeenLock { at, file, lock }));
                entries.push(FdEntry { fd: *fd, file, cloexec });
            }
            self.pidfds.insert(holder.dir.pid(), holder.into_pidfd());
            tables.push(FdTable { entries });
        }
        Ok(tables)
    }

    /// The description behind a descriptor of ours that was received from a queue of the target (descriptors in flight).
    /// `at` is a process that could receive it.
    pub fn file_in_flight(&mut self, cx: &mut Cx<'_>, at: usize, received: OwnedFd) -> Result<FileId> {
        let own = ProcDir::of_self()?;
        let fd = received.as_raw_fd() as u32;
        let seen = look::in_flight(&own, received.as_fd(), fd, &mut cx.buf)?;
        let pid = cx.frozen.processes[at].pid;
        let locks = seen.info.locks.clone();
        let before = self.list.len();
        let known = self.describe(&own, fd, seen);
        let file = self.identify(Description { pid, at, kept: Some(received), ..known })?;
        if file.at() == before {
            self.locks.extend(locks.into_iter().map(|lock| SeenLock { at, file, lock }));
        }
        Ok(file)
    }

    fn describe(&mut self, dir: &ProcDir, fd: u32, seen: Seen) -> Description {
        let Seen { link, stat, info, eventfd_id, named, owner } = seen;
        let fs_magic = *self.magics.entry(stat.st_dev).or_insert_with(|| fs_magic(dir, &format!("fd/{fd}")));
        let o_path = info.flags & libc::O_PATH as u32 != 0;
        let class = classify(Look { link: &link.0, mode: stat.st_mode, rdev: stat.st_rdev, fs_magic, o_path });
        let (holder, pid) = (dir.pid(), dir.pid());
        Description {
            holder,
            pid,
            at: 0,
            fd,
            table: None,
            link,
            stat,
            info,
            class,
            named,
            owner,
            eventfd_id,
            kept: None,
        }
    }

    /// The type of the file system with this device number, if one of its files was seen.
    pub fn magic_of(&self, device: u64) -> i64 {
        self.magics.get(&device).copied().unwrap_or(0)
    }

    fn identify(&mut self, description: Description) -> Result<FileId> {
        let (dev, ino) = description.inode();
        let key = (dev, ino, description.eventfd_id);
        let new = FileId::from(self.list.len());
        let known = self.by_key.entry(key).or_default();
        let list = &self.list;
        let mut failure = None;
        let place = known.binary_search_by(|id| {
            let other = &list[id.at()];
            let order = kcmp(other.holder, description.holder, Kcmp::File, other.fd.into(), description.fd.into());
            order.unwrap_or_else(|errno| {
                failure = Some(errno);
                std::cmp::Ordering::Equal
            })
        });
        if let Some(errno) = failure {
            return Err(description.failed("kcmp")(errno));
        }
        match place {
            Ok(at) => Ok(known[at]),
            Err(at) => {
                known.insert(at, new);
                self.list.push(description);
                Ok(new)
            }
        }
    }

    /// A duplicate of a description (the same one, not a new one).
    pub fn duplicate(&mut self, id: FileId) -> Result<OwnedFd> {
        let Description { holder, fd, ref kept, .. } = self.list[id.at()];
        let failed = |operation| self.list[id.at()].failed(operation);
        if let Some(kept) = kept {
            return kept.try_clone().map_err(|e| failed("dup")(Errno::from_raw(e.raw_os_error().unwrap_or(0))));
        }
        if let Some(pidfd) = self.pidfds.get(&holder) {
            return pidfd_getfd(pidfd.as_fd(), fd).map_err(failed("pidfd_getfd"));
        }
        // A thread's id is refused without PIDFD_THREAD, and with it a kernel before 6.9 refuses everybody's.
        let pidfd = pidfd_open(holder).or_else(|_| pidfd::open_thread(holder)).map_err(failed("pidfd_open"))?;
        let duplicate = pidfd_getfd(pidfd.as_fd(), fd).map_err(failed("pidfd_getfd"))?;
        self.pidfds.insert(holder, pidfd);
        Ok(duplicate)
    }

    /// The description that `compare` finds: it says how a description compares with the one that is looked for, in the
    /// kernel's order.
    pub fn find(
        &mut self,
        mut compare: impl FnMut(&Description) -> std::result::Result<std::cmp::Ordering, Errno>,
    ) -> std::result::Result<Option<FileId>, Errno> {
        if self.sorted.len() != self.list.len() {
            self.sort()?;
        }
        let mut failure = None;
        let place = self.sorted.binary_search_by(|id| {
            compare(&self.list[id.at()]).unwrap_or_else(|errno| {
                failure = Some(errno);
                std::cmp::Ordering::Equal
            })
        });
        failure.map_or(Ok(place.ok().map(|at| self.sorted[at])), Err)
    }

    fn sort(&mut self) -> std::result::Result<(), Errno> {
        let list = &self.list;
        self.sorted = merge_sort((0..list.len()).map(FileId::from).collect(), |a, b| {
            let (a, b) = (&list[a.at()], &list[b.at()]);
            kcmp(a.holder, b.holder, Kcmp::File, a.fd.into(), b.fd.into())
        })?;
        Ok(())
    }
}

/// Sorts by comparisons that can fail: the library's sort takes none, and panics where a stand-in for the answer makes the
/// order inconsistent. n log n comparisons.
fn merge_sort<T: Copy, E>(
    mut from: Vec<T>,
    mut compare: impl FnMut(T, T) -> std::result::Result<std::cmp::Ordering, E>,
) -> std::result::Result<Vec<T>, E> {
    let (len, mut run) = (from.len(), 1);
    let mut to = Vec::with_capacity(len);
    while run < len {
        for start in (0..len).step_by(2 * run) {
            let (middle, end) = ((start + run).min(len), (start + 2 * run).min(len));
            let (mut left, mut right) = (start, middle);
            while left < middle && right < end {
                let next = if compare(from[right], from[left])?.is_lt() { &mut right } else { &mut left };
                to.push(from[*next]);
                *next += 1;
            }
            to.extend_from_slice(&from[left..middle]);
            to.extend_from_slice(&from[right..end]);
        }
        std::mem::swap(&mut from, &mut to);
        to.clear();
        run *= 2;
    }
    Ok(from)
}

/// Type of the file system of what a link of `/proc` refers to; 0 where it cannot be asked.
pub fn fs_magic(dir: &ProcDir, name: &str) -> i64 {
    nix::sys::statfs::statfs(dir.file(name).as_str()).map_or(0, |s| s.filesystem_type().0)
}

#[cfg(test)]
mod sort_tests {
    use super::merge_sort;
    use std::cmp::Ordering;

    #[test]
    fn sorts_like_the_library() {
        for len in [0usize, 1, 2, 3, 7, 8, 100, 1000] {
            let mut numbers: Vec<u64> = (0..len as u64).map(|n| n * 7919 % 503).collect();
            let mut asked = 0;
            let sorted = merge_sort(numbers.clone(), |a, b| {
                asked += 1;
                Ok::<_, ()>(a.cmp(&b))
            });
            numbers.sort();
            assert_eq!(sorted, Ok(numbers));
            assert!(asked <= len * (len.max(2).ilog2() as usize + 1));
        }
    }

    #[test]
    fn a_failure_ends_it_and_nonsense_is_no_panic() {
        assert_eq!(
            merge_sort(vec![1, 2, 3], |_, b| if b == 3 { Err("gone") } else { Ok(Ordering::Less) }),
            Ok(vec![3, 2, 1])
        );
        assert_eq!(
            merge_sort(vec![1, 2, 3], |a, _| if a == 3 { Err("gone") } else { Ok(Ordering::Less) }),
            Err("gone")
        );
        let mut turn = 0;
        let answer = |_: i32, _: i32| {
            turn += 1;
            Ok::<_, ()>([Ordering::Less, Ordering::Greater, Ordering::Greater][turn % 3])
        };
        assert_eq!(merge_sort((0..500).collect(), answer).map(|all| all.len()), Ok(500));
    }
}
