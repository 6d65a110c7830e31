//! What a move will cost, said before it begins: the policy plays against what a sample of pages and a look at the writes have
//! shown. Pure, as the policy itself.

use super::{Decision, Goals, RoundStats, decide};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The policy has decided long before, whatever it was told.
const ROUNDS_MAX: usize = 1000;

/// Exchanges with the destination in the pause: the last pages, and the word to run the target.
const ROUND_TRIPS: u32 = 2;

/// What was seen of the target, the link and the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// How long the target stood still to be read once.
    pub look: Duration,
    /// A round without pages.
    pub empty_round: Duration,
    /// Bytes of pages that were sent to see how fast that goes, as they lie in memory.
    pub sampled_bytes: u64,
    /// The same as they travelled.
    pub sent_bytes: u64,
    /// How long that took.
    pub took: Duration,
    /// Bytes of all pages that are to be sent.
    pub memory_bytes: u64,
    /// Bytes of pages that were written in some time; nothing where that is not seen before the pause.
    pub written: Option<(u64, Duration)>,
    /// Bytes of files that are sent before.
    pub files_bytes: u64,
}

/// What is expected. Unknown is what depends on what nobody can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Forecast {
    /// Bytes that travel.
    pub bytes: u64,
    /// From the beginning to the last page.
    pub total: Duration,
    /// How long the target stands still; `None` = it would be left where it is.
    pub downtime: Option<Duration>,
}

/// How long the target stands still beside what is left of its memory: it is read, made there, and the two sides speak.
pub fn fixed_pause(look: Duration, round_trip: Duration) -> Duration {
    // To make a target takes about as long as to read it.
    look.saturating_mul(2).saturating_add(round_trip.saturating_mul(ROUND_TRIPS))
}

impl Sample {
    /// Seconds that a byte of memory takes on its way.
    fn seconds_per_byte(&self) -> f64 {
        let took = self.took.saturating_sub(self.empty_round).max(self.took / 10);
        took.as_secs_f64() / self.sampled_bytes.max(1) as f64
    }

    fn takes(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(self.seconds_per_byte() * bytes as f64).unwrap_or(Duration::MAX)
    }

    fn travel(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.sent_bytes as f64 / self.sampled_bytes.max(1) as f64) as u64
    }

    /// Bytes of pages that are written in so long: no more than there are.
    fn written_in(&self, time: Duration) -> u64 {
        let Some((bytes, window)) = self.written else { return self.memory_bytes };
        let rate = bytes as f64 / window.as_secs_f64().max(1e-6);
        ((rate * time.as_secs_f64()) as u64).min(self.memory_bytes)
    }

    /// With rounds, as the policy would have them; without where writes are not seen. `follows`: what is left is sent when the
    /// target runs.
    pub fn forecast(&self, goals: &Goals, follows: bool) -> Forecast {
        let rounds = if self.written.is_some() { self.rounds(goals) } else { Rounds::none(self.memory_bytes) };
        let fixed = fixed_pause(self.look, self.empty_round);
        let last = self.takes(rounds.left_bytes);
        let pause = if follows || rounds.follows { fixed } else { fixed.saturating_add(last) };
        let bytes = self.files_bytes.saturating_add(self.travel(rounds.sent_bytes.saturating_add(rounds.left_bytes)));
        let per_byte_sent = self.took.as_secs_f64() / self.sent_bytes.max(1) as f64;
        let files = Duration::try_from_secs_f64(per_byte_sent * self.files_bytes as f64).unwrap_or(Duration::MAX);
        let total = [files, rounds.took, fixed, last].into_iter().fold(self.look, Duration::saturating_add);
        Forecast { bytes, total, downtime: (!rounds.aborts).then_some(pause) }
    }

    /// The policy's rounds. Steps for a target that does not converge are taken to bring nothing.
    fn rounds(&self, goals: &Goals) -> Rounds {
        let (mut stats, mut tried): (Vec<RoundStats>, Vec<_>) = (Vec::new(), Vec::new());
        let mut played = Rounds::none(self.memory_bytes);
        while stats.len() < ROUNDS_MAX {
            let took = self.empty_round.saturating_add(self.takes(played.left_bytes)).max(Duration::from_micros(1));
            let residual_bytes = self.written_in(took);
            stats.push(RoundStats {
                took,
                sent_bytes: self.travel(played.left_bytes),
                content_bytes: played.left_bytes,
                residual_bytes,
                dirty_bytes: residual_bytes,
                lacking_room_bytes: 0,
            });
            played.sent_bytes = played.sent_bytes.saturating_add(played.left_bytes);
            played.took = played.took.saturating_add(took);
            played.left_bytes = residual_bytes;
            match decide(&stats, goals, &tried) {
                Decision::Continue => {}
                Decision::Try(step) => tried.push((stats.len(), step)),
                Decision::SwitchOver(_) => break,
                Decision::Follow(_) => {
                    played.follows = true;
                    break;
                }
                Decision::Abort(_) => {
                    played.aborts = true;
                    break;
                }
            }
        }
        played
    }
}

