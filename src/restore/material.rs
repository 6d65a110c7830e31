//! What skeletons inherit because we open it before the first of them is made: executables, mapped files, shared memory.
//! A skeleton is a copy of us, so a number here is the same descriptor there.

use super::{Error, Options, Result, fd, ns, sysv::Segments};
use crate::image::fd::PathRef;
use crate::image::mm::{Backing, Shmem, ShmemKind, Vma};
use crate::image::{Model, NsId, ShmemId};
use crate::sys::openat2::reopen;
use crate::sys::{Errno, memory};
use crate::trace::pages::TargetPages;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Descriptors that skeletons find open.
#[derive(Debug)]
pub struct Material {
    files: HashMap<(NsId, Vec<u8>, u32), OwnedFd>,
    shmems: Vec<OwnedFd>,
    /// The same objects, open for reading alone: what is mapped through these cannot be made writable.
    readers: HashMap<ShmemId, OwnedFd>,
    ghosts: Vec<Option<OwnedFd>>,
    /// System V shared memory.
    pub segments: Segments,
    /// Our end of the socket that carries descriptors to skeletons.
    pub hub: OwnedFd,
    /// Theirs.
    pub hub_inside: OwnedFd,
    /// Namespaces of the tree's own.
    pub made: Arc<ns::Made>,
}

/// Opens everything that mappings need.
pub fn prepare(model: &Model, options: &Options, warnings: &mut Vec<String>) -> Result<Material> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (hub, hub_inside) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Error::System { operation: "socketpair", object: "the hub".to_owned(), errno })?;
    let made = Arc::new(ns::make(model, options, warnings)?);
    let (segments, mut segment_files) = Segments::make(model, warnings)?;
    let (files, shmems, ghosts, readers) = (HashMap::new(), Vec::new(), Vec::new(), HashMap::new());
    let mut material = Material { files, shmems, readers, ghosts, segments, hub, hub_inside, made };
    for (n, shmem) in model.shmems.iter().enumerate() {
        let file = match segment_files.remove(&ShmemId::from(n)) {
            Some(file) => file,
            None => make_shmem(shmem)?,
        };
        material.shmems.push(file);
    }
    material.ghosts = fd::regular::make_ghosts(model, &material.made)?;
    for mm in &model.mms {
        material.open(&mm.exe, libc::O_RDONLY as u32, options)?;
        for vma in &mm.vmas {
            match &vma.backing {
                Backing::File { path, flags } => material.open(path, *flags, options)?,
                Backing::Shmem(id) if only_reads(model, *id, vma) && !material.readers.contains_key(id) => {
                    let reader = reopen(&material.shmems[id.at()], libc::O_RDONLY as u32).map_err(|errno| {
                        Error::System { operation: "open", object: "shared memory".to_owned(), errno }
                    })?;
                    material.readers.insert(*id, reader);
                }
                Backing::Device(path) => {
                    let flags = if vma.shared && vma.may_write { libc::O_RDWR } else { libc::O_RDONLY };
                    material.open(path, flags as u32, options)?;
                }
                _ => {}
            }
        }
    }
    Ok(material)
}

impl Material {
    fn open(&mut self, path: &PathRef, flags: u32, options: &Options) -> Result<()> {
        let key = (path.mnt, path.path.0.clone(), flags);
        if self.files.contains_key(&key) {
            return Ok(());
        }
        let file = fd::regular::open_checked(path, flags, options, &self.made)?;
        self.files.insert(key, file);
        Ok(())
    }

