//! What skeletons inherit because we open it before the first of them is made: executables, mapped files, shared memory.
//! A skeleton is a copy of us, so a number here is the same descriptor there.

use super::{Error, Options, Result, fd, ns, sysv::Segments};
use crate::image::fd::PathRef;
use crate::image::mm::{Backing, Shmem, ShmemKind, Vma};
use crate::image::{Model, NsId, Pid, ShmemId};
use crate::memory::RangeSet;
use crate::sys::openat2::reopen;
use crate::sys::{Errno, memory};
use crate::trace::pages::TargetPages;
use crate::trace::{Batch, Ref};
use nix::fcntl::{FallocateFlags, fallocate};
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
    /// This program, as skeletons reach it: what was opened after them they fetch from here.
    ourselves: OwnedFd,
    /// What that is.
    late: Vec<RawFd>,
}

/// Opens everything that mappings need.
pub fn prepare(model: &Model, options: &Options, warnings: &mut Vec<String>) -> Result<Material> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (hub, hub_inside) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Error::System { operation: "socketpair", object: "the hub".to_owned(), errno })?;
    let made = Arc::new(ns::make(model, options, warnings)?);
    let (segments, mut segment_files) = Segments::make(model, warnings)?;
    let (files, shmems, ghosts, readers) = (HashMap::new(), Vec::new(), Vec::new(), HashMap::new());
    let ourselves = crate::sys::fd::pidfd_open(Pid(std::process::id().cast_signed()))
        .map_err(|errno| Error::System { operation: "pidfd_open", object: "this program".to_owned(), errno })?;
    let late = Vec::new();
    let mut material = Material { files, shmems, readers, ghosts, segments, hub, hub_inside, made, ourselves, late };
    for (n, shmem) in model.shmems.iter().enumerate() {
        let file = match segment_files.remove(&ShmemId::from(n)) {
            Some(file) => file,
            None => make_shmem(shmem)?,
        };
        material.shmems.push(file);
    }
    material.ghosts = fd::regular::make_ghosts(model, &material.made)?;
    material.open_all(model, options)?;
    material.late.clear();
    Ok(material)
}

