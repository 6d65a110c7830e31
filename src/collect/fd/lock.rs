//! Read from fdinfo: flock(2), POSIX and OFD locks, leases.

use super::State;
use crate::collect::Cx;
use crate::image::TaskId;
use crate::image::fd::lock::{Lease, Lock, LockKind};
use crate::proc::fdinfo::FdInfo;
use crate::proc::locks::Kind;
use std::collections::HashSet;

/// The lease of a description. What one was that is being broken is told by what it becomes: only one to write becomes one to
/// read, and none to read is had by who may write.
pub fn lease(info: &FdInfo) -> Option<Lease> {
    let seen = info.locks.iter().find(|l| l.kind == Kind::Lease)?;
    let read_only = info.flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
    let was = if seen.mode == UNLOCKED && read_only { READ } else { WRITE };
    Some(if seen.breaking {
        Lease { mode: was, breaks_to: Some(seen.mode) }
    } else {
        Lease { mode: seen.mode, breaks_to: None }
    })
}

const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const UNLOCKED: i32 = libc::F_UNLCK;

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
