//! Which socket goes to which collector, and what a single socket does not show: namespaces, peers, who is outside.

use super::set::Description;
use super::views::{mnt_of, path_ref};
use super::{State, netlink, socket as common, tcp_sockets, udp, unix};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Error, Result};
use crate::image::fd::FileKind;
use crate::image::fd::unix::{Node, UnixState};
use crate::image::ns::NsKind;
use crate::image::{Bytes, FileId, NsId, NsPid, Pid, UnixId};
use crate::net::segment::raw_address;
use crate::net::{self, namespace};
use crate::ops::options::ExternalUnix;
use crate::proc::ProcDir;
use crate::proc::net::igmp::Group;
use crate::sys::{Errno, sock_diag, socket};
use common::Family;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the collection of sockets knows besides the model.
#[derive(Debug, Default)]
pub struct Sockets {
    /// UNIX sockets of each network namespace met, by inode.
    unix: HashMap<NsId, HashMap<u32, sock_diag::Unix>>,
    /// Those of the tree, with their description.
    seen: Vec<(FileId, NsId, unix::Seen)>,
    /// What was shut down of the UDP sockets of each network namespace, domain and protocol.
    udp: HashMap<(NsId, i32, i32), HashMap<u32, u8>>,
    /// Multicast groups of each network namespace that somebody listens to.
    groups: HashMap<NsId, Vec<Group>>,
    /// TCP sockets of the tree.
    pub(super) tcp: Vec<tcp_sockets::Noted>,
}

/// A socket of any family. `None`: a blocker was noted.
pub fn collect(cx: &mut Cx<'_>, state: &mut State, id: FileId, fd: &OwnedFd) -> Result<Option<FileKind>> {
    let object = state.set[id].object();
    let failed = |error| Error::Socket { object: object.clone(), error };
    let identity = common::identify(fd.as_fd()).map_err(failed)?;
    if let Some(blocker) = identity.blocker(&object) {
        cx.blockers.push(blocker);
        return Ok(None);
    }
    let Some(net) = namespace_of(cx, fd.as_fd(), &object)? else { return Ok(None) };
    let kind = match identity.family() {
        Family::Tcp => tcp_sockets::note(cx, state, id, fd, net),
        Family::Unix => collect_unix(cx, state, id, fd, net),
        Family::Udp => {
            let found = common::preflight(fd.as_fd(), &object);
            if !found.is_empty() {
                cx.blockers.extend(found);
                return Ok(None);
            }
            let shutdown =
                udp_shutdown(state, fd.as_fd(), &identity, net, state.set[id].stat.st_ino).map_err(failed)?;
            if let Entry::Vacant(room) = state.sockets.groups.entry(net) {
                room.insert(ProcDir::open(state.set[id].pid)?.multicast_groups(&mut cx.buf)?);
            }
            let groups = udp::memberships(fd.as_fd(), id, &state.sockets.groups[&net]).map_err(failed)?;
            cx.model.multicast.extend(groups);
            let mut udp = udp::read(fd.as_fd(), identity, net, shutdown).map_err(failed);
            if let Ok(udp) = &mut udp
                && identity.socket_type == libc::SOCK_RAW
            {
                udp.peer = raw_peer(cx, state, id, udp.v6)?;
            }
            udp.map(|udp| Some(FileKind::Udp(udp)))
        }
        Family::Netlink => netlink::read(fd.as_fd(), identity, net).map(|n| Some(FileKind::Netlink(n))).map_err(failed),
        Family::Unsupported => {
            let reason = format!("{} sockets cannot be saved", identity.name());
            cx.blockers.push(Blocker::new(codes::SOCKET_FAMILY, &*object).because(reason));
            return Ok(None);
        }
    };
    unless_unsupported(cx, &object, kind)
}

/// What a socket is, or a blocker where it is something that cannot be saved.
pub(super) fn unless_unsupported<T>(cx: &mut Cx<'_>, object: &str, kind: Result<Option<T>>) -> Result<Option<T>> {
    match kind {
        Err(Error::Socket { error: net::Error::Unsupported { kind, reason }, .. }) => {
            let code = match kind {
                "UNIX" => codes::UNIX_QUEUE,
                "TCP" => codes::TCP_STATE,
                super::tcp::URGENT => codes::TCP_URGENT,
                udp::RAW => codes::RAW_SOCKET,
                "netlink" => codes::NETLINK,
                _ => codes::SOCKET_FAMILY,
            };
            cx.blockers.push(Blocker::new(code, object).because(reason));
            Ok(None)
        }
        other => other,
    }
}

