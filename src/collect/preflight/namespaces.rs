//! Namespaces that cannot be made again.

use super::{Member, reach::object};
use crate::{
    blocker::{Blocker, codes},
    collect::ns::mnt,
    proc::{ProcDir, Result},
    sys::nsfs,
};
use nix::fcntl::OFlag;

/// Kinds that a restore cannot make: a tree that has one of its own is refused. PID namespaces are handled by the ids of
/// the tasks, mount and user namespaces below, one time namespace for the whole tree by its clocks.
const REFUSED: [(&str, &str); 3] = [("net", "network"), ("ipc", "IPC"), ("cgroup", "cgroup")];

pub(super) fn look(member: &Member<'_>, root: &ProcDir, buf: &mut Vec<u8>, found: &mut Vec<Blocker>) -> Result<()> {
    let own = ProcDir::of_self()?;
    for (kind, name) in REFUSED {
        let theirs = member.dir.ns(kind)?;
        if theirs == 0 {
            // It is ending at this moment.
            return Ok(());
        }
        if theirs != own.ns(kind)? {
            let reason = format!("its {name} namespace is not the host's");
            found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
        }
    }
    if member.dir.ns("user")? != own.ns("user")? && !is_below_ours(member, &own)? {
        let reason = "its user namespace is inside another one that is not the host's";
        found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
    }
    let time = root.ns("time")?;
    if member.dir.ns("time")? != time || member.dir.ns("time_for_children")? != time {
        let reason = "it, or what it starts, has another time namespace than the first process of the tree";
        found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
    }
    if member.dir.ns("mnt")? != own.ns("mnt")? {
        mnt::look(member.dir, &object(member.row), buf, found)?;
    }
    Ok(())
}

/// Its user namespace was made in ours.
fn is_below_ours(member: &Member<'_>, own: &ProcDir) -> Result<bool> {
    let link = member.dir.open_file("ns/user", OFlag::O_RDONLY)?;
    let parent = nsfs::parent(&link).and_then(nix::sys::stat::fstat);
    Ok(parent.is_ok_and(|parent| own.stat_of("ns/user").is_ok_and(|ours| ours.st_ino == parent.st_ino)))
}
