//! cgroup memberships.

use super::{Cx, Result};
use crate::image::cgroup::Membership;
use crate::image::{CgroupSetId, Pid};
use crate::proc::cgroupfs::hierarchies;

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

/// Cgroups around the tree that somebody else holds frozen: it was thawed when all of its tasks had been stopped.
pub fn frozen(cx: &Cx<'_>) -> Result<Vec<Membership>> {
    let freezers = cx.frozen.freezers();
    if freezers.is_empty() {
        return Ok(Vec::new());
    }
    let hierarchies = hierarchies()?;
    let found = freezers.iter().filter_map(|freezer| {
        let fits = |h: &&crate::proc::cgroupfs::Hierarchy| h.is_v2() == freezer.v2 && freezer.dir.starts_with(&h.mount);
        let hierarchy = hierarchies.iter().find(fits)?;
        Some(Membership { controllers: hierarchy.controllers.clone(), path: hierarchy.path(&freezer.dir)?.into() })
    });
    Ok(found.collect())
}
