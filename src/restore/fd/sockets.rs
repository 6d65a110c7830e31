//! Made by the engine: sockets of all families. What must not speak before the tree is complete sleeps until
//! [`Sleeping::wake`], right before the release: a restore that fails until then has sent nothing, and closes silently.

use super::peers::{self, Call, Ends};
use super::{Maker, nsfd, taken_over, tcp, udp, unix};
use crate::image::fd::tcp::TcpState;
use crate::image::fd::unix::Creds;
use crate::image::fd::{FileKind, udp::Udp};
use crate::image::{FdTableId, FileId, Model, NsId, NsPid, Pid, UnixId};
use crate::net::place::Waiting;
use crate::net::segment::{Injector, parse_address};
use crate::net::{self, nft};
use crate::restore::material::Material;
use crate::restore::skeleton::Skeletons;
use crate::restore::{Error, Result};
use crate::sys::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Sockets while descriptions are made.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    unix: Option<unix::Made>,
    asleep: Sleeping,
}

/// Sockets that are made and do not speak yet.
#[derive(Debug, Default)]
pub struct Sleeping {
    pub(super) tcp: Vec<(FileId, OwnedFd, tcp::Unfinished)>,
    pub(super) udp: Vec<(FileId, OwnedFd)>,
    /// Nodes of UNIX sockets, where those of the original are until this tree runs.
    nodes: Vec<Waiting>,
    namespaces: HashMap<NsId, OwnedFd>,
}

fn failed(object: impl Into<String>) -> impl FnOnce(net::Error) -> Error {
    let object = object.into();
    move |error| Error::Socket { object, error }
}

/// Makes the UNIX sockets, all together, and opens the namespaces that sockets are in.
pub(crate) fn begin(maker: &mut Maker<'_>) -> Result<()> {
    let model = maker.model;
    let mut wanted: Vec<NsId> = model.unix_sockets.iter().map(|s| s.net).collect();
    wanted.extend(model.unix_sockets.iter().filter_map(|s| s.node.as_ref().map(|n| n.path.mnt)));
    wanted.extend(model.files.iter().filter_map(|file| match &file.kind {
        FileKind::Tcp(tcp) => Some(tcp.net),
        FileKind::Udp(udp) => Some(udp.net),
        FileKind::Netlink(netlink) => Some(netlink.net),
        _ => None,
    }));
    for ns in wanted {
        if !model.namespaces[ns.at()].of_host && !maker.sockets.asleep.namespaces.contains_key(&ns) {
            let fd = nsfd::make(maker, ns, libc::O_RDONLY as u32)?;
            maker.sockets.asleep.namespaces.insert(ns, fd);
        }
    }
    let stay = maker.original.is_some() && taken_over::unix_stay(model);
    if !model.unix_sockets.is_empty() && !stay {
        let around = around(maker, &[]);
        let made = unix::make_all(&model.unix_sockets, &around).map_err(failed("UNIX sockets"))?;
        maker.sockets.unix = Some(made);
    }
    Ok(())
}

/// One description. TCP and UDP sockets are asleep.
pub(crate) fn make(maker: &mut Maker<'_>, id: FileId, kind: &FileKind) -> Result<OwnedFd> {
    match kind {
        FileKind::Unix(unix) => made(maker, *unix),
        FileKind::Tcp(tcp) => {
            let (fd, rest) = tcp::make(tcp, place(maker, tcp.net)).map_err(failed(describe(kind)))?;
            let kept = duplicate(&fd, kind)?;
            maker.sockets.asleep.tcp.push((id, kept, rest));
            Ok(fd)
        }
        FileKind::Udp(udp) => {
            let fd = udp::make(udp, place(maker, udp.net)).map_err(failed(describe(kind)))?;
            for membership in maker.model.multicast.iter().filter(|membership| membership.file == id) {
                let joined = udp::join(fd.as_fd(), membership, place(maker, udp.net).net);
                maker.warnings.extend(joined.map_err(failed(describe(kind)))?);
            }
            let kept = duplicate(&fd, kind)?;
            maker.sockets.asleep.udp.push((id, kept));
            Ok(fd)
        }
        FileKind::Netlink(netlink) => {
            super::netlink::make(netlink, place(maker, netlink.net).net).map_err(failed(describe(kind)))
        }
        other => Err(Error::Impossible { object: super::describe(other), reason: "it is no socket".to_owned() }),
    }
}

