//! Binds a UNIX socket to a path exactly as its program wrote it, wherever the node has to be.
//!
//! The name a socket shows is the text given to bind(2): a relative one depends on a working directory of the past, an
//! absolute one on a root directory; and the node of the dead socket is still there. So a thread makes a small directory its
//! root, binds there, and then moves the node over the old one.

use super::{Error, Result, failed};
use crate::image::fd::unix::Node;
use crate::sys::{Errno, socket, thread_ids};
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// `sun_path` is at most this long.
pub const NAME_MAX: usize = 108;

/// A raw `sockaddr_un` of a path or abstract name.
pub fn unix_address(name: &[u8]) -> Result<Vec<u8>> {
    if name.len() > NAME_MAX {
        return Err(Error::BadModel { kind: "UNIX", reason: format!("a name of {} bytes", name.len()) });
    }
    let mut raw = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    raw.extend(name);
    if name.len() < NAME_MAX && name.first().is_some_and(|b| *b != 0) {
        raw.push(0);
    }
    Ok(raw)
}

/// An address by which this process reaches the node behind an `O_PATH` descriptor, whatever its path.
pub fn address_of_node(node: BorrowedFd<'_>) -> Result<Vec<u8>> {
    unix_address(format!("/proc/self/fd/{}", node.as_raw_fd()).as_bytes())
}

/// Where a node goes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The mount namespace, ours if `None`.
    pub mnt: Option<BorrowedFd<'a>>,
    /// Path, mode and owner.
    pub node: &'a Node,
    /// The original still lives on this kernel, frozen: where its node is at the place, the new one waits beside it.
    pub original_here: bool,
}

/// A node that waits beside its place. Dropping it removes it.
#[derive(Debug)]
pub struct Waiting {
    small: SmallRoot,
    parent: OwnedFd,
    /// Its path in the small root.
    from: PathBuf,
    /// Its name in the parent directory.
    file: OsString,
}

impl Waiting {
    /// Moves the node to its place: who connects from now on finds the new socket.
    pub fn settle(self) -> Result<()> {
        renameat(&self.small.dir, &self.from, &self.parent, self.file.as_os_str())
            .map_err(unix("moving the node to its place"))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Nothing is there after `settle`.
        let _ = unlinkat(&self.small.dir, &self.from, UnlinkatFlags::NoRemoveDir);
        self.small.remove(&self.parent);
    }
}

/// Binds `socket` to the path `name`. With a `target` the node goes there, over a stale one; without, it is removed again.
/// Returns an `O_PATH` descriptor of the node, through which the socket can be reached.
pub fn bind_path(
    socket: BorrowedFd<'_>,
    name: &[u8],
    target: Option<Target<'_>>,
) -> Result<(OwnedFd, Option<Waiting>)> {
    let outcome = std::thread::scope(|scope| scope.spawn(|| bind_here(socket, name, target)).join());
    outcome.unwrap_or_else(|_| Err(failed("UNIX", "binding")(Errno::ECANCELED)))
}

fn unix(operation: &'static str) -> impl FnOnce(Errno) -> Error {
    failed("UNIX", operation)
}

/// Runs on a thread of its own, whose root it changes.
fn bind_here(socket: BorrowedFd<'_>, name: &[u8], target: Option<Target<'_>>) -> Result<(OwnedFd, Option<Waiting>)> {
    thread_ids::own_fs().map_err(unix("unshare"))?;
    if let Some(mnt) = target.and_then(|t| t.mnt) {
        thread_ids::enter_mnt(mnt).map_err(unix("setns to a mount namespace"))?;
    }
    let tmp = std::env::temp_dir();
    let (parent, file) = match target {
        Some(t) => {
            let path = t.node.path.path.as_path();
            let bad = || Error::BadModel { kind: "UNIX", reason: format!("no file name in {}", path.display()) };
            (path.parent().ok_or_else(bad)?, path.file_name().ok_or_else(bad)?)
        }
        None => (tmp.as_path(), OsStr::new("")),
    };
    let in_parent = format!("opening {}", parent.display());
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = nix::fcntl::open(parent, directory, Mode::empty()).map_err(failed("UNIX", &in_parent))?;
    let small = SmallRoot::make(&parent)?;
    let found = small.bind(socket, name).and_then(|node| match target {
        Some(t) if t.original_here && is_at(&parent, file, t.node) => {
            dress(&small, name, t.node).map(|()| (node, true)).inspect_err(|_| small.unlink(name))
        }
        Some(t) => settle(&small, name, &parent, file, t.node).map(|()| (node, false)),
        None => {
            small.unlink(name);
            Ok((node, false))
        }
    });
    if let Ok((node, true)) = found {
        let from = relative(Path::new(OsStr::from_bytes(name))).to_owned();
        return Ok((node, Some(Waiting { small, parent, from, file: file.to_owned() })));
    }
    small.remove(&parent);
    found.map(|(node, _)| (node, None))
}

