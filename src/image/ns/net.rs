//! Network namespaces.

use crate::image::Bytes;
use serde::{Deserialize, Serialize};

/// A network namespace; `None`s and empty lists for the host's own.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NetNs {
    /// Name under `/run/netns` (or another bind mount of it) by which the destination finds its own.
    pub path: Option<Bytes>,
    /// The loopback device is up.
    pub loopback_up: bool,
}
