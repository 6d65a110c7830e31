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

/// The namespaces of this program, and the clocks of the first process of the tree.
pub(super) struct Here {
    own: ProcDir,
    refused: [u64; REFUSED.len()],
    user: u64,
    mnt: u64,
    time: u64,
}

impl Here {
    pub(super) fn look(root: &ProcDir) -> Result<Self> {
        let own = ProcDir::of_self()?;
        let mut refused = [0; REFUSED.len()];
        for (inode, (kind, _)) in refused.iter_mut().zip(REFUSED) {
            *inode = own.ns(kind)?;
        }
        Ok(Self { refused, user: own.ns("user")?, mnt: own.ns("mnt")?, time: root.ns("time")?, own })
    }
}

pub(super) fn look(member: &Member<'_>, here: &Here, buf: &mut Vec<u8>, found: &mut Vec<Blocker>) -> Result<()> {
    for ((kind, name), ours) in REFUSED.into_iter().zip(here.refused) {
        let theirs = member.dir.ns(kind)?;
        if theirs == 0 {
            // It is ending at this moment.
            return Ok(());
        }
        if theirs != ours {
            let reason = format!("its {name} namespace is not the host's");
            found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
        }
    }
    if member.dir.ns("user")? != here.user && !is_below_ours(member, &here.own)? {
        let reason = "its user namespace is inside another one that is not the host's";
        found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
    }
    if member.dir.ns("time")? != here.time || member.dir.ns("time_for_children")? != here.time {
        let reason = "it, or what it starts, has another time namespace than the first process of the tree";
        found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
    }
    if member.dir.ns("mnt")? != here.mnt {
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
