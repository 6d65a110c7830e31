//! cgroup memberships: where a restored tree lives. Never in the cgroups of whoever restores it: ending an agent or an
//! ssh session would end the tree with them.

use super::{Error, Result};
use crate::blocker::{Blocker, codes};
use crate::image::task::Task;
use crate::image::{Model, Pid, TaskId, cgroup::Membership};
use crate::ops::options::Cgroup;
use crate::proc::ProcDir;
use crate::proc::cgroupfs::{self, Hierarchy, hierarchies};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Component, Path, PathBuf};

/// The cgroups a tree is put into, made and open.
#[derive(Debug, Default)]
pub struct Place {
    /// Directory in the version 2 hierarchy: tasks are born in it (`CLONE_INTO_CGROUP`).
    unified: Option<OwnedFd>,
    /// Cgroups in version 1 hierarchies: the root is there before it has children.
    others: Vec<Other>,
    /// Where it is, for messages and for finding it again.
    pub path: Option<PathBuf>,
}

/// A cgroup of a version 1 hierarchy.
#[derive(Debug)]
struct Other {
    controllers: String,
    /// As `/proc/PID/cgroup` shows it, where that part of the hierarchy is mounted which it begins with.
    path: PathBuf,
    dir: PathBuf,
}

/// Directory below each hierarchy's mount for trees that have no other place.
const OURS: &str = "migrate";

/// Makes the cgroups of a restored tree. `name` tells this tree from others below `/migrate`.
pub fn prepare(model: &Model, choice: &Cgroup, name: &str, warnings: &mut Vec<String>) -> Result<Place> {
    let own = ProcDir::of_self()?.cgroup_set(&mut Vec::new())?.memberships;
    let mut place = Place::default();
    for hierarchy in hierarchies()? {
        let ours = own.iter().find(|m| m.controllers == hierarchy.controllers);
        let Some(path) = wanted(model, choice, name, &hierarchy, ours) else { continue };
        let Some(dir) = below(&hierarchy, &path) else {
            return Err(failed("use the cgroup", &path, crate::sys::Errno::EINVAL));
        };
        if let Err(errno) = make(&hierarchy, &dir) {
            warnings.push(format!("cgroup {} could not be made: {errno}", dir.display()));
            continue;
        }
        if hierarchy.is_v2() {
            let flags = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
            let opened = nix::fcntl::open(&dir, flags, nix::sys::stat::Mode::empty());
            place.unified = Some(opened.map_err(|errno| failed("open", &dir, errno))?);
            place.path = Some(dir);
        } else {
            let path = Path::new("/").join(path);
            place.others.push(Other { controllers: hierarchy.controllers, path, dir });
        }
    }
    Ok(place)
}

/// The cgroup of a restored tree of this name that has no other place (`--cgroup scope`), in the hierarchy that a service
/// manager works with.
pub fn home(name: &str) -> Option<PathBuf> {
    let hierarchies = hierarchies().ok()?;
    let managed = |h: &&Hierarchy| h.is_v2() || h.controllers == "name=systemd";
    hierarchies.iter().filter(managed).map(|h| h.mount.join(OURS).join(name)).find(|dir| dir.exists())
}

impl Place {
    /// Makes a process that is born in these cgroups, as far as that can be: [`Self::enter`] sees to the rest. `make` gets the
    /// descriptor for `CLONE_INTO_CGROUP`. In a version 1 hierarchy a process is born where its maker is, so a thread of ours
    /// goes there to make it: that costs nothing, where the kernel waits for a grace period (10 ms and more) to move
    /// somebody else (Linux 6.0).
    ///
    /// # Errors
    /// Those of `make`.
    pub fn child(&self, make: impl Fn(Option<RawFd>) -> Result<Pid> + Sync) -> Result<Pid> {
        let unified = self.unified.as_ref().map(AsRawFd::as_raw_fd);
        let there = || self.others.iter().all(|other| other.go_there().is_ok()).then(|| make(unified));
        let born = if self.others.is_empty() { None } else { in_a_thread(there) };
        born.unwrap_or_else(|| make(unified))
    }

