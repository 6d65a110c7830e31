//! Descriptors: one file for each kind; the first line of each says which side makes it, the engine or the target's task.
//!
//! [`make_all`] makes every open file description in the engine; [`install_all`] hands them to the tasks in messages over
//! one socket and puts them under their numbers, with the memberships of epoll instances, which are keyed by those numbers;
//! [`finish`] does what has an owner (locks, leases, receivers of signals) or a clock inside the tasks.

pub mod bequest;
pub mod device;
pub mod epoll;
pub mod eventfd;
pub mod external;
pub mod finish;
pub mod ghost;
pub mod inotify;
pub mod install;
pub mod lock;
pub mod netlink;
pub mod nsfd;
pub mod owner;
pub mod peers;
pub mod pidfd;
pub mod pipe;
pub mod procfile;
pub mod regular;
pub mod roots;
pub mod shmem;
pub mod signalfd;
pub mod socket;
pub mod sockets;
pub mod taken_over;
pub mod tcp;
pub mod timerfd;
pub mod tty;
pub mod udp;
pub mod unix;

pub use finish::finish;
pub use install::install_all;

use super::{Error, Options, Result, material::Material, skeleton::Skeletons};
use crate::image::fd::{File, FileKind};
use crate::image::{FdTableId, FileId, Model, TaskId};
use crate::sys::{Errno, fcntl};
use nix::unistd::{Whence, lseek};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Flags that are attributes of a description and can be set later (`F_SETFL`), but for `O_ASYNC`, which has an owner.
const SETTABLE: u32 = (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME) as u32;
/// `O_LARGEFILE` of the kernel on x86-64, which open(2) adds by itself.
const LARGEFILE: u32 = 0o100_000;
/// `__O_TMPFILE`.
const TMPFILE: u32 = 0o20_000_000;

/// One descriptor of ours for each open file description of the model, and where the tree has them.
#[derive(Debug)]
pub struct Opened {
    files: Vec<OwnedFd>,
    holders: Holders,
    /// Sockets that wait for the end of the restore to speak.
    pub sleeping: sockets::Sleeping,
}

impl Opened {
    /// The description of a file.
    pub fn file(&self, id: FileId) -> BorrowedFd<'_> {
        self.files[id.at()].as_fd()
    }
}

/// Which descriptors refer to which descriptions, and who has which table.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// The first task and thread (by position) of each table.
    pub(crate) tables: Vec<Option<(TaskId, usize)>>,
    /// The lowest descriptor of a description in a table.
    pub(crate) fds: HashMap<(FdTableId, FileId), u32>,
    /// The first table that has a description.
    pub(crate) first: HashMap<FileId, FdTableId>,
}

impl Holders {
    fn of(model: &Model) -> Self {
        let mut holders = Self { tables: vec![None; model.fd_tables.len()], ..Self::default() };
        for (n, task) in model.tasks.iter().enumerate() {
            for (at, thread) in task.threads.iter().enumerate() {
                holders.tables[thread.fd_table.at()].get_or_insert((TaskId::from(n), at));
            }
        }
        for (n, table) in model.fd_tables.iter().enumerate() {
            let id = FdTableId::from(n);
            for entry in &table.entries {
                holders.fds.entry((id, entry.file)).or_insert(entry.fd);
                holders.first.entry(entry.file).or_insert(id);
            }
        }
        holders
    }

    /// A table that has the description, with the number there.
    pub(crate) fn any(&self, file: FileId) -> Option<(FdTableId, u32)> {
        let table = *self.first.get(&file)?;
        Some((table, self.fds[&(table, file)]))
    }
}

/// What is at hand while descriptions are made.
pub(crate) struct Maker<'a> {
    pub(crate) model: &'a Model,
    pub(crate) skeletons: &'a mut Skeletons,
    pub(crate) material: &'a Material,
    pub(crate) options: &'a Options,
    pub(crate) warnings: &'a mut Vec<String>,
    pub(crate) roots: roots::Roots,
    pub(crate) pipes: pipe::Pipes,
    pub(crate) sockets: sockets::Sockets,
    /// Descriptors of processes that are gone, see [`pidfd`].
    pub(crate) dead: pidfd::Dead,
    /// Lives on this kernel until this tree runs.
    pub(crate) original: Option<taken_over::Original>,
}

