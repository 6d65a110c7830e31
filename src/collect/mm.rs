//! Address spaces: layout, mappings and their attributes.

use super::mappings::Mappings;
use super::{Cx, Error, Result, ShmemSource, ns, numa, pkeys, sysv, task::path_of, task::path_ref};
use crate::arch::vdso;
use crate::blocker::{Blocker, codes};
use crate::image::mm::{Advice, Backing, Layout, Mm, OldVdso, Shmem, ShmemKind, VdsoBlock, Vma};
use crate::image::numa::Policy;
use crate::image::{Bytes, NsId, Pid, ShmemId, limits};
use crate::proc::ProcDir;
use crate::proc::maps::{Mapping, Special};
use crate::proc::smaps::{Flagged, VmFlags};
use crate::sys::Errno;
use crate::sys::pagemap::{self, category};
use crate::trace::batch::{Ref, Results};
use crate::trace::{Batch, memory};
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Makes sure there is a scratch area: a new one for a new address space, else that of the process it is shared with.
pub fn ensure_scratch(cx: &mut Cx<'_>, at: usize, mm_number: usize, mappings: Option<&Mappings>) -> Result<()> {
    if let Some(mappings) = mappings {
        let vdso = mappings.iter().find(|m| m.mapping.special() == Some(Special::Vdso)).map(|m| m.mapping.start);
        cx.frozen.processes[at].ensure_scratch(vdso)?;
        return Ok(());
    }
    let owner = cx.sources.mms[mm_number];
    let scratch = cx.frozen.processes.iter().find(|p| p.pid == owner).and_then(|p| p.scratch);
    let process = &mut cx.frozen.processes[at];
    if let (None, Some(scratch)) = (process.scratch, scratch) {
        process.borrow_scratch(scratch)?;
    }
    Ok(())
}

/// Texts of other kernels' vDSOs: ordinary memory with jumps into the kernel's own block, put there by a restore under this
/// kernel or, where that block is memory by now, under one before.
fn old_vdsos(pid: Pid, mappings: &Mappings) -> Result<Vec<OldVdso>> {
    let Some(block) = vdso_block(mappings) else { return Ok(Vec::new()) };
    let code = (libc::PROT_READ | libc::PROT_EXEC) as u32;
    let may_be = |m: &&Mapping| {
        let anonymous = !m.has_file() && matches!(m.special(), None | Some(Special::Anon(_)));
        anonymous && m.prot() == code && !m.shared && m.len() <= limits::VDSO_TEXT_BYTES
    };
    let mut found = Vec::new();
    for mapping in mappings.iter().map(|m| &m.mapping).filter(may_be) {
        let mut head = [0; 4];
        if memory::read(pid, mapping.start, &mut head).is_err() || head != *b"\x7fELF" {
            continue;
        }
        let mut text = vec![0; mapping.len() as usize];
        memory::read(pid, mapping.start, &mut text)?;
        if vdso::leads_to(&text, mapping.start, vdso::own_text(), block.text) {
            found.push(OldVdso { start: mapping.start, text: Bytes(text) });
        }
    }
    // Those beyond stay memory with jumps to where there will always be code.
    found.truncate(limits::OLD_VDSOS);
    Ok(found)
}

/// Has the threads of a process leave the code of vDSOs: another kernel's has other instructions there.
pub fn leave_vdso(cx: &mut Cx<'_>, at: usize, mm_number: usize, mappings: Option<&Mappings>) -> Result<()> {
    let process = &mut cx.frozen.processes[at];
    if process.threads.iter().all(|thread| thread.saved.interrupted_call().is_some()) {
        return Ok(());
    }
    let texts: Vec<Range<u64>> = match mappings {
        Some(mappings) => {
            let old = old_vdsos(process.pid, mappings)?;
            crate::image::mm::vdso_texts(vdso_block(mappings), &old).collect()
        }
        None => cx.model.mms[mm_number].vdso_texts().collect(),
    };
    for inside in crate::trace::vdso::leave(process.threads.iter_mut(), &texts)? {
        tracing::warn!("thread {inside} does not leave the vDSO: it can only be restored under this kernel");
    }
    Ok(())
}

