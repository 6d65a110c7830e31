//! A warm-up, as those see it who ask about it: how far each destination is, and what is wanted of it. Rounds to the destinations go
//! on without end ([`super::source::fan`]); between two of them it is looked here whether somebody wants the target to move.
//!
//! ```text
//! begun -> [rounds, at the pace that the budget allows] <-> order -> taken: the pause
//!                                                        refused, withdrawn: rounds go on
//! ```

use super::handover::Candidate;
use crate::memory::throttle::CpuBudget;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is told to whoever keeps a warm-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Destinations are willing: rounds begin.
    Begun,
    /// An order cannot be carried out now; rounds go on.
    Refused(String),
}

/// That the target move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// To one of these.
    pub chosen: Vec<Candidate>,
    /// Whether or not the exit condition holds.
    pub now: bool,
    /// What becomes of memory that is left then.
    pub rest: Rest,
}

/// What becomes of memory that the destination lacks still when the pause begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rest {
    /// It goes in the pause, unless the policy of the warm-up has it follow.
    #[default]
    AsPolicySays,
    /// It goes in the pause.
    InPause,
    /// It follows when the target runs.
    Follows,
}

/// How far a destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Far {
    /// It was asked whether it takes the target.
    Asked,
    /// It has not stored a whole round yet.
    First,
    /// It has everything that the last round had.
    UpToDate,
    /// It lacks some of that.
    Behind,
    /// It is lost, or cannot have the target.
    Out,
}

impl Far {
    /// In a word or two, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::First => "first-round",
            Self::UpToDate => "up-to-date",
            Self::Behind => "behind",
            Self::Out => "out",
        }
    }
}

/// One destination, as the last look has shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub far: Far,
    /// Why it is out.
    pub reason: Option<String>,
    /// Rounds begun with it.
    pub rounds: u32,
    /// Bytes sent to it.
    pub bytes_sent: u64,
    /// Bytes of pages that are not there as they are here, those written since the last round included; `None` before it has stored
    /// the first round.
    pub left_bytes: Option<u64>,
    /// When it had stored its last round.
    pub stored_at: Option<Instant>,
    /// How long the pause of a switch would be now; an upper bound where `--bandwidth` holds the rounds back. `None` = unknown.
    pub expected_pause: Option<Duration>,
}

/// All of a warm-up, as the last look has shown it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Each destination.
    pub standings: Vec<Standing>,
    /// Bytes that the target writes a second; `None` before the second round.
    pub dirty_bytes_per_s: Option<u64>,
    /// Somebody wants the target to move, and the exit condition does not hold yet.
    pub is_ordered: bool,
    /// The pause has begun.
    pub is_taken: bool,
}

#[derive(Debug, Default)]
struct State {
    names: Vec<String>,
    order: Option<Order>,
    seen: Seen,
}

/// A warm-up.
pub struct Warm {
    state: Mutex<State>,
    changed: Condvar,
    budget: Arc<CpuBudget>,
    tell: Box<dyn Fn(Told) + Send + Sync>,
}