/// One that was the original's: it keeps what is in its queues, and what it is told before it wakes.
pub(crate) fn take_over(maker: &mut Maker<'_>, id: FileId, kind: &FileKind, socket: OwnedFd) -> Result<OwnedFd> {
    if let FileKind::Tcp(tcp) = kind {
        let kept = duplicate(&socket, kind)?;
        maker.sockets.asleep.tcp.push((id, kept, tcp::Unfinished::of_the_original(tcp)));
    }
    Ok(socket)
}

fn made(maker: &Maker<'_>, id: UnixId) -> Result<OwnedFd> {
    let none = || Error::Impossible { object: "a UNIX socket".to_owned(), reason: "it was not made".to_owned() };
    let fd = maker.sockets.unix.as_ref().ok_or_else(none)?.fd(id.at()).map_err(failed("a UNIX socket"))?;
    duplicate(&fd, &FileKind::Unix(id))
}

fn duplicate(fd: &impl AsFd, kind: &FileKind) -> Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned().map_err(|e| {
        let errno = crate::sys::Errno::from_raw(e.raw_os_error().unwrap_or(0));
        Error::System { operation: "dup", object: describe(kind), errno }
    })
}

fn place<'a>(maker: &'a Maker<'_>, ns: NsId) -> tcp::Place<'a> {
    let net = maker.sockets.asleep.namespaces.get(&ns).map(AsFd::as_fd);
    // Nobody keeps what is sent to a network namespace that comes with the tree.
    let deaf_listeners = maker.options.segments_kept && maker.model.namespaces[ns.at()].of_host;
    // A clone need not have the addresses of the original, ever.
    let address_later = maker.options.identity.is_some() && net.is_some();
    tcp::Place { net, address_later, deaf_listeners }
}

/// How messages name a socket.
pub(crate) fn describe(kind: &FileKind) -> String {
    let address = |raw: &[u8]| parse_address(raw).map_or_else(|| "no address".to_owned(), |a| a.to_string());
    match kind {
        FileKind::Tcp(tcp) if tcp.peer.0.is_empty() => format!("TCP socket {}", address(&tcp.local.0)),
        FileKind::Tcp(tcp) => format!("TCP connection {} to {}", address(&tcp.local.0), address(&tcp.peer.0)),
        FileKind::Udp(Udp { local, .. }) => format!("UDP socket {}", address(&local.0)),
        other => super::describe(other),
    }
}

/// Fills the queues of UNIX sockets, when all descriptions are there, and ends their making.
pub(crate) fn finish(maker: &mut Maker<'_>, files: &[OwnedFd]) -> Result<Sleeping> {
    if let Some(mut made) = maker.sockets.unix.take() {
        let model = maker.model;
        let sockets = &model.unix_sockets;
        let mut around = around(maker, files);
        made.fill(sockets, &mut around).map_err(failed("queues of UNIX sockets"))?;
        made.finish(sockets, &around).map_err(failed("UNIX sockets"))?;
        maker.warnings.append(&mut made.warnings);
        maker.sockets.asleep.nodes.append(&mut made.waiting);
    }
    Ok(std::mem::take(&mut maker.sockets.asleep))
}

/// The tree as the maker of UNIX sockets sees it.
struct Around<'a> {
    namespaces: &'a HashMap<NsId, OwnedFd>,
    pids: HashMap<NsPid, Pid>,
    files: &'a [OwnedFd],
    original_here: bool,
    tree: Tree<'a>,
}

/// What it takes to have a task make a socket itself.
struct Tree<'a> {
    model: &'a Model,
    material: &'a Material,
    skeletons: RefCell<&'a mut Skeletons>,
}

fn around<'a>(maker: &'a mut Maker<'_>, files: &'a [OwnedFd]) -> Around<'a> {
    let tasks = maker.model.tasks.iter().enumerate();
    let pids = tasks.map(|(n, t)| (t.pid, maker.skeletons.pid(n.into()))).collect();
    let original_here = maker.options.original_here;
    let tree = Tree { model: maker.model, material: maker.material, skeletons: RefCell::new(maker.skeletons) };
    Around { namespaces: &maker.sockets.asleep.namespaces, pids, files, original_here, tree }
}

