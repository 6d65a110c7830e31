//! The source's end: pages of the frozen original, for as long as the destination lacks any.

use super::{read_wanted, receive_missing, waits};
use crate::image::mm::PAGE;
use crate::memory::lazy::order::{FAR_PAGES, NEAR_PAGES, Next};
use crate::memory::lazy::{Order, Waits};
use crate::memory::pipeline::{PageError, ReadPages};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space};
use crate::migration::MoveError;
use crate::migration::earlier::{self, Hint};
use crate::migration::pages::Packer;
use crate::migration::protocol::{self, AttemptId, FromSource};
use crate::migration::send_pages::ALIVE_EVERY;
use crate::migration::source::Again;
use crate::transport::under_way::UnderWay;
use crate::transport::{Abort, Channel, FrameKind, Link, TransportError};
use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two attempts to find a link.
const AGAIN: Duration = Duration::from_millis(200);
/// Between two looks whether there is something to do.
const LOOK: Duration = Duration::from_millis(100);

/// So long bulk data waits for what is under way: a link that takes nothing at all is found out by writing to it.
const HELD_MAX: Duration = Duration::from_secs(1);

/// How far it is.
#[derive(Debug, Default)]
struct State {
    order: Order,
    /// There are links, and what is missing is known.
    linked: bool,
    /// So many pairs of links there have been.
    links: u32,
    drained: bool,
    stopped: bool,
    served: Served,
}

/// Pages that are served, by a thread of its own.
#[derive(Debug, Clone)]
pub struct Serving {
    state: Arc<(Mutex<State>, Condvar)>,
    abort: Abort,
    attempt: AttemptId,
    /// zstd level.
    level: Option<i32>,
    /// What an image at the destination has.
    known: Arc<HashSet<Hint>>,
}

/// What was served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Served {
    /// Pages.
    pub pages: u64,
    /// Of which so many were named by digest.
    pub named: u64,
    /// And so many were waited for.
    pub faults: u64,
    /// Bytes on the wire, headers included.
    pub bytes: u64,
    /// By whom, and how long.
    pub waits: Vec<Waits>,
}

/// For how long there has been no link, as whoever gives up after some time sees it: asked again and again while there is none.
#[derive(Debug, Default)]
pub struct Unlinked(Cell<Option<(Instant, Instant)>>);

impl Unlinked {
    /// Not asked for so long: there was a link meanwhile.
    const LINKED: Duration = Duration::from_secs(1);

    /// Since the first of the questions that have followed each other.
    pub fn since(&self) -> Duration {
        let now = Instant::now();
        let asked = self.0.get().filter(|(_, asked)| now - *asked < Self::LINKED);
        let since = asked.map_or(now, |(since, _)| since);
        self.0.set(Some((since, now)));
        now - since
    }
}

/// Of a target whose pages all go before it runs.
pub struct NoPages;

impl ReadPages for NoPages {
    fn read(&self, _: Space, ranges: &[PageRange], _: &mut [u8]) -> Result<(), PageError> {
        let page = ranges.first().map_or(0, |range| range.first);
        Err(PageError { page, source: std::io::ErrorKind::Unsupported.into() })
    }
}

