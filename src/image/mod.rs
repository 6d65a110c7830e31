//! The model of a process tree: plain, flat data.
//!
//! No descriptor, no I/O, no recursion: vectors and indices. `collect/` makes a [`Model`] from live tasks, `restore/`
//! makes live tasks from it, [`codec`] turns it into bytes and back. Two collections of an unchanged tree give equal
//! models. Memory contents are not in the model: they lie in the page store, keyed by [`MmId`] and [`ShmemId`].
//!
//! Fields keep the kernel's own numbers (flags, signal numbers, ids) so that nothing is lost in translation.

#[cfg(test)]
pub(crate) mod arbitrary;
pub mod cgroup;
pub mod codec;
pub mod creds;
pub mod diff;
pub mod fd;
pub mod forget;
pub mod host;
mod ids;
pub mod limits;
pub mod manifest;
pub mod mm;
pub mod ns;
pub mod numa;
pub mod signals;
pub mod task;
#[cfg(test)]
pub(crate) mod tests;
pub mod timers;
pub mod verify;

pub use ids::*;

use serde::{Deserialize, Serialize};

/// A process tree with everything but the contents of its memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// The host the tree was collected on, as far as a restore must compare with it.
    pub host: host::Host,
    /// Processes, parents before children; the root of the tree is the first.
    pub tasks: Vec<task::Task>,
    /// Address spaces.
    pub mms: Vec<mm::Mm>,
    /// Shared memory objects: shared anonymous memory, memfds, System V segments.
    pub shmems: Vec<mm::Shmem>,
    /// Descriptor tables.
    pub fd_tables: Vec<fd::FdTable>,
    /// Open file descriptions.
    pub files: Vec<fd::File>,
    /// Pipes and FIFOs: the object both ends share.
    pub pipes: Vec<fd::pipe::Pipe>,
    /// Pseudo-terminals: the object both ends share.
    pub ptys: Vec<fd::tty::Pty>,
    /// UNIX sockets, also those nobody holds a descriptor of (in an accept queue, or in flight).
    pub unix_sockets: Vec<fd::unix::UnixSocket>,
    /// Deleted files whose content travels in the image.
    pub ghosts: Vec<fd::regular::Ghost>,
    /// POSIX, flock and OFD locks.
    pub locks: Vec<fd::lock::Lock>,
    /// umask, working directory and root, as shared by tasks.
    pub fs: Vec<task::Fs>,
    /// Tables of signal actions.
    pub sighands: Vec<signals::Sighand>,
    /// Programs of seccomp filters, shared between threads.
    pub seccomp_filters: Vec<creds::SeccompFilter>,
    /// Namespaces of the tasks.
    pub namespaces: Vec<ns::Namespace>,
    /// Sets of cgroup memberships.
    pub cgroups: Vec<cgroup::CgroupSet>,
    /// Cgroups around the whole tree that somebody held frozen.
    pub frozen: Vec<cgroup::Membership>,
    /// Multicast groups of datagram sockets.
    pub multicast: Vec<fd::udp::Membership>,
}

impl Model {
    /// A model of nothing yet.
    pub fn empty(host: host::Host) -> Self {
        Self {
            host,
            tasks: Vec::new(),
            mms: Vec::new(),
            shmems: Vec::new(),
            fd_tables: Vec::new(),
            files: Vec::new(),
            pipes: Vec::new(),
            ptys: Vec::new(),
            unix_sockets: Vec::new(),
            ghosts: Vec::new(),
            locks: Vec::new(),
            fs: Vec::new(),
            sighands: Vec::new(),
            seccomp_filters: Vec::new(),
            namespaces: Vec::new(),
            cgroups: Vec::new(),
            frozen: Vec::new(),
            multicast: Vec::new(),
        }
    }

    /// The root task of the tree.
    pub fn root(&self) -> &task::Task {
        &self.tasks[0]
    }

    /// What a time namespace adds to CLOCK_MONOTONIC and CLOCK_BOOTTIME of the host, nanoseconds.
    pub fn clock_offsets(&self, ns: NsId) -> (i64, i64) {
        match self.namespaces[ns.at()].kind {
            ns::NsKind::Time { monotonic_ns, boottime_ns } => (monotonic_ns, boottime_ns),
            _ => (0, 0),
        }
    }

    /// Children of a task, in the order of the model.
    pub fn children(&self, of: TaskId) -> impl Iterator<Item = TaskId> + '_ {
        self.tasks.iter().enumerate().filter(move |(_, t)| t.parent == Some(of)).map(|(n, _)| TaskId::from(n))
    }

    /// The task whose process id is `pid`.
    pub fn task_of(&self, pid: NsPid) -> Option<TaskId> {
        self.tasks.iter().position(|t| t.pid == pid).map(TaskId::from)
    }
}
