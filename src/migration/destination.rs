//! The side that is to have the target: verdict, a tree that is made ahead of time, rounds into it, making of it what the
//! target is in the end, running. Mirror of [`super::source`]. `offer` begins an attempt, `verdict` answers it, `builder` is the
//! engine's part, `onward` where the target goes next.

use super::bases::Bases;
use super::cascade::Onward;
use super::conventions::Conventions;
use super::handover::destination::{Event, Phase};
use super::handover::{Reply, Request};
use super::intake::{Intake, wait_for_marks};
use super::journal::{Journal, Step};
use super::keeper::{self, Answer, Copy, Keeper, Question};
use super::landing::{Landing, Plot};
use super::leftover::{self, Used};
use super::pages::{Run, What};
use super::parked;
use super::postcopy;
use super::protocol::{self, AttemptId, FromDestination, FromSource, SpaceName, TargetSummary, WireFailure, WireSpace};
use super::shelf::Shelf;
use super::standby::Standby;
use super::store::Store;
use super::{MoveError, while_alive};
use crate::companion::held::Held;
use crate::failure::Failure;
use crate::fault::{self, Point};
use crate::files::record::Fate;
use crate::image::{Bytes, MmId, Model, codec, limits};
use crate::memory::{PageRange, RangeSet, Space};
use crate::transport::{Channel, FrameKind, Link, TransportError};
use crossbeam_channel::bounded;
use luggage::Luggage;
use standby::{Of, StandsBy};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

mod builder;
mod luggage;
mod offer;
mod onward;
mod standby;
mod verdict;

pub use builder::{Builder, Contents, Expected, Introduction, Standing};
pub use luggage::sweep as sweep_files;

/// Where things lie at the destination.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Directory of journals.
    pub journals: &'a Path,
    /// Directory of sockets, for a guardian.
    pub run: &'a Path,
    /// Directories in which pages may be stored, the preferred first.
    pub stores: &'a [&'a Path],
    /// The most memory a target may have, bytes.
    pub max_memory_bytes: Option<u64>,
    /// Who has authenticated, the same over each link; empty = whoever may do anything here.
    pub principal: &'a str,
}

/// One attempt, from the destination's side.
struct Attempt<'a> {
    id: AttemptId,
    control: Channel,
    builder: &'a mut dyn Builder,
    around: Surroundings<'a>,
    store: Store,
    /// A store of this many bytes, at most.
    store_bytes: u64,
    state: serde_json::Value,
    keeper: Keeper,
    /// The model of the offer, until the tree is made of it.
    offered: Option<Model>,
    /// Where pages land, once there is a tree.
    landing: Option<Landing>,
    /// What deltas are of.
    bases: Bases,
    /// What can be named by digest.
    shelf: Shelf,
    /// Directory of an image whose pages need not come.
    base: Option<Bytes>,
    /// Pages follow when it runs, if rounds do not help.
    may_follow: bool,
    /// States of the target go back until all pages are there.
    recoverable: bool,
    /// It runs beside others.
    is_clone: bool,
    /// Files that come along.
    luggage: Luggage,
    /// Where the target is to go on from here.
    onward: Option<Box<Onward>>,
    /// What is kept for the death of the source.
    standby: Option<StandsBy>,
    /// The source has said over this link that its original has ended.
    settled: bool,
    /// Pages that were kept here of an earlier attempt.
    used: Option<Used>,
}

/// What a destination waits for a source that says nothing, where nobody has said how long.
pub const LEASE: Duration = Duration::from_secs(60);

/// Rounds of a target that converges, about.
const FEW_ROUNDS: u32 = 4;

/// The tree of the builder, and its files, as the keeper knows them.
struct Built<'b>(&'b mut dyn Builder, &'b mut Luggage);

