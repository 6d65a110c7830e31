//! Made by a thread of the engine: mount namespaces.
//!
//! What the host has is copied while the thread is still in the host's namespace; then it takes one of its own, puts the
//! copies and the new file systems together, and makes their root its own. Everything is private until all is mounted, so
//! that nothing of it shows up elsewhere; only then are peer groups joined.

use super::{Made, content, failed, table, user};
use crate::image::ns::mnt::Mount;
use crate::image::{Model, NsId};
use crate::restore::{Error, Options, Result};
use crate::sys::openat2::open_in_root;
use crate::sys::{Errno, mount, thread_ids};
use nix::fcntl::{OFlag, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

/// A mount namespace with a way into it.
#[derive(Debug)]
pub struct MadeMnt {
    /// The namespace.
    pub ns: OwnedFd,
    /// Its root directory.
    pub root: OwnedFd,
    /// What its first task mounts: `/proc` shows the PID namespace of whoever mounts it.
    pub late: Vec<Late>,
}

/// A mount that comes when there is a task.
#[derive(Debug)]
pub struct Late {
    /// As it was.
    pub mount: Mount,
    /// Ready to be attached; `None` for a `/proc` and parts of it.
    pub ready: Option<OwnedFd>,
}

/// In a PID namespace of its own the tree has another `/proc`: which mounts are that, or lie on it.
fn late(mounts: &[Mount]) -> HashSet<u32> {
    let mut late = HashSet::new();
    for mount in mounts {
        let covered = || mounts.iter().any(|m| m.parent_id == mount.id && m.mount_point == mount.mount_point);
        let proc = mount.fs_type.0 == b"proc" && mount.root.0 == b"/" && mount.mount_point.0 != b"/" && !covered();
        if proc || late.contains(&mount.parent_id) {
            late.insert(mount.id);
        }
    }
    late
}

/// A file system that is in none of the host's mounts: the namespace where it was mounted first, and the mount there.
struct Instance {
    ns: OwnedFd,
    at: OwnedFd,
    root: Vec<u8>,
}

/// Makes the mount namespaces of the model.
pub(super) fn make(model: &Model, options: &Options, made: &mut Made, warnings: &mut Vec<String>) -> Result<()> {
    let own: Vec<NsId> = (0..model.namespaces.len()).map(NsId::from).filter(|ns| table(model, *ns).is_some()).collect();
    if own.is_empty() {
        return Ok(());
    }
    // In a PID namespace of its own the tree gets another /proc: what is mounted there must not show up at the host.
    let alone = crate::restore::root::new_pids(model, options);
    let same_boot = !alone && crate::proc::sys::boot_id().is_ok_and(|id| id == model.host.boot_id);
    let built = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut builder = Builder::new(same_boot, alone)?;
            let mut all = Vec::new();
            for ns in own {
                let owner = model.namespaces[ns.at()].owner.filter(|owner| !model.namespaces[owner.at()].of_host);
                let owner = owner.and_then(|owner| made.users.get(&owner));
                all.push((ns, builder.build(table(model, ns).unwrap_or_default(), owner)?));
            }
            Ok((all, builder.warnings))
        });
        thread.join().unwrap_or_else(|_| {
            Err(Error::Impossible { object: "mount namespace".to_owned(), reason: "its maker panicked".to_owned() })
        })
    });
    let (all, said) = built?;
    made.mounts.extend(all);
    warnings.extend(said);
    Ok(())
}

/// State of the thread.
struct Builder {
    same_boot: bool,
    /// The tree gets a PID namespace of its own.
    alone: bool,
    /// Where the thread began.
    host_ns: OwnedFd,
    host_root: OwnedFd,
    proc: OwnedFd,
    instances: HashMap<u64, Instance>,
    /// A mount of each peer group that was made, by its number on the source.
    groups: HashMap<u32, OwnedFd>,
    warnings: Vec<String>,
}

const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

fn path_fd(root: &OwnedFd, path: &[u8]) -> crate::sys::Result<OwnedFd> {
    open_in_root(root, path, (libc::O_PATH | libc::O_NOFOLLOW) as u32, 0)
}

