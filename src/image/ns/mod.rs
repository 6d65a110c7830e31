//! Namespaces.

pub mod mnt;
pub mod net;
pub mod user;

use super::{Bytes, NsId};
use serde::{Deserialize, Serialize};

/// One namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Inode number on the source: an identity within one boot, for messages and comparison.
    pub inode: u64,
    /// The host's own (the engine's) namespace of this kind: nothing is made, the tree lives in it.
    pub of_host: bool,
    /// The owning user namespace.
    pub owner: Option<NsId>,
    /// What it is and holds.
    pub kind: NsKind,
}

/// Kinds of namespaces with what they hold (empty for a namespace of the host).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NsKind {
    /// Mounts.
    Mnt(mnt::MntNs),
    /// Network.
    Net(net::NetNs),
    /// Process ids; `parent` is the next one out.
    Pid {
        /// The next PID namespace out, `None` for the outermost one of the tree.
        parent: Option<NsId>,
    },
    /// User and group ids.
    User(user::UserNs),
    /// Host and domain name.
    Uts {
        /// `uname -n`.
        hostname: Bytes,
        /// `domainname`.
        domainname: Bytes,
    },
    /// System V and POSIX message queues, semaphores, shared memory.
    Ipc,
    /// cgroup roots.
    Cgroup {
        /// Paths of the roots, a line a hierarchy as in [`super::cgroup::Membership`].
        roots: Vec<super::cgroup::Membership>,
    },
    /// Clock offsets.
    Time {
        /// Offset of CLOCK_MONOTONIC against that of the initial namespace, nanoseconds.
        monotonic_ns: i64,
        /// Offset of CLOCK_BOOTTIME against that of the initial namespace, nanoseconds.
        boottime_ns: i64,
    },
}
