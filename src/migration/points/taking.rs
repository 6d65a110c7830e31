//! The source's end: asks for a point every so often, and keeps the newest complete one.

use super::series::{Series, Writing};
use super::{CHANGED_MAX, decode};
use crate::image::codec;
use crate::image::mm::PAGE;
use crate::migration::MoveError;
use crate::migration::pages::unpack;
use crate::migration::protocol::{self, AttemptId, FromDestination, FromSource, WireFailure};
use crate::migration::source::Again;
use crate::transport::{Abort, Channel, FrameKind, Link, TransportError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// What points have cost so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cost {
    /// Complete points.
    pub points: u64,
    /// The target stood still for so long, in all.
    pub paused: Duration,
    /// For one of them, at most.
    pub longest: Duration,
    /// Bytes that came back, headers included.
    pub bytes: u64,
    /// Pages that were read at the destination while the target stood still, in all.
    pub pages_read: u64,
    /// Points that did not come to be, and why the last of them.
    pub failed: (u64, Option<String>),
}

/// What is said of a point.
#[derive(Debug, Clone, Copy)]
struct Told {
    whole: bool,
    pause: Duration,
    pages_read: u64,
}

#[derive(Debug, Default)]
struct State {
    begun: bool,
    stopped: bool,
    cost: Cost,
}

/// Points of an attempt, taken by a thread of its own.
#[derive(Debug, Clone)]
pub struct Taking {
    state: Arc<(Mutex<State>, Condvar)>,
    abort: Abort,
    attempt: AttemptId,
    every: Duration,
    /// zstd level.
    level: Option<i32>,
}