impl unix::Around for Around<'_> {
    fn net(&self, ns: NsId) -> Option<BorrowedFd<'_>> {
        self.namespaces.get(&ns).map(AsFd::as_fd)
    }

    fn mnt(&self, ns: NsId) -> Option<BorrowedFd<'_>> {
        self.namespaces.get(&ns).map(AsFd::as_fd)
    }

    fn pid(&self, pid: NsPid) -> Option<i32> {
        self.pids.get(&pid).map(|pid| pid.0)
    }

    fn original_here(&self) -> bool {
        self.original_here
    }

    fn by_process(&self, creds: &Creds, net: NsId, call: &Call<'_>) -> Option<std::result::Result<Ends, Errno>> {
        let Tree { model, material, skeletons } = &self.tree;
        peers::by_process(model, &mut skeletons.borrow_mut(), material, creds, net, call)
    }

    fn holder(&self, socket: UnixId) -> Option<NsPid> {
        let Model { files, fd_tables, tasks, .. } = self.tree.model;
        let has = |table: &FdTableId| {
            let kinds = fd_tables[table.at()].entries.iter().map(|entry| &files[entry.file.at()].kind);
            kinds.into_iter().any(|kind| matches!(kind, FileKind::Unix(id) if *id == socket))
        };
        tasks.iter().find(|task| task.threads.iter().any(|thread| has(&thread.fd_table))).map(|task| task.pid)
    }

    fn file(&mut self, file: FileId) -> std::result::Result<OwnedFd, String> {
        let fd = self.files.get(file.at()).ok_or_else(|| format!("there is no file {}", file.0))?;
        fd.try_clone().map_err(|e| e.to_string())
    }
}

impl Sleeping {
    /// Lets every socket speak: the tree is complete and about to run. `deliver` gives them what they have missed: once when
    /// they speak and do not hear yet, and once more for what has come meanwhile. Returns what a person should know.
    pub fn wake(mut self, model: &Model, deliver: &mut dyn FnMut()) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for node in self.nodes.drain(..) {
            node.settle().map_err(failed("a UNIX socket"))?;
        }
        if self.tcp.is_empty() && self.udp.is_empty() {
            return Ok(warnings);
        }
        self.let_packets_in(model)?;
        let mut injectors: HashMap<NsId, Injector> = HashMap::new();
        for (id, fd, rest) in &self.tcp {
            let kind = &model.files[id.at()].kind;
            let FileKind::Tcp(tcp) = kind else { continue };
            let injector = injector(&mut injectors, &self.namespaces, tcp.net)?;
            rest.speak(fd.as_fd(), injector).map_err(failed(describe(kind)))?;
        }
        deliver();
        for (id, fd, rest) in self.tcp {
            let kind = &model.files[id.at()].kind;
            let FileKind::Tcp(tcp) = kind else { continue };
            rest.hear(fd.as_fd(), tcp).map_err(failed(describe(kind)))?;
        }
        deliver();
        for (id, fd) in self.udp {
            let kind = &model.files[id.at()].kind;
            let FileKind::Udp(udp) = kind else { continue };
            let injector = injector(&mut injectors, &self.namespaces, udp.net)?;
            match udp::finish(fd.as_fd(), udp, injector) {
                // In a network of its own there may be no way to its peer.
                Err(error @ net::Error::Kernel { .. }) if self.namespaces.contains_key(&udp.net) => {
                    warnings.push(format!("{}: {error}", describe(kind)));
                }
                done => warnings.extend(done.map_err(failed(describe(kind)))?),
            }
        }
        Ok(warnings)
    }

    /// Removes what the dump has left to hold segments off.
    fn let_packets_in(&self, model: &Model) -> Result<()> {
        let mut by_namespace: BTreeMap<NsId, Vec<nft::Tuple>> = BTreeMap::new();
        for (id, ..) in &self.tcp {
            if let FileKind::Tcp(tcp) = &model.files[id.at()].kind
                && matches!(tcp.state, TcpState::Connected(_))
                && let (Some(local), Some(peer)) = (parse_address(&tcp.local.0), parse_address(&tcp.peer.0))
            {
                by_namespace.entry(tcp.net).or_default().push((local, peer));
            }
        }
        for (ns, tuples) in by_namespace {
            let net = self.namespaces.get(&ns).map(AsFd::as_fd);
            nft::remove(net, &nft::name_of(&tuples)).map_err(failed("packet filter"))?;
        }
        Ok(())
    }
}

fn injector<'a>(
    injectors: &'a mut HashMap<NsId, Injector>,
    namespaces: &HashMap<NsId, OwnedFd>,
    ns: NsId,
) -> Result<&'a Injector> {
    use std::collections::hash_map::Entry;
    match injectors.entry(ns) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(room) => {
            let injector = Injector::open(namespaces.get(&ns).map(AsFd::as_fd)).map_err(failed("raw sockets"))?;
            Ok(room.insert(injector))
        }
    }
}
