//! Frames of pages on their way to several destinations at once. Whoever has room takes a frame; who has none for longer than a
//! moment is passed over, so that a slow one holds nobody up.

use super::lane::{Lane, Room};
use super::owed::{Mask, Pages};
use crate::memory::throttle::Throttle;
use crate::memory::{PageRange, Space};
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

/// Between two looks whether a queue is shorter.
const LOOK: Duration = Duration::from_millis(5);

/// Frames of one pass over pages that the same destinations take.
pub(super) struct Spread<'f> {
    /// Who takes them.
    pub to: Vec<(usize, &'f Lane)>,
    pub room: &'f Room,
    pub throttle: &'f Throttle,
    /// Nobody wants them any more.
    pub is_over: &'f (dyn Fn() -> bool + Sync),
    /// What was not sent to whom.
    pub missed: &'f Mutex<BTreeMap<usize, Pages>>,
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
        let since = Instant::now();
        loop {
            left.retain(|(number, lane)| {
                if lane.is_closed() {
                    return false;
                }
                let has_room = lane.has_room();
                if has_room {
                    lane.push(&shared);
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
            if taken > 0 {
                // Some go on: who has had its grace is passed over.
                let waited = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                left.retain(|(number, _)| {
                    let had = self.tallies[*number].waited_us.load(Ordering::Relaxed);
                    let waits = Duration::from_micros(had.saturating_add(waited)) < GRACE;
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
        self.throttle.sent(frame.len() as u64 * taken);
        match self.to.iter().all(|(_, lane)| lane.is_closed()) {
            true => Err(over()),
            false => Ok(()),
        }
    }

    /// Nobody gets the rest of these: it was not sent to anybody.
    pub fn pass_all_over(&self, pages: &[(Space, PageRange)]) {
        self.to.iter().for_each(|(number, _)| self.pass_over(*number, pages));
    }

    fn pass_over(&self, number: usize, covered: &[(Space, PageRange)]) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = missed.entry(number).or_default();
        covered.iter().for_each(|(space, range)| theirs.entry(*space).or_default().insert(*range));
    }
}

impl Outlet for &Spread<'_> {
    fn take_frame(&mut self, frame: &[u8]) -> Result<(), MoveError> {
        self.spread(frame)
    }
}
