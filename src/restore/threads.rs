//! Threads beside the first: made in one batch, parked in our stub, then taken one by one.

use super::skeleton::{FOLLOW, Skeletons};
use super::{Error, Result};
use crate::image::{Model, Pid, TaskId};
use crate::sys::abi::CloneArgs;
use crate::trace::Tracee;
use crate::trace::batch::Batch;
use crate::trace::remote::Remote;

/// Flags that make a thread (clone(2)).
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Threads made in one batch.
const BATCH: usize = 512;

/// Makes the threads of a task.
pub fn make(model: &Model, task: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let threads = &model.tasks[task.at()].threads;
    let Some((leader, others)) = threads.split_first() else { return Ok(()) };
    if others.is_empty() {
        return Ok(());
    }
    let new_pids = skeletons.new_pids;
    let (scratch, options) = (skeletons.scratch, skeletons.options & !FOLLOW);
    let skeleton = skeletons.task(task);
    // New threads wait in the stub instead of being attached one at a time: 5 times as fast (kernel.md 3).
    skeleton.threads[0].tracee().set_options(options)?;
    for group in others.chunks(BATCH) {
        let mut batch = Batch::new();
        let mut calls = Vec::with_capacity(group.len());
        for thread in group {
            let io = if thread.io_context != 0 && thread.io_context == leader.io_context { libc::CLONE_IO } else { 0 };
            let args = CloneArgs { flags: (THREAD | io as i32) as u32 as u64, ..CloneArgs::default() };
            let ids: Vec<i32> = thread.inner_tids.iter().rev().chain([&thread.tid]).map(|id| id.0).collect();
            calls.push(batch.clone3(&args, &ids, true));
        }
        let results = skeleton.threads[0].run(&scratch, &batch)?;
        let mut seized = Vec::with_capacity(group.len());
        for (thread, call) in group.iter().zip(calls) {
            let tid = results.get(call).map_err(|errno| Error::System {
                operation: "clone3",
                object: format!("thread {}", thread.tid),
                errno,
            })?;
            seized.push(Pid(tid as i32));
        }
        if new_pids {
            seized = outer_ids(skeleton.pid, &seized)?;
        }
        let mut running = Vec::with_capacity(seized.len());
        for tid in seized {
            let tracee = Tracee::seize(tid, options)?;
            tracee.interrupt()?;
            running.push(tracee);
        }
        for tracee in running {
            let (tracee, _) = tracee.wait()?;
            skeleton.threads.push(Remote::new(tracee)?);
        }
    }
    Ok(())
}

/// Ids of threads as we see them, given those of their own PID namespace.
fn outer_ids(process: Pid, inner: &[Pid]) -> Result<Vec<Pid>> {
    let dir = crate::proc::ProcDir::open(process)?;
    let mut buf = Vec::new();
    let mut known = std::collections::HashMap::new();
    for tid in dir.tasks()? {
        let status = dir.thread(tid)?.status(&mut buf)?;
        known.insert(status.ns_pid.last().copied().unwrap_or(tid.0), tid);
    }
    let missing = |id: &Pid| Error::Impossible {
        object: format!("thread {id}"),
        reason: "it vanished right after it was made".to_owned(),
    };
    inner.iter().map(|id| known.get(&id.0).copied().ok_or_else(|| missing(id))).collect()
}
