//! Read by the engine on a descriptor of its own: memfds and other shared memory with a descriptor.

use super::State;
use super::classify::magic;
use super::views::DELETED;
use crate::collect::{Cx, Result, mm};
use crate::image::fd::FileKind;
use crate::image::fd::regular::ShmemFile;
use crate::image::mm::ShmemKind;
use crate::image::{Bytes, FileId};
use crate::sys::openat2::reopen;
use std::os::fd::OwnedFd;

/// The shared memory object, which mappings may refer to as well.
pub fn collect(cx: &mut Cx<'_>, state: &mut State, id: FileId, fd: &OwnedFd) -> Result<Option<FileKind>> {
    let d = &state.set[id];
    if let Some(shmem) = cx.shmem_by_inode.get(&d.inode()) {
        return Ok(Some(FileKind::Shmem(ShmemFile { shmem: *shmem })));
    }
    let huge = state.set.magic_of(d.stat.st_dev) == magic::HUGETLB;
    let kind = kind(&d.link.0, if huge { d.stat.st_blksize as u64 } else { 0 });
    let source = reopen(fd, libc::O_RDONLY as u32).map_err(d.failed("open (memfd)"))?;
    let shmem = mm::add_shmem(cx, source, d.inode(), kind)?;
    Ok(Some(FileKind::Shmem(ShmemFile { shmem })))
}

fn kind(link: &[u8], huge_page: u64) -> ShmemKind {
    let name = link.strip_suffix(DELETED).unwrap_or(link);
    match name.strip_prefix(b"/memfd:") {
        Some(name) => ShmemKind::Memfd { name: Bytes(name.to_vec()), seals: 0, huge_page },
        // Reached through /proc/PID/map_files: the object is one of a mapping, and known by now if the mapping still exists.
        None => ShmemKind::Anon,
    }
}
