//! What would keep a tree from being made here: all of it at once, before the first process is made.
//!
//! A restore asks before it begins, `restore --dry-run` only asks, and the destination of a move asks about the model of
//! the target that still runs over there.

use super::creds::Own;
use super::fd::udp::sends_to_groups_from;
use super::fd::{regular, roots, taken_over};
use super::{Options, cgroup, clock, limits, ns, numa, root, vdso};
use crate::arch;
use crate::blocker::{Blocker, Code, codes};
use crate::image::creds::Creds;
use crate::image::fd::lock::{Lease, Lock, LockKind};
use crate::image::fd::tcp::TcpState;
use crate::image::fd::{FileKind, PathRef, SocketOptions};
use crate::image::mm::Backing;
use crate::image::task::{Task, TaskState};
use crate::image::{Bytes, Model, NsId};
use crate::net::segment;
use crate::ops::options::{Cpu, Pids};
use crate::proc::{locks, sys};
use crate::sys::{Errno, socket};
use nix::sys::stat::fstat;
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Features the processor must have.
    pub cpu: Cpu,
    /// The original may still hold its ids and locks: it runs, here or on another host.
    pub original_runs: bool,
    /// And it keeps them: the tree runs beside it.
    pub original_stays: bool,
    /// The original is in this very network, and has its ports.
    pub original_has_ports: bool,
    /// Addresses that are put on this host with the tree.
    pub coming: Vec<IpAddr>,
    /// Paths that somebody has compared already, or that come along.
    pub judged: HashSet<Bytes>,
}

/// Everything in the way.
pub fn look(model: &Model, options: &Options, scope: &Scope) -> Vec<Blocker> {
    let mut blockers = processor(model, scope.cpu);
    blockers.extend(vdso::blockers(model));
    blockers.extend(numa::blockers(model));
    blockers.extend(credentials(model));
    blockers.extend(connections(model));
    if options.pids == Pids::Same {
        let taken = root::taken(model);
        blockers.extend(taken.map(|(pid, occupant)| {
            Blocker::new(codes::PID_IN_USE, format!("pid {pid}")).because(format!("{occupant} has it"))
        }));
    }
    blockers.extend(files(model, options, scope));
    blockers.extend(addresses(model, scope));
    blockers.extend(interfaces(model));
    if options.pids == Pids::Same && !root::may_choose_ids() {
        let (pid, comm) =
            (model.root().pid, &model.root().threads.first().map(|t| t.comm.to_string()).unwrap_or_default());
        blockers.push(Blocker::new(codes::SET_TID, format!("pid {pid} ({comm})")));
    }
    if scope.original_runs && crate::proc::sys::boot_id().is_ok_and(|here| here == model.host.boot_id) {
        blockers.extend(taken_over::blockers(model));
        blockers.extend(leases(model));
    }
    blockers.extend(ns::missing(model, &scope.judged));
    blockers.extend(limits::blockers(model, &limits::Host::here(model)));
    blockers.extend(clock::goes_back(model));
    blockers.extend(cgroup::missing(&options.cgroup));
    if !scope.original_runs || scope.original_stays {
        blockers.extend(locks(model));
    }
    if scope.original_stays {
        blockers.extend(names(model));
    }
    blockers
}

/// Files that the original has leases for, to write or such as are being broken: to open one here breaks the original's, with a
/// signal that ends most programs. Looked at without being opened.
fn leases(model: &Model) -> Vec<Blocker> {
    let against = |lease: &Lease| lease.mode == i32::from(libc::F_WRLCK as i16) || lease.breaks_to.is_some();
    let leased = model.files.iter().filter(|file| file.lease.as_ref().is_some_and(against));
    let paths = leased.filter_map(|file| match &file.kind {
        FileKind::Regular(regular) => Some(&regular.path),
        _ => None,
    });
    paths.filter(|path| is_here(path)).map(|path| Blocker::new(codes::LEASE, path.path.to_string())).collect()
}