/// The network namespace of a socket in the model; a blocker if it is not one of the tree's.
fn namespace_of(cx: &mut Cx<'_>, fd: BorrowedFd<'_>, object: &str) -> Result<Option<NsId>> {
    let inode = match socket::namespace_of(fd) {
        Ok(ns) => Some(nix::sys::stat::fstat(&ns).map(|s| s.st_ino)),
        // Without CAP_NET_ADMIN in that namespace it cannot be asked: it is ours then, if the tree is in no other.
        Err(Errno::EPERM | Errno::ENOTTY) => None,
        Err(errno) => return Err(system("ioctl SIOCGSKNS", object, errno)),
    };
    let inode = inode.transpose().map_err(|errno| system("fstat", object, errno))?;
    let mut found = cx.model.namespaces.iter().enumerate().filter(|(_, ns)| matches!(ns.kind, NsKind::Net(_)));
    let known = match inode {
        Some(inode) => found.find(|(_, ns)| ns.inode == inode),
        None => found.next().filter(|_| found.next().is_none()),
    };
    if known.is_none() {
        cx.blockers.push(Blocker::new(codes::SOCKET_NETNS, object));
    }
    Ok(known.map(|(n, _)| NsId::from(n)))
}

pub(super) fn system(operation: &'static str, object: &str, errno: Errno) -> Error {
    Error::System { operation, object: object.to_owned(), errno }
}

/// What was shut down of a UDP socket. Only one that is connected can be.
fn udp_shutdown(
    state: &mut State,
    fd: BorrowedFd<'_>,
    identity: &common::Identity,
    net: NsId,
    inode: u64,
) -> net::Result<u8> {
    if !udp::is_udp(identity) || socket::peer_address(fd).is_err() {
        return Ok(0);
    }
    let all = match state.sockets.udp.entry((net, identity.domain, identity.protocol)) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(room) => {
            let ns = socket::namespace_of(fd).ok();
            let list = || sock_diag::udp_shutdowns(identity.domain, identity.protocol);
            match namespace::inside(ns.as_ref().map(AsFd::as_fd), list)? {
                Ok(all) => room.insert(all.into_iter().collect()),
                // A kernel without udp_diag does not tell.
                Err(Errno::ENOENT) => room.insert(HashMap::new()),
                Err(errno) => return Err(net::failed("UDP", "listing sockets (sock_diag)")(errno)),
            }
        }
    };
    Ok(all.get(&(inode as u32)).copied().unwrap_or(0))
}

/// Who a raw socket is connected to. As a rule there is no port, and getpeername(2) says nothing then.
fn raw_peer(cx: &mut Cx<'_>, state: &State, id: FileId, v6: bool) -> Result<Bytes> {
    const ESTABLISHED: u8 = 1;
    let all = ProcDir::open(state.set[id].pid)?.net_inet(if v6 { "raw6" } else { "raw" }, &mut cx.buf)?;
    let inode = state.set[id].stat.st_ino;
    let connected = all.iter().find(|socket| socket.inode == inode && socket.state == ESTABLISHED);
    Ok(connected.map(|socket| Bytes(raw_address(socket.remote))).unwrap_or_default())
}

fn collect_unix(cx: &mut Cx<'_>, state: &mut State, id: FileId, fd: &OwnedFd, net: NsId) -> Result<Option<FileKind>> {
    let object = state.set[id].object();
    let inode = state.set[id].stat.st_ino as u32;
    let failed = |error| Error::Socket { object: object.clone(), error };
    if let Entry::Vacant(room) = state.sockets.unix.entry(net) {
        let ns = socket::namespace_of(fd.as_fd()).ok();
        let all = namespace::inside(ns.as_ref().map(AsFd::as_fd), sock_diag::unix_sockets)
            .and_then(|all| all.map_err(net::failed("UNIX", "listing sockets (sock_diag)")))
            .map_err(failed)?;
        room.insert(all.into_iter().map(|s| (s.inode, s)).collect());
    }
    let Some(diag) = state.sockets.unix[&net].get(&inode).cloned() else {
        return Err(system("listing sockets (sock_diag)", &object, Errno::ENOENT));
    };
    let unix_id = UnixId::from(cx.model.unix_sockets.len());
    let mut around = Around { at: state.set[id].at, cx, state };
    let read = unix::read(fd.as_fd(), &diag, net, &mut around).map_err(failed)?;
    cx.model.unix_sockets.push(read);
    state.sockets.seen.push((id, net, unix::Seen { id: unix_id, diag }));
    Ok(Some(FileKind::Unix(unix_id)))
}

/// The collection as a UNIX socket's reader sees it.
struct Around<'a, 'b> {
    at: usize,
    cx: &'a mut Cx<'b>,
    state: &'a mut State,
}

