//! Target to model: reads everything of a frozen tree but the contents of its memory.
//!
//! One file for each room of the model (the mirror rule: `image/X`, `collect/X`, `restore/X`). Nothing here sends, nothing
//! here stops or starts a task. What cannot be saved is added to [`Cx::blockers`], all of it, with its remedy. [`preflight`] looks while the
//! target runs; [`seen`] is what needs no stop, [`mapped`] the file behind a mapping, [`restart`] what was left of time-outs.

pub mod cgroup;
pub mod creds;
pub mod fd;
pub mod host;
pub mod mapped;
pub mod mappings;
pub mod mm;
pub mod ns;
mod numa;
pub mod pkeys;
pub mod preflight;
pub mod restart;
pub mod seen;
pub mod sharing;
pub mod signals;
pub mod sysv;
pub mod task;
pub mod timers;

#[cfg(test)]
mod tests;

use crate::blocker::{Blocker, Code};
use crate::image::{FdTableId, Model, NsPid, Pid, TaskId};
use crate::net::lock::{NetLock, Terms};
use crate::trace::freeze::Frozen;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

/// What can go wrong while a tree is read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task could not be traced or its memory read.
    #[error(transparent)]
    Trace(#[from] crate::trace::Error),
    /// /proc could not be read.
    #[error(transparent)]
    Proc(#[from] crate::proc::Error),
    /// A system call of ours about an object of the target failed.
    #[error("{operation} of {object}: {errno}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Kernel's answer.
        errno: crate::sys::Errno,
    },
    /// A socket of the target could not be read.
    #[error("{object}")]
    Socket {
        /// Which.
        object: String,
        /// Why.
        #[source]
        error: crate::net::Error,
    },
}

impl Error {
    /// A task of the tree has ended.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Trace(crate::trace::Error::Died { .. }) => true,
            Self::Proc(e) | Self::Trace(crate::trace::Error::Proc(e)) => e.is_gone(),
            _ => false,
        }
    }
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller decides about things that end outside the tree.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// `--tcp`.
    pub tcp: crate::ops::options::Tcp,
    /// `--external-unix`.
    pub external_unix: crate::ops::options::ExternalUnix,
    /// Terminals and pipes held outside the tree become [`crate::image::fd::FileKind::External`] instead of blockers.
    pub allow_external_stdio: bool,
    /// Memory that a process of ours still brings in is not in the way: the caller knows what is missing, and does not read it.
    pub lacks_memory: bool,
}

/// Where the contents of memory objects are read from.
#[derive(Debug, Default)]
pub struct Sources {
    /// For each [`crate::image::MmId`] a process that has it.
    pub mms: Vec<Pid>,
    /// For each [`crate::image::ShmemId`] how it can be read.
    pub shmems: Vec<ShmemSource>,
}

/// Where the contents of a shared memory object are.
#[derive(Debug)]
pub enum ShmemSource {
    /// Opened by us (through /proc/PID/map_files, or a duplicate of a descriptor).
    File(std::os::fd::OwnedFd),
}

/// State of one collection.
pub struct Cx<'a> {
    /// The tree.
    pub frozen: &'a mut Frozen,
    /// What has been found so far.
    pub model: Model,
    /// Where memory contents are.
    pub sources: Sources,
    /// What stands in the way.
    pub blockers: Vec<Blocker>,
    /// The caller's choices.
    pub policy: &'a Policy,
    /// Ids as we see them to ids as the target sees them, of all processes and threads of the tree.
    pub ids: HashMap<Pid, NsPid>,
    /// For each task of the model its process in `frozen`, by position.
    pub process_of: Vec<usize>,
    /// Namespaces of processes of `frozen`, by position, as far as they were looked for.
    pub namespaces_of: HashMap<usize, crate::image::task::TaskNamespaces>,
    /// For each descriptor table a (process, thread) of `frozen` that has it, by position.
    pub table_owner: Vec<(usize, usize)>,
    /// Shared objects by (device, inode), for mappings and descriptors of the same one.
    pub shmem_by_inode: HashMap<(u64, u64), crate::image::ShmemId>,
    /// System V shared memory.
    pub segments: sysv::Segments,
    /// Deleted files by (device, inode), for mappings and descriptors of the same one.
    pub ghost_by_inode: fd::Ghosts,
    /// Files behind mappings, as far as they were looked at.
    pub mapped: mapped::Known,
    /// Mappings with their flags, read before the tree was stopped: used where `maps` still says the same.
    pub known_mappings: mappings::Known,
    /// Descriptors that were seen before the tree was stopped.
    pub known_descriptors: fd::look::Known,
    /// Mappings with their flags, read from the stopped tree.
    pub stopped_mappings: HashMap<Pid, mappings::Mappings>,
    /// Told before the first TCP socket is locked.
    pub surety: &'a mut Surety<'a>,
    /// Locked TCP sockets.
    pub locks: Vec<NetLock>,
    /// Buffer for reading /proc.
    pub buf: Vec<u8>,
}

