//! What is known of a target, and what of it is to be sent.

use crate::blocker::Blocker;
use crate::files::Wanted;
use crate::memory::pipeline::ReadPages;
use crate::memory::{PageRange, Space};
use crate::migration::conventions::Conventions;
use crate::migration::pages::Run;
use crate::migration::postcopy::Later;
use crate::migration::protocol::{SpaceName, TargetSummary};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the source knows of a target before it moves: read in a short freeze, after which it runs on.
#[derive(Debug)]
pub struct Survey {
    /// For people.
    pub summary: TargetSummary,
    /// The model, encoded.
    pub model: Vec<u8>,
    /// What stands in the way on this side.
    pub blockers: Vec<Blocker>,
    /// No two of its processes share pages: the destination can make it before any page has come.
    pub is_single: bool,
    /// What it has open or mapped.
    pub files: Vec<Wanted>,
    /// How long it stood still for that.
    pub look: Duration,
    /// What the destination should mean by the same numbers.
    pub conventions: Conventions,
}

/// Pages of a sample that lie side by side.
const PIECE: u64 = 16;

/// Pages to send.
#[derive(Debug, Default)]
pub struct Plan {
    /// Pages whose content is to be read.
    pub pages: Vec<(Space, PageRange)>,
    /// Pages about which something is said without content (gone, inherited).
    pub notes: Vec<Run>,
    /// What its spaces are called in the model of the survey, as far as that has them.
    pub spaces: Vec<SpaceName>,
}

impl Plan {
    /// Bytes of the pages to be read.
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|(_, range)| range.bytes()).sum()
    }

    /// About so many of its pages, from everywhere; others in the second `turn` (1) than in the first (0).
    pub(super) fn sample(&self, pages: u64, turn: u64) -> Self {
        let total: u64 = self.pages.iter().map(|(_, range)| range.count).sum();
        let stride = (total / pages.div_ceil(PIECE).max(1)).max(PIECE);
        let (mut before, mut sample) = (0, Self::default());
        let mut next = turn * stride / 2;
        for (space, range) in &self.pages {
            while next < before + range.count {
                let at = next - before;
                let piece = PageRange::new(range.first + at, PIECE.min(range.count - at));
                sample.pages.push((*space, piece));
                next += stride;
            }
            before += range.count;
        }
        sample
    }

    /// Whether the model of the survey has all of its spaces.
    pub(super) fn is_of_the_survey(&self) -> bool {
        let known: HashSet<Space> = self.spaces.iter().map(|name| name.sent_as.into()).collect();
        let pages = self.pages.iter().map(|(space, _)| space);
        pages.chain(self.notes.iter().map(|note| &note.space)).all(|space| known.contains(space))
    }
}

/// The frozen target: all that is left to send.
#[derive(Debug)]
pub struct Final {
    /// Pages written since the last round, and all that no round could track.
    pub plan: Plan,
    /// The model, encoded.
    pub model: Vec<u8>,
    /// What spaces of all rounds are called in it.
    pub spaces: Vec<SpaceName>,
    /// Pages that are sent when it runs, by the names of that model.
    pub later: Later,
    /// What it has open or mapped.
    pub files: Vec<Wanted>,
}

/// What was read of a target that goes on.
pub struct Still {
    /// What is left to send, and what it was; nothing of it follows.
    pub last: Arc<Final>,
    /// The contents of those pages.
    pub pages: Box<dyn ReadPages + Send>,
    /// When it was like this.
    pub taken: Instant,
    /// How long it stood still.
    pub pause: Duration,
}

/// What became of the pages of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The destination has them, but for these, which are taken again later.
    Stored {
        /// Left for later.
        deferred: Vec<(Space, PageRange)>,
    },
    /// Nobody took them.
    GivenBack,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sample_is_of_the_plan_and_as_large_as_wanted(
            lens in prop::collection::vec(1u64..3000, 0..40), wanted in 1u64..3000, turn in 0u64..2,
        ) {
            let mut first = 0;
            let pages: Vec<_> = lens.iter().map(|len| {
                first += len + 1;
                (Space::Mm(MmId(0)), PageRange::new(first - len, *len))
            }).collect();
            let plan = Plan { pages, ..Plan::default() };
            let sample = plan.sample(wanted, turn);
            let total: u64 = lens.iter().sum();
            let taken: u64 = sample.pages.iter().map(|(_, range)| range.count).sum();
            prop_assert!(taken <= wanted * 2 + 2 * PIECE && (taken > 0 || total < 2 * PIECE), "{taken} of {total}");
            let within = |piece: &PageRange| {
                plan.pages.iter().any(|(_, range)| range.first <= piece.first && piece.end() <= range.end())
            };
            prop_assert!(sample.pages.iter().all(|(_, piece)| within(piece)));
            prop_assert!(sample.pages.windows(2).all(|two| two[0].1.end() <= two[1].1.first));
        }
    }
}
