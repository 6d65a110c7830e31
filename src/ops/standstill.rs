//! The target stopped and read, for every operation that saves it.
//!
//! Some states last for a moment: an event that was not read, a connection that was not accepted. Where nothing else is in
//! the way the target goes on, and is stopped again a little later.

use super::interrupt;
use crate::blocker::{Blocker, Code, codes};
use crate::collect::fd::look::ahead;
use crate::collect::mappings::{self, Mappings};
use crate::collect::{self, Collection, Policy};
use crate::failure::{Failure, Result, TargetState};
use crate::image::{Model, Pid};
use crate::net::lock::{NetLock, Terms};
use crate::trace::{self, freeze::Frozen};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What a program changes by itself when it runs.
const TRANSIENT: &[Code] =
    &[codes::INOTIFY_EVENTS, codes::ACCEPT_QUEUE, codes::TCP_STATE, codes::TCP_URGENT, codes::NETLINK];

/// How often the target is stopped.
const ATTEMPTS: u32 = 8;

/// How long it runs before it is stopped a second time; then twice as long each time, 0.25 s in all.
const FIRST_RUN: Duration = Duration::from_millis(2);

/// What happens to TCP sockets of a target beside their being read.
pub trait Connections {
    /// These are about to be locked, see [`collect::Surety`].
    fn locks(&mut self, frozen: &mut Frozen, sockets: &[(BorrowedFd<'_>, Terms)]);

    /// The tree cannot be read in the state it is in, and goes on: it gets them back before.
    fn let_go(&mut self, locks: Vec<NetLock>, model: &Model);
}

/// Stops the tree of `root` and reads it. `processes`: those of it that are known, see [`Frozen::tree_of`]. `known`: see
/// [`collect::collect`]. `stopped` is called each time it stands.
///
/// # Errors
/// It cannot be stopped or read; something is in the way, all of which is named. The target runs.
pub fn reach(
    (root, processes): (Pid, &[Pid]),
    policy: &Policy,
    known: &HashMap<Pid, Mappings>,
    mut stopped: impl FnMut(&Frozen) -> Result<()>,
    connections: &mut impl Connections,
) -> Result<(Frozen, Collection)> {
    let running = |failure: Failure| failure.target(TargetState::Running);
    let mut pause = FIRST_RUN;
    for attempt in 1.. {
        // Copied while the target runs.
        let pids = if processes.is_empty() { known.keys().copied().collect() } else { processes.to_vec() };
        let known = (mappings::Known::beside(known.clone(), &pids), ahead(pids.into_iter()));
        let mut frozen = Frozen::tree_of(root, processes).map_err(|e| running(not_stopped(root, &e)))?;
        stopped(&frozen)?;
        let mut surety = |frozen: &mut Frozen, sockets: &[(BorrowedFd<'_>, Terms)]| connections.locks(frozen, sockets);
        let collection = match collect::collect(&mut frozen, policy, known, &mut surety) {
            // It was ending when it was stopped.
            Err(error) if error.is_gone() && attempt < ATTEMPTS => {
                tracing::debug!(attempt, %error, "a process ends in this moment");
                frozen.thaw().map_err(|e| Failure::of("the target could not be released", &e))?;
                std::thread::sleep(pause);
                pause *= 2;
                continue;
            }
            collected => collected.map_err(|e| running(Failure::of("cannot read the target's state", &e)))?,
        };
        if collection.blockers.is_empty() {
            return Ok((frozen, collection));
        }
        // Its sockets are let go before itself.
        let Collection { blockers, locks, model, .. } = collection;
        connections.let_go(locks, &model);
        frozen.thaw().map_err(|e| Failure::of("the target could not be released", &e))?;
        if attempt == ATTEMPTS || !pass_by_themselves(&blockers) {
            return Err(running(Failure::blocked("the target cannot be saved as it is", blockers)));
        }
        tracing::debug!(attempt, first = blockers[0].object, "a state in passing is in the way");
        std::thread::sleep(pause);
        pause *= 2;
        interrupt::check().map_err(running)?;
    }
    unreachable!("the last attempt returns")
}

/// The failure of a freeze; the caller adds the state of the target.
pub(super) fn not_stopped(root: Pid, error: &trace::Error) -> Failure {
    let code = match error {
        trace::Error::DoesNotStop { .. } => Some(codes::DOES_NOT_STOP),
        trace::Error::KeepsForking { .. } => Some(codes::KEEPS_FORKING),
        _ => None,
    };
    Failure::of(format!("cannot stop process {root}"), error).code(code)
}

fn pass_by_themselves(blockers: &[Blocker]) -> bool {
    blockers.iter().all(|blocker| TRANSIENT.contains(&blocker.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_tried_again_that_stays_as_it_is() {
        let blocker = |code| Blocker::new(code, "an object");
        assert!(pass_by_themselves(&[blocker(codes::INOTIFY_EVENTS), blocker(codes::ACCEPT_QUEUE)]));
        assert!(!pass_by_themselves(&[blocker(codes::INOTIFY_EVENTS), blocker(codes::IO_URING)]));
    }
}
