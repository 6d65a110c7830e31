//! Made by the engine, as the users whose credentials the sockets remember: UNIX sockets, all of a tree together.
//!
//! [`make_all`] makes every socket with its name and its stream connections. [`Made::fill`] puts the messages into the
//! queues: only now, as descriptors in flight must be made before, and may be these sockets themselves. [`Made::finish`]
//! connects datagram sockets, lets connections wait in accept queues, closes what was closed, and sets the last options.

use super::peers::{Call, Ends};
use super::socket as common;
use crate::image::fd::unix::{Creds, UnixSocket, UnixState};
use crate::image::{FileId, NsId, NsPid, UnixId};
use crate::net::place::{Target, Waiting, address_of_node, bind_path, unix_address};
use crate::net::{Error, Result, failed, namespace};
use crate::sys::{Errno, socket, thread_ids};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Options that make a socket bind itself, or add credentials to messages.
const PASSING: [i32; 4] = [libc::SO_PASSCRED, libc::SO_PASSSEC, 76, 83];

/// What the maker asks of its surroundings.
pub trait Around {
    /// A network namespace; `None` = this thread's.
    fn net(&self, ns: NsId) -> Option<BorrowedFd<'_>>;
    /// A mount namespace; `None` = this thread's.
    fn mnt(&self, ns: NsId) -> Option<BorrowedFd<'_>>;
    /// A process of the target as we see it, if it is there.
    fn pid(&self, pid: NsPid) -> Option<i32>;
    /// The original lives on this kernel until this tree runs.
    fn original_here(&self) -> bool {
        false
    }
    /// Has the process that these credentials name make a call, as their user; in this network namespace. `None`: there is none
    /// that could.
    fn by_process(&self, _creds: &Creds, _net: NsId, _call: &Call<'_>) -> Option<std::result::Result<Ends, Errno>> {
        None
    }
    /// A process of the tree that has a descriptor of this socket.
    fn holder(&self, _socket: UnixId) -> Option<NsPid> {
        None
    }
    /// A descriptor of ours of a file of the model, for messages in flight.
    fn file(&mut self, file: FileId) -> std::result::Result<OwnedFd, String>;
}

/// The sockets of a tree while they are being made.
#[derive(Debug)]
pub struct Made {
    sockets: Vec<Option<OwnedFd>>,
    /// Stands in for a peer that has gone; closed at the end.
    stand_ins: Vec<Option<OwnedFd>>,
    /// `O_PATH` descriptors of bound nodes.
    nodes: Vec<Option<OwnedFd>>,
    /// Nodes that go to their places when the tree runs.
    pub waiting: Vec<Waiting>,
    /// What could not be had exactly as it was.
    pub warnings: Vec<String>,
}

fn unix(operation: &str) -> impl FnOnce(Errno) -> Error + use<> {
    failed("UNIX", operation)
}

fn bad(socket: &UnixSocket, reason: &str) -> Error {
    Error::BadModel { kind: "UNIX", reason: format!("socket:[{}]: {reason}", socket.inode) }
}

fn is_dgram(socket: &UnixSocket) -> bool {
    socket.socket_type == libc::SOCK_DGRAM
}

/// Makes all sockets. `sockets` is [`crate::image::Model::unix_sockets`].
pub fn make_all(sockets: &[UnixSocket], around: &dyn Around) -> Result<Made> {
    let none = || std::iter::repeat_with(|| None).take(sockets.len()).collect::<Vec<Option<OwnedFd>>>();
    let mut made =
        Made { sockets: none(), stand_ins: none(), nodes: none(), waiting: Vec::new(), warnings: Vec::new() };
    // Listening sockets first: connections are made through them.
    for (n, socket) in sockets.iter().enumerate() {
        check(sockets, n)?;
        if matches!(socket.state, UnixState::Listen { .. }) {
            made.single(sockets, n, around)?;
            // Room for connections that are accepted at once; `finish` sets what it was.
            made.listen(socket, n, 1 << 10, around)?;
        }
    }
    for n in 0..sockets.len() {
        if made.sockets[n].is_some() {
            continue;
        }
        match sockets[n].state {
            UnixState::Connected(Some(peer)) if mutual(sockets, n) => made.pair(sockets, n, peer.at(), around)?,
            UnixState::Connected(None) => made.orphan(sockets, n, around)?,
            _ => made.single(sockets, n, around)?,
        }
    }
    for (n, socket) in sockets.iter().enumerate() {
        common::early(made.fd(n)?, &socket.options, &PASSING)?;
    }
    Ok(made)
}

