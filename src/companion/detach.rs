//! Leaving the caller: a process of ours that outlives it must not end with it: not with the agent, ssh, or the login
//! that started either.

use crate::proc::cgroupfs;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the cgroup of session processes, below the root of each hierarchy.
const CGROUP: &str = "migrate/sessions";

/// A session and process group of our own, no working directory held, and a cgroup that no service or login owns.
/// What cannot be left is logged: an ordinary user may not leave their login's cgroup.
pub fn leave_the_caller() {
    leave_the_session();
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::warn!(%error, "cannot leave the working directory");
    }
}

/// The same, in the same working directory.
pub fn leave_the_session() {
    if let Err(error) = nix::unistd::setsid() {
        tracing::debug!(%error, "already leads a session");
    }
    for hierarchy in hierarchies(Path::new("/sys/fs/cgroup")) {
        if let Err(error) = enter(&hierarchy) {
            tracing::debug!(%error, hierarchy = %hierarchy.display(), "stays in the caller's cgroup");
        }
    }
}

/// Roots of all cgroup hierarchies, version 2 and 1: `root` itself, or its subdirectories.
fn hierarchies(root: &Path) -> Vec<PathBuf> {
    let is_one = |path: &Path| path.join("cgroup.procs").exists();
    if is_one(root) {
        return vec![root.into()];
    }
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| !path.is_symlink() && is_one(path)).collect()
}

/// Moves this process to the sessions' cgroup of one hierarchy. In version 1 the root cgroup belongs to nobody in
/// particular: there is nothing to leave there, and it alone has time for real-time tasks (`cpu.rt_runtime_us` is 0 in a
/// new one).
fn enter(hierarchy: &Path) -> io::Result<()> {
    let root = hierarchy.join("cgroup.procs");
    if !hierarchy.join("cgroup.controllers").exists() {
        let own = std::process::id().to_string();
        if fs::read_to_string(&root)?.lines().any(|pid| pid == own) {
            return Ok(());
        }
        if hierarchy.join("cpu.rt_runtime_us").exists() {
            return fs::write(root, "0");
        }
    }
    let cgroup = hierarchy.join(CGROUP);
    fs::create_dir_all(&cgroup)?;
    cgroupfs::inherit_sets(hierarchy, &cgroup)?;
    // 0 is the writer itself (cgroups(7)).
    fs::write(cgroup.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["unified", "freezer", "not-one"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["unified", "freezer"] {
            fs::write(dir.path().join(name).join("cgroup.procs"), "").unwrap();
        }
        std::os::unix::fs::symlink(dir.path().join("freezer"), dir.path().join("alias")).unwrap();
        let mut found = hierarchies(dir.path());
        found.sort();
        assert_eq!(found, [dir.path().join("freezer"), dir.path().join("unified")]);
        assert_eq!(hierarchies(&dir.path().join("unified")), [dir.path().join("unified")]);
    }
}
