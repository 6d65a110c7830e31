//! In which order pages that are still owed are sent: faults first, then what lies around recent faults, then pages that
//! were touched early the last time, then the rest. Each page is given once. Pure: no clock, no I/O.
//!
//! Around a fault: the last few fault positions of each thread are kept as *pivots*; from each a window is pushed outward,
//! two thirds of it forward. A fault right behind what a pivot has pushed shows that the guess was good: the pivot goes
//! there, and its window doubles. A fault elsewhere begins a new pivot, with half the window its thread had: what was pushed
//! last for it was of no use.

use crate::memory::{PageRange, RangeSet, Space};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A page that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Whose page.
    pub space: Space,
    /// Its number.
    pub page: u64,
    /// So many from there on, as they come into being in one piece (a huge page); at least 1.
    pub count: u64,
    /// Who waits for it; threads are told apart by this number alone.
    pub thread: u32,
}

/// Pages to be sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// Whose pages.
    pub space: Space,
    /// Which.
    pub range: PageRange,
    /// Somebody waits for them.
    pub urgent: bool,
}

/// Windows around a fault, pages: the smallest, that of a first fault, the largest.
const WINDOW: (u64, u64, u64) = (4, 16, 512);
/// Pivots of one thread.
const PIVOTS: usize = 4;
/// Threads that are told apart; the one that has faulted least recently makes room.
const THREADS: usize = 256;
/// Pages given in one go around a pivot.
pub const NEAR_PAGES: u64 = 16;
/// Pages given in one go when nobody waits for any.
pub const FAR_PAGES: u64 = 64;

/// One recent position.
#[derive(Debug, Clone, Copy)]
struct Pivot {
    space: Space,
    /// Next pages outward: the first above, and the one below which everything is below.
    up: u64,
    down: u64,
    /// Pages that are still to be pushed in each direction.
    left_up: u64,
    left_down: u64,
    window: u64,
}

impl Pivot {
    fn at(fault: Fault, window: u64) -> Self {
        let Fault { space, page, count, .. } = fault;
        let below = window / 3;
        Self { space, up: page + count, down: page, left_up: window - below, left_down: below, window }
    }

    /// The direction in which this page goes on where the pivot has ended, if it does.
    fn goes_on(&self, space: Space, page: u64) -> bool {
        let reach = self.window.max(NEAR_PAGES);
        let above = page >= self.up && page - self.up < reach;
        let below = page < self.down && self.down - page <= reach;
        self.space == space && (above || below)
    }

    fn is_idle(&self) -> bool {
        self.left_up == 0 && self.left_down == 0
    }

    /// These pages were given for another reason: they need not be pushed, and it goes on where they end.
    fn pass(&mut self, range: PageRange) {
        if range.first <= self.up && self.up < range.end() {
            self.left_up = self.left_up.saturating_sub(range.end() - self.up);
            self.up = range.end();
        }
        if range.first < self.down && self.down <= range.end() {
            self.left_down = self.left_down.saturating_sub(self.down - range.first);
            self.down = range.first;
        }
    }
}

/// What a thread has done lately.
#[derive(Debug)]
struct Thread {
    /// The newest first.
    pivots: VecDeque<Pivot>,
    window: u64,
    /// When it has faulted last, in faults.
    last: u64,
}

/// Pages that are owed, and in which order they go.
#[derive(Debug, Default)]
pub struct Order {
    owed: BTreeMap<Space, RangeSet>,
    pages: u64,
    urgent: VecDeque<(Space, PageRange)>,
    /// Somebody waits for all of these.
    soon: VecDeque<(Space, PageRange)>,
    threads: HashMap<u32, Thread>,
    /// Threads in the order in which their pivots take turns.
    turns: VecDeque<u32>,
    early: VecDeque<(Space, PageRange)>,
    faults: u64,
}

