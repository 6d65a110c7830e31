//! Made by the engine (what it reads depends on who reads): signalfd(2).

use crate::image::fd::signalfd::SignalFd;
use crate::restore::{Error, Result};
use crate::sys::signalfd;
use std::os::fd::OwnedFd;

/// A descriptor that reads the same signals.
pub(crate) fn make(model: &SignalFd) -> Result<OwnedFd> {
    signalfd::signalfd(model.mask, 0).map_err(|errno| Error::System {
        operation: "signalfd4",
        object: "a signalfd".to_owned(),
        errno,
    })
}
