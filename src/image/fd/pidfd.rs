//! pidfd_open(2).

use crate::image::NsPid;
use serde::{Deserialize, Serialize};

/// A process descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidFd {
    /// The process (or thread), as the target sees it; `None` where it has ended and was reaped.
    pub pid: Option<NsPid>,
    /// Of one that is gone: a number from 1, the same for all descriptors of that process (before Linux 6.9, of any). Else 0.
    pub gone: u32,
}
