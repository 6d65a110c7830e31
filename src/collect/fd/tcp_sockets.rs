//! TCP sockets of the tree, all together and last: whoever stands in for us if we die is told before the first is locked, and
//! the tree makes no call for us after that.

use super::sockets::{system, unless_unsupported};
use super::{State, tcp};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Error, Result};
use crate::image::fd::FileKind;
use crate::image::fd::tcp::{Tcp, TcpState};
use crate::image::{Bytes, FileId, NsId};
use crate::net;
use crate::net::lock::{NetLock, Terms};
use crate::net::segment::raw_address;
use crate::ops::options::Tcp as TcpPolicy;
use crate::proc::ProcDir;
use crate::sys::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A socket that is read at the end.
#[derive(Debug)]
pub struct Noted {
    id: FileId,
    object: String,
    net: NsId,
    socket: OwnedFd,
}

/// Looks at a socket, and notes it for [`finish`]. `None`: a blocker was noted, or it is only known then what it is.
pub(super) fn note(
    cx: &mut Cx<'_>,
    state: &mut State,
    id: FileId,
    fd: &OwnedFd,
    net: NsId,
) -> Result<Option<FileKind>> {
    let object = state.set[id].object();
    let blockers = tcp::preflight(fd.as_fd(), cx.policy.tcp, &object)
        .map_err(|error| Error::Socket { object: object.clone(), error })?;
    if !blockers.is_empty() {
        cx.blockers.extend(blockers);
        return Ok(None);
    }
    let socket = fd.try_clone().map_err(|e| system("dup", &object, Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
    state.sockets.tcp.push(Noted { id, object, net, socket });
    if state.sockets.tcp.len().is_multiple_of(256) {
        allow_many(&state.set[id].object())?;
    }
    Ok(None)
}

/// Every noted socket is a descriptor of ours.
fn allow_many(object: &str) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let failed = |errno| system("setrlimit of our own open files", object, errno);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed) } else { Ok(()) }
}

/// Locks all that were noted, and reads them.
pub(super) fn finish(cx: &mut Cx<'_>, state: &mut State) -> Result<()> {
    let noted = std::mem::take(&mut state.sockets.tcp);
    let mut terms = Vec::new();
    if cx.policy.tcp == TcpPolicy::Keep {
        for socket in &noted {
            let of = Terms::of(socket.socket.as_fd());
            terms.push(of.map_err(|error| Error::Socket { object: socket.object.clone(), error })?);
        }
        let all = noted.iter().map(|socket| socket.socket.as_fd()).zip(terms.iter().cloned());
        let all: Vec<(BorrowedFd<'_>, Terms)> = all.filter(|(_, terms)| terms.change_anything()).collect();
        if !all.is_empty() {
            (cx.surety)(cx.frozen, &all);
        }
    }
    let mut terms = terms.into_iter();
    for socket in noted {
        let id = socket.id;
        if let Some(tcp) = read(cx, state, socket, terms.next())? {
            cx.model.files[id.at()].kind = FileKind::Tcp(tcp);
        }
    }
    Ok(())
}

/// Reads a socket, locked where there are terms.
fn read(cx: &mut Cx<'_>, state: &State, noted: Noted, terms: Option<Terms>) -> Result<Option<Tcp>> {
    let Noted { id, object, net, socket } = noted;
    let failed = |error| Error::Socket { object: object.clone(), error };
    let policy = cx.policy.tcp;
    let lock = match terms {
        Some(terms) => NetLock::lock_as(socket, terms),
        None => NetLock::look(socket),
    };
    let lock = match lock {
        Err(net::Error::Kernel { errno: Errno::EPERM, .. }) => {
            cx.blockers.push(Blocker::new(codes::TCP_REPAIR, object));
            return Ok(None);
        }
        lock => lock.map_err(failed)?,
    };
    if let Some(fd) = lock.fd()
        && policy == TcpPolicy::Keep
    {
        let waiting = tcp::pending(fd).map_err(failed)?;
        if waiting > 0 {
            let reason = format!("{waiting} connection(s) wait in its queue");
            cx.blockers.push(Blocker::new(codes::ACCEPT_QUEUE, &*object).because(reason));
        }
    }
    let read = tcp::read(&lock, net, policy).map_err(failed).map(Some);
    let Some(mut tcp) = unless_unsupported(cx, &object, read)? else { return Ok(None) };
    if matches!(tcp.state, TcpState::Connecting) {
        let dir = ProcDir::open(state.set[id].pid)?;
        let file = if tcp.v6 { "tcp6" } else { "tcp" };
        let all = dir.net_inet(file, &mut cx.buf)?;
        let Some(peer) = all.iter().find(|s| s.inode == state.set[id].stat.st_ino) else {
            cx.blockers.push(Blocker::new(codes::TCP_STATE, object));
            return Ok(None);
        };
        tcp.peer = Bytes(raw_address(peer.remote));
    }
    cx.locks.push(lock);
    Ok(Some(tcp))
}
