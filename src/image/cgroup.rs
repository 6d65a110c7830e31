//! cgroup memberships.

use super::Bytes;
use serde::{Deserialize, Serialize};

/// The cgroups one task is in, one for each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSet {
    /// Memberships in the order of `/proc/PID/cgroup`.
    pub memberships: Vec<Membership>,
}

/// One line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Controllers of a v1 hierarchy as the kernel lists them (`cpu,cpuacct`, `name=systemd`), empty for v2.
    pub controllers: String,
    /// Path from the root of the hierarchy.
    pub path: Bytes,
}
