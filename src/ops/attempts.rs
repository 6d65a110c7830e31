//! Attempts of one move: at first to the destinations, then to the alternates, then to the same ones again. Between two of them the
//! target runs where it is.

use super::options::{CloneOptions, MoveOptions, word};
use super::outcome::{Attempt, Outcome};
use super::paths::{self, Disjoint};
use super::proxies;
use super::words::Dest;
use super::{Event, Events, clones, interrupt, move_};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::transport::Abort;
use crate::transport::backoff::Backoff;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Before the same destinations are tried again: at first, and at most.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Between two looks whether somebody wants this to end.
const LOOK: Duration = Duration::from_millis(100);

/// What is tried when an attempt has failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Further {
    /// `--alternate`: where to if none of the destinations takes the target.
    #[serde(with = "word::list")]
    pub alternates: Vec<Dest>,
    /// `--retries`: how often all of them are tried once more; `None` = not at all, or as often as the time allows.
    pub retries: Option<u32>,
    /// `--retry-timeout`: after this time nothing is tried once more.
    pub within: Option<Duration>,
    /// `--disjoint-paths`: what becomes of destinations whose paths share a node.
    pub disjoint: Option<Disjoint>,
}

impl Further {
    /// Whether all are tried for the so many-th time more, so long after the beginning.
    fn allows(&self, again: u32, elapsed: Duration) -> bool {
        let number = match (self.retries, self.within) {
            (Some(retries), _) => again <= retries,
            (None, within) => within.is_some(),
        };
        number && self.within.is_none_or(|within| elapsed < within)
    }
}

/// Moves the target, by as many attempts as it takes and `further` allows.
///
/// # Errors
/// Those of [`move_::run`] for the last attempt; warnings have told of the others.
pub fn run(options: &MoveOptions, further: &Further, events: &dyn Events, abort: &Abort) -> Result<Outcome> {
    if let Some(twice) = further.alternates.iter().find(|dest| options.dests.contains(dest)) {
        let what = format!("{twice} is a destination and an alternate");
        return Err(Failure::new(what).kind(FailureKind::Usage));
    }
    clones::refuse_further(options, further)?;
    let all = options.dests.iter().chain(&further.alternates).chain(options.then.dests());
    let all: Vec<Dest> = all.cloned().collect();
    proxies::refuse(&options.peer, &all, further.disjoint)?;
    paths::refuse(&options.peer, &all)?;
    let chosen = match further.disjoint {
        Some(disjoint) => paths::choose(disjoint, (&options.dests, &further.alternates), &options.peer, events, abort)?,
        None => (options.dests.clone(), further.alternates.clone()),
    };
    let left_out = options.dests.len().saturating_sub(chosen.0.len());
    let clones = options.clones.clone().map(|clones| CloneOptions { left_out, ..clones });
    let options = &MoveOptions { clones, ..options.clone() };
    let turns = [chosen.0.as_slice(), chosen.1.as_slice()];
    let (begun, mut failed, mut backoff) = (Instant::now(), Vec::new(), Backoff::new(AGAIN_AFTER));
    let mut again = 0;
    loop {
        let mut last = None;
        for dests in turns.iter().filter(|dests| !dests.is_empty()) {
            if let Some(failure) = last.take() {
                tell(&failure, &failed, events);
            }
            let tried = Instant::now();
            match move_::run(&MoveOptions { dests: dests.to_vec(), ..options.clone() }, events, abort) {
                Ok(mut outcome) => {
                    outcome.attempts.splice(0..0, failed);
                    return Ok(outcome);
                }
                Err(failure) if !may_go_on(&failure, abort) => return Err(failure),
                Err(failure) => {
                    let dests = dests.iter().map(ToString::to_string).collect();
                    failed.push(Attempt { dests, failure: in_short(&failure), took: tried.elapsed() });
                    last = Some(failure);
                }
            }
        }
        let Some(failure) = last else { return Err(Failure::new("there is no destination").kind(FailureKind::Usage)) };
        // What is in the way does not go away by itself.
        let is_blocked = failure.kind == FailureKind::Blocked;
        again += 1;
        if is_blocked || options.dry_run || !further.allows(again, begun.elapsed()) {
            return Err(failure);
        }
        tell(&failure, &failed, events);
        wait(backoff.pause(), abort)?;
    }
}

/// The target is as it was, and nobody wants this to end.
pub(super) fn may_go_on(failure: &Failure, abort: &Abort) -> bool {
    let is_unharmed = matches!(failure.target, TargetState::Untouched | TargetState::Running);
    let is_of_a_kind = matches!(failure.kind, FailureKind::Failed | FailureKind::Peer | FailureKind::Blocked);
    is_unharmed && is_of_a_kind && !abort.is_triggered() && interrupt::requested().is_none()
}

fn tell(failure: &Failure, failed: &[Attempt], events: &dyn Events) {
    let number = failed.len();
    events
        .event(Event::Warning(format!("attempt {number} has failed, the target goes on here: {}", in_short(failure))));
}

/// A failure in one line.
pub(super) fn in_short(failure: &Failure) -> String {
    let blockers = failure.blockers.first().map(|one| format!("{} {}: {}", one.code, one.object, one.reason));
    let parts = std::iter::once(failure.what.clone()).chain(failure.causes.first().cloned()).chain(blockers);
    parts.collect::<Vec<_>>().join(": ")
}

fn wait(pause: Duration, abort: &Abort) -> Result<()> {
    let until = Instant::now() + pause;
    while Instant::now() < until {
        if abort.is_triggered() || interrupt::requested().is_some() {
            let kind = interrupt::requested().unwrap_or(FailureKind::Interrupted);
            let what = "ended between two attempts";
            return Err(Failure::new(what).kind(kind).target(TargetState::Running));
        }
        std::thread::sleep(LOOK.min(until - Instant::now().min(until)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_and_their_time_limit_each_other() {
        let further = |retries, within: Option<u64>| Further {
            alternates: Vec::new(),
            retries,
            within: within.map(Duration::from_secs),
            disjoint: None,
        };
        let now = Duration::ZERO;
        assert!(!further(None, None).allows(1, now), "unless it is asked for nothing is tried once more");
        assert!(further(Some(2), None).allows(2, now) && !further(Some(2), None).allows(3, now));
        let late = Duration::from_secs(10);
        assert!(further(None, Some(10)).allows(99, now) && !further(None, Some(10)).allows(1, late));
        assert!(!further(Some(2), Some(10)).allows(1, late) && !further(Some(2), Some(10)).allows(3, now));
    }

    #[test]
    fn only_what_leaves_the_target_unharmed_is_tried_again() {
        let abort = Abort::new().unwrap();
        let failure = |kind, target| Failure::new("x").kind(kind).target(target);
        for kind in [FailureKind::Failed, FailureKind::Peer, FailureKind::Blocked] {
            assert!(may_go_on(&failure(kind, TargetState::Running), &abort));
            assert!(!may_go_on(&failure(kind, TargetState::InDoubt), &abort));
            assert!(!may_go_on(&failure(kind, TargetState::Held), &abort));
        }
        assert!(!may_go_on(&failure(FailureKind::Usage, TargetState::Untouched), &abort));
        assert!(!may_go_on(&failure(FailureKind::NeedsPerson, TargetState::Running), &abort));
        abort.trigger();
        assert!(!may_go_on(&failure(FailureKind::Failed, TargetState::Running), &abort));
    }
}
