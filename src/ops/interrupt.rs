//! A request from outside to stop: an operation looks for one between its steps, up to the point after which it cannot
//! be undone, and rolls back. Who catches signals (`cli/`, a service) makes the request; the engine never sees a signal.

use crate::failure::{Failure, FailureKind, Result};
use std::sync::atomic::{AtomicU8, Ordering};

/// 0, or the exit code of the first request.
static REQUESTED: AtomicU8 = AtomicU8::new(0);

const ALL: [FailureKind; 3] = [FailureKind::HangUp, FailureKind::Interrupted, FailureKind::Terminated];

/// Asks the operations of this process to stop and roll back. Only the first request counts.
///
/// # Panics
/// When `kind` is none of the three kinds of interruption.
pub fn request(kind: FailureKind) {
    assert!(ALL.contains(&kind), "only an interruption can be asked for");
    let _ = REQUESTED.compare_exchange(0, kind as u8, Ordering::AcqRel, Ordering::Acquire);
}

/// What was asked for, if anything.
pub fn requested() -> Option<FailureKind> {
    let code = REQUESTED.load(Ordering::Acquire);
    ALL.into_iter().find(|kind| *kind as u8 == code)
}

/// Fails if a stop was asked for. The caller adds the state of the target.
///
/// # Errors
/// [`FailureKind::HangUp`], [`FailureKind::Interrupted`] or [`FailureKind::Terminated`].
pub fn check() -> Result<()> {
    match requested() {
        None => Ok(()),
        Some(kind) => {
            let by = match kind {
                FailureKind::HangUp => "hang-up (SIGHUP)",
                FailureKind::Terminated => "termination (SIGTERM)",
                _ => "interrupt (SIGINT)",
            };
            Err(Failure::new(format!("ended by {by}; everything done so far was undone")).kind(kind))
        }
    }
}
