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
    /// The same file system (device and root) as seen by the host at this path, if the host has it mounted: bound from there.
    pub host_path: Option<Bytes>,
    /// Contents of a tmpfs nobody else has mounted: a tar archive.
    pub content: Option<Bytes>,
}