/// Whoever may not start programs as somebody else makes tasks of their own user, without capabilities, with their own groups of
/// this host. An image that asks for more asks for what the user has not.
fn credentials(model: &Model) -> Vec<Blocker> {
    let own = Own::read();
    if own.becomes_anybody() {
        return groups(model, &own);
    }
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let tasks = model.tasks.iter().filter_map(|task| Some((task, &task.threads.first()?.creds)));
    let blocker = |(task, creds): (&Task, &Creds)| {
        let (uid, gid) = (creds.uids[1], creds.gids[1]);
        let others = task.threads.iter().any(|thread| {
            thread.creds.uids.iter().any(|uid| *uid != own.0) || thread.creds.gids.iter().any(|gid| *gid != own.1)
        });
        let able = task.threads.iter().any(|thread| thread.creds.caps.permitted != 0);
        let reason = match (others, able) {
            (true, _) => format!("it ran as user {uid}, group {gid}; here is user {}, group {}", own.0, own.1),
            (false, true) => "it had capabilities".to_owned(),
            (false, false) => return None,
        };
        Some(Blocker::new(codes::CREDENTIALS, format!("pid {}", task.pid)).because(reason))
    };
    tasks.filter_map(blocker).collect()
}

/// In a user namespace whose maker had no privileges nobody may change supplementary groups.
fn groups(model: &Model, own: &Own) -> Vec<Blocker> {
    if std::fs::read("/proc/self/setgroups").is_ok_and(|text| text != b"deny\n") {
        return Vec::new();
    }
    let others = |task: &&Task| task.threads.iter().any(|thread| !own.has_groups(&thread.creds.groups));
    let reason = "its supplementary groups are not ours, and this user namespace lets nobody set them";
    let blocker = |task: &Task| Blocker::new(codes::CREDENTIALS, format!("pid {}", task.pid)).because(reason);
    model.tasks.iter().filter(others).map(blocker).collect()
}

/// TCP connections, where this program may not make any in the state they were in.
fn connections(model: &Model) -> Vec<Blocker> {
    const NET_ADMIN: u64 = 1 << 12;
    if Own::read().caps & NET_ADMIN != 0 {
        return Vec::new();
    }
    let connected =
        |kind: &&FileKind| matches!(kind, FileKind::Tcp(tcp) if matches!(tcp.state, TcpState::Connected(_)));
    let kinds = model.files.iter().map(|file| &file.kind).filter(connected);
    kinds.map(|kind| Blocker::new(codes::TCP_REPAIR, super::fd::sockets::describe(kind))).collect()
}

/// Features of the processor the target was saved on that this one lacks: the program may have asked for them once, and
/// keep using them.
fn processor(model: &Model, policy: Cpu) -> Vec<Blocker> {
    let lacking = in_use(model) & !arch::xfeatures();
    if lacking != 0 {
        let object = format!("extended state components {lacking:#x}");
        return vec![Blocker::new(codes::XSTATE, object).because("a thread has them in use")];
    }
    let here = sys::cpu_features().unwrap_or_default();
    if policy == Cpu::Minimal || here.is_empty() {
        return Vec::new();
    }
    let missing = arch::features::lacking(&model.host.cpu_features, &here);
    if missing.is_empty() { Vec::new() } else { vec![Blocker::new(codes::CPU_FEATURES, missing.join(" "))] }
}

/// Components of the extended state that are not in their initial state in some thread: XSTATE_BV, the first word of the
/// XSAVE header (Intel SDM, volume 1, 13.4.2).
fn in_use(model: &Model) -> u64 {
    const HEADER: usize = 512;
    let threads = model.tasks.iter().flat_map(|task| &task.threads);
    let word = |area: &Bytes| Some(u64::from_ne_bytes(*area.0.get(HEADER..)?.first_chunk()?));
    threads.filter_map(|thread| word(&thread.regs.xstate)).fold(0, |all, bits| all | bits)
}

