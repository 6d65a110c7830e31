//! signalfd(2).

use serde::{Deserialize, Serialize};

/// A descriptor that reads signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalFd {
    /// Signals it reads, bit n-1 for signal n.
    pub mask: u64,
}
