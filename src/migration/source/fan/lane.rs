//! The way to one of several destinations: a bounded queue, and the threads that empty it. A slow one fills its queue and is passed
//! over; what it was not sent goes into its own dirty state ([`super::owed`]).

use super::super::peer::Peer;
use super::super::{Final, Survey};
use crate::blocker::Blocker;
use crate::image::Bytes;
use crate::migration::MoveError;
use crate::migration::earlier::Hint;
use crate::migration::handover::Candidate;
use crate::migration::postcopy::Later;
use crate::migration::protocol::SpaceName;
use crate::migration::send_pages::ALIVE_EVERY;
use crate::transport::{Abort, Channel, FrameKind};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// Bytes of pages that wait for one destination, at most (and one frame more).
const QUEUE_BYTES: u64 = 8 << 20;

/// What a destination's thread is to do, in this order.
pub(super) enum Order {
    /// Offer the target, which was looked at then.
    Offer(Arc<Survey>, Instant),
    /// Send what has changed of the files that go along.
    Ship(HashSet<Bytes>),
    /// Have the tree made ahead of time.
    Build(Arc<Vec<SpaceName>>),
    /// A round begins; its pages go into a state alone (`state`).
    Round { state: bool },
    /// The round of a state is stored: it is kept, of a target that stood still then.
    Keep(Arc<Final>, Instant),
    /// Pages, where there is no channel for them alone.
    Frame(Arc<[u8]>),
    /// All pages of the round are sent, or on their way; the last one is inside the pause.
    RoundEnd { last: bool },
    /// The target is stopped, and is this; it will lack these pages when it runs there.
    Prepare(Arc<Final>, Arc<Later>),
    /// A channel of pages has failed.
    Broken(MoveError),
    /// Nothing more: the link comes back.
    End,
}

/// What a destination has found when it was offered the target.
pub(super) struct Verdict {
    /// What stands in the way there.
    pub blockers: Vec<Blocker>,
    /// Files go to it.
    pub ships: bool,
    /// What it has in an image.
    pub earlier: Arc<HashSet<Hint>>,
}

/// What its thread reports.
pub(super) enum News<'a> {
    /// What it has found.
    Verdict(Candidate, Verdict),
    /// A round is stored there.
    RoundDone(Candidate, Instant, u64),
    /// The state of a target that stood still then is kept there, or is not.
    Kept(Candidate, Instant, Option<String>),
    /// The target is rebuilt there, and stops short of running.
    Prepared(Candidate, Box<Peer<'a>>, Duration),
    /// It is lost, or cannot.
    Lost(Candidate, Box<Peer<'a>>, MoveError),
    /// It was lost, and was looked for: found, or not.
    LookedFor(Candidate, Option<Lane>),
    /// The link comes back as it is.
    Back(Candidate, Box<Peer<'a>>),
}

/// Woken when some queue has become shorter.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<()>, Condvar);

impl Room {
    /// Waits until a queue is shorter, or a moment has passed.
    pub fn wait(&self, moment: Duration) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.1.wait_timeout(guard, moment).unwrap_or_else(PoisonError::into_inner));
    }

    fn is_more(&self) {
        self.1.notify_all();
    }
}

/// What a channel of pages takes.
enum Item {
    Frame(Arc<[u8]>),
    Mark([u8; 5]),
}

/// Counters that the threads of a lane share.
#[derive(Debug, Default)]
struct Counts {
    queued: AtomicU64,
    /// By channels of pages.
    sent: AtomicU64,
    /// Nobody sends any more.
    closed: AtomicBool,
}

/// From the side of whoever reads the pages.
pub(super) struct Lane {
    orders: Sender<Order>,
    bulk: Vec<(Sender<Item>, Arc<AtomicU64>)>,
    counts: Arc<Counts>,
    /// Ends every wait of its threads.
    abort: Abort,
}

impl Lane {
    /// Starts the threads of one destination.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn begin<'scope, 'a: 'scope>(
        scope: &'scope Scope<'scope, '_>,
        candidate: Candidate,
        mut peer: Peer<'a>,
        (news, room): (Sender<News<'a>>, Arc<Room>),
    ) -> Result<Self, MoveError> {
        // Of its own: one can be told to stop while the others go on.
        let abort = Abort::new().map_err(|source| MoveError::Journal { source })?;
        peer.link.control.abort_with(abort.clone());
        let (orders, todo) = unbounded();
        let counts = Arc::new(Counts::default());
        let mut bulk = Vec::new();
        for mut channel in std::mem::take(&mut peer.link.bulk) {
            channel.abort_with(abort.clone());
            let (send, items) = unbounded();
            let load = Arc::new(AtomicU64::new(0));
            bulk.push((send, load.clone()));
            let (counts, room, orders) = (counts.clone(), room.clone(), orders.clone());
            scope.spawn(move || carry(channel, &items, (&load, &counts, &room), &orders));
        }
        let own = counts.clone();
        scope.spawn(move || {
            Driver { candidate, peer, round: 0, counts: own, room }.run(&todo, &news);
        });
        Ok(Self { orders, bulk, counts, abort })
    }

    /// Gives an order.
    pub fn order(&self, order: Order) {
        // Whose thread has ended has said why.
        let _ = self.orders.send(order);
    }

    /// Nobody sends any more.
    pub fn is_closed(&self) -> bool {
        self.counts.closed.load(Ordering::Relaxed)
    }

    /// Another frame can wait.
    pub fn has_room(&self) -> bool {
        self.queued() < QUEUE_BYTES
    }

