//! Rounds: pages are sent while the target runs, until the policy says that it is enough.

use super::peer::Peer;
use super::{Attempt, Decision, ExitCondition, Help, MoveError, Plan, Taken, Target};
use crate::image::mm::PAGE;
use crate::memory::pipeline::ReadPages;
use crate::memory::throttle::Throttle;
use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::effort::Sparing;
use crate::migration::pages::What;
use crate::migration::send_pages::{Packing, Sent, send_round};
use crate::migration::source::Compression;
use crate::migration::switchover::{self, RoundStats};
use crate::migration::warm::Warm;
use crate::ops::Event;
use crate::ops::outcome::Round;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How a round went.
pub(super) struct Journey {
    /// Bytes that travelled.
    pub wire_bytes: u64,
    pub sent: Sent,
    pub took: Duration,
    /// What the destination lacks of it, and gets again.
    pub lacking: Vec<(Space, PageRange)>,
}

impl Journey {
    /// For the policy, with nothing left.
    pub(super) fn stats(&self) -> RoundStats {
        RoundStats {
            took: self.took,
            sent_bytes: self.wire_bytes,
            content_bytes: self.sent.content_bytes,
            residual_bytes: 0,
            dirty_bytes: 0,
            lacking_room_bytes: 0,
        }
    }
}

/// Those of the pages of a plan that a destination says it lacks.
fn among(plan: &Plan, lacking: &[(Space, PageRange)]) -> Vec<(Space, PageRange)> {
    let of = |pages: &[(Space, PageRange)], space| -> RangeSet {
        pages.iter().filter(|(whose, _)| *whose == space).map(|(_, range)| *range).collect()
    };
    let spaces: BTreeSet<Space> = lacking.iter().map(|(space, _)| *space).collect();
    let planned = |space: Space| {
        let pages = of(&plan.pages, space).intersection(&of(lacking, space));
        pages.ranges().iter().map(|range| (space, *range)).collect::<Vec<_>>()
    };
    spaces.into_iter().flat_map(planned).collect()
}

/// How fast the link is, of a round in which most of the time may have gone by for digests, and for what other trees bring: as if as
/// much as in the time that was waited for it had been sent in the whole.
fn as_if_sent_all_the_time(stats: RoundStats, waited: Duration) -> RoundStats {
    let times = stats.took.as_secs_f64() / waited.as_secs_f64().max(1e-6);
    RoundStats { sent_bytes: (stats.sent_bytes as f64 * times.max(1.0)) as u64, ..stats }
}

