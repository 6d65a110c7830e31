//! Made by the engine, through the root directory of the task's mount namespace, whose `/proc` it is: files of `/proc`.

use super::{Maker, roots};
use crate::image::fd::regular::ProcFile;
use crate::restore::Result;
use std::os::fd::OwnedFd;

/// Opens the file of the same task.
pub(crate) fn make(maker: &mut Maker<'_>, model: &ProcFile, flags: u32) -> Result<OwnedFd> {
    let root = maker.roots.get(maker.model, maker.skeletons, model.mnt)?;
    let mut path = model.mount_point.0.clone();
    for part in [model.pid.map(|pid| pid.to_string().into_bytes()), Some(model.rest.0.clone())].into_iter().flatten() {
        if !part.is_empty() {
            path.push(b'/');
            path.extend(part);
        }
    }
    let once = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC) as u32;
    roots::open(root, &path, flags & !once)
}
