//! Read from fdinfo: eventfd(2).

use super::set::Description;
use crate::image::fd::{FileKind, eventfd::EventFd};
use crate::proc::fdinfo::Detail;

/// Counter and mode of an eventfd. Kernels before 6.5 do not tell whether it is a semaphore.
pub fn collect(d: &Description) -> Option<FileKind> {
    let Detail::EventFd { count, semaphore } = d.info.detail else { return None };
    Some(FileKind::EventFd(EventFd { count, semaphore: semaphore.unwrap_or(false) }))
}
