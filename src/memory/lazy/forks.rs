//! What a child does not get of its parent's memory: mappings with `MADV_WIPEONFORK` are empty in it, those with
//! `MADV_DONTFORK` are not there (a neighbour that grows into their room is served by the child's descriptor, too). The event
//! of a fork does not say so, so it is looked up while the parent stands still: whoever forks waits until its event is read,
//! after its mappings were copied (`dup_userfaultfd_complete()`, fs/userfaultfd.c). What *another* thread does with such advice
//! between that copy and this look is taken for what it was before.
//!
//! No process is known of an address space that came into being by a fork: it is one of those that wait for an event of theirs.

use super::Missing;
use crate::image::Pid;
use crate::memory::{PageRange, RangeSet};
use crate::proc::smaps::{Flagged, VmFlags};
use crate::proc::syscall::Doing;
use crate::proc::{ProcDir, task};

/// Calls that make a process.
const FORKS: [i64; 3] = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_fork];
/// Other calls that wait for an event of theirs.
const CHANGES: [i64; 7] = [
    libc::SYS_munmap,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_shmat,
    libc::SYS_shmdt,
];

/// Who has an address space.
#[derive(Debug, Clone, Copy, Default)]
pub struct Owner {
    /// A process, where one is known.
    pid: Option<Pid>,
}

impl Owner {
    /// This process, if one is known.
    pub fn new(pid: Option<Pid>) -> Self {
        Self { pid }
    }

    /// An event waits: what a child does not get that is being made now; nothing, if none is. `missing`: what its parent lacks.
    pub fn withheld(&mut self, missing: &Missing) -> RangeSet {
        match self.pid.and_then(|pid| ProcDir::open(pid).ok()) {
            Some(dir) => mappings_of_call(&dir, &FORKS).map(|all| withheld(&all)).unwrap_or_default(),
            None => self.found(missing),
        }
    }

    /// The same where it is to be found out whose event it is.
    fn found(&mut self, missing: &Missing) -> RangeSet {
        let lacks: RangeSet = missing.iter().map(|piece| piece.at).collect();
        let suits = |all: &[Flagged]| !lacks.intersection(&with(all, VmFlags::UFFD_MISSING)).is_empty();
        let dirs = || task::processes().unwrap_or_default().into_iter().filter_map(|pid| ProcDir::open(pid).ok());
        let in_call = |calls: &[i64]| -> Vec<(Pid, Vec<Flagged>)> {
            let found = dirs().filter_map(|dir| Some((dir.pid(), mappings_of_call(&dir, calls)?)));
            found.filter(|(_, all)| suits(all)).collect()
        };
        let forking = in_call(&FORKS);
        let changing = in_call(&CHANGES);
        if let [(pid, _)] = [&forking[..], &changing[..]].concat()[..] {
            self.pid = Some(pid);
        }
        // Several at once: what they have in common.
        let all = forking.iter().map(|(_, mappings)| withheld(mappings));
        all.reduce(|all, one| all.intersection(&one)).unwrap_or_default()
    }
}

/// Mappings of a process of which a thread is in one of these calls.
fn mappings_of_call(dir: &ProcDir, calls: &[i64]) -> Option<Vec<Flagged>> {
    let mut buf = Vec::new();
    let among = |number: u64| calls.iter().any(|call| u64::try_from(*call) == Ok(number));
    let is_in = |tid: &Pid, buf: &mut Vec<u8>| matches!(dir.thread_syscall(*tid, buf), Ok(Doing::Call { number, .. }) if among(number));
    let tid = dir.tasks().ok()?.into_iter().find(|tid| is_in(tid, &mut buf))?;
    // The leader may have ended.
    dir.thread(tid).and_then(|thread| thread.smaps_flags(&mut buf)).ok()
}

fn withheld(mappings: &[Flagged]) -> RangeSet {
    with(mappings, VmFlags::WIPE_ON_FORK | VmFlags::DONT_FORK)
}

/// Mappings with any of these flags.
fn with(mappings: &[Flagged], flags: VmFlags) -> RangeSet {
    let those = mappings.iter().filter(|flagged| flagged.flags.intersects(flags));
    those.map(|flagged| PageRange::of_bytes(flagged.mapping.start, flagged.mapping.end)).collect()
}
