//! Namespaces of the tasks; of mount namespaces: [`table`] (pure) against the host's mounts, [`content`] of what only the target has mounted.

pub mod content;
pub mod mnt;
pub mod table;
pub mod user;
pub mod uts;

use super::{Cx, Result};
use crate::image::NsId;
use crate::image::ns::{Namespace, NsKind, mnt::MntNs, net::NetNs, user::UserNs};
use crate::image::task::TaskNamespaces;
use crate::proc::ProcDir;
use crate::proc::timens::{self, Offsets};

/// The kinds with their names below `/proc/PID/ns`.
const KINDS: [&str; 8] = ["mnt", "net", "pid", "user", "uts", "ipc", "cgroup", "time"];

/// Notes the namespaces of the engine, which are those of most trees: nothing is made for them at restore.
pub fn collect(cx: &mut Cx<'_>) -> Result<()> {
    let own = ProcDir::of_self()?;
    for kind in KINDS {
        let inode = own.stat_of(&format!("ns/{kind}"))?.st_ino;
        cx.model.namespaces.push(Namespace { inode, of_host: true, owner: None, kind: empty(kind) });
    }
    Ok(())
}

/// What the tree's own namespaces hold, and who owns them; after the tasks.
pub fn fill(cx: &mut Cx<'_>) -> Result<()> {
    user::fill(cx)?;
    uts::fill(cx)?;
    fill_clocks(cx)?;
    mnt::fill(cx)
}

/// A process's file is about the namespace of its children: the preflight has seen that they are in the same.
fn fill_clocks(cx: &mut Cx<'_>) -> Result<()> {
    for at in 0..cx.model.namespaces.len() {
        if !matches!(cx.model.namespaces[at].kind, NsKind::Time { .. }) {
            continue;
        }
        let offsets = match inside(cx, NsId::from(at), "time") {
            _ if cx.model.namespaces[at].of_host => timens::own(),
            Some(process) => cx.frozen.processes[process].dir.timens_offsets(&mut cx.buf)?,
            None => continue,
        };
        let Offsets { monotonic_ns, boottime_ns } = offsets;
        cx.model.namespaces[at].kind = NsKind::Time { monotonic_ns, boottime_ns };
    }
    Ok(())
}

/// A live process of the tree in this namespace, if there is one with the root directory of its mount namespace.
fn inside(cx: &Cx<'_>, ns: NsId, kind: &str) -> Option<usize> {
    let inode = cx.model.namespaces[ns.at()].inode;
    let is_in = |at: &usize| {
        let process = &cx.frozen.processes[*at];
        !process.zombie && process.dir.stat_of(&format!("ns/{kind}")).is_ok_and(|s| s.st_ino == inode)
    };
    let at_root = |at: &usize| cx.frozen.processes[*at].dir.readlink("root").is_ok_and(|l| l.0 == b"/");
    let members: Vec<usize> = (0..cx.frozen.processes.len()).filter(is_in).collect();
    members.iter().copied().find(at_root).or_else(|| members.first().copied())
}

/// The user namespace that owns this one, if it is one of the model (the host's included).
fn owner(cx: &Cx<'_>, ns: &impl std::os::fd::AsFd) -> Option<NsId> {
    let owner = crate::sys::nsfs::owner(ns).ok()?;
    let inode = nix::sys::stat::fstat(&owner).ok()?.st_ino;
    cx.model.namespaces.iter().position(|n| n.inode == inode).map(NsId::from)
}

/// The namespaces of one process; those of the engine or of a task before it are known.
pub fn of_task(cx: &mut Cx<'_>, at: usize) -> Result<TaskNamespaces> {
    if let Some(known) = cx.namespaces_of.get(&at) {
        return Ok(*known);
    }
    let found = look_at(cx, at)?;
    cx.namespaces_of.insert(at, found);
    Ok(found)
}

fn look_at(cx: &mut Cx<'_>, at: usize) -> Result<TaskNamespaces> {
    let mut number = |name: &str, kind: &str| -> Result<NsId> {
        let process = &cx.frozen.processes[at];
        let inode = match process.dir.stat_of(&format!("ns/{name}")) {
            Ok(stat) => stat.st_ino,
            // A zombie has given its namespaces up but for the user and PID ones: it counts as in the engine's.
            Err(_) => return Ok(NsId::from(KINDS.iter().position(|k| *k == kind).unwrap_or(0))),
        };
        let known = cx.model.namespaces.iter().position(|n| n.inode == inode);
        Ok(NsId::from(known.unwrap_or_else(|| {
            cx.model.namespaces.push(Namespace { inode, of_host: false, owner: None, kind: empty(kind) });
            cx.model.namespaces.len() - 1
        })))
    };
    Ok(TaskNamespaces {
        mnt: number("mnt", "mnt")?,
        net: number("net", "net")?,
        pid: number("pid", "pid")?,
        pid_for_children: number("pid_for_children", "pid")?,
        user: number("user", "user")?,
        uts: number("uts", "uts")?,
        ipc: number("ipc", "ipc")?,
        cgroup: number("cgroup", "cgroup")?,
        time: number("time", "time")?,
        time_for_children: number("time_for_children", "time")?,
    })
}

fn empty(kind: &str) -> NsKind {
    match kind {
        "mnt" => NsKind::Mnt(MntNs::default()),
        "net" => NsKind::Net(NetNs::default()),
        "pid" => NsKind::Pid { parent: None },
        "user" => NsKind::User(UserNs::default()),
        "uts" => NsKind::Uts { hostname: Default::default(), domainname: Default::default() },
        "ipc" => NsKind::Ipc,
        "cgroup" => NsKind::Cgroup { roots: Vec::new() },
        _ => NsKind::Time { monotonic_ns: 0, boottime_ns: 0 },
    }
}
