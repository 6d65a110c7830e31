//! Paths as the mount namespaces of the tree see them.
//!
//! The kernel shows an open file's path from the root of the mount namespace it was opened in, which may be hidden, removed
//! or another task's: a path counts only when opening it in that namespace gives the same file again.

use super::set::Description;
use crate::collect::{Cx, Result};
use crate::image::fd::PathRef;
use crate::image::ns::{NsKind, mnt::Mount};
use crate::image::{Bytes, NsId};
use crate::proc::ProcDir;
use crate::sys::openat2::open_in_root;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The suffix of the link of a file without a name.
pub const DELETED: &[u8] = b" (deleted)";

/// A mount namespace with a way into it.
#[derive(Debug)]
pub struct View {
    /// Which.
    pub ns: NsId,
    /// It is that of this program.
    of_host: bool,
    /// Its root directory.
    root: OwnedFd,
    /// Its mounts by id.
    mounts: HashMap<u32, Mount>,
}

/// Where an open file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At this path of that namespace.
    Named(Bytes, NsId),
    /// It was removed; this is where it was.
    Deleted(Bytes, NsId),
    /// It exists, but its path leads elsewhere or nowhere.
    Hidden,
}

/// The mount namespaces met so far.
#[derive(Debug, Default)]
pub struct Views(Vec<View>);

impl View {
    /// Opens a path of the namespace.
    pub fn open(&self, path: &[u8], flags: i32) -> crate::sys::Result<OwnedFd> {
        open_in_root(&self.root, path, flags as u32, 0)
    }

    /// The path leads to the file with this device and inode.
    pub fn leads_to(&self, path: &[u8], inode: (u64, u64)) -> bool {
        self.open(path, libc::O_PATH | libc::O_NOFOLLOW)
            .and_then(fstat)
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == inode)
    }

    /// Mounts of a file system, by device number.
    pub fn mounts_of(&self, device: u64) -> impl Iterator<Item = &Mount> {
        self.mounts.values().filter(move |m| m.device == device)
    }

    /// A mount by its id.
    pub fn mount(&self, id: u32) -> Option<&Mount> {
        self.mounts.get(&id)
    }

    /// The root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Views {
    /// The view of a namespace of the model; `None` where no task shows it from its root.
    pub fn of(&mut self, cx: &mut Cx<'_>, ns: NsId) -> Result<Option<&View>> {
        if let Some(known) = self.0.iter().position(|v| v.ns == ns) {
            return Ok(Some(&self.0[known]));
        }
        let own;
        let of_host = cx.model.namespaces[ns.at()].of_host;
        let dir = if of_host {
            own = ProcDir::of_self()?;
            &own
        } else {
            let Some(at) = shows_root(cx, ns) else { return Ok(None) };
            &cx.frozen.processes[at].dir
        };
        let root = dir.open_file("root", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let mounts = dir.mountinfo(&mut cx.buf)?.into_iter().map(|m| (m.id, m)).collect();
        self.0.push(View { ns, of_host, root, mounts });
        Ok(self.0.last())
    }

    /// The namespace in which a mount with this id is: the task's own first, then the others of the tree, then ours.
    pub fn of_mount(&mut self, cx: &mut Cx<'_>, own: NsId, mount_id: u32) -> Result<Option<&View>> {
        let mut candidates = vec![own];
        let is_mnt = |n: &crate::image::ns::Namespace| matches!(n.kind, NsKind::Mnt(_));
        let all = cx.model.namespaces.iter().enumerate().filter(|(_, n)| is_mnt(n)).map(|(n, _)| NsId::from(n));
        candidates.extend(all.filter(|ns| *ns != own));
        for ns in candidates {
            if self.of(cx, ns)?.is_some_and(|v| v.mounts.contains_key(&mount_id)) {
                return self.of(cx, ns);
            }
        }
        Ok(None)
    }

    /// Finds out where an open file is; `own` is the mount namespace of the task that has it.
    pub fn place(&mut self, cx: &mut Cx<'_>, own: NsId, link: &[u8], stat: &FileStat, mount_id: u32) -> Result<Place> {
        let Some(view) = self.of_mount(cx, own, mount_id)? else { return Ok(Place::Hidden) };
        if !link.starts_with(b"/") {
            return Ok(Place::Hidden);
        }
        if view.leads_to(link, (stat.st_dev, stat.st_ino)) {
            return Ok(Place::Named(Bytes(link.to_vec()), view.ns));
        }
        Ok(match link.strip_suffix(DELETED) {
            Some(path) => Place::Deleted(Bytes(path.to_vec()), view.ns),
            None => Place::Hidden,
        })
    }

    /// As [`Self::place`], for a description, whose path has been tried from here.
    pub fn place_of(&mut self, cx: &mut Cx<'_>, d: &Description) -> Result<Place> {
        if d.named
            && let Some(view) = self.of_mount(cx, mnt_of(cx, d.at), d.info.mnt_id)?
            && view.of_host
        {
            return Ok(Place::Named(d.link.clone(), view.ns));
        }
        self.place(cx, mnt_of(cx, d.at), &d.link.0, &d.stat, d.info.mnt_id)
    }
}

/// The mount namespace of a process of the tree, once its task is in the model.
pub fn mnt_of(cx: &Cx<'_>, at: usize) -> NsId {
    let task = cx.process_of.binary_search(&at).expect("descriptors are read after the tasks, in the same order");
    cx.model.tasks[task].namespaces.mnt
}

/// A process of the tree in this namespace whose root directory is that of the namespace.
fn shows_root(cx: &Cx<'_>, ns: NsId) -> Option<usize> {
    let inode = cx.model.namespaces[ns.at()].inode;
    cx.frozen.processes.iter().position(|p| {
        !p.zombie
            && p.dir.stat_of("ns/mnt").is_ok_and(|s| s.st_ino == inode)
            && p.dir.readlink("root").is_ok_and(|l| l.0 == b"/")
    })
}

/// A path with what is compared before it is opened again. `comparable`: size and time mean something there.
pub fn path_ref(path: Bytes, mnt: NsId, stat: &FileStat, comparable: bool) -> PathRef {
    let regular = comparable && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    PathRef {
        path,
        mnt,
        mode: stat.st_mode,
        device: stat.st_dev,
        inode: stat.st_ino,
        size: if regular { stat.st_size as u64 } else { 0 },
        mtime_ns: if regular { nanoseconds(stat.st_mtime, stat.st_mtime_nsec) } else { 0 },
    }
}

/// Seconds and nanoseconds as nanoseconds.
pub fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}