/// References and numbers that no kernel would have given.
fn check(sockets: &[UnixSocket], n: usize) -> Result<()> {
    let socket = &sockets[n];
    if !matches!(socket.socket_type, libc::SOCK_STREAM | libc::SOCK_DGRAM | libc::SOCK_SEQPACKET) {
        return Err(bad(socket, "an unknown type"));
    }
    let fits = |id: UnixId| sockets.get(id.at()).is_some_and(|p| p.socket_type == socket.socket_type) && id.at() != n;
    let fine = match &socket.state {
        // A datagram socket may be connected to itself.
        UnixState::Connected(Some(peer)) => fits(*peer) || (is_dgram(socket) && peer.at() == n),
        UnixState::Listen { pending, .. } => !is_dgram(socket) && pending.iter().all(|id| fits(*id)),
        _ => true,
    };
    if fine { Ok(()) } else { Err(bad(socket, "its peer is missing or of another type")) }
}

/// Both are connected to each other.
fn mutual(sockets: &[UnixSocket], n: usize) -> bool {
    let UnixState::Connected(Some(peer)) = sockets[n].state else { return false };
    peer.at() != n && sockets[peer.at()].state == UnixState::Connected(Some(UnixId::from(n)))
}

/// An address by which a bound socket is reached.
#[derive(Debug)]
pub struct Reach<'a> {
    /// From this process.
    pub address: Vec<u8>,
    /// The node behind it, which others know by another number.
    pub node: Option<BorrowedFd<'a>>,
}

/// The address of a node by its number in the process that uses it.
pub(super) fn address_of(number: u64) -> Vec<u8> {
    // Far shorter than an address can be.
    unix_address(format!("/proc/self/fd/{number}").as_bytes()).unwrap_or_default()
}

/// Has a call made by the process that the socket is to remember; where that cannot be, by us as its user.
fn call_as(
    creds: Option<&Creds>,
    net: NsId,
    around: &dyn Around,
    call: &Call<'_>,
) -> Result<std::result::Result<Ends, Errno>> {
    if let Some(made) = creds.and_then(|creds| around.by_process(creds, net, call)) {
        return Ok(made);
    }
    run_as(creds, around.net(net), || match call {
        Call::Pair(kind) => socket::socketpair(*kind).map(Some),
        Call::Listen(fd, backlog) => socket::listen(*fd, *backlog).map(|()| None),
        Call::Connect(fd, to) => socket::connect(*fd, &to.address).map(|()| None),
    })
}

/// A pair that the process makes whom both ends show.
fn pair_as(s: &UnixSocket, around: &dyn Around) -> Result<(OwnedFd, OwnedFd)> {
    let made = call_as(s.peer_creds.as_ref(), s.net, around, &Call::Pair(s.socket_type))?;
    made.and_then(|ends| ends.ok_or(Errno::EPROTO)).map_err(unix("socketpair"))
}

/// Runs `call` in a network namespace as the user of these credentials.
fn run_as<T: Send>(
    creds: Option<&Creds>,
    net: Option<BorrowedFd<'_>>,
    call: impl FnOnce() -> std::result::Result<T, Errno> + Send,
) -> Result<std::result::Result<T, Errno>> {
    let us = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let Some(them) = creds.filter(|c| (c.uid, c.gid) != us) else { return namespace::inside(net, call) };
    let (uid, gid) = (them.uid, them.gid);
    let outcome = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                if let Some(net) = net {
                    socket::enter_net(net)?;
                }
                thread_ids::act_as(uid, gid)?;
                Ok(call())
            })
            .join()
    });
    outcome.unwrap_or(Err(Errno::ECANCELED)).map_err(unix("taking the ids of a peer"))
}

