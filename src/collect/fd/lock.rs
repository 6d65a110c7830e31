//! Read from fdinfo: flock(2), POSIX and OFD locks, leases.

use super::State;
use crate::blocker::{Blocker, codes};
use crate::collect::Cx;
use crate::image::TaskId;
use crate::image::fd::lock::{Lock, LockKind};
use crate::proc::fdinfo::FdInfo;
use crate::proc::locks::Kind;
use std::collections::HashSet;

/// The lease of a description: `F_RDLCK` or `F_WRLCK`.
pub fn lease(info: &FdInfo) -> Option<i32> {
    info.locks.iter().find(|l| l.kind == Kind::Lease).map(|l| l.mode)
}

/// What is in the way of saving a lease.
pub fn in_the_way(info: &FdInfo, object: &str) -> Option<Blocker> {
    let breaking = info.locks.iter().any(|lock| lock.kind == Kind::Lease && lock.breaking);
    let reason = "somebody waits until it gives the lease up";
    breaking.then(|| Blocker::new(codes::LEASE, object).because(reason))
}

/// Adds every lock that a description or a table of the tree holds, each once.
///
/// A lock is shown for every descriptor of the description it was set through: those of one description (flock, OFD) are
/// seen in each process that shares it, a POSIX lock only by the table it belongs to.
pub fn collect(cx: &mut Cx<'_>, state: &State) {
    let mut seen = HashSet::new();
    for at in &state.set.locks {
        let kind = match at.lock.kind {
            Kind::Flock => LockKind::Flock,
            Kind::Ofd => LockKind::Ofd,
            Kind::Posix => {
                let task = cx.process_of.binary_search(&at.at).expect("every table belongs to a task");
                LockKind::Posix(TaskId::from(task))
            }
            Kind::Lease | Kind::Delegation | Kind::Other => continue,
        };
        let owner = match kind {
            LockKind::Flock => (0, 0),
            LockKind::Ofd => (1, 0),
            LockKind::Posix(task) => (2, task.0),
        };
        if !seen.insert((owner, at.file, at.lock.mode, at.lock.start, at.lock.end)) {
            continue;
        }
        let len = at.lock.end.map_or(0, |end| end.saturating_sub(at.lock.start).saturating_add(1));
        cx.model.locks.push(Lock { kind, file: at.file, mode: at.lock.mode, start: at.lock.start, len });
    }
}
