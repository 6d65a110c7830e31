use super::*;
use crate::image::{MmId, NsPid, arbitrary, mm, task};
use std::ops::Range;

const STACK: Range<u64> = 0x7ffc_0001_0000..0x7ffc_0003_1000;
const BLOCK: VdsoBlock = VdsoBlock { start: 0x7ffc_0003_8000, text: 0x7ffc_0003_c000, end: 0x7ffc_0003_e000 };

fn vma(range: Range<u64>, backing: Backing) -> Vma {
    Vma { start: range.start, end: range.end, backing, ..arbitrary::value(&[]) }
}

/// The text of another kernel: ours, in which no function does anything.
fn foreign() -> Vec<u8> {
    let mut text = vdso::own_text().to_vec();
    for function in vdso::functions(vdso::own_text()) {
        text[function.offset..][..function.size].fill(0xcc);
    }
    text
}

fn model() -> Model {
    let mut mm: Mm = arbitrary::value(&[]);
    let stack = Vma { grows_down: true, ..vma(STACK, Backing::Anon) };
    mm.vmas = vec![
        vma(0x40_0000..0x50_0000, Backing::Anon),
        vma(0x50_0000..0x52_1000, Backing::Anon),
        vma(0x7f00_0000_0000..0x7f00_0020_0000, Backing::Anon),
        stack,
        vma(BLOCK.start..BLOCK.text, Backing::Vvar),
        vma(BLOCK.text..BLOCK.end, Backing::Vdso),
    ];
    mm.layout.brk = 0x52_0800;
    mm.vdso = Some(BLOCK);
    let mut model: Model = arbitrary::value(&[]);
    let mut leader: task::Task = arbitrary::value(&[]);
    leader.pid = NsPid(7);
    leader.mm = Some(MmId(0));
    leader.threads = vec![arbitrary::value(&[])];
    leader.threads[0].tid = NsPid(7);
    model.tasks = vec![leader];
    model.mms = vec![mm];
    model.host.vdso = Bytes(foreign());
    model
}

/// The model's only thread stands here, in this system call (-1: in none).
fn standing(rip: u64, call: i64) -> Model {
    let mut model = model();
    let mut regs = vec![0; 27];
    regs[15] = call as u64;
    regs[16] = rip;
    model.tasks[0].threads[0].regs.general = regs;
    model
}

fn adapted_for(model: &Model, own: &Block) -> (Model, Vec<String>) {
    let mut cow = Cow::Borrowed(model);
    let blockers = adapt(&mut cow, own);
    (cow.into_owned(), blockers.into_iter().map(|b| b.reason).collect())
}

fn in_order(mm: &Mm) -> bool {
    mm.vmas.windows(2).all(|pair| pair[0].end <= pair[1].start) && mm.vmas.iter().all(|v| v.start < v.end)
}

#[test]
fn the_same_kernel_changes_nothing() {
    let mut model = model();
    model.host.vdso = Bytes(vdso::own_text().to_vec());
    assert_eq!(adapted_for(&model, vdso::own()), (model, vec![]));
}

#[test]
fn the_old_text_becomes_memory_that_leads_to_the_new_block() {
    let (adapted, blockers) = adapted_for(&model(), vdso::own());
    assert_eq!(blockers, Vec::<String>::new());
    let mm = &adapted.mms[0];
    assert!(in_order(mm), "{:x?}", mm.vmas);
    let block = mm.vdso.unwrap();
    assert_eq!((block.text - block.start, block.end - block.text), (vdso::own().data, vdso::own_text().len() as u64));
    assert_ne!(block.start, BLOCK.start);
    assert!(block.text.abs_diff(BLOCK.text) < 1 << 30);
    let [old] = &mm.old_vdsos[..] else { panic!("{} texts", mm.old_vdsos.len()) };
    assert_eq!(old.start, BLOCK.text);
    assert!(vdso::leads_to(&old.text.0, old.start, vdso::own_text(), block.text));
    let backing = |at: u64| mm.vmas.iter().find(|v| v.start == at).map(|v| v.backing.clone());
    assert_eq!(backing(BLOCK.start), Some(Backing::Anon));
    assert_eq!(backing(BLOCK.text), Some(Backing::Anon));
    assert_eq!(backing(block.start), Some(Backing::Vvar));
    assert_eq!(backing(block.text), Some(Backing::Vdso));
    assert_eq!(adapted.host.vdso.0, vdso::own_text());
}