impl Attempt<'_> {
    /// Rounds while it runs, until the policy says that it is enough.
    pub(super) fn rounds(&mut self, target: &mut dyn Target) -> Result<ExitCondition, MoveError> {
        if self.wishes.stop_and_copy {
            self.report.expected_downtime = self.expected_pause(0).filter(|_| self.wishes.follows);
            return Ok(ExitCondition::StopAndCopy);
        }
        let mut sent: Option<Journey> = None;
        let mut began = Instant::now();
        let mut step = Decision::Continue;
        loop {
            match std::mem::replace(&mut step, Decision::Continue) {
                Decision::Continue => {}
                Decision::Try(help) => self.help(target, help),
                Decision::SwitchOver(exit) => return Ok(exit),
                Decision::Follow(exit) => {
                    self.put_off(target);
                    return Ok(exit);
                }
                Decision::Abort(exit) => {
                    return Err(MoveError::TooLong { goal: self.wishes.goals.downtime_max, exit });
                }
            }
            if self.peers.number > 1 {
                self.peers.ship(|| target.mapped_files())?;
                began += self.peers.luggage.took;
            }
            target.round(&mut |plan, pages| {
                let since = began.elapsed();
                began = Instant::now();
                if let Some(journey) = sent.take() {
                    // What was written while the last round was under way is what this one would send.
                    step = self.decide(&Journey { took: since, ..journey }, plan.bytes());
                    if step != Decision::Continue {
                        return Ok(Taken::GivenBack);
                    }
                }
                // Relatives that share pages can only be made with those pages: after the first round.
                let shares = plan.notes.iter().any(|note| note.what == What::Inherit);
                if !self.peers.built && !shares {
                    self.peers.build(&plan.spaces)?;
                    began = Instant::now();
                }
                let is_first = sent.is_none();
                let (now, mut deferred) = self.effort.part(plan, self.peers.number == 1);
                let journey = sent.insert(self.round(&now, pages, false)?);
                deferred.extend(among(&now, &journey.lacking));
                if is_first && !self.peers.built && plan.is_of_the_survey() {
                    self.peers.build(&plan.spaces)?;
                }
                Ok(Taken::Stored { deferred })
            })?;
        }
    }

    /// Rounds do not help, or a switch wants it so.
    pub(super) fn put_off(&mut self, target: &mut dyn Target) {
        if !self.wishes.warm.is_some_and(Warm::wants_rest_to_follow) {
            let text = "the target writes as fast as it is sent: what is left follows when it runs";
            self.events.event(Event::Warning(text.to_owned()));
        }
        target.put_off();
        self.report.expected_downtime = self.expected_pause(0);
    }

    /// Another round? The last one has left `residual_bytes`.
    fn decide(&mut self, last: &Journey, residual_bytes: u64) -> Decision {
        let lacking_room_bytes = residual_bytes.saturating_mul(2).saturating_sub(self.peers.room_bytes);
        let dirty_bytes = self.effort.dirty_bytes(residual_bytes);
        let stats = RoundStats { residual_bytes, dirty_bytes, lacking_room_bytes, ..last.stats() };
        let is_shared = self.peers.catalogue.is_shared() && self.rounds.is_empty();
        self.rounds.push(if is_shared { as_if_sent_all_the_time(stats, last.sent.waited) } else { stats });
        self.report.expected_downtime = self.expected_pause(if self.wishes.follows { 0 } else { residual_bytes });
        self.note_round(last.sent.pages, &stats, self.report.expected_downtime);
        switchover::decide(&self.rounds, &self.wishes.goals, &self.effort.tried)
    }

    /// Takes a step for a target that writes as fast as it is sent, and says so; or why it cannot be taken.
    pub(super) fn help(&mut self, target: &mut dyn Target, step: Help) {
        let times = 1 + self.effort.tried.iter().filter(|(_, tried)| *tried == step).count();
        let possible = match step {
            Help::Compress if self.wishes.compression != Compression::Auto => Err("--compress is given".to_owned()),
            Help::Delta => self.effort.may_delta(self.wishes.compression, &self.rounds),
            Help::Throttle => target.slow_down(times),
            _ => Ok(()),
        };
        let name = step.name();
        let text = match possible {
            Ok(()) => format!("the target writes as fast as it is sent: {name}"),
            Err(reason) => format!("the target writes as fast as it is sent, and {name} is not possible: {reason}"),
        };
        self.events.event(Event::Warning(text));
        self.effort.tried.push((self.rounds.len(), step));
    }

    pub(super) fn note_round(&mut self, pages: u64, stats: &RoundStats, expected_pause: Option<Duration>) {
        self.note_round_of(self.peers.number - 1, pages, stats, expected_pause);
    }

    pub(super) fn note_round_of(
        &mut self,
        number: u32,
        pages: u64,
        stats: &RoundStats,
        expected_pause: Option<Duration>,
    ) {
        self.report.rounds.push(Round { number, pages, bytes: stats.sent_bytes, took: stats.took });
        self.events.event(Event::Round {
            number,
            pages,
            bytes: stats.sent_bytes,
            took: stats.took,
            dirty_bytes_per_s: stats.dirty_rate(),
            expected_pause,
        });
    }

    /// Sends the pages of one round, and waits until they are stored unless it is the last.
    pub(super) fn round(&mut self, plan: &Plan, pages: &dyn ReadPages, in_pause: bool) -> Result<Journey, MoveError> {
        let started = Instant::now();
        let before = self.peers.link.bytes_sent();
        let number = self.peers.begin_round(false)?;
        let throttle = Throttle::new(self.wishes.bandwidth.filter(|_| !in_pause));
        let compression = self.wishes.compression;
        let bandwidth = self.wishes.bandwidth.filter(|_| !in_pause);
        let deltas = self.wishes.goals.converge.contains(&Help::Delta) && self.effort.deltas(compression, &self.rounds);
        let level = self.effort.level(compression, &self.rounds);
        let peer: &mut Peer<'_> = &mut self.peers;
        let sparing = match self.effort.sparing(compression, &self.rounds, bandwidth) {
            // Who has named an image knows that it has most of the pages.
            Sparing::Never | Sparing::WhenSlow if peer.catalogue.has_earlier() && !peer.catalogue.is_shared() => {
                (Sparing::Always, level)
            }
            sparing => (sparing, self.effort.sparing_level(compression, &self.rounds)),
        };
        let packing = Packing { level, bases: deltas.then_some(&peer.bases), catalogue: &peer.catalogue, sparing };
        let total = plan.bytes();
        let progress = |done| self.events.event(Event::Progress { phase: "memory", done, total });
        let sent = send_round(&mut peer.link, pages, plan, number, in_pause, packing, &throttle, &progress);
        let mut sent = sent.map_err(|error| peer.explain(error))?;
        self.report.unsent.zero += sent.unsent.zero;
        self.report.unsent.named += sent.unsent.named;
        if number > 1 || peer.catalogue.is_shared() {
            // What was named was as good as sent. Of an image the first round says nothing of the pages that are written now.
            sent.content_bytes += sent.unsent.named * PAGE;
        }
        let lacking = self.peers.end_round(number, in_pause)?;
        self.round_trip = self.peers.round_trip;
        Ok(Journey { wire_bytes: self.peers.link.bytes_sent() - before, sent, took: started.elapsed(), lacking })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;

    #[test]
    fn nothing_comes_again_that_was_not_sent() {
        let (one, other) = (Space::Mm(MmId(0)), Space::Mm(MmId(1)));
        let range = PageRange::new;
        let plan =
            Plan { pages: vec![(one, range(0, 10)), (one, range(20, 5)), (other, range(3, 1))], ..Plan::default() };
        let lacking = [(one, range(8, 1 << 40)), (other, range(7, 9)), (Space::Mm(MmId(2)), range(0, 9))];
        assert_eq!(among(&plan, &lacking), [(one, range(8, 2)), (one, range(20, 5))]);
        assert_eq!(among(&plan, &[]), []);
    }

    #[test]
    fn a_link_that_was_not_waited_for_is_as_fast_as_it_took_what_came() {
        let stats = RoundStats {
            took: Duration::from_secs(10),
            sent_bytes: 100,
            content_bytes: 90,
            residual_bytes: 0,
            dirty_bytes: 0,
            lacking_room_bytes: 0,
        };
        assert_eq!(as_if_sent_all_the_time(stats, Duration::from_secs(1)).sent_bytes, 1000);
        assert_eq!(as_if_sent_all_the_time(stats, Duration::from_secs(10)).sent_bytes, 100);
        assert_eq!(as_if_sent_all_the_time(stats, Duration::from_secs(11)).sent_bytes, 100);
    }
}
