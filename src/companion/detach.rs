//! Leaving the caller: a process of ours that outlives it must not end with it: not with the agent, ssh, or the login
//! that started either.

use crate::proc::{ProcDir, cgroupfs};
use crate::sys::{Errno, Result};
use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

/// Name of the cgroup of session processes, below the root of each hierarchy.
const CGROUP: &str = "migrate/sessions";

/// A cgroup to go to, which is there and takes processes.
#[derive(Debug)]
struct Destination {
    dir: PathBuf,
    v2: bool,
}

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
    for Destination { dir, .. } in destinations() {
        // 0 is the writer itself (cgroups(7)).
        if let Err(error) = fs::write(dir.join("cgroup.procs"), "0") {
            tracing::debug!(%error, cgroup = %dir.display(), "stays in the caller's cgroup");
        }
    }
}

/// Calls `make` so that the process it makes is born where [`leave_the_session`] would take it: with a descriptor for
/// `CLONE_INTO_CGROUP`, and in a thread that has gone there itself in hierarchies of version 1. That costs nothing, where
/// everybody who makes a process or a cgroup waits while the kernel moves a process (a grace period, 10 ms and more; Linux
/// 6.0). Where it cannot be, the process is born in our cgroups, and has to go.
///
/// # Errors
/// Those of `make`; the thread cannot be made.
pub fn outside<T: Send>(make: impl Fn(Option<RawFd>) -> Result<T> + Sync) -> Result<T> {
    let destinations = destinations();
    if destinations.is_empty() {
        return make(None);
    }
    let there = || {
        for Destination { dir, .. } in destinations.iter().filter(|destination| !destination.v2) {
            if let Err(error) = fs::write(dir.join("tasks"), "0") {
                tracing::debug!(%error, cgroup = %dir.display(), "nothing is born there");
            }
        }
        let unified = destinations.iter().find(|destination| destination.v2);
        let unified = unified.and_then(|destination| fs::File::open(&destination.dir).ok());
        match &unified {
            Some(dir) => make(Some(dir.as_raw_fd())).or_else(|_| make(None)),
            None => make(None),
        }
    };
    // Without a name, as its children would inherit that.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, there).map_err(|_| Errno::EAGAIN)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Where this process has to go, hierarchy by hierarchy; none where it is there already.
fn destinations() -> Vec<Destination> {
    let own = ProcDir::of_self().and_then(|dir| dir.cgroup(&mut Vec::new())).unwrap_or_default();
    let hierarchies = cgroupfs::hierarchies().unwrap_or_default();
    let to_leave = hierarchies.into_iter().filter_map(|hierarchy| {
        let path = &own.iter().find(|line| line.controllers == hierarchy.controllers)?.path;
        let sessions = hierarchy.mount.join(CGROUP);
        // In version 1 the root cgroup belongs to nobody in particular: there is nothing to leave there.
        if (!hierarchy.is_v2() && path.0 == b"/") || hierarchy.dir(&path.0).as_ref() == Some(&sessions) {
            return None;
        }
        // And it alone has time for real-time tasks: that is 0 in a new one.
        let dir = if hierarchy.mount.join("cpu.rt_runtime_us").exists() { hierarchy.mount.clone() } else { sessions };
        let made = fs::create_dir_all(&dir).and_then(|()| cgroupfs::inherit_sets(&hierarchy.mount, &dir));
        match made {
            Ok(()) => Some(Destination { dir, v2: hierarchy.is_v2() }),
            Err(error) => {
                tracing::debug!(%error, cgroup = %dir.display(), "stays in the caller's cgroup");
                None
            }
        }
    });
    to_leave.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Pid;
    use crate::sys::{clone, wait};

    #[test]
    fn whoever_is_born_outside_has_nowhere_to_go() {
        if !nix::unistd::geteuid().is_root() {
            crate::skip!("only root makes cgroups");
            return;
        }
        let born = outside(|cgroup| clone::paused_child(0, libc::SIGCHLD, &[], cgroup)).unwrap();
        let lines = ProcDir::open(born).unwrap().cgroup(&mut Vec::new()).unwrap();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(born.0), nix::sys::signal::Signal::SIGKILL);
        wait::wait(Pid(born.0)).unwrap();
        for destination in destinations() {
            let of = |line: &crate::proc::cgroup::Line| {
                let hierarchies = cgroupfs::hierarchies().unwrap();
                let of = hierarchies.iter().find(|hierarchy| hierarchy.controllers == line.controllers)?;
                of.dir(&line.path.0)
            };
            assert!(lines.iter().any(|line| of(line).as_ref() == Some(&destination.dir)), "{destination:?}: {lines:?}");
        }
    }
}
