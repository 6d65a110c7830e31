//! inotify(7).

use super::PathRef;
use crate::image::Bytes;
use serde::{Deserialize, Serialize};

/// An inotify instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inotify {
    /// Watches, by watch descriptor.
    pub watches: Vec<Watch>,
    /// Events not read yet, as `read(2)` would give them.
    pub queue: Bytes,
}

/// One watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Watch descriptor.
    pub wd: i32,
    /// What is watched.
    pub path: PathRef,
    /// `IN_*`.
    pub mask: u32,
}
