//! Signal actions, alternate stacks, pending signals.

use super::{Result, skeleton::Skeletons};
use crate::image::signals::{SigAction, SigInfo, Sighand};
use crate::image::{Model, TaskId};
use crate::sys::abi::KernelSigaction;
use crate::trace::Batch;

/// An action as the kernel takes it.
pub fn raw(action: &SigAction) -> KernelSigaction {
    KernelSigaction { handler: action.handler, flags: action.flags, restorer: action.restorer, mask: action.mask }
}

/// Sets all actions but those of SIGKILL and SIGSTOP, which nobody can set.
pub fn actions(batch: &mut Batch, sighand: &Sighand) {
    for (signal, action) in (1i32..).zip(&sighand.actions) {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let raw = batch.value(&raw(action));
        batch.must(libc::SYS_rt_sigaction, &[signal.into(), raw, 0u64.into(), 8u64.into()]);
    }
}

/// Throws away the signals that zombies and helpers have queued while the tree was made.
pub fn drain(batch: &mut Batch) {
    let set = batch.value(&u64::MAX);
    let now = batch.bytes(&[0; 16]);
    // Signals below the real-time ones are queued once at most; more than a few kinds of exit signal are unheard of.
    for _ in 0..4 {
        batch.may(libc::SYS_rt_sigtimedwait, &[set, 0u64.into(), now, 8u64.into()]);
    }
}

/// Queues what was pending. Everything is blocked while a task works for us, so nothing is delivered yet.
pub fn queue(model: &Model, task: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let of = &model.tasks[task.at()];
    if of.threads.is_empty() || (of.pending.is_empty() && of.threads.iter().all(|t| t.pending.is_empty())) {
        return Ok(());
    }
    let scratch = skeletons.scratch;
    let skeleton = skeletons.task(task);
    for (thread, remote) in of.threads.iter().zip(&mut skeleton.threads) {
        let mut batch = Batch::new();
        for info in &thread.pending {
            let (signal, info) = (signal_of(info), batch.bytes(&info.0.0));
            batch.must(libc::SYS_rt_tgsigqueueinfo, &[of.pid.0.into(), thread.tid.0.into(), signal.into(), info]);
        }
        if thread.tid == of.pid {
            for info in &of.pending {
                let (signal, info) = (signal_of(info), batch.bytes(&info.0.0));
                batch.must(libc::SYS_rt_sigqueueinfo, &[of.pid.0.into(), signal.into(), info]);
            }
        }
        remote.run_all(&scratch, &batch)?;
    }
    Ok(())
}

/// The number in a `siginfo_t`.
pub fn signal_of(info: &SigInfo) -> i32 {
    info.0.0.first_chunk::<4>().map_or(0, |b| i32::from_ne_bytes(*b))
}
