//! The vDSO under another kernel: made of the model before anything is made of the model itself (pure, but for the question
//! what this kernel's vDSO is).
//!
//! A program knows addresses in the text it was started with (`AT_SYSINFO_EHDR`, pointers that libc keeps). That text stays
//! where it was, as anonymous memory whose functions lead to those of this kernel's own block, and the block is mapped in a
//! hole near it ([`vdso::redirect`]). Where the old kernel's data was there are zeros: for a function that was interrupted
//! by a signal handler in which the program was saved they mean "no clock that can be read here", and it asks the kernel.
//! Texts of still earlier kernels are led to the new block as well, so that no call passes through more than one jump, and
//! a chain of restores may come by any kernel again.

use super::{Error, Result};
use crate::arch::vdso::{self, Block, Redirected};
use crate::arch::{USER_END, UserRegs};
use crate::blocker::{Blocker, codes};
use crate::image::mm::{Advice, Backing, Mm, OldVdso, PAGE, VdsoBlock, Vma};
use crate::image::{Bytes, Model};
use std::borrow::Cow;
use zerocopy::FromBytes;

/// What stands in the way of a restore under this kernel; nothing where its vDSO is that of the image.
pub fn blockers(model: &Model) -> Vec<Blocker> {
    let mut adapted = Cow::Borrowed(model);
    adapt(&mut adapted, vdso::own())
}

/// The model as it is to be made under this kernel.
///
/// # Errors
/// [`Error::Impossible`] where [`blockers`] has something to say.
pub fn adapted(model: Model) -> Result<Model> {
    let mut adapted = Cow::Owned(model);
    match adapt(&mut adapted, vdso::own()).into_iter().next() {
        Some(blocker) => Err(Error::Impossible { object: blocker.object.clone(), reason: blocker.reason.clone() }),
        None => Ok(adapted.into_owned()),
    }
}

/// Changes a model for a kernel with this block, if it was made under one with another.
fn adapt(model: &mut Cow<'_, Model>, own: &Block) -> Vec<Blocker> {
    if model.host.vdso.0 == own.text || model.mms.iter().all(|mm| mm.vdso.is_none()) {
        return Vec::new();
    }
    let mut blockers = Vec::new();
    for at in 0..model.mms.len() {
        let Some(block) = model.mms[at].vdso else { continue };
        match moved(&model.mms[at], block, &model.host.vdso, own) {
            Ok((mm, redirected)) => {
                blockers.extend(in_the_way(model, at, &mm, &redirected));
                model.to_mut().mms[at] = mm;
            }
            Err(reason) => blockers.push(blocker(model, at, reason)),
        }
    }
    model.to_mut().host.vdso = Bytes(own.text.clone());
    blockers
}

fn blocker(model: &Model, mm: usize, reason: String) -> Blocker {
    let task = model.tasks.iter().find(|task| task.mm.is_some_and(|id| id.at() == mm));
    Blocker::new(codes::VDSO, format!("pid {} [vdso]", task.map_or(0, |task| task.pid.0))).because(reason)
}

/// An address space with its old text as memory and another kernel's block in a hole; what was done to each of its texts.
fn moved(mm: &Mm, block: VdsoBlock, text: &Bytes, own: &Block) -> std::result::Result<(Mm, Vec<Redirected>), String> {
    if block.end - block.text != text.0.len() as u64 {
        return Err("the image has another text than was mapped".to_owned());
    }
    let mut mm = mm.clone();
    mm.old_vdsos.push(OldVdso { start: block.text, text: text.clone() });
    for vma in mm.vmas.iter_mut().filter(|v| matches!(v.backing, Backing::Vdso | Backing::Vvar)) {
        *vma = Vma { backing: Backing::Anon, offset: 0, advice: Advice::default(), ..vma.clone() };
    }
    let need = own.data + own.text.len() as u64;
    mm.vdso = match need {
        0 => None,
        _ => {
            let start = hole(&mm, need).ok_or("no room is left for this kernel's block")?;
            Some(VdsoBlock { start, text: start + own.data, end: start + need })
        }
    };
    let mut redirected = Vec::new();
    let at = mm.vdso.map_or(0, |block| block.text);
    for old in &mut mm.old_vdsos {
        let done = vdso::redirect(&old.text.0, old.start, &own.text, at);
        old.text = Bytes(done.text.clone());
        redirected.push(done);
    }
    if let Some(block) = mm.vdso {
        map(&mut mm.vmas, block);
    }
    Ok((mm, redirected))
}

