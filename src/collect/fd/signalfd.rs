//! Read from fdinfo: signalfd(2).

use super::set::Description;
use crate::image::fd::{FileKind, signalfd::SignalFd};
use crate::proc::fdinfo::Detail;

/// The signals it reads. Signals themselves belong to the task that reads.
pub fn collect(d: &Description) -> Option<FileKind> {
    let Detail::SignalFd { mask } = d.info.detail else { return None };
    Some(FileKind::SignalFd(SignalFd { mask }))
}
