//! What a move would cost: a few pages are sent, and thrown away over there, and for a moment it is watched what the target writes.

use super::{Attempt, MoveError, Plan, Taken, Target};
use crate::image::mm::PAGE;
use crate::migration::postcopy::serving::NoPages;
use crate::migration::source::rounds::Journey;
use crate::migration::switchover::forecast::{Forecast, Sample, fixed_pause};
use crate::migration::switchover::{pause_of, send_rate};
use std::time::{Duration, Instant};

/// Pages of the first sample, and of the second where the first went fast.
const PAGES: (u64, u64) = (128, 2048);

/// A first sample that took less says little.
const SHORT: Duration = Duration::from_millis(50);

/// The target is watched for so long, at least.
const WATCHED: Duration = Duration::from_millis(100);

impl Attempt<'_> {
    /// What the move would cost. The destination has been asked, and takes pages.
    pub(super) fn foresee(&mut self, target: &mut dyn Target) -> Result<Forecast, MoveError> {
        let empty_round = self.round(&Plan::default(), &NoPages, false)?.took;
        let mut sample = Sample {
            look: self.look,
            empty_round,
            sampled_bytes: 0,
            sent_bytes: 0,
            took: Duration::ZERO,
            memory_bytes: 0,
            written: None,
            files_bytes: self.peers.luggage_bytes(),
        };
        let watches = !self.wishes.stop_and_copy;
        let mut began = Instant::now();
        target.round(&mut |plan, pages| {
            began = Instant::now();
            sample.memory_bytes = plan.bytes();
            let first = plan.sample(PAGES.0, 0);
            note(&mut sample, &first, &self.round(&first, pages, false)?);
            if sample.took < SHORT && plan.bytes() > PAGES.0 * PAGE {
                let second = plan.sample(PAGES.1, 1);
                note(&mut sample, &second, &self.round(&second, pages, false)?);
            }
            Ok(if watches { Taken::Stored { deferred: Vec::new() } } else { Taken::GivenBack })
        })?;
        if watches {
            std::thread::sleep(WATCHED.saturating_sub(began.elapsed()));
            target.round(&mut |plan, _| {
                sample.written = Some((plan.bytes(), began.elapsed()));
                Ok(Taken::GivenBack)
            })?;
        }
        tracing::debug!(?sample, "what the forecast is made of");
        Ok(sample.forecast(&self.wishes.goals, self.wishes.follows))
    }

    /// How long the pause would be now, with so much left to send in it.
    pub(super) fn expected_pause(&self, residual_bytes: u64) -> Option<Duration> {
        let fixed = fixed_pause(self.look, self.round_trip.unwrap_or_default());
        Some(fixed.saturating_add(pause_of(residual_bytes, send_rate(&self.rounds))?))
    }
}

fn note(sample: &mut Sample, plan: &Plan, journey: &Journey) {
    (sample.sampled_bytes, sample.sent_bytes, sample.took) = (plan.bytes(), journey.wire_bytes, journey.took);
}
