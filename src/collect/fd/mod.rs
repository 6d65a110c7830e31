//! Descriptors: every table, every open file description once, one file for each kind.
//!
//! What `/proc` shows tells the kind ([`classify`]); the engine takes one duplicate of each distinct description and reads
//! from it what `/proc` does not show. What only makes sense once everything is known (the other ends of pipes, members of
//! epoll instances, locks) comes last.

pub mod classify;
pub mod device;
pub mod epoll;
pub mod eventfd;
pub mod ghost;
pub mod inotify;
pub mod lock;
pub mod look;
pub mod netlink;
pub mod nsfd;
pub mod outside;
pub mod owner;
pub mod pidfd;
pub mod pipe;
pub mod preflight;
pub mod procfile;
pub mod regular;
pub mod set;
pub mod shmem;
pub mod signalfd;
pub mod timerfd;
pub mod tty;
pub mod tty_preflight;
pub mod views;

#[cfg(test)]
pub(crate) mod tests;

pub use ghost::{ghost_of_mapping, read_extents};
pub use preflight::preflight;

pub mod socket;
pub mod socket_preflight;
pub mod sockets;
pub mod tcp;
pub mod tcp_sockets;
pub mod udp;
pub mod unix;

use super::{Cx, Result};
use crate::blocker::Blocker;
use crate::image::fd::{External, File, FileKind};
use crate::image::{FileId, GhostId};
use classify::Class;
use set::Descriptions;
use std::collections::HashMap;

/// What the collection of descriptors knows besides the model.
#[derive(Debug, Default)]
pub struct State {
    /// Open file descriptions.
    pub set: Descriptions,
    /// Mount namespaces.
    pub views: views::Views,
    /// Terminals met so far.
    pub ttys: Vec<FileId>,
    /// Processes that pidfds are still there of.
    pub gone: pidfd::Gone,
    /// Pipes by device and inode.
    pub pipes: pipe::Pipes,
    /// What the kernel says of sockets.
    pub sockets: sockets::Sockets,
}

/// Deleted files by device and inode, for mappings and descriptors of the same one.
pub type Ghosts = HashMap<(u64, u64), GhostId>;

/// Reads all descriptor tables and everything they refer to.
///
/// # Errors
/// What could not be read at all. What cannot be saved is noted as a blocker, and a stand-in takes its place in the model.
pub fn collect(cx: &mut Cx<'_>) -> Result<()> {
    let mut state = State::default();
    let known = std::mem::take(&mut cx.known_descriptors);
    cx.model.fd_tables = state.set.scan(cx, &known)?;
    // Queues of UNIX sockets may hold descriptors of descriptions not met so far: the set grows while it is worked through.
    while cx.model.files.len() < state.set.len() {
        let id = FileId::from(cx.model.files.len());
        let file = file(cx, &mut state, id)?;
        cx.model.files.push(file);
    }
    timerfd::finish(cx, &mut state)?;
    pipe::finish(cx, &mut state)?;
    tty::finish(cx, &mut state)?;
    sockets::finish(cx, &mut state)?;
    epoll::finish(cx, &mut state)?;
    lock::collect(cx, &state);
    // The last of all, without a call in the target after it.
    tcp_sockets::finish(cx, &mut state)
}

fn file(cx: &mut Cx<'_>, state: &mut State, id: FileId) -> Result<File> {
    let kind = kind(cx, state, id)?;
    let owner = owner::collect(cx, &mut state.set, id)?;
    let d = &state.set[id];
    Ok(File {
        flags: d.flags(),
        offset: d.info.pos as u64,
        owner,
        lease: lock::lease(&d.info),
        kind: kind.unwrap_or_else(|| FileKind::External(stand_in(d))),
    })
}

/// One row for each kind. `None`: a blocker was noted. A duplicate is made for those of which not all was seen.
fn kind(cx: &mut Cx<'_>, state: &mut State, id: FileId) -> Result<Option<FileKind>> {
    match state.set[id].class {
        Class::Path => regular::collect(cx, state, id),
        Class::Proc => procfile::collect(cx, state, id),
        Class::Pipe => {
            let fd = state.set.duplicate(id)?;
            pipe::collect(cx, state, id, &fd)
        }
        Class::EventFd => Ok(eventfd::collect(&state.set[id])),
        Class::Epoll => Ok(Some(epoll::collect())),
        Class::SignalFd => Ok(signalfd::collect(&state.set[id])),
        Class::TimerFd => {
            let fd = state.set.duplicate(id)?;
            timerfd::collect(cx, &state.set[id], &fd)
        }
        Class::Inotify => {
            let fd = state.set.duplicate(id)?;
            inotify::collect(cx, state, id, &fd)
        }
        Class::PidFd => Ok(pidfd::collect(cx, &state.set[id], &mut state.gone)),
        Class::Namespace => Ok(nsfd::collect(cx, &state.set[id])),
        Class::Shmem => {
            let fd = state.set.duplicate(id)?;
            shmem::collect(cx, state, id, &fd)
        }
        Class::Device => device::collect(cx, state, id),
        Class::Tty => Ok(tty::collect(state, id)),
        Class::Socket => {
            let fd = state.set.duplicate(id)?;
            sockets::collect(cx, state, id, &fd)
        }
        Class::Unsupported(code) => {
            cx.blockers.push(Blocker::new(code, state.set[id].object()));
            Ok(None)
        }
    }
}

/// Keeps the numbering of files whole where a blocker makes the model useless anyway.
fn stand_in(d: &set::Description) -> External {
    External { key: String::new(), link: d.link.clone(), mode: d.stat.st_mode, terminal: None }
}
