//! What is known of a target, and what of it is to be sent.

use crate::blocker::Blocker;
use crate::files::Wanted;
use crate::memory::{PageRange, Space};
use crate::migration::conventions::Conventions;
use crate::migration::pages::Run;
use crate::migration::postcopy::Later;
use crate::migration::protocol::{SpaceName, TargetSummary};
use std::collections::HashSet;

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
    /// What the destination should mean by the same numbers.
    pub conventions: Conventions,
}

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
