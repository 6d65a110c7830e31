//! Stops a tree for good that must not go on: its pages are lost.

use super::Kept;
use crate::image::Pid;
use crate::proc::table::Table;
use nix::sys::signal::{Signal, kill};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

/// Looks for processes that were forked meanwhile.
const ROUNDS: u32 = 20;

/// Stops every process of the tree, those forked since included; their ids.
pub(super) fn stop(kept: &Kept) -> BTreeSet<i32> {
    let mut stopped = BTreeSet::new();
    for _ in 0..ROUNDS {
        let Ok(table) = Table::read() else { break };
        let began = |pid: i32| table.get(Pid(pid)).map(|row| row.stat.starttime);
        let ours = kept.tree.processes.iter().filter(|(pid, start)| began(*pid) == Some(*start));
        let all: BTreeSet<i32> =
            ours.flat_map(|(pid, _)| table.tree(Pid(*pid))).map(|pid| pid.0).chain(stopped.iter().copied()).collect();
        let new: Vec<i32> = all.difference(&stopped).copied().collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            // It may have ended.
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGSTOP);
            stopped.insert(pid);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    stopped
}

/// Most ranges that a message names.
const NAMED: usize = 8;

/// What a person is told: why, what is missing, and what the target is like.
pub(super) fn message(kept: &Kept, why: &str, missing: &[(i32, u64, u64)], poisoned: bool) -> String {
    let pages: u64 = missing.iter().map(|(_, start, end)| (end - start) / crate::image::mm::PAGE).sum();
    let mut text = format!("{pages} pages of the target cannot be brought in from {}: {why}", kept.image.display());
    for (pid, start, end) in missing.iter().take(NAMED) {
        let _ = write!(text, "\nmissing: process {pid} {start:#x}-{end:#x}");
    }
    if missing.len() > NAMED {
        let _ = write!(text, "\nmissing: {} further ranges", missing.len() - NAMED);
    }
    let touch =
        if poisoned { "a touch of what is missing ends it with SIGBUS" } else { "what is missing is waited for" };
    let _ = write!(text, "\ntarget: stopped (process {}); {touch}", kept.tree.root().unwrap_or(0));
    text
}
