//! Namespaces that cannot be made again.

use super::{Member, reach::object};
use crate::{
    blocker::{Blocker, codes},
    image::ns::mnt::Mount,
    proc::{ProcDir, Result},
};
use std::collections::BTreeSet;

/// Kinds that a restore cannot make: a tree that has one of its own is refused. PID namespaces are handled by the ids of
/// the tasks, mount namespaces below, roots of cgroups by `--cgroup`, one time namespace for the whole tree by its clocks.
const REFUSED: [&str; 4] = ["net", "user", "uts", "ipc"];

pub(super) fn look(member: &Member<'_>, root: &ProcDir, buf: &mut Vec<u8>, found: &mut Vec<Blocker>) -> Result<()> {
    let own = ProcDir::of_self()?;
    for kind in REFUSED {
        let theirs = member.dir.ns(kind)?;
        if theirs == 0 {
            // It is ending at this moment.
            return Ok(());
        }
        if theirs != own.ns(kind)? {
            let reason = format!("it has a {kind} namespace of its own");
            found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
        }
    }
    let time = root.ns("time")?;
    if member.dir.ns("time")? != time || member.dir.ns("time_for_children")? != time {
        let reason = "it, or what it starts, has another time namespace than the first process of the tree";
        found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
    }
    if member.dir.ns("mnt")? != own.ns("mnt")? {
        let (theirs, ours) = (view(&member.dir.mountinfo(buf)?), view(&own.mountinfo(buf)?));
        if let Some((point, _)) = theirs.symmetric_difference(&ours).next() {
            let reason = format!("its mount namespace differs from the host's, first at {point}");
            found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
        }
    }
    Ok(())
}

/// What paths lead to: mount points with file system and part of it. `/proc` always shows the PID namespace of whoever
/// mounted it, and is restored as such.
fn view(mounts: &[Mount]) -> BTreeSet<(String, (u64, Vec<u8>))> {
    let visible = mounts.iter().filter(|mount| mount.fs_type.0 != b"proc");
    visible.map(|m| (m.mount_point.to_string(), (m.device, m.root.0.clone()))).collect()
}