/// A path, how it is opened, and whether code is run from it.
type Wanted<'m> = (&'m PathRef, u32, bool);

/// Files that are missing or differ, by name.
fn files(model: &Model, options: &Options, scope: &Scope) -> Vec<Blocker> {
    let Ok(own) = roots::own() else { return Vec::new() };
    // The original may be writing to the very file that is looked at.
    let same_host = crate::proc::sys::boot_id().is_ok_and(|here| here == model.host.boot_id);
    let original_writes = scope.original_runs && same_host;
    let mut seen = BTreeSet::new();
    let mut blockers = Vec::new();
    for (path, flags, code) in wanted(model) {
        // What is below /proc comes and goes with processes; what is in a mount namespace of the tree's own comes with it.
        let looked_at = of_host(model, path.mnt) && !path.path.0.starts_with(b"/proc/");
        if !looked_at
            || scope.judged.contains(&path.path)
            || !seen.insert((&path.path.0, flags & libc::O_APPEND as u32))
        {
            continue;
        }
        blockers.extend(file(&own, path, flags, code, options, original_writes));
    }
    blockers
}

fn wanted(model: &Model) -> impl Iterator<Item = Wanted<'_>> {
    const READ: u32 = libc::O_RDONLY as u32;
    const PLACE: u32 = libc::O_PATH as u32;
    let mapped = model.mms.iter().flat_map(|mm| {
        let vmas = mm.vmas.iter().filter_map(|vma| match &vma.backing {
            Backing::File { path, flags } => Some((path, *flags, true)),
            Backing::Device(path) => Some((path, READ, false)),
            _ => None,
        });
        vmas.chain([(&mm.exe, READ, true)])
    });
    let open = model.files.iter().filter_map(|file| match &file.kind {
        FileKind::Regular(regular) => Some((&regular.path, file.flags, false)),
        _ => None,
    });
    let alive = |task: &&Task| !matches!(task.state, TaskState::Zombie(_));
    let states = model.tasks.iter().filter(alive).flat_map(|task| &task.threads).map(|thread| thread.fs);
    let places = states.filter_map(|id| model.fs.get(id.at())).flat_map(crate::image::task::Fs::places);
    mapped.chain(open).chain(places.map(|path| (path, PLACE, false)))
}

fn file(
    own: &std::os::fd::OwnedFd,
    path: &PathRef,
    flags: u32,
    code: bool,
    options: &Options,
    original_writes: bool,
) -> Option<Blocker> {
    let blocker = |code: Code, reason: String| Some(Blocker::new(code, path.path.to_string()).because(reason));
    let seen = match crate::sys::openat2::open_in_root(own, &path.path.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32, 0) {
        Ok(seen) => seen,
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            return blocker(codes::FILE_MISSING, "it does not exist here".to_owned());
        }
        Err(errno) => return blocker(codes::FILE_ACCESS, errno.desc().to_owned()),
    };
    let stat = fstat(&seen).ok()?;
    if original_writes && (stat.st_dev, stat.st_ino) == (path.device, path.inode) {
        return None;
    }
    let reason = regular::difference(path, &stat, flags, options.files)?;
    blocker(if code { codes::CODE_DIFFERS } else { codes::FILE_CHANGED }, reason)
}

/// Locks of the tree that somebody here has already. A file that another file system shows by other numbers in `/proc/locks` is
/// found when its lock is taken.
fn locks(model: &Model) -> Vec<Blocker> {
    let held = if model.locks.is_empty() { Vec::new() } else { locks::all().unwrap_or_default() };
    let Ok(own) = roots::own() else { return Vec::new() };
    let blocker = |lock: &Lock| {
        let FileKind::Regular(regular) = &model.files.get(lock.file.at())?.kind else { return None };
        let path = Some(&regular.path).filter(|path| of_host(model, path.mnt))?;
        let seen = crate::sys::openat2::open_in_root(&own, &path.path.0, libc::O_PATH as u32, 0).ok()?;
        let stat = fstat(&seen).ok()?;
        let of_file = |held: &&locks::Lock| (held.device, held.inode) == (stat.st_dev, stat.st_ino);
        let holder = held.iter().filter(of_file).find(|held| excludes(held, lock))?;
        let who = if holder.pid > 0 { format!("process {}", holder.pid) } else { "another process".to_owned() };
        Some(Blocker::new(codes::LOCK_CONFLICT, path.path.to_string()).because(format!("{who} has it locked")))
    };
    model.locks.iter().filter_map(blocker).collect()
}

