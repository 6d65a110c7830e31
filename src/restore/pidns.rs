//! A PID namespace of the tree's own, for ids that are taken here: process 1 of it is ours, a bare reaper that ends when
//! the tree's root has.

use super::root::{open_session, outer_session};
use super::skeleton::{Skeletons, clone_from, hold};
use super::{Error, Options, Result, cgroup::Place};
use crate::image::{Model, NsPid, Pid};
use crate::sys::{Errno, clone};
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};

/// CAP_SYS_ADMIN.
const SYS_ADMIN: u64 = 1 << 21;

/// Makes the namespace, its reaper, and the root of the tree in it. The tree's mount namespace is a copy of ours with a
/// `/proc` of the new PID namespace.
pub fn root(model: &Model, options: &Options, flags: u64, place: &Place, skeletons: &mut Skeletons) -> Result<Remote> {
    let pid = model.root().pid;
    let scratch = skeletons.scratch;
    let failed = |errno| Error::System { operation: "clone3 (new PID namespace)", object: format!("pid {pid}"), errno };
    let flags = flags | (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    let flags = if options.identity.is_some() { flags | libc::CLONE_NEWNET as u64 } else { flags };
    // Whoever may not make one makes it in a user namespace.
    let alone = super::creds::Own::read().caps & SYS_ADMIN == 0;
    let flags = if alone { flags | libc::CLONE_NEWUSER as u64 } else { flags };
    if pid.0 == 1 {
        let child = place.child(|cgroup| clone::paused_child(flags, libc::SIGCHLD, &[1], cgroup).map_err(failed))?;
        if alone {
            map_ourselves(child)?;
        }
        let mut remote = hold(child, skeletons)?;
        mount_proc(&mut remote, scratch)?;
        return Ok(remote);
    }
    let outer = outer_session(model).filter(|_| options.own_session);
    // A tree whose session was outside its PID namespace saw 0, and does so again.
    let outside = outer == Some(NsPid(0));
    let child = place.child(|cgroup| {
        let made = if outside { clone::reaper_of_outer_session } else { clone::reaper };
        made(flags, pid.0, cgroup).map_err(failed)
    })?;
    if alone {
        map_ourselves(child)?;
    }
    let mut init = hold(child, skeletons)?;
    mount_proc(&mut init, scratch)?;
    place.enter(child)?;
    if options.own_session && !outside {
        open_session(&mut init, skeletons)?;
    }
    let made = match outer {
        Some(session) if session.0 > 1 => {
            let mut leader = clone_from(&mut init, scratch, 0, libc::SIGCHLD, &[session.0])?;
            open_session(&mut leader, skeletons)?;
            let root = clone_from(&mut leader, scratch, libc::CLONE_PARENT as u64, 0, &[pid.0]);
            skeletons.session = Some(leader);
            root
        }
        // The tree shares the reaper's session where it had none of its own, or a number that cannot be had.
        _ => clone_from(&mut init, scratch, 0, libc::SIGCHLD, &[pid.0]),
    };
    skeletons.init = Some(init);
    made
}

/// Our own user and group are all that a new user namespace knows (user_namespaces(7), "Defining user and group ID mappings").
fn map_ourselves(child: Pid) -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let files = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ];
    for (name, text) in files {
        let path = format!("/proc/{child}/{name}");
        let failed = |e: std::io::Error| Error::System {
            operation: "write",
            object: path.clone(),
            errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        };
        std::fs::write(&path, text).map_err(failed)?;
    }
    Ok(())
}

/// Mounts the new namespace's /proc over the old one, seen by the tree alone.
fn mount_proc(remote: &mut Remote, scratch: Scratch) -> Result<()> {
    let mut batch = Batch::new();
    let (root, proc, none) = (batch.c_string(b"/"), batch.c_string(b"/proc"), batch.c_string(b"none"));
    let fs_type = batch.c_string(b"proc");
    batch.must(libc::SYS_mount, &[none, root, none, (libc::MS_REC | libc::MS_PRIVATE).into(), 0u64.into()]);
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    batch.must(libc::SYS_mount, &[fs_type, proc, fs_type, flags.into(), 0u64.into()]);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}
