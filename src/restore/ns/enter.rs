//! Done inside the target's tasks: they enter the namespaces that were made for them.

use super::mnt::Late;
use crate::image::task::TaskState;
use crate::image::{Model, TaskId};
use crate::proc::ProcDir;
use crate::restore::Result;
use crate::restore::skeleton::Skeletons;
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};
use std::os::fd::AsRawFd;

/// Every task that is not yet in its mount and UTS namespaces enters them. The others were born there.
pub fn mounts_of_all(model: &Model, skeletons: &mut Skeletons) -> Result<()> {
    for (n, task) in model.tasks.iter().enumerate().skip(1) {
        let id = TaskId::from(n);
        let (own, first) = (&task.namespaces, &model.root().namespaces);
        if matches!(task.state, TaskState::Zombie(_)) || (own.mnt, own.uts) == (first.mnt, first.uts) {
            continue;
        }
        let Some(mut skeleton) = skeletons.tasks.remove(&id) else { continue };
        let entered = mounts(model, id, &mut skeleton.threads[0], skeletons);
        skeletons.tasks.insert(id, skeleton);
        entered?;
    }
    Ok(())
}

/// A task enters its mount and UTS namespaces.
pub fn mounts(model: &Model, id: TaskId, remote: &mut Remote, skeletons: &mut Skeletons) -> Result<()> {
    let ns = model.tasks[id.at()].namespaces.mnt;
    let scratch = skeletons.scratch;
    let uts = model.tasks[id.at()].namespaces.uts;
    if let Some(fd) = skeletons.made.names(uts) {
        let mut batch = Batch::new();
        batch.must(libc::SYS_setns, &[fd.into(), libc::CLONE_NEWUTS.into()]);
        remote.run_all(&scratch, &batch)?;
    }
    let Some(fd) = skeletons.made.mnt(ns) else { return Ok(()) };
    let before = ProcDir::open(remote.pid())?.ns("mnt")?;
    if skeletons.entered.get(&ns) != Some(&before) {
        let mut batch = Batch::new();
        batch.must(libc::SYS_setns, &[fd.into(), libc::CLONE_NEWNS.into()]);
        remote.run_all(&scratch, &batch)?;
        let now = ProcDir::open(remote.pid())?.ns("mnt")?;
        if skeletons.entered.insert(ns, now).is_none() {
            mount_late(skeletons.made.late(ns), remote, scratch)?;
        }
    }
    Ok(())
}

/// Mounts a `/proc` of the task's PID namespace, parts of it, and what lies on it.
fn mount_late(late: &[Late], remote: &mut Remote, scratch: Scratch) -> Result<()> {
    const F_EMPTY_PATH: u32 = 4;
    let mut batch = Batch::new();
    let (none, empty, fs_type) = (batch.c_string(b"none"), batch.c_string(b""), batch.c_string(b"proc"));
    for Late { mount, ready } in late {
        let point = batch.c_string(&mount.mount_point.0);
        if let Some(ready) = ready {
            let (from, here) = (ready.as_raw_fd(), libc::AT_FDCWD);
            batch.must(libc::SYS_move_mount, &[from.into(), empty, here.into(), point, F_EMPTY_PATH.into()]);
            continue;
        }
        let flags = flags(&mount.options.0);
        if mount.root.0 == b"/" {
            let options: Vec<&[u8]> =
                mount.super_options.0.split(|b| *b == b',').filter(|o| !matches!(*o, b"rw" | b"ro")).collect();
            let options = batch.c_string(&options.join(&b','));
            batch.must(libc::SYS_mount, &[fs_type, point, fs_type, flags.into(), options]);
            continue;
        }
        let whole = late.iter().find(|l| l.mount.device == mount.device && l.mount.root.0 == b"/");
        let Some(whole) = whole else { continue };
        let from = batch.c_string(&[whole.mount.mount_point.0.as_slice(), &mount.root.0].concat());
        batch.must(libc::SYS_mount, &[from, point, none, libc::MS_BIND.into(), 0u64.into()]);
        let flags = flags | libc::MS_BIND | libc::MS_REMOUNT;
        batch.must(libc::SYS_mount, &[none, point, none, flags.into(), 0u64.into()]);
    }
    if !batch.is_empty() {
        remote.run_all(&scratch, &batch)?;
    }
    Ok(())
}

fn flags(options: &[u8]) -> u64 {
    let flag = |option: &[u8]| match option {
        b"ro" => libc::MS_RDONLY,
        b"nosuid" => libc::MS_NOSUID,
        b"nodev" => libc::MS_NODEV,
        b"noexec" => libc::MS_NOEXEC,
        b"noatime" => libc::MS_NOATIME,
        b"nodiratime" => libc::MS_NODIRATIME,
        b"relatime" => libc::MS_RELATIME,
        _ => 0,
    };
    options.split(|b| *b == b',').map(flag).fold(0, |all, one| all | one)
}