/// Paths that UNIX sockets of the original have on this very host.
fn names(model: &Model) -> Vec<Blocker> {
    let nodes = model.unix_sockets.iter().filter_map(|socket| socket.node.as_ref());
    let reason = "a UNIX socket of the original has it, and keeps it";
    let here = nodes.filter(|node| is_here(&node.path));
    here.map(|node| Blocker::new(codes::PORT_IN_USE, node.path.path.to_string()).because(reason)).collect()
}

/// The very file is at its path on this host.
fn is_here(path: &PathRef) -> bool {
    let here = nix::sys::stat::stat(std::ffi::OsStr::from_bytes(&path.path.0));
    here.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (path.device, path.inode))
}

/// Both cannot be held: flock(2) knows nothing of the others, and two that only read go together.
fn excludes(held: &locks::Lock, wanted: &Lock) -> bool {
    let alike = match held.kind {
        locks::Kind::Flock => wanted.kind == LockKind::Flock,
        locks::Kind::Posix | locks::Kind::Ofd => wanted.kind != LockKind::Flock,
        _ => false,
    };
    let writes = |mode: i32| mode == i32::from(libc::F_WRLCK as i16);
    let end = if wanted.len == 0 { u64::MAX } else { wanted.start.saturating_add(wanted.len - 1) };
    let overlap = held.start <= end && held.end.unwrap_or(u64::MAX) >= wanted.start;
    alike && !held.blocked && overlap && (writes(held.mode) || writes(wanted.mode))
}

fn of_host(model: &Model, ns: NsId) -> bool {
    model.namespaces.get(ns.at()).is_none_or(|ns| ns.of_host)
}

/// Local addresses of sockets that this host has not, or whose port somebody else has.
fn addresses(model: &Model, scope: &Scope) -> Vec<Blocker> {
    let mut seen = BTreeSet::new();
    let mut blockers = Vec::new();
    for file in &model.files {
        if let FileKind::Udp(udp) = &file.kind
            && let Some(from) = sends_to_groups_from(udp).map(IpAddr::V4)
            && of_host(model, udp.net)
            && !scope.coming.contains(&from)
        {
            blockers.extend(bound(SocketAddr::new(from, 0), libc::SOCK_DGRAM, false, &udp.options));
        }
        let (net, local, kind, listens, options) = match &file.kind {
            FileKind::Tcp(tcp) => {
                let listens = matches!(tcp.state, TcpState::Listen { .. });
                (tcp.net, &tcp.local, libc::SOCK_STREAM, listens, &tcp.options)
            }
            FileKind::Udp(udp) => {
                // A raw socket has a protocol where others have a port.
                let has_port = udp.socket_type == libc::SOCK_DGRAM;
                (udp.net, &udp.local, libc::SOCK_DGRAM, has_port && udp.peer.0.is_empty(), &udp.options)
            }
            _ => continue,
        };
        let Some(address) = segment::parse_address(&local.0) else { continue };
        if binds_anywhere(&file.kind) {
            continue;
        }
        if of_host(model, net) && !scope.coming.contains(&address.ip()) && seen.insert((kind, address, listens)) {
            let port = listens && !scope.original_has_ports;
            blockers.extend(bound(address, kind, port, options));
        }
    }
    blockers
}