impl Material {
    /// Files and other ends of shared memory that mappings need and that are not open yet.
    fn open_all(&mut self, model: &Model, options: &Options) -> Result<()> {
        for mm in &model.mms {
            self.open(&mm.exe, libc::O_RDONLY as u32, options)?;
            for vma in &mm.vmas {
                match &vma.backing {
                    Backing::File { path, flags } => self.open(path, *flags, options)?,
                    Backing::Shmem(id) if only_reads(model, *id, vma) && !self.readers.contains_key(id) => {
                        let reader = reopen(&self.shmems[id.at()], libc::O_RDONLY as u32).map_err(|errno| {
                            Error::System { operation: "open", object: "shared memory".to_owned(), errno }
                        })?;
                        self.late.push(reader.as_raw_fd());
                        self.readers.insert(*id, reader);
                    }
                    Backing::Device(path) => {
                        let flags = if vma.shared && vma.may_write { libc::O_RDWR } else { libc::O_RDONLY };
                        self.open(path, flags as u32, options)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, path: &PathRef, flags: u32, options: &Options) -> Result<()> {
        let key = (path.mnt, path.path.0.clone(), flags);
        if self.files.contains_key(&key) {
            return Ok(());
        }
        let file = fd::regular::open_checked(path, flags, options, &self.made)?;
        self.late.push(file.as_raw_fd());
        self.files.insert(key, file);
        Ok(())
    }

    /// For a later model of the same tree: what is as it was stays open, under its number. `same` has for each shared memory
    /// object of the new model the old one that it is.
    ///
    /// # Errors
    /// A file that mappings need now is missing or differs.
    pub fn renew(&mut self, old: &Model, new: &Model, same: &[Option<ShmemId>], options: &Options) -> Result<()> {
        let before = paths(old);
        let stays = |path: &PathRef, flags: u32| before.get(&(path.mnt, &path.path.0[..], flags)) == Some(&path);
        let changed: Vec<_> = paths(new).into_iter().filter(|((.., flags), path)| !stays(path, *flags)).collect();
        for ((mnt, path, flags), _) in changed {
            self.files.remove(&(mnt, path.to_vec(), flags));
        }
        let renamed = |id: ShmemId| same.iter().position(|was| *was == Some(id)).map(ShmemId::from);
        self.segments.rename(renamed);
        let readers = std::mem::take(&mut self.readers);
        self.readers = readers.into_iter().filter_map(|(id, file)| Some((renamed(id)?, file))).collect();
        let mut objects: Vec<Option<OwnedFd>> = std::mem::take(&mut self.shmems).into_iter().map(Some).collect();
        for (shmem, was) in new.shmems.iter().zip(same) {
            let there = was.and_then(|was| Some((&old.shmems[was.at()], objects.get_mut(was.at())?.take()?)));
            let file = match there {
                Some((was, file)) => {
                    adjust(was, shmem, &file)?;
                    file
                }
                None => {
                    let file = make_shmem(shmem)?;
                    self.late.push(file.as_raw_fd());
                    file
                }
            };
            self.shmems.push(file);
        }
        if old.ghosts != new.ghosts {
            self.ghosts = fd::regular::make_ghosts(new, &self.made)?;
            self.late.extend(self.ghosts.iter().flatten().map(AsRawFd::as_raw_fd));
        }
        self.open_all(new, options)
    }

    /// Lets a skeleton fetch what was opened after it was made, under the same numbers.
    pub fn bring(&self, batch: &mut Batch) {
        for fd in &self.late {
            let fetched = self.fetch(batch, *fd);
            batch.must(libc::SYS_dup2, &[fetched.into(), (*fd).into()]);
        }
    }

    /// Lets a skeleton fetch a descriptor of ours, under a number of its own.
    pub fn fetch(&self, batch: &mut Batch, fd: RawFd) -> Ref {
        batch.must(libc::SYS_pidfd_getfd, &[self.ourselves.as_raw_fd().into(), fd.into(), 0u64.into()])
    }

    /// Makes holes in a shared memory object.
    ///
    /// # Errors
    /// What fallocate(2) fails with.
    pub fn punch(&self, id: ShmemId, pages: &RangeSet) -> Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for range in pages.iter() {
            fallocate(&self.shmems[id.at()], flags, range.start_byte() as i64, range.bytes() as i64)
                .map_err(|errno| Error::System { operation: "fallocate", object: "shared memory".to_owned(), errno })?;
        }
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

/// Files that mappings need, by what they are found under.
fn paths(model: &Model) -> HashMap<(NsId, &[u8], u32), &PathRef> {
    let mut all = HashMap::new();
    for mm in &model.mms {
        all.insert((mm.exe.mnt, &mm.exe.path.0[..], libc::O_RDONLY as u32), &mm.exe);
        for vma in &mm.vmas {
            if let Backing::File { path, flags } = &vma.backing {
                all.insert((path.mnt, &path.path.0[..], *flags), path);
            }
        }
    }
    all
}

/// Length, mode and owner of a memory object as they are now.
fn adjust(was: &Shmem, now: &Shmem, file: &OwnedFd) -> Result<()> {
    if !matches!(now.kind, ShmemKind::SysV { .. }) && was.size != now.size {
        let failed = |errno| Error::System { operation: "ftruncate", object: "shared memory".to_owned(), errno };
        nix::unistd::ftruncate(file.as_fd(), now.size as i64).map_err(failed)?;
    }
    if matches!(now.kind, ShmemKind::Memfd { .. }) && (was.mode, was.uid, was.gid) != (now.mode, now.uid, now.gid) {
        own(now, file)?;
    }
    Ok(())
}

/// Mode and owner.
fn own(shmem: &Shmem, fd: &OwnedFd) -> Result<()> {
    let failed = |operation: &'static str| {
        move |errno: Errno| Error::System { operation, object: "shared memory".to_owned(), errno }
    };
    let mode = nix::sys::stat::Mode::from_bits_truncate(shmem.mode & 0o7777);
    nix::sys::stat::fchmod(fd.as_fd(), mode).map_err(failed("fchmod"))?;
    let (uid, gid) = (nix::unistd::Uid::from_raw(shmem.uid), nix::unistd::Gid::from_raw(shmem.gid));
    nix::unistd::fchown(fd, Some(uid), Some(gid)).map_err(failed("fchown"))
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
            own(shmem, &fd)?;
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
