//! Address spaces and shared memory.

use super::{Checker, circle, limits};
use crate::image::mm::{Backing, Mm, PAGE, ShmemKind, Vma};

/// Name of a memfd: `NAME_MAX` less the prefix `memfd:`.
const MEMFD_NAME: usize = 249;
/// Name of anonymous memory: `ANON_VMA_NAME_MAX_LEN`, its NUL not counted.
const ANON_NAME: usize = 79;
/// Page sizes a huge page can have on x86-64.
const HUGE: [u64; 2] = [2 << 20, 1 << 30];

pub(super) fn check(c: &mut Checker<'_>) {
    let model = c.model;
    c.each("mms", &model.mms, |c, _, mm| {
        check_mm(c, mm);
        let mut end = 0;
        c.each("vmas", &mm.vmas, |c, _, vma| {
            c.must(vma.start >= end, "start", "overlaps the mapping before it");
            end = vma.end;
            check_vma(c, vma);
        });
    });
    if let Some(n) = circle(model.mms.len(), |n| model.mms[n].cow_parent.map(|p| p.at())) {
        c.flaw(&format!("mms[{n}].cow_parent"), "is its own ancestor");
    }
    c.each("shmems", &model.shmems, |c, _, shmem| {
        c.must(shmem.size <= i64::MAX as u64, "size", "is larger than any file");
        match &shmem.kind {
            ShmemKind::Memfd { name, huge_page, .. } => {
                c.text(name, "kind.name", MEMFD_NAME);
                c.must(*huge_page == 0 || HUGE.contains(huge_page), "kind.huge_page", "is no size of a huge page");
            }
            ShmemKind::HugeAnon { page_size } => {
                c.must(HUGE.contains(page_size), "kind.page_size", "is no size of a huge page");
            }
            ShmemKind::SysV { id, huge_page, .. } => {
                c.must(*id >= 0, "kind.id", "is no id");
                c.must(*huge_page == 0 || HUGE.contains(huge_page), "kind.huge_page", "is no size of a huge page");
            }
            ShmemKind::Anon => {}
        }
    });
}

fn check_mm(c: &mut Checker<'_>, mm: &Mm) {
    c.path_ref(&mm.exe, "exe");
    c.must(mm.auxv.0.len() <= 4096, "auxv", "is longer than any");
    if let Some(parent) = mm.cow_parent {
        c.index(parent.at(), c.model.mms.len(), "cow_parent");
    }
    if let Some(vdso) = mm.vdso {
        let ordered = vdso.start <= vdso.text && vdso.text < vdso.end && vdso.end <= limits::USER_SPACE;
        let aligned = [vdso.start, vdso.text, vdso.end].iter().all(|a| a % PAGE == 0);
        c.must(ordered && aligned, "vdso", "is not a block of pages");
    }
    c.must(mm.old_vdsos.len() <= limits::OLD_VDSOS, "old_vdsos", "are more than there are kernels");
    for old in &mm.old_vdsos {
        let len = old.text.0.len() as u64;
        let whole = old.start.is_multiple_of(PAGE)
            && len.is_multiple_of(PAGE)
            && (PAGE..=limits::VDSO_TEXT_BYTES).contains(&len);
        let holds = |v: &Vma| v.start <= old.start && old.start.checked_add(len).is_some_and(|end| end <= v.end);
        let mapped = mm.vmas.iter().any(|v| v.backing == Backing::Anon && holds(v));
        c.must(whole && mapped, "old_vdsos", "are not mapped");
    }
}

fn check_vma(c: &mut Checker<'_>, vma: &Vma) {
    c.must(vma.start < vma.end, "end", "is not past the start");
    c.must(vma.start.is_multiple_of(PAGE) && vma.end.is_multiple_of(PAGE), "start", "is not at a page");
    c.must(vma.end <= limits::USER_SPACE, "end", "is not in user space");
    c.must(vma.offset.is_multiple_of(PAGE) && vma.offset <= i64::MAX as u64, "offset", "is not at a page of a file");
    let mut end = vma.start;
    for (from, to) in &vma.guards {
        let inside = *from >= end && from < to && *to <= vma.end && from % PAGE == 0 && to % PAGE == 0;
        c.must(inside, "guards", "are not ranges of pages within the mapping");
        end = *to;
    }
    if let Some(policy) = &vma.numa {
        c.policy(policy, "numa");
    }
    if let Some(name) = &vma.anon_name {
        c.text(name, "anon_name", ANON_NAME);
    }
    match &vma.backing {
        Backing::Shmem(id) => drop(c.index(id.at(), c.model.shmems.len(), "backing")),
        Backing::File { path, .. } | Backing::Device(path) => c.path_ref(path, "backing"),
        Backing::Ghost(id) => drop(c.index(id.at(), c.model.ghosts.len(), "backing")),
        Backing::Descriptor(id) => drop(c.index(id.at(), c.model.files.len(), "backing")),
        Backing::HugeAnon { page_size } => {
            let whole =
                HUGE.contains(page_size) && vma.start.is_multiple_of(*page_size) && vma.end.is_multiple_of(*page_size);
            c.must(whole, "backing", "is not made of whole huge pages");
        }
        Backing::Anon | Backing::Droppable | Backing::Vdso | Backing::Vvar => {}
    }
}