/// How mappings to come are locked (mlockall(2)): our own area, being one of them, shows it.
fn locked_future(cx: &mut Cx<'_>, at: usize) -> Result<u32> {
    let process = &cx.frozen.processes[at];
    let locked = process.dir.status(&mut cx.buf)?.memory.is_some_and(|m| m.locked != 0);
    let Some(scratch) = process.scratch.filter(|_| locked) else { return Ok(0) };
    let mappings = process.dir.smaps_flags(&mut cx.buf)?;
    let ours = mappings.iter().find(|m| m.mapping.start <= scratch.data && scratch.data < m.mapping.end);
    Ok(match ours.map(|m| m.flags) {
        Some(flags) if flags.contains(VmFlags::LOCK_ON_FAULT) => (libc::MCL_FUTURE | libc::MCL_ONFAULT) as u32,
        Some(flags) if flags.contains(VmFlags::LOCKED) => libc::MCL_FUTURE as u32,
        _ => 0,
    })
}

/// Calls whose answers describe the address space.
pub struct Query {
    brk: Ref,
    dumpable: Ref,
    thp_disable: Ref,
    mdwe: Ref,
    membarrier: Ref,
    policies: numa::Query,
}

/// Adds the calls that ask for what /proc does not show.
pub fn ask(batch: &mut Batch, mappings: &Mappings) -> Query {
    const PR_GET_THP_DISABLE: i32 = 42;
    const PR_GET_MDWE: i32 = 66;
    const MEMBARRIER_CMD_GET_REGISTRATIONS: i32 = 512;
    Query {
        brk: batch.may(libc::SYS_brk, &[0u64.into()]),
        dumpable: batch.may_prctl(libc::PR_GET_DUMPABLE, 0u64, 0u64),
        thp_disable: batch.may_prctl(PR_GET_THP_DISABLE, 0u64, 0u64),
        mdwe: batch.may_prctl(PR_GET_MDWE, 0u64, 0u64),
        membarrier: batch.may(libc::SYS_membarrier, &[MEMBARRIER_CMD_GET_REGISTRATIONS.into()]),
        policies: numa::ask(batch, mappings),
    }
}

/// Adds the address space of a process to the model.
pub fn collect(cx: &mut Cx<'_>, at: usize, mappings: &Mappings, results: &Results, query: &Query) -> Result<()> {
    let stat = cx.frozen.processes[at].dir.stat(&mut cx.buf)?;
    let layout = Layout {
        start_code: stat.startcode,
        end_code: stat.endcode,
        start_data: stat.start_data,
        end_data: stat.end_data,
        start_brk: stat.start_brk,
        brk: results.get(query.brk).unwrap_or(stat.start_brk),
        start_stack: stat.startstack,
        arg_start: stat.arg_start,
        arg_end: stat.arg_end,
        env_start: stat.env_start,
        env_end: stat.env_end,
    };
    let auxv = Bytes(cx.frozen.processes[at].dir.read_into("auxv", &mut cx.buf)?.to_vec());
    let mnt = ns::of_task(cx, at)?.mnt;
    let exe = path_ref(&cx.frozen.processes[at].dir, "exe", mnt)?;
    let policies = numa::answer(cx, at, results, &query.policies)?;
    let vmas = vmas(cx, at, mappings, policies, mnt)?;
    refuse_torn_vdso(cx, at, mappings);
    let scratch = cx.frozen.processes[at].scratch;
    let pkeys = scratch.map_or(Ok(0), |scratch| pkeys::in_use(cx, at, &vmas, &scratch))?;
    let mm = Mm {
        layout,
        auxv,
        exe,
        vdso: vdso_block(mappings),
        old_vdsos: old_vdsos(cx.frozen.processes[at].pid, mappings)?,
        vmas,
        dumpable: results.get(query.dumpable).unwrap_or(1) as u32,
        thp_disable: results.get(query.thp_disable).unwrap_or(0) as u32,
        mdwe: results.get(query.mdwe).unwrap_or(0) as u32,
        mlock_future: locked_future(cx, at)?,
        pkeys,
        membarrier: results.get(query.membarrier).unwrap_or(0) as u32,
        cow_parent: None,
    };
    cx.model.mms.push(mm);
    cx.sources.mms.push(cx.frozen.processes[at].pid);
    Ok(())
}

