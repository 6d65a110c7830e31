//! epoll(7).

use crate::image::FileId;
use serde::{Deserialize, Serialize};

/// An epoll instance: made inside the target, as its members are keyed by file and descriptor number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoll {
    /// Registered descriptors.
    pub members: Vec<Member>,
}

/// One registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Descriptor number at registration time: it may be closed or re-used by now.
    pub fd: u32,
    /// The description that is watched.
    pub file: FileId,
    /// `EPOLL*`, 0 but for `EPOLLET`/`EPOLLONESHOT` when a one-shot has fired.
    pub events: u32,
    /// `epoll_data_t`.
    pub data: u64,
}
