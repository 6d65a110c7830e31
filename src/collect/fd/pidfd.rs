//! Read from fdinfo: pidfd_open(2).

use super::set::Description;
use crate::blocker::{Blocker, codes};
use crate::collect::Cx;
use crate::image::Pid;
use crate::image::fd::{FileKind, pidfd::PidFd};
use crate::proc::fdinfo::Detail;

/// The inodes of pidfds of processes that are gone, each once: since Linux 6.9 those of one process have one.
pub type Gone = Vec<u64>;

/// The process a pidfd refers to, which has to be of the tree, or gone.
pub fn collect(cx: &mut Cx<'_>, d: &Description, gone: &mut Gone) -> Option<FileKind> {
    let Detail::PidFd { pid, .. } = d.info.detail else { return None };
    if pid == -1 {
        let known = gone.iter().position(|inode| *inode == d.stat.st_ino);
        let at = known.unwrap_or_else(|| {
            gone.push(d.stat.st_ino);
            gone.len() - 1
        });
        return Some(FileKind::PidFd(PidFd { pid: None, gone: at as u32 + 1 }));
    }
    match cx.ids.get(&Pid(pid)) {
        Some(id) => Some(FileKind::PidFd(PidFd { pid: Some(*id), gone: 0 })),
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
