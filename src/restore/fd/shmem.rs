//! Made by the engine, before the skeletons, which map it: memfds and other shared memory with a descriptor.

use super::Maker;
use crate::image::mm::ShmemKind;
use crate::image::{Model, ShmemId};
use crate::restore::{Error, Result, material::Material};
use crate::sys::openat2::reopen;
use crate::sys::{Errno, fcntl};
use std::os::fd::OwnedFd;

/// A description of the object.
pub(crate) fn make(maker: &mut Maker<'_>, id: ShmemId, flags: u32) -> Result<OwnedFd> {
    let once = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOFOLLOW | libc::O_ASYNC) as u32;
    reopen(maker.material.shmem_file(id), flags & !once).map_err(failed("open (memfd)"))
}

/// Seals the memfds that were sealed, once their contents are there.
pub(crate) fn seal(model: &Model, material: &Material) -> Result<()> {
    for (n, shmem) in model.shmems.iter().enumerate() {
        if let ShmemKind::Memfd { seals, .. } = shmem.kind
            && seals != 0
        {
            fcntl::add_seals(material.shmem_file(ShmemId::from(n)), seals).map_err(failed("fcntl F_ADD_SEALS"))?;
        }
    }
    Ok(())
}

fn failed(operation: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::System { operation, object: "shared memory".to_owned(), errno }
}
