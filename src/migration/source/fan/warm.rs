//! A warm-up: rounds without end, at the pace that its budget allows, until somebody wants the target to move.

use super::super::{Attempt, Decision, ExitCondition, MoveError, Target};
use super::{Fan, Member, Stage, in_short};
use crate::migration::switchover::{self, RoundStats, Step};
use crate::migration::warm::{Far, Order, Rest, Standing, Warm};
use std::time::{Duration, Instant};

/// Between two rounds, at least; at most, where nothing is written.
const REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Between two looks whether a destination has something to say.
const LOOK: Duration = Duration::from_millis(100);

/// So many rounds are kept of a warm-up that nobody has ended yet: for the policy, and for the report.
const ROUNDS_KEPT: usize = 64;

/// What a warm-up knows between two rounds.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What is wanted, as it was last heeded.
    heeded: Option<Order>,
    /// The next rest.
    rest: Duration,
    /// Bytes that were written since the last round.
    written: u64,
    /// A round was looked at.
    has_rounds: bool,
}

/// What a round has shown whose destinations rested after it: the rate of sending is that of the time it took, the rate of
/// writing that of all the time.
pub(super) fn rested(stats: RoundStats, took: Duration) -> RoundStats {
    let share = took.as_secs_f64() / stats.took.as_secs_f64().max(1e-9);
    let dirty_bytes = (stats.dirty_bytes as f64 * share.min(1.0)) as u64;
    RoundStats { took: took.min(stats.took), dirty_bytes, ..stats }
}

