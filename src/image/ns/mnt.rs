//! Mount namespaces.

use crate::image::Bytes;
use serde::{Deserialize, Serialize};

/// The mounts of a namespace; empty for the host's own.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MntNs {
    /// Mounts, a parent before what is mounted on it.
    pub mounts: Vec<Mount>,
}

/// One line of `/proc/PID/mountinfo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Mount id on the source.
    pub id: u32,
    /// Id of the mount it is mounted on.
    pub parent_id: u32,
    /// Device number (major << 20 | minor is not used: `makedev` encoding).
    pub device: u64,
    /// Which part of the file system is shown.
    pub root: Bytes,
    /// Where it is mounted, from the namespace's root.
    pub mount_point: Bytes,
    /// Per-mount options, comma separated.
    pub options: Bytes,
    /// Peer group (`shared:N`), 0 = none.
    pub shared: u32,
    /// Master (`master:N`), 0 = none.
    pub master: u32,
    /// `unbindable`.
    pub unbindable: bool,
    /// File system type.
    pub fs_type: Bytes,
    /// Source as mounted.
    pub source: Bytes,
    /// Options of the file system.
    pub super_options: Bytes,
    /// Where the host's mount namespace has the same: bound from there. `None`: a file system of its own, which is mounted
    /// anew, or bound from an earlier mount with the same device number.
    pub host_path: Option<Bytes>,
    /// How many mounts lie over it at `host_path`.
    pub covers: u32,
    /// What a tmpfs of its own holds, below `root`.
    pub content: Option<Content>,
}

/// The files of a tmpfs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Content {
    /// The root directory (or the one file that is bound) first, a directory before what is in it.
    pub entries: Vec<Entry>,
}

/// One file, directory, link or node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Path from the root of the mount, without a leading slash; empty for the root itself.
    pub path: Bytes,
    /// `st_mode`.
    pub mode: u32,
    /// Owner, as the engine sees it.
    pub uid: u32,
    /// Group, as the engine sees it.
    pub gid: u32,
    /// Device number of a node.
    pub rdev: u64,
    /// Last access, nanoseconds since the epoch.
    pub atime_ns: i64,
    /// Last change of the content, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Extended attributes, (name, value).
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// Length of a regular file.
    pub size: u64,
    /// Content of a regular file: (offset, bytes) of the parts that are not holes.
    pub extents: Vec<(u64, Bytes)>,
    /// Where a symbolic link leads.
    pub target: Bytes,
    /// The earlier entry that this is another name of.
    pub link_of: Option<u32>,
}
