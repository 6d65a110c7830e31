//! Namespaces of the tasks.

use super::{Cx, Result};
use crate::image::NsId;
use crate::image::ns::{Namespace, NsKind, mnt::MntNs, net::NetNs, user::UserNs};
use crate::image::task::TaskNamespaces;
use crate::proc::ProcDir;

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

/// The namespaces of one process; those of the engine or of a task before it are known.
pub fn of_task(cx: &mut Cx<'_>, at: usize) -> Result<TaskNamespaces> {
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
