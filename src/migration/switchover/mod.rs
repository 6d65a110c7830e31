//! When to pause, and what to do where pausing now would take too long: pure functions of what the rounds have shown. No
//! clock, no I/O.
//!
//! After each round [`decide`] looks whether an exit condition holds. One that keeps the promise (`downtime`,
//! `downtime-net`) or was asked for ends the rounds; while each round leaves less than half of what it has sent, the promise is
//! bettered first. `not-converging` does not: the steps of `--converge` are tried first,
//! in their order, each given a few rounds. A limit (rounds, time, bytes) that is reached before the promise can be kept
//! leaves the last word to the end of that list: pause anyway, or leave the target where it is.

pub mod forecast;
pub mod history;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A reason to end the rounds and pause; named in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitCondition {
    /// No rounds were wanted.
    StopAndCopy,
    /// What is left, sent at the rate seen, takes less than the downtime goal.
    Downtime,
    /// What is left, sent at the rate seen less the rate at which pages are written, takes less than the downtime goal.
    DowntimeNet,
    /// All state was sent once.
    AllSent,
    /// All pages were sent once.
    MemorySent,
    /// Pages were written as fast as they could be sent, in three rounds running: more rounds bring nothing.
    NotConverging,
    /// `--max-rounds`.
    Rounds,
    /// `--max-time`.
    Time,
    /// `--max-bytes`, or the room at the destination.
    Bytes,
    /// `migrate switch --now`.
    Now,
}

impl ExitCondition {
    /// Those that can be chosen with `--exit-when`, each with what it says.
    pub const CHOICES: &'static [(&'static str, Self, &'static str)] = &[
        ("downtime", Self::Downtime, "what is left fits in --max-downtime at the rate seen"),
        (
            "downtime-net",
            Self::DowntimeNet,
            "the same with what is written meanwhile; never while that outruns the link",
        ),
        ("all-sent", Self::AllSent, "all state was sent once"),
        ("memory-sent", Self::MemorySent, "all pages were sent once"),
        (
            "not-converging",
            Self::NotConverging,
            "written as fast as sent in 3 rounds, and no step of --converge is left",
        ),
        ("rounds", Self::Rounds, "--max-rounds is reached"),
        ("time", Self::Time, "--max-time is reached"),
        ("bytes", Self::Bytes, "--max-bytes is reached"),
    ];

    /// What `--exit-when` is without being given.
    pub const DEFAULT: [Self; 5] = [Self::DowntimeNet, Self::NotConverging, Self::Rounds, Self::Time, Self::Bytes];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        if self == Self::Now {
            return "now";
        }
        Self::CHOICES.iter().find(|(_, condition, _)| *condition == self).map_or("stop-and-copy", |(name, ..)| name)
    }
}

/// What can be done for a target that writes faster than it can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Pages that were written in most recent rounds are left for later.
    Defer,
    /// Pages that were sent before travel as what has changed in them.
    Delta,
    /// Pages are packed harder.
    Compress,
    /// The writers get less processor time (cgroup `cpu.max`).
    Throttle,
    /// Pause, and what is left follows when the target runs.
    PostCopy,
    /// Pause all the same.
    Anyway,
    /// The target stays where it is.
    Abort,
}

impl Step {
    /// Those of `--converge`, each with what it says.
    pub const CHOICES: &'static [(&'static str, Self, &'static str)] = &[
        ("defer", Self::Defer, "leave pages that are written again and again for later"),
        ("delta", Self::Delta, "send of pages that were sent before what has changed in them"),
        ("compress", Self::Compress, "pack pages harder"),
        ("throttle", Self::Throttle, "give the target less processor time"),
        ("post-copy", Self::PostCopy, "pause, and what is left follows when the target runs"),
        ("anyway", Self::Anyway, "pause all the same"),
        ("abort", Self::Abort, "leave it where it is, exit code 1"),
    ];

    /// What `--converge` is without being given.
    pub const DEFAULT: [Self; 6] =
        [Self::Defer, Self::Delta, Self::Compress, Self::Throttle, Self::PostCopy, Self::Anyway];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        Self::CHOICES.iter().find(|(_, step, _)| *step == self).map_or("", |(name, ..)| name)
    }

    /// Whether the rounds end with it.
    pub fn is_last(self) -> bool {
        matches!(self, Self::PostCopy | Self::Anyway | Self::Abort)
    }
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goals {
    /// The pause to aim at, as far as sending the residual makes it.
    pub downtime_max: Duration,
    /// Rounds, at most.
    pub rounds_max: u32,
    /// Time of all rounds, at most.
    pub time_max: Duration,
    /// Bytes sent in rounds, at most; `None` = unlimited.
    pub bytes_max: Option<u64>,
    /// Conditions that end the rounds; those that are not here do not.
    pub exit_when: Vec<ExitCondition>,
    /// What is tried, in this order, where the downtime cannot be kept; what cannot be done here is not in it.
    pub converge: Vec<Step>,
}

