//! What is done for a target that writes as fast as it is sent: steps of [`super::switchover`] put into practice.

use super::source::{Compression, Plan};
use super::switchover::{RoundStats, Step, history::History, link_rate};
use crate::memory::{PageRange, RangeSet, Space};
use std::collections::HashMap;

/// Below this rate, bytes a second, a core packs faster than the link takes: up to a link of 1 Gbit/s.
pub const SLOW_LINK: u64 = 150 << 20;

/// zstd level of a slow link, and of one that has to be helped.
const LEVELS: (i32, i32) = (1, 3);

/// Above this rate, bytes a second, the link takes pages faster than cores make deltas of them.
const FAST_LINK: u64 = 1 << 30;

fn is_slow(rounds: &[RoundStats]) -> bool {
    let rate = link_rate(rounds);
    rate > 0 && rate < SLOW_LINK
}

/// When a round spends processor time to spare the link: pages are named by digest ([`super::shelf`]) and packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparing {
    /// Never.
    Never,
    /// From the moment it is seen that the link is what is waited for.
    WhenSlow,
    /// All the time.
    Always,
}

/// Steps taken so far, and what is needed for them.
#[derive(Debug, Default)]
pub struct Effort {
    /// Each with the number of rounds there were.
    pub tried: Vec<(usize, Step)>,
    history: History,
    /// Bytes that the last round left for later.
    deferred_bytes: u64,
}

impl Effort {
    /// Whether a step has been taken.
    pub fn has(&self, step: Step) -> bool {
        self.tried.iter().any(|(_, tried)| *tried == step)
    }

    /// Of the bytes that the target owes now, those that it has written since the last round.
    pub fn dirty_bytes(&self, owed_bytes: u64) -> u64 {
        owed_bytes.saturating_sub(self.deferred_bytes)
    }

    /// What of a round is sent now, and what is left for later. The first round has everything and says nothing of who
    /// writes.
    pub fn part(&mut self, plan: &Plan, first: bool) -> (Plan, Vec<(Space, PageRange)>) {
        let mut written: HashMap<Space, Vec<PageRange>> = HashMap::new();
        for (space, range) in &plan.pages {
            written.entry(*space).or_default().push(*range);
        }
        let written: HashMap<Space, RangeSet> =
            written.into_iter().map(|(space, ranges)| (space, ranges.into_iter().collect())).collect();
        if !first {
            self.history.note(written.clone());
        }
        self.deferred_bytes = 0;
        if !self.has(Step::Defer) {
            return (Plan { pages: plan.pages.clone(), notes: plan.notes.clone(), spaces: Vec::new() }, Vec::new());
        }
        let mut now = Plan { pages: Vec::new(), notes: plan.notes.clone(), spaces: Vec::new() };
        let mut later = Vec::new();
        for (space, pages) in written {
            // A shared object has no bookkeeping of parts of a round.
            let hot = if matches!(space, Space::Mm(_)) { self.history.hot(space) } else { RangeSet::new() };
            now.pages.extend(pages.difference(&hot).iter().map(|range| (space, range)));
            later.extend(pages.intersection(&hot).iter().map(|range| (space, range)));
        }
        now.pages.sort_unstable();
        later.sort_unstable();
        self.deferred_bytes = later.iter().map(|(_, range): &(Space, PageRange)| range.bytes()).sum();
        (now, later)
    }

    /// Whether deltas can help; else why not.
    ///
    /// # Errors
    /// The reason.
    pub fn may_delta(&self, wanted: Compression, rounds: &[RoundStats]) -> Result<(), String> {
        match link_rate(rounds) {
            _ if wanted == Compression::Off => Err("--compress off is given".to_owned()),
            _ if self.deltas(wanted, rounds) => Err("that is done already".to_owned()),
            rate if rate > FAST_LINK => Err("the link takes pages faster than deltas can be made".to_owned()),
            _ => Ok(()),
        }
    }

    /// Whether pages that were sent before travel as deltas: where the link is slow, from the second round on; and where it
    /// helps a target to converge.
    pub fn deltas(&self, wanted: Compression, rounds: &[RoundStats]) -> bool {
        let tried = self.has(Step::Delta) && link_rate(rounds) <= FAST_LINK;
        wanted != Compression::Off && (tried || is_slow(rounds))
    }

    /// When the next round spares the link; `bandwidth` = what it may take, bytes a second.
    pub fn sparing(&self, wanted: Compression, rounds: &[RoundStats], bandwidth: Option<u64>) -> Sparing {
        if wanted == Compression::Off {
            return Sparing::Never;
        }
        match link_rate(rounds) {
            _ if bandwidth.is_some_and(|rate| rate < SLOW_LINK) => Sparing::Always,
            0 => Sparing::WhenSlow,
            rate if rate < SLOW_LINK => Sparing::Always,
            _ => Sparing::Never,
        }
    }

