//! eventfd(2).

use serde::{Deserialize, Serialize};

/// An event counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFd {
    /// Its value.
    pub count: u64,
    /// `EFD_SEMAPHORE`.
    pub semaphore: bool,
}
