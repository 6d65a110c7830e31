//! A target that is to go on from here ([`crate::migration::cascade`]): whether it can, and that it does.

use super::{Attempt, Builder};
use crate::blocker::{Blocker, codes};
use crate::migration::cascade::{Onward, Passed};
use crate::migration::protocol::{self, AttemptId, FromDestination};
use crate::migration::{MoveError, while_alive};
use crate::transport::Channel;

/// Whether a target could go on like this if it were here; what stands in the way, and what a person should know.
fn look(control: &mut Channel, builder: &mut dyn Builder, onward: &Onward) -> (Vec<Blocker>, Vec<String>) {
    match onward.check() {
        Ok(()) => while_alive(control, || builder.look_onward(onward)),
        Err(reason) => (vec![Blocker::new(codes::PEER_REFUSES, "--then").because(reason)], Vec::new()),
    }
}

/// Answers a host that would move a target on to here.
pub(super) fn reaches(
    control: &mut Channel,
    builder: &mut dyn Builder,
    attempt: AttemptId,
    onward: &Onward,
) -> Result<(), MoveError> {
    let (blockers, _) = look(control, builder, onward);
    let blockers = blockers.iter().map(Into::into).collect();
    Ok(protocol::send(control, &FromDestination::Reaches { attempt, blockers })?)
}

impl Attempt<'_> {
    /// The same about the target that is offered; nothing where it is to stay here.
    pub(super) fn look_onward(&mut self) -> (Vec<Blocker>, Vec<String>) {
        match &self.onward {
            Some(onward) => look(&mut self.control, self.builder, onward),
            None => (Vec::new(), Vec::new()),
        }
    }

    /// This attempt is over; the target goes on if it is this host's, and if the source waits to hear of that.
    pub(super) fn pass_on(self) {
        let Self { builder, control, keeper, onward, settled: true, id: attempt, .. } = self else { return };
        if let (Some(onward), Some(pid)) = (onward, keeper.pid()) {
            builder.pass_on(Passed { pid, onward: *onward, attempt, control });
        }
    }
}
