//! pidfd_open(2).

use crate::image::NsPid;
use serde::{Deserialize, Serialize};

/// A process descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidFd {
    /// The process (or thread), as the target sees it; `None` where it has ended and was reaped.
    pub pid: Option<NsPid>,
    /// Of one that is gone: its inode, which all descriptors of that process share (since Linux 6.9; before, all of any).
    pub inode: u64,
}
