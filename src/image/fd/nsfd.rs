//! Descriptors of namespaces.

use crate::image::NsId;
use serde::{Deserialize, Serialize};

/// An open `/proc/PID/ns/KIND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NsFd {
    /// The namespace.
    pub ns: NsId,
}
