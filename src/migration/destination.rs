//! The side that is to have the target: verdict, rounds into a page store, rebuilding, running. Mirror of
//! [`super::source`].

use super::journal::{Journal, Role, Step};
use super::protocol::{self, AttemptId, FromDestination, FromSource, SpaceName, WireFailure};
use super::store::Store;
use super::{MoveError, send_pages, while_alive};
use crate::blocker::Blocker;
use crate::failure::Failure;
use crate::image::{Model, codec};
use crate::memory::store::ImageDir;
use crate::transport::{Channel, FrameKind, Link, TransportError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::path::Path;
use std::time::{Duration, Instant};

/// The rebuilding side of the engine. Called from one thread.
pub trait Builder {
    /// What stands in the way of running a target like this here; `state` are the choices of the source's user.
    fn preflight(&mut self, model: &Model, state: &serde_json::Value) -> Result<Vec<Blocker>, Failure>;

    /// Rebuilds the target from a complete image. Everything that can fail is done when this returns; it does not run.
    fn prepare(&mut self, image: &ImageDir) -> Result<(), Failure>;

    /// Runs it; the process id of its root as this host sees it.
    fn run(&mut self) -> Result<i32, Failure>;

    /// Packets of the network, packed, that came to the source for the target: given to it now if it runs, else when it does.
    fn deliver(&mut self, packets: &[u8]) -> Result<(), Failure>;

    /// Removes what [`Builder::prepare`] made, if anything.
    fn discard(&mut self);
}

/// Where things lie at the destination.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Directory of journals.
    pub journals: &'a Path,
    /// Directories in which pages may be stored, the preferred first.
    pub stores: &'a [&'a Path],
    /// The most memory a target may have, bytes.
    pub max_memory_bytes: Option<u64>,
}

/// One attempt, from the destination's side.
struct Attempt<'a> {
    id: AttemptId,
    control: Channel,
    builder: &'a mut dyn Builder,
    around: Surroundings<'a>,
    store: Store,
    state: serde_json::Value,
    journal: Journal,
}

/// Takes a target that comes over the link. Returns when it runs and the source knows, or when it was only looked at.
///
/// # Errors
/// Whatever the reason: nothing of it is left here, unless COMMIT was received; then it runs here.
pub fn run(link: Link, builder: &mut dyn Builder, around: Surroundings<'_>) -> Result<(), MoveError> {
    let Link { mut control, bulk, .. } = link;
    control.during("waiting for an offer");
    let offer: FromSource = protocol::receive(&mut control)?;
    let FromSource::Offer { attempt: id, target, state, dry_run, model_bytes, session } = offer else {
        return Err(out_of_turn(&control, &offer, "an offer"));
    };
    tracing::info!(%id, session, pid = target.pid, comm = target.comm, "offer");
    let store = Store::begin(around.stores, id, target.memory_bytes, around.max_memory_bytes);
    // Begun long before the pause: making a file costs a wait for the disk.
    let ready = store.and_then(|store| {
        let journal = Journal::begin(around.journals, Role::Destination, id, control.peer(), None)
            .map_err(|source| MoveError::Journal { source })?;
        Ok((store, journal))
    });
    let mut attempt = match ready {
        Ok((store, journal)) => Attempt { id, control, builder, around, store, state, journal },
        Err(error) => {
            protocol::receive_model(&mut control, model_bytes)?;
            protocol::send(&mut control, &FromDestination::Failed { attempt: id, failure: error.to_wire() })?;
            return Err(error);
        }
    };
    let result = attempt.whole(bulk, target.memory_bytes, model_bytes, dry_run);
    if let Err(error) = &result {
        attempt.fail(error);
    }
    result
}

