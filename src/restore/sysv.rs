//! Made by the engine, attached by the tasks: System V shared memory with its ids and keys.
//!
//! In the host's IPC namespace where ids and keys are free, or belong to the very segment, with nobody attached any more (a
//! dump leaves it behind). Otherwise, a copy beside an original that runs for one, the tree gets an IPC namespace of its own.

use super::material::Material;
use super::skeleton::Skeletons;
use super::{Error, Result};
use crate::image::mm::{Backing, PAGE, Shmem, ShmemKind, Vma};
use crate::image::{Model, ShmemId, TaskId};
use crate::sys::{Errno, sysv};
use crate::trace::Batch;
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// The kernel takes the number in it for the next id (`ipc(7)`, Linux 3.8).
const NEXT_ID: &str = "/proc/sys/kernel/shm_next_id";

/// Another restore may take the number that was meant for us, and who has ended a moment ago may still be attached.
const TRIES: u32 = 3;
/// Time between two of them.
const BETWEEN: Duration = Duration::from_millis(15);

/// The segments of a tree. Dropped, those that were made are removed unless they were kept.
#[derive(Debug, Default)]
pub struct Segments {
    /// With the length of the whole mapping, bytes.
    ids: HashMap<ShmemId, (i32, u64)>,
    namespace: Option<OwnedFd>,
    /// Made in the host's namespace.
    made: Vec<i32>,
}

/// Why a segment was not made.
enum Refused {
    /// Its id or key is somebody else's here.
    Taken,
    Failed(Error),
}

impl Drop for Segments {
    fn drop(&mut self) {
        for id in self.made.drain(..) {
            if let Err(errno) = sysv::remove(id) {
                tracing::warn!("System V segment {id} was left behind: {errno}");
            }
        }
    }
}

impl Segments {
    /// Makes or finds all segments of the model; a descriptor for the contents of each.
    pub fn make(model: &Model, warnings: &mut Vec<String>) -> Result<(Self, HashMap<ShmemId, OwnedFd>)> {
        let of = |n| (ShmemId::from(n), &model.shmems[n]);
        let is_segment = |(_, shmem): &(ShmemId, &Shmem)| matches!(shmem.kind, ShmemKind::SysV { .. });
        let wanted: Vec<_> = (0..model.shmems.len()).map(of).filter(is_segment).collect();
        if wanted.is_empty() {
            return Ok(Default::default());
        }
        for _ in 0..TRIES {
            match all(&wanted, false) {
                Err(Refused::Taken) => std::thread::sleep(BETWEEN),
                Err(Refused::Failed(error)) => return Err(error),
                Ok(made) => return Ok(made),
            }
        }
        warnings.push(
            "an id or key of its System V shared memory is in use here: the tree gets an IPC namespace of its own"
                .to_owned(),
        );
        all(&wanted, true).map_err(|refused| match refused {
            Refused::Failed(error) => error,
            Refused::Taken => Error::Impossible {
                object: "System V shared memory".to_owned(),
                reason: "two segments of the image have one id or key".to_owned(),
            },
        })
    }

    /// Id of a System V segment, and the length of a mapping of all of it.
    pub fn get(&self, shmem: ShmemId) -> Option<(i32, u64)> {
        self.ids.get(&shmem).copied()
    }

    /// The objects have other numbers in a later model.
    pub fn rename(&mut self, renamed: impl Fn(ShmemId) -> Option<ShmemId>) {
        let ids = std::mem::take(&mut self.ids);
        self.ids = ids.into_iter().filter_map(|(shmem, id)| Some((renamed(shmem)?, id))).collect();
    }

    /// The tree runs: what was made is its own.
    pub fn keep(&mut self) {
        self.made.clear();
    }
}

/// All of them in one namespace, by a thread that may change its own.
fn all(wanted: &[(ShmemId, &Shmem)], own: bool) -> std::result::Result<(Segments, HashMap<ShmemId, OwnedFd>), Refused> {
    let made = sysv::in_thread(|| {
        let mut segments = Segments::default();
        let mut files = HashMap::new();
        if own {
            segments.namespace = Some(sysv::new_namespace().map_err(|e| system("unshare(CLONE_NEWIPC)", None, e))?);
        }
        for (shmem, segment) in wanted {
            let id = one(segment, (!own).then_some(&mut segments.made))?;
            let file = sysv::open(id, segment.size).map_err(|e| system("open", Some(id), e))?;
            segments.ids.insert(*shmem, (id, length(segment)));
            files.insert(*shmem, file);
        }
        Ok((segments, files))
    });
    made.unwrap_or_else(|| {
        let (object, reason) = ("System V shared memory".to_owned(), "its thread has died".to_owned());
        Err(Refused::Failed(Error::Impossible { object, reason }))
    })
}

fn system(operation: &'static str, id: Option<i32>, errno: Errno) -> Refused {
    let object = id.map_or_else(|| "System V shared memory".to_owned(), |id| format!("System V segment {id}"));
    Refused::Failed(Error::System { operation, object, errno })
}

