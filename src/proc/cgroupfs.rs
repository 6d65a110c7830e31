//! Where cgroup hierarchies are mounted (cgroups(7)), and which cgroup holds a set of processes and nobody else.

use super::{
    ProcDir, Result,
    table::{Row, Table},
};
use crate::image::{Pid, ns::mnt::Mount};
use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Controllers as `/proc/PID/cgroup` lists them; empty for version 2.
    pub controllers: String,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Which part of it is mounted there (`/` unless in a container).
    pub root: PathBuf,
}

impl Hierarchy {
    /// Version 2.
    pub fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// The directory of a cgroup; `None` if it lies outside what is mounted.
    pub fn dir(&self, path: &[u8]) -> Option<PathBuf> {
        let below = Path::new(OsStr::from_bytes(path)).strip_prefix(&self.root).ok()?;
        let outside = below.components().any(|c| c == std::path::Component::ParentDir);
        (!outside).then(|| if below.as_os_str().is_empty() { self.mount.clone() } else { self.mount.join(below) })
    }

    /// What `/proc/PID/cgroup` calls the cgroup of this directory; `None` if it is not of this hierarchy.
    pub fn path(&self, dir: &Path) -> Option<Vec<u8>> {
        let path = self.root.join(dir.strip_prefix(&self.mount).ok()?).into_os_string().into_encoded_bytes();
        Some(path.strip_suffix(b"/").filter(|path| !path.is_empty()).map(<[u8]>::to_vec).unwrap_or(path))
    }
}

/// `rw,cpu,cpuacct` of a version 1 mount names its controllers between options.
fn has_controllers(mount: &Mount, controllers: &str) -> bool {
    let options: Vec<&[u8]> = mount.super_options.0.split(|&b| b == b',').collect();
    controllers.split(',').all(|c| options.contains(&c.as_bytes()))
}

/// Hierarchies of this process that are mounted, in the order of `/proc/self/cgroup`.
///
/// # Errors
/// `/proc/self` cannot be read.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let dir = ProcDir::of_self()?;
    let mut buf = Vec::new();
    let mounts = dir.mountinfo(&mut buf)?;
    let lines = dir.cgroup(&mut buf)?;
    let found = lines.into_iter().filter_map(|line| {
        let mount = mounts.iter().find(|m| match line.controllers.as_str() {
            "" => m.fs_type.0 == b"cgroup2",
            controllers => m.fs_type.0 == b"cgroup" && has_controllers(m, controllers),
        })?;
        let (root, at) = (mount.root.as_path().to_owned(), mount.mount_point.as_path().to_owned());
        Some(Hierarchy { controllers: line.controllers, mount: at, root })
    });
    Ok(found.collect())
}

/// Gives a new cgroup of a cpuset hierarchy (version 1) the sets of those above it, up to the mount: it takes no process before
/// (cpuset(7), ENOSPC). Nothing happens in other hierarchies.
///
/// # Errors
/// A set cannot be read or written.
pub fn inherit_sets(mount: &Path, cgroup: &Path) -> std::io::Result<()> {
    let mut levels: Vec<&Path> = cgroup.ancestors().take_while(|level| *level != mount).collect();
    levels.reverse();
    for level in levels {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let path = level.join(file);
            if std::fs::read_to_string(&path).is_ok_and(|set| set.trim().is_empty()) {
                std::fs::write(&path, std::fs::read(level.parent().unwrap_or(mount).join(file))?)?;
            }
        }
    }
    Ok(())
}

/// A cgroup that can stop processes all at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freezer {
    /// Its directory.
    pub dir: PathBuf,
    /// Version 2 (`cgroup.freeze`), as opposed to `freezer.state`.
    pub v2: bool,
}

impl Freezer {
    /// Whether this cgroup itself was told to freeze, as opposed to one above it.
    ///
    /// # Errors
    /// It cannot be read: the root of a hierarchy has no such file.
    pub fn is_set(&self) -> std::io::Result<bool> {
        let file = if self.v2 { "cgroup.freeze" } else { "freezer.self_freezing" };
        Ok(std::fs::read_to_string(self.dir.join(file))?.trim() == "1")
    }

