//! Device nodes: `/dev/null`, `/dev/zero`, `/dev/urandom`, `/dev/full`, ...

use super::PathRef;
use serde::{Deserialize, Serialize};

/// An open device node without state of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The node.
    pub path: PathRef,
    /// `st_rdev`.
    pub rdev: u64,
}
