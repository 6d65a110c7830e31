//! Signal actions and pending signals.

use super::Result;
use crate::image::Bytes;
use crate::image::signals::{SigAction, SigInfo, Sighand};
use crate::sys::abi::KernelSigaction;
use crate::trace::batch::{Out, Results};
use crate::trace::{Batch, Stopped, Tracee};

/// Highest signal number.
const SIGNALS: i32 = 64;

/// Adds the calls that read all actions.
pub fn ask(batch: &mut Batch) -> Vec<Out> {
    (1..=SIGNALS).map(|signal| batch.read_sigaction(signal)).collect()
}

/// The table of actions.
pub fn answer(results: &Results, query: &[Out]) -> Sighand {
    let actions = query
        .iter()
        .map(|out| {
            let a: KernelSigaction = results.value(*out);
            SigAction { handler: a.handler, flags: a.flags, restorer: a.restorer, mask: a.mask }
        })
        .collect();
    Sighand { actions }
}

/// Pending signals of the process (`shared`) or the thread, without those that our own stop may have left.
pub fn pending(tracee: &Tracee<Stopped>, shared: bool) -> Result<Vec<SigInfo>> {
    Ok(tracee.pending(shared)?.into_iter().map(|info| SigInfo(Bytes(info.to_vec()))).collect())
}