/// The kernel makes its block in one piece; a program can move each part of it (mremap(2)).
fn refuse_torn_vdso(cx: &mut Cx<'_>, at: usize, mappings: &Mappings) {
    let special = |m: &&Flagged| matches!(m.mapping.special(), Some(Special::Vdso | Special::Vvar));
    let parts: Vec<_> = mappings.iter().filter(special).collect();
    let in_one = parts.windows(2).all(|pair| pair[0].mapping.end == pair[1].mapping.start);
    let whole = parts.is_empty() || parts.last().is_some_and(|m| m.mapping.special() == Some(Special::Vdso));
    if !(in_one && whole) {
        let object = format!("pid {} [vdso]", cx.frozen.processes[at].pid);
        let reason = "parts of the kernel's block were moved or unmapped";
        cx.blockers.push(Blocker::new(codes::MEMORY_UNKNOWN, object).because(reason));
    }
}

fn vdso_block(mappings: &Mappings) -> Option<VdsoBlock> {
    let special = |m: &&Flagged| matches!(m.mapping.special(), Some(Special::Vdso | Special::Vvar));
    let start = mappings.iter().find(special)?.mapping.start;
    let text = mappings.iter().find(|m| m.mapping.special() == Some(Special::Vdso))?;
    let end = mappings.iter().rev().find(special)?.mapping.end;
    Some(VdsoBlock { start, text: text.mapping.start, end })
}

fn vmas(
    cx: &mut Cx<'_>,
    at: usize,
    mappings: &Mappings,
    mut policies: HashMap<u64, Policy>,
    mnt: NsId,
) -> Result<Vec<Vma>> {
    let mut vmas = Vec::with_capacity(mappings.len());
    for flagged in mappings {
        if flagged.mapping.special() == Some(Special::Vsyscall) {
            continue;
        }
        refuse_unsupported(cx, at, flagged);
        let Some(backing) = backing(cx, at, flagged, mnt)? else { continue };
        let vma = vma(flagged, backing, policies.remove(&flagged.mapping.start));
        if vmas.last_mut().is_none_or(|last| !join(last, &vma)) {
            vmas.push(vma);
        }
    }
    mark_guards(cx, at, &mut vmas)?;
    Ok(vmas)
}

fn vma(flagged: &Flagged, backing: Backing, numa: Option<Policy>) -> Vma {
    let (m, flags) = (&flagged.mapping, flagged.flags);
    let has = |flag| flags.contains(flag);
    let anon_name = match m.special() {
        Some(Special::Anon(name) | Special::AnonShmem(name)) => Some(Bytes(name.to_vec())),
        _ => None,
    };
    Vma {
        start: m.start,
        end: m.end,
        prot: m.prot(),
        shared: has(VmFlags::MAY_SHARE) || has(VmFlags::SHARED),
        offset: if matches!(backing, Backing::Anon | Backing::Droppable | Backing::HugeAnon { .. }) {
            0
        } else {
            m.offset
        },
        backing,
        grows_down: has(VmFlags::GROWS_DOWN),
        locked: has(VmFlags::LOCKED).then(|| has(VmFlags::LOCK_ON_FAULT)),
        no_reserve: has(VmFlags::NO_RESERVE),
        accounted: has(VmFlags::ACCOUNT),
        advice: Advice {
            dont_fork: has(VmFlags::DONT_FORK),
            wipe_on_fork: has(VmFlags::WIPE_ON_FORK),
            dont_dump: has(VmFlags::DONT_DUMP),
            huge: has(VmFlags::HUGE_PAGE),
            no_huge: has(VmFlags::NO_HUGE_PAGE),
            mergeable: has(VmFlags::MERGEABLE),
            sequential: has(VmFlags::SEQUENTIAL),
            random: has(VmFlags::RANDOM),
        },
        may_write: has(VmFlags::MAY_WRITE),
        numa,
        sealed: has(VmFlags::SEALED),
        pkey: flagged.pkey,
        guards: Vec::new(),
        guarded: has(VmFlags::GUARD),
        anon_name,
    }
}