impl fmt::Debug for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warm").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Warm {
    /// One that uses so much of one processor at most; `tell` is called by the thread that sees to the rounds.
    pub fn new(percent: u8, tell: Box<dyn Fn(Told) + Send + Sync>) -> Self {
        let budget = Arc::new(CpuBudget::new(percent));
        Self { state: Mutex::default(), changed: Condvar::new(), budget, tell }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rounds are about to begin, to destinations of these names, in the order of their numbers.
    pub fn begins(&self, names: Vec<String>) {
        let mut state = self.state();
        *state = State { names, ..State::default() };
    }

    /// How far it is.
    pub fn seen(&self) -> Seen {
        let state = self.state();
        Seen { is_ordered: state.order.is_some(), ..state.seen.clone() }
    }

    /// Wants the target to move: to one of these, or of all where none is named.
    ///
    /// # Errors
    /// Why that cannot be, in words.
    pub fn order(&self, chosen: &[String], now: bool, rest: Rest) -> Result<(), String> {
        let mut state = self.state();
        if state.order.is_some() || state.seen.is_taken {
            return Err("a switch of this session is under way".into());
        }
        let number = |name: &String| {
            let at = state.names.iter().position(|known| known == name);
            at.ok_or_else(|| {
                format!("{name} is none of the destinations that are kept warm: {}", state.names.join(", "))
            })
        };
        let named = chosen.iter().map(number).collect::<Result<Vec<usize>, String>>()?;
        let numbers = if named.is_empty() { (0..state.names.len()).collect() } else { named };
        let is_out = |n: &usize| state.seen.standings.get(*n).is_some_and(|standing| standing.far == Far::Out);
        if numbers.iter().all(is_out) {
            return Err("none of these destinations is kept warm any more".into());
        }
        let chosen = numbers.into_iter().filter_map(|n| u8::try_from(n).ok()).map(Candidate).collect();
        state.order = Some(Order { chosen, now, rest });
        drop(state);
        // What a person waits for is worth the processor.
        self.budget.lift(true);
        self.changed.notify_all();
        Ok(())
    }

    /// Nobody wants the target to move any more; `false`: the pause has begun.
    pub fn withdraw(&self) -> bool {
        let mut state = self.state();
        if state.seen.is_taken {
            return false;
        }
        state.order = None;
        drop(state);
        self.budget.lift(false);
        true
    }

    /// Ends a rest before its time.
    pub fn wake(&self) {
        self.changed.notify_all();
    }

    /// Destinations are willing.
    pub(super) fn has_begun(&self) {
        (self.tell)(Told::Begun);
    }

    /// What is wanted.
    pub(super) fn ordered(&self) -> Option<Order> {
        self.state().order.clone()
    }

    /// It is wanted that memory follows.
    pub(super) fn wants_rest_to_follow(&self) -> bool {
        self.state().order.as_ref().is_some_and(|order| order.rest == Rest::Follows)
    }

    /// The round that goes on is not worth waiting for.
    pub(super) fn is_urgent(&self) -> bool {
        self.state().order.as_ref().is_some_and(|order| order.now)
    }

    /// The pause begins; `false`: nobody wants that any more.
    pub(super) fn take(&self) -> bool {
        let mut state = self.state();
        state.seen.is_taken = state.order.is_some();
        state.seen.is_taken
    }

    /// What is wanted cannot be.
    pub(super) fn refuse(&self, why: String) {
        if self.withdraw() {
            (self.tell)(Told::Refused(why));
        }
    }

    /// What a look has shown.
    pub(super) fn note(&self, standings: Vec<Standing>, dirty_bytes_per_s: Option<u64>) {
        let mut state = self.state();
        state.seen.standings = standings;
        state.seen.dirty_bytes_per_s = dirty_bytes_per_s.or(state.seen.dirty_bytes_per_s);
    }

    /// Waits until something is wanted, or for so long.
    pub(super) fn rest(&self, moment: Duration) {
        let state = self.state();
        if state.order.is_none() {
            drop(self.changed.wait_timeout(state, moment).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Processor time that rounds may use.
    pub(super) fn budget(&self) -> &Arc<CpuBudget> {
        &self.budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm() -> Warm {
        let warm = Warm::new(25, Box::new(|_| ()));
        warm.begins(vec!["a".into(), "b".into()]);
        warm
    }

    #[test]
    fn an_order_is_for_those_that_are_named_and_can_be_withdrawn_until_the_pause() {
        let warm = warm();
        assert!(warm.order(&["c".into()], false, Rest::default()).unwrap_err().contains("a, b"));
        warm.order(&["b".into()], false, Rest::default()).unwrap();
        assert_eq!(warm.ordered(), Some(Order { chosen: vec![Candidate(1)], now: false, rest: Rest::AsPolicySays }));
        assert!(warm.order(&[], true, Rest::Follows).is_err(), "one at a time");
        assert!(warm.withdraw() && warm.ordered().is_none() && !warm.take());
        warm.order(&[], true, Rest::Follows).unwrap();
        assert_eq!(warm.ordered().unwrap().chosen.len(), 2);
        assert!(warm.is_urgent() && warm.take() && !warm.withdraw());
    }

    #[test]
    fn who_is_out_cannot_be_chosen_alone() {
        let warm = warm();
        let standing = |name: &str, far| Standing {
            name: name.into(),
            far,
            reason: None,
            rounds: 1,
            bytes_sent: 1,
            left_bytes: None,
            stored_at: None,
            expected_pause: None,
        };
        warm.note(vec![standing("a", Far::Out), standing("b", Far::UpToDate)], Some(1));
        assert!(warm.order(&["a".into()], false, Rest::default()).is_err());
        assert!(warm.order(&[], false, Rest::default()).is_ok());
    }
}