impl Copy for Built<'_> {
    fn run(&mut self) -> Result<i32, Failure> {
        self.1.decide(Fate::Keep);
        self.0.run()
    }

    fn discard(&mut self) {
        self.0.discard();
        // Nobody has them open any more.
        self.1.undo();
    }

    fn park(&mut self, dir: &Path) -> Result<(), Failure> {
        self.0.park(dir)
    }

    fn describe(&self, path: &Path, lease: Duration) -> Result<(), Failure> {
        self.0.describe(path, lease)
    }

    fn free(&mut self) {
        self.0.free();
    }

    fn unpark(&mut self, dir: &Path, journal: &mut Journal) -> Result<(), Failure> {
        parked::unpark(dir, self.0, journal)
    }
}

/// Takes a target that comes over the link. Returns when it runs and the source knows, or when it was only looked at.
///
/// # Errors
/// Whatever the reason: nothing of it is left here, unless COMMIT was received; then it runs here.
pub fn run(link: Link, builder: &mut dyn Builder, around: Surroundings<'_>) -> Result<(), MoveError> {
    let Link { control, mut bulk, .. } = link;
    let Some((mut control, offer)) = offer::offered(control, builder, &around)? else { return Ok(()) };
    let FromSource::Offer {
        attempt: id,
        target,
        state,
        dry_run,
        model_bytes,
        session,
        follows,
        may_follow,
        recoverable,
        files,
        base,
        lease_ms,
        to_several,
        conventions,
        is_clone,
        onward,
        keep_warm,
        standby,
        common,
    } = offer
    else {
        return Err(out_of_turn(&control, &offer, "an offer"));
    };
    tracing::info!(%id, session, pid = target.pid, comm = target.comm, "offer");
    let (base, used) = offer::base(base, around.journals);
    let common = offer::common(common.filter(|_| !dry_run), &around);
    let lease = offer::leased(lease_ms, bulk.iter_mut().chain(std::iter::once(&mut control)));
    builder.introduce(&Introduction {
        attempt: id,
        session: &session,
        peer: control.peer(),
        target_pid: target.pid,
        dry_run,
        base: offer::base_dir(base.as_ref(), common.as_ref()),
        to_several,
    });
    let mut attempt = match offer::begin(&around, id, (&session, lease, is_clone), &control, target.memory_bytes) {
        Ok((store, keeper)) => Attempt {
            id,
            control,
            builder,
            around,
            store,
            store_bytes: target.memory_bytes,
            state,
            keeper,
            offered: None,
            landing: None,
            bases: Bases::default(),
            shelf: Shelf::of(target.memory_bytes).shared(common),
            base,
            may_follow: may_follow && !follows,
            recoverable,
            is_clone,
            luggage: Luggage::of(files),
            onward: onward.or(keep_warm),
            standby: None,
            settled: false,
            used,
        },
        Err(error) => return offer::refused(&mut control, id, model_bytes, error),
    };
    let result = attempt.whole(bulk, (&target, &conventions, standby), model_bytes, (follows, dry_run));
    attempt.end(result)
}

