//! cgroup memberships.

use super::{Cx, Result};
use crate::image::{CgroupSetId, Pid};

/// The memberships of a process, or of one of its threads.
pub fn of(cx: &mut Cx<'_>, at: usize, thread: Option<Pid>) -> Result<Option<CgroupSetId>> {
    let process = &cx.frozen.processes[at];
    let set = match thread {
        Some(tid) => process.dir.thread(tid)?.cgroup_set(&mut cx.buf)?,
        None => process.dir.cgroup_set(&mut cx.buf)?,
    };
    let known = cx.model.cgroups.iter().position(|s| *s == set);
    let id = known.unwrap_or_else(|| {
        cx.model.cgroups.push(set);
        cx.model.cgroups.len() - 1
    });
    Ok(Some(CgroupSetId::from(id)))
}
