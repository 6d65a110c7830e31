//! What one of several destinations lacks of what the others have: its own dirty state.

use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::pages::{Run, What};
use crate::migration::postcopy::Later;
use crate::migration::protocol::SpaceName;
use crate::migration::source::{Final, Plan};
use std::collections::BTreeMap;

/// Pages, by space.
pub(super) type Pages = BTreeMap<Space, RangeSet>;

/// Which of several destinations: a bit for each.
pub(super) type Mask = u32;

/// What a destination has not got yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Owed {
    /// Pages whose content it lacks, as they are now.
    pub pages: Pages,
    /// Pages that it has, and that are gone.
    pub gone: Pages,
}

impl Owed {
    /// It has everything.
    pub fn is_empty(&self) -> bool {
        self.pages.values().all(RangeSet::is_empty) && self.gone.values().all(RangeSet::is_empty)
    }

    /// Bytes of pages whose content it lacks.
    pub fn bytes(&self) -> u64 {
        self.pages.values().map(RangeSet::pages).sum::<u64>() * crate::image::mm::PAGE
    }

    /// It does not take part in a round with this plan. What others are told to inherit it gets as it is then: of the page that
    /// is inherited it may have another version.
    pub fn misses(&mut self, plan: &Plan, kin: &Kin) {
        for note in &plan.notes {
            match note.what {
                What::Hole => {
                    self.pages.entry(note.space).or_default().remove(note.range);
                    self.gone.entry(note.space).or_default().insert(note.range);
                }
                _ => self.lacks(note.space, note.range),
            }
        }
        for (space, range) in &plan.pages {
            self.lacks(*space, *range);
            kin.of(*range, |space, range| self.lacks(space, range));
        }
    }

    /// It was not sent these after all.
    pub fn missed(&mut self, pages: &Pages, kin: &Kin) {
        for (space, ranges) in pages {
            for range in ranges.iter() {
                self.lacks(*space, range);
                kin.of(range, |space, range| self.lacks(space, range));
            }
        }
    }

    fn lacks(&mut self, space: Space, range: PageRange) {
        self.pages.entry(space).or_default().insert(range);
        if let Some(gone) = self.gone.get_mut(&space) {
            gone.remove(range);
        }
    }

    /// It takes part in a round with this plan and has everything after it: the pages that are to be sent, and what is to be said.
    pub fn due(&mut self, plan: &Plan, is_last: bool) -> (Pages, Vec<Run>) {
        if self.is_empty() || is_last {
            let mut all = std::mem::take(self);
            plan.pages.iter().for_each(|(space, range)| all.lacks(*space, *range));
            for note in &plan.notes {
                // In the pause the target stands still: what is gone now stays so.
                let stale = if note.what == What::Hole { &mut all.pages } else { &mut all.gone };
                if let Some(ranges) = stale.get_mut(&note.space) {
                    ranges.remove(note.range);
                }
            }
            let mut notes = holes(&all.gone);
            notes.extend(plan.notes.iter().copied());
            return (all.pages, notes);
        }
        self.misses(plan, &Kin::default());
        let Self { pages, gone } = std::mem::take(self);
        (pages, holes(&gone))
    }

    /// The target is stopped, and this is left: of the pages that this one lacks besides, those that can be sent when it runs. By
    /// what it is told now it has none of them.
    pub fn put_off(&mut self, plan: &Plan, can_follow: &dyn Fn(Space, &RangeSet) -> RangeSet) -> Pages {
        let mut said = Pages::new();
        let notes = plan.notes.iter().map(|note| (note.space, note.range));
        plan.pages.iter().copied().chain(notes).for_each(|(space, range)| said.entry(space).or_default().insert(range));
        let mut all = Pages::new();
        for (space, pages) in &mut self.pages {
            let rest = said.get(space).map_or_else(|| pages.clone(), |said| pages.difference(said));
            let follows = if rest.is_empty() { rest } else { can_follow(*space, &rest) };
            if follows.is_empty() {
                continue;
            }
            *pages = pages.difference(&follows);
            let gone = self.gone.entry(*space).or_default();
            *gone = gone.union(&follows);
            all.insert(*space, follows);
        }
        all
    }

    /// The target is stopped, and has these spaces.
    pub fn forget_dead(&mut self, names: &[SpaceName]) {
        for name in names.iter().filter(|name| name.model.is_none()) {
            self.pages.remove(&name.sent_as.into());
        }
    }
}

