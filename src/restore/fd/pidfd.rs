//! Made by the engine: pidfd_open(2).

use super::Maker;
use crate::image::fd::FileKind;
use crate::image::fd::pidfd::PidFd;
use crate::image::{NsPid, Pid, TaskId};
use crate::restore::{Error, Result, skeleton};
use crate::sys::{clone, fd, pidfd, wait};
use crate::trace::Batch;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// `PIDFD_THREAD`.
const THREAD: u32 = libc::O_EXCL as u32;

/// A descriptor of a task of the tree, or of one that is gone.
pub(crate) fn make(maker: &mut Maker<'_>, model: &PidFd, flags: u32) -> Result<OwnedFd> {
    let Some(id) = model.pid else { return of_the_dead(maker, model) };
    let failed = |errno| Error::System { operation: "pidfd_open", object: format!("process {id}"), errno };
    let pid = pid_of(maker, id).ok_or_else(|| Error::Impossible {
        object: format!("a pidfd of process {id}"),
        reason: "the image has no such process".to_owned(),
    })?;
    if flags & THREAD != 0 { pidfd::open_thread(pid) } else { fd::pidfd_open(pid) }.map_err(failed)
}

fn pid_of(maker: &mut Maker<'_>, id: NsPid) -> Option<Pid> {
    if let Some(task) = maker.model.task_of(id) {
        return Some(maker.skeletons.pid(task));
    }
    let (task, thread) = maker.model.tasks.iter().enumerate().find_map(|(n, t)| {
        let thread = t.threads.iter().position(|thread| thread.tid == id)?;
        Some((TaskId::from(n), thread))
    })?;
    maker.skeletons.task(task).threads.get(thread).map(crate::trace::remote::Remote::pid)
}

/// Descriptors that are yet to be given out of processes that have ended, by their number in the model.
pub(crate) type Dead = HashMap<u32, Vec<OwnedFd>>;

/// A descriptor of a process that has ended and was reaped. It was of the tree's own PID namespace, from where alone it
/// can be used; so where the tree gets a new one, the process is made there. All descriptors of the same process are opened
/// while it lives: their inode tells that they are of the same.
fn of_the_dead(maker: &mut Maker<'_>, model: &PidFd) -> Result<OwnedFd> {
    if let Some(fd) = maker.dead.get_mut(&model.gone).and_then(Vec::pop) {
        return Ok(fd);
    }
    let same = maker.model.files.iter().filter(|file| matches!(&file.kind, FileKind::PidFd(other) if other == model));
    let mut fds = open_and_end(maker, same.count().max(1))?;
    let fd = fds.pop().expect("there is one at least");
    maker.dead.insert(model.gone, fds);
    Ok(fd)
}

fn open_and_end(maker: &mut Maker<'_>, count: usize) -> Result<Vec<OwnedFd>> {
    let failed = |operation| move |errno| Error::System { operation, object: "a pidfd".to_owned(), errno };
    let open = |child: Pid| -> Result<Vec<OwnedFd>> {
        (0..count).map(|_| fd::pidfd_open(child).map_err(failed("pidfd_open"))).collect()
    };
    let end = |child: Pid| {
        let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0), nix::sys::signal::SIGKILL);
        killed.map_err(failed("kill"))?;
        wait::wait(child).map(drop).map_err(failed("wait"))
    };
    if !maker.skeletons.new_pids {
        let child = clone::paused_child(0, libc::SIGCHLD, &[], None).map_err(failed("clone3"))?;
        let fds = open(child);
        end(child)?;
        return fds;
    }
    let scratch = maker.skeletons.scratch;
    let parent = match &mut maker.skeletons.init {
        Some(init) => init,
        None => maker.skeletons.leader(TaskId(0)).0,
    };
    parent.tracee().set_options(skeleton::trace_options(maker.model))?;
    // Without an exit signal nobody is told of its end.
    let child = skeleton::clone_from(parent, scratch, 0, 0, &[])?;
    let pid = child.pid();
    let fds = open(pid);
    drop(child);
    end(pid)?;
    let mut batch = Batch::new();
    batch.must(libc::SYS_wait4, &[(-1i32).into(), 0u64.into(), libc::__WCLONE.into(), 0u64.into()]);
    parent.run_all(&scratch, &batch)?;
    fds
}
