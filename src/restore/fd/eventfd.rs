//! Made by the engine: eventfd(2).

use crate::image::fd::eventfd::EventFd;
use crate::restore::{Error, Result};
use crate::sys::eventfd;
use std::os::fd::OwnedFd;

/// A counter with its value.
pub(crate) fn make(model: &EventFd) -> Result<OwnedFd> {
    let failed = |operation| move |errno| Error::System { operation, object: "an eventfd".to_owned(), errno };
    let mode = if model.semaphore { libc::EFD_SEMAPHORE } else { 0 };
    let fd = eventfd::eventfd(mode).map_err(failed("eventfd2"))?;
    if model.count != 0 {
        nix::unistd::write(&fd, &model.count.to_ne_bytes()).map_err(failed("write"))?;
    }
    Ok(fd)
}