    /// Number of a file opened for mapping.
    pub fn file(&self, path: &PathRef, flags: u32) -> RawFd {
        self.files.get(&(path.mnt, path.path.0.clone(), flags)).map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Number of an executable for `PR_SET_MM_MAP`; -1, which leaves it as it is, where it is our own: a skeleton has it
    /// already, and the kernel does not change an executable that is mapped.
    pub fn exe(&self, path: &PathRef) -> RawFd {
        let fd = self.file(path, libc::O_RDONLY as u32);
        let own = nix::sys::stat::stat("/proc/self/exe").map(|s| (s.st_dev, s.st_ino));
        let file = self.files.get(&(path.mnt, path.path.0.clone(), libc::O_RDONLY as u32));
        let wanted = file.and_then(|f| nix::sys::stat::fstat(f).ok()).map(|s| (s.st_dev, s.st_ino));
        if own.ok() == wanted { -1 } else { fd }
    }

    /// Number of a shared memory object, for a mapping of it.
    pub fn shmem(&self, id: ShmemId, vma: &Vma) -> RawFd {
        let reader = self.readers.get(&id).filter(|_| vma.shared && !vma.may_write);
        reader.unwrap_or(&self.shmems[id.at()]).as_raw_fd()
    }

    /// A shared memory object.
    pub fn shmem_file(&self, id: ShmemId) -> &OwnedFd {
        &self.shmems[id.at()]
    }

    /// Number of a deleted file, if it has been made.
    pub fn ghost(&self, id: crate::image::GhostId) -> RawFd {
        self.ghosts.get(id.at()).and_then(Option::as_ref).map_or(-1, AsRawFd::as_raw_fd)
    }

    /// A deleted file.
    pub fn ghost_file(&self, id: crate::image::GhostId) -> Option<&OwnedFd> {
        self.ghosts.get(id.at()).and_then(Option::as_ref)
    }

    /// The shared memory objects as a place for pages.
    pub fn shared_pages(&self) -> Result<TargetPages> {
        let dup = |fd: &OwnedFd| fd.try_clone();
        let shmems: std::io::Result<Vec<OwnedFd>> = self.shmems.iter().map(dup).collect();
        let shmems = shmems.map_err(|e| Error::System {
            operation: "dup",
            object: "shared memory".to_owned(),
            errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })?;
        Ok(TargetPages::new(Vec::new(), shmems))
    }
}

/// Is this a shared mapping made through a descriptor that could only read? What is sealed against writing cannot be written
/// through any.
fn only_reads(model: &Model, id: ShmemId, vma: &Vma) -> bool {
    let sealed =
        matches!(model.shmems[id.at()].kind, ShmemKind::Memfd { seals, .. } if seals & fd::shmem::SEAL_WRITE != 0);
    vma.shared && !vma.may_write && !sealed
}

fn make_shmem(shmem: &Shmem) -> Result<OwnedFd> {
    let failed = |operation: &'static str| {
        move |errno: Errno| Error::System { operation, object: format!("shared memory of {} bytes", shmem.size), errno }
    };
    match &shmem.kind {
        ShmemKind::Memfd { name, huge_page, .. } => {
            let fd = memory::memfd(&name.0, *huge_page).map_err(failed("memfd_create"))?;
            nix::unistd::ftruncate(fd.as_fd(), shmem.size as i64).map_err(failed("ftruncate"))?;
            let mode = nix::sys::stat::Mode::from_bits_truncate(shmem.mode & 0o7777);
            nix::sys::stat::fchmod(fd.as_fd(), mode).map_err(failed("fchmod"))?;
            if (shmem.uid, shmem.gid) != (0, 0) {
                let (uid, gid) = (nix::unistd::Uid::from_raw(shmem.uid), nix::unistd::Gid::from_raw(shmem.gid));
                nix::unistd::fchown(&fd, Some(uid), Some(gid)).map_err(failed("fchown"))?;
            }
            Ok(fd)
        }
        ShmemKind::Anon => memory::shared_anonymous(shmem.size, 0).map_err(failed("mmap")),
        ShmemKind::HugeAnon { page_size } => {
            memory::shared_anonymous(shmem.size, *page_size).map_err(failed("mmap of huge pages"))
        }
        ShmemKind::SysV { .. } => {
            Err(Error::Impossible { object: "System V shared memory".to_owned(), reason: "it was not made".to_owned() })
        }
    }
}
