//! A PID namespace of the tree's own, for ids that are taken here: process 1 of it is ours, a bare reaper that ends when
//! the tree's root has.

use super::skeleton::{Skeleton, Skeletons, clone_from, first_hold};
use super::{Error, Result};
use crate::image::Model;
use crate::sys::clone;
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};

/// Makes the namespace, its reaper, and the root of the tree in it. The tree's mount namespace is a copy of ours with a
/// `/proc` of the new PID namespace.
pub fn root(model: &Model, flags: u64, skeletons: &mut Skeletons) -> Result<Skeleton> {
    let pid = model.root().pid;
    let failed = |errno| Error::System { operation: "clone3 (new PID namespace)", object: format!("pid {pid}"), errno };
    let namespaces = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    if pid.0 == 1 {
        let child = clone::paused_child(flags | namespaces, libc::SIGCHLD, &[1], None).map_err(failed)?;
        return first_hold(child, skeletons.scratch, true);
    }
    let child = clone::reaper(flags | namespaces, pid.0).map_err(failed)?;
    let mut init = super::skeleton::hold(child, skeletons.scratch)?;
    mount_proc(&mut init, skeletons.scratch)?;
    let remote = clone_from(&mut init, skeletons.scratch, 0, libc::SIGCHLD, &[pid.0])?;
    let root = remote.pid();
    skeletons.init = Some(init);
    let mut skeleton = Skeleton { pid: root, threads: vec![remote] };
    super::skeleton::empty(&mut skeleton.threads[0], skeletons.scratch)?;
    Ok(skeleton)
}

/// Mounts the new namespace's /proc over the old one, seen by the tree alone.
pub(super) fn mount_proc(remote: &mut Remote, scratch: Scratch) -> Result<()> {
    let mut batch = Batch::new();
    let (root, proc, none) = (batch.c_string(b"/"), batch.c_string(b"/proc"), batch.c_string(b"none"));
    let fs_type = batch.c_string(b"proc");
    batch.must(libc::SYS_mount, &[none, root, none, (libc::MS_REC | libc::MS_PRIVATE).into(), 0u64.into()]);
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    batch.must(libc::SYS_mount, &[fs_type, proc, fs_type, flags.into(), 0u64.into()]);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}
