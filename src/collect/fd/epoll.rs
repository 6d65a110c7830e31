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
use crate::trace::Batch;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// So few members are compared one by one.
const FEW: usize = 64;

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
    let in_place = if targets.len() > FEW { in_place(cx, state, id, &targets)? } else { HashSet::new() };
    let mut members = Vec::with_capacity(targets.len());
    let mut nth: HashMap<u32, u32> = HashMap::new();
    for target in &targets {
        let count = nth.entry(target.fd).or_insert(0);
        let slot = Slot { epoll: state.set[id].fd, fd: target.fd, nth: *count };
        *count += 1;
        if *count == 1
            && in_place.contains(&target.fd)
            && let Some(file) = state.set[id].table.and_then(|table| entry(cx, table, target.fd))
        {
            members.push(Member { fd: target.fd, file, events: target.events, data: target.data });
            continue;
        }
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

/// Numbers that are registered once, for the file that still has the number. kcmp(2) walks through the whole instance to
/// answer one question; an attempt to register a file a second time is refused at the cost of one look-up, and changes
/// nothing. Where it is not refused the number is another file's by now, and the new registration is taken back.
fn in_place(cx: &mut Cx<'_>, state: &State, id: FileId, targets: &[EpollTarget]) -> Result<HashSet<u32>> {
    let d = &state.set[id];
    let mut count: HashMap<u32, u32> = HashMap::new();
    for target in targets {
        *count.entry(target.fd).or_insert(0) += 1;
    }
    let Some(table) = d.table else { return Ok(HashSet::new()) };
    let (at, thread) = cx.table_owner[table.at()];
    let once = targets.iter().filter(|t| count[&t.fd] == 1 && entry(cx, table, t.fd).is_some());
    let mut batch = Batch::new();
    let event = batch.bytes(&[0; 12]);
    let ctl = |op: i32, fd: u32| [d.fd.into(), op.into(), fd.into(), event];
    let asked: Vec<_> = once.map(|t| (t.fd, batch.may(libc::SYS_epoll_ctl, &ctl(libc::EPOLL_CTL_ADD, t.fd)))).collect();
    let process = &mut cx.frozen.processes[at];
    let Some(scratch) = process.scratch else { return Ok(HashSet::new()) };
    let results = process.threads[thread].run(&scratch, &batch)?;
    let mut back = Batch::new();
    let event = back.bytes(&[0; 12]);
    let mut found = HashSet::with_capacity(asked.len());
    for (fd, call) in asked {
        match results.get(call) {
            Err(Errno::EEXIST) => {
                found.insert(fd);
            }
            Ok(_) => {
                back.must(libc::SYS_epoll_ctl, &[d.fd.into(), libc::EPOLL_CTL_DEL.into(), fd.into(), event]);
            }
            Err(_) => {}
        }
    }
    process.threads[thread].run_all(&scratch, &back)?;
    Ok(found)
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
