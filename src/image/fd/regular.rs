//! Regular files, directories, deleted files, memfds, files of /proc.

use super::PathRef;
use crate::image::{Bytes, GhostId, NsId, NsPid, ShmemId};
use serde::{Deserialize, Serialize};

/// A file opened by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regular {
    /// The path and what is compared at restore.
    pub path: PathRef,
}

/// A deleted file: the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ghost {
    /// Where it was; it is made again beside that name and unlinked, so that it lies on the same file system.
    pub path: PathRef,
    /// Owner, as the engine sees it.
    pub uid: u32,
    /// Group, as the engine sees it.
    pub gid: u32,
    /// Last access, nanoseconds since the epoch.
    pub atime_ns: i64,
    /// Extended attributes, (name, value).
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// Content of a regular file: (offset, bytes) of the parts that are not holes. Directories have none.
    pub extents: Vec<(u64, Bytes)>,
    /// Another name of the file that still exists (hard link), which is then opened instead of a copy.
    pub other_name: Option<Bytes>,
}

/// An open description of a deleted file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GhostFile {
    /// The file.
    pub ghost: GhostId,
}

/// An open memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmemFile {
    /// The object.
    pub shmem: ShmemId,
}

/// A file below `/proc/PID` of a task of the tree (or of `/proc` itself), opened through the
/// root directory of the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcFile {
    /// The task, as the target sees it; `None` for files that belong to no task.
    pub pid: Option<NsPid>,
    /// Path below `/proc/PID/`, or below `/proc/`; empty for the directory itself.
    pub rest: Bytes,
    /// The mount namespace it was reached through.
    pub mnt: NsId,
    /// Where that `/proc` is mounted, as seen from the root of the mount namespace.
    pub mount_point: Bytes,
}
