//! Namespaces that cannot be made again.

use super::{Member, reach::object};
use crate::{
    blocker::{Blocker, codes},
    collect::ns::mnt,
    image::Pid,
    proc::{ProcDir, Result, task::processes},
    sys::nsfs,
};
use nix::fcntl::OFlag;

/// Kinds that a restore cannot make: a tree that has one of its own is refused. PID namespaces are handled by the ids of
/// the tasks, mount and user namespaces below, one time namespace for the whole tree by its clocks.
const REFUSED: [(&str, &str); 3] = [("net", "network"), ("ipc", "IPC"), ("cgroup", "cgroup")];

/// The namespaces of this program, and the clocks of the first process of the tree.
pub(super) struct Here<'t> {
    tree: &'t [Pid],
    own: ProcDir,
    refused: [u64; REFUSED.len()],
    user: u64,
    mnt: u64,
    time: u64,
}

impl<'t> Here<'t> {
    /// `tree`: its processes; `root`: the directory of the first.
    pub(super) fn look(root: &ProcDir, tree: &'t [Pid]) -> Result<Self> {
        let own = ProcDir::of_self()?;
        let mut refused = [0; REFUSED.len()];
        for (inode, (kind, _)) in refused.iter_mut().zip(REFUSED) {
            *inode = own.ns(kind)?;
        }
        Ok(Self { tree, refused, user: own.ns("user")?, mnt: own.ns("mnt")?, time: root.ns("time")?, own })
    }
}

pub(super) fn look(member: &Member<'_>, here: &Here<'_>, buf: &mut Vec<u8>, found: &mut Vec<Blocker>) -> Result<()> {
    for ((kind, name), ours) in REFUSED.into_iter().zip(here.refused) {
        let theirs = member.dir.ns(kind)?;
        if theirs == 0 {
            // It is ending at this moment.
            return Ok(());
        }
        if theirs != ours {
            if let Some(user) = (kind == "net").then(|| outside(theirs, here.tree)).flatten() {
                let reason = format!("process {user}, which is not in the tree, is in its network namespace as well");
                found.push(Blocker::new(codes::NETNS_OUTSIDE, object(member.row)).because(reason));
                continue;
            }
            let reason = format!("its {name} namespace is not the host's");
            found.push(Blocker::new(codes::NAMESPACE_KIND, object(member.row)).because(reason));
        }
    }
    if member.dir.ns("user")? != here.user && !is_below_ours(member, &here.own)? {
        let reason = "its user namespace is inside another one that is not the host's";
        found.push(Blocker::new(codes::USERNS_NESTED, object(member.row)).because(reason));
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

/// A process outside the tree that is in this network namespace.
fn outside(ns: u64, tree: &[Pid]) -> Option<Pid> {
    let others = processes().unwrap_or_default().into_iter().filter(|pid| !tree.contains(pid));
    let mut in_it =
        others.filter(|pid| ProcDir::open(*pid).and_then(|dir| dir.ns("net")).is_ok_and(|theirs| theirs == ns));
    in_it.next()
}

/// Its user namespace was made in ours.
fn is_below_ours(member: &Member<'_>, own: &ProcDir) -> Result<bool> {
    let link = member.dir.open_file("ns/user", OFlag::O_RDONLY)?;
    let parent = nsfs::parent(&link).and_then(nix::sys::stat::fstat);
    Ok(parent.is_ok_and(|parent| own.stat_of("ns/user").is_ok_and(|ours| ours.st_ino == parent.st_ino)))
}