impl Made {
    /// The socket `n` of the model.
    pub fn fd(&self, n: usize) -> Result<BorrowedFd<'_>> {
        self.sockets
            .get(n)
            .and_then(Option::as_ref)
            .map(AsFd::as_fd)
            .ok_or_else(|| Error::BadModel { kind: "UNIX", reason: format!("there is no socket {n}") })
    }

    /// Gives the sockets out, by their place in the model.
    pub fn into_fds(self) -> Vec<Option<OwnedFd>> {
        self.sockets
    }

    /// A socket that is not connected yet.
    fn single(&mut self, sockets: &[UnixSocket], n: usize, around: &dyn Around) -> Result<()> {
        let s = &sockets[n];
        let fd = namespace::socket_in(around.net(s.net), libc::AF_UNIX, s.socket_type, 0)?.map_err(unix("socket"))?;
        self.sockets[n] = Some(fd);
        self.bind(s, n, around)
    }

    fn bind(&mut self, s: &UnixSocket, n: usize, around: &dyn Around) -> Result<()> {
        if s.name.0.is_empty() {
            return Ok(());
        }
        let fd = self.fd(n)?;
        if s.name.0[0] == 0 {
            let address = unix_address(&s.name.0)?;
            let name = s.name.0[1..].escape_ascii();
            return socket::bind(fd, &address).map_err(unix(&format!("bind to abstract name {name}")));
        }
        let original_here = around.original_here();
        let target = s.node.as_ref().map(|node| Target { mnt: around.mnt(node.path.mnt), node, original_here });
        let (node, waiting) = bind_path(fd, &s.name.0, target)?;
        self.nodes[n] = Some(node);
        self.waiting.extend(waiting);
        Ok(())
    }

    fn listen(&mut self, s: &UnixSocket, n: usize, backlog: u32, around: &dyn Around) -> Result<()> {
        let fd = self.fd(n)?;
        // Its clients will see who has called listen(2).
        let listened = call_as(s.peer_creds.as_ref(), s.net, around, &Call::Listen(fd, backlog))?;
        listened.map(drop).map_err(unix("listen"))
    }

    /// An address by which this process reaches a bound socket.
    fn reach(&self, s: &UnixSocket, n: usize) -> Result<Option<Reach<'_>>> {
        let node = self.nodes[n].as_ref().map(AsFd::as_fd);
        let address = match (node, s.name.0.first()) {
            (Some(node), _) => address_of_node(node)?,
            (None, Some(0)) => unix_address(&s.name.0)?,
            _ => return Ok(None),
        };
        Ok(Some(Reach { address, node }))
    }

    /// Two sockets connected to each other.
    fn pair(&mut self, sockets: &[UnixSocket], a: usize, b: usize, around: &dyn Around) -> Result<()> {
        let accepted = |n: usize| !is_dgram(&sockets[n]) && !sockets[n].name.0.is_empty() && sockets[n].node.is_none();
        let server = match (accepted(a), accepted(b)) {
            (true, true) if self.listener(sockets, a).is_none() => Some(b),
            (true, _) => Some(a),
            (false, true) => Some(b),
            (false, false) => None,
        };
        if let Some(server) = server {
            let client = if server == a { b } else { a };
            return self.accepted(sockets, client, server, around);
        }
        let s = &sockets[a];
        let (one, two) = pair_as(s, around)?;
        self.sockets[a] = Some(one);
        self.sockets[b] = Some(two);
        self.bind(&sockets[a], a, around)?;
        self.bind(&sockets[b], b, around)
    }

    /// The listening socket of the tree that this accepted one bears the name of.
    fn listener(&self, sockets: &[UnixSocket], server: usize) -> Option<usize> {
        let s = &sockets[server];
        sockets.iter().position(|l| {
            matches!(l.state, UnixState::Listen { .. })
                && (&l.name, l.socket_type, l.net) == (&s.name, s.socket_type, s.net)
        })
    }

    /// A connection that was made by connect(2) and accept(2), through its listening socket, or a temporary one of that name.
    fn accepted(&mut self, sockets: &[UnixSocket], client: usize, server: usize, around: &dyn Around) -> Result<()> {
        self.single(sockets, client, around)?;
        let net = around.net(sockets[server].net);
        let temporary;
        let (listener, reach) = match self.listener(sockets, server) {
            Some(n) => {
                let reach = self.reach(&sockets[n], n)?;
                (self.fd(n)?, reach.ok_or_else(|| bad(&sockets[n], "it listens without a name"))?)
            }
            None => {
                temporary = temporary_listener(&sockets[server], &sockets[client], net, around)?;
                let (listener, address, node) = &temporary;
                (listener.as_fd(), Reach { address: address.clone(), node: node.as_ref().map(AsFd::as_fd) })
            }
        };
        let call = Call::Connect(self.fd(client)?, &reach);
        // The accepted socket shows who has connected.
        call_as(sockets[server].peer_creds.as_ref(), sockets[server].net, around, &call)?
            .map_err(unix("connect inside the tree"))?;
        let accepted = socket::accept(listener).map_err(unix("accept inside the tree"))?;
        self.sockets[server] = Some(accepted);
        Ok(())
    }

    /// A socket whose peer has gone.
    fn orphan(&mut self, sockets: &[UnixSocket], n: usize, around: &dyn Around) -> Result<()> {
        let s = &sockets[n];
        let (one, two) = pair_as(s, around)?;
        self.sockets[n] = Some(one);
        self.stand_ins[n] = Some(two);
        match self.bind(s, n, around) {
            // The name of an accepted socket whose listener goes on; others cannot ask for it any more.
            Err(Error::Kernel { errno: Errno::EADDRINUSE, .. }) => Ok(()),
            other => other,
        }
    }

    /// Fills the queues.
    pub fn fill(&mut self, sockets: &[UnixSocket], around: &mut dyn Around) -> Result<()> {
        for (n, s) in sockets.iter().enumerate() {
            if s.queue.is_empty() {
                continue;
            }
            let peer = match s.state {
                UnixState::Connected(Some(_)) if !mutual(sockets, n) => None,
                UnixState::Connected(Some(peer)) => Some(peer.at()),
                _ => None,
            };
            let bytes: usize = s.queue.iter().map(|m| m.data.0.len()).sum();
            // Overhead of the kernel's for each message.
            let room = i32::try_from(bytes + s.queue.len() * 2048 + (64 << 10)).unwrap_or(i32::MAX / 2);
            for message in &s.queue {
                let files = message.files.iter().map(|id| around.file(*id));
                let files: Vec<OwnedFd> = files
                    .collect::<std::result::Result<_, _>>()
                    .map_err(|reason| Error::Unsupported { kind: "UNIX", reason })?;
                let creds = message.creds.map(|c| self.sender(&c, around));
                let temporary;
                let (from, to) = if let Some(peer) = peer {
                    (self.fd(peer)?, Vec::new())
                } else if let Some(stand_in) = &self.stand_ins[n] {
                    (stand_in.as_fd(), Vec::new())
                } else {
                    let Some(Reach { address: to, .. }) = self.reach(s, n)? else {
                        self.warnings.push(lost(s));
                        break;
                    };
                    match bound_to(sockets, s, &message.from.0) {
                        Some(sender) => (self.fd(sender)?, to),
                        None => {
                            temporary = temporary_sender(s, &message.from.0, around)?;
                            (temporary.as_fd(), to)
                        }
                    }
                };
                force_room(from, room)?;
                send(from, &message.data.0, &to, &files, creds, s.socket_type == libc::SOCK_STREAM)?;
            }
        }
        Ok(())
    }

    /// Credentials of a sender as the kernel will take them from us.
    fn sender(&self, creds: &Creds, around: &dyn Around) -> socket::Credentials {
        // Processes that have ended cannot be named any more.
        let pid = around.pid(creds.pid).unwrap_or_else(|| nix::unistd::getpid().as_raw());
        socket::Credentials { pid, uid: creds.uid, gid: creds.gid }
    }

    /// Connects what is connected one-way, closes what was closed, sets the last options.
    pub fn finish(&mut self, sockets: &[UnixSocket], around: &dyn Around) -> Result<()> {
        for (n, s) in sockets.iter().enumerate() {
            match &s.state {
                UnixState::Connected(Some(peer)) if is_dgram(s) && !mutual(sockets, n) => {
                    match self.reach(&sockets[peer.at()], peer.at())? {
                        Some(Reach { address, .. }) => {
                            let fd = self.fd(n)?;
                            namespace::inside(around.net(s.net), || socket::connect(fd, &address))?
                                .map_err(unix("connect inside the tree"))?;
                        }
                        None => self.warnings.push(format!(
                            "socket:[{}]: its peer has no name any more, so that it is not connected again",
                            s.inode
                        )),
                    }
                }
                UnixState::External { peer_name } => self.reconnect(s, n, &peer_name.0, around)?,
                UnixState::Listen { backlog, pending } => self.pending(sockets, n, *backlog, pending, around)?,
                _ => {}
            }
        }
        for (n, s) in sockets.iter().enumerate() {
            if let Some(stand_in) = self.stand_ins[n].take() {
                if s.reset {
                    // Closing a socket with something unread in it is a reset for the other side.
                    force_room(self.fd(n)?, 64 << 10)?;
                    send(self.fd(n)?, &[0], &[], &[], None, false)?;
                }
                drop(stand_in);
            }
            self.shut_down(s, n)?;
            common::late(self.fd(n)?, &s.options)?;
            for name in PASSING {
                if let Some(value) = common::int(&s.options, name) {
                    common::set_if_differs(self.fd(n)?, libc::SOL_SOCKET, name, value)?;
                }
            }
        }
        Ok(())
    }

    fn shut_down(&self, s: &UnixSocket, n: usize) -> Result<()> {
        let how = match s.shutdown & 3 {
            0 => return Ok(()),
            1 => libc::SHUT_RD,
            2 => libc::SHUT_WR,
            _ => libc::SHUT_RDWR,
        };
        match socket::shutdown(self.fd(n)?, how) {
            Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
            Err(e) => Err(unix("shutdown")(e)),
        }
    }

    /// Connections that nobody has accepted yet.
    fn pending(
        &mut self,
        sockets: &[UnixSocket],
        n: usize,
        backlog: u32,
        pending: &[UnixId],
        around: &dyn Around,
    ) -> Result<()> {
        let s = &sockets[n];
        if !pending.is_empty() {
            let reach = self.reach(s, n)?.ok_or_else(|| bad(s, "it listens without a name"))?;
            for client in pending {
                // Whom accept(2) will show the kernel tells nobody before: most likely who has the other end.
                let pid = around.holder(*client).unwrap_or(NsPid(0));
                let creds = Creds { pid, ..own_creds(&sockets[client.at()]) };
                let call = Call::Connect(self.fd(client.at())?, &reach);
                call_as(Some(&creds), s.net, around, &call)?.map_err(unix("connect inside the tree"))?;
            }
        }
        self.listen(s, n, backlog, around)
    }

    /// Connects to a socket outside the tree by its name.
    fn reconnect(&mut self, s: &UnixSocket, n: usize, peer_name: &[u8], around: &dyn Around) -> Result<()> {
        let address = unix_address(peer_name)?;
        let fd = self.fd(n)?;
        let own = own_creds(s);
        match run_as(Some(&own), around.net(s.net), || socket::connect(fd, &address))? {
            Ok(()) => {}
            Err(errno) => {
                let name = peer_name.escape_ascii();
                self.warnings
                    .push(format!("socket:[{}]: nobody answers at {name} ({errno}): it is not connected", s.inode));
            }
        }
        Ok(())
    }
}