    /// Bytes of pages that wait, for this one.
    pub fn queued(&self) -> u64 {
        self.counts.queued.load(Ordering::Relaxed)
    }

    /// Queues a frame.
    pub fn push(&self, frame: &Arc<[u8]>) {
        let bytes = frame.len() as u64;
        self.counts.queued.fetch_add(bytes, Ordering::Relaxed);
        match self.bulk.iter().min_by_key(|(_, load)| load.load(Ordering::Relaxed)) {
            Some((items, load)) => {
                load.fetch_add(bytes, Ordering::Relaxed);
                let _ = items.send(Item::Frame(frame.clone()));
            }
            None => self.order(Order::Frame(frame.clone())),
        }
    }

    /// No more pages of this round.
    pub fn end_round(&self, mark: [u8; 5], last: bool) {
        for (items, _) in &self.bulk {
            let _ = items.send(Item::Mark(mark));
        }
        self.order(Order::RoundEnd { last });
    }

    /// Bytes of pages sent over channels of their own.
    pub fn bytes_sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// Ends whatever its threads do; the link is of no more use.
    pub fn cut(&self) {
        self.abort.trigger();
        self.order(Order::End);
    }
}

/// Empties the queue of one channel of pages.
fn carry(
    mut channel: Channel,
    items: &Receiver<Item>,
    (load, counts, room): (&AtomicU64, &Counts, &Room),
    orders: &Sender<Order>,
) {
    let mut before = channel.bytes_sent();
    for item in items {
        let (kind, body) = match &item {
            Item::Frame(frame) => (FrameKind::PAGES, &frame[..]),
            Item::Mark(mark) => (FrameKind::MARK, &mark[..]),
        };
        let sent = channel.send(kind, body);
        let now = channel.bytes_sent();
        counts.sent.fetch_add(now - before, Ordering::Relaxed);
        before = now;
        if kind == FrameKind::PAGES {
            load.fetch_sub(body.len() as u64, Ordering::Relaxed);
            counts.queued.fetch_sub(body.len() as u64, Ordering::Relaxed);
            room.is_more();
        }
        if let Err(error) = sent {
            let _ = orders.send(Order::Broken(error.into()));
            return;
        }
    }
}

/// The thread that speaks with one destination.
struct Driver<'a> {
    candidate: Candidate,
    peer: Peer<'a>,
    round: u32,
    counts: Arc<Counts>,
    room: Arc<Room>,
}

impl<'a> Driver<'a> {
    fn run(mut self, orders: &Receiver<Order>, news: &Sender<News<'a>>) {
        let end = loop {
            let done = match orders.recv_timeout(ALIVE_EVERY) {
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => break None,
                Ok(Order::RoundEnd { last: true }) => match self.last_round() {
                    Ok(took) => break Some(Ok(took)),
                    Err(error) => Err(error),
                },
                Ok(order) => self.perform(order, news),
                Err(RecvTimeoutError::Timeout) => {
                    Ok(self.peer.link.control.send(FrameKind::ALIVE, &[])).and_then(|sent| Ok(sent?))
                }
            };
            if let Err(error) = done {
                break Some(Err(self.peer.explain(error)));
            }
        };
        self.counts.closed.store(!matches!(end, Some(Ok(_))), Ordering::Relaxed);
        self.room.is_more();
        let (candidate, mut peer) = (self.candidate, Box::new(self.peer));
        // The one who wanted it may be gone.
        let _ = news.send(match end {
            None => News::Back(candidate, peer),
            Some(Ok(took)) => News::Prepared(candidate, peer, took),
            Some(Err(error)) => {
                peer.lost = true;
                News::Lost(candidate, peer, error)
            }
        });
    }

    fn perform(&mut self, order: Order, news: &Sender<News<'a>>) -> Result<(), MoveError> {
        match order {
            Order::Offer(survey, surveyed) => {
                self.peer.surveyed = surveyed;
                let blockers = self.peer.offer(&survey)?;
                let (ships, earlier) = (self.peer.luggage.is_needed(), self.peer.catalogue.earlier());
                let _ = news.send(News::Verdict(self.candidate, Verdict { blockers, ships, earlier }));
            }
            Order::Ship(mapped) => self.peer.ship(|| mapped)?,
            Order::Build(spaces) => self.peer.build(&spaces)?,
            Order::Round { state } => self.round = self.peer.begin_round(state)?,
            Order::Keep(last, taken) => {
                let trouble = self.peer.keep(&last, taken)?;
                let _ = news.send(News::Kept(self.candidate, taken, trouble));
            }
            Order::Frame(frame) => {
                let sent = self.peer.link.control.send(FrameKind::PAGES, &frame);
                self.counts.queued.fetch_sub(frame.len() as u64, Ordering::Relaxed);
                self.room.is_more();
                sent?;
            }
            Order::RoundEnd { .. } => {
                // Nothing is shared with other trees where there are several destinations: all of it has come.
                self.peer.end_round(self.round, false)?;
                let _ = news.send(News::RoundDone(self.candidate, Instant::now(), self.peer.room_bytes));
            }
            Order::Prepare(last, later) => {
                self.peer.ship_last(&last.files)?;
                self.peer.prepare(&last, &later)?;
            }
            Order::Broken(error) => return Err(error),
            Order::End => {}
        }
        Ok(())
    }

    fn last_round(&mut self) -> Result<Duration, MoveError> {
        self.peer.end_round(self.round, true)?;
        self.peer.prepared()
    }
}
