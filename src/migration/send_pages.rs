//! Sending the pages of a round: one worker for each bulk channel, each reads, packs and sends.

use super::MoveError;
use super::bases::Bases;
use super::effort::Sparing;
use super::pace::Pace;
use super::pages::{Packer, Run, Unsent};
use super::shelf::{Catalogue, Turn};
use super::source::Plan;
use crate::image::mm::PAGE;
use crate::memory::pipeline::ReadPages;
use crate::memory::throttle::Throttle;
use crate::memory::{PageBuffer, PageRange, Space};
use crate::transport::{Channel, FrameKind, Link};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pages read in one go: fits the second-level cache.
const GRAIN_PAGES: u64 = 128;

/// Ranges read in one go: process_vm_readv(2) takes 1024.
const GRAIN_RANGES: usize = 512;

/// So long pages wait that others are about to send, while nothing of that comes.
const AFTER_OTHERS: Duration = Duration::from_secs(2);

/// Between two looks whether it was sent.
const LOOK_AT_OTHERS: Duration = Duration::from_millis(2);

/// How often a side that is busy says so.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// Hands out the plan in grains.
struct Grains<'a> {
    plan: std::slice::Iter<'a, (Space, PageRange)>,
    rest: Option<(Space, PageRange)>,
}

impl<'a> Grains<'a> {
    fn of(plan: &'a [(Space, PageRange)]) -> Self {
        Self { plan: plan.iter(), rest: None }
    }

    fn next(&mut self) -> Option<(Space, Vec<PageRange>)> {
        let (mut room, mut grain): (u64, Option<(Space, Vec<PageRange>)>) = (GRAIN_PAGES, None);
        loop {
            let Some((space, range)) = self.rest.take().or_else(|| self.plan.next().copied()) else { return grain };
            if range.is_empty() {
                continue;
            }
            let fits = grain.as_ref().is_none_or(|(other, ranges)| *other == space && ranges.len() < GRAIN_RANGES);
            if room == 0 || !fits {
                self.rest = Some((space, range));
                return grain;
            }
            let now = PageRange::new(range.first, range.count.min(room));
            room -= now.count;
            let later = PageRange::new(now.end(), range.count - now.count);
            self.rest = (!later.is_empty()).then_some((space, later));
            grain.get_or_insert_with(|| (space, Vec::new())).1.push(now);
        }
    }
}

/// What a round has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Pages, also those that are named only.
    pub pages: u64,
    /// Bytes of the others, before they were packed.
    pub content_bytes: u64,
    /// Pages that are named only.
    pub unsent: Unsent,
    /// How long the channel that has waited longest has waited for the link, or for what it may take.
    pub waited: Duration,
}

/// How the content of pages is made smaller for the link.
#[derive(Clone, Copy)]
pub struct Packing<'a> {
    /// zstd level; `None` = as it is.
    pub level: Option<i32>,
    /// What deltas are made against, if they are wanted.
    pub bases: Option<&'a Bases>,
    /// What the destination can be told by digest.
    pub catalogue: &'a Catalogue,
    /// When it is, and pages are packed with that level.
    pub sparing: (Sparing, Option<i32>),
}

/// Where frames of pages go.
pub trait Outlet: Send {
    /// Takes one frame.
    ///
    /// # Errors
    /// Nobody takes any more.
    fn take_frame(&mut self, frame: &[u8]) -> Result<(), MoveError>;
}

impl Outlet for Channel {
    fn take_frame(&mut self, frame: &[u8]) -> Result<(), MoveError> {
        Ok(self.send(FrameKind::PAGES, frame)?)
    }
}

/// One round as its workers see it.
struct Work<'a> {
    source: &'a dyn ReadPages,
    grains: Mutex<Grains<'a>>,
    in_pause: bool,
    packing: Packing<'a>,
    first_round: bool,
    channels: usize,
    /// The link is what is waited for.
    is_slow: AtomicBool,
    throttle: &'a Throttle,
    pages: AtomicU64,
    content_bytes: AtomicU64,
    unsent: Mutex<Unsent>,
    waited: Mutex<Duration>,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// Sends the pages of a plan over the bulk channels (or the control channel where there are none), a MARK behind them on