/// Rounds that were played.
struct Rounds {
    took: Duration,
    /// Bytes of memory.
    sent_bytes: u64,
    left_bytes: u64,
    follows: bool,
    aborts: bool,
}

impl Rounds {
    /// None: all is left.
    fn none(left_bytes: u64) -> Self {
        Self { took: Duration::ZERO, sent_bytes: 0, left_bytes, follows: false, aborts: false }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ExitCondition, Step};
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn goals(converge: &[Step]) -> Goals {
        Goals {
            downtime_max: Duration::from_millis(50),
            rounds_max: 30,
            time_max: Duration::from_secs(600),
            bytes_max: None,
            exit_when: ExitCondition::DEFAULT.to_vec(),
            converge: converge.to_vec(),
        }
    }

    /// 100 MiB/s, half of which does not travel.
    fn sample(memory: u64, written_per_s: u64) -> Sample {
        Sample {
            look: Duration::from_millis(2),
            empty_round: Duration::from_millis(1),
            sampled_bytes: 10 * MIB,
            sent_bytes: 5 * MIB,
            took: Duration::from_millis(101),
            memory_bytes: memory,
            written: Some((written_per_s / 10, Duration::from_millis(100))),
            files_bytes: 0,
        }
    }

    fn is_about(found: Duration, wanted_ms: u64) -> bool {
        let wanted = Duration::from_millis(wanted_ms).as_secs_f64();
        (found.as_secs_f64() / wanted - 1.0).abs() < 0.1
    }

    #[test]
    fn an_idle_target_crosses_once() {
        let forecast = sample(1000 * MIB, 0).forecast(&goals(&Step::DEFAULT), false);
        assert_eq!(forecast.bytes, 500 * MIB);
        assert!(is_about(forecast.total, 10_000), "{forecast:?}");
        assert_eq!(forecast.downtime, Some(Duration::from_millis(6)));
    }

    #[test]
    fn what_is_written_crosses_again() {
        let forecast = sample(1000 * MIB, 50 * MIB).forecast(&goals(&Step::DEFAULT), false);
        // 1000 + 500 + 250 + ... of which one half travels.
        assert!((990..1010).contains(&(forecast.bytes / MIB)), "{forecast:?}");
        assert!(is_about(forecast.total, 20_000), "{forecast:?}");
        let downtime = forecast.downtime.unwrap();
        assert!(downtime > Duration::from_millis(6) && downtime < Duration::from_millis(56), "{forecast:?}");
    }

    #[test]
    fn who_writes_faster_than_the_link_is_foreseen() {
        let busy = sample(1000 * MIB, 5000 * MIB);
        let follows = busy.forecast(&goals(&Step::DEFAULT), false);
        assert_eq!(follows.downtime, Some(Duration::from_millis(6)));
        let anyway = busy.forecast(&goals(&[Step::Anyway]), false);
        assert!(is_about(anyway.downtime.unwrap(), 10_000), "{anyway:?}");
        assert_eq!(busy.forecast(&goals(&[Step::Abort]), false).downtime, None);
    }

    #[test]
    fn without_rounds_all_of_it_is_in_the_pause_or_follows() {
        let still = Sample { written: None, ..sample(100 * MIB, 0) };
        let stops = still.forecast(&goals(&Step::DEFAULT), false);
        assert!(is_about(stops.downtime.unwrap(), 1006), "{stops:?}");
        let follows = still.forecast(&goals(&Step::DEFAULT), true);
        assert_eq!((follows.downtime, follows.total), (Some(Duration::from_millis(6)), stops.total));
        let with_files = Sample { files_bytes: 50 * MIB, ..still }.forecast(&goals(&Step::DEFAULT), true);
        assert_eq!(with_files.bytes, follows.bytes + 50 * MIB);
        assert!(is_about(with_files.total - follows.total, 1000), "{with_files:?}");
    }

    proptest! {
        #[test]
        fn any_numbers_are_played_to_an_end(
            look in 0u64..u64::MAX / 4, empty in 0u64..1 << 40, sampled in any::<u64>(), sent in any::<u64>(),
            took in 0u64..1 << 50, memory in 0u64..1 << 50, written in prop::option::of((any::<u64>(), 0u64..1 << 40)),
            files_bytes in 0u64..1 << 50,
        ) {
            let us = |n| Duration::from_micros(n / 1000);
            let sample = Sample {
                look: us(look), empty_round: us(empty), sampled_bytes: sampled, sent_bytes: sent, took: us(took),
                memory_bytes: memory, written: written.map(|(bytes, us_)| (bytes, us(us_))), files_bytes,
            };
            let more = Sample { memory_bytes: memory * 2, ..sample };
            for follows in [false, true] {
                let forecast = sample.forecast(&goals(&[Step::Anyway]), follows);
                prop_assert!(forecast.downtime.is_some());
                let twice = Sample { written: None, ..more }.forecast(&goals(&[Step::Anyway]), follows);
                let once = Sample { written: None, ..sample }.forecast(&goals(&[Step::Anyway]), follows);
                prop_assert!(twice.total >= once.total && twice.bytes >= once.bytes);
            }
        }
    }
}