/// Interfaces that sockets are bound to or send on, and that this host has not.
fn interfaces(model: &Model) -> Vec<Blocker> {
    let of_socket = |kind: &FileKind| match kind {
        FileKind::Tcp(tcp) if of_host(model, tcp.net) => named(&tcp.options),
        FileKind::Udp(udp) if of_host(model, udp.net) => named(&udp.options),
        _ => Vec::new(),
    };
    let wanted: BTreeSet<_> = model.files.iter().flat_map(|file| of_socket(&file.kind)).collect();
    let missing = wanted.into_iter().filter(|name| socket::interface_index(name).is_err());
    missing.map(|name| Blocker::new(codes::INTERFACE_MISSING, name)).collect()
}

/// The interfaces that a socket has chosen.
fn named(options: &SocketOptions) -> Vec<String> {
    let device = options.raw.iter().filter(|(name, _)| *name == libc::SO_BINDTODEVICE).map(|(_, interface)| interface);
    let chosen = options.interfaces.iter().map(|(.., interface)| interface);
    device.chain(chosen).map(|name| String::from_utf8_lossy(&name.0).trim_end_matches('\0').to_owned()).collect()
}

/// A socket whose address need not be on any host (`IP_FREEBIND`, `IP_TRANSPARENT`).
fn binds_anywhere(kind: &FileKind) -> bool {
    let ints = match kind {
        FileKind::Tcp(tcp) => &tcp.ints,
        FileKind::Udp(udp) => &udp.ints,
        _ => return false,
    };
    let options = [
        (libc::SOL_IP, libc::IP_FREEBIND, 1),
        (libc::SOL_IP, libc::IP_TRANSPARENT, 1),
        (libc::SOL_IPV6, libc::IPV6_FREEBIND, 1),
        (libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1),
    ];
    ints.iter().any(|int| options.contains(int))
}

