//! What it takes to wake the sockets of a copy that stands still when whoever has made it is dead: written down beside the
//! journal, as long as nobody knows who will let it run. The sockets themselves are in the copy's descriptor tables.
//!
//! Nodes of UNIX sockets in a move within one host are not part of it: they stay those of the original.

use super::sockets::{Sleeping, describe};
use super::{tcp, udp};
use crate::image::fd::FileKind;
use crate::image::fd::{tcp::Tcp, udp::Udp};
use crate::image::{FileId, Model, Pid, TaskId};
use crate::net::lock::NetLock;
use crate::net::segment::Injector;
use crate::restore::skeleton::Skeletons;
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use crate::sys::{pidfd, socket, tcp_repair};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// Sockets that sleep, and where they are.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Bequest {
    tcp: Vec<(Place, Tcp, tcp::Unfinished)>,
    udp: Vec<(Place, Udp)>,
}

/// A descriptor of a thread of the copy, as this host sees it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Place {
    tid: i32,
    fd: u32,
}

impl Place {
    /// Of a description of the model; `None` if only a queue has it.
    fn of(model: &Model, skeletons: &Skeletons, file: FileId) -> Option<Self> {
        let mut tables = model.fd_tables.iter().enumerate();
        let (table, fd) = tables.find_map(|(n, table)| {
            let entry = table.entries.iter().find(|entry| entry.file == file)?;
            Some((n, entry.fd))
        })?;
        model.tasks.iter().enumerate().find_map(|(task, of)| {
            let thread = of.threads.iter().position(|thread| thread.fd_table.at() == table)?;
            let tid = skeletons.tasks.get(&TaskId::from(task))?.threads.get(thread)?.pid().0;
            Some(Self { tid, fd })
        })
    }

    fn open(self) -> crate::sys::Result<OwnedFd> {
        let process = pidfd_open(Pid(self.tid)).or_else(|_| pidfd::open_thread(Pid(self.tid)))?;
        pidfd_getfd(process.as_fd(), self.fd)
    }
}

impl Bequest {
    /// Of a tree that is complete.
    pub(crate) fn of(sleeping: &Sleeping, model: &Model, skeletons: &Skeletons) -> Self {
        let place = |file: &FileId| Place::of(model, skeletons, *file);
        let tcp = sleeping.tcp.iter().filter_map(|(file, _, rest)| match &model.files[file.at()].kind {
            FileKind::Tcp(tcp) => Some((place(file)?, tcp.clone(), rest.clone())),
            _ => None,
        });
        let udp = sleeping.udp.iter().filter_map(|(file, _)| match &model.files[file.at()].kind {
            FileKind::Udp(udp) => Some((place(file)?, udp.clone())),
            _ => None,
        });
        Self { tcp: tcp.collect(), udp: udp.collect() }
    }

    /// Nobody sleeps.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    /// Wakes those that sleep yet: the copy is about to run. What was sent to them meanwhile is repeated by its senders. Failures
    /// are logged: it runs nevertheless, since by now it runs nowhere else.
    pub fn wake(self) {
        for (place, tcp, rest) in self.tcp {
            let object = describe(&FileKind::Tcp(tcp.clone()));
            let woken = place.open().map_err(|errno| errno.to_string()).and_then(|fd| {
                if rest.is_asleep(&fd) { wake(&fd, &tcp, rest).map_err(|error| error.to_string()) } else { Ok(()) }
            });
            if let Err(error) = woken {
                tracing::warn!(error, "{object} stays mute");
            }
        }
        for (place, udp) in self.udp {
            let object = describe(&FileKind::Udp(udp.clone()));
            let woken = place.open().map_err(|errno| errno.to_string()).and_then(|fd| {
                let injector = injector(&fd).map_err(|error| error.to_string())?;
                udp::finish(fd.as_fd(), &udp, &injector).map_err(|error| error.to_string())
            });
            if let Err(error) | Ok(Some(error)) = woken {
                tracing::warn!(error, "{object}");
            }
        }
    }
}

fn wake(fd: &OwnedFd, tcp: &Tcp, rest: tcp::Unfinished) -> crate::net::Result<()> {
    rest.speak(fd.as_fd(), &injector(fd)?)?;
    rest.hear(fd.as_fd(), tcp)
}

/// In the network namespace of a socket.
fn injector(fd: &OwnedFd) -> crate::net::Result<Injector> {
    let net = socket::namespace_of(fd.as_fd()).ok();
    Injector::open(net.as_ref().map(AsFd::as_fd))
}

impl tcp::Unfinished {
    /// Nobody has woken it: whoever is killed while waking many may have come to it.
    fn is_asleep(&self, fd: &OwnedFd) -> bool {
        let deaf = || socket::filter(fd.as_fd()).is_ok_and(|filter| NetLock::is_of_a_lock(&filter));
        let mute = tcp_repair::is_on(fd.as_fd()).unwrap_or(false);
        mute || if self.is_deaf() { deaf() } else { !self.is_connection() }
    }
}
