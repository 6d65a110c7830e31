//! Frames of pages on their way to several destinations at once. Whoever has room takes a frame; who has none for longer than a
//! moment is passed over, so that a slow one holds nobody up.

use super::lane::{Lane, Room};
use super::owed::{Mask, Pages};
use crate::memory::throttle::Throttle;
use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::MoveError;
use crate::migration::pages;
use crate::migration::send_pages::Outlet;
use crate::transport::TransportError;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long those that have room wait for one that has none, in a round: what near-equals need.
const GRACE: Duration = Duration::from_millis(20);

/// The same in the pause.
const GRACE_IN_PAUSE: Duration = Duration::from_millis(2);

/// In a round where what is sent to all at once leaves this host once, and what one is passed over with leaves it once more.
const GRACE_SHARED: Duration = Duration::from_millis(100);

/// So much waits for everybody who goes on: nobody is held up, bytes.
const PLENTY_BYTES: u64 = 1 << 20;

/// Between two looks whether a queue is shorter.
const LOOK: Duration = Duration::from_millis(5);

/// Frames of one pass over pages that the same destinations take.
pub(super) struct Spread<'f> {
    /// Who takes them.
    pub to: Vec<(usize, &'f Lane)>,
    pub room: &'f Room,
    pub in_pause: bool,
    /// A frame leaves this host so many times at most, however many take it; `None` = once for each.
    pub uplink_copies: Option<u64>,
    pub throttle: &'f Throttle,
    /// Nobody wants them any more.
    pub is_over: &'f (dyn Fn() -> bool + Sync),
    /// What was not sent to whom.
    pub missed: &'f Mutex<BTreeMap<usize, Pages>>,
    /// What was sent to whom.
    pub given: Mutex<BTreeMap<usize, Pages>>,
    /// Microseconds that others have waited for each in this round, and bytes of content sent to each.
    pub tallies: &'f [Tally],
}

/// Of one destination, in one round.
#[derive(Debug, Default)]
pub(super) struct Tally {
    waited_us: AtomicU64,
    pub content_bytes: AtomicU64,
}

impl Spread<'_> {
    /// The destinations as a mask.
    pub fn takes(mask: Mask, number: usize) -> bool {
        mask & 1 << number != 0
    }

    fn spread(&self, frame: &[u8]) -> Result<(), MoveError> {
        let over = || MoveError::from(TransportError::Aborted { during: "sending pages" });
        if (self.is_over)() {
            return Err(over());
        }
        let shared: Arc<[u8]> = frame.into();
        let (covered, content) = pages::covered(frame);
        let (mut left, mut taken) = (self.to.clone(), 0);
        let mut since = (!self.shares_uplink()).then(Instant::now);
        let grace = match (self.in_pause, self.shares_uplink()) {
            (true, _) => GRACE_IN_PAUSE,
            (false, true) => GRACE_SHARED,
            (false, false) => GRACE,
        };
        loop {
            left.retain(|(number, lane)| {
                if lane.is_closed() {
                    return false;
                }
                let has_room = lane.has_room();
                if has_room {
                    lane.push(&shared);
                    note(&self.given, *number, &covered);
                    self.tallies[*number].content_bytes.fetch_add(content, Ordering::Relaxed);
                    taken += 1;
                }
                !has_room
            });
            if left.is_empty() {
                break;
            }
            if (self.is_over)() {
                return Err(over());
            }
            if taken > 0 && !self.holds_nobody_up() {
                // Some go on: who has had its grace is passed over.
                let since = since.get_or_insert_with(Instant::now);
                let waited = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                left.retain(|(number, _)| {
                    let had = self.tallies[*number].waited_us.load(Ordering::Relaxed);
                    let waits = Duration::from_micros(had.saturating_add(waited)) < grace;
                    if !waits {
                        self.pass_over(*number, &covered);
                        self.tallies[*number].waited_us.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                    waits
                });
                if left.is_empty() {
                    break;
                }
            }
            self.room.wait(LOOK);
        }
        let times = self.uplink_copies.map_or(taken, |copies| taken.min(copies));
        self.throttle.sent(frame.len() as u64 * times);
        match self.to.iter().all(|(_, lane)| lane.is_closed()) {
            true => Err(over()),
            false => Ok(()),
        }
    }

    fn shares_uplink(&self) -> bool {
        self.uplink_copies.is_some()
    }

    /// Who has no room can be waited for: the others have enough to go on with.
    fn holds_nobody_up(&self) -> bool {
        let is_busy = |lane: &Lane| lane.is_closed() || lane.queued() >= PLENTY_BYTES;
        self.shares_uplink() && !self.in_pause && self.to.iter().all(|(_, lane)| is_busy(lane))
    }

    /// Nobody gets the rest of these.
    pub fn pass_rest_over(&self, pages: &[(Space, PageRange)]) {
        for (number, _) in &self.to {
            let given = self.given.lock().unwrap_or_else(PoisonError::into_inner).remove(number);
            self.pass_over(*number, &rest(pages, &given.unwrap_or_default()));
        }
    }

    fn pass_over(&self, number: usize, covered: &[(Space, PageRange)]) {
        note(self.missed, number, covered);
    }
}

/// These without those that were given.
fn rest(pages: &[(Space, PageRange)], given: &Pages) -> Vec<(Space, PageRange)> {
    let without = |(space, range): &(Space, PageRange)| {
        let all: RangeSet = std::iter::once(*range).collect();
        let left = given.get(space).map_or_else(|| all.clone(), |given| all.difference(given));
        left.iter().map(|range| (*space, range)).collect::<Vec<_>>()
    };
    pages.iter().flat_map(without).collect()
}

fn note(pages: &Mutex<BTreeMap<usize, Pages>>, number: usize, covered: &[(Space, PageRange)]) {
    let mut pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
    let theirs = pages.entry(number).or_default();
    covered.iter().for_each(|(space, range)| theirs.entry(*space).or_default().insert(*range));
}

impl Outlet for &Spread<'_> {
    fn take_frame(&mut self, frame: &[u8]) -> Result<(), MoveError> {
        self.spread(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;

    #[test]
    fn of_a_part_that_ends_early_what_was_given_is_not_owed() {
        let (space, other) = (Space::Mm(MmId(0)), Space::Mm(MmId(1)));
        let range = PageRange::new;
        let given = Mutex::default();
        note(&given, 3, &[(space, range(2, 3)), (space, range(20, 10))]);
        let given = given.into_inner().unwrap().remove(&3).unwrap();
        let pages = [(space, range(0, 10)), (space, range(22, 4)), (other, range(2, 3))];
        assert_eq!(rest(&pages, &given), [(space, range(0, 2)), (space, range(5, 5)), (other, range(2, 3))]);
        assert_eq!(rest(&pages, &Pages::new()), pages);
    }
}