impl Serving {
    /// For an attempt.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(attempt: AttemptId, level: Option<i32>) -> Result<Self, MoveError> {
        let failed = |source| TransportError::Io { operation: "prepare", peer: "pages".into(), source };
        let abort = Abort::new().map_err(failed)?;
        Ok(Self { state: Arc::default(), abort, attempt, level, known: Arc::default() })
    }

    /// Names what an image at the destination has, as long as the first links last: what is not found there after all is asked for
    /// over others.
    pub fn naming(self, known: Arc<HashSet<Hint>>) -> Self {
        Self { known, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often there was a pair of links.
    pub fn links(&self) -> u32 {
        self.state().links
    }

    /// What has been served so far.
    pub fn served(&self) -> Served {
        self.state().served.clone()
    }

    /// Ends it, whatever is missing.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.abort.trigger();
        self.state.1.notify_all();
    }

    /// Waits until everything is there. `given_up`: nobody wants to wait for a link any more. `progress` is told pages that
    /// are left.
    ///
    /// # Errors
    /// There is no link, and it was given up.
    pub fn wait(&self, given_up: &dyn Fn() -> bool, progress: &dyn Fn(u64)) -> Result<Served, MoveError> {
        loop {
            let state = self.state();
            if state.drained {
                return Ok(state.served.clone());
            }
            progress(state.order.pages());
            if !state.linked && given_up() {
                let during = "sending the pages that the target still lacks";
                return Err(TransportError::Aborted { during }.into());
            }
            drop(self.state.1.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Serves until everything is there, or it is stopped: over links that `again` makes, anew when they are lost.
    pub fn run(&self, again: Again<'_>, pages: &(dyn ReadPages + Sync)) {
        while !self.state().stopped {
            match self.once(again, pages) {
                Ok(()) => {
                    self.state().drained = true;
                    self.state.1.notify_all();
                    return;
                }
                Err(error) => tracing::info!(%error, "no pages can be sent just now"),
            }
            self.state().linked = false;
            std::thread::sleep(AGAIN);
        }
    }

    fn link(&self, again: Again<'_>, urgent: bool) -> Result<Link, MoveError> {
        let mut link = again.link()?;
        // Whoever wants the move to end now is told how it ended.
        link.control.abort_with(self.abort.clone());
        link.control.during("sending pages that the target lacks");
        protocol::send(&mut link.control, &FromSource::Pages { attempt: self.attempt, urgent })?;
        Ok(link)
    }

    /// With one pair of links, until the destination has everything.
    fn once(&self, again: Again<'_>, pages: &(dyn ReadPages + Sync)) -> Result<(), MoveError> {
        let mut urgent = self.link(again, true)?;
        let missing: BTreeMap<Space, RangeSet> = receive_missing(&mut urgent.control)?;
        {
            let mut state = self.state();
            state.order = Order::new(missing);
            state.linked = true;
            state.links += 1;
        }
        let failed = |source| TransportError::Io { operation: "prepare", peer: "pages".into(), source };
        let over = Abort::new().map_err(failed)?;
        std::thread::scope(|scope| {
            // Whoever waits does not wait for this link as well.
            let worker = scope.spawn(|| {
                let sent = self.link(again, false).and_then(|mut bulk| {
                    bulk.control.abort_with(over.clone());
                    let sent = self.send_rest(&mut bulk.control, pages, &over);
                    self.state().served.bytes += bulk.control.bytes_sent();
                    sent
                });
                if sent.is_err() {
                    // The other link goes with it: what was under way is asked for anew.
                    over.trigger();
                }
                sent
            });
            let served = self.answer(&mut urgent.control, pages, &over);
            over.trigger();
            let sent = worker.join().unwrap_or(Err(MoveError::Worker));
            self.state().served.bytes += urgent.control.bytes_sent();
            match served {
                Ok(()) => Ok(()),
                Err(error) => Err(sent.err().unwrap_or(error)),
            }
        })
    }

    /// Answers faults.
    fn answer(&self, channel: &mut Channel, pages: &dyn ReadPages, over: &Abort) -> Result<(), MoveError> {
        let mut packer = Packer::new(self.level);
        let mut said = Instant::now();
        loop {
            if over.is_triggered() {
                return Err(MoveError::Worker);
            }
            if !channel.is_readable()? {
                if said.elapsed() >= ALIVE_EVERY {
                    said = Instant::now();
                    channel.send(FrameKind::ALIVE, &[])?;
                }
                channel.wait_readable(LOOK)?;
                continue;
            }
            let peer = channel.peer().to_owned();
            let Some(frame) = channel.receive_one()? else { continue };
            match frame.kind {
                FrameKind::WANTED => {
                    let wanted = read_wanted(frame.body, &peer)?;
                    let mut state = self.state();
                    state.served.faults += wanted.faults.len() as u64;
                    wanted.faults.into_iter().for_each(|fault| state.order.fault(fault));
                    wanted.soon.into_iter().for_each(|(space, range)| state.order.soon(space, range));
                }
                FrameKind::WAITS => self.state().served.waits = waits::read(frame.body, &peer)?,
                FrameKind::MARK => return Ok(channel.send(FrameKind::MARK, &[])?),
                got => return Err(TransportError::UnexpectedKind { peer, expected: "wanted pages", got }.into()),
            }
            loop {
                let wanted = self.state().order.next_wanted();
                let Some(next) = wanted else { break };
                self.send(channel, pages, next, &mut packer, None)?;
            }
        }
    }

    /// Everything else: what lies around faults first.
    fn send_rest(&self, channel: &mut Channel, pages: &dyn ReadPages, over: &Abort) -> Result<(), MoveError> {
        let mut packer = Packer::new(self.level);
        let mut said = Instant::now();
        let mut sent = Instant::now();
        // Somebody who waits does not wait for a digest as well.
        let known = Some(&*self.known).filter(|known| !known.is_empty() && self.links() == 1);
        let only_wanted = crate::fault::at(crate::fault::Point::PagerBehind).is_err();
        while !over.is_triggered() {
            let way = UnderWay::of(channel.stream());
            if let Some(wait) = way.and_then(|way| way.wait()).filter(|_| sent.elapsed() < HELD_MAX) {
                std::thread::sleep(wait);
                continue;
            }
            // Over a slow link in small pieces: what is needed around the next fault waits behind one.
            let most = way.map_or(FAR_PAGES, |way| (way.most() / PAGE / 4).clamp(NEAR_PAGES, FAR_PAGES));
            let mut state = self.state();
            let next = if only_wanted { state.order.next_soon(most) } else { state.order.next_pushed(most) };
            drop(state);
            match next {
                Some(next) => {
                    self.send(channel, pages, next, &mut packer, known)?;
                    sent = Instant::now();
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
            if said.elapsed() >= ALIVE_EVERY {
                said = Instant::now();
                channel.send(FrameKind::ALIVE, &[])?;
            }
        }
        Ok(())
    }

    fn send(
        &self,
        channel: &mut Channel,
        pages: &dyn ReadPages,
        next: Next,
        packer: &mut Packer,
        known: Option<&HashSet<Hint>>,
    ) -> Result<(), MoveError> {
        let mut content = PageBuffer::of((next.range.count * PAGE) as usize);
        pages
            .read(next.space, &[next.range], &mut content)
            .map_err(|source| MoveError::Pages { space: next.space, source })?;
        let named = packer.unsent().named;
        match known {
            Some(known) => earlier::pack(known, packer, next.space, next.range.first, &content),
            None => packer.add(next.space, next.range.first, &content),
        }
        let mut state = self.state();
        state.served.pages += next.range.count;
        state.served.named += packer.unsent().named - named;
        drop(state);
        Ok(channel.send(FrameKind::PAGES, packer.take())?)
    }
}