impl Order {
    /// Owes these pages.
    pub fn new(owed: impl IntoIterator<Item = (Space, RangeSet)>) -> Self {
        let owed: BTreeMap<Space, RangeSet> = owed.into_iter().filter(|(_, pages)| !pages.is_empty()).collect();
        let pages = owed.values().map(RangeSet::pages).sum();
        Self { owed, pages, ..Self::default() }
    }

    /// Sends these before the rest, in this order.
    pub fn first(&mut self, early: impl IntoIterator<Item = (Space, PageRange)>) {
        self.early.extend(early);
    }

    /// Pages that are still owed.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// What is still owed.
    pub fn owed(&self) -> impl Iterator<Item = (Space, PageRange)> + '_ {
        self.owed.iter().flat_map(|(space, pages)| pages.iter().map(|range| (*space, range)))
    }

    /// Somebody waits for a page. No harm if it has been given before.
    pub fn fault(&mut self, fault: Fault) {
        self.faults += 1;
        let pages = PageRange::new(fault.page, fault.count);
        if (pages.first..pages.end()).any(|page| self.is_owed(fault.space, page)) {
            self.urgent.push_back((fault.space, pages));
        }
        self.aim(fault);
    }

    /// Somebody waits until all of these are there: they come after single pages that are waited for, before all else.
    pub fn soon(&mut self, space: Space, range: PageRange) {
        self.soon.push_back((space, range));
    }

    /// These pages need not be sent any more.
    pub fn forget(&mut self, space: Space, range: PageRange) {
        let Some(owed) = self.owed.get_mut(&space) else { return };
        let before = owed.pages();
        owed.remove(range);
        self.pages -= before - owed.pages();
    }

    /// A page that somebody waits for; it is not owed any more then.
    pub fn next_wanted(&mut self) -> Option<Next> {
        while let Some((space, wanted)) = self.urgent.front().copied() {
            match self.take(space, wanted, FAR_PAGES) {
                Some(range) => return Some(Next { space, range, urgent: true }),
                None => self.urgent.pop_front(),
            };
        }
        None
    }

    /// Pages of those that somebody waits for as a whole, at most so many at a time.
    pub fn next_soon(&mut self, most: u64) -> Option<Next> {
        while let Some((space, wanted)) = self.soon.front().copied() {
            match self.take(space, wanted, most) {
                Some(range) => return Some(Next { space, range, urgent: false }),
                None => self.soon.pop_front(),
            };
        }
        None
    }

    /// The next pages, which are not owed any more then; `None` = all were given.
    pub fn next_pages(&mut self) -> Option<Next> {
        self.next_wanted().or_else(|| self.next_pushed(FAR_PAGES))
    }

    /// The same without those that somebody waits for, at most so many at a time: what is waited for as a whole, then around
    /// recent faults, then what was needed early once, then the rest.
    pub fn next_pushed(&mut self, most: u64) -> Option<Next> {
        if let Some(next) = self.next_soon(most) {
            return Some(next);
        }
        if let Some((space, range)) = self.near() {
            return Some(Next { space, range, urgent: false });
        }
        while let Some((space, range)) = self.early.front_mut() {
            let (space, whole) = (*space, *range);
            match self.take(space, whole, NEAR_PAGES) {
                Some(now) => return Some(Next { space, range: now, urgent: false }),
                None => self.early.pop_front(),
            };
        }
        let (space, first) = self.owed.iter().find_map(|(space, pages)| Some((*space, *pages.ranges().first()?)))?;
        let range = self.take(space, first, most)?;
        Some(Next { space, range, urgent: false })
    }

    /// All of a range that is owed; it is given with this. For what comes in one piece where it comes from.
    pub fn take_all(&mut self, space: Space, range: PageRange) -> RangeSet {
        let Some(owed) = self.owed.get_mut(&space) else { return RangeSet::new() };
        let found = owed.within(range);
        owed.remove(range);
        self.pages -= found.pages();
        let pivots = self.threads.values_mut().flat_map(|thread| &mut thread.pivots);
        pivots.filter(|pivot| pivot.space == space).for_each(|pivot| pivot.pass(range));
        found
    }

    fn is_owed(&self, space: Space, page: u64) -> bool {
        self.owed.get(&space).is_some_and(|owed| owed.contains(page))
    }

    /// The first pages of a range that are owed, at most so many; they are given with this.
    fn take(&mut self, space: Space, range: PageRange, most: u64) -> Option<PageRange> {
        let owed = self.owed.get_mut(&space)?;
        let at = owed.ranges().partition_point(|r| r.end() <= range.first);
        let found = owed.ranges().get(at)?.intersect(range);
        let found = PageRange::new(found.first, found.count.min(most));
        if found.is_empty() {
            return None;
        }
        owed.remove(found);
        self.pages -= found.count;
        Some(found)
    }

    /// The last neighbouring pages of a range that are owed; they are given with this.
    fn take_last(&mut self, space: Space, range: PageRange) -> Option<PageRange> {
        let owed = self.owed.get_mut(&space)?;
        let behind = owed.ranges().partition_point(|r| r.first < range.end());
        let found = owed.ranges().get(behind.checked_sub(1)?)?.intersect(range);
        if found.is_empty() {
            return None;
        }
        owed.remove(found);
        self.pages -= found.count;
        Some(found)
    }

    /// Moves the pivots of the thread that has faulted.
    fn aim(&mut self, fault: Fault) {
        if self.threads.len() >= THREADS && !self.threads.contains_key(&fault.thread) {
            let oldest = self.threads.iter().min_by_key(|(_, thread)| thread.last).map(|(id, _)| *id);
            oldest.map(|id| self.threads.remove(&id));
        }
        let fresh = || Thread { pivots: VecDeque::new(), window: WINDOW.1, last: 0 };
        let is_new = !self.threads.contains_key(&fault.thread);
        let thread = self.threads.entry(fault.thread).or_insert_with(fresh);
        thread.last = self.faults;
        match thread.pivots.iter().position(|pivot| pivot.goes_on(fault.space, fault.page)) {
            Some(at) => {
                let old = thread.pivots.remove(at).map_or(WINDOW.1, |pivot| pivot.window);
                thread.window = (old * 2).min(WINDOW.2);
            }
            None if !is_new => thread.window = (thread.window / 2).max(WINDOW.0),
            None => {}
        }
        thread.pivots.push_front(Pivot::at(fault, thread.window));
        thread.pivots.truncate(PIVOTS);
        self.turns.retain(|id| *id != fault.thread);
        self.turns.push_front(fault.thread);
    }

    /// Pages around a pivot; threads take turns, a thread's newest pivot comes first.
    fn near(&mut self) -> Option<(Space, PageRange)> {
        while let Some(id) = self.turns.pop_front() {
            let pivot = self.threads.get(&id).and_then(|t| t.pivots.iter().position(|pivot| !pivot.is_idle()));
            let Some(at) = pivot else { continue };
            let mut pivot = self.threads[&id].pivots[at];
            let found = self.push(&mut pivot);
            if let Some(thread) = self.threads.get_mut(&id) {
                thread.pivots[at] = pivot;
            }
            self.turns.push_back(id);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// One step outward from a pivot, forward before backward.
    fn push(&mut self, pivot: &mut Pivot) -> Option<(Space, PageRange)> {
        if pivot.left_up > 0 {
            let now = pivot.left_up.min(NEAR_PAGES);
            let found = self.take(pivot.space, PageRange::new(pivot.up, now), now);
            // What lies between two owed parts is passed over.
            let step = found.map_or(now, |range| range.end() - pivot.up);
            pivot.up += step;
            pivot.left_up -= step;
            return found.map(|range| (pivot.space, range));
        }
        let now = pivot.left_down.min(NEAR_PAGES).min(pivot.down);
        let found = self.take_last(pivot.space, PageRange::new(pivot.down - now, now));
        let step = found.map_or(now, |range| pivot.down - range.first);
        pivot.down -= step;
        pivot.left_down = if now == 0 { 0 } else { pivot.left_down - step };
        found.map(|range| (pivot.space, range))
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
