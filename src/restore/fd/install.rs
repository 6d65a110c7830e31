//! Handed over by the engine, received inside the target: descriptors under their numbers.
//!
//! Descriptors reach a task as messages over one socket (at most 253 a message, a few messages at a time, as its queue is
//! short). The kernel puts them into the lowest free numbers: with everything else closed those are 0, 1, 2, ..., and as
//! the wanted numbers ascend too, moving them from the highest down never overwrites one that has not been moved. Two
//! batches a table.

use super::epoll::{self, Membership};
use super::{Holders, Opened};
use crate::image::fd::{FdEntry, FileKind};
use crate::image::{FdTableId, FileId, Model, TaskId};
use crate::restore::material::Material;
use crate::restore::skeleton::Skeletons;
use crate::restore::{Error, Result};
use crate::sys::fd::{RIGHTS_MAX, send_fds};
use crate::sys::rlimit;
use crate::trace::Batch;
use crate::trace::batch::Out;
use crate::trace::remote::{Remote, Scratch};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// Messages in the socket's queue at a time: `net.unix.max_dgram_qlen` is 10 at least.
const MESSAGES: usize = 8;
/// Descriptors below this fit any limit of a skeleton.
const ALWAYS_ALLOWED: u32 = 1000;

/// A table as it is wanted, while it is put together.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    entries: &'a [FdEntry],
    /// Files that only epoll instances need, and instances that nobody has open: number they lie under until the end.
    extras: HashMap<FileId, u32>,
    /// Lowest number of each file.
    fds: HashMap<FileId, u32>,
    memberships: Vec<Membership>,
    /// Where the socket is while we work: above everything else.
    hub: u32,
}

impl<'a> Table<'a> {
    fn new(model: &'a Model, id: FdTableId, holders: &Holders) -> Self {
        let entries = &model.fd_tables[id.at()].entries[..];
        let mut fds = HashMap::with_capacity(entries.len());
        for entry in entries {
            fds.entry(entry.file).or_insert(entry.fd);
        }
        let is_epoll = |file: FileId| matches!(model.files[file.at()].kind, FileKind::Epoll(_));
        // An instance gets its members with the first table that has it, under the lowest number.
        let instances = entries
            .iter()
            .filter(|e| is_epoll(e.file) && holders.first.get(&e.file) == Some(&id) && fds[&e.file] == e.fd)
            .map(|e| (e.fd, e.file));
        let mut memberships = epoll::memberships(model, instances);
        let mut table = Self { entries, extras: HashMap::new(), fds, memberships: Vec::new(), hub: 0 };
        // Those that are in flight, in the queue of a socket, get theirs in whatever table is the first.
        let in_flight = |file: &FileId| is_epoll(*file) && !holders.first.contains_key(file);
        let first = holders.tables.iter().position(Option::is_some) == Some(id.at());
        let in_flight: Vec<FileId> =
            (0..model.files.len()).filter(|_| first).map(FileId::from).filter(in_flight).collect();
        let watched = |file: &FileId| match &model.files[file.at()].kind {
            FileKind::Epoll(instance) => instance.members.iter().map(|m| m.file).collect(),
            _ => Vec::new(),
        };
        let members = memberships.iter().map(|m| m.member.file);
        table
            .place_extras(members.chain(in_flight.iter().flat_map(watched)).chain(in_flight.iter().copied()).collect());
        memberships.extend(epoll::memberships(model, in_flight.iter().map(|file| (table.source(*file), *file))));
        table.memberships = memberships;
        let highest = entries.last().map_or(0, |e| e.fd + 1);
        let members = table.memberships.iter().map(|m| m.member.fd + 1).max().unwrap_or(0);
        table.hub = highest.max(members).max((entries.len() + table.extras.len()) as u32);
        table
    }

    /// Files that are wanted but not in the table any more lie in its lowest gaps.
    fn place_extras(&mut self, mut wanted: Vec<FileId>) {
        wanted.retain(|file| !self.fds.contains_key(file));
        wanted.sort();
        wanted.dedup();
        let mut next = 0;
        let mut taken = self.entries.iter().map(|e| e.fd).peekable();
        for file in wanted {
            while taken.next_if_eq(&next).is_some() {
                next += 1;
            }
            self.extras.insert(file, next);
            next += 1;
        }
    }

    fn entry(&self, fd: u32) -> Option<&FdEntry> {
        self.entries.binary_search_by_key(&fd, |e| e.fd).ok().map(|at| &self.entries[at])
    }

    /// The file a number stands for in the end.
    pub(crate) fn file_at(&self, fd: u32) -> Option<FileId> {
        self.entry(fd).map(|e| e.file)
    }

