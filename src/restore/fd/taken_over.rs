//! Made by nobody: sockets of an original that is frozen on this very kernel and in this network namespace are taken over,
//! the same open file descriptions. A second socket could not have their ports, and connections would have to be built
//! beside living ones; and what waits in their queues stays where it is.
//!
//! Nothing is done to them before the tree runs: until then they are the original's, which goes on with them if the move
//! fails.

use super::Holders;
use crate::blocker::{Blocker, codes};
use crate::image::fd::tcp::{Tcp, TcpState};
use crate::image::fd::unix::UnixSocket;
use crate::image::fd::{File, FileKind};
use crate::image::{FileId, Model, NsId, Pid, TaskId};
use crate::net::segment::parse_address;
use crate::proc::ProcDir;
use crate::proc::task::processes;
use crate::restore::{Error, Result};
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use crate::sys::{Errno, socket};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

/// The frozen original, as far as it has been looked at.
#[derive(Debug)]
pub(crate) struct Original {
    holders: Holders,
    processes: HashMap<TaskId, OwnedFd>,
}

impl Original {
    pub(crate) fn of(model: &Model) -> Self {
        Self { holders: Holders::of(model), processes: HashMap::new() }
    }

    /// The original's own socket, if `file` is one that has to be taken over. `original_here`: the original is on this kernel.
    pub(crate) fn socket(&mut self, model: &Model, id: FileId, file: &File) -> Result<Option<OwnedFd>> {
        let local = match &file.kind {
            FileKind::Tcp(tcp) if stays(model, tcp) => Some(&tcp.local),
            FileKind::Udp(udp) if is_here(model, udp.net) => Some(&udp.local),
            FileKind::Unix(unix) if unix_stay(model) => {
                let name = &model.unix_sockets[unix.at()].name;
                return self.get(model, id, |fd| Ok(fd.get(2..).unwrap_or_default().starts_with(&name.0)));
            }
            _ => None,
        };
        let Some(local) = local.filter(|local| !local.0.is_empty()) else { return Ok(None) };
        let wanted = parse_address(&local.0);
        self.get(model, id, |found| Ok(parse_address(found) == wanted))
    }

    /// The description, through any process of the original that has it. `fits` judges its local address.
    fn get(&mut self, model: &Model, id: FileId, fits: impl Fn(&[u8]) -> Result<bool>) -> Result<Option<OwnedFd>> {
        let Some((task, fd)) = self.holder(model, id) else { return Ok(None) };
        let failed = |operation| {
            move |errno: Errno| Error::System { operation, object: format!("descriptor {fd} of the original"), errno }
        };
        let process = match self.processes.entry(task) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(room) => {
                let Some(pid) = find(model, task)? else { return Ok(None) };
                room.insert(pidfd_open(pid).map_err(failed("pidfd_open"))?)
            }
        };
        let socket = pidfd_getfd(process.as_fd(), fd).map_err(failed("pidfd_getfd"))?;
        let address = socket::local_address(socket.as_fd()).map_err(failed("getsockname"))?;
        match fits(&address)? {
            true => Ok(Some(socket)),
            false => Err(Error::Impossible {
                object: format!("descriptor {fd} of the original"),
                reason: "it is another socket than the model tells of".to_owned(),
            }),
        }
    }

    fn holder(&self, model: &Model, id: FileId) -> Option<(TaskId, u32)> {
        // A process is asked for descriptors of its first thread's table.
        model.tasks.iter().enumerate().find_map(|(n, task)| {
            let table = task.threads.first()?.fd_table;
            Some((TaskId::from(n), *self.holders.fds.get(&(table, id))?))
        })
    }
}

/// Sockets of the model's host are in this process's own network namespace.
pub(crate) fn is_same_network(model: &Model) -> bool {
    (0..model.namespaces.len()).map(NsId::from).any(|ns| is_here(model, ns))
}

/// The network namespace of the model is this process's own, and the original is in it.
pub(crate) fn is_here(model: &Model, net: NsId) -> bool {
    let ns = &model.namespaces[net.at()];
    let own = ProcDir::of_self().and_then(|dir| dir.ns("net"));
    ns.of_host && own.is_ok_and(|own| own == ns.inode)
}

/// A connection that has ended, or is to end (`--tcp close`), is made anew: the original's may be alive.
fn stays(model: &Model, tcp: &Tcp) -> bool {
    is_here(model, tcp.net) && !matches!(tcp.state, TcpState::Ended { .. })
}

/// UNIX sockets are taken over where one has an abstract name in this network namespace, which only one socket can have:
/// all of them, as those that are connected to each other belong together.
pub(crate) fn unix_stay(model: &Model) -> bool {
    model.unix_sockets.iter().any(|s| s.name.0.first() == Some(&0) && is_here(model, s.net))
}

/// What cannot be taken over as it is. `model` is of an original on this kernel.
pub(crate) fn blockers(model: &Model) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    let unix = unix_stay(model);
    for (id, file) in crate::image::fd::enumerate(&model.files) {
        let stays = match &file.kind {
            FileKind::Tcp(tcp) => stays(model, tcp) && !tcp.local.0.is_empty(),
            FileKind::Udp(udp) => is_here(model, udp.net) && !udp.local.0.is_empty(),
            FileKind::Unix(_) => unix,
            _ => false,
        };
        if stays && file.owner.is_some() {
            let reason = "it is to send SIGIO to a process, and would have to be taken over from the original as it is";
            let object = format!("{} (file {})", super::sockets::describe(&file.kind), id.0);
            blockers.push(Blocker::new(codes::SAME_NETWORK, object).because(reason));
        }
    }
    // They are descriptions of the original's, of which the new tree has others.
    let torn = |s: &&UnixSocket| unix && s.queue.iter().any(|message| !message.files.is_empty());
    blockers.extend(model.unix_sockets.iter().filter(torn).map(|s| {
        let reason = "descriptors are in flight in it, and it would have to be taken over from the original as it is";
        Blocker::new(codes::SAME_NETWORK, format!("socket:[{}]", s.inode)).because(reason)
    }));
    blockers
}

/// The process of the original, as this process sees it.
fn find(model: &Model, id: TaskId) -> Result<Option<Pid>> {
    let task = &model.tasks[id.at()];
    let inode = model.namespaces[task.namespaces.pid.at()].inode;
    let inner: Vec<i32> = std::iter::once(task.pid).chain(task.inner_pids.iter().copied()).map(|pid| pid.0).collect();
    let mut buf = Vec::new();
    let mut is_it = |pid: Pid| -> crate::proc::Result<bool> {
        let dir = ProcDir::open(pid)?;
        Ok(dir.ns("pid")? == inode && dir.status(&mut buf)?.ns_pid.ends_with(&inner))
    };
    // Without PID namespaces in between its number is the one it has here.
    let guess = Pid(task.pid.0);
    if is_it(guess).unwrap_or(false) {
        return Ok(Some(guess));
    }
    // What ends meanwhile, or is closed to us, is not the original.
    Ok(processes()?.into_iter().find(|pid| is_it(*pid).unwrap_or(false)))
}