/// each bulk channel. In a round while the target runs, pages that vanish meanwhile are passed over: the next round sees
/// that they did.
#[allow(clippy::too_many_arguments)]
pub fn send_round(
    link: &mut Link,
    source: &dyn ReadPages,
    plan: &Plan,
    number: u32,
    in_pause: bool,
    packing: Packing<'_>,
    throttle: &Throttle,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Sent, MoveError> {
    let channels = link.bulk.len().max(1);
    let work = Work::new(source, plan, in_pause, packing, (number == 1, channels), throttle, progress);
    let first = link.bulk.first_mut().unwrap_or(&mut link.control);
    send_notes(first, plan, packing)?;
    if link.bulk.is_empty() {
        work.run(&mut link.control, 0)?;
        return Ok(work.sent());
    }
    let mark = mark(number, in_pause);
    let (control, bulk) = (&mut link.control, &mut link.bulk);
    std::thread::scope(|scope| {
        let workers: Vec<_> = bulk
            .iter_mut()
            .enumerate()
            .map(|(n, channel)| {
                let work = &work;
                scope.spawn(move || work.run(channel, n).and_then(|()| Ok(channel.send(FrameKind::MARK, &mark)?)))
            })
            .collect();
        // The control channel would look dead in a long round.
        let mut said = Instant::now();
        let mut alive = Ok(());
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_micros(if said.elapsed() < Duration::from_millis(20) {
                50
            } else {
                1000
            }));
            if said.elapsed() >= ALIVE_EVERY && alive.is_ok() {
                alive = control.send(FrameKind::ALIVE, &[]);
                said = Instant::now();
            }
        }
        let mut result = alive.map_err(MoveError::from);
        for worker in workers {
            result = result.and(worker.join().unwrap_or(Err(MoveError::Worker)));
        }
        result
    })?;
    Ok(work.sent())
}

/// Reads the pages of a plan, packs them and gives the frames away: as many workers as there are outlets. What vanishes
/// meanwhile is treated as by [`send_round`].
pub fn read_round<O: Outlet>(
    source: &dyn ReadPages,
    plan: &Plan,
    in_pause: bool,
    packing: Packing<'_>,
    throttle: &Throttle,
    progress: &(dyn Fn(u64) + Sync),
    outlets: &mut [O],
) -> Result<Sent, MoveError> {
    let work = Work::new(source, plan, in_pause, packing, (false, outlets.len()), throttle, progress);
    let Some((first, others)) = outlets.split_first_mut() else { return Ok(work.sent()) };
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> =
            others.iter_mut().enumerate().map(|(n, outlet)| scope.spawn(move || work.run(outlet, n + 1))).collect();
        let mut result = work.run(first, 0);
        for other in others {
            result = result.and(other.join().unwrap_or(Err(MoveError::Worker)));
        }
        result
    })?;
    Ok(work.sent())
}

/// The frames that say something about pages without their content.
pub fn note_frames(notes: &[Run]) -> Vec<Vec<u8>> {
    let mut packer = Packer::new(None);
    let mut frames = Vec::new();
    for run in notes {
        packer.note(*run);
        if packer.is_full(PAGE as usize) {
            frames.push(packer.take().to_vec());
        }
    }
    if !packer.is_empty() {
        frames.push(packer.take().to_vec());
    }
    frames
}

/// Body of a MARK frame: the round, and whether it is the last.
pub fn mark(number: u32, last: bool) -> [u8; 5] {
    let [a, b, c, d] = number.to_le_bytes();
    [a, b, c, d, last.into()]
}

/// Reads the body of a MARK frame.
pub fn read_mark(body: &[u8]) -> Option<(u32, bool)> {
    match *body {
        [a, b, c, d, last @ (0 | 1)] => Some((u32::from_le_bytes([a, b, c, d]), last == 1)),
        _ => None,
    }
}