    /// A number that stands for the file now.
    pub(crate) fn source(&self, file: FileId) -> u32 {
        self.fds.get(&file).or_else(|| self.extras.get(&file)).copied().unwrap_or(u32::MAX)
    }

    /// The number is in use now.
    pub(crate) fn is_open(&self, fd: u32) -> bool {
        self.entry(fd).is_some() || self.extras.values().any(|extra| *extra == fd)
    }

    /// The number is closed by execve(2) in the end.
    pub(crate) fn is_cloexec(&self, fd: u32) -> bool {
        self.entry(fd).is_some_and(|e| e.cloexec)
    }
}

/// Gives every task its descriptors; everything else that its skeleton had open is closed.
///
/// # Errors
/// A number above the limit of this host, tables shared in a way that cannot be made again.
pub fn install_all(model: &Model, opened: &Opened, skeletons: &mut Skeletons, material: &Material) -> Result<()> {
    separate_threads(model, opened, skeletons)?;
    for n in 0..model.fd_tables.len() {
        let Some((task, thread)) = opened.holders.tables[n] else { continue };
        let table = Table::new(model, FdTableId::from(n), &opened.holders);
        let scratch = skeletons.scratch;
        let remote = &mut skeletons.task(task).threads[thread];
        install(&table, opened, remote, scratch, material)?;
    }
    Ok(())
}

/// Threads with tables of their own get a copy, before the leader's is emptied.
fn separate_threads(model: &Model, opened: &Opened, skeletons: &mut Skeletons) -> Result<()> {
    let scratch = skeletons.scratch;
    for (n, task) in model.tasks.iter().enumerate() {
        let id = TaskId::from(n);
        let Some(leader) = task.threads.first().map(|t| t.fd_table) else { continue };
        // What first threads share they have shared since they were made, see `restore::sharing`.
        let holder = opened.holders.tables[leader.at()];
        if holder.is_none_or(|(_, thread)| thread != 0) {
            return Err(shared_oddly(task.pid.0));
        }
        for (at, thread) in task.threads.iter().enumerate().filter(|(_, t)| t.fd_table != leader) {
            if opened.holders.tables[thread.fd_table.at()] != Some((id, at)) {
                return Err(shared_oddly(thread.tid.0));
            }
            let mut batch = Batch::new();
            batch.must(libc::SYS_unshare, &[libc::CLONE_FILES.into()]);
            skeletons.task(id).threads[at].run_all(&scratch, &batch)?;
        }
    }
    Ok(())
}

fn shared_oddly(task: i32) -> Error {
    Error::Impossible {
        object: format!("descriptor table of task {task}"),
        reason: "it is shared with a task that is not the first thread of its process".to_owned(),
    }
}

fn install(
    table: &Table<'_>,
    opened: &Opened,
    remote: &mut Remote,
    scratch: Scratch,
    material: &Material,
) -> Result<()> {
    allow(remote, table.hub)?;
    let mut first = Batch::new();
    let inside = material.hub_inside.as_raw_fd();
    if inside != table.hub as i32 {
        first.dup3(inside, table.hub, true);
    }
    close_between(&mut first, 0, table.hub);
    close_from(&mut first, table.hub + 1);
    let files: Vec<RawFd> = table.entries.iter().map(|e| opened.file(e.file).as_raw_fd()).collect();
    let landing: Vec<u32> = (0..files.len() as u32).collect();
    transfer(Some(first), &files, &landing, table.hub, remote, scratch, material)?;
    let mut extras: Vec<(u32, FileId)> = table.extras.iter().map(|(file, fd)| (*fd, *file)).collect();
    extras.sort();
    let mut batch = Batch::new();
    move_into_place(&mut batch, table.entries);
    if !extras.is_empty() {
        remote.run_all(&scratch, &batch)?;
        batch = Batch::new();
        let files: Vec<RawFd> = extras.iter().map(|(_, file)| opened.file(*file).as_raw_fd()).collect();
        let landing: Vec<u32> = extras.iter().map(|(fd, _)| *fd).collect();
        transfer(None, &files, &landing, table.hub, remote, scratch, material)?;
    }
    let added = epoll::add(&mut batch, table, &table.memberships);
    for (fd, _) in &extras {
        batch.close(*fd);
    }
    batch.close(table.hub);
    let results = remote.run_all(&scratch, &batch)?;
    let mut last = Batch::new();
    epoll::settle(&mut last, &results, &added);
    remote.run_all(&scratch, &last)?;
    Ok(())
}