/// Neighbours that dirty tracking (a userfaultfd on one of them) has kept apart are one mapping to the model.
fn join(last: &mut Vma, next: &Vma) -> bool {
    let joined = Vma { end: next.end, ..last.clone() };
    let as_next = Vma { start: last.start, end: next.end, offset: last.offset, ..next.clone() };
    let continues = match last.backing {
        Backing::Anon | Backing::Droppable => !last.shared && !last.grows_down,
        _ => false,
    };
    let adjacent = last.end == next.start && continues && joined == as_next;
    if adjacent {
        last.end = next.end;
    }
    adjacent
}

fn refuse_unsupported(cx: &mut Cx<'_>, at: usize, flagged: &Flagged) {
    let (mapping, flags) = (&flagged.mapping, flagged.flags);
    let (code, reason, remedy) = if flags.contains(VmFlags::SHADOW_STACK) {
        let remedy = "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off";
        (codes::SHADOW_STACK, "it is a shadow stack", remedy)
    } else if flags.intersects(VmFlags::UFFD_MISSING.union(VmFlags::UFFD_MINOR)) && !cx.policy.lacks_memory {
        let reason = "the program handles its page faults itself (userfaultfd)";
        (codes::MEMORY_UFFD, reason, "end the use of userfaultfd before")
    } else if flags.contains(VmFlags::PFN_MAP) && mapping.has_file() {
        let remedy = "close the device before, or move the program without it";
        (codes::MEMORY_DEVICE, "memory of a device is mapped", remedy)
    } else {
        return;
    };
    cx.block(code, object(cx.frozen.processes[at].pid, mapping), reason, remedy);
}

/// How messages name a mapping.
fn object(pid: Pid, mapping: &Mapping) -> String {
    format!("pid {pid} mapping {:#x}-{:#x} {}", mapping.start, mapping.end, mapping.name)
}

/// What lies behind a mapping of a task in this mount namespace; `None` where a blocker has been noted.
fn backing(cx: &mut Cx<'_>, at: usize, flagged: &Flagged, mnt: NsId) -> Result<Option<Backing>> {
    let mapping = &flagged.mapping;
    match mapping.special() {
        Some(Special::Vdso) => return Ok(Some(Backing::Vdso)),
        Some(Special::Vvar) => return Ok(Some(Backing::Vvar)),
        _ => {}
    }
    if flagged.flags.contains(VmFlags::DROPPABLE) {
        return Ok(Some(Backing::Droppable));
    }
    if !mapping.has_file() {
        return Ok(Some(Backing::Anon));
    }
    if mapping.name.0.starts_with(b"/anon_hugepage") && !flagged.flags.contains(VmFlags::MAY_SHARE) {
        return Ok(Some(Backing::HugeAnon { page_size: flagged.page_size }));
    }
    let process = &cx.frozen.processes[at];
    let link = mapping.map_file();
    let Some((name, stat)) = cx.mapped.file_of(&process.dir, mapping, mnt)? else {
        cx.blockers.push(Blocker::new(codes::MAPPED_FILE, object(process.pid, mapping)));
        return Ok(None);
    };
    if let Some(key) = sysv::key_of(&name.0) {
        return Ok(sysv::segment(cx, at, flagged, key)?.map(Backing::Shmem));
    }
    if let Some(kind) = shmem_kind(&name.0, flagged) {
        let id = shmem(cx, at, &link, (stat.st_dev, stat.st_ino), kind)?;
        return Ok(Some(Backing::Shmem(id)));
    }
    if stat.st_mode & libc::S_IFMT == libc::S_IFCHR {
        return Ok(Some(Backing::Device(path_of(name, &stat, mnt))));
    }
    if stat.st_nlink == 0 || name.0.ends_with(b" (deleted)") {
        return super::fd::ghost_of_mapping(cx, at, &link).map(|ghost| ghost.map(Backing::Ghost));
    }
    let path = path_of(name, &stat, mnt);
    let writes = flagged.flags.contains(VmFlags::MAY_SHARE) && flagged.flags.contains(VmFlags::MAY_WRITE);
    Ok(Some(Backing::File { path, flags: if writes { libc::O_RDWR as u32 } else { 0 } }))
}

