//! `--standby`: between two rounds of a warm-up the target stands still for a moment, and destinations that have all that rounds have
//! brought are sent the rest of what it is then ([`crate::migration::standby`]).

use super::super::{Attempt, MoveError, Target};
use super::{Event, Member, Stage};
use crate::blocker::{Blocker, codes};
use crate::failure::TargetState;
use crate::migration::handover::Candidate;
use crate::migration::warm::{States, Warm};
use std::time::Instant;

/// States of a warm-up.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// When the next one is to be taken; `None` = as soon as somebody can keep it.
    due: Option<Instant>,
    told: States,
}

/// What a destination has of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Newest {
    /// When the target was like that.
    pub taken: Option<Instant>,
    /// How many were kept there, one after the other.
    pub kept: u64,
    /// Why there are no more until everything is sent anew.
    pub trouble: Option<String>,
    /// One has come there, and is not on the disk yet: nothing else is sent meanwhile, least of all a target that is stopped.
    pub is_under_way: bool,
}

impl Attempt<'_> {
    /// Takes a state, if it is time for one and somebody can keep it.
    ///
    /// # Errors
    /// A person has started the target from one: this warm-up is over.
    pub(super) fn stand_by(&mut self, target: &mut dyn Target, warm: &Warm) -> Result<(), MoveError> {
        let Some(every) = self.wishes.standby.as_ref().map(|wanted| wanted.every) else { return Ok(()) };
        if let Some(promoted) = self.promoted() {
            return Err(MoveError::Blocked(vec![promoted]));
        }
        let now = Instant::now();
        let is_ordered = warm.ordered().is_some();
        let fan = self.fan();
        let members = fan.members.iter().enumerate();
        let who: Vec<usize> = members.filter(|(_, member)| member.can_keep()).map(|(n, _)| n).collect();
        if is_ordered || who.is_empty() || fan.states.due.is_some_and(|due| now < due) {
            return Ok(());
        }
        fan.states.due = Some(now + every);
        let taken = target.still();
        let told = &mut self.fan().states.told;
        match &taken {
            Ok(still) => told.note(still.pause, still.last.plan.bytes()),
            Err(failure) => told.failed = (told.failed.0 + 1, Some(failure.to_string())),
        }
        warm.note_states(told.clone());
        match taken {
            Ok(still) => self.send_still(&still, &who),
            Err(failure) if failure.target == TargetState::Held => {
                let reason = "a state was to be taken of it".to_owned();
                Err(MoveError::NotResumed { failure, source: Box::new(MoveError::Stays { reason }) })
            }
            Err(failure) => {
                self.events.event(Event::Warning(format!("no state of the target was taken: {failure}")));
                Ok(())
            }
        }
    }

    /// A destination has kept a state, or has not.
    pub(super) fn heard_of_state(&mut self, who: Candidate, taken: Instant, trouble: Option<String>) {
        let member = self.fan().member(who);
        member.newest.is_under_way = false;
        if matches!(member.stage, Stage::InRound) {
            member.stage = Stage::Idle;
        }
        let Some(why) = &trouble else {
            (member.newest.taken, member.newest.kept) = (Some(taken), member.newest.kept + 1);
            return;
        };
        let text = format!("{} keeps no further state of the target: {why}", member.name);
        member.newest.trouble = trouble;
        self.events.event(Event::Warning(text));
    }

    /// A destination has said that the target was started there.
    fn promoted(&mut self) -> Option<Blocker> {
        let outs = self.fan().members.iter().filter_map(|member| match &member.stage {
            Stage::Out(MoveError::Blocked(blockers)) => Some((member, blockers)),
            _ => None,
        });
        let is_it = |blocker: &&Blocker| blocker.code == codes::PROMOTED;
        let mut found = outs.filter_map(|(member, all)| Some(super::named(&member.name, all.iter().find(is_it)?)));
        found.next()
    }
}

impl Member {
    /// It has all that rounds have brought, and nothing is under way to it.
    fn can_keep(&self) -> bool {
        self.is_idle() && self.stored > 0 && self.owed.is_empty() && self.newest.trouble.is_none()
    }
}