impl Builder {
    fn new(same_boot: bool, alone: bool) -> Result<Self> {
        thread_ids::own_fs().map_err(failed("unshare", "file system state of a thread"))?;
        let open = |path: &str, flags| {
            nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open", path))
        };
        let proc = open("/proc", PATH)?;
        let host_ns = open("/proc/thread-self/ns/mnt", OFlag::O_RDONLY)?;
        let (instances, groups, warnings) = Default::default();
        Ok(Self { same_boot, alone, host_ns, host_root: open("/", PATH)?, proc, instances, groups, warnings })
    }

    /// One namespace; the thread is back in the host's afterwards.
    fn build(&mut self, mounts: &[Mount], owner: Option<&OwnedFd>) -> Result<MadeMnt> {
        // The host's peer groups are joined from there, at the end.
        let mut ready = HashMap::new();
        for mount in mounts {
            if let Some(copy) = self.copied(mount)? {
                ready.insert(mount.id, copy);
            }
        }
        let peers: Vec<Option<OwnedFd>> = mounts.iter().map(|m| self.host_peer(m)).collect();
        thread_ids::enter_mnt(self.host_ns.as_fd()).map_err(failed("setns", "the host's mount namespace"))?;
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed("unshare", "mount namespace"))?;
        let everything = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, everything, None::<&str>)
            .map_err(failed("mount (private)", "/"))?;
        let late = if self.alone { late(mounts) } else { HashSet::new() };
        let (mut early, mut later): (Vec<Mount>, Vec<Mount>) =
            mounts.iter().cloned().partition(|m| !late.contains(&m.id));
        if owner.is_some() {
            // There a new /proc can only be mounted where another one is in sight: it goes over that.
            early = mounts.to_vec();
            self.hidden(&later);
            later.retain(|m| m.fs_type.0 == b"proc");
        }
        let over = self.instances_of(mounts, owner.is_some())?;
        let (mut placed, root) = self.place(&early, &mut ready)?;
        let late = later.into_iter().map(|mount| self.keep(mount, &mut ready, &root)).collect::<Result<Vec<Late>>>()?;
        enter_root(&root, over)?;
        if owner.is_some() {
            // A copy for others listens to what is shared here, which goes: only masters outlive it.
            let lost = mounts.iter().filter(|m| m.shared != 0);
            self.warnings.extend(
                lost.map(|m| format!("{}: the mount was shared with others and is private now", m.mount_point)),
            );
            let listening = mounts
                .iter()
                .map(|m| if m.shared == 0 { m.clone() } else { Mount { shared: 0, master: 0, ..m.clone() } });
            self.propagation(&listening.collect::<Vec<_>>(), &placed, &peers);
        }
        let finished = match owner {
            None => MadeMnt { ns: self.own_ns()?, root, late },
            Some(owner) => user::copy_of_mounts(owner, late, &self.host_ns)?,
        };
        if owner.is_none() {
            self.propagation(mounts, &placed, &peers);
            self.remember(mounts, &mut placed, &finished.ns)?;
        }
        thread_ids::enter_mnt(self.host_ns.as_fd()).map_err(failed("setns", "the host's mount namespace"))?;
        Ok(finished)
    }

    /// Says what a new `/proc` will lie over.
    fn hidden(&mut self, later: &[Mount]) {
        let hidden = later.iter().filter(|m| m.fs_type.0 != b"proc");
        self.warnings
            .extend(hidden.map(|m| format!("{}: what was mounted there is hidden by the new /proc", m.mount_point)));
    }

    /// Mounts everything, the root first, over the thread's old root.
    fn place(
        &mut self,
        mounts: &[Mount],
        ready: &mut HashMap<u32, OwnedFd>,
    ) -> Result<(HashMap<u32, OwnedFd>, OwnedFd)> {
        let mut placed = HashMap::new();
        let mut root: Option<OwnedFd> = None;
        for mount in mounts {
            let new = match ready.remove(&mount.id) {
                Some(copy) => copy,
                None => self.new_or_again(mount, root.as_ref())?,
            };
            self.settle(mount, &new)?;
            let at = match &root {
                None => nix::fcntl::open("/", PATH, Mode::empty()),
                Some(root) => path_fd(root, &mount.mount_point.0),
            };
            let at = at.map_err(|errno| missing(&mount.mount_point.to_string(), errno))?;
            mount::attach(&new, &at).map_err(failed("move_mount", mount.mount_point.to_string()))?;
            if root.is_none() {
                root = Some(new.try_clone().map_err(io("dup", "root mount"))?);
            }
            placed.insert(mount.id, new);
        }
        let root = root.ok_or_else(|| Error::Impossible {
            object: "mount namespace".to_owned(),
            reason: "it has no mounts".to_owned(),
        })?;
        Ok((placed, root))
    }

    /// A mount that the first task will put into its place.
    fn keep(&mut self, mount: Mount, ready: &mut HashMap<u32, OwnedFd>, root: &OwnedFd) -> Result<Late> {
        if mount.fs_type.0 == b"proc" {
            return Ok(Late { mount, ready: None });
        }
        let new = match ready.remove(&mount.id) {
            Some(copy) => copy,
            None => self.new_or_again(&mount, Some(root))?,
        };
        self.settle(&mount, &new)?;
        Ok(Late { mount, ready: Some(new) })
    }

    fn own_ns(&self) -> Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(&self.proc, "thread-self/ns/mnt", flags, Mode::empty()).map_err(failed("open", "ns/mnt"))
    }

    /// A copy of what the host, or a namespace made before, has.
    fn copied(&self, of: &Mount) -> Result<Option<OwnedFd>> {
        let object = of.mount_point.to_string();
        if let Some(path) = &of.host_path {
            thread_ids::enter_mnt(self.host_ns.as_fd()).map_err(failed("setns", "the host's mount namespace"))?;
            let found = path_fd(&self.host_root, &path.0).map_err(|errno| missing(&path.to_string(), errno))?;
            if of.covers > 0 {
                return mount::copy_in(self.host_ns.as_fd(), &path.0, of.covers, of.unbindable)
                    .map(Some)
                    .map_err(failed("open_tree", path.to_string()));
            }
            return mount::copy(found).map(Some).map_err(failed("open_tree", path.to_string()));
        }
        let Some(instance) = self.instances.get(&of.device) else { return Ok(None) };
        thread_ids::enter_mnt(instance.ns.as_fd()).map_err(failed("setns", "a mount namespace"))?;
        part_of(&instance.at, &instance.root, of).map(Some).map_err(failed("open_tree", object))
    }

    /// A mount of the host that is in the same peer group, or in the one that the mount listens to.
    fn host_peer(&self, of: &Mount) -> Option<OwnedFd> {
        let path = of.host_path.as_ref().filter(|_| self.same_boot && (of.shared, of.master) != (0, 0))?;
        path_fd(&self.host_root, &path.0).ok()
    }

    /// Makes the file systems of its own that nothing has mounted yet; they lie over the thread's old root, which goes with
    /// them in the end. Not those whose layers lie in the namespace itself. How many there are.
    fn instances_of(&mut self, mounts: &[Mount], owned: bool) -> Result<usize> {
        let mut count = 0;
        let mut own: Vec<&Mount> =
            mounts.iter().filter(|m| m.host_path.is_none() && m.fs_type.0 != b"overlay").collect();
        if self.alone && !owned {
            own.retain(|m| m.fs_type.0 != b"proc");
        }
        own.sort_by_key(|m| (m.content.is_none(), m.root.0.len()));
        for of in own {
            if !self.instances.contains_key(&of.device) {
                let new = self.new_instance(of, None)?;
                let over = nix::fcntl::open("/", PATH, Mode::empty()).map_err(failed("open", "/"))?;
                mount::attach(&new, over).map_err(failed("move_mount", of.mount_point.to_string()))?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// A file system of its own, or a part of one.
    fn new_or_again(&mut self, of: &Mount, root: Option<&OwnedFd>) -> Result<OwnedFd> {
        if let Some(instance) = self.instances.get(&of.device) {
            return part_of(&instance.at, &instance.root, of).map_err(failed("open_tree", of.mount_point.to_string()));
        }
        self.new_instance(of, root)
    }

    fn new_instance(&mut self, of: &Mount, root: Option<&OwnedFd>) -> Result<OwnedFd> {
        let new = new_file_system(of, root)?;
        if let Some(content) = &of.content {
            content::write(&new, content)?;
        }
        if of.super_options.0.split(|b| *b == b',').any(|o| o == b"ro") {
            mount::make_read_only(&new).map_err(failed("remount", of.mount_point.to_string()))?;
        }
        let at = new.try_clone().map_err(io("dup", "a mount"))?;
        // Until it is known in which namespace it ends up, this thread is in it.
        let ns = self.own_ns()?;
        self.instances.insert(of.device, Instance { ns, at, root: of.root.0.clone() });
        Ok(new)
    }

    /// Flags of the mount; private for now.
    fn settle(&self, of: &Mount, new: &OwnedFd) -> Result<()> {
        const ALL: u64 = mount::RDONLY
            | mount::NOSUID
            | mount::NODEV
            | mount::NOEXEC
            | mount::ATIME
            | mount::NODIRATIME
            | mount::NOSYMFOLLOW;
        let wanted = attributes(&of.options.0);
        let changed = mount::set_attributes(new, wanted, ALL & !wanted | mount::ATIME, libc::MS_PRIVATE);
        changed.map_err(failed("mount_setattr", of.mount_point.to_string()))
    }

    /// Peer groups, masters, and what must not be bound.
    fn propagation(&mut self, mounts: &[Mount], placed: &HashMap<u32, OwnedFd>, peers: &[Option<OwnedFd>]) {
        let set = |fd: &OwnedFd, flag| mount::set_attributes(fd, 0, 0, flag);
        let mut alone = Vec::new();
        for (of, peer) in mounts.iter().zip(peers) {
            let Some(new) = placed.get(&of.id) else {
                // The first task mounts it, in a namespace that has no peers any more.
                alone.extend(((of.shared, of.master) != (0, 0)).then(|| of.mount_point.to_string()));
                continue;
            };
            let mut done = Ok(());
            if of.master != 0 {
                let from = self.groups.get(&of.master).or(peer.as_ref());
                alone.extend(from.is_none().then(|| of.mount_point.to_string()));
                done = from.map_or(Ok(()), |from| mount::join_group(from, new).and_then(|()| set(new, libc::MS_SLAVE)));
                if of.shared != 0 {
                    done = done.and_then(|()| set(new, libc::MS_SHARED));
                }
            } else if of.shared != 0 {
                done = match self.groups.get(&of.shared).or(peer.as_ref()) {
                    Some(from) => mount::join_group(from, new),
                    None => set(new, libc::MS_SHARED),
                };
            } else if of.unbindable {
                done = set(new, libc::MS_UNBINDABLE);
            }
            if let Err(errno) = done {
                self.warnings.push(format!("{}: propagation of mounts could not be set: {errno}", of.mount_point));
            }
            if of.shared != 0
                && let Ok(kept) = new.try_clone()
            {
                self.groups.entry(of.shared).or_insert(kept);
            }
        }
        if !alone.is_empty() {
            let which = alone.join(", ");
            self.warnings
                .push(format!("mounted for itself now, what is mounted elsewhere does not show there: {which}"));
        }
    }

    /// Later namespaces may have the same file systems.
    fn remember(&mut self, mounts: &[Mount], placed: &mut HashMap<u32, OwnedFd>, ns: &OwnedFd) -> Result<()> {
        let mut own: Vec<&Mount> = mounts.iter().filter(|m| m.host_path.is_none()).collect();
        // The one that shows most of it comes last, and stays.
        own.sort_by_key(|m| std::cmp::Reverse(m.root.0.len()));
        for of in own {
            if let Some(instance) = self.instances.get_mut(&of.device)
                && let Some(at) = placed.remove(&of.id)
            {
                let ns = ns.try_clone().map_err(io("dup", "a mount namespace"))?;
                *instance = Instance { ns, at, root: of.root.0.clone() };
            }
        }
        Ok(())
    }
}

/// The thread's root, and that of its namespace, becomes this mount; what was there before goes, with as many mounts over it.
fn enter_root(root: &OwnedFd, over: usize) -> Result<()> {
    nix::unistd::fchdir(root).map_err(failed("fchdir", "the new root"))?;
    nix::unistd::pivot_root(".", ".").map_err(failed("pivot_root", "the new root"))?;
    // The uppermost goes first.
    for _ in 0..=over {
        nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).map_err(failed("umount", "the old root"))?;
    }
    Ok(())
}

/// A copy of the part that a mount shows of a file system of which another mount shows this part.
fn part_of(at: &OwnedFd, shown: &[u8], of: &Mount) -> crate::sys::Result<OwnedFd> {
    let shown = if shown == b"/" { b"" } else { shown };
    let rest = of.root.0.strip_prefix(shown).ok_or(Errno::ENOENT)?;
    if rest.is_empty() || rest == b"/" { mount::copy(at) } else { mount::copy(path_fd(at, rest)?) }
}

fn missing(path: &str, errno: Errno) -> Error {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => {
            Error::File { path: path.to_owned(), reason: "it does not exist here, and a mount needs it".to_owned() }
        }
        errno => Error::System { operation: "open", object: path.to_owned(), errno },
    }
}

