//! Made by the engine, before the skeletons, which map it: memfds and other shared memory with a descriptor.

use super::{Maker, SETTABLE};
use crate::image::fd::{File, FileKind};
use crate::image::mm::ShmemKind;
use crate::image::{FileId, Model, ShmemId};
use crate::restore::{Error, Result, material::Material};
use crate::sys::openat2::reopen;
use crate::sys::{Errno, fcntl};
use std::os::fd::OwnedFd;

/// A description of the object. The first that could be memfd_create(2)'s own is the one we have made it with: to the kernel
/// that is no writer, and the file can be executed; one that is opened again for writing is (`ETXTBSY`).
pub(crate) fn make(maker: &mut Maker<'_>, file: FileId, id: ShmemId, flags: u32) -> Result<OwnedFd> {
    let object = maker.material.shmem_file(id);
    if matches!(maker.model.shmems[id.at()].kind, ShmemKind::Memfd { .. }) {
        let has = fcntl::flags(object).map_err(failed("fcntl F_GETFL"))?;
        let own = |file: &File| {
            matches!(file.kind, FileKind::Shmem(of) if of.shmem == id) && (file.flags ^ has) & !SETTABLE == 0
        };
        if maker.model.files.iter().position(own) == Some(file.at()) {
            let fd = object.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)));
            return fd.map_err(failed("dup (memfd)"));
        }
    }
    let once = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOFOLLOW | libc::O_ASYNC) as u32;
    reopen(object, flags & !once).map_err(failed("open (memfd)"))
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
