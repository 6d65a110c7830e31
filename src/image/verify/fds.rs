//! Descriptors and what they refer to.

use super::{Checker, limits};
use crate::image::fd::{
    File, FileKind, SocketOptions,
    lock::LockKind,
    pipe::Pipe,
    regular::Ghost,
    tcp::TcpState,
    tty::{Pty, PtyState, TERMIOS},
    udp::Membership,
    unix::UnixState,
};

/// Numbers of terminals: the minor number of a device has 20 bits.
const TERMINALS: u32 = 1 << 20;
/// Bytes that wait in a terminal, with room to spare.
const TERMINAL_QUEUE: usize = 1 << 20;
/// `struct sockaddr_storage`, bytes.
const ADDRESS: usize = 128;
/// A UNIX socket's name, bytes.
const UNIX_NAME: usize = 108;
/// Descriptors in one message: the kernel's `SCM_MAX_FD`.
const SCM_MAX_FD: usize = 253;
/// Instructions of a socket filter: `BPF_MAXINSNS`.
const FILTER: usize = 4096;

pub(super) fn check(c: &mut Checker<'_>) {
    let model = c.model;
    c.each("fd_tables", &model.fd_tables, |c, _, table| {
        c.must(table.entries.is_sorted_by(|a, b| a.fd < b.fd), "entries", "are not ascending");
        c.each("entries", &table.entries, |c, _, entry| {
            c.must(entry.fd < limits::FD, "fd", "is out of range");
            c.index(entry.file.at(), c.model.files.len(), "file");
        });
    });
    c.each("files", &model.files, |c, _, file| check_file(c, file));
    c.each("multicast", &model.multicast, |c, _, membership| check_membership(c, membership));
    c.each("pipes", &model.pipes, |c, _, pipe| check_pipe(c, pipe));
    c.each("ptys", &model.ptys, |c, _, pty| check_pty(c, pty));
    c.each("unix_sockets", &model.unix_sockets, |c, n, socket| {
        c.must(matches!(socket.socket_type, 1 | 2 | 5), "socket_type", "is no type of a UNIX socket");
        c.must(socket.name.0.len() <= UNIX_NAME, "name", "is too long");
        c.namespace(socket.net, "net", "net");
        c.must(socket.shutdown <= 3, "shutdown", "has unknown bits");
        if let Some(node) = &socket.node {
            c.path_ref(&node.path, "node");
        }
        options(c, &socket.options);
        let sockets = c.model.unix_sockets.len();
        match &socket.state {
            UnixState::Listen { pending, .. } => {
                for id in pending {
                    c.index(id.at(), sockets, "state.pending");
                    c.must(id.at() != n, "state.pending", "is the socket itself");
                }
            }
            UnixState::Connected(Some(peer)) => drop(c.index(peer.at(), sockets, "state.peer")),
            UnixState::External { peer_name } => {
                c.must(peer_name.0.len() <= UNIX_NAME, "state.peer_name", "is too long");
            }
            UnixState::Plain | UnixState::Connected(None) => {}
        }
        c.each("queue", &socket.queue, |c, _, message| {
            c.must(message.files.len() <= SCM_MAX_FD, "files", "are more than one message carries");
            for file in &message.files {
                c.index(file.at(), c.model.files.len(), "files");
            }
        });
    });
    c.each("ghosts", &model.ghosts, |c, _, ghost| check_ghost(c, ghost));
    c.each("locks", &model.locks, |c, _, lock| {
        c.index(lock.file.at(), c.model.files.len(), "file");
        c.must(matches!(lock.mode, 0 | 1), "mode", "is neither shared nor exclusive");
        c.must(lock.start.checked_add(lock.len).is_some_and(|e| e <= 1 << 63), "len", "is past any file's end");
        if let LockKind::Posix(task) = lock.kind {
            c.index(task.at(), c.model.tasks.len(), "kind");
        }
    });
    nested_epolls(c);
}

/// epoll instances that watch each other do so without a circle: an instance is filled after those it watches.
fn nested_epolls(c: &mut Checker<'_>) {
    let members = |file: &File| match &file.kind {
        FileKind::Epoll(epoll) => epoll.members.iter().map(|m| m.file.at()).collect(),
        _ => Vec::new(),
    };
    let watched: Vec<Vec<usize>> = c.model.files.iter().map(members).collect();
    let mut watchers = vec![0u64; watched.len()];
    for n in watched.iter().flatten().filter(|n| **n < watched.len()) {
        watchers[*n] += 1;
    }
    // Takes away what nobody watches until nothing is left but circles.
    let mut free: Vec<usize> = (0..watched.len()).filter(|n| watchers[*n] == 0).collect();
    let mut taken = 0;
    while let Some(n) = free.pop() {
        taken += 1;
        for m in watched[n].iter().filter(|m| **m < watched.len()) {
            watchers[*m] -= 1;
            if watchers[*m] == 0 {
                free.push(*m);
            }
        }
    }
    c.must(taken == watched.len(), "files", "epoll instances watch each other in a circle");
}