fn io(operation: &'static str, object: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |e| failed(operation, object)(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

/// Flags of a mount as mountinfo shows them.
fn attributes(options: &[u8]) -> u64 {
    let mut set = mount::STRICTATIME;
    for option in options.split(|b| *b == b',') {
        match option {
            b"ro" => set |= mount::RDONLY,
            b"nosuid" => set |= mount::NOSUID,
            b"nodev" => set |= mount::NODEV,
            b"noexec" => set |= mount::NOEXEC,
            b"nodiratime" => set |= mount::NODIRATIME,
            b"nosymfollow" => set |= mount::NOSYMFOLLOW,
            b"relatime" => set &= !mount::STRICTATIME,
            b"noatime" => set = set & !mount::STRICTATIME | mount::NOATIME,
            _ => {}
        }
    }
    set
}

/// Mounts a file system of its own, with the options it had. Layers of an overlay are looked up in the new root first.
fn new_file_system(of: &Mount, root: Option<&OwnedFd>) -> Result<OwnedFd> {
    let mut options: Vec<(&[u8], Option<&[u8]>)> = Vec::new();
    for option in of.super_options.0.split(|b| *b == b',').filter(|o| !o.is_empty()) {
        match option.iter().position(|b| *b == b'=') {
            // What the kernel adds by itself.
            _ if matches!(option, b"rw" | b"ro" | b"seclabel" | b"inode64" | b"inode32") => {}
            Some(at) => options.push((&option[..at], Some(&option[at + 1..]))),
            None => options.push((option, None)),
        }
    }
    let (kind, source) = (&of.fs_type.0, &of.source.0);
    let object = format!("{} on {}", String::from_utf8_lossy(kind), of.mount_point);
    if kind != b"overlay" {
        return mount::new_file_system(kind, source, &options).map_err(failed("mount", object));
    }
    let inside = root.map(|root| {
        let here = nix::fcntl::open("/", PATH, Mode::empty())?;
        thread_ids::enter_root(root.as_fd())?;
        let made = mount::new_file_system(kind, source, &options);
        thread_ids::enter_root(here.as_fd())?;
        made
    });
    match inside {
        Some(Ok(made)) => Ok(made),
        _ => mount::new_file_system(kind, source, &options).map_err(failed("mount", object)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_mounts() {
        assert_eq!(attributes(b"rw,relatime"), 0);
        assert_eq!(attributes(b"ro,nosuid,nodev,noexec,noatime"), 1 | 2 | 4 | 8 | 0x10);
        assert_eq!(attributes(b"rw"), mount::STRICTATIME);
        assert_eq!(attributes(b"rw,nodiratime,relatime"), mount::NODIRATIME);
    }
}
