//! Made by the engine: descriptors of namespaces.

use super::Maker;
use crate::image::ns::NsKind;
use crate::image::task::TaskState;
use crate::image::{NsId, TaskId};
use crate::proc::ProcDir;
use crate::restore::{Error, Result};
use nix::fcntl::OFlag;
use std::os::fd::OwnedFd;

/// Opens the namespace through a task that is in it, or through ourselves.
pub(crate) fn make(maker: &mut Maker<'_>, id: NsId, flags: u32) -> Result<OwnedFd> {
    let namespace = &maker.model.namespaces[id.at()];
    let name = match namespace.kind {
        NsKind::Mnt(_) => "mnt",
        NsKind::Net(_) => "net",
        NsKind::Pid { .. } => "pid",
        NsKind::User(_) => "user",
        NsKind::Uts { .. } => "uts",
        NsKind::Ipc => "ipc",
        NsKind::Cgroup { .. } => "cgroup",
        NsKind::Time { .. } => "time",
    };
    let inside = maker.model.tasks.iter().position(|t| {
        let n = &t.namespaces;
        let all = [n.mnt, n.net, n.pid, n.user, n.uts, n.ipc, n.cgroup, n.time];
        all.contains(&id) && !matches!(t.state, TaskState::Zombie(_))
    });
    let dir = match inside {
        Some(task) => ProcDir::open(maker.skeletons.pid(TaskId::from(task)))?,
        None if namespace.of_host => ProcDir::of_self()?,
        None => {
            let object = format!("{name} namespace {}", namespace.inode);
            return Err(Error::Impossible { object, reason: "no task of the tree is in it".to_owned() });
        }
    };
    let keep = flags as i32 & (libc::O_ACCMODE | libc::O_PATH);
    Ok(dir.open_file(&format!("ns/{name}"), OFlag::from_bits_truncate(keep))?)
}
