//! Identities used across the model: newtypes wherever two integers could be swapped.

use serde::{Deserialize, Serialize};

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u32);
        impl $name {
            /// The index as a position in the model's vector of this kind.
            pub fn at(self) -> usize { self.0 as usize }
        }
        impl From<usize> for $name {
            fn from(n: usize) -> Self { Self(u32::try_from(n).expect("the model holds fewer than 2^32 objects of a kind")) }
        }
    };
}

index!(
    /// Position in [`super::Model::tasks`]: one process (thread group).
    TaskId
);
index!(
    /// Position in [`super::Model::mms`]: one address space.
    MmId
);
index!(
    /// Position in [`super::Model::fd_tables`]: one descriptor table.
    FdTableId
);
index!(
    /// Position in [`super::Model::fs`]: one umask, working directory and root.
    FsId
);
index!(
    /// Position in [`super::Model::sighands`]: one table of signal actions.
    SighandId
);
index!(
    /// Position in [`super::Model::files`]: one open file description.
    FileId
);
index!(
    /// Position in [`super::Model::pipes`].
    PipeId
);
index!(
    /// Position in [`super::Model::shmems`]: one shared memory object.
    ShmemId
);
index!(
    /// Position in [`super::Model::ghosts`]: one deleted file whose content travels.
    GhostId
);
index!(
    /// Position in [`super::Model::ptys`].
    PtyId
);
index!(
    /// Position in [`super::Model::unix_sockets`].
    UnixId
);
index!(
    /// Position in [`super::Model::namespaces`].
    NsId
);
index!(
    /// Position in [`super::Model::cgroups`]: one set of cgroup memberships.
    CgroupSetId
);
index!(
    /// Position in [`super::Model::seccomp_filters`].
    SeccompFilterId
);

/// A process or thread id as the target sees itself: in the PID namespace of the tree's root task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NsPid(pub i32);

/// A process or thread id as this program sees it, in its own PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub i32);

impl std::fmt::Display for NsPid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes the kernel gave as a name or path: not necessarily UTF-8, never with a NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Bytes(pub Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

impl Bytes {
    /// The bytes as a path of this host.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }
}

impl From<&[u8]> for Bytes {
    fn from(b: &[u8]) -> Self {
        Self(b.to_vec())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(b: Vec<u8>) -> Self {
        Self(b)
    }
}
