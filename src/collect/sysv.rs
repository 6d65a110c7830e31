//! System V shared memory that tasks have attached. Asked of the kernel inside a task, whose IPC namespace counts; contents
//! are read through its mapping.

use super::{Cx, Error, Result, ShmemSource};
use crate::blocker::{Blocker, codes};
use crate::image::mm::{Backing, Shmem, ShmemKind};
use crate::image::{Model, ShmemId};
use crate::proc::smaps::{Flagged, VmFlags};
use crate::sys::sysv::{self, SHM_DEST, SHM_LOCKED, SHM_STAT_ANY, SHMID_DS_LEN, Segment};
use crate::trace::Batch;
use std::collections::HashMap;

/// Segments met, by IPC namespace and id: beside it their inode number means nothing, as all shared memory of the kernel's
/// own counts in one file system.
#[derive(Debug, Default)]
pub struct Segments {
    known: HashMap<(u64, i32), ShmemId>,
    /// How many mappings the kernel counts.
    attached: Vec<(ShmemId, i32, u64)>,
}

/// The key in the name of such a mapping: `/SYSV00012345 (deleted)`.
pub fn key_of(name: &[u8]) -> Option<i32> {
    let key = name.strip_suffix(b" (deleted)")?.strip_prefix(b"/SYSV")?;
    Some(u32::from_str_radix(std::str::from_utf8(key).ok()?, 16).ok()?.cast_signed())
}

/// The segment behind a mapping; `None` where a blocker has been noted.
pub fn segment(cx: &mut Cx<'_>, at: usize, flagged: &Flagged, key: i32) -> Result<Option<ShmemId>> {
    let mapping = &flagged.mapping;
    let id = mapping.inode as i32;
    let namespace = cx.frozen.processes[at].dir.ns("ipc")?;
    if let Some(known) = cx.segments.known.get(&(namespace, id)) {
        return Ok(Some(*known));
    }
    let process = &mut cx.frozen.processes[at];
    let object = format!("pid {} System V segment {id}", process.pid);
    let Some(scratch) = process.scratch else { return Ok(None) };
    let mut batch = Batch::new();
    let out = batch.out(SHMID_DS_LEN);
    let call = batch.may(libc::SYS_shmctl, &[id.into(), SHM_STAT_ANY.into(), out.into()]);
    let results = process.leader().run(&scratch, &batch)?;
    let raw: [u8; SHMID_DS_LEN] = results.bytes(out).try_into().expect("as long as was asked for");
    match results.get(call) {
        Ok(found) if found == id as u64 => {}
        answer => {
            let errno = answer.err().unwrap_or(crate::sys::Errno::EIDRM);
            tracing::debug!("{object}: {errno}");
            let reason = "it was attached in another IPC namespace than the process has now";
            cx.blockers.push(Blocker::new(codes::SYSV_OUTSIDE, object).because(reason));
            return Ok(None);
        }
    }
    let found = Segment::of_bytes(&raw);
    let link = mapping.map_file();
    let file = process.dir.open_file(&link, nix::fcntl::OFlag::O_RDONLY)?;
    let stat = nix::sys::stat::fstat(&file).map_err(|errno| Error::System { operation: "stat", object, errno })?;
    let shmem = ShmemId::from(cx.model.shmems.len());
    cx.model.shmems.push(Shmem {
        size: found.size,
        kind: ShmemKind::SysV {
            id,
            key,
            destroyed: found.mode & SHM_DEST != 0,
            locked: found.mode & SHM_LOCKED != 0,
            creator: (found.cuid, found.cgid),
            huge_page: if flagged.flags.contains(VmFlags::HUGETLB) { stat.st_blksize as u64 } else { 0 },
        },
        mode: found.mode & 0o777,
        uid: found.uid,
        gid: found.gid,
    });
    cx.sources.shmems.push(ShmemSource::File(file));
    cx.segments.known.insert((namespace, id), shmem);
    cx.segments.attached.push((shmem, id, found.attached));
    Ok(Some(shmem))
}

/// Names segments with more mappings than the tree has: somebody outside has attached them, too. The preflight names the
/// processes; this is for those that came since, or could not be looked at.
pub fn refuse_shared(cx: &mut Cx<'_>) {
    for (shmem, id, attached) in &cx.segments.attached {
        let vmas = cx.model.mms.iter().flat_map(|mm| &mm.vmas);
        let ours = vmas.filter(|vma| vma.backing == Backing::Shmem(*shmem)).count() as u64;
        if *attached > ours {
            let reason = format!("it has {attached} mappings, of which {ours} belong to the target");
            cx.blockers.push(Blocker::new(codes::SYSV_OUTSIDE, format!("System V segment {id}")).because(reason));
        }
    }
}

/// Ids of the System V segments of a model.
pub fn ids(model: &Model) -> Vec<i32> {
    let id = |shmem: &Shmem| if let ShmemKind::SysV { id, .. } = shmem.kind { Some(id) } else { None };
    model.shmems.iter().filter_map(id).collect()
}

/// Removes what a target that is gone has left: nobody else had these segments, or the preflight would have said so.
pub fn remove_left(ids: &[i32]) {
    for id in ids.iter().copied().filter(|id| sysv::stat(*id).is_ok_and(|segment| segment.attached == 0)) {
        if let Err(errno) = sysv::remove(id) {
            tracing::warn!("System V segment {id} was left behind: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_names() {
        assert_eq!(key_of(b"/SYSV00000000 (deleted)"), Some(0));
        assert_eq!(key_of(b"/SYSVfffffff0 (deleted)"), Some(-16));
        assert_eq!(key_of(b"/SYSV0001 "), None);
        assert_eq!(key_of(b"/SYSVx (deleted)"), None);
        assert_eq!(key_of(b"/memfd:SYSV1 (deleted)"), None);
    }
}