/// Makes every open file description.
///
/// # Errors
/// A file that is missing or has changed is named by its path ([`Error::File`]).
pub fn make_all(
    model: &Model,
    skeletons: &mut Skeletons,
    material: &Material,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<Opened> {
    allow_many(model)?;
    let (roots, pipes, sockets, dead) = Default::default();
    let original = options.original_here.then(|| taken_over::Original::of(model));
    let mut maker = Maker { model, skeletons, material, options, warnings, roots, pipes, sockets, dead, original };
    sockets::begin(&mut maker)?;
    let mut files = Vec::with_capacity(model.files.len());
    for (id, file) in crate::image::fd::enumerate(&model.files) {
        let fd = make(&mut maker, id, file)?;
        attributes(file, &fd)?;
        files.push(fd);
    }
    tty::finish(&mut maker)?;
    let sleeping = sockets::finish(&mut maker, &files)?;
    shmem::seal(model, material)?;
    ghost::set_times(model, material)?;
    Ok(Opened { files, holders: Holders::of(model), sleeping })
}

/// One row for each kind.
fn make(maker: &mut Maker<'_>, id: FileId, file: &File) -> Result<OwnedFd> {
    if let Some(original) = &mut maker.original
        && let Some(socket) = original.socket(maker.model, id, file)?
    {
        return sockets::take_over(maker, id, &file.kind, socket);
    }
    match &file.kind {
        FileKind::Regular(regular) => regular::make(maker, regular, file.flags),
        FileKind::Ghost(ghost) => ghost::make(maker, ghost.ghost, file.flags),
        FileKind::Pipe(end) => pipe::make(maker, end.pipe, file.flags),
        FileKind::EventFd(event) => eventfd::make(event),
        FileKind::Epoll(_) => epoll::make(),
        FileKind::SignalFd(signals) => signalfd::make(signals),
        FileKind::TimerFd(timer) => timerfd::make(timer),
        FileKind::Inotify(_) => inotify::make(),
        FileKind::Shmem(shmem) => shmem::make(maker, id, shmem.shmem, file.flags),
        FileKind::Device(device) => device::make(maker, device, file.flags),
        FileKind::PidFd(pidfd) => pidfd::make(maker, pidfd, file.flags),
        FileKind::Namespace(ns) => nsfd::make(maker, ns.ns, file.flags),
        FileKind::ProcFile(proc) => procfile::make(maker, proc, file.flags),
        FileKind::External(external) => external::make(maker.options, external, file.flags),
        FileKind::Unix(_) | FileKind::Tcp(_) | FileKind::Udp(_) | FileKind::Netlink(_) => {
            sockets::make(maker, id, &file.kind)
        }
        FileKind::Tty(side) => tty::make(maker, *side, file.flags),
    }
}

/// Flags and offset.
fn attributes(file: &File, fd: &OwnedFd) -> Result<()> {
    let failed = |operation| move |errno| system(operation, &file.kind, errno);
    // What the caller gave us stays as the caller has it, and nothing can be set through O_PATH.
    if matches!(file.kind, FileKind::External(_)) || file.flags & libc::O_PATH as u32 != 0 {
        return Ok(());
    }
    let has = fcntl::flags(fd).map_err(failed("fcntl F_GETFL"))?;
    if (has ^ file.flags) & SETTABLE != 0 {
        fcntl::set_flags(fd, file.flags & SETTABLE).map_err(failed("fcntl F_SETFL"))?;
    }
    if file.offset == 0 {
        return Ok(());
    }
    match lseek(fd, file.offset as i64, Whence::SeekSet) {
        // A device that counts what was read but cannot be told so has no use for the number either.
        Err(_) if matches!(file.kind, FileKind::Device(_)) => Ok(()),
        Err(Errno::ESPIPE) => Ok(()),
        sought => sought.map(drop).map_err(failed("lseek")),
    }
}

/// We hold every description at once.
fn allow_many(model: &Model) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let failed = |errno| Error::System { operation: "setrlimit", object: "open files of our own".to_owned(), errno };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    // Beside the descriptions: sockets once more until they are let speak, what is mapped, a few of our own.
    let mapped: usize = model.mms.iter().map(|mm| mm.vmas.len()).sum();
    if soft < hard && (model.files.len() * 2 + model.unix_sockets.len() * 2 + mapped + 256) as u64 > soft {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)?;
    }
    Ok(())
}

/// A system call about a description of this kind failed.
fn system(operation: &'static str, kind: &FileKind, errno: Errno) -> Error {
    Error::System { operation, object: describe(kind), errno }
}

/// How messages name a description.
pub(crate) fn describe(kind: &FileKind) -> String {
    match kind {
        FileKind::Regular(regular) => regular.path.path.to_string(),
        FileKind::Device(device) => device.path.path.to_string(),
        FileKind::ProcFile(proc) => format!("{}/.../{}", proc.mount_point, proc.rest),
        FileKind::External(external) => external.link.to_string(),
        FileKind::Ghost(_) => "a deleted file".to_owned(),
        FileKind::Pipe(_) => "a pipe".to_owned(),
        FileKind::EventFd(_) => "an eventfd".to_owned(),
        FileKind::Epoll(_) => "an epoll instance".to_owned(),
        FileKind::SignalFd(_) => "a signalfd".to_owned(),
        FileKind::TimerFd(_) => "a timerfd".to_owned(),
        FileKind::Inotify(_) => "an inotify instance".to_owned(),
        FileKind::Shmem(_) => "shared memory".to_owned(),
        FileKind::Tty(_) => "a terminal".to_owned(),
        FileKind::Unix(_) => "a UNIX socket".to_owned(),
        FileKind::Tcp(_) => "a TCP socket".to_owned(),
        FileKind::Udp(_) => "a UDP socket".to_owned(),
        FileKind::Netlink(_) => "a netlink socket".to_owned(),
        FileKind::PidFd(_) => "a pidfd".to_owned(),
        FileKind::Namespace(_) => "a namespace".to_owned(),
    }
}