/// What is at the place is the very node that the model tells of.
fn is_at(parent: &OwnedFd, file: &OsStr, node: &Node) -> bool {
    fstatat(parent, file, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (node.path.device, node.path.inode))
}

/// A directory that becomes the root of the thread.
#[derive(Debug)]
struct SmallRoot {
    name: String,
    dir: OwnedFd,
    made: std::cell::RefCell<Vec<PathBuf>>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl SmallRoot {
    fn make(parent: &OwnedFd) -> Result<Self> {
        let name = format!(".migrate-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        mkdirat(parent, name.as_str(), Mode::S_IRWXU).map_err(unix("mkdir beside the node"))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = openat(parent, name.as_str(), flags, Mode::empty()).map_err(unix("opening a directory"))?;
        thread_ids::enter_root(dir.as_fd()).map_err(unix("chroot"))?;
        Ok(Self { name, dir, made: Vec::new().into() })
    }

    fn bind(&self, socket: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
        let path = Path::new(OsStr::from_bytes(name));
        let mut at = PathBuf::new();
        for part in path.parent().into_iter().flat_map(Path::components) {
            at.push(part);
            match mkdirat(&self.dir, relative(&at), Mode::S_IRWXU) {
                Ok(()) => self.made.borrow_mut().push(relative(&at).to_owned()),
                Err(Errno::EEXIST | Errno::ENOENT) => {}
                Err(e) => return Err(unix("mkdir")(e)),
            }
        }
        socket::bind(socket, &unix_address(name)?)
            .map_err(|e| failed("UNIX", &format!("bind to {}", path.display()))(e))?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.dir, relative(path), flags, Mode::empty()).map_err(unix("opening the node"))
    }

    /// Removes everything; what is left of it does no harm.
    fn remove(&self, parent: &OwnedFd) {
        for dir in self.made.borrow().iter().rev() {
            let _ = unlinkat(&self.dir, dir.as_path(), UnlinkatFlags::RemoveDir);
        }
        let _ = unlinkat(parent, self.name.as_str(), UnlinkatFlags::RemoveDir);
    }
}

impl SmallRoot {
    /// Removes a node that was not moved away.
    fn unlink(&self, name: &[u8]) {
        let _ = unlinkat(&self.dir, relative(Path::new(OsStr::from_bytes(name))), UnlinkatFlags::NoRemoveDir);
    }
}

/// The path as seen from the root it begins at; the empty path is that root.
fn relative(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Moves the node to its place, with mode and owner.
fn settle(small: &SmallRoot, name: &[u8], parent: &OwnedFd, file: &OsStr, node: &Node) -> Result<()> {
    let outcome = (|| {
        check_stale(parent, file, node)?;
        dress(small, name, node)?;
        let from = relative(Path::new(OsStr::from_bytes(name)));
        renameat(&small.dir, from, parent, file).map_err(unix("moving the node to its place"))
    })();
    if outcome.is_err() {
        small.unlink(name);
    }
    outcome
}

/// Gives the node its owner and mode.
fn dress(small: &SmallRoot, name: &[u8], node: &Node) -> Result<()> {
    let from = relative(Path::new(OsStr::from_bytes(name)));
    let mode = Mode::from_bits_truncate(node.path.mode & 0o7777);
    fchownat(&small.dir, from, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)), AtFlags::empty())
        .map_err(unix("chown of the node"))?;
    fchmodat(&small.dir, from, mode, FchmodatFlags::FollowSymlink).map_err(unix("chmod of the node"))
}

/// What is at the place already may be replaced if it is the node of the dead socket, or one that nobody answers at.
fn check_stale(parent: &OwnedFd, file: &OsStr, node: &Node) -> Result<()> {
    let in_the_way =
        |what: &str| Error::Unsupported { kind: "UNIX", reason: format!("{what} is at {} already", node.path.path) };
    let stat = match fstatat(parent, file, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(unix("stat of the node")(e)),
    };
    if stat.st_mode & SFlag::S_IFMT.bits() != libc::S_IFSOCK {
        return Err(in_the_way("something that is no socket"));
    }
    // The directory lies above this thread's root, but a descriptor leads there all the same.
    nix::unistd::fchdir(parent).map_err(unix("fchdir"))?;
    let address = unix_address(file.as_bytes())?;
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let probe = socket::socket(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0).map_err(unix("socket"))?;
        match socket::connect(probe.as_fd(), &address) {
            Ok(()) | Err(Errno::EAGAIN) => return Err(in_the_way("a live socket")),
            Err(_) => {}
        }
    }
    Ok(())
}
