//! Address spaces: mappings before their contents, attributes after them.

use super::{Result, material::Material, numa, skeleton::Skeletons, sysv};
use crate::arch::vdso::ARCH_MAP_VDSO_64;
use crate::image::mm::{Backing, Mm, OldVdso, PAGE, VdsoBlock, Vma};
use crate::image::{Model, Pid, TaskId};
use crate::sys::abi::PrctlMmMap;
use crate::trace::batch::Arg;
use crate::trace::{Batch, memory};

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;
const MAP_DROPPABLE: i32 = 0x08;

/// The address space of a task, if the task is the first in the model that has it (others share it by `CLONE_VM`).
fn own_mm(model: &Model, task: TaskId) -> Option<&Mm> {
    let mm = model.tasks[task.at()].mm?;
    let first = model.tasks.iter().position(|t| t.mm == Some(mm));
    (first == Some(task.at())).then(|| &model.mms[mm.at()])
}

/// Maps everything, writable where contents have to come in.
pub fn lay_out(model: &Model, task: TaskId, skeletons: &mut Skeletons, material: &Material) -> Result<()> {
    let Some(mm) = own_mm(model, task) else { return Ok(()) };
    let (remote, scratch) = skeletons.leader(task);
    let mut batch = Batch::new();
    if let Some(block) = mm.vdso {
        map_vdso(&mut batch, block);
    }
    sysv::attach(&mut batch, mm.vmas.iter(), material);
    for vma in &mm.vmas {
        map(&mut batch, vma, material);
    }
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// Maps the kernel's block; none may be mapped yet.
pub(super) fn map_vdso(batch: &mut Batch, block: VdsoBlock) {
    batch.must(libc::SYS_arch_prctl, &[ARCH_MAP_VDSO_64.into(), block.start.into()]);
}

/// The protection a mapping has while it is filled.
pub(super) fn first_prot(vma: &Vma) -> u32 {
    vma.prot | extra_prot(vma)
}

/// Maps one mapping, or a piece of one.
pub(super) fn map(batch: &mut Batch, vma: &Vma, material: &Material) {
    map_bare(batch, vma, material);
    if let Some(policy) = &vma.numa {
        numa::bind(batch, (vma.start, vma.len()), Some(policy));
    }
}

fn map_bare(batch: &mut Batch, vma: &Vma, material: &Material) {
    let (flags, fd) = match &vma.backing {
        Backing::Vdso | Backing::Vvar => return,
        Backing::Anon => (libc::MAP_ANONYMOUS, -1),
        Backing::Droppable => {
            let flags = MAP_DROPPABLE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            batch.mmap(vma.start, vma.len(), vma.prot, flags, -1, 0);
            return;
        }
        Backing::HugeAnon { page_size } => {
            let size = (page_size.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT;
            (libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | size, -1)
        }
        // Attached before.
        Backing::Shmem(id) if material.segments.get(*id).is_some() => return,
        Backing::Shmem(id) => (0, material.shmem(*id, vma)),
        Backing::File { path, flags } => (0, material.file(path, *flags)),
        Backing::Ghost(id) => (0, material.ghost(*id)),
        Backing::Device(path) => {
            let flags = if vma.shared && vma.may_write { libc::O_RDWR } else { libc::O_RDONLY };
            (0, material.file(path, flags as u32))
        }
        // Mapped once the descriptor is there.
        Backing::Descriptor(_) => return,
    };
    let mut flags = flags | libc::MAP_FIXED_NOREPLACE;
    flags |= if vma.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    if vma.grows_down {
        // Without MAP_STACK, which asks for no huge pages (Linux 6.7): execve does not use it either.
        flags |= libc::MAP_GROWSDOWN;
    }
    if vma.no_reserve {
        flags |= libc::MAP_NORESERVE;
    }
    batch.mmap(vma.start, vma.len(), vma.prot | extra_prot(vma), flags, fd, vma.offset);
    if vma.advice.huge {
        batch.may(libc::SYS_madvise, &[vma.start.into(), vma.len().into(), libc::MADV_HUGEPAGE.into()]);
    }
    if vma.guarded {
        // The mark outlives the guard; what it would cover is not filled yet.
        for advice in [MADV_GUARD_INSTALL, MADV_GUARD_REMOVE] {
            batch.may(libc::SYS_madvise, &[vma.start.into(), PAGE.into(), advice.into()]);
        }
    }
}

/// A private mapping that was writable once counts against the commit limit for ever: it is made writable first, too, and
/// can be filled faster for it.
fn extra_prot(vma: &Vma) -> u32 {
    let was_writable = !vma.shared && vma.accounted && !vma.no_reserve;
    if was_writable && vma.prot & libc::PROT_WRITE as u32 == 0 { libc::PROT_WRITE as u32 } else { 0 }
}

/// After the contents: final protection, advice, locks, names, and what `PR_SET_MM_MAP` says. `as_child`: what a child of fork(2)
/// finds empty is emptied.
pub fn finish(
    model: &Model,
    task: TaskId,
    skeletons: &mut Skeletons,
    material: &Material,
    as_child: bool,
) -> Result<()> {
    let Some(mm) = own_mm(model, task) else { return Ok(()) };
    let (remote, scratch) = skeletons.leader(task);
    for old in &mm.old_vdsos {
        redirect(remote.pid(), old)?;
    }
    let mut batch = Batch::new();
    protection_keys(&mut batch, mm.pkeys);
    for vma in &mm.vmas {
        // Only private anonymous memory can have that advice (madvise(2), "MADV_WIPEONFORK").
        if as_child && vma.advice.wipe_on_fork {
            batch.madvise(vma.start, vma.len(), libc::MADV_DONTNEED);
        }
        attributes(&mut batch, vma);
    }
    set_layout(&mut batch, mm, material);
    registrations(&mut batch, mm);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}

/// Another kernel's text, where it is not there yet: it may be shared with relatives.
fn redirect(pid: Pid, old: &OldVdso) -> Result<()> {
    let mut there = vec![0; old.text.0.len()];
    memory::read(pid, old.start, &mut there)?;
    if there != old.text.0 {
        memory::force_write(pid, old.start, &old.text.0)?;
    }
    Ok(())
}

/// Allocates protection keys: the kernel gives the lowest free one, so those between are given back.
fn protection_keys(batch: &mut Batch, keys: u32) {
    let last = 31 - (keys | 1).leading_zeros();
    for _ in 1..=last {
        batch.must(libc::SYS_pkey_alloc, &[0u64.into(), 0u64.into()]);
    }
    for key in (1..last).filter(|key| keys & 1 << key == 0) {
        batch.must(libc::SYS_pkey_free, &[key.into()]);
    }
}

fn attributes(batch: &mut Batch, vma: &Vma) {
    if matches!(vma.backing, Backing::Vdso | Backing::Vvar) {
        return;
    }
    if extra_prot(vma) != 0 {
        batch.mprotect(vma.start, vma.len(), vma.prot);
    }
    let advice = vma.advice;
    let wanted = [
        (advice.no_huge, libc::MADV_NOHUGEPAGE),
        (advice.mergeable, libc::MADV_MERGEABLE),
        (advice.sequential, libc::MADV_SEQUENTIAL),
        (advice.random, libc::MADV_RANDOM),
        (advice.dont_fork, libc::MADV_DONTFORK),
        (advice.wipe_on_fork && vma.backing != Backing::Droppable, libc::MADV_WIPEONFORK),
        (advice.dont_dump && vma.backing != Backing::Droppable, libc::MADV_DONTDUMP),
    ];
    for (_, advice) in wanted.into_iter().filter(|(on, _)| *on) {
        batch.madvise(vma.start, vma.len(), advice);
    }
    for (start, end) in &vma.guards {
        batch.madvise(*start, end - start, MADV_GUARD_INSTALL);
    }
    if let Some(name) = &vma.anon_name {
        const PR_SET_VMA: i32 = 0x5356_4d41;
        let name = batch.c_string(&name.0);
        let args: [Arg; 5] = [PR_SET_VMA.into(), 0u64.into(), vma.start.into(), vma.len().into(), name];
        batch.may(libc::SYS_prctl, &args);
    }
    if let Some(on_fault) = vma.locked {
        const MLOCK_ONFAULT: u32 = 1;
        batch.must(
            libc::SYS_mlock2,
            &[vma.start.into(), vma.len().into(), (if on_fault { MLOCK_ONFAULT } else { 0 }).into()],
        );
    }
    // What can only be executed has a key that the kernel chooses (mprotect(2), "PROT_EXEC").
    if vma.pkey != 0 && vma.prot != libc::PROT_EXEC as u32 {
        batch.must(libc::SYS_pkey_mprotect, &[vma.start.into(), vma.len().into(), vma.prot.into(), vma.pkey.into()]);
    }
}

fn set_layout(batch: &mut Batch, mm: &Mm, material: &Material) {
    const PR_SET_MM_MAP: u64 = 14;
    let layout = &mm.layout;
    let auxv = batch.bytes(&mm.auxv.0);
    let map = PrctlMmMap {
        start_code: layout.start_code,
        end_code: layout.end_code,
        start_data: layout.start_data,
        end_data: layout.end_data,
        start_brk: layout.start_brk,
        brk: layout.brk,
        start_stack: layout.start_stack,
        arg_start: layout.arg_start,
        arg_end: layout.arg_end,
        env_start: layout.env_start,
        env_end: layout.env_end,
        auxv: 0,
        auxv_size: mm.auxv.0.len() as u32,
        exe_fd: material.exe(&mm.exe) as u32,
    };
    let map = batch.value(&map);
    batch.relocate(map, std::mem::offset_of!(PrctlMmMap, auxv), auxv);
    let size = size_of::<PrctlMmMap>() as u64;
    batch.must(libc::SYS_prctl, &[libc::PR_SET_MM.into(), PR_SET_MM_MAP.into(), map, size.into(), 0u64.into()]);
}

/// membarrier(2) registrations and huge page settings of the process.
fn registrations(batch: &mut Batch, mm: &Mm) {
    const PR_SET_THP_DISABLE: i32 = 41;
    // What GET_REGISTRATIONS reports is a mask of the very commands that registered.
    for command in (0..32).map(|bit| 1u32 << bit).filter(|c| mm.membarrier & c != 0) {
        batch.may(libc::SYS_membarrier, &[command.into()]);
    }
    if mm.thp_disable != 0 {
        batch.may_prctl(PR_SET_THP_DISABLE, mm.thp_disable & 1, 0u64);
    }
    if mm.mlock_future != 0 {
        batch.may(libc::SYS_mlockall, &[mm.mlock_future.into()]);
    }
}

/// One-way attributes, last: sealed mappings and the ban on making memory executable.
pub fn seal(batch: &mut Batch, model: &Model, task: TaskId) {
    const SYS_MSEAL: i64 = 462;
    const PR_SET_MDWE: i32 = 65;
    let Some(mm) = own_mm(model, task) else { return };
    for vma in mm.vmas.iter().filter(|v| v.sealed) {
        batch.must(SYS_MSEAL, &[vma.start.into(), vma.len().into(), 0u64.into()]);
    }
    if mm.mdwe != 0 {
        batch.prctl(PR_SET_MDWE, mm.mdwe, 0u64);
    }
}
