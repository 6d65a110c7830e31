//! Pipes and FIFOs.

use super::PathRef;
use crate::image::{Bytes, PipeId};
use serde::{Deserialize, Serialize};

/// The object both ends share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// `F_GETPIPE_SZ`, bytes.
    pub capacity: u32,
    /// Bytes written and not yet read; with packets, all of them in order.
    pub data: Bytes,
    /// `O_DIRECT` packet mode: lengths of the packets in `data`; empty for a byte stream.
    pub packets: Vec<u32>,
    /// The name of a FIFO; `None` for a pipe.
    pub fifo: Option<PathRef>,
    /// The FIFO was removed: `fifo` says where it was and is made there again for a moment.
    pub deleted: bool,
}

/// One end: `File::flags` says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeEnd {
    /// The pipe.
    pub pipe: PipeId,
}