impl Taking {
    /// Every so often, once it is [begun](Self::begin).
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(attempt: AttemptId, every: Duration, level: Option<i32>) -> Result<Self, MoveError> {
        let failed = |source| TransportError::Io { operation: "prepare", peer: "points".into(), source };
        Ok(Self { state: Arc::default(), abort: Abort::new().map_err(failed)?, attempt, every, level })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The target runs there.
    pub fn begin(&self) {
        self.state().begun = true;
        self.state.1.notify_all();
    }

    /// No more points; what they have cost.
    pub fn stop(&self) -> Cost {
        self.state().stopped = true;
        self.abort.trigger();
        self.state.1.notify_all();
        self.state().cost.clone()
    }

    /// Takes points until it is stopped, over links that `again` makes.
    pub fn run(&self, again: Again<'_>, mut series: Series) {
        drop(self.state.1.wait_while(self.state(), |state| !state.begun && !state.stopped));
        let mut link = None;
        while !self.state().stopped {
            let began = Instant::now();
            if let Err(error) = self.one(again, &mut link, &mut series) {
                let mut state = self.state();
                if state.stopped {
                    return;
                }
                tracing::info!(%error, "no point was taken");
                let failed = &mut state.cost.failed;
                *failed = (failed.0 + 1, Some(with_causes(&error)));
                drop(state);
                // Told that there was none, both sides still agree on what was sent.
                if !matches!(error, MoveError::Destination(_)) {
                    link = None;
                }
            }
            let rest = self.every.saturating_sub(began.elapsed());
            drop(self.state.1.wait_timeout_while(self.state(), rest, |state| !state.stopped));
        }
    }

    fn link(&self, again: Again<'_>) -> Result<Link, MoveError> {
        let mut link = again.link()?;
        link.control.abort_with(self.abort.clone());
        link.control.during("taking points of the target");
        protocol::send(&mut link.control, &FromSource::Points { attempt: self.attempt, level: self.level })?;
        Ok(link)
    }

    fn one(&self, again: Again<'_>, link: &mut Option<Link>, series: &mut Series) -> Result<(), MoveError> {
        // Until a whole one has come over this link those that are there cannot be gone on from.
        let new = link.is_none();
        let link = match link {
            Some(link) => link,
            none => none.insert(self.link(again)?),
        };
        let control = &mut link.control;
        let (asked, before) = (SystemTime::now(), control.bytes_received());
        let wanted = FromSource::Point { attempt: self.attempt, whole: new || series.is_long() };
        protocol::send(control, &wanted)?;
        let mut writing = series.begin(asked).map_err(failed)?;
        let Some(Told { whole, pause, pages_read }) = self.receive(control, series, &mut writing)? else {
            return Ok(());
        };
        if new && !whole {
            return Err(MoveError::Point { reason: "it needs points that were sent over another link".into() });
        }
        series.put(writing, whole).map_err(failed)?;
        let mut state = self.state();
        let cost = &mut state.cost;
        cost.points += 1;
        cost.paused += pause;
        cost.longest = cost.longest.max(pause);
        cost.pages_read += pages_read;
        cost.bytes += control.bytes_received() - before;
        Ok(())
    }

    /// Writes one as it comes; what is said of it. `None`: the target has all of its memory, and none is needed any more.
    fn receive(
        &self,
        control: &mut Channel,
        series: &Series,
        writing: &mut Writing,
    ) -> Result<Option<Told>, MoveError> {
        let peer = control.peer().to_owned();
        let mut buffer = Vec::new();
        let mut pages = 0;
        let (told, model_bytes, index_bytes) = loop {
            let frame = control.receive()?;
            match frame.kind {
                FrameKind::PAGES => {
                    unpack(frame.body, &mut buffer, &mut |run, _| pages += run.range.count)
                        .map_err(|error| MoveError::Point { reason: error.to_string() })?;
                    // Zero pages need no room, and are not so many either.
                    if pages > CHANGED_MAX / PAGE {
                        return Err(MoveError::Point { reason: "it has too many pages".into() });
                    }
                    writing.pages(frame.body).map_err(failed)?;
                }
                FrameKind::MESSAGE => match protocol::decode(frame.body, &peer)? {
                    FromDestination::Point { attempt, whole, pause_us, pages_read, model_bytes, index_bytes }
                        if attempt == self.attempt =>
                    {
                        let pause = Duration::from_micros(pause_us);
                        break (Told { whole, pause, pages_read }, model_bytes, index_bytes);
                    }
                    FromDestination::Failed { failure: WireFailure { blockers, what, mut causes, hint }, .. } => {
                        causes.extend(blockers.into_iter().map(|blocker| {
                            let crate::blocker::Blocker { object, reason, .. } = blocker.into();
                            format!("{object}: {reason}")
                        }));
                        return Err(MoveError::Destination(WireFailure { what, causes, hint, blockers: Vec::new() }));
                    }
                    FromDestination::Says { lacks_pages: false, .. } => return Ok(None),
                    other => {
                        let got = format!("{other:?}");
                        return Err(MoveError::OutOfTurn { peer, expected: "a point", got });
                    }
                },
                got => return Err(TransportError::UnexpectedKind { peer, expected: "a point", got }.into()),
            }
        };
        let model = protocol::receive_model(control, model_bytes)?;
        let index = protocol::receive_model(control, index_bytes)?;
        let sound = codec::decode(&model).map_err(|error| MoveError::Model { reason: error.to_string() })?;
        crate::migration::check_model(&sound)?;
        let rows = decode(&index).ok_or_else(|| MoveError::Point { reason: "it has no index".into() })?;
        if !series.original().has(&rows) {
            return Err(MoveError::Point { reason: "it names memory that the original does not have".into() });
        }
        writing.end(&model, &index).map_err(failed)?;
        Ok(Some(told))
    }
}

fn failed(source: std::io::Error) -> MoveError {
    MoveError::Kept { source }
}

fn with_causes(error: &MoveError) -> String {
    match error {
        MoveError::Destination(failure) => {
            std::iter::once(failure.what.clone()).chain(failure.causes.iter().cloned()).collect::<Vec<_>>().join(": ")
        }
        error => crate::failure::Failure::of(String::new(), error).causes.join(": "),
    }
}