/// One segment, emptied if it was there. `made` is told of a new one in the host's namespace.
fn one(shmem: &Shmem, made: Option<&mut Vec<i32>>) -> std::result::Result<i32, Refused> {
    let ShmemKind::SysV { id, key, destroyed, creator, huge_page, .. } = shmem.kind else {
        return Err(Refused::Taken);
    };
    match sysv::stat(id) {
        Ok(there) => {
            let expected = if destroyed { libc::IPC_PRIVATE } else { key };
            let same = (there.key, there.size, there.cuid, there.cgid) == (expected, shmem.size, creator.0, creator.1);
            if !same || destroyed || there.attached != 0 {
                return Err(Refused::Taken);
            }
            let file = sysv::open(id, shmem.size).map_err(|e| system("open", Some(id), e))?;
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&file, hole, 0, length(shmem) as i64).map_err(|e| system("fallocate", Some(id), e))?;
        }
        Err(_) => {
            let new = create(shmem, id, key, creator, huge_page)?;
            if let Some(made) = made {
                made.push(new);
            }
            // Another place in the kernel's table: the one of this id is taken.
            if new != id {
                return Err(Refused::Taken);
            }
        }
    }
    sysv::set_owner(id, shmem.uid, shmem.gid, shmem.mode).map_err(|e| system("shmctl IPC_SET", Some(id), e))?;
    Ok(id)
}

/// Whole pages.
fn length(shmem: &Shmem) -> u64 {
    let page = if let ShmemKind::SysV { huge_page, .. } = shmem.kind { huge_page.max(PAGE) } else { PAGE };
    shmem.size.next_multiple_of(page)
}

fn create(shmem: &Shmem, id: i32, key: i32, creator: (u32, u32), huge_page: u64) -> std::result::Result<i32, Refused> {
    let mut flags = (shmem.mode & 0o777) as i32;
    if huge_page != 0 {
        flags |= libc::SHM_HUGETLB | (huge_page.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT;
    }
    // Without it, or without the right to it, the id shows whether it was luck.
    if let Err(error) = std::fs::write(NEXT_ID, id.to_string()) {
        tracing::debug!("{NEXT_ID}: {error}");
    }
    let made = match (huge_page, creator) {
        // Taking huge pages is a matter of rights.
        (1.., _) | (_, (0, 0)) => sysv::create(key, shmem.size, flags),
        (0, (uid, gid)) => {
            let created = sysv::as_user(uid, gid, || sysv::create(key, shmem.size, flags));
            created.map_err(|e| system("setresuid", Some(id), e))?
        }
    };
    match made {
        Ok(new) => Ok(new),
        Err(Errno::EEXIST) => Err(Refused::Taken),
        Err(errno) => Err(system("shmget", Some(id), errno)),
    }
}

/// Lets a task enter the tree's IPC namespace, if it has one of its own. Attached memory comes after.
pub fn enter(task: TaskId, skeletons: &mut Skeletons, material: &Material) -> Result<()> {
    let Some(namespace) = &material.segments.namespace else { return Ok(()) };
    let (remote, scratch) = skeletons.leader(task);
    let mut batch = Batch::new();
    batch.must(libc::SYS_setns, &[namespace.as_raw_fd().into(), libc::CLONE_NEWIPC.into()]);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// Attaches the segments that these mappings show. A mapping can be a piece of what was attached: the rest is unmapped
/// again, so this comes before mappings that may lie there.
pub(super) fn attach<'v>(batch: &mut Batch, vmas: impl Iterator<Item = &'v Vma>, material: &Material) {
    let mut groups: BTreeMap<(u64, i32), Vec<&Vma>> = BTreeMap::new();
    let mut lengths = HashMap::new();
    for vma in vmas {
        let Backing::Shmem(shmem) = vma.backing else { continue };
        let Some((id, length)) = material.segments.get(shmem) else { continue };
        groups.entry((vma.start.wrapping_sub(vma.offset), id)).or_default().push(vma);
        lengths.insert(id, length);
    }
    for ((base, id), pieces) in groups {
        let writable = pieces.iter().any(|vma| vma.may_write);
        let executable = pieces.iter().any(|vma| vma.prot & libc::PROT_EXEC as u32 != 0);
        let flags = if writable { 0 } else { sysv::SHM_RDONLY } | if executable { sysv::SHM_EXEC } else { 0 };
        batch.must(libc::SYS_shmat, &[id.into(), base.into(), flags.into()]);
        let given = libc::PROT_READ
            | if writable { libc::PROT_WRITE } else { 0 }
            | if executable { libc::PROT_EXEC } else { 0 };
        let end = base.saturating_add(lengths[&id]);
        let mut at = base;
        for vma in pieces {
            if at < vma.start {
                batch.munmap(at, vma.start - at);
            }
            if vma.prot != given as u32 {
                batch.mprotect(vma.start, vma.len(), vma.prot);
            }
            at = vma.end;
        }
        if at < end {
            batch.munmap(at, end - at);
        }
    }
}

/// Once everybody has attached: segments that were to be removed are so again, and those that were locked.
pub fn settle(model: &Model, skeletons: &mut Skeletons, material: &Material) -> Result<()> {
    let mut batch = Batch::new();
    for (n, shmem) in model.shmems.iter().enumerate() {
        let ShmemKind::SysV { destroyed, locked, .. } = shmem.kind else { continue };
        let Some((id, _)) = material.segments.get(ShmemId::from(n)) else { continue };
        if locked {
            batch.may(libc::SYS_shmctl, &[id.into(), sysv::SHM_LOCK.into(), 0u64.into()]);
        }
        if destroyed {
            batch.must(libc::SYS_shmctl, &[id.into(), libc::IPC_RMID.into(), 0u64.into()]);
        }
    }
    if !batch.is_empty() {
        let (remote, scratch) = skeletons.leader(TaskId(0));
        remote.run_all(&scratch, &batch)?;
    }
    Ok(())
}
