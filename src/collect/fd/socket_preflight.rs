//! What stands in the way among sockets of a tree that runs. A duplicate of each is looked at for a moment; nothing of it is
//! changed.

use super::socket::{self as common, Family};
use super::{sockets, tcp, unix};
use crate::blocker::{Blocker, codes};
use crate::collect::Policy;
use crate::image::Pid;
use crate::net::namespace;
use crate::ops::options::ExternalUnix;
use crate::proc::ProcDir;
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use crate::sys::{sock_diag, socket};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

/// Sockets of a tree, seen in passing.
#[derive(Debug, Default)]
pub struct Sockets {
    /// TCP sockets, each counted once.
    pub tcp: usize,
    seen: HashSet<u64>,
    /// UNIX sockets by network namespace, with the object's name and who it was connected by.
    unix: HashMap<u64, (OwnedFd, Vec<Unix>)>,
    /// TCP sockets by network namespace and domain.
    inet: HashMap<(u64, i32), (OwnedFd, Vec<Inet>)>,
}

#[derive(Debug)]
struct Inet {
    inode: u32,
    object: String,
}

#[derive(Debug)]
struct Unix {
    inode: u32,
    object: String,
    peer: Option<Pid>,
}

impl Sockets {
    /// Looks at descriptor `fd` of a process; `inode` is the socket's. What has been closed meanwhile is no hindrance.
    pub fn look(&mut self, dir: &ProcDir, fd: u32, inode: u64, object: &str, policy: &Policy) -> Vec<Blocker> {
        if !self.seen.insert(inode) {
            return Vec::new();
        }
        let Ok(duplicate) = pidfd_open(dir.pid()).and_then(|pidfd| pidfd_getfd(pidfd.as_fd(), fd)) else {
            return Vec::new();
        };
        let socket = duplicate.as_fd();
        let Ok(identity) = common::identify(socket) else { return Vec::new() };
        if let Some(blocker) = identity.blocker(object) {
            return vec![blocker];
        }
        if identity.family() == Family::Tcp {
            self.tcp += 1;
            if let Ok(net) = socket::namespace_of(socket)
                && let Ok(stat) = nix::sys::stat::fstat(&net)
            {
                let inet = Inet { inode: inode as u32, object: object.to_owned() };
                self.inet.entry((stat.st_ino, identity.domain)).or_insert_with(|| (net, Vec::new())).1.push(inet);
            }
            return tcp::preflight(socket, policy.tcp, object).unwrap_or_default();
        }
        if identity.family() == Family::Unix
            && let Ok(net) = socket::namespace_of(socket)
            && let Ok(stat) = nix::sys::stat::fstat(&net)
        {
            let creds = socket::peer_credentials(socket).ok();
            let peer = creds.filter(|c| c.pid > 0).map(|c| Pid(c.pid));
            let unix = Unix { inode: inode as u32, object: object.to_owned(), peer };
            self.unix.entry(stat.st_ino).or_insert_with(|| (net, Vec::new())).1.push(unix);
        }
        common::preflight(socket, object)
    }

    /// TCP sockets with keys. All of a namespace are listed for that, which is too much to do while the target stands still: keys are
    /// given to a socket before it listens or connects.
    pub fn signed(&self) -> Vec<Blocker> {
        let mut found = Vec::new();
        for ((_, domain), (net, sockets)) in &self.inet {
            let signed = namespace::inside(Some(net.as_fd()), || sock_diag::tcp_signed(*domain));
            // A kernel without tcp_diag does not tell.
            let Ok(Ok(signed)) = signed else { continue };
            let signed: HashSet<u32> = signed.into_iter().collect();
            let ours = sockets.iter().filter(|socket| signed.contains(&socket.inode));
            found.extend(ours.map(|socket| Blocker::new(codes::TCP_SIGNED, &*socket.object)));
        }
        found
    }

    /// UNIX sockets whose peers are outside the tree. A peer that nobody in the tree has may still be in flight between two of
    /// its sockets: those that were connected by the tree itself are left to the collection.
    pub fn outside(&self, tree: &HashSet<Pid>, policy: &Policy, buf: &mut Vec<u8>) -> Vec<Blocker> {
        let mut found = Vec::new();
        if policy.external_unix != ExternalUnix::Refuse {
            return found;
        }
        for (net, sockets) in self.unix.values() {
            let all = namespace::inside(Some(net.as_fd()), sock_diag::unix_sockets);
            let Ok(Ok(all)) = all else { continue };
            let all: HashMap<u32, sock_diag::Unix> = all.into_iter().map(|s| (s.inode, s)).collect();
            for s in sockets {
                let Some(peer) = all.get(&s.inode).and_then(|d| d.peer).filter(|peer| *peer != 0) else { continue };
                let name = all.get(&peer).map(|p| p.name.as_slice()).unwrap_or_default();
                let inside = self.seen.contains(&u64::from(peer)) || s.peer.is_some_and(|pid| tree.contains(&pid));
                if !inside && !unix::is_log(name) {
                    let named = !name.is_empty();
                    found.push(sockets::outside_blocker(&s.object, name, named, s.peer, buf));
                }
            }
        }
        found
    }
}