impl unix::Around for Around<'_, '_> {
    fn in_flight(&mut self, fd: OwnedFd) -> std::result::Result<FileId, String> {
        self.state.set.file_in_flight(self.cx, self.at, fd).map_err(|e| e.to_string())
    }

    fn pid(&self, ours: i32) -> NsPid {
        self.cx.ids.get(&Pid(ours)).copied().unwrap_or(NsPid(ours))
    }

    fn node(&mut self, name: &[u8], node: (u32, u32)) -> Option<Node> {
        let dir = &self.cx.frozen.processes[self.at].dir;
        // A relative name was given to bind(2) in the working directory of then, most likely still that of now.
        let base = dir.readlink(if name.starts_with(b"/") { "root" } else { "cwd" }).ok()?;
        let mut path = base.0;
        while path.last() == Some(&b'/') {
            path.pop();
        }
        if !name.starts_with(b"/") {
            path.push(b'/');
        }
        path.extend(name);
        let mnt = mnt_of(self.cx, self.at);
        let view = self.state.views.of(self.cx, mnt).ok()??;
        let found = view.open(&path, libc::O_PATH | libc::O_NOFOLLOW).ok()?;
        let stat = nix::sys::stat::fstat(&found).ok()?;
        let same = stat.st_ino as u32 == node.1 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        same.then(|| Node { path: path_ref(Bytes(path), mnt, &stat, false), uid: stat.st_uid, gid: stat.st_gid })
    }
}

/// Who is connected to whom, when every socket has been read.
pub fn finish(cx: &mut Cx<'_>, state: &mut State) -> Result<()> {
    for (net, all) in &state.sockets.unix {
        let of_net = state.sockets.seen.iter().filter(|(_, n, _)| n == net);
        let (files, seen): (Vec<FileId>, Vec<unix::Seen>) = of_net.map(|(id, _, seen)| (*id, seen.clone())).unzip();
        let file_of = |id: UnixId| seen.iter().position(|s| s.id == id).map(|at| files[at]);
        match unix::connect(&mut cx.model.unix_sockets, &seen, all) {
            Ok(outside) => {
                for o in outside {
                    if let Some(file) = file_of(o.id) {
                        let fd = state.set.duplicate(file)?;
                        decide(cx, &state.set[file], &fd, &o);
                    }
                }
            }
            Err((id, reason)) => {
                let object = file_of(id).map_or_else(String::new, |file| state.set[file].object());
                cx.blockers.push(Blocker::new(codes::UNIX_QUEUE, object).because(reason));
            }
        }
    }
    Ok(())
}

/// What becomes of a socket whose peer is outside the tree.
fn decide(cx: &mut Cx<'_>, d: &Description, fd: &OwnedFd, outside: &unix::Outside) {
    let socket = &mut cx.model.unix_sockets[outside.id.at()];
    let named = !outside.peer_name.is_empty() && !outside.accepted;
    let reconnect = unix::is_log(&outside.peer_name) || cx.policy.external_unix == ExternalUnix::Reconnect;
    if named && reconnect {
        socket.state = UnixState::External { peer_name: Bytes(outside.peer_name.clone()) };
        return;
    }
    if cx.policy.external_unix == ExternalUnix::Close {
        return;
    }
    let peer = socket::peer_credentials(fd.as_fd()).ok().filter(|c| c.pid > 0).map(|c| Pid(c.pid));
    let blocker = outside_blocker(&d.object(), &outside.peer_name, named, peer, &mut cx.buf);
    cx.blockers.push(blocker);
}

/// Says who is at the other end of a UNIX socket; `named`: it could be connected again by that name.
pub(super) fn outside_blocker(object: &str, name: &[u8], named: bool, peer: Option<Pid>, buf: &mut Vec<u8>) -> Blocker {
    let process = peer.map_or_else(String::new, |pid| match ProcDir::open(pid).and_then(|dir| dir.comm(buf)) {
        Ok(comm) => format!(" of {comm} (pid {pid})"),
        Err(_) => format!(" of pid {pid}"),
    });
    let name = match name.split_first() {
        None => "an unnamed socket".to_owned(),
        Some((0, rest)) => format!("@{}", rest.escape_ascii()),
        Some(_) => name.escape_ascii().to_string(),
    };
    let remedy = if named {
        "--external-unix reconnect|close, or take the peer along"
    } else {
        "--external-unix close, or take the peer along"
    };
    Blocker::new(codes::UNIX_OUTSIDE, object).because(format!("it is connected to {name}{process}")).remedy(remedy)
}