impl Attempt<'_> {
    fn whole(
        &mut self,
        bulk: Vec<Channel>,
        (target, conventions, standby): (&TargetSummary, &Conventions, Option<Box<Standby>>),
        model_bytes: u64,
        (follows, dry_run): (bool, bool),
    ) -> Result<(), MoveError> {
        if follows && !dry_run {
            self.builder.may_lack_pages();
        }
        let may_come = self.verdict(target, conventions, model_bytes, dry_run)?;
        if dry_run || !may_come {
            let looked = if may_come { self.sample(bulk) } else { self.wait_for_abort() };
            looked?;
            self.keeper.on(&mut Built(self.builder, &mut self.luggage), Event::Silent);
            return Ok(());
        }
        if let Some(wanted) = standby {
            self.stand_by(*wanted)?;
        }
        let mut bulk = bulk;
        let (spaces, model_bytes, late_bytes) = self.rounds(&mut bulk)?;
        self.prepare(&mut bulk, &spaces, model_bytes, late_bytes)
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

    /// Takes pages that are thrown away, so that the source sees how fast that goes.
    fn sample(&mut self, mut bulk: Vec<Channel>) -> Result<(), MoveError> {
        loop {
            match protocol::receive(&mut self.control) {
                Ok(FromSource::Round { attempt, number, .. }) if attempt == self.id => {
                    self.round(&mut bulk, number, Of::Round)?;
                    self.round_done(number)?;
                }
                Ok(FromSource::Abort { .. }) | Err(TransportError::Closed { .. }) => return Ok(()),
                Ok(other) => return Err(self.out_of_turn(&other, "pages of a sample, or the end of the look")),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes pages, round by round, until the source asks to prepare.
    fn rounds(&mut self, bulk: &mut [Channel]) -> Result<(Vec<SpaceName>, u64, u64), MoveError> {
        loop {
            self.control.during("receiving pages");
            match protocol::receive(&mut self.control)? {
                FromSource::Build { attempt, age_us, spaces } if attempt == self.id => {
                    let now = Instant::now();
                    let read_at = now.checked_sub(Duration::from_micros(age_us)).unwrap_or(now);
                    self.build_ahead(read_at, &spaces)?;
                    self.send(&FromDestination::Built { attempt: self.id })?;
                }
                FromSource::Files { attempt, last } if attempt == self.id => self.pass(last)?,
                FromSource::Round { attempt, number, state } if attempt == self.id => {
                    // What takes so many rounds may never converge.
                    if number > FEW_ROUNDS && std::mem::take(&mut self.may_follow) {
                        self.builder.may_lack_pages();
                    }
                    self.shelf.begin_round(number == 1 && !state);
                    self.round(bulk, number, if state { Of::State } else { Of::Round })?;
                    self.round_done(number)?;
                }
                FromSource::Keep { attempt, age_us, spaces, model_bytes } if attempt == self.id => {
                    self.keep_state(Duration::from_micros(age_us), &spaces, model_bytes)?;
                }
                FromSource::Prepare { attempt, spaces, model_bytes, late_bytes } if attempt == self.id => {
                    return Ok((spaces, model_bytes, late_bytes));
                }
                other => return Err(self.out_of_turn(&other, "a round")),
            }
        }
    }

    fn round_done(&mut self, number: u32) -> Result<(), MoveError> {
        let lacking = self.shelf.end_round().into_iter();
        let lacking = lacking.map(|(space, range)| (space.into(), range.first, range.count)).collect();
        let room_bytes = self.store.room_bytes();
        self.send(&FromDestination::RoundDone { attempt: self.id, number, room_bytes, lacking })
    }

    /// Makes the tree of the offered model, with the pages that are stored by now. Where that does not work out (a file has
    /// changed since the offer, say) the final model may do better, and pages are stored for that.
    fn build_ahead(&mut self, read_at: Instant, names: &[SpaceName]) -> Result<(), MoveError> {
        let Some(mut model) = self.offered.take() else {
            return Err(MoveError::Names { reason: "the tree was to be made twice".into() });
        };
        self.luggage.adapt(&mut model);
        let homes = homes(&model, names)?;
        for name in names {
            if let Some(WireSpace::Mm(id)) = name.model {
                model.mms[id as usize].cow_parent = name.cow_parent.map(MmId);
            }
        }
        let image = if self.store.is_used() { Some(self.store.finish(&model, names)?) } else { None };
        let built = while_alive(&mut self.control, || self.builder.build_ahead(model, read_at, image.as_ref()));
        let standing = built.unwrap_or_else(|failure| {
            tracing::info!("nothing is made ahead of time: {failure}");
            None
        });
        if let Some(image) = image {
            let size = (self.store_bytes, self.around.max_memory_bytes);
            let old = self.store.renew(self.around.stores, self.id, size, standing.is_some())?;
            if standing.is_none() {
                while_alive(&mut self.control, || self.store.take_back(&image, names))?;
            }
            drop(old);
        }
        let Some(standing) = standing else { return Ok(()) };
        let plots = homes.into_iter().map(|(name, home)| {
            let (places, landed) = standing.spaces.get(&home).cloned().unwrap_or_default();
            (name, Plot::new(home, places, landed))
        });
        self.landing = Some(Landing::new(plots.collect(), standing.memory));
        Ok(())
    }

    /// Takes the pages of one round: each bulk channel on a thread of its own, until its mark.
    fn round(&mut self, bulk: &mut [Channel], number: u32, of: Of) -> Result<(), MoveError> {
        let (id, control) = (self.id, &mut self.control);
        let intake = Intake {
            store: &self.store,
            landing: self.landing.as_ref(),
            bases: &self.bases,
            shelf: &self.shelf,
            standby: self.standby.as_ref().and_then(|standby| standby.begins(of)),
            of_state: of == Of::State,
        };
        let streams = bulk.len();
        // Where there are bulk channels the control channel brings no pages.
        let mut open = self.shelf.open(streams.max(1));
        let _of_control = if streams == 0 { open.pop() } else { None };
        let (sender, marks) = bounded(streams);
        std::thread::scope(|scope| {
            for (channel, open) in bulk.iter_mut().zip(open) {
                let sender = sender.clone();
                scope.spawn(move || {
                    let _open = open;
                    let taken = intake.bulk(channel, number);
                    if taken.is_err() {
                        // The control channel may wait for a source that waits for us.
                        channel.patience().abort.trigger();
                    }
                    // The receiver is gone only if the attempt has failed already.
                    let _ = sender.send(taken);
                });
            }
            drop(sender);
            let taken = intake.control(control, id, number).and_then(|()| wait_for_marks(control, streams, &marks));
            if taken.is_err() {
                // Bulk threads wait for frames that will not come.
                control.patience().abort.trigger();
            }
            match taken {
                // A bulk channel has failed, which ended the wait on this one.
                Err(MoveError::Transport(TransportError::Aborted { during })) => {
                    let is_cause =
                        |error: &MoveError| !matches!(error, MoveError::Transport(TransportError::Aborted { .. }));
                    let cause = marks.iter().filter_map(Result::err).find(is_cause);
                    Err(cause.unwrap_or(MoveError::Transport(TransportError::Aborted { during })))
                }
                taken => taken,
            }
        })
    }

    /// The final model has come: makes the tree ready for the last pages, or has them stored where it does not fit.
    fn reconcile(&mut self, model: Model, names: &[SpaceName]) -> Result<Option<Model>, MoveError> {
        let Some(landing) = self.landing.take() else { return Ok(Some(model)) };
        let finals = homes(&model, names)?;
        let final_of = |(name, home)| (home, finals.get(&name).copied());
        let fits = self.builder.fits(&model, &landing.spaces().map(final_of).collect());
        let mut taker = self.store.taker();
        let everywhere: RangeSet = [PageRange::new(0, limits::PAGE_NUMBERS)].into_iter().collect();
        let kept = |name, space| match finals.contains_key(&name) {
            // Nobody has it any more.
            false => everywhere.clone(),
            true if fits => self.builder.kept(&model, space),
            true => RangeSet::new(),
        };
        while_alive(&mut self.control, || {
            landing
                .take_out(&kept, &mut |space, range, content| taker.store(Run::new(space, range, What::Data), content))
        })?;
        drop(taker);
        if !fits {
            return Ok(Some(model));
        }
        let image = if self.store.is_used() { Some(self.store.finish(&model, names)?) } else { None };
        let stale = landing.stale();
        let memory = while_alive(&mut self.control, || self.builder.adopt(model, &stale, image.as_ref()))?;
        let plots = finals.into_iter().map(|(name, home)| (name, Plot::new(home, everywhere.clone(), RangeSet::new())));
        self.landing = Some(Landing::new(plots.collect(), memory));
        Ok(None)
    }

    /// Makes of the tree what the target is, with the last pages, and hands over.
    fn prepare(
        &mut self,
        bulk: &mut [Channel],
        names: &[SpaceName],
        model_bytes: u64,
        late_bytes: u64,
    ) -> Result<(), MoveError> {
        let started = Instant::now();
        let mut model = self.model(model_bytes)?;
        self.is_not_promoted()?;
        self.luggage.adapt(&mut model);
        let model = self.builder.adapted(model)?;
        self.expect(late_bytes)?;
        let unfit = self.reconcile(model, names)?;
        match protocol::receive(&mut self.control)? {
            FromSource::Round { attempt, number, .. } if attempt == self.id => self.round(bulk, number, Of::Pause)?,
            other => return Err(self.out_of_turn(&other, "the last round")),
        }
        match (unfit, &self.landing) {
            (None, Some(landing)) => {
                let contents = Contents::Landed(landing.stale());
                while_alive(&mut self.control, || self.builder.prepare(contents))?;
            }
            (Some(model), _) => {
                let image = self.store.finish(&model, names)?;
                while_alive(&mut self.control, || self.builder.prepare(Contents::Stored(&image)))?;
            }
            (None, None) => return Err(MoveError::Target(Failure::new(NOT_AHEAD))),
        }
        self.arm()?;
        let replies = self.keeper.on(&mut Built(self.builder, &mut self.luggage), Event::Armed);
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.control.during("waiting for the order to run the target");
        for reply in replies {
            match reply {
                Reply::Prepared => {
                    let sent = self.send(&FromDestination::Prepared { attempt: self.id, took_us });
                    fault::strike(Point::DestinationPrepared);
                    if let Err(error) = sent {
                        return self.wait(error);
                    }
                    // A source that has called it off, or is gone, has announced that the target stays: that must be the
                    // last word.
                    if !self.control.is_readable().unwrap_or(true) {
                        self.builder.announce();
                    }
                }
                _ => return Err(MoveError::Target(Failure::new("the journal cannot be written here"))),
            }
        }
        self.hand_over()
    }

    /// Pages that the target will lack when it runs.
    fn expect(&mut self, late_bytes: u64) -> Result<(), MoveError> {
        if late_bytes == 0 {
            return Ok(());
        }
        let list = protocol::receive_model(&mut self.control, late_bytes)?;
        let peer = self.control.peer();
        let pages = postcopy::decode(&list, peer)?;
        let watched = self.recoverable;
        Ok(self.builder.expect(Expected { attempt: self.id, run: self.around.run, peer, pages, watched })?)
    }

    /// From PREPARED on the machine decides, and only it.
    fn hand_over(&mut self) -> Result<(), MoveError> {
        let mut reason = String::new();
        if let Err(error) = self.keeper.listen(self.around.run) {
            tracing::error!(%error, "nobody can ask the guardian of a prepared copy");
        }
        loop {
            if self.keeper.phase() == Phase::Prepared && !self.control.is_readable().unwrap_or(true) {
                let link = self.control.readable_fd();
                let waited = self.keeper.wait(&mut Built(self.builder, &mut self.luggage), Some(link));
                // Decided by another link, or by a person: this one has nothing more to say.
                match self.keeper.phase() {
                    Phase::Owner | Phase::Closed => return Ok(()),
                    Phase::Aborted => {
                        return Err(MoveError::Stays { reason: "it was called off over another link".into() });
                    }
                    Phase::Parked => return Err(self.parked()),
                    _ => {}
                }
                if let Err(error) = waited {
                    tracing::debug!(%error, "waits for the link alone");
                }
            }
            let (attempt, request) = match self.receive() {
                Ok(message) => {
                    if let FromSource::Abort { reason: why, keep, .. } = &message {
                        reason.clone_from(why);
                        if *keep && self.keeper.phase() == Phase::Prepared {
                            self.keep_pages();
                        }
                    }
                    match handover_of(&message) {
                        Some(order) => order,
                        None => return self.wait(self.out_of_turn(&message, "COMMIT")),
                    }
                }
                Err(error) => return self.wait(error),
            };
            let replies = self.keeper.on(&mut Built(self.builder, &mut self.luggage), Event::Asked(attempt, request));
            self.control.during("waiting for the end of the original");
            for reply in replies {
                if let Err(error) = tell(&mut self.control, self.id, reply, self.keeper.pid()) {
                    return self.wait(error);
                }
            }
            match self.keeper.phase() {
                Phase::Closed => {
                    self.settled = true;
                    return Ok(());
                }
                Phase::Aborted => return Err(MoveError::Stays { reason }),
                _ => {}
            }
        }
    }

    /// The target runs elsewhere, and this host is to be kept up to date from there. What cannot be kept comes again.
    fn keep_pages(&mut self) {
        let (dir, lease) = (leftover::directory(self.around.journals, self.id), self.keeper.lease());
        if let Err(failure) = while_alive(&mut self.control, || self.builder.keep(&dir, lease)) {
            tracing::warn!("pages are not kept: {failure}");
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

    /// The tree lets go of us; who it is stands in the journal before.
    fn arm(&mut self) -> Result<(), MoveError> {
        let addresses = self.builder.addresses();
        let mut noted = Ok(());
        let journal = self.keeper.journal();
        journal.set_addresses(addresses);
        let mut note = |held: &Held| {
            journal.set_held(held.clone());
            noted = journal.write(Step::Begun);
        };
        // From here on whoever finds the journal decides about the files, too.
        self.luggage.decide(Fate::Leave);
        while_alive(&mut self.control, || self.builder.arm(&mut note))?;
        noted.map_err(|source| MoveError::Journal { source })?;
        if let Some(bequest) = self.builder.bequest().filter(|bequest| !bequest.is_empty()) {
            self.keeper.journal().bequeath(bequest).map_err(|source| MoveError::Journal { source })?;
        }
        fault::strike(Point::DestinationArmed);
        Ok(())
    }

    /// The link is lost. What runs here runs on; what is prepared waits until somebody decides.
    fn wait(&mut self, error: MoveError) -> Result<(), MoveError> {
        let pid = match self.keeper.phase() {
            Phase::Prepared if self.is_clone => {
                self.keeper.on(&mut Built(self.builder, &mut self.luggage), Event::LeaseOver);
                return Err(error);
            }
            Phase::Prepared => {
                let mut copy = Built(self.builder, &mut self.luggage);
                let asked = if self.keeper.listens() { Ok(()) } else { self.keeper.listen(self.around.run) };
                if let Err(error) = asked.and_then(|()| self.keeper.wait(&mut copy, None)) {
                    tracing::error!(%error, "nobody can ask the guardian of a prepared copy");
                }
                match self.keeper.phase() {
                    Phase::Owner => return Ok(()),
                    Phase::Parked => return Err(self.parked()),
                    Phase::Prepared => self.builder.leave(),
                    _ => return Err(error),
                }
                None
            }
            _ => self.keeper.pid(),
        };
        match pid {
            Some(pid) => Err(MoveError::RunsHere { pid, source: Box::new(error) }),
            None => Err(error),
        }
    }

    fn parked(&self) -> MoveError {
        MoveError::Parked { lease: self.keeper.lease(), image: self.keeper.image() }
    }

    fn send(&mut self, message: &FromDestination) -> Result<(), MoveError> {
        Ok(protocol::send(&mut self.control, message)?)
    }

    /// It is over: what is here is removed if it has failed, and what came to stay may go on.
    fn end(mut self, result: Result<(), MoveError>) -> Result<(), MoveError> {
        self.leave_state(&result);
        let result = result.inspect_err(|error| self.fail(error));
        // A source that is lost may come back.
        if let (Some(used), Ok(()) | Err(MoveError::Stays { .. })) = (self.used.take(), &result) {
            used.end();
        }
        self.shelf.take_common().into_iter().for_each(|common| self.builder.look_after(common));
        self.pass_on();
        result
    }

    /// Removes everything and says why, if somebody listens.
    fn fail(&mut self, error: &MoveError) {
        self.keeper.on(&mut Built(self.builder, &mut self.luggage), Event::Failed);
        if self.keeper.phase() != Phase::Aborted || matches!(error, MoveError::Stays { .. }) {
            return;
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

pub(super) fn out_of_turn(control: &Channel, got: &FromSource, expected: &'static str) -> MoveError {
    if let FromSource::Abort { reason, .. } = got {
        return MoveError::Stays { reason: reason.clone() };
    }
    MoveError::OutOfTurn { peer: control.peer().into(), expected, got: format!("{got:?}") }
}

/// Of a tree that should have been there.
const NOT_AHEAD: &str = "the tree that was to be made ahead of time is not there";

/// The attempt and what is asked about it, if it is that kind of message.
fn handover_of(message: &FromSource) -> Option<(AttemptId, Request)> {
    match message {
        FromSource::Commit { attempt } => Some((*attempt, Request::Commit)),
        FromSource::Abort { attempt, .. } => Some((*attempt, Request::Abort)),
        FromSource::Ask { attempt } => Some((*attempt, Request::Ask)),
        FromSource::Done { attempt } => Some((*attempt, Request::Done)),
        _ => None,
    }
}

/// A source that has found a new link asks about an attempt of an old one, until it knows.
fn answer(
    control: &mut Channel,
    builder: &mut dyn Builder,
    around: &Surroundings<'_>,
    attempt: AttemptId,
    request: Request,
) -> Result<(), MoveError> {
    let mut asked = Some((attempt, request));
    while let Some((attempt, request)) = asked {
        let question = Question::Source(request);
        // A parked copy becomes a tree again, which takes its time.
        let known =
            while_alive(control, || keeper::answer(around.journals, around.run, attempt, question, &mut *builder));
        let Answer { reply, pid, lacks_pages, .. } = known;
        protocol::send(control, &FromDestination::Says { attempt, reply, pid, lacks_pages })?;
        asked = match protocol::receive(control) {
            Ok(message) => handover_of(&message),
            Err(TransportError::Closed { .. }) => None,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(())
}

/// In the words of the link that the attempt has had from the beginning.
fn tell(control: &mut Channel, attempt: AttemptId, reply: Reply, pid: Option<i32>) -> Result<(), MoveError> {
    let message = match (reply, pid) {
        (Reply::Running, Some(pid)) => FromDestination::Running { attempt, pid },
        // Who has had this link from the beginning knows what it has not sent.
        (reply, pid) => FromDestination::Says { attempt, reply: Some(reply), pid, lacks_pages: false },
    };
    Ok(protocol::send(control, &message)?)
}

/// Spaces of pages and what a model calls them, those that it has.
fn homes(model: &Model, names: &[SpaceName]) -> Result<HashMap<Space, Space>, MoveError> {
    let mut homes = HashMap::new();
    let mut taken = HashSet::new();
    for name in names {
        let Some(home) = name.model.map(Space::from) else { continue };
        let known = match home {
            Space::Mm(id) => id.at() < model.mms.len(),
            Space::Shmem(id) => id.at() < model.shmems.len(),
        };
        let known_parent = name.cow_parent.is_none_or(|parent| (parent as usize) < model.mms.len());
        if !known || !known_parent {
            return Err(MoveError::Names { reason: format!("{home} is not in the model") });
        }
        if homes.insert(Space::from(name.sent_as), home).is_some() || !taken.insert(home) {
            return Err(MoveError::Names { reason: format!("{home} is named twice") });
        }
    }
    Ok(homes)
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