impl Attempt<'_> {
    fn whole(
        &mut self,
        bulk: Vec<Channel>,
        memory_bytes: u64,
        model_bytes: u64,
        dry_run: bool,
    ) -> Result<(), MoveError> {
        let may_come = self.verdict(memory_bytes, model_bytes)?;
        if dry_run || !may_come {
            self.wait_for_abort()?;
            return self.note(Step::Aborted);
        }
        let (spaces, model_bytes) = self.rounds(bulk)?;
        self.prepare(&spaces, model_bytes)
    }

    /// This side's preflight. Whether there is nothing in the way.
    fn verdict(&mut self, memory_bytes: u64, model_bytes: u64) -> Result<bool, MoveError> {
        let model = self.model(model_bytes)?;
        let mut blockers = match &self.around.max_memory_bytes {
            Some(max) if memory_bytes > *max => vec![super::too_large(memory_bytes, *max)],
            _ => Vec::new(),
        };
        let state = self.state.clone();
        blockers.extend(while_alive(&mut self.control, || self.builder.preflight(&model, &state))?);
        let may_come = blockers.is_empty();
        let blockers = blockers.iter().map(Into::into).collect();
        self.send(&FromDestination::Verdict { attempt: self.id, blockers, room_bytes: self.store.room_bytes() })?;
        Ok(may_come)
    }

    fn model(&mut self, bytes: u64) -> Result<Model, MoveError> {
        let encoded = protocol::receive_model(&mut self.control, bytes)?;
        let model = codec::decode(&encoded).map_err(|error| MoveError::Model { reason: error.to_string() })?;
        super::check_model(&model)?;
        Ok(model)
    }

    fn wait_for_abort(&mut self) -> Result<(), MoveError> {
        match protocol::receive(&mut self.control) {
            Ok(FromSource::Abort { .. }) | Err(TransportError::Closed { .. }) => Ok(()),
            Ok(other) => Err(self.out_of_turn(&other, "the end of the look")),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores pages, round by round, until the source asks to prepare.
    fn rounds(&mut self, bulk: Vec<Channel>) -> Result<(Vec<SpaceName>, u64), MoveError> {
        let (id, store, control) = (self.id, &self.store, &mut self.control);
        let streams = bulk.len();
        let (sender, marks) = unbounded();
        std::thread::scope(|scope| {
            for mut channel in bulk {
                let sender = sender.clone();
                scope.spawn(move || {
                    if let Err(error) = take_bulk(&mut channel, store, &sender) {
                        // The receiver is gone only if the attempt has failed already.
                        let _ = sender.send(Err(error));
                        // The control channel may wait for a source that waits for us.
                        channel.patience().abort.trigger();
                    }
                });
            }
            drop(sender);
            let result = take_control(control, store, id, streams, &marks);
            if result.is_err() {
                // Bulk threads wait for frames that will not come.
                control.patience().abort.trigger();
            }
            match result {
                // A bulk channel has failed, which ended the wait on this one.
                Err(MoveError::Transport(TransportError::Aborted { .. })) => {
                    let cause = marks.iter().find_map(Mark::err);
                    Err(cause.unwrap_or(MoveError::Transport(TransportError::Aborted { during: "receiving pages" })))
                }
                result => result,
            }
        })
    }

    /// Rebuilds the target, and hands over.
    fn prepare(&mut self, spaces: &[SpaceName], model_bytes: u64) -> Result<(), MoveError> {
        let started = Instant::now();
        let model = self.model(model_bytes)?;
        let image = self.store.finish(&model, spaces)?;
        while_alive(&mut self.control, || self.builder.prepare(&image))?;
        self.note(Step::Prepared)?;
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.control.during("waiting for the order to run the target");
        self.send(&FromDestination::Prepared { attempt: self.id, took_us })?;
        let order = self.receive().and_then(|order| match order {
            FromSource::Commit { attempt } if attempt == self.id => Ok(()),
            FromSource::Abort { reason, .. } => Err(MoveError::Stays { reason }),
            other => Err(self.out_of_turn(&other, "COMMIT")),
        });
        match order {
            Ok(()) => self.commit(),
            Err(error) => {
                // A COMMIT that comes later finds nobody who would act on it: on the disk before anything is discarded.
                self.note_synced(Step::Aborted)?;
                Err(error)
            }
        }
    }

    /// It is ours from the line `owner` on.
    fn commit(&mut self) -> Result<(), MoveError> {
        self.note_synced(Step::Owner)?;
        let pid = match self.builder.run() {
            Ok(pid) => pid,
            Err(failure) => {
                self.note_synced(Step::Aborted)?;
                return Err(failure.into());
            }
        };
        self.journal.set_target(pid);
        // Whether the source hears it or not: it runs here, and the journal says so.
        let told = self.send(&FromDestination::Running { attempt: self.id, pid });
        self.control.during("waiting for the end of the original");
        match told.and_then(|()| self.receive()) {
            Ok(FromSource::Done { .. }) => self.note(Step::Done),
            Ok(other) => {
                let source = Box::new(self.out_of_turn(&other, "the end of the original"));
                Err(MoveError::RunsHere { pid, source })
            }
            Err(error) => Err(MoveError::RunsHere { pid, source: Box::new(error) }),
        }
    }

    /// The next message. Packets that come before it go to the target.
    fn receive(&mut self) -> Result<FromSource, MoveError> {
        let peer = self.control.peer().to_owned();
        loop {
            let frame = self.control.receive()?;
            match frame.kind {
                FrameKind::SEGMENTS => self.builder.deliver(frame.body)?,
                FrameKind::MESSAGE => return Ok(protocol::decode(frame.body, &peer)?),
                got => return Err(TransportError::UnexpectedKind { peer, expected: "a message", got }.into()),
            }
        }
    }

    fn note(&mut self, step: Step) -> Result<(), MoveError> {
        self.journal.write(step).map_err(|source| MoveError::Journal { source })
    }

    fn note_synced(&mut self, step: Step) -> Result<(), MoveError> {
        self.journal.write_synced(step).map_err(|source| MoveError::Journal { source })
    }

    fn send(&mut self, message: &FromDestination) -> Result<(), MoveError> {
        Ok(protocol::send(&mut self.control, message)?)
    }

    /// Removes everything and says why, if somebody listens.
    fn fail(&mut self, error: &MoveError) {
        if matches!(error, MoveError::RunsHere { .. }) {
            return;
        }
        self.builder.discard();
        if let Err(unwritten) = self.journal.write(Step::Aborted) {
            tracing::warn!(%unwritten, "the journal does not say that the attempt is over");
        }
        self.control.deadline(Some(Duration::from_secs(2)));
        let failure = error.to_wire();
        if let Err(unheard) = self.send(&FromDestination::Failed { attempt: self.id, failure }) {
            tracing::debug!(%unheard, "the source was not told");
        }
    }

    fn out_of_turn(&self, got: &FromSource, expected: &'static str) -> MoveError {
        out_of_turn(&self.control, got, expected)
    }
}

fn out_of_turn(control: &Channel, got: &FromSource, expected: &'static str) -> MoveError {
    if let FromSource::Abort { reason, .. } = got {
        return MoveError::Stays { reason: reason.clone() };
    }
    MoveError::OutOfTurn { peer: control.peer().into(), expected, got: format!("{got:?}") }
}

/// What a bulk channel has seen: the end of a round, or its own end.
type Mark = Result<u32, MoveError>;

/// Stores what comes on a bulk channel, until the mark of the last round.
fn take_bulk(channel: &mut Channel, store: &Store, marks: &Sender<Mark>) -> Result<(), MoveError> {
    channel.during("receiving pages");
    let peer = channel.peer().to_owned();
    let mut taker = store.taker();
    loop {
        let frame = channel.receive()?;
        match frame.kind {
            FrameKind::PAGES => taker.take(frame.body)?,
            FrameKind::MARK => {
                let malformed =
                    || TransportError::Malformed { peer: peer.clone(), what: "mark", reason: "wrong length".into() };
                let (number, last) = send_pages::read_mark(frame.body).ok_or_else(malformed)?;
                if marks.send(Ok(number)).is_err() || last {
                    return Ok(());
                }
            }
            got => return Err(TransportError::UnexpectedKind { peer, expected: "pages", got }.into()),
        }
    }
}

/// Follows the rounds on the control channel, and stores what comes there.
fn take_control(
    control: &mut Channel,
    store: &Store,
    id: AttemptId,
    streams: usize,
    marks: &Receiver<Mark>,
) -> Result<(Vec<SpaceName>, u64), MoveError> {
    control.during("receiving pages");
    let peer = control.peer().to_owned();
    let mut taker = store.taker();
    loop {
        let frame = control.receive()?;
        let message: FromSource = match frame.kind {
            FrameKind::PAGES => {
                taker.take(frame.body)?;
                continue;
            }
            FrameKind::MESSAGE => protocol::decode(frame.body, &peer)?,
            got => return Err(TransportError::UnexpectedKind { peer, expected: "pages or a message", got }.into()),
        };
        match message {
            FromSource::Round { attempt, .. } if attempt == id => {}
            FromSource::RoundEnd { attempt, number } if attempt == id => {
                wait_for_marks(control, streams, number, marks)?;
                let done = FromDestination::RoundDone { attempt: id, number, room_bytes: store.room_bytes() };
                protocol::send(control, &done)?;
            }
            FromSource::Prepare { attempt, spaces, model_bytes } if attempt == id => return Ok((spaces, model_bytes)),
            other => return Err(out_of_turn(control, &other, "a round")),
        }
    }
}

/// Until every bulk channel has seen the end of the round.
fn wait_for_marks(control: &mut Channel, streams: usize, number: u32, marks: &Receiver<Mark>) -> Result<(), MoveError> {
    let mut seen = 0;
    while seen < streams {
        match marks.recv_timeout(send_pages::ALIVE_EVERY) {
            Ok(Ok(mark)) if mark == number => seen += 1,
            Ok(Ok(mark)) => {
                let got = format!("the end of round {mark}");
                return Err(MoveError::OutOfTurn {
                    peer: control.peer().into(),
                    expected: "the end of this round",
                    got,
                });
            }
            Ok(Err(error)) => return Err(error),
            // Data still comes on other channels; this one is alive.
            Err(RecvTimeoutError::Timeout) => control.send(FrameKind::ALIVE, &[])?,
            Err(RecvTimeoutError::Disconnected) => return Err(MoveError::Worker),
        }
    }
    Ok(())
}

impl MoveError {
    /// In words for the other side.
    pub fn to_wire(&self) -> WireFailure {
        if let Self::Target(failure) = self {
            let Failure { what, causes, hint, blockers, .. } = failure;
            let blockers = blockers.iter().map(Into::into).collect();
            return WireFailure { what: what.clone(), causes: causes.clone(), hint: hint.clone(), blockers };
        }
        let causes =
            std::iter::successors(std::error::Error::source(self), |cause| cause.source()).map(ToString::to_string);
        WireFailure { what: self.to_string(), causes: causes.collect(), hint: None, blockers: Vec::new() }
    }
}