fn check_membership<'a>(c: &mut Checker<'a>, membership: &'a Membership) {
    if c.index(membership.file.at(), c.model.files.len(), "file") {
        let is_datagram = matches!(c.model.files[membership.file.at()].kind, FileKind::Udp(_));
        c.must(is_datagram, "file", "is no datagram socket");
    }
    let addresses = [&membership.group].into_iter().chain(&membership.sources);
    c.must(addresses.into_iter().all(|address| address.0.len() <= ADDRESS), "group", "has an impossible address");
    c.must(matches!(membership.level, libc::SOL_IP | libc::SOL_IPV6), "level", "is none of IP");
}

fn check_file<'a>(c: &mut Checker<'a>, file: &'a File) {
    let model = c.model;
    c.must(file.offset <= i64::MAX as u64, "offset", "is larger than any file");
    match &file.kind {
        FileKind::Regular(regular) => c.path_ref(&regular.path, "kind.path"),
        FileKind::Device(device) => c.path_ref(&device.path, "kind.path"),
        FileKind::Ghost(ghost) => drop(c.index(ghost.ghost.at(), model.ghosts.len(), "kind.ghost")),
        FileKind::Pipe(end) => drop(c.index(end.pipe.at(), model.pipes.len(), "kind.pipe")),
        FileKind::Shmem(shmem) => drop(c.index(shmem.shmem.at(), model.shmems.len(), "kind.shmem")),
        FileKind::Tty(tty) => drop(c.index(tty.pty.at(), model.ptys.len(), "kind.pty")),
        FileKind::Unix(id) => drop(c.index(id.at(), model.unix_sockets.len(), "kind")),
        FileKind::Namespace(fd) => drop(c.index(fd.ns.at(), model.namespaces.len(), "kind.ns")),
        FileKind::Epoll(epoll) => c.each("kind.members", &epoll.members, |c, _, member| {
            c.index(member.file.at(), c.model.files.len(), "file");
            c.must(member.fd < limits::FD, "fd", "is out of range");
        }),
        FileKind::Inotify(inotify) => c.each("kind.watches", &inotify.watches, |c, _, watch| {
            c.must(watch.wd > 0, "wd", "is no watch descriptor");
            c.path_ref(&watch.path, "path");
        }),
        FileKind::Tcp(tcp) => {
            c.namespace(tcp.net, "kind.net", "net");
            c.must(tcp.local.0.len() <= ADDRESS && tcp.peer.0.len() <= ADDRESS, "kind", "has an impossible address");
            options(c, &tcp.options);
            if let TcpState::Connected(connection) = &tcp.state {
                let sent = connection.unsent as usize <= connection.send_queue.0.len();
                c.must(sent, "kind.state.unsent", "is more than there is to send");
            }
        }
        FileKind::Netlink(netlink) => {
            c.namespace(netlink.net, "kind.net", "net");
            c.must(netlink.peer.0.len() <= ADDRESS, "kind", "has an impossible address");
            options(c, &netlink.options);
        }
        FileKind::Udp(udp) => {
            c.namespace(udp.net, "kind.net", "net");
            c.must(udp.local.0.len() <= ADDRESS && udp.peer.0.len() <= ADDRESS, "kind", "has an impossible address");
            options(c, &udp.options);
        }
        _ => {}
    }
}

fn options(c: &mut Checker<'_>, options: &SocketOptions) {
    c.must(options.filter.len() <= FILTER, "options.filter", "is longer than any");
}

fn check_pipe(c: &mut Checker<'_>, pipe: &Pipe) {
    c.must(pipe.capacity <= 1 << 31, "capacity", "is larger than any pipe");
    c.must(pipe.data.0.len() <= pipe.capacity as usize, "data", "is more than the pipe holds");
    let packets = pipe.packets.iter().map(|p| u64::from(*p)).sum::<u64>();
    c.must(pipe.packets.is_empty() || packets == pipe.data.0.len() as u64, "packets", "are not the data");
    if let Some(fifo) = &pipe.fifo {
        c.path_ref(fifo, "fifo");
    }
}

fn check_pty(c: &mut Checker<'_>, pty: &Pty) {
    c.must(pty.index < TERMINALS, "index", "is out of range");
    c.path_bytes(&pty.ptmx, "ptmx");
    c.namespace(pty.mnt, "mnt", "mnt");
    let modes = pty.termios.0.len() == TERMIOS || pty.state == PtyState::HungUp && pty.termios.0.is_empty();
    c.must(modes, "termios", "is no struct termios2");
    c.must(pty.mode <= 0o7777, "mode", "has bits that are no permissions");
    let lines: usize = pty.lines.iter().map(|line| line.0.len() + 1).sum();
    let waiting = lines.saturating_add(pty.input.0.len()).max(pty.output.0.len());
    c.must(waiting <= TERMINAL_QUEUE, "input", "is more than a terminal holds");
}

fn check_ghost(c: &mut Checker<'_>, ghost: &Ghost) {
    c.path_ref(&ghost.path, "path");
    if let Some(name) = &ghost.other_name {
        c.path_bytes(name, "other_name");
    }
    let mut end = 0u64;
    for (offset, bytes) in &ghost.extents {
        let next = offset.checked_add(bytes.0.len() as u64).filter(|e| *e <= i64::MAX as u64);
        c.must(*offset >= end && next.is_some(), "extents", "are not ascending parts of a file");
        end = next.unwrap_or(end);
    }
}
