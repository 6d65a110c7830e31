//! Which pages are written again and again: what a round need not carry, as it would be out of date on arrival.

use crate::memory::{RangeSet, Space};
use std::collections::{HashMap, VecDeque};

/// Rounds that count.
const ROUNDS: usize = 4;

/// In so many of them a page was written that is deferred.
const HOT_ROUNDS: usize = 3;

/// What the last few rounds found written.
#[derive(Debug, Clone, Default)]
pub struct History {
    rounds: VecDeque<HashMap<Space, RangeSet>>,
}

impl History {
    /// Notes what was written in a round. The first round of a space takes all its pages and says nothing: it is not to be
    /// noted.
    pub fn note(&mut self, written: HashMap<Space, RangeSet>) {
        if self.rounds.len() == ROUNDS {
            self.rounds.pop_front();
        }
        self.rounds.push_back(written);
    }

    /// Pages of a space that were written in most of the last rounds, the newest included: sent now, they would be sent
    /// again.
    pub fn hot(&self, space: Space) -> RangeSet {
        let nothing = RangeSet::new();
        let of = |round: &HashMap<Space, RangeSet>| round.get(&space).unwrap_or(&nothing).clone();
        // at_least[n]: pages written in at least n + 1 of the rounds looked at so far.
        let mut at_least = vec![RangeSet::new(); HOT_ROUNDS];
        for round in &self.rounds {
            let written = of(round);
            for n in (0..HOT_ROUNDS).rev() {
                let below = if n == 0 { written.clone() } else { at_least[n - 1].intersection(&written) };
                at_least[n] = at_least[n].union(&below);
            }
        }
        let newest = self.rounds.back().map(of).unwrap_or_default();
        at_least.pop().unwrap_or_default().intersection(&newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use crate::memory::PageRange;
    use proptest::prelude::*;

    const SPACE: Space = Space::Mm(MmId(0));

    fn history(rounds: &[Vec<u64>]) -> History {
        let mut history = History::default();
        for round in rounds {
            let mut pages = round.clone();
            pages.sort_unstable();
            let set = pages.into_iter().map(|page| PageRange::new(page, 1)).collect();
            history.note(HashMap::from([(SPACE, set)]));
        }
        history
    }

    #[test]
    fn pages_of_most_rounds_are_hot() {
        let rounds = [vec![1, 2, 3], vec![1, 2], vec![1, 3], vec![1, 2, 4]];
        let hot: Vec<_> = history(&rounds).hot(SPACE).iter().flat_map(|r| r.first..r.end()).collect();
        assert_eq!(hot, [1, 2]);
        assert!(history(&rounds[..2]).hot(SPACE).is_empty(), "two rounds say nothing yet");
        assert!(history(&[]).hot(SPACE).is_empty());
    }

    #[test]
    fn what_has_cooled_down_is_sent() {
        assert!(history(&[vec![1], vec![1], vec![1], vec![]]).hot(SPACE).is_empty());
    }

    proptest! {
        #[test]
        fn hot_is_what_counting_says(rounds in proptest::collection::vec(proptest::collection::vec(0u64..32, 0..40), 0..8)) {
            let hot = history(&rounds).hot(SPACE);
            let last: Vec<_> = rounds.iter().rev().take(ROUNDS).collect();
            for page in 0..32 {
                let count = last.iter().filter(|round| round.contains(&page)).count();
                let newest = last.first().is_some_and(|round| round.contains(&page));
                prop_assert_eq!(hot.contains(page), count >= HOT_ROUNDS && newest, "page {}", page);
            }
        }
    }
}
