//! When to pause: a pure function of what the rounds have shown. No clock, no I/O.

use std::time::Duration;

/// A reason to end the rounds and pause; named in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitCondition {
    /// No rounds were wanted.
    StopAndCopy,
    /// What is left, sent at the rate seen less the rate at which pages are written, takes less than the downtime goal.
    DowntimeNet,
    /// Pages were written as fast as they could be sent, in three rounds running: more rounds bring nothing.
    NotConverging,
    /// `--max-rounds`.
    Rounds,
    /// `--max-time`.
    Time,
    /// `--max-bytes`, or the room at the destination.
    Bytes,
}

impl ExitCondition {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::StopAndCopy => "stop-and-copy",
            Self::DowntimeNet => "downtime-net",
            Self::NotConverging => "not-converging",
            Self::Rounds => "rounds",
            Self::Time => "time",
            Self::Bytes => "bytes",
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goals {
    /// The pause to aim at, as far as sending the residual makes it.
    pub downtime_max: Duration,
    /// Rounds, at most.
    pub rounds_max: u32,
    /// Time of all rounds, at most.
    pub time_max: Duration,
    /// Bytes sent in rounds, at most; `None` = unlimited.
    pub bytes_max: Option<u64>,
}

/// What one round has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundStats {
    /// How long it took, until the destination had everything.
    pub took: Duration,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes written by the target during the round: what is left to send.
    pub residual_bytes: u64,
    /// Bytes that would have to be sent for one round more at the destination's cost: 0 = there is room. Set by the
    /// destination when it runs out of it.
    pub lacking_room_bytes: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Continue,
    /// Pause, for this reason.
    SwitchOver(ExitCondition),
}

/// Rounds in which pages were written as fast as sent, after which it is given up.
const FRUITLESS_ROUNDS: usize = 3;

/// Rounds shorter than this say nothing about a rate.
const RATE_BYTES_MIN: u64 = 1 << 20;

/// Decides after a round. `rounds` are all so far, oldest first, at least one.
pub fn decide(rounds: &[RoundStats], goals: &Goals) -> Decision {
    let Some(last) = rounds.last() else { return Decision::Continue };
    let rate = send_rate(rounds);
    let bytes: u64 = rounds.iter().fold(0, |sum, round| sum.saturating_add(round.sent_bytes));
    let time: Duration = rounds.iter().map(|round| round.took).sum();
    let fruitless =
        rounds.iter().rev().take_while(|round| round.dirty_rate() >= rate && round.residual_bytes > 0).count();

    let exit = if predicted_pause(last, rate).is_some_and(|pause| pause < goals.downtime_max) {
        Some(ExitCondition::DowntimeNet)
    } else if fruitless >= FRUITLESS_ROUNDS {
        Some(ExitCondition::NotConverging)
    } else if rounds.len() >= goals.rounds_max as usize {
        Some(ExitCondition::Rounds)
    } else if time >= goals.time_max {
        Some(ExitCondition::Time)
    } else if goals.bytes_max.is_some_and(|max| bytes.saturating_add(last.residual_bytes) > max)
        || last.lacking_room_bytes > 0
    {
        Some(ExitCondition::Bytes)
    } else {
        None
    };
    exit.map_or(Decision::Continue, Decision::SwitchOver)
}

impl RoundStats {
    /// Bytes written a second.
    pub fn dirty_rate(&self) -> u64 {
        per_second(self.residual_bytes, self.took)
    }
}

/// How long the residual would take, pages written meanwhile taken off the rate; `None` while they outrun it.
pub fn predicted_pause(last: &RoundStats, rate: u64) -> Option<Duration> {
    if last.residual_bytes == 0 {
        return Some(Duration::ZERO);
    }
    let net = rate.checked_sub(last.dirty_rate()).filter(|net| *net > 0)?;
    let nanoseconds = u128::from(last.residual_bytes) * 1_000_000_000 / u128::from(net);
    Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
}

/// Bytes a second that can be sent: of the last round that was large enough to tell, else the best seen.
pub fn send_rate(rounds: &[RoundStats]) -> u64 {
    let rate = |round: &RoundStats| per_second(round.sent_bytes, round.took);
    let telling = rounds.iter().rev().find(|round| round.sent_bytes >= RATE_BYTES_MIN).map(rate);
    telling.unwrap_or_else(|| rounds.iter().map(rate).max().unwrap_or(0))
}