fn shmem_kind(name: &[u8], flagged: &Flagged) -> Option<ShmemKind> {
    let name = name.strip_suffix(b" (deleted)")?;
    let huge = flagged.flags.contains(VmFlags::HUGETLB);
    if let Some(name) = name.strip_prefix(b"/memfd:") {
        let huge_page = if huge { flagged.page_size } else { 0 };
        return Some(ShmemKind::Memfd { name: Bytes(name.to_vec()), seals: 0, huge_page });
    }
    match name {
        b"/dev/zero" => Some(ShmemKind::Anon),
        b"/anon_hugepage" => Some(ShmemKind::HugeAnon { page_size: flagged.page_size }),
        _ => None,
    }
}

/// The shared memory object behind a link of /proc, new or known.
fn shmem(cx: &mut Cx<'_>, at: usize, link: &str, inode: (u64, u64), kind: ShmemKind) -> Result<ShmemId> {
    if let Some(id) = cx.shmem_by_inode.get(&inode) {
        return Ok(*id);
    }
    let file = cx.frozen.processes[at].dir.open_file(link, nix::fcntl::OFlag::O_RDONLY)?;
    add_shmem(cx, file, inode, kind)
}

/// Adds a shared memory object of which we have a descriptor.
pub fn add_shmem(cx: &mut Cx<'_>, file: OwnedFd, inode: (u64, u64), kind: ShmemKind) -> Result<ShmemId> {
    if let Some(id) = cx.shmem_by_inode.get(&inode) {
        return Ok(*id);
    }
    let stat = nix::sys::stat::fstat(&file).map_err(|errno| system("stat", &kind, errno))?;
    let kind = match kind {
        ShmemKind::Memfd { name, huge_page, .. } => {
            let seals = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS).unwrap_or(0) as u32;
            ShmemKind::Memfd { name, seals, huge_page }
        }
        other => other,
    };
    let id = ShmemId::from(cx.model.shmems.len());
    cx.model.shmems.push(Shmem {
        size: stat.st_size as u64,
        kind,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
    });
    tracing::debug!("shared memory object {:?} is descriptor {}", id, file.as_raw_fd());
    cx.sources.shmems.push(ShmemSource::File(file));
    cx.shmem_by_inode.insert(inode, id);
    Ok(id)
}

fn system(operation: &'static str, kind: &ShmemKind, errno: crate::sys::Errno) -> Error {
    Error::System { operation, object: format!("shared memory {kind:?}"), errno }
}

/// Finds ranges with `MADV_GUARD_INSTALL` (Linux 6.13; shown by PAGEMAP_SCAN since 6.15).
fn mark_guards(cx: &mut Cx<'_>, at: usize, vmas: &mut [Vma]) -> Result<()> {
    let dir: &ProcDir = &cx.frozen.processes[at].dir;
    let pagemap = dir.open_file("pagemap", nix::fcntl::OFlag::O_RDONLY)?;
    let mut buf = Vec::new();
    let query = pagemap::Query { all_of: category::GUARD, report: category::GUARD, ..Default::default() };
    // Those with pages of their own, as many at once as no other lies between.
    for run in vmas.split_mut(|vma| !vma.owns_pages()) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let (start, end) = (first.start, last.end);
        let mut at = 0;
        let scanned = pagemap::scan(pagemap.as_fd(), start, end, query, &mut buf, |found| {
            // Ascending; the kernel joins what lies in neighbours.
            while let Some(vma) = run.get_mut(at).filter(|vma| vma.start < found.end) {
                let within = (found.start.max(vma.start), found.end.min(vma.end));
                if within.0 < within.1 && vma.prot != 0 {
                    vma.guards.push(within);
                }
                if vma.end > found.end {
                    break;
                }
                at += 1;
            }
        });
        match scanned {
            Ok(()) => {}
            // A kernel that does not know the category, or the ioctl, has no guard ranges either that it could show.
            Err(Errno::EINVAL | Errno::ENOTTY) => return Ok(()),
            Err(errno) => return Err(Error::System { operation: "PAGEMAP_SCAN", object: dir.file("pagemap"), errno }),
        }
    }
    Ok(())
}