/// The user whose socket it is.
fn own_creds(s: &UnixSocket) -> Creds {
    Creds { pid: NsPid(0), uid: s.options.uid, gid: s.options.gid }
}

fn lost(s: &UnixSocket) -> String {
    format!(
        "socket:[{}]: {} message(s) in its queue are lost: it has neither a name nor a peer",
        s.inode,
        s.queue.len()
    )
}

/// A socket of the tree that bears the name of a sender.
fn bound_to(sockets: &[UnixSocket], to: &UnixSocket, from: &[u8]) -> Option<usize> {
    let same = |s: &UnixSocket| is_dgram(s) && s.net == to.net && s.name.0 == from;
    sockets.iter().position(same).filter(|_| !from.is_empty())
}

/// A sender that has gone, with its name.
fn temporary_sender(s: &UnixSocket, from: &[u8], around: &dyn Around) -> Result<OwnedFd> {
    let fd = namespace::socket_in(around.net(s.net), libc::AF_UNIX, libc::SOCK_DGRAM, 0)?.map_err(unix("socket"))?;
    match from.first() {
        None => {}
        // Taken by somebody else by now: the message comes from an unnamed socket.
        Some(0) => drop(socket::bind(fd.as_fd(), &unix_address(from)?)),
        Some(_) => drop(bind_path(fd.as_fd(), from, None)?),
    }
    Ok(fd)
}