/// Told before TCP sockets of the tree are locked: which, and what a lock changes of each. No call is made in the tree after
/// that until it is thawed, so that a signal may wait for it ([`Frozen::hold`]).
pub type Surety<'a> = dyn FnMut(&mut Frozen, &[(BorrowedFd<'_>, Terms)]) + 'a;

/// A collected tree.
#[derive(Debug)]
pub struct Collection {
    /// Everything but memory contents.
    pub model: Model,
    /// Where those are.
    pub sources: Sources,
    /// What could not be saved. A collection with blockers must not be written as an image.
    pub blockers: Vec<Blocker>,
    /// TCP sockets of the target, mute and deaf since they were read. Dropping unlocks them.
    pub locks: Vec<NetLock>,
}

/// Reads a frozen tree. Scratch areas are made in it and stay until it is thawed. `known_mappings` were read a moment before
/// the tree was stopped: flags of mappings cost a walk of all page tables (20 ms/GiB). Advice that a program gives for a whole
/// mapping in that moment shows nowhere else and is missed. `known_descriptors` as well, of a tree with many.
///
/// # Errors
/// Something cannot be read. What stands in the way of saving the tree is no error: it is in the collection.
pub fn collect<'a>(
    frozen: &'a mut Frozen,
    policy: &'a Policy,
    (known_mappings, known_descriptors): (mappings::Known, fd::look::Known),
    surety: &'a mut Surety<'a>,
) -> Result<Collection> {
    let model = Model::empty(host::collect(None)?);
    let mut cx = Cx {
        frozen,
        model,
        sources: Sources::default(),
        blockers: Vec::new(),
        policy,
        ids: HashMap::new(),
        process_of: Vec::new(),
        namespaces_of: HashMap::new(),
        table_owner: Vec::new(),
        shmem_by_inode: HashMap::new(),
        segments: sysv::Segments::default(),
        ghost_by_inode: HashMap::new(),
        mapped: mapped::Known::default(),
        known_mappings,
        known_descriptors,
        stopped_mappings: HashMap::new(),
        surety,
        locks: Vec::new(),
        buf: Vec::new(),
    };
    mappings::read_rest(&mut cx);
    ns::collect(&mut cx)?;
    task::collect(&mut cx)?;
    sysv::refuse_shared(&mut cx);
    ns::fill(&mut cx)?;
    cx.model.host = host::collect(Some(cx.model.clock_offsets(cx.model.root().namespaces.time)))?;
    fd::collect(&mut cx)?;
    cx.model.frozen = cgroup::frozen(&cx)?;
    Ok(Collection { model: cx.model, sources: cx.sources, blockers: cx.blockers, locks: cx.locks })
}

impl Cx<'_> {
    /// Notes something that stands in the way.
    pub fn block(
        &mut self,
        code: Code,
        object: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (object, reason, remedy) = (object.into(), reason.into(), remedy.into());
        self.blockers.push(Blocker { code, object, reason, remedy });
    }

    /// The descriptor tables by number, with a (process, thread) position that has each.
    pub fn tables(&self) -> impl Iterator<Item = (FdTableId, (usize, usize))> + '_ {
        self.table_owner.iter().enumerate().map(|(n, owner)| (FdTableId::from(n), *owner))
    }

    /// The task made of the process at this position of `frozen`.
    pub fn task_of_process(&self, process: usize) -> Option<TaskId> {
        self.process_of.iter().position(|p| *p == process).map(TaskId::from)
    }
}