impl Attempt<'_> {
    /// Between two rounds: nothing is done, until it is time for the next one or somebody wants the target to move.
    pub(super) fn rest(&mut self, target: &mut dyn Target, warm: &Warm, rests: bool) -> Result<(), MoveError> {
        let rest = if rests { self.fan().pace.rest.clamp(REST.0, REST.1) } else { Duration::ZERO };
        let until = Instant::now() + rest;
        loop {
            self.fan().check_interrupted("the warm-up")?;
            while let Some(news) = self.fan().next(Duration::ZERO) {
                self.hear(target, news);
            }
            self.look_for_the_lost(warm);
            self.heed(warm);
            self.look_around(warm, None);
            if self.fan().count(Member::is_in) == 0 {
                return Err(self.all_out());
            }
            let left = until.saturating_duration_since(Instant::now()).max(warm.budget().due());
            if left.is_zero() || self.fan().pace.heeded.is_some() {
                return Ok(());
            }
            warm.rest(left.min(LOOK));
        }
    }

    /// Takes note of what is wanted now: the chosen ones go on, the others wait.
    pub(super) fn heed(&mut self, warm: &Warm) {
        if warm.seen().is_taken {
            return;
        }
        let wanted = warm.ordered();
        let is_new = wanted != self.fan().pace.heeded;
        if let Some(order) = wanted.as_ref().filter(|_| is_new) {
            // Limits of the rounds count from here on.
            let telling = self.rounds.len().saturating_sub(1);
            self.rounds.drain(..telling);
            self.fan().choose(order);
        } else if wanted.is_none() {
            self.fan().members.iter_mut().for_each(|member| member.is_aside = false);
        }
        self.fan().pace.heeded = wanted;
        // Who was chosen may be lost: then the others are as warm as before.
        if self.fan().count(Member::is_in) == 0 && self.fan().count(Member::is_left) > 0 {
            self.fan().members.iter_mut().for_each(|member| member.is_aside = false);
            warm.refuse("the chosen destinations are lost; the others are kept warm".into());
            self.fan().pace.heeded = None;
        }
    }

    /// Another round, or the pause? `plan_bytes` were written since the last one.
    pub(super) fn decide_warm(&mut self, warm: &Warm, plan_bytes: u64) -> Decision {
        let dirty_rate = self.rounds.last().map(RoundStats::dirty_rate);
        let pace = &mut self.fan().pace;
        pace.rest = if plan_bytes == 0 { pace.rest.max(REST.0) * 2 } else { REST.0 };
        (pace.written, pace.has_rounds) = (plan_bytes, true);
        let order = pace.heeded.clone();
        self.look_around(warm, dirty_rate);
        self.forget_old_rounds(order.is_some());
        let Some(order) = order else { return Decision::Continue };
        let mut goals = self.wishes.goals.clone();
        if order.rest == Rest::InPause {
            goals.converge.retain(|step| *step != Step::PostCopy);
        }
        let decision = match order.now {
            true => Decision::SwitchOver(ExitCondition::Now),
            false => switchover::decide(&self.rounds, &goals, &self.effort.tried),
        };
        match decision {
            // Who has withdrawn it meanwhile gets another round.
            Decision::SwitchOver(_) | Decision::Follow(_) if !warm.take() => Decision::Continue,
            Decision::SwitchOver(exit) if order.rest == Rest::Follows => Decision::Follow(exit),
            Decision::Abort(exit) => {
                let goal = self.wishes.goals.downtime_max;
                warm.refuse(in_short(&MoveError::TooLong { goal, exit }));
                Decision::Continue
            }
            decision => decision,
        }
    }

    /// Of rounds without end a few are enough; one that tells a rate is among them.
    fn forget_old_rounds(&mut self, is_ordered: bool) {
        if !is_ordered && self.rounds.len() > ROUNDS_KEPT {
            let most = self.rounds.iter().enumerate().max_by_key(|(n, round)| (switchover::tells(round), *n));
            let telling = most.map(|(_, round)| *round);
            self.rounds.drain(..ROUNDS_KEPT / 2);
            self.rounds.splice(0..0, telling);
        }
        let old = self.report.rounds.len().saturating_sub(ROUNDS_KEPT);
        self.report.rounds.drain(..old);
    }

    /// Tells how far everybody is.
    pub(super) fn look_around(&mut self, warm: &Warm, dirty_rate: Option<u64>) {
        let (written, has_rounds) = (self.fan().pace.written, self.fan().pace.has_rounds);
        let pauses: Vec<_> = self.fan().members.iter().map(|member| written + member.owed.bytes()).collect();
        let pauses: Vec<_> = pauses.into_iter().map(|left| (left, self.expected_pause(left))).collect();
        let fan = self.fan();
        let standings = fan.members.iter().zip(pauses).map(|(member, (left, pause))| {
            let far = member.far();
            let knows = has_rounds && matches!(far, Far::UpToDate | Far::Behind);
            Standing {
                name: member.name.clone(),
                far,
                reason: if let Stage::Out(error) = &member.stage { Some(in_short(error)) } else { None },
                rounds: member.number,
                bytes_sent: member.bytes_sent(),
                left_bytes: knows.then_some(left),
                stored_at: (member.stored > 0).then_some(member.stored_at),
                expected_pause: pause.filter(|_| knows),
                state_taken_at: member.newest.taken,
                states: member.newest.kept,
                states_end: member.newest.trouble.clone(),
            }
        });
        warm.note(standings.collect(), dirty_rate);
    }
}

impl Fan<'_> {
    fn choose(&mut self, order: &Order) {
        for member in &mut self.members {
            member.is_aside = member.is_left() && !order.chosen.contains(&member.candidate);
        }
    }
}

impl Member {
    fn far(&self) -> Far {
        match self.stage {
            Stage::Out(_) | Stage::Stopped => Far::Out,
            Stage::Asked => Far::Asked,
            _ if self.stored == 0 => Far::First,
            _ if self.owed.is_empty() => Far::UpToDate,
            _ => Far::Behind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_changes_no_rate() {
        let stats = RoundStats {
            took: Duration::from_secs(1),
            sent_bytes: 5 << 20,
            content_bytes: 10 << 20,
            residual_bytes: 4 << 20,
            dirty_bytes: 4 << 20,
            lacking_room_bytes: 0,
        };
        let round = rested(stats, Duration::from_millis(100));
        assert_eq!(switchover::send_rate(&[round]) >> 20, 100, "10 MiB in a tenth of a second");
        assert!(round.dirty_rate().abs_diff(4 << 20) < 1000, "4 MiB a second: {round:?}");
        assert_eq!(round.residual_bytes, 4 << 20);
    }
}