    /// Freezes or thaws it; returns before its tasks have followed.
    ///
    /// # Errors
    /// No privilege, or the cgroup is gone.
    pub fn set(&self, frozen: bool) -> std::io::Result<()> {
        std::fs::write(self.file(), self.word(frozen))
    }

    /// The file that freezes and thaws it.
    pub fn file(&self) -> PathBuf {
        self.dir.join(if self.v2 { "cgroup.freeze" } else { "freezer.state" })
    }

    /// What is written to [`Self::file`].
    pub fn word(&self, frozen: bool) -> &'static str {
        match (self.v2, frozen) {
            (true, true) => "1",
            (true, false) => "0",
            (false, true) => "FROZEN",
            (false, false) => "THAWED",
        }
    }

    /// Whether all of its tasks stand still by now; a task in the kernel may take its time, or never do.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn all_stand(&self) -> std::io::Result<bool> {
        let (file, line) = if self.v2 { ("cgroup.events", "frozen 1") } else { ("freezer.state", "FROZEN") };
        Ok(std::fs::read_to_string(self.dir.join(file))?.lines().any(|found| found == line))
    }
}

/// The cgroups above a process that are frozen, innermost first (cgroups(7); freezer of version 1, or `cgroup.freeze`).
///
/// # Errors
/// `/proc` cannot be read.
pub fn frozen(pid: Pid) -> Result<Vec<Freezer>> {
    let mut buf = Vec::new();
    let lines = ProcDir::open(pid)?.cgroup(&mut buf)?;
    let mut found = Vec::new();
    for hierarchy in hierarchies()? {
        let v2 = hierarchy.is_v2();
        if !v2 && !hierarchy.controllers.split(',').any(|c| c == "freezer") {
            continue;
        }
        let line = lines.iter().find(|line| line.controllers == hierarchy.controllers);
        let dir = line.and_then(|line| hierarchy.dir(&line.path.0));
        let above = dir.iter().flat_map(|dir| dir.ancestors()).take_while(|dir| dir.starts_with(&hierarchy.mount));
        let freezers = above.map(|dir| Freezer { dir: dir.to_owned(), v2 });
        found.extend(freezers.filter(|freezer| freezer.is_set().unwrap_or(false)));
    }
    Ok(found)
}

/// The cgroup that the first of these processes is in, if it can be frozen and holds exactly them: version 2 is preferred.
/// Unlike [`freezer_of`] it does not look at all processes of the host.
///
/// # Errors
/// `/proc` cannot be read.
pub fn own_freezer(processes: &[Pid]) -> Result<Option<Freezer>> {
    let Some(root) = processes.first() else { return Ok(None) };
    let mut buf = Vec::new();
    let lines = ProcDir::open(*root)?.cgroup(&mut buf)?;
    let wanted: HashSet<i32> = processes.iter().map(|pid| pid.0).collect();
    let mut usable = hierarchies()?;
    usable.retain(|h| h.is_v2() || h.controllers.split(',').any(|c| c == "freezer"));
    usable.sort_by_key(|h| !h.is_v2());
    let found = usable.iter().find_map(|hierarchy| {
        let line = lines.iter().find(|line| line.controllers == hierarchy.controllers)?;
        let dir = hierarchy.dir(&line.path.0).filter(|dir| *dir != hierarchy.mount)?;
        let inside = std::fs::read_to_string(dir.join("cgroup.procs")).ok()?;
        let inside: Option<HashSet<i32>> = inside.lines().map(|pid| pid.parse().ok()).collect();
        (inside? == wanted).then_some(Freezer { dir, v2: hierarchy.is_v2() })
    });
    Ok(found)
}

