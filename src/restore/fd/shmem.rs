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

/// `F_SEAL_WRITE`: set when nobody can have it mapped for writing, so before anything is mapped.
pub(crate) const SEAL_WRITE: u32 = 0x8;

/// Seals the memfds that were sealed against writing, once their contents are there and before they are mapped.
pub(crate) fn seal_first(model: &Model, material: &Material) -> Result<()> {
    seal_those(model, material, |seals| seals & SEAL_WRITE != 0)
}

/// Seals the others, which may be mapped for writing.
pub(crate) fn seal(model: &Model, material: &Material) -> Result<()> {
    seal_those(model, material, |seals| seals != 0 && seals & SEAL_WRITE == 0)
}

fn seal_those(model: &Model, material: &Material, which: impl Fn(u32) -> bool) -> Result<()> {
    for (n, shmem) in model.shmems.iter().enumerate() {
        if let ShmemKind::Memfd { seals, .. } = shmem.kind
            && which(seals)
        {
            fcntl::add_seals(material.shmem_file(ShmemId::from(n)), seals).map_err(failed("fcntl F_ADD_SEALS"))?;
        }
    }
    Ok(())
}

fn failed(operation: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::System { operation, object: "shared memory".to_owned(), errno }
}