fn per_second(bytes: u64, took: Duration) -> u64 {
    let nanoseconds = took.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn goals() -> Goals {
        Goals {
            downtime_max: Duration::from_millis(50),
            rounds_max: 30,
            time_max: Duration::from_secs(600),
            bytes_max: None,
        }
    }

    fn round(ms: u64, sent_mib: u64, residual_mib: u64) -> RoundStats {
        RoundStats {
            took: Duration::from_millis(ms),
            sent_bytes: sent_mib * MIB,
            residual_bytes: residual_mib * MIB,
            lacking_room_bytes: 0,
        }
    }

    #[test]
    fn an_idle_target_is_switched_after_one_round() {
        assert_eq!(decide(&[round(1000, 1000, 0)], &goals()), Decision::SwitchOver(ExitCondition::DowntimeNet));
    }

    #[test]
    fn a_residual_that_takes_too_long_is_another_round() {
        // 1000 MiB/s less 100 MiB/s: 100 MiB take 111 ms.
        let first = round(1000, 1000, 100);
        assert_eq!(decide(&[first], &goals()), Decision::Continue);
        // Then 10 MiB, 11 ms.
        let second = round(100, 100, 10);
        assert_eq!(decide(&[first, second], &goals()), Decision::SwitchOver(ExitCondition::DowntimeNet));
    }

    #[test]
    fn the_net_rate_counts() {
        // 40 MiB at 1000 MiB/s would take 40 ms, but 960 MiB/s are written: 1 s net.
        let rounds = [round(1000, 1000, 1), round(41, 41, 40)];
        assert_eq!(decide(&rounds, &goals()), Decision::Continue);
    }

    #[test]
    fn three_fruitless_rounds_are_enough() {
        let hot = round(1000, 1000, 1000);
        assert_eq!(decide(&[hot, hot], &goals()), Decision::Continue);
        assert_eq!(decide(&[hot, hot, hot], &goals()), Decision::SwitchOver(ExitCondition::NotConverging));
        let cool = round(1000, 1000, 500);
        assert_eq!(decide(&[hot, hot, cool, hot, hot], &goals()), Decision::Continue, "three running");
    }

    #[test]
    fn limits_hold() {
        let slow = round(1000, 1000, 900);
        let limit = |goals: Goals| decide(&[slow, slow], &goals);
        assert_eq!(limit(Goals { rounds_max: 2, ..goals() }), Decision::SwitchOver(ExitCondition::Rounds));
        let time_max = Duration::from_secs(2);
        assert_eq!(limit(Goals { time_max, ..goals() }), Decision::SwitchOver(ExitCondition::Time));
        assert_eq!(limit(Goals { bytes_max: Some(2800 * MIB), ..goals() }), Decision::SwitchOver(ExitCondition::Bytes));
        assert_eq!(limit(goals()), Decision::Continue);
        let full = RoundStats { lacking_room_bytes: 1, ..slow };
        assert_eq!(decide(&[full], &goals()), Decision::SwitchOver(ExitCondition::Bytes));
    }

    #[test]
    fn a_tiny_round_says_nothing_about_the_rate() {
        let rounds = [round(1000, 1000, 1), RoundStats { sent_bytes: 4096, ..round(100, 0, 20) }];
        assert_eq!(send_rate(&rounds), 1000 * MIB);
    }

    /// Plays rounds against a link of `rate` and a target that writes `dirty` bytes a second over `set` bytes.
    fn play(memory: u64, rate: u64, dirty: u64, set: u64, goals: &Goals) -> (Vec<RoundStats>, ExitCondition) {
        let mut rounds = Vec::new();
        let mut left = memory;
        loop {
            let took = Duration::from_secs_f64(left as f64 / rate as f64).max(Duration::from_micros(200));
            let residual = ((dirty as f64 * took.as_secs_f64()) as u64).min(set);
            rounds.push(RoundStats { took, sent_bytes: left, residual_bytes: residual, lacking_room_bytes: 0 });
            match decide(&rounds, goals) {
                Decision::Continue => left = residual,
                Decision::SwitchOver(exit) => return (rounds, exit),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        #[test]
        fn every_workload_ends_and_the_reason_is_true(
            memory_mib in 1u64..65536, rate_mib in 1u64..10_000, dirty_mib in 0u64..20_000, set_mib in 0u64..65536,
        ) {
            let goals = goals();
            let (rounds, exit) = play(memory_mib * MIB, rate_mib * MIB, dirty_mib * MIB, set_mib.min(memory_mib) * MIB, &goals);
            prop_assert!(rounds.len() <= goals.rounds_max as usize);
            let last = rounds.last().unwrap();
            match exit {
                ExitCondition::DowntimeNet => {
                    // The promise: at the rate of the link the residual fits into the goal.
                    let seconds = last.residual_bytes as f64 / (rate_mib * MIB) as f64;
                    prop_assert!(seconds <= goals.downtime_max.as_secs_f64() * 1.01, "{seconds}");
                }
                ExitCondition::NotConverging => prop_assert!(rounds.len() >= FRUITLESS_ROUNDS),
                ExitCondition::Rounds => prop_assert_eq!(rounds.len(), goals.rounds_max as usize),
                ExitCondition::Time => {}
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn a_link_twice_as_fast_as_the_writer_converges(memory_mib in 1u64..65536, rate_mib in 100u64..10_000) {
            let goals = Goals { time_max: Duration::MAX, ..goals() };
            let (_, exit) = play(memory_mib * MIB, rate_mib * MIB, rate_mib * MIB / 2, memory_mib * MIB, &goals);
            prop_assert_eq!(exit, ExitCondition::DowntimeNet);
        }

        #[test]
        fn any_numbers_are_decided(
            rounds in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..8),
        ) {
            let rounds: Vec<_> = rounds
                .into_iter()
                .map(|(ns, sent_bytes, residual_bytes, lacking_room_bytes)| RoundStats {
                    took: Duration::from_nanos(ns), sent_bytes, residual_bytes, lacking_room_bytes,
                })
                .collect();
            decide(&rounds, &goals());
        }
    }
}