fn send_notes(channel: &mut Channel, plan: &Plan, packing: Packing<'_>) -> Result<(), MoveError> {
    let mut packer = Packer::new(packing.level);
    for run in &plan.notes {
        packer.note(*run);
        if let Some(bases) = packing.bases {
            bases.noted(*run);
        }
        if packer.is_full(PAGE as usize) {
            channel.send(FrameKind::PAGES, packer.take())?;
        }
    }
    if !packer.is_empty() {
        channel.send(FrameKind::PAGES, packer.take())?;
    }
    Ok(())
}

/// One worker's channel, and what waits to be sent over it.
struct Way<'c> {
    channel: &'c mut dyn Outlet,
    number: usize,
    packer: Packer,
    pace: Pace,
    /// For the link.
    waited: Duration,
    /// Pages that others are about to send.
    aside: Vec<(Space, PageRange)>,
    turn: Turn,
}

impl<'a> Work<'a> {
    fn new(
        source: &'a dyn ReadPages,
        plan: &'a Plan,
        in_pause: bool,
        packing: Packing<'a>,
        (first_round, channels): (bool, usize),
        throttle: &'a Throttle,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        Self {
            source,
            grains: Mutex::new(Grains::of(&plan.pages)),
            in_pause,
            packing,
            first_round,
            channels,
            is_slow: AtomicBool::new(packing.sparing.0 == Sparing::Always),
            throttle,
            pages: AtomicU64::new(0),
            content_bytes: AtomicU64::new(0),
            unsent: Mutex::default(),
            waited: Mutex::default(),
            progress,
        }
    }
}