/// A cgroup with a freezer that the root of a tree is in, and nobody who is not of that tree, nor this process: the highest one of
/// its hierarchy, version 2 preferred. Unlike for [`own_freezer`] the tree may change meanwhile, and part of it be elsewhere.
///
/// # Errors
/// `/proc` cannot be read.
pub fn freezer_around(root: Pid) -> Result<Option<Freezer>> {
    let mut buf = Vec::new();
    let lines = ProcDir::open(root)?.cgroup(&mut buf)?;
    let mut usable = hierarchies()?;
    usable.retain(|h| h.is_v2() || h.controllers.split(',').any(|c| c == "freezer"));
    usable.sort_by_key(|h| !h.is_v2());
    let found = usable.iter().find_map(|hierarchy| {
        let line = lines.iter().find(|line| line.controllers == hierarchy.controllers)?;
        let dir = hierarchy.dir(&line.path.0)?;
        let mut seen = HashMap::new();
        let levels =
            dir.ancestors().take_while(|level| *level != hierarchy.mount && level.starts_with(&hierarchy.mount));
        let highest = levels.take_while(|level| holds_only(level, root, &mut seen)).last()?;
        Some(Freezer { dir: highest.to_owned(), v2: hierarchy.is_v2() })
    });
    Ok(found)
}

/// All processes of a cgroup and those below it descend from `root` or are it, and not from this one. `seen`: who does, as far as known.
fn holds_only(dir: &Path, root: Pid, seen: &mut HashMap<i32, bool>) -> bool {
    let Ok(inside) = std::fs::read_to_string(dir.join("cgroup.procs")) else { return false };
    // 0: a process that has no number here.
    let ours = inside.lines().all(|line| line.parse().is_ok_and(|pid| pid > 0 && is_of_tree(pid, root, seen)));
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    ours && dirs.map(|entry| entry.path()).all(|below| holds_only(&below, root, seen))
}

/// Whoever has ended by now is nobody's hindrance.
fn is_of_tree(pid: i32, root: Pid, seen: &mut HashMap<i32, bool>) -> bool {
    // Longer chains of parents are not followed; one of which a link ends meanwhile is looked at again.
    const STEPS: usize = 1000;
    let mut buf = Vec::new();
    let mut next = pid;
    let mut answer = false;
    for _ in 0..STEPS {
        let ours = next == std::process::id() as i32;
        answer = !ours && (next == root.0 || seen.get(&next).copied().unwrap_or(false));
        if answer || ours || next <= 1 {
            break;
        }
        match ProcDir::open(Pid(next)).and_then(|dir| dir.stat(&mut buf).map(|stat| stat.ppid)) {
            Ok(parent) => next = parent,
            Err(error) if error.is_gone() && next == pid => return true,
            Err(error) if error.is_gone() => next = pid,
            Err(_) => break,
        }
    }
    seen.insert(pid, answer);
    answer
}

/// `path` is `prefix` or lies below it.
pub fn is_within(path: &[u8], prefix: &[u8]) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The longest path that all have in common, cut at a slash.
fn common<'a>(mut paths: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    let mut common = paths.next()?;
    for path in paths {
        while !is_within(path, common) {
            let end = common.iter().rposition(|&b| b == b'/')?;
            common = &common[..end];
        }
    }
    Some(common)
}

/// A cgroup (with those below it) that holds exactly these processes, if there is one: version 2 is preferred.
pub fn freezer_of(table: &Table, processes: &[Pid], hierarchies: &[Hierarchy]) -> Option<Freezer> {
    let usable = |h: &&Hierarchy| h.is_v2() || h.controllers.split(',').any(|c| c == "freezer");
    let mut candidates: Vec<&Hierarchy> = hierarchies.iter().filter(usable).collect();
    candidates.sort_by_key(|h| !h.is_v2());
    candidates
        .into_iter()
        .find_map(|hierarchy| own_cgroup(table, processes, hierarchy).map(|dir| Freezer { dir, v2: hierarchy.is_v2() }))
}

