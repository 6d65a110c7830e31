//! Regular files. Opened by the engine.

use crate::image::Model;
use crate::image::fd::PathRef;
use crate::restore::{Error, Options, Result};
use std::os::fd::OwnedFd;

/// Opens a file after comparing it with what the tree had.
pub fn open_checked(path: &PathRef, flags: u32, _: &Options) -> Result<OwnedFd> {
    let flags = nix::fcntl::OFlag::from_bits_truncate(flags as i32) | nix::fcntl::OFlag::O_CLOEXEC;
    nix::fcntl::open(path.path.as_path(), flags, nix::sys::stat::Mode::empty()).map_err(|errno| Error::System {
        operation: "open",
        object: path.path.to_string(),
        errno,
    })
}

/// Makes the deleted files of the model.
pub fn make_ghosts(_: &Model) -> Result<Vec<Option<OwnedFd>>> {
    Ok(Vec::new())
}