/// A listening socket of a name that its accepted sockets still bear, and an address by which it is reached.
fn temporary_listener(
    server: &UnixSocket,
    client: &UnixSocket,
    net: Option<BorrowedFd<'_>>,
    around: &dyn Around,
) -> Result<(OwnedFd, Vec<u8>, Option<OwnedFd>)> {
    let kind = server.socket_type;
    let fd = namespace::socket_in(net, libc::AF_UNIX, kind, 0)?.map_err(unix("socket"))?;
    let (address, node) = if server.name.0[0] == 0 {
        let address = unix_address(&server.name.0)?;
        socket::bind(fd.as_fd(), &address).map_err(unix("bind to the name of a listening socket that has gone"))?;
        (address, None)
    } else {
        let (node, _) = bind_path(fd.as_fd(), &server.name.0, None)?;
        (address_of_node(node.as_fd())?, Some(node))
    };
    call_as(client.peer_creds.as_ref(), server.net, around, &Call::Listen(fd.as_fd(), 1))?.map_err(unix("listen"))?;
    Ok((fd, address, node))
}

fn force_room(fd: BorrowedFd<'_>, room: i32) -> Result<()> {
    let now = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap_or(0);
    if now >= room {
        return Ok(());
    }
    socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room).map_err(unix("SO_SNDBUFFORCE"))
}

fn send(
    from: BorrowedFd<'_>,
    data: &[u8],
    to: &[u8],
    files: &[OwnedFd],
    creds: Option<socket::Credentials>,
    stream: bool,
) -> Result<()> {
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let flags = libc::MSG_DONTWAIT;
    let attempt = |data: &[u8], fds: &[BorrowedFd<'_>], creds| match socket::send(from, data, to, fds, creds, flags) {
        // The process named has ended meanwhile, or may not be named by us.
        Err(Errno::ESRCH | Errno::EPERM) if creds.is_some() => socket::send(from, data, to, fds, None, flags),
        other => other,
    };
    let mut done = attempt(data, &fds, creds).map_err(unix("filling a queue"))?;
    while stream && done < data.len() {
        let more = attempt(&data[done..], &[], creds).map_err(unix("filling a queue"))?;
        if more == 0 {
            return Err(unix("filling a queue")(Errno::EAGAIN));
        }
        done += more;
    }
    Ok(())
}