/// The cgroup of a hierarchy that (with those below it) holds exactly these processes, if there is one.
pub(super) fn own_cgroup(table: &Table, processes: &[Pid], hierarchy: &Hierarchy) -> Option<PathBuf> {
    let wanted: HashSet<Pid> = processes.iter().copied().collect();
    let mut buf = Vec::new();
    let of = |row: &Row, buf: &mut Vec<u8>| {
        let lines = row.read_cgroups(buf).ok()?;
        lines.iter().find(|l| l.controllers == hierarchy.controllers).map(|l| l.path.0.clone())
    };
    let paths: Option<Vec<Vec<u8>>> = processes.iter().map(|pid| of(table.get(*pid)?, &mut buf)).collect();
    let paths = paths?;
    let path = common(paths.iter().map(Vec::as_slice)).filter(|path| !path.is_empty() && *path != b"/")?;
    let mut others = table.rows().iter().filter(|row| !wanted.contains(&row.pid));
    let alone = others.all(|row| of(row, &mut buf).is_none_or(|other| !is_within(&other, path)));
    alone.then(|| hierarchy.dir(path)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{cgroup::Line, table::tests::row};

    fn table(paths: &[(i32, &str)]) -> Table {
        let rows = paths.iter().map(|&(pid, path)| {
            let mut row = row(pid, 0, 0);
            let path = path.as_bytes().into();
            row.cgroups = vec![Line { hierarchy: 0, controllers: String::new(), path, deleted: false }];
            row
        });
        Table::of(rows.collect())
    }

    fn unified() -> [Hierarchy; 1] {
        [Hierarchy { controllers: String::new(), mount: "/cg".into(), root: "/".into() }]
    }

    #[test]
    fn only_a_cgroup_without_others_will_do() {
        let table = table(&[(1, "/"), (2, "/a/x"), (3, "/a/y"), (4, "/ab"), (5, "/b")]);
        let freezer = |pids: &[i32]| {
            let pids: Vec<Pid> = pids.iter().copied().map(Pid).collect();
            freezer_of(&table, &pids, &unified()).map(|f| f.dir)
        };
        assert_eq!(freezer(&[2, 3]), Some("/cg/a".into()));
        assert_eq!(freezer(&[2]), Some("/cg/a/x".into()));
        assert_eq!(freezer(&[4, 5]), None);
        assert_eq!(freezer(&[1]), None);
        assert_eq!(freezer(&[3, 5]), None);
    }

    #[test]
    fn directories_below_the_mounted_part() {
        let inner = Hierarchy { controllers: String::new(), mount: "/cg".into(), root: "/docker/1".into() };
        assert_eq!(inner.dir(b"/docker/1/x"), Some("/cg/x".into()));
        assert_eq!(inner.dir(b"/docker/1"), Some("/cg".into()));
        assert_eq!(inner.dir(b"/docker/2"), None);
        assert_eq!(unified()[0].dir(b"/../x"), None);
        let path =
            |hierarchy: &Hierarchy, dir: &str| hierarchy.path(Path::new(dir)).map(|p| String::from_utf8(p).unwrap());
        assert_eq!(path(&inner, "/cg/x").as_deref(), Some("/docker/1/x"));
        assert_eq!(path(&inner, "/cg").as_deref(), Some("/docker/1"));
        assert_eq!(path(&unified()[0], "/cg/a/x").as_deref(), Some("/a/x"));
        assert_eq!((path(&unified()[0], "/cg").as_deref(), path(&inner, "/other")), (Some("/"), None));
        assert!(is_within(b"/a/b", b"/a") && is_within(b"/a", b"/a/") && !is_within(b"/ab", b"/a"));
    }

    #[test]
    fn nobody_but_the_tree_is_of_the_tree() {
        let mut shell = std::process::Command::new("sh");
        let mut root = shell.args(["-c", "sleep 60 & read _"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = Pid(root.id() as i32);
        let child = || ProcDir::open(pid).and_then(|dir| dir.children_of(&[pid], &mut Vec::new())).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while child().is_empty() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let child = child()[0];
        let is = |of: i32, root: Pid| is_of_tree(of, root, &mut HashMap::new());
        assert!(is(pid.0, pid) && is(child.0, pid) && is(child.0, child));
        assert!(!is(pid.0, child) && !is(1, pid) && !is(std::process::id() as i32, pid));
        // What descends from us only by way of us is not looked at further.
        assert!(!is(child.0, Pid(1)) && freezer_around(Pid(std::process::id() as i32)).unwrap().is_none());
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0), nix::sys::signal::SIGKILL).unwrap();
        root.kill().unwrap();
        root.wait().unwrap();
    }

    #[test]
    fn mounted_hierarchies_are_directories() {
        for hierarchy in hierarchies().unwrap() {
            assert!(hierarchy.mount.join("cgroup.procs").exists(), "{hierarchy:?}");
        }
    }
}
