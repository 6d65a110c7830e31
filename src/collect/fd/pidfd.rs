//! Read from fdinfo: pidfd_open(2).

use super::set::Description;
use crate::blocker::{Blocker, codes};
use crate::collect::Cx;
use crate::image::Pid;
use crate::image::fd::{FileKind, pidfd::PidFd};
use crate::proc::fdinfo::Detail;

/// The process a pidfd refers to, which has to be of the tree, or gone.
pub fn collect(cx: &mut Cx<'_>, d: &Description) -> Option<FileKind> {
    let Detail::PidFd { pid, .. } = d.info.detail else { return None };
    if pid == -1 {
        return Some(FileKind::PidFd(PidFd { pid: None, inode: d.stat.st_ino }));
    }
    match cx.ids.get(&Pid(pid)) {
        Some(id) => Some(FileKind::PidFd(PidFd { pid: Some(*id), inode: 0 })),
        None => {
            cx.blockers.push(outside(&d.object(), pid));
            None
        }
    }
}

/// The blocker for a pidfd of a process outside.
pub fn outside(object: &str, pid: i32) -> Blocker {
    Blocker::new(codes::PIDFD_OUTSIDE, object).because(match pid {
        0 => "it refers to a process that is not visible from here".to_owned(),
        _ => format!("it refers to process {pid}, which is not in the tree"),
    })
}