impl Work<'_> {
    fn run(&self, channel: &mut dyn Outlet, number: usize) -> Result<(), MoveError> {
        let turn = match (self.first_round, self.in_pause) {
            (true, false) => Turn::Patient,
            (true, true) => Turn::Pause,
            (false, _) => Turn::Later,
        };
        let (packer, pace) = (Packer::new(self.packing.level), Pace::begin(self.channels));
        let mut way = Way { channel, number, packer, pace, waited: Duration::ZERO, aside: Vec::new(), turn };
        let mut buffer = PageBuffer::of((GRAIN_PAGES * PAGE) as usize);
        loop {
            let grain = self.grains.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((space, ranges)) = grain else { break };
            self.take(space, &ranges, &mut buffer, &mut way)?;
            let pages: u64 = ranges.iter().map(|range| range.count).sum();
            let done = self.pages.fetch_add(pages, Ordering::Relaxed) + pages;
            (self.progress)(done * PAGE);
        }
        self.follow_others(&mut buffer, &mut way)?;
        if !way.packer.is_empty() {
            self.send(&mut way)?;
        }
        let (more, mut unsent) = (way.packer.unsent(), self.unsent.lock().unwrap_or_else(PoisonError::into_inner));
        unsent.zero += more.zero;
        unsent.named += more.named;
        let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        *waited = way.waited.max(*waited);
        Ok(())
    }

    fn sent(self) -> Sent {
        let unsent = self.unsent.into_inner().unwrap_or_else(PoisonError::into_inner);
        let waited = self.waited.into_inner().unwrap_or_else(PoisonError::into_inner);
        Sent { pages: self.pages.into_inner(), content_bytes: self.content_bytes.into_inner(), unsent, waited }
    }

    fn take(
        &self,
        space: Space,
        ranges: &[PageRange],
        buffer: &mut PageBuffer,
        way: &mut Way<'_>,
    ) -> Result<(), MoveError> {
        let bytes: usize = ranges.iter().map(|range| range.bytes() as usize).sum();
        if way.packer.is_full(bytes) {
            self.send(way)?;
        }
        if self.is_slow.load(Ordering::Relaxed) {
            way.packer.set_level(self.packing.sparing.1);
        }
        self.read(space, ranges, &mut buffer[..bytes], way)
    }

    /// Takes what was set aside, as soon as others have sent it; what they do not send goes from here.
    fn follow_others(&self, buffer: &mut PageBuffer, way: &mut Way<'_>) -> Result<(), MoveError> {
        let count = |aside: &[(Space, PageRange)]| aside.iter().map(|(_, range)| range.count).sum::<u64>();
        let mut until = Instant::now() + AFTER_OTHERS;
        while !way.aside.is_empty() {
            // They may wait for what is in this frame.
            if !way.packer.is_empty() {
                self.send(way)?;
            }
            let aside = std::mem::take(&mut way.aside);
            let mut grains = Grains::of(&aside);
            while let Some((space, ranges)) = grains.next() {
                self.take(space, &ranges, buffer, way)?;
            }
            if count(&way.aside) < count(&aside) {
                until = Instant::now() + AFTER_OTHERS;
            } else if Instant::now() >= until {
                way.turn = Turn::First;
            } else {
                std::thread::sleep(LOOK_AT_OTHERS);
            }
        }
        Ok(())
    }

    fn send(&self, way: &mut Way<'_>) -> Result<(), MoveError> {
        self.content_bytes.fetch_add(way.packer.content_bytes(), Ordering::Relaxed);
        let (frame, began) = (way.packer.take(), Instant::now());
        way.channel.take_frame(frame)?;
        self.packing.catalogue.frame_sent(way.number);
        self.throttle.sent(frame.len() as u64);
        way.waited += began.elapsed();
        if self.packing.sparing.0 == Sparing::WhenSlow && way.pace.is_slow(frame.len() as u64, began) {
            self.is_slow.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn pack(&self, space: Space, first: u64, content: &mut [u8], way: &mut Way<'_>) {
        let Packing { bases, catalogue, .. } = self.packing;
        let packer = &mut way.packer;
        let names = catalogue.is_shared() || self.is_slow.load(Ordering::Relaxed) && !catalogue.is_none();
        match bases {
            _ if names => {
                let aside = catalogue.pack(way.number, packer, (space, first), content, bases, way.turn);
                way.aside.extend(aside.into_iter().map(|range| (space, range)));
            }
            Some(bases) => bases.pack(packer, space, first, content, false),
            None => packer.add(space, first, content),
        }
    }

    fn read(&self, space: Space, ranges: &[PageRange], buffer: &mut [u8], way: &mut Way<'_>) -> Result<(), MoveError> {
        match self.source.read(space, ranges, buffer) {
            Ok(()) => {
                let mut rest = buffer;
                for range in ranges {
                    let (content, later) = rest.split_at_mut(range.bytes() as usize);
                    self.pack(space, range.first, content, way);
                    rest = later;
                }
            }
            Err(source) if self.in_pause => return Err(MoveError::Pages { space, source }),
            // Something in there was unmapped while the target runs: page by page, what can be read.
            Err(_) => {
                for page in ranges.iter().flat_map(|range| range.pieces(1)) {
                    let content = &mut buffer[..PAGE as usize];
                    if self.source.read(space, &[page], content).is_ok() {
                        self.pack(space, page.first, content, way);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;

    #[test]
    fn grains_cover_the_plan_in_order() {
        let (a, b) = (Space::Mm(MmId(0)), Space::Mm(MmId(1)));
        let mut plan = vec![(a, PageRange::new(0, 300)), (a, PageRange::new(400, 0)), (b, PageRange::new(5, 1))];
        plan.extend((0..1000).map(|n| (b, PageRange::new(10 + 2 * n, 1))));
        let mut grains = Grains::of(&plan);
        let mut seen = Vec::new();
        while let Some((space, ranges)) = grains.next() {
            assert!(ranges.len() <= GRAIN_RANGES && !ranges.is_empty());
            assert!(ranges.iter().map(|range| range.count).sum::<u64>() <= GRAIN_PAGES);
            seen.extend(ranges.iter().flat_map(|range| (range.first..range.end()).map(move |page| (space, page))));
        }
        let wanted: Vec<_> =
            plan.iter().flat_map(|(space, range)| (range.first..range.end()).map(|page| (*space, page))).collect();
        assert_eq!(seen, wanted);
    }

    #[test]
    fn marks_are_read_as_written() {
        assert_eq!(read_mark(&mark(7, true)), Some((7, true)));
        assert_eq!(read_mark(&mark(u32::MAX, false)), Some((u32::MAX, false)));
        assert_eq!(read_mark(&[0, 0, 0, 0, 2]), None);
        assert_eq!(read_mark(&[0; 4]), None);
    }
}