/// Tries to have the address for a moment, sharing it as the socket does; with its port if `port`.
fn bound(address: SocketAddr, kind: i32, port: bool, options: &SocketOptions) -> Option<Blocker> {
    let mut wanted = address;
    if !port {
        wanted.set_port(0);
    }
    let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let probe = socket::socket(domain, kind, 0).ok()?;
    let shared = [libc::SO_REUSEADDR, libc::SO_REUSEPORT];
    for (name, value) in options.ints.iter().filter(|(name, _)| shared.contains(name)) {
        socket::set_int_option(probe.as_fd(), libc::SOL_SOCKET, *name, *value).ok()?;
    }
    if kind == libc::SOCK_STREAM {
        // What is left of old connections does not count.
        socket::set_int_option(probe.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).ok()?;
    }
    if address.is_ipv6() {
        socket::set_int_option(probe.as_fd(), libc::SOL_IPV6, libc::IPV6_V6ONLY, 1).ok()?;
    }
    match socket::bind(probe.as_fd(), &segment::raw_address(wanted)) {
        Err(Errno::EADDRNOTAVAIL) => Some(Blocker::new(codes::ADDRESS_MISSING, address.ip().to_string())),
        Err(Errno::EADDRINUSE) => Some(Blocker::new(codes::PORT_IN_USE, address.to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fd::udp::Udp;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn a_port_that_somebody_has_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(
            bound(address, libc::SOCK_STREAM, true, &SocketOptions::default()).unwrap().code,
            codes::PORT_IN_USE
        );
        assert_eq!(bound(address, libc::SOCK_STREAM, false, &SocketOptions::default()), None);
        drop(taken);
        assert_eq!(bound(address, libc::SOCK_STREAM, true, &SocketOptions::default()), None);
        let taken = UdpSocket::bind("[::1]:0").unwrap();
        assert_eq!(
            bound(taken.local_addr().unwrap(), libc::SOCK_DGRAM, true, &SocketOptions::default()).unwrap().code,
            codes::PORT_IN_USE
        );
    }

    #[test]
    fn locks_that_exclude_each_other() {
        let held = |text: &[u8]| locks::parse(text).unwrap()[0];
        let wanted = |kind, mode, start, len| Lock { kind, file: crate::image::FileId(0), mode, start, len };
        let (read, write) = (libc::F_RDLCK, libc::F_WRLCK);
        let flock = held(b"2: FLOCK  ADVISORY  READ 7 fd:01:7 0 EOF\n");
        assert!(excludes(&flock, &wanted(LockKind::Flock, write, 0, 0)));
        assert!(!excludes(&flock, &wanted(LockKind::Flock, read, 0, 0)));
        assert!(!excludes(&flock, &wanted(LockKind::Ofd, write, 0, 0)), "flock(2) is a world of its own");
        let posix = held(b"4: POSIX ADVISORY WRITE 7 fd:01:7 100 199\n");
        assert!(excludes(&posix, &wanted(LockKind::Ofd, read, 150, 1)));
        assert!(
            excludes(&posix, &wanted(LockKind::Ofd, read, 0, 0))
                && excludes(&posix, &wanted(LockKind::Ofd, read, 0, 101))
        );
        assert!(
            !excludes(&posix, &wanted(LockKind::Ofd, read, 0, 100))
                && !excludes(&posix, &wanted(LockKind::Ofd, read, 200, 0))
        );
        assert!(!excludes(&locks::Lock { blocked: true, ..posix }, &wanted(LockKind::Ofd, write, 0, 0)));
    }

    #[test]
    fn an_address_of_another_host_is_missing() {
        // TEST-NET-1 (RFC 5737): nobody has it.
        let address = "192.0.2.7:80".parse().unwrap();
        assert_eq!(
            bound(address, libc::SOCK_STREAM, true, &SocketOptions::default()).unwrap().code,
            codes::ADDRESS_MISSING
        );
    }

    /// A model whose only file is a socket.
    fn of_one(udp: Udp) -> Model {
        let mut model = crate::image::tests::sample();
        model.namespaces.clear();
        model.files.truncate(1);
        model.files[0].kind = FileKind::Udp(udp);
        model
    }

    fn udp(options: SocketOptions, ints: Vec<(i32, i32, i32)>) -> Udp {
        Udp {
            net: NsId::from(1),
            v6: false,
            socket_type: libc::SOCK_DGRAM,
            protocol: libc::IPPROTO_UDP,
            local: Bytes::default(),
            peer: Bytes::default(),
            options,
            ints,
            shutdown: 0,
            queue: Vec::new(),
        }
    }

    #[test]
    fn an_interface_of_another_host_is_missing() {
        let of = |name: &str| SocketOptions {
            raw: vec![(libc::SO_BINDTODEVICE, Bytes(b"lo\0".to_vec()))],
            interfaces: vec![(libc::SOL_IPV6, libc::IPV6_MULTICAST_IF, Bytes(name.into()))],
            ..SocketOptions::default()
        };
        let found = interfaces(&of_one(udp(of("nobody's"), Vec::new())));
        assert_eq!(found.iter().map(|b| b.code).collect::<Vec<_>>(), [codes::INTERFACE_MISSING]);
        assert!(interfaces(&of_one(udp(of("lo"), Vec::new()))).is_empty());
    }

    #[test]
    fn so_is_one_that_a_socket_sends_to_groups_from() {
        let from = std::net::Ipv4Addr::new(192, 0, 2, 7);
        let chosen = (libc::SOL_IP, libc::IP_MULTICAST_IF, i32::from_ne_bytes(from.octets()));
        let model = of_one(udp(SocketOptions::default(), vec![chosen]));
        let found = addresses(&model, &Scope::default());
        assert_eq!(found.iter().map(|b| b.code).collect::<Vec<_>>(), [codes::ADDRESS_MISSING]);
        let comes_along = Scope { coming: vec![IpAddr::V4(from)], ..Scope::default() };
        assert!(addresses(&model, &comes_along).is_empty());
    }
}