#[test]
fn a_chain_between_two_kernels_ends_at_the_last_block_in_one_jump() {
    let other = Block { text: foreign(), data: 0x4000 };
    let mut now = model();
    for (n, own) in [vdso::own(), &other, vdso::own(), &other].into_iter().enumerate() {
        let (next, blockers) = adapted_for(&now, own);
        assert_eq!(blockers, Vec::<String>::new());
        let mm = &next.mms[0];
        assert!(in_order(mm));
        let block = mm.vdso.unwrap();
        assert_eq!(mm.old_vdsos.len(), n + 1);
        for old in &mm.old_vdsos {
            assert!(vdso::leads_to(&old.text.0, old.start, &own.text, block.text), "restore {n}: {:#x}", old.start);
        }
        now = next;
    }
}

#[test]
fn a_thread_goes_on_from_a_system_call_but_not_from_the_middle_of_a_function() {
    let begin = vdso::functions(vdso::own_text())[0].offset as u64;
    let reasons = |rip, call| adapted_for(&standing(rip, call), vdso::own()).1;
    assert_eq!(reasons(0x40_0000, -1), Vec::<String>::new());
    assert_eq!(reasons(BLOCK.text + begin, -1), Vec::<String>::new());
    let inside = reasons(BLOCK.text + begin + 9, -1);
    assert!(inside.len() == 1 && inside[0].contains("thread 7"), "{inside:?}");
    assert_eq!(reasons(BLOCK.text + begin + 9, libc::SYS_clock_gettime), Vec::<String>::new());
    // The jump has replaced the instruction that would be executed next.
    assert_eq!(reasons(BLOCK.text + begin + 2, libc::SYS_clock_gettime).len(), 1);
}

#[test]
fn a_kernel_without_a_vdso_gets_system_calls() {
    let (adapted, blockers) = adapted_for(&model(), &Block::default());
    assert_eq!(blockers, Vec::<String>::new());
    assert_eq!(adapted.mms[0].vdso, None);
    assert_eq!(adapted.mms[0].vmas.len(), 6);
    assert_eq!(adapted.mms[0].old_vdsos.len(), 1);
}

#[test]
fn a_text_of_another_length_is_refused() {
    let mut model = model();
    model.host.vdso.0.truncate(4096);
    assert_eq!(adapted_for(&model, vdso::own()).1.len(), 1);
}

#[test]
fn holes_keep_away_from_what_grows() {
    let mm = &model().mms[0];
    let mut mm = mm::Mm { old_vdsos: vec![OldVdso { start: BLOCK.text, text: Bytes(vec![0; 8192]) }], ..mm.clone() };
    // Nothing above the stack is free.
    mm.vmas.push(vma(BLOCK.end..USER_END, Backing::Anon));
    mm.vmas.insert(4, vma(STACK.end..BLOCK.start, Backing::Anon));
    let at = hole(&mm, 0x8000).unwrap();
    assert!(at + 0x8000 <= STACK.start - STACK_ROOM && BLOCK.text - at < i32::MAX as u64, "{at:#x}");
    // Nothing between heap and stack either, but far above the heap.
    mm.vmas[2] = vma(0x1_0000_0000..STACK.start - PAGE, Backing::Anon);
    let at = hole(&mm, 0x8000).unwrap();
    assert!((0x52_1000 + HEAP_ROOM..0x1_0000_0000).contains(&at), "{at:#x}");
    // Nothing at all.
    mm.vmas = vec![vma(0..USER_END, Backing::Anon)];
    assert_eq!(hole(&mm, 0x8000), None);
}