/// Raises the soft limit of a skeleton for high numbers; its own limits come later.
fn allow(remote: &Remote, highest: u32) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit};
    if highest < ALWAYS_ALLOWED {
        return Ok(());
    }
    let failed = |errno| Error::System { operation: "prlimit", object: format!("task {}", remote.pid()), errno };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if u64::from(highest) >= hard {
        return Err(Error::Impossible {
            object: format!("descriptor {}", highest.saturating_sub(1)),
            reason: format!("this host allows numbers below {} (ulimit -Hn)", hard.saturating_sub(1)),
        });
    }
    rlimit::set(remote.pid(), libc::RLIMIT_NOFILE, hard, hard).map_err(failed)
}

/// Sends descriptors and has the task receive them; `before` is run first. They must land where they are expected.
fn transfer(
    before: Option<Batch>,
    files: &[RawFd],
    landing: &[u32],
    hub: u32,
    remote: &mut Remote,
    scratch: Scratch,
    material: &Material,
) -> Result<()> {
    let mut batch = before.unwrap_or_default();
    let chunk = MESSAGES * RIGHTS_MAX;
    for (files, landing) in files.chunks(chunk).zip(landing.chunks(chunk)) {
        let mut receipts = Vec::new();
        for (files, landing) in files.chunks(RIGHTS_MAX).zip(landing.chunks(RIGHTS_MAX)) {
            send_fds(material.hub.as_fd(), files).map_err(|errno| Error::System {
                operation: "sendmsg",
                object: "descriptors".to_owned(),
                errno,
            })?;
            receipts.push((receive(&mut batch, hub, files.len()), landing));
        }
        let results = remote.run_all(&scratch, &batch)?;
        for (control, landing) in receipts {
            if received(results.bytes(control)) != landing {
                return Err(Error::Impossible {
                    object: format!("descriptors of task {}", remote.pid()),
                    reason: "they did not all arrive (limit on open files?)".to_owned(),
                });
            }
        }
        batch = Batch::new();
    }
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// Bytes of a control message's header (`struct cmsghdr`).
const HEADER: usize = 16;

/// Adds a recvmsg(2) of so many descriptors; the room its control message goes to.
fn receive(batch: &mut Batch, hub: u32, count: usize) -> Out {
    let data = batch.bytes(&[0; 8]);
    let vector = batch.bytes(&[0; 16]);
    batch.relocate(vector, 0, data);
    batch.patch(vector, 8, &1u64.to_ne_bytes());
    let len = HEADER + (count * 4).next_multiple_of(8);
    let control = batch.out(len);
    // struct msghdr: name, its length, vector, its length, control, its length, flags.
    let message = batch.bytes(&[0; 56]);
    batch.relocate(message, 16, vector);
    batch.patch(message, 24, &1u64.to_ne_bytes());
    batch.relocate(message, 32, control.into());
    batch.patch(message, 40, &(len as u64).to_ne_bytes());
    batch.must(libc::SYS_recvmsg, &[hub.into(), message, libc::MSG_CMSG_CLOEXEC.into()]);
    control
}

/// Numbers in a received control message.
fn received(control: &[u8]) -> Vec<u32> {
    let (len, numbers) = control.split_at(HEADER);
    let len = u64::from_ne_bytes(len[..8].try_into().expect("8 bytes")) as usize;
    let (numbers, _) = numbers[..len.saturating_sub(HEADER).min(numbers.len())].as_chunks::<4>();
    numbers.iter().map(|n| u32::from_ne_bytes(*n)).collect()
}

/// From 0, 1, 2, ... to their numbers, and nothing left behind.
fn move_into_place(batch: &mut Batch, entries: &[FdEntry]) {
    for (at, entry) in entries.iter().enumerate().rev() {
        if entry.fd != at as u32 {
            batch.dup3(at as u32, entry.fd, entry.cloexec);
        } else if !entry.cloexec {
            batch.must(libc::SYS_fcntl, &[entry.fd.into(), libc::F_SETFD.into(), 0u32.into()]);
        }
    }
    let mut next = 0;
    for entry in entries.iter().take_while(|e| (e.fd as usize) < entries.len()) {
        close_between(batch, next, entry.fd);
        next = entry.fd + 1;
    }
    close_between(batch, next, entries.len() as u32);
}

/// Closes what is open from one number up to, without, another.
fn close_between(batch: &mut Batch, from: u32, end: u32) {
    if from < end {
        batch.must(libc::SYS_close_range, &[from.into(), (end - 1).into(), 0u32.into()]);
    }
}

fn close_from(batch: &mut Batch, from: u32) {
    batch.must(libc::SYS_close_range, &[from.into(), u32::MAX.into(), 0u32.into()]);
}