/// What one lacks when the target runs: what all lack, and these pages, by the names that the model has.
pub(super) fn later(last: &Final, follows: &Pages) -> Later {
    let home = |space: Space| {
        let name = last.spaces.iter().find(|name| Space::from(name.sent_as) == space);
        name.map_or(Some(space), |name| name.model.map(Space::from))
    };
    let mut all: Pages = last.later.iter().cloned().collect();
    for (space, pages) in follows {
        if let Some(space) = home(*space) {
            let theirs = all.entry(space).or_default();
            *theirs = theirs.union(pages);
        }
    }
    all.into_iter().collect()
}

fn holes(gone: &Pages) -> Vec<Run> {
    let ranges = gone.iter().flat_map(|(space, ranges)| ranges.iter().map(|range| (*space, range)));
    ranges.map(|(space, range)| Run::new(space, range, What::Hole)).collect()
}

/// Pages that destinations were told to take from the address space that theirs was forked from. Who misses such a page there must
/// not take a later version of it: it gets both as they are.
#[derive(Debug, Default)]
pub(super) struct Kin(Pages);

impl Kin {
    /// What a plan says.
    pub fn note(&mut self, plan: &Plan) {
        for note in plan.notes.iter().filter(|note| note.what == What::Inherit) {
            self.0.entry(note.space).or_default().insert(note.range);
        }
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Pages that may be inherited from this place, in whichever space.
    fn of(&self, range: PageRange, mut each: impl FnMut(Space, PageRange)) {
        for (space, ranges) in &self.0 {
            ranges.within(range).iter().for_each(|range| each(*space, range));
        }
    }
}

/// The pages that each is due, parted by who shares them: each page is in one part only, those of most destinations first.
pub(super) fn parts(due: &[(Mask, Pages)]) -> Vec<(Mask, Vec<(Space, PageRange)>)> {
    let mut parts: BTreeMap<Mask, Vec<(Space, PageRange)>> = BTreeMap::new();
    let spaces: std::collections::BTreeSet<Space> = due.iter().flat_map(|(_, pages)| pages.keys().copied()).collect();
    for space in spaces {
        let mut pieces: Vec<(Mask, RangeSet)> = Vec::new();
        for (mask, pages) in due {
            let Some(mut rest) = pages.get(&space).cloned() else { continue };
            let mut next = Vec::with_capacity(pieces.len() * 2 + 1);
            for (who, piece) in pieces {
                let shared = piece.intersection(&rest);
                next.push((who, piece.difference(&rest)));
                rest = rest.difference(&shared);
                next.push((who | mask, shared));
            }
            next.push((*mask, rest));
            next.retain(|(_, piece)| !piece.is_empty());
            pieces = next;
        }
        for (who, piece) in pieces {
            parts.entry(who).or_default().extend(piece.iter().map(|range| (space, range)));
        }
    }
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.sort_by_key(|(who, _)| std::cmp::Reverse(who.count_ones()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const MM: Space = Space::Mm(MmId(0));
    const CHILD: Space = Space::Mm(MmId(1));

    fn set(pages: &[u64]) -> RangeSet {
        pages.iter().map(|page| PageRange::new(*page, 1)).collect()
    }

    fn plan(pages: &[(Space, u64)], notes: &[(Space, u64, What)]) -> Plan {
        Plan {
            pages: pages.iter().map(|(space, page)| (*space, PageRange::new(*page, 1))).collect(),
            notes: notes.iter().map(|(space, page, what)| Run::new(*space, PageRange::new(*page, 1), *what)).collect(),
            spaces: Vec::new(),
        }
    }

    #[test]
    fn who_stays_away_gets_it_later_and_what_is_gone_is_said() {
        let mut owed = Owed::default();
        owed.misses(&plan(&[(MM, 1), (MM, 2)], &[]), &Kin::default());
        owed.misses(&plan(&[(MM, 3)], &[(MM, 2, What::Hole)]), &Kin::default());
        assert_eq!(owed.bytes(), 2 * 4096);
        let (pages, notes) = owed.due(&plan(&[(MM, 9)], &[]), false);
        assert_eq!(pages, [(MM, set(&[1, 3, 9]))].into());
        assert_eq!(notes, plan(&[], &[(MM, 2, What::Hole)]).notes);
        assert!(owed.is_empty(), "after that it has everything");
    }

    #[test]
    fn a_page_that_others_inherit_is_sent_to_one_that_may_have_another_version() {
        let mut kin = Kin::default();
        let first = plan(&[(MM, 1), (MM, 2)], &[(CHILD, 1, What::Inherit)]);
        kin.note(&first);
        let mut owed = Owed::default();
        let (pages, notes) = owed.due(&first, false);
        assert_eq!((pages, notes.len()), ([(MM, set(&[1, 2]))].into(), 1), "who has everything is told to inherit");
        owed.missed(&[(MM, set(&[1]))].into(), &kin);
        assert_eq!(owed.pages, [(MM, set(&[1])), (CHILD, set(&[1]))].into());
        let mut away = Owed::default();
        away.misses(&first, &kin);
        let (pages, notes) = away.due(&plan(&[], &[]), false);
        assert_eq!(pages, [(MM, set(&[1, 2])), (CHILD, set(&[1]))].into());
        assert!(notes.is_empty());
    }

    #[test]
    fn in_the_pause_what_went_in_a_missed_round_is_said_unless_it_has_come_back() {
        let mut owed = Owed { pages: Pages::new(), gone: [(MM, set(&[3, 4]))].into() };
        let (pages, notes) = owed.due(&plan(&[(MM, 4)], &[]), true);
        assert_eq!(pages, [(MM, set(&[4]))].into());
        assert_eq!(notes, plan(&[], &[(MM, 3, What::Hole)]).notes);
        assert!(owed.is_empty());
    }

    #[test]
    fn in_the_pause_nothing_is_read_that_is_gone() {
        let mut owed = Owed { pages: [(MM, set(&[1, 2])), (CHILD, set(&[5]))].into(), gone: Pages::new() };
        let name = |space: Space, model| SpaceName { sent_as: space.into(), model, cow_parent: None };
        owed.forget_dead(&[name(CHILD, None), name(MM, Some(MM.into()))]);
        let (pages, notes) = owed.due(&plan(&[(MM, 7)], &[(MM, 2, What::Hole)]), true);
        assert_eq!((pages, notes.len()), ([(MM, set(&[1, 7]))].into(), 1));
    }

    #[test]
    fn what_one_has_missed_follows_where_it_can_and_what_all_are_told_stays_so() {
        let mut owed = Owed { pages: [(MM, set(&[1, 2, 3, 4, 5])), (CHILD, set(&[8]))].into(), gone: Pages::new() };
        // Page 1 is read in the pause, page 2 has been put off for all.
        let last = plan(&[(MM, 1)], &[(MM, 2, What::Hole)]);
        let follows = owed.put_off(&last, &|space, pages| match space {
            MM => pages.intersection(&set(&[1, 2, 3, 4])),
            _ => RangeSet::new(),
        });
        assert_eq!(follows, [(MM, set(&[3, 4]))].into());
        let (pages, notes) = owed.due(&last, true);
        assert_eq!(pages, [(MM, set(&[1, 5])), (CHILD, set(&[8]))].into(), "the rest is sent");
        let gone: RangeSet = notes.iter().map(|note| note.range).collect();
        assert_eq!(gone, set(&[2, 3, 4]), "what follows must not be there in another version");
        let name = |sent_as: Space, model: Option<Space>| SpaceName {
            sent_as: sent_as.into(),
            model: model.map(Into::into),
            cow_parent: None,
        };
        let spaces = vec![name(MM, Some(CHILD)), name(CHILD, None)];
        let last = Final { plan: last, model: Vec::new(), spaces, later: vec![(CHILD, set(&[2]))], files: Vec::new() };
        assert_eq!(later(&last, &follows), vec![(CHILD, set(&[2, 3, 4]))], "by the names of the model");
    }

    proptest! {
        #[test]
        fn each_page_is_read_once_and_goes_to_all_that_lack_it(
            wants in proptest::collection::vec(proptest::collection::btree_set(0u64..40, 0..20), 1..5)
        ) {
            let due: Vec<(Mask, Pages)> = wants.iter().enumerate().map(|(n, pages)| {
                let pages: Vec<u64> = pages.iter().copied().collect();
                (1 << n, [(MM, set(&pages))].into())
            }).collect();
            let mut got: BTreeMap<u64, Mask> = BTreeMap::new();
            for (who, pages) in parts(&due) {
                for page in pages.iter().flat_map(|(_, range)| range.first..range.end()) {
                    prop_assert!(got.insert(page, who).is_none(), "read twice");
                }
            }
            for (n, pages) in wants.iter().enumerate() {
                let theirs: BTreeSet<u64> = got.iter().filter(|(_, who)| **who & 1 << n != 0).map(|(p, _)| *p).collect();
                prop_assert_eq!(&theirs, pages);
            }
        }
    }
}
