//! Read from fdinfo, identity of members by kcmp(2): epoll(7).

use super::State;
use super::set::Description;
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::fd::FileKind;
use crate::image::fd::epoll::{Epoll, Member};
use crate::image::{FdTableId, FileId};
use crate::proc::fdinfo::{Detail, EpollTarget};
use crate::sys::Errno;
use crate::sys::epoll::{Slot, compare};
use std::cmp::Ordering;
use std::collections::HashMap;

/// An instance; its members are found by [`finish`], once every description is known.
pub fn collect() -> FileKind {
    FileKind::Epoll(Epoll { members: Vec::new() })
}

/// Fills in the members of all instances.
pub fn finish(cx: &mut Cx<'_>, state: &mut State) -> Result<()> {
    for n in 0..cx.model.files.len() {
        if !matches!(cx.model.files[n].kind, FileKind::Epoll(_)) {
            continue;
        }
        let members = members(cx, state, FileId::from(n))?;
        cx.model.files[n].kind = FileKind::Epoll(Epoll { members });
    }
    Ok(())
}

fn members(cx: &mut Cx<'_>, state: &mut State, id: FileId) -> Result<Vec<Member>> {
    // An instance that watches nothing says nothing.
    let Detail::Epoll(targets) = state.set[id].info.detail.clone() else { return Ok(Vec::new()) };
    let mut members = Vec::with_capacity(targets.len());
    let mut nth: HashMap<u32, u32> = HashMap::new();
    for target in &targets {
        let count = nth.entry(target.fd).or_insert(0);
        let slot = Slot { epoll: state.set[id].fd, fd: target.fd, nth: *count };
        *count += 1;
        match find(cx, state, id, target, &slot) {
            Ok(Some(file)) => {
                members.push(Member { fd: target.fd, file, events: target.events, data: target.data });
            }
            Ok(None) => {
                let reason =
                    format!("it watches a file under number {} that nobody in the tree has open any more", target.fd);
                cx.blockers.push(Blocker::new(codes::EPOLL_OUTSIDE, state.set[id].object()).because(reason));
            }
            Err(errno) => return Err(state.set[id].failed("kcmp (epoll)")(errno)),
        }
    }
    // The kernel lists them by the address of the file.
    members.sort_by_key(|m| (m.fd, m.file));
    Ok(members)
}

/// The description a registration is about: nearly always the one that still has the number.
fn find(
    cx: &Cx<'_>,
    state: &mut State,
    id: FileId,
    target: &EpollTarget,
    slot: &Slot,
) -> std::result::Result<Option<FileId>, Errno> {
    let holder = state.set[id].holder;
    let at_number = state.set[id].table.and_then(|table| entry(cx, table, target.fd));
    if let Some(file) = at_number.filter(|f| target.ino == 0 || state.set[*f].stat.st_ino == target.ino) {
        match compare(holder, target.fd, holder, slot) {
            Ok(Ordering::Equal) => return Ok(Some(file)),
            Ok(_) => {}
            // Kernels before 4.13, or without epoll in kcmp: what agrees in number and inode is the same.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(Some(file)),
            Err(errno) => return Err(errno),
        }
    }
    state.set.find(|d: &Description| compare(d.holder, d.fd, holder, slot))
}

fn entry(cx: &Cx<'_>, table: FdTableId, fd: u32) -> Option<FileId> {
    let entries = &cx.model.fd_tables[table.at()].entries;
    entries.binary_search_by_key(&fd, |e| e.fd).ok().map(|at| entries[at].file)
}