    /// Sees to it that a process is in the version 1 cgroups.
    pub fn enter(&self, pid: Pid) -> Result<()> {
        if self.others.is_empty() {
            return Ok(());
        }
        let set = ProcDir::open(pid)?.cgroup_set(&mut Vec::new())?.memberships;
        let is_in = |other: &Other| {
            set.iter().any(|m| m.controllers == other.controllers && m.path.as_path() == other.path.as_path())
        };
        for other in self.others.iter().filter(|other| !is_in(other)) {
            let file = other.dir.join("cgroup.procs");
            std::fs::write(&file, pid.to_string())
                .map_err(|e| failed("write", &file, crate::sys::Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        }
        Ok(())
    }
}

/// Processes that go from the root's cgroups to others of their own once the tree runs (`--cgroup same`): until then all of it is
/// in one place, where it can be frozen.
#[derive(Debug, Default)]
pub struct Apart(Vec<(Pid, Vec<Membership>)>);

impl Apart {
    /// Those of a model; `pid` tells what they are called here.
    pub fn of(model: &Model, choice: &Cgroup, pid: impl Fn(TaskId) -> Pid) -> Self {
        let root = model.root().cgroups;
        if *choice != Cgroup::Same {
            return Self::default();
        }
        let alive = model.tasks.iter().enumerate().filter(|(_, task)| !task.threads.is_empty() && task.cgroups != root);
        if !model.frozen.is_empty() {
            // Who leaves a frozen cgroup runs.
            let left = alive.count();
            if left > 0 {
                tracing::warn!("{left} processes of the frozen tree stay in the cgroups of its root");
            }
            return Self::default();
        }
        let theirs = |(n, task): (usize, &Task)| {
            let shared = root.map_or(&[][..], |root| &model.cgroups[root.at()].memberships);
            let own = &model.cgroups[task.cgroups?.at()].memberships;
            let others = own.iter().filter(|membership| !shared.contains(membership));
            Some((pid(TaskId::from(n)), others.cloned().collect()))
        };
        Self(alive.filter_map(theirs).collect())
    }

    /// Puts them there. What cannot be done is logged: they run where the root is.
    pub fn settle(&self) {
        if self.0.is_empty() {
            return;
        }
        let hierarchies = hierarchies().unwrap_or_default();
        for (pid, memberships) in &self.0 {
            for membership in memberships {
                let Some(hierarchy) = hierarchies.iter().find(|h| h.controllers == membership.controllers) else {
                    continue;
                };
                if let Err(error) = join(*pid, hierarchy, membership) {
                    tracing::warn!(%error, "process {pid} does not get into its cgroup {}", membership.path);
                }
            }
        }
    }
}

/// Puts a process into a cgroup, which is made if it is not there.
fn join(pid: Pid, hierarchy: &Hierarchy, membership: &Membership) -> std::io::Result<()> {
    let path = membership.path.as_path();
    let dir = below(hierarchy, path.strip_prefix("/").unwrap_or(path)).ok_or(std::io::ErrorKind::InvalidInput)?;
    make(hierarchy, &dir)?;
    std::fs::write(dir.join("cgroup.procs"), pid.to_string())
}

impl Other {
    /// Moves the calling thread, and it alone.
    fn go_there(&self) -> std::io::Result<()> {
        std::fs::write(self.dir.join("tasks"), "0")
    }
}

/// What a thread of its own gives; `None` if it gives nothing, or cannot be made. It has no name, as its children would
/// inherit that.
fn in_a_thread<T: Send>(work: impl FnOnce() -> Option<T> + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work).ok()?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A path that was asked for and that cannot be had: it leads out of every hierarchy, or it is not there and may not be made.
pub fn missing(choice: &Cgroup) -> Option<Blocker> {
    use nix::unistd::{AccessFlags, access};
    let Cgroup::Path(path) = choice else { return None };
    let blocker = |reason: &str| Some(Blocker::new(codes::CGROUP_MISSING, path.display().to_string()).because(reason));
    let inner = path.strip_prefix("/").unwrap_or(path);
    let hierarchies = hierarchies().unwrap_or_default();
    let dirs: Vec<PathBuf> = hierarchies.iter().filter_map(|hierarchy| below(hierarchy, inner)).collect();
    if dirs.is_empty() {
        return blocker("it is no path below the mount of a hierarchy");
    }
    let may_be_made = |dir: &PathBuf| {
        let above = dir.ancestors().find(|above| above.exists());
        above.is_some_and(|above| access(above, AccessFlags::W_OK).is_ok())
    };
    if dirs.iter().any(may_be_made) { None } else { blocker("it does not exist here, or is not ours to use") }
}

/// The path below the mount of a hierarchy; `None` = as the engine.
fn wanted(
    model: &Model,
    choice: &Cgroup,
    name: &str,
    hierarchy: &Hierarchy,
    ours: Option<&Membership>,
) -> Option<PathBuf> {
    let relative = |path: &Path| path.strip_prefix("/").unwrap_or(path).to_owned();
    match choice {
        Cgroup::Path(path) => Some(relative(path)),
        Cgroup::Same => {
            let set = model.root().cgroups.map(|id| &model.cgroups[id.at()])?;
            set.memberships.iter().find(|m| m.controllers == hierarchy.controllers).map(|m| relative(m.path.as_path()))
        }
        // In a version 1 hierarchy the root cgroup belongs to nobody in particular: there is nothing to get away from.
        Cgroup::Scope if !hierarchy.is_v2() && ours.is_none_or(|m| m.path.0 == b"/") => None,
        Cgroup::Scope => {
            remove_empty(&hierarchy.mount.join(OURS));
            Some(Path::new(OURS).join(name))
        }
    }
}

/// Directories of trees that have ended. One with a process in it refuses to go; a young one may belong to a restore that
/// has just made it.
fn remove_empty(above: &Path) {
    const YOUNG: std::time::Duration = std::time::Duration::from_secs(60);
    let entries = std::fs::read_dir(above).into_iter().flatten().flatten();
    // A version 1 directory has dozens of files of its own.
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > YOUNG) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// The directory of a cgroup; `None` for a path that leads elsewhere. It may be in the words of an image or of a peer.
fn below(hierarchy: &Hierarchy, path: &Path) -> Option<PathBuf> {
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| hierarchy.mount.join(path))
}

fn make(hierarchy: &Hierarchy, dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    cgroupfs::inherit_sets(&hierarchy.mount, dir)
}

fn failed(operation: &'static str, path: &Path, errno: crate::sys::Errno) -> Error {
    Error::System { operation, object: path.display().to_string(), errno }
}
