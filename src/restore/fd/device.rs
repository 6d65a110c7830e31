//! Made by the engine, through the root directory of the task's mount namespace: device nodes.

use super::{Maker, roots};
use crate::image::fd::device::Device;
use crate::restore::{Error, Result};
use nix::sys::stat::fstat;
use std::os::fd::OwnedFd;

/// Opens the node, which has to be the same device.
pub(crate) fn make(maker: &mut Maker<'_>, model: &Device, flags: u32) -> Result<OwnedFd> {
    let root = maker.roots.get(maker.model, maker.skeletons, model.path.mnt)?;
    let path = &model.path.path;
    let seen = roots::open(root, &path.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32)?;
    let stat = fstat(&seen).map_err(|errno| Error::System { operation: "stat", object: path.to_string(), errno })?;
    if stat.st_rdev != model.rdev || (stat.st_mode ^ model.path.mode) & libc::S_IFMT != 0 {
        let reason = format!("it is not device {:#x} here", model.rdev);
        return Err(Error::File { path: path.to_string(), reason });
    }
    let once = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC) as u32;
    roots::open(root, &path.0, (flags & !once) | libc::O_NOCTTY as u32)
}
