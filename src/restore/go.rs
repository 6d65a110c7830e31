//! The last steps: timers run again, registers are set, our area goes, and everybody is released at once.

use super::skeleton::{Skeleton, Skeletons};
use super::{Error, Result, restart, timers};
use crate::image::task::{Registers, TaskState, Thread};
use crate::image::{Model, Pid, TaskId};
use crate::sys::abi::UserRegs;
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};
use zerocopy::{FromBytes, IntoBytes};

/// Releases the tree.
pub fn go(model: &Model, mut skeletons: Skeletons, leave_stopped: bool) -> Result<()> {
    let scratch = skeletons.scratch;
    for n in 0..model.tasks.len() {
        prepare(model, TaskId::from(n), &mut skeletons)?;
    }
    for (n, task) in model.tasks.iter().enumerate() {
        if task.threads.is_empty() {
            continue;
        }
        let (remote, _) = skeletons.leader(TaskId::from(n));
        let mut batch = Batch::new();
        timers::arm(&mut batch, task);
        remote.run_all(&scratch, &batch)?;
        restart::begin_again(task, &mut skeletons.task(TaskId::from(n)).threads, scratch)?;
    }
    for n in 0..model.tasks.len() {
        let first = model.tasks.iter().position(|t| t.mm.is_some() && t.mm == model.tasks[n].mm);
        if first == Some(n) {
            skeletons.leader(TaskId::from(n)).0.drop_scratch(&scratch)?;
        }
    }
    let (mut tasks, init) = skeletons.into_tasks();
    if let Some(init) = init {
        release_init(init, scratch)?;
    }
    // Stopped tasks and children first: nobody sees a child that is not there yet.
    for (n, task) in model.tasks.iter().enumerate().rev() {
        let Some(skeleton) = tasks.remove(&TaskId::from(n)) else { continue };
        let stop = match task.state {
            TaskState::Stopped(signal) => Some(signal),
            _ if leave_stopped => Some(libc::SIGSTOP),
            _ => None,
        };
        release(skeleton, stop)?;
    }
    Ok(())
}

/// Extended state now, general registers at the release.
fn prepare(model: &Model, id: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[id.at()];
    for (thread, remote) in task.threads.iter().zip(&mut skeletons.task(id).threads) {
        remote.tracee().set_xstate(&thread.regs.xstate.0)?;
        remote.saved = general(&thread.regs, thread)?;
        remote.saved_mask = thread.blocked;
    }
    Ok(())
}

fn general(regs: &Registers, thread: &Thread) -> Result<UserRegs> {
    UserRegs::read_from_bytes(regs.general.as_slice().as_bytes()).map_err(|_| Error::Impossible {
        object: format!("thread {}", thread.tid),
        reason: format!("{} registers in the image, 27 expected", regs.general.len()),
    })
}

fn release(skeleton: Skeleton, stop: Option<i32>) -> Result<()> {
    if let (Some(signal), false) = (stop, skeleton.threads.is_empty()) {
        queue_stop(skeleton.pid, signal)?;
    }
    for thread in skeleton.threads {
        thread.release()?;
    }
    Ok(())
}

fn queue_stop(pid: Pid, signal: i32) -> Result<()> {
    let failed = |errno| Error::System { operation: "kill (stop)", object: format!("process {pid}"), errno };
    let signal = nix::sys::signal::Signal::try_from(signal).map_err(failed)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), signal).map_err(failed)
}

/// Process 1 of a new PID namespace goes on waiting for children, without any descriptor of ours.
fn release_init(mut init: Remote, scratch: Scratch) -> Result<()> {
    let mut batch = Batch::new();
    batch.must(libc::SYS_close_range, &[0u64.into(), u32::MAX.into(), 0u64.into()]);
    let name = batch.c_string(b"migrate-init");
    batch.prctl(libc::PR_SET_NAME, name, 0u64);
    init.run_all(&scratch, &batch)?;
    init.drop_scratch(&scratch)?;
    init.release()?;
    Ok(())
}
