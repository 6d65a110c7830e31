//! inotify(7).

use super::PathRef;
use serde::{Deserialize, Serialize};

/// An inotify instance without unread events: nothing but what happens to a watched file fills a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inotify {
    /// Watches, by watch descriptor.
    pub watches: Vec<Watch>,
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
