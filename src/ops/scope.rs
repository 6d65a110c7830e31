//! A scope of systemd for a restored tree (`--cgroup scope`): the service manager lists it, accounts for it and ends it in order
//! at a shutdown.
//!
//! The tree is born, and frozen, in a cgroup of ours ([`cgroup::home`]) and taken over as it runs: a pause has no room for a
//! call to the manager. Without systemd, or where it refuses, the tree stays where it is.

use super::systemd::Manager;
use crate::restore::cgroup;
use std::fs;
use std::io;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long processes may go on being born in the old place.
const PATIENCE: Duration = Duration::from_secs(10);
/// No limit on the number of tasks: the default for scopes is less than a tree may have.
const NO_LIMIT: &str = "18446744073709551615";

/// The scope of a tree of this name.
pub fn unit(name: &str) -> String {
    format!("migrate-{name}.scope")
}

/// A tree that is being taken over; waited for where it is dropped.
#[derive(Debug)]
pub struct Adoption(Option<JoinHandle<()>>);

impl Drop for Adoption {
    fn drop(&mut self) {
        // A panic was reported where it happened.
        let _ = self.0.take().map(JoinHandle::join);
    }
}

/// Has the manager of this host take over the tree of this name, if there is one; a refusal is logged.
pub fn adopt_aside(name: &str) -> Option<Adoption> {
    let (manager, name) = (Manager::here()?, name.to_owned());
    let home = cgroup::home(&name)?;
    let adopt = move || match adopt(&manager, &name, &home) {
        Ok(()) => tracing::info!("the tree lives in {}", unit(&name)),
        Err(error) => tracing::warn!(%error, "systemd does not take the tree over; it stays in {}", home.display()),
    };
    Some(Adoption(Some(std::thread::Builder::new().spawn(adopt).ok()?)))
}

/// Has everybody of the cgroup `home` taken into a scope, and removes it.
fn adopt(manager: &Manager, name: &str, home: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let unit = unit(name);
    let mut pids = members(home)?;
    // It has ended already.
    if pids.is_empty() {
        return Ok(());
    }
    manager.call(&starting(&unit, &pids))?;
    loop {
        // The manager answers before it has moved anybody; a process may have had a child meanwhile.
        std::thread::sleep(Duration::from_millis(10));
        let left = members(home)?;
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} processes were not taken", left.len())));
        }
        if left != pids {
            manager.call(&attaching(&unit, &left))?;
            pids = left;
        }
    }
    // Of a version 1 hierarchy as well: those go with the next tree that is made.
    fs::remove_dir(home)
}

/// Processes of a cgroup, as the manager sees them.
fn members(home: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(home.join("cgroup.procs"))?;
    let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    if pids.contains(&0) {
        // cgroups(7): of a PID namespace that is not below ours.
        return Err(io::Error::other("a process of the tree is not to be seen from here"));
    }
    Ok(pids)
}

/// `StartTransientUnit` of org.freedesktop.systemd1(5).
fn starting(unit: &str, pids: &[u32]) -> Vec<String> {
    let head = ["StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", "4"];
    let described = ["Description", "s", "A process tree restored by migrate"];
    let collected = ["CollectMode", "s", "inactive-or-failed"];
    let mut call: Vec<String> = head.iter().chain(&described).chain(&collected).map(ToString::to_string).collect();
    call.extend(["TasksMax", "t", NO_LIMIT, "PIDs", "au"].map(str::to_owned));
    call.extend(listed(pids));
    call.push("0".to_owned());
    call
}

/// `AttachProcessesToUnit` of org.freedesktop.systemd1(5), systemd 238.
fn attaching(unit: &str, pids: &[u32]) -> Vec<String> {
    let mut call: Vec<String> = ["AttachProcessesToUnit", "ssau", unit, ""].map(str::to_owned).into();
    call.extend(listed(pids));
    call
}

/// An array in words of busctl(1): how many, then each.
fn listed(pids: &[u32]) -> impl Iterator<Item = String> {
    std::iter::once(pids.len().to_string()).chain(pids.iter().map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::cgroupfs::{Hierarchy, hierarchies};
    use std::process::{Child, Command};

    struct Here {
        home: std::path::PathBuf,
        scope: std::path::PathBuf,
        children: Vec<Child>,
    }

    impl Drop for Here {
        fn drop(&mut self) {
            for child in &mut self.children {
                let _ = child.kill();
                let _ = child.wait();
            }
            for dir in [&self.home, &self.scope] {
                for _ in 0..100 {
                    if fs::remove_dir(dir).is_ok() || !dir.exists() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    /// Two processes in one of two cgroups.
    fn here(name: &str) -> Option<Here> {
        let Some(mount) = hierarchies().unwrap().into_iter().find(Hierarchy::is_v2).map(|found| found.mount) else {
            crate::skip!("cgroup version 2 is not mounted");
            return None;
        };
        let dir = |what: &str| mount.join(format!("migrate-test-{what}-{name}-{}", std::process::id()));
        let mut here = Here { home: dir("home"), scope: dir("scope"), children: Vec::new() };
        if fs::create_dir(&here.home).and_then(|()| fs::create_dir(&here.scope)).is_err() {
            crate::skip!("cannot make a cgroup");
            return None;
        }
        for _ in 0..2 {
            here.children.push(Command::new("sleep").arg("1000").spawn().unwrap());
            fs::write(here.home.join("cgroup.procs"), here.children.last().unwrap().id().to_string()).unwrap();
        }
        Some(here)
    }

    #[test]
    fn a_tree_is_taken_over_with_who_is_born_meanwhile() {
        let Some(here) = here("taken") else { return };
        let dir = tempfile::tempdir().unwrap();
        // Takes only the last of those it is told of.
        let takes = format!(
            "echo \"$*\" >> calls; last=0; for word in \"$@\"; do [ $word = 0 ] || last=$word; done 2>/dev/null\n\
             echo $last > {}/cgroup.procs",
            here.scope.display()
        );
        let manager = super::super::systemd::tests::with_bus(dir.path(), &takes);
        adopt(&manager, "x7", &here.home).unwrap();
        let mut taken = members(&here.scope).unwrap();
        let mut children: Vec<u32> = here.children.iter().map(Child::id).collect();
        taken.sort_unstable();
        children.sort_unstable();
        assert_eq!(taken, children);
        assert!(!here.home.exists());
        let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
        let (first, second) = calls.trim_end().split_once('\n').unwrap();
        assert!(first.contains("StartTransientUnit ssa(sv)a(sa(sv)) migrate-x7.scope fail 4"), "{first}");
        assert!(second.contains("AttachProcessesToUnit ssau migrate-x7.scope"), "{second}");
    }

    #[test]
    fn a_manager_that_refuses_leaves_the_tree_where_it_is() {
        let Some(here) = here("refused") else { return };
        let dir = tempfile::tempdir().unwrap();
        let manager = super::super::systemd::tests::with_bus(dir.path(), "exit 1");
        assert!(adopt(&manager, "x8", &here.home).is_err());
        assert_eq!(members(&here.home).unwrap().len(), 2);
    }
}