    /// How hard pages are packed, once it is seen that the link is what is waited for.
    pub fn sparing_level(&self, wanted: Compression, rounds: &[RoundStats]) -> Option<i32> {
        self.level(wanted, rounds).or((wanted == Compression::Auto).then_some(LEVELS.0))
    }

    /// How hard pages are packed.
    pub fn level(&self, wanted: Compression, rounds: &[RoundStats]) -> Option<i32> {
        match wanted {
            Compression::Off => None,
            Compression::Level(level) => Some(level),
            Compression::Auto if self.has(Step::Compress) => Some(LEVELS.1),
            // Differences are as long as pages until they are packed.
            Compression::Auto if self.has(Step::Delta) => Some(LEVELS.0),
            Compression::Auto => is_slow(rounds).then_some(LEVELS.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{MmId, ShmemId};

    const SPACE: Space = Space::Mm(MmId(0));

    fn plan(pages: &[(Space, u64)]) -> Plan {
        Plan {
            pages: pages.iter().map(|(space, page)| (*space, PageRange::new(*page, 1))).collect(),
            notes: Vec::new(),
            spaces: Vec::new(),
        }
    }

    #[test]
    fn deltas_are_made_where_the_link_is_slow_or_the_target_does_not_converge() {
        use std::time::Duration;
        let at = |mib_s: u64| RoundStats {
            took: Duration::from_secs(1),
            sent_bytes: mib_s << 20,
            content_bytes: mib_s << 20,
            residual_bytes: 1,
            dirty_bytes: 1,
            lacking_room_bytes: 0,
        };
        let (auto, off) = (Compression::Auto, Compression::Off);
        let mut effort = Effort::default();
        assert!(!effort.deltas(auto, &[]), "the first round has nothing before it");
        assert!(effort.deltas(auto, &[at(10)]) && !effort.deltas(off, &[at(10)]));
        assert!(!effort.deltas(auto, &[at(500)]) && effort.may_delta(auto, &[at(500)]).is_ok());
        for (wanted, rate, why) in [(off, 500, "--compress off"), (auto, 10, "already"), (auto, 5000, "faster")] {
            assert!(effort.may_delta(wanted, &[at(rate)]).unwrap_err().contains(why));
        }
        effort.tried.push((3, Step::Delta));
        assert!(effort.deltas(auto, &[at(500)]) && !effort.deltas(auto, &[at(5000)]));
    }

    #[test]
    fn a_slow_link_is_spared() {
        use std::time::Duration;
        let at = |mib: u64| {
            let (took, bytes) = (Duration::from_secs(1), mib << 20);
            [RoundStats {
                took,
                sent_bytes: bytes,
                content_bytes: bytes,
                residual_bytes: 1,
                dirty_bytes: 1,
                lacking_room_bytes: 0,
            }]
        };
        let (effort, auto, slow) = (Effort::default(), Compression::Auto, Some(10 << 20));
        assert_eq!(effort.sparing(auto, &[], None), Sparing::WhenSlow, "nothing is known before the first round");
        assert_eq!(effort.sparing(auto, &[], slow), Sparing::Always);
        assert_eq!(effort.sparing(auto, &at(10), None), Sparing::Always);
        assert_eq!(effort.sparing(Compression::Level(3), &at(500), None), Sparing::Never);
        assert_eq!(effort.sparing(Compression::Off, &at(10), slow), Sparing::Never);
        let level = |wanted| effort.sparing_level(wanted, &[]);
        assert_eq!([auto, Compression::Off, Compression::Level(7)].map(level), [Some(1), None, Some(7)]);
        assert_eq!(effort.level(auto, &[]), None, "until it is seen to be slow");
    }

    #[test]
    fn only_what_is_hot_waits_and_only_when_asked_for() {
        let mut effort = Effort::default();
        let shared = Space::Shmem(ShmemId(0));
        let round = plan(&[(SPACE, 1), (SPACE, 7), (shared, 1)]);
        for first in [true, false, false, false] {
            let (now, later) = effort.part(&round, first);
            assert!(later.is_empty() && now.pages.len() == 3);
        }
        effort.tried.push((4, Step::Defer));
        let (now, later) = effort.part(&plan(&[(SPACE, 1), (SPACE, 9), (shared, 1)]), false);
        assert_eq!(later, [(SPACE, PageRange::new(1, 1))]);
        assert_eq!(now.pages, [(SPACE, PageRange::new(9, 1)), (shared, PageRange::new(1, 1))]);
        assert_eq!(effort.dirty_bytes(3 * 4096), 2 * 4096);
    }
}