/// Adds the mappings of a block, which lies in a hole.
fn map(vmas: &mut Vec<Vma>, block: VdsoBlock) {
    let part = |start, end, prot: i32, backing| Vma {
        start,
        end,
        prot: prot as u32,
        backing,
        shared: false,
        offset: 0,
        grows_down: false,
        locked: None,
        no_reserve: false,
        accounted: false,
        advice: Advice::default(),
        may_write: true,
        numa: None,
        sealed: false,
        pkey: 0,
        guards: Vec::new(),
        guarded: false,
        anon_name: None,
    };
    let at = vmas.partition_point(|vma| vma.start < block.start);
    let data = part(block.start, block.text, libc::PROT_READ, Backing::Vvar);
    let text = part(block.text, block.end, libc::PROT_READ | libc::PROT_EXEC, Backing::Vdso);
    vmas.splice(at..at, [data, text].into_iter().filter(|vma| !vma.is_empty()));
}

/// Below a stack, bytes: it may grow by its limit (8 MiB mostly), and has to be in reach of the text above it.
const STACK_ROOM: u64 = 1 << 30;
/// Above a heap, bytes.
const HEAP_ROOM: u64 = 1 << 30;

/// A hole of `need` bytes as near as can be to the texts that are to lead there, with a page free on either side.
fn hole(mm: &Mm, need: u64) -> Option<u64> {
    let texts = || mm.old_vdsos.iter().map(|old| old.start);
    let distance = |at: u64| texts().map(|text| text.abs_diff(at)).max().unwrap_or(0);
    let mut ends: Vec<(u64, u64)> = Vec::new();
    let mut from = 1 << 20;
    for vma in &mm.vmas {
        let room = if vma.grows_down { STACK_ROOM } else { PAGE };
        ends.push((from, vma.start.saturating_sub(room)));
        let heap = vma.end == mm.layout.brk.next_multiple_of(PAGE);
        from = from.max(vma.end + if heap { HEAP_ROOM } else { PAGE });
    }
    ends.push((from, USER_END - PAGE));
    let fits = ends.into_iter().filter(|(from, to)| from.checked_add(need).is_some_and(|end| end <= *to));
    fits.flat_map(|(from, to)| [from, to - need]).min_by_key(|at| distance(*at))
}

/// What was found out about texts of an address space that cannot be used so.
fn in_the_way(model: &Model, at: usize, mm: &Mm, redirected: &[Redirected]) -> Vec<Blocker> {
    let stuck = redirected.iter().flat_map(|done| &done.stuck);
    let mut found: Vec<_> =
        stuck.map(|name| blocker(model, at, format!("there is no room for a jump in {name}"))).collect();
    let tasks = model.tasks.iter().filter(|task| task.mm.is_some_and(|id| id.at() == at));
    for thread in tasks.flat_map(|task| &task.threads) {
        let Some(regs) = registers(&thread.regs.general) else { continue };
        let inside = mm.old_vdsos.iter().zip(redirected).find(|(old, _)| old.range().contains(&regs.rip));
        if inside.is_some_and(|(old, done)| !can_go_on(&regs, (regs.rip - old.start) as usize, done)) {
            let reason = format!("thread {} was saved in the middle of a function of the old vDSO", thread.tid.0);
            found.push(blocker(model, at, reason));
        }
    }
    found
}

fn registers(general: &[u64]) -> Option<UserRegs> {
    let bytes: Vec<u8> = general.iter().flat_map(|word| word.to_ne_bytes()).collect();
    UserRegs::read_from_bytes(&bytes).ok()
}

/// A thread in the middle of an old text: it has to be in a system call, or about to make one, and not where a jump is now.
fn can_go_on(regs: &UserRegs, offset: usize, done: &Redirected) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    // A call that is made again is made at the instruction before.
    let first = if regs.interrupted_call().is_some() { offset.saturating_sub(SYSCALL.len()) } else { offset };
    let overwritten = |(begin, len): &(usize, usize)| *begin < offset && first < begin + len;
    let at_begin = done.pieces.iter().any(|(begin, _)| *begin == offset);
    let calls = regs.interrupted_call().is_some() || done.text.get(offset..offset + 2) == Some(&SYSCALL[..]);
    at_begin || calls && !done.pieces.iter().any(overwritten)
}

#[cfg(test)]
#[path = "vdso_tests.rs"]
mod tests;
