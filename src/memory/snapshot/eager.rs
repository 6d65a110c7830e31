//! Pages that must not be protected, since the kernel writes to them in a task that ends and does not wait then; and those that
//! a thread writes to at once when it runs.

use crate::image::mm::PAGE;
use crate::image::task::{Task, Thread};
use crate::image::{MmId, Model, Pid};
use crate::memory::{PageRange, RangeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Entries of a list of robust futexes that the kernel follows (`ROBUST_LIST_LIMIT`).
const ROBUST_MAX: usize = 2048;
/// Below the stack pointer, bytes: the red zone, and what a return from a stop puts there.
const BELOW_STACK: u64 = 1024;

/// The pages of an address space of a stopped tree that are to be left alone.
///
/// # Errors
/// The memory of the process cannot be opened.
pub fn pages(model: &Model, mm: MmId, pid: Pid) -> std::io::Result<RangeSet> {
    let memory = crate::proc::open_mem(pid)?;
    let mut pages: Vec<u64> = Vec::new();
    let tasks = model.tasks.iter().filter(|task: &&Task| task.mm == Some(mm));
    for thread in tasks.flat_map(|task| &task.threads) {
        of_thread(thread, &memory, &mut pages);
    }
    pages.sort_unstable();
    pages.dedup();
    Ok(pages.into_iter().map(|page| PageRange::new(page, 1)).collect())
}

/// Pages of so many bytes; of nothing where there is no address.
fn add(pages: &mut Vec<u64>, start: u64, len: u64) {
    if start != 0 {
        pages.extend(start / PAGE..=start.saturating_add(len.max(1) - 1) / PAGE);
    }
}

fn of_thread(thread: &Thread, memory: &File, pages: &mut Vec<u64>) {
    if let Some(rseq) = thread.rseq {
        add(pages, rseq.address, rseq.size.into());
    }
    let (stack, thread_area) = crate::arch::stack_and_thread_area(&thread.regs.general);
    add(pages, stack.saturating_sub(BELOW_STACK), BELOW_STACK + 64);
    add(pages, thread_area, 64);
    at_the_end(thread.clear_child_tid, thread.robust_list.0, memory, pages);
}

/// Pages that the kernel writes to when a thread with this address of its id and this list of robust futexes ends.
pub fn at_the_end(clear_child_tid: u64, robust_list: u64, memory: &File, pages: &mut Vec<u64>) {
    add(pages, clear_child_tid, 4);
    robust(robust_list, memory, &mut |start, len| add(pages, start, len));
}

/// `struct robust_list_head`: the first entry, where the futex lies in relation to its entry, the entry that is being changed.
fn robust(head: u64, memory: &File, add: &mut dyn FnMut(u64, u64)) {
    let word = |at: u64| -> Option<u64> {
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, at).ok()?;
        Some(u64::from_ne_bytes(word))
    };
    let read = || Some((word(head)?, word(head.wrapping_add(8))?, word(head.wrapping_add(16))?));
    let Some((first, offset, pending)) = (head != 0).then(read).flatten() else { return };
    add(head, 24);
    // The lowest bit tells locks that inherit priorities.
    let (mut entry, mut left) = (first & !1, ROBUST_MAX);
    while entry != head && entry != 0 && left > 0 {
        add(entry, 8);
        add(entry.wrapping_add(offset), 4);
        let Some(next) = word(entry) else { break };
        (entry, left) = (next & !1, left - 1);
    }
    if pending & !1 != 0 {
        add((pending & !1).wrapping_add(offset), 4);
    }
}