/// What one round has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundStats {
    /// How long it took, until the destination had everything.
    pub took: Duration,
    /// Bytes sent, as they travelled.
    pub sent_bytes: u64,
    /// Bytes of the pages with content that were sent, before they were packed: what a rate of pages is made of.
    pub content_bytes: u64,
    /// Bytes of pages that are not as the destination has them: what is left to send, what was deferred included.
    pub residual_bytes: u64,
    /// Bytes written by the target during the round; without deferred pages the same as `residual_bytes`.
    pub dirty_bytes: u64,
    /// Bytes that would have to be sent for one round more at the destination's cost: 0 = there is room. Set by the
    /// destination when it runs out of it.
    pub lacking_room_bytes: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Continue,
    /// Another round, and this from now on.
    Try(Step),
    /// Pause, for this reason.
    SwitchOver(ExitCondition),
    /// Pause, for this reason; what is left follows when the target runs.
    Follow(ExitCondition),
    /// The target stays where it is: the promise cannot be kept, for this reason.
    Abort(ExitCondition),
}

/// A residual below this is not worth a round of its own.
const POLISH_BYTES_MIN: u64 = 2 << 20;

/// Rounds in which pages were written as fast as sent, after which it is given up or the next step is tried.
const FRUITLESS_ROUNDS: usize = 3;

/// How often the writers are slowed down further.
const THROTTLE_STEPS: usize = 3;

/// Rounds shorter than this say nothing about a rate.
const RATE_BYTES_MIN: u64 = 1 << 20;

/// Decides after a round. `rounds` are all so far, oldest first; `tried` are the steps taken, each with the number of rounds
/// there were when it was.
pub fn decide(rounds: &[RoundStats], goals: &Goals, tried: &[(usize, Step)]) -> Decision {
    let Some(last) = rounds.last() else { return Decision::Continue };
    let rate = send_rate(rounds);
    let wanted = |condition: &ExitCondition| goals.exit_when.contains(condition);
    let kept = pause_of(last.residual_bytes, rate).is_some_and(|pause| pause < goals.downtime_max);
    let net = predicted_pause(last, rate).is_some_and(|pause| pause < goals.downtime_max);
    let promise = [
        (kept, ExitCondition::Downtime),
        (net, ExitCondition::DowntimeNet),
        (true, ExitCondition::AllSent),
        (true, ExitCondition::MemorySent),
    ];
    if let Some((_, exit)) = promise.into_iter().find(|(holds, exit)| *holds && wanted(exit)) {
        let of_pause = matches!(exit, ExitCondition::Downtime | ExitCondition::DowntimeNet);
        let better = of_pause && limit(rounds, goals).is_none() && shrinks(rounds);
        return if better { Decision::Continue } else { Decision::SwitchOver(exit) };
    }
    if let Some(exit) = limit(rounds, goals).filter(wanted) {
        return last_word(exit, kept, goals);
    }
    let since = tried.last().map_or(0, |(rounds, _)| *rounds).min(rounds.len());
    if fruitless(&rounds[since..], rate) < FRUITLESS_ROUNDS {
        return Decision::Continue;
    }
    let times = |step: Step| tried.iter().filter(|(_, t)| *t == step).count();
    let most = |step: Step| if step == Step::Throttle { THROTTLE_STEPS } else { 1 };
    match goals.converge.iter().find(|step| !step.is_last() && times(**step) < most(**step)) {
        Some(step) => Decision::Try(*step),
        None if wanted(&ExitCondition::NotConverging) => last_word(ExitCondition::NotConverging, kept, goals),
        None => Decision::Continue,
    }
}

/// Whether the pause is worth another round although it would be short enough: the last one has left less than half of what it
/// has sent, and sending that takes longer than a round costs. Each such round takes less than half of the time of the one before.
fn shrinks(rounds: &[RoundStats]) -> bool {
    rounds.last().is_some_and(|last| {
        last.residual_bytes > POLISH_BYTES_MIN
            && last.residual_bytes < last.content_bytes / 2
            && last.lacking_room_bytes == 0
    })
}

/// How many rounds up to the last brought nothing: pages were written as fast as they could be sent; or, where pages are
/// deferred, what is left did not become less.
fn fruitless(rounds: &[RoundStats], rate: u64) -> usize {
    let in_vain = |n: &usize| {
        let round = &rounds[*n];
        let before = n.checked_sub(1).map(|n| rounds[n].residual_bytes);
        let stands_still = round.dirty_bytes < round.residual_bytes
            && before.is_some_and(|before| round.residual_bytes >= before - before / 10);
        round.residual_bytes > 0 && (round.dirty_rate() >= rate || stands_still)
    };
    (0..rounds.len()).rev().take_while(in_vain).count()
}

/// A limit that was reached.
fn limit(rounds: &[RoundStats], goals: &Goals) -> Option<ExitCondition> {
    let bytes: u64 = rounds.iter().fold(0, |sum, round| sum.saturating_add(round.sent_bytes));
    let time = rounds.iter().fold(Duration::ZERO, |sum, round| sum.saturating_add(round.took));
    let last = rounds.last()?;
    if rounds.len() >= goals.rounds_max as usize {
        Some(ExitCondition::Rounds)
    } else if time >= goals.time_max {
        Some(ExitCondition::Time)
    } else if goals.bytes_max.is_some_and(|max| bytes.saturating_add(last.residual_bytes) > max)
        || last.lacking_room_bytes > 0
    {
        Some(ExitCondition::Bytes)
    } else {
        None
    }
}

/// The rounds are over; is the pause short enough, and if not, what does the person want?
fn last_word(exit: ExitCondition, kept: bool, goals: &Goals) -> Decision {
    let word = goals.converge.iter().find(|step| step.is_last()).filter(|_| !kept);
    match word {
        Some(Step::Abort) => Decision::Abort(exit),
        Some(Step::PostCopy) => Decision::Follow(exit),
        _ => Decision::SwitchOver(exit),
    }
}

impl RoundStats {
    /// Bytes written a second.
    pub fn dirty_rate(&self) -> u64 {
        per_second(self.dirty_bytes, self.took)
    }
}

/// How long so many bytes take; `None` where nothing is known of the rate.
pub fn pause_of(bytes: u64, rate: u64) -> Option<Duration> {
    if bytes == 0 {
        return Some(Duration::ZERO);
    }
    let nanoseconds = (u128::from(bytes) * 1_000_000_000).checked_div(rate.into())?;
    Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
}

/// How long the residual would take, pages written meanwhile taken off the rate; `None` while they outrun it.
pub fn predicted_pause(last: &RoundStats, rate: u64) -> Option<Duration> {
    match last.residual_bytes {
        0 => Some(Duration::ZERO),
        bytes => pause_of(bytes, rate.checked_sub(last.dirty_rate())?),
    }
}

/// Bytes of pages a second that can be sent: of the last round that was large enough to tell, else the best seen.
pub fn send_rate(rounds: &[RoundStats]) -> u64 {
    rate_of(rounds, |round| round.content_bytes)
}

/// The same of bytes as they travel.
pub fn link_rate(rounds: &[RoundStats]) -> u64 {
    rate_of(rounds, |round| round.sent_bytes)
}

fn rate_of(rounds: &[RoundStats], bytes: impl Fn(&RoundStats) -> u64) -> u64 {
    let rate = |round: &RoundStats| per_second(bytes(round), round.took);
    let telling = rounds.iter().rev().find(|round| bytes(round) >= RATE_BYTES_MIN).map(rate);
    telling.unwrap_or_else(|| rounds.iter().map(rate).max().unwrap_or(0))
}

/// Whether a round is large enough to tell a rate.
pub fn tells(round: &RoundStats) -> bool {
    round.content_bytes >= RATE_BYTES_MIN
}

fn per_second(bytes: u64, took: Duration) -> u64 {
    let nanoseconds = took.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}
