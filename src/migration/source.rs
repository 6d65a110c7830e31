//! The side that has the target: offer, rounds, switch-over. Mirror of [`super::destination`].

use super::MoveError;
use super::bases::Bases;
use super::effort::Effort;
use super::handover::source::{Action, Event as Happened, Phase, Source};
use super::handover::{Candidate, Reply, Request, Rules, Sync};
use super::journal::{Journal, Role, Step};
use super::points::taking::Taking;
use super::postcopy::{self, serving::Serving};
use super::protocol::{self, AttemptId, FromDestination, FromSource, SpaceName, WireFailure};
use super::report::{Pause, Report};
use super::shelf::Catalogue;
use super::switchover::{Decision, ExitCondition, Goals, RoundStats, Step as Help};
use crate::blocker::Blocker;
use crate::companion::held::Held;
use crate::failure::Failure;
use crate::fault::{self, Point};
use crate::files::Wish;
use crate::image::{Bytes, Pid};
use crate::memory::pipeline::ReadPages;
use crate::ops::{Event, Events};
use crate::transport::{Abort, FrameKind, Link, TransportError};
use luggage::Luggage;
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

pub mod again;
mod late;
mod foresee;
mod luggage;
mod plan;
mod rounds;

pub use again::{Again, Fence};
pub use plan::{Final, Plan, Survey, Taken};

use again::Silence;

/// Sends the pages of a round, read from the given place.
pub type Send<'a> = dyn FnMut(&Plan, &dyn ReadPages) -> Result<Taken, MoveError> + 'a;

/// Sends packets of the network, packed, to the destination.
pub type SendSegments<'a> = dyn FnMut(&[u8]) -> Result<(), MoveError> + 'a;

/// The target as this side handles it; the engine implements it. Called from one thread.
pub trait Target {
    /// Reads it in a short freeze and begins to track its writes; it runs on.
    fn survey(&mut self) -> Result<Survey, Failure>;

    /// Takes what was written since the last round (at first: everything), and lets `send` read it while the target runs.
    /// What was not stored is taken again by the next round, or by [`Target::freeze`].
    fn round(&mut self, send: &mut Send<'_>) -> Result<Taken, MoveError>;

    /// Gives it less processor time, the more the greater `times` (from 1); until it is resumed or has ended.
    ///
    /// # Errors
    /// Why that cannot be done here, in words.
    fn slow_down(&mut self, times: usize) -> Result<(), String> {
        let _ = times;
        Err("it cannot be given less processor time".into())
    }

    /// From now on what can be sent when it runs is.
    fn put_off(&mut self) {}

    /// Paths of files that it writes to by its memory, now.
    fn mapped_files(&mut self) -> HashSet<Bytes> {
        HashSet::new()
    }

    /// Stops it, and reads all that is left. On failure it runs on.
    fn freeze(&mut self) -> Result<Final, Failure>;

    /// Gives up what the destination takes while it rebuilds the target, and what only one of the two can have. Called in
    /// the pause, before the destination has the model; [`Target::resume`] takes it back.
    ///
    /// # Errors
    /// It cannot be given up: the target goes on here.
    fn make_way(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Where contents of the frozen target are read, by any thread.
    fn frozen_pages(&self) -> Box<dyn ReadPages + '_>;

    /// Where pages of the frozen target that are sent later are read: for as long as it is frozen, by the names of its model.
    ///
    /// # Errors
    /// No descriptors are left.
    fn later_pages(&self) -> Result<Box<dyn ReadPages + std::marker::Send>, Failure> {
        Ok(Box::new(postcopy::serving::NoPages))
    }

    /// Who has the address spaces of these pages, by the numbers of the model.
    fn owners(&self) -> Vec<Pid> {
        Vec::new()
    }

    /// When the first of its tasks was stopped, once it is frozen.
    fn frozen_since(&self) -> Option<Instant>;

    /// Who it is, frozen: for the journal, so that a later program can let it go or end it.
    fn held(&self) -> Result<Held, Failure>;

    /// The pause is near: from here on another process can settle this attempt, by its journal, if this program dies.
    fn guard(&mut self, attempt: AttemptId) {
        let _ = attempt;
    }

    /// The target goes on here, and a destination that may hold a prepared copy could not be told. Whether another process tells it
    /// as soon as it can be reached.
    fn leave_untold(&mut self) -> bool {
        false
    }

    /// Sees to it that it stays stopped even if this program dies.
    fn hold(&mut self) -> Result<(), Failure>;

    /// What the network has brought for it since it was stopped, packed: the destination gives it to the target when it runs.
    /// Called once, after [`Target::hold`]. [`Target::resume`] gives it to the target here all the same.
    fn segments_ahead(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Sends on what the network still brings here: for a moment before [`Target::end`], and after it (`to_the_end`) until the
    /// neighbours know the target's new place.
    ///
    /// # Errors
    /// Those of `send`: what comes here from then on is lost.
    fn forward_segments(&mut self, _to_the_end: bool, _send: &mut SendSegments<'_>) -> Result<(), MoveError> {
        Ok(())
    }

    /// Lets it go on as if nothing had been (also after [`Target::hold`]); stops tracking.
    fn resume(&mut self) -> Result<(), Failure>;

    /// Ends it: it runs elsewhere.
    fn end(&mut self) -> Result<(), Failure>;
}

/// What is wanted of a move.
#[derive(Debug, Clone)]
pub struct Wishes<'a> {
    /// The session's id, as a person sees it.
    pub session: String,
    /// When to pause.
    pub goals: Goals,
    /// No rounds.
    pub stop_and_copy: bool,
    /// Pages follow when it runs ([`postcopy`]), whatever the rounds come to.
    pub follows: bool,
    /// Pages may follow when it runs ([`postcopy`]).
    pub may_follow: bool,
    /// Preflight only.
    pub dry_run: bool,
    /// zstd level; `None` = as the link's speed suggests.
    pub compression: Compression,
    /// Bytes a second in rounds; `None` = unlimited. The pause is never throttled.
    pub bandwidth: Option<u64>,
    /// What is to be done about files.
    pub files: Wish,
    /// Directory of an image at the destination whose pages need not travel.
    pub base: Option<Bytes>,
    /// Choices for the destination, as JSON.
    pub state: serde_json::Value,
    /// Directory of journals.
    pub journals: &'a Path,
    /// A new link to the destination, when the old one is lost in the moment of handing over.
    pub again: Option<Again<'a>>,
    /// What is done about a destination that stays silent then.
    pub fence: Option<Fence<'a>>,
    /// So often a state of the target comes back while it lacks pages ([`super::points`]).
    pub recoverable: Option<Duration>,
    /// What the destination waits for a source that says nothing.
    pub lease: Duration,
}

/// How pages are packed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As the link's speed suggests.
    Auto,
    /// Not at all.
    Off,
    /// zstd of this level.
    Level(i32),
}

/// One attempt, from the source's side.
struct Attempt<'a> {
    id: AttemptId,
    link: Link,
    wishes: &'a Wishes<'a>,
    events: &'a dyn Events,
    rounds: Vec<RoundStats>,
    /// What has been done to make the rounds converge.
    effort: Effort,
    /// What deltas are made against.
    bases: Bases,
    /// What the destination keeps to be named by digest.
    catalogue: Catalogue,
    /// That also while pages follow.
    names_late: bool,
    report: Report,
    /// What the destination could still store when it last said so.
    room_bytes: u64,
    /// The next round.
    number: u32,
    journal: Journal,
    /// Not after the model of the survey was read.
    surveyed: Instant,
    /// How long the target stood still for that.
    look: Duration,
    /// The least time that an answer has taken.
    round_trip: Option<Duration>,
    /// The destination has been told to make the tree ahead of time.
    built: bool,
    /// The destination may have a prepared copy, which waits until it is told something.
    prepare_sent: bool,
    /// The link that the target went over is lost.
    lost: bool,
    /// Who owns the target.
    machine: Source,
    /// It was to go on here, and could not be let go.
    not_resumed: Option<Failure>,
    /// Pages that the target lacks over there are sent by this.
    serving: Option<Serving>,
    /// States of it come back by this.
    taking: Option<Taking>,
    /// Files that go along.
    luggage: Luggage,
}

/// The one destination there is.
const ONE: Candidate = Candidate(0);

/// Between two looks for a lost destination: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Moves the target over the link. Whatever fails before the destination runs it: it goes on here.
///
/// # Errors
/// [`MoveError::InDoubt`] says that the target is held and that the destination may have it; any other error, that it
/// runs on here.
pub fn run(link: Link, target: &mut dyn Target, wishes: &Wishes<'_>, events: &dyn Events) -> Result<Report, MoveError> {
    let id = AttemptId::random()?;
    // Begun long before the pause: making a file costs a wait for the disk.
    let mut journal = Journal::begin(wishes.journals, Role::Source, id, link.control.peer(), None)
        .map_err(|source| MoveError::Journal { source })?;
    journal.set_session(&wishes.session);
    let mut attempt = Attempt {
        id,
        link,
        wishes,
        events,
        rounds: Vec::new(),
        effort: Effort::default(),
        bases: Bases::default(),
        catalogue: Catalogue::new(0, 1),
        names_late: false,
        report: Report::begin(),
        room_bytes: u64::MAX,
        number: 1,
        journal,
        surveyed: Instant::now(),
        look: Duration::ZERO,
        round_trip: None,
        built: false,
        prepare_sent: false,
        lost: false,
        machine: Source::new(id, 1, Rules::in_force()),
        not_resumed: None,
        serving: None,
        taking: None,
        luggage: Luggage::default(),
    };
    match attempt.whole(target) {
        Ok(()) => {
            attempt.report.bytes_sent = attempt.link.bytes_sent();
            Ok(attempt.report)
        }
        Err(error @ MoveError::InDoubt { .. }) => Err(error),
        Err(error) => Err(attempt.roll_back(target, error)),
    }
}

impl Attempt<'_> {
    fn whole(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        self.offer(target)?;
        if self.wishes.dry_run {
            let foreseen = self.foresee(target).map(|forecast| self.report.forecast = Some(forecast));
            self.happened(target, Happened::Failed);
            return match self.not_resumed.take() {
                Some(failure) => Err(failure.into()),
                None => foreseen,
            };
        }
        let exit = self.rounds(target)?;
        self.report.exit = Some(exit);
        self.switch_over(target)
    }

    /// Both sides' preflight, before anything but a short look has happened to the target.
    fn offer(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        self.surveyed = Instant::now();
        let survey = target.survey()?;
        let is_single = survey.is_single;
        self.look = survey.look;
        self.link.control.during("the preflight");
        let offer = FromSource::Offer {
            attempt: self.id,
            session: self.wishes.session.clone(),
            target: survey.summary.clone(),
            state: self.wishes.state.clone(),
            dry_run: self.wishes.dry_run,
            model_bytes: survey.model.len() as u64,
            follows: self.wishes.follows,
            may_follow: self.wishes.may_follow,
            recoverable: self.wishes.recoverable.is_some(),
            files: Some(self.wishes.files.clone()),
            base: self.wishes.base.clone(),
            lease_ms: u64::try_from(self.wishes.lease.as_millis()).ok(),
            conventions: Box::new(survey.conventions),
        };
        protocol::send(&mut self.link.control, &offer)?;
        protocol::send_model(&mut self.link.control, &survey.model)?;
        let mut blockers = survey.blockers;
        blockers.extend(self.verdict(survey.files)?);
        self.events.event(Event::Preflight {
            blockers: blockers.clone(),
            tasks: survey.summary.tasks,
            memory_bytes: survey.summary.memory_bytes,
        });
        self.journal.set_target(survey.summary.pid);
        self.report.target = Some(survey.summary);
        if !blockers.is_empty() {
            return Err(MoveError::Blocked(blockers));
        }
        if !self.wishes.dry_run {
            self.ship(target)?;
        }
        // Without rounds nobody would say which processes share pages.
        if self.wishes.stop_and_copy && !self.wishes.dry_run && is_single { self.build(&[]) } else { Ok(()) }
    }

    /// The destination makes the tree ahead of time.
    fn build(&mut self, spaces: &[SpaceName]) -> Result<(), MoveError> {
        self.built = true;
        self.link.control.during("the destination makes the tree of the target");
        let age_us = self.surveyed.elapsed().as_nanos().div_ceil(1000);
        let age_us = u64::try_from(age_us).unwrap_or(u64::MAX);
        let build = FromSource::Build { attempt: self.id, age_us, spaces: spaces.to_vec() };
        protocol::send(&mut self.link.control, &build)?;
        match self.receive()? {
            FromDestination::Built { .. } => Ok(()),
            other => Err(self.unexpected(&other, "the word that the tree is made")),
        }
    }

    /// The pause.
    fn switch_over(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        target.guard(self.id);
        let mut pause = Pause::begin();
        let last = target.freeze()?;
        pause.frozen(target.frozen_since());
        self.events.event(Event::Frozen);
        target.make_way()?;
        if self.ship_last(&last.files)? {
            pause.part("files");
        }
        self.prepare(&last)?;
        if last.later.is_empty() {
            return self.hand_over(target, &last, pause);
        }
        let kept = self.kept(&target.owners(), &last.later)?;
        self.with_pages(target.later_pages()?, kept, |attempt| attempt.hand_over(target, &last, pause))
    }

    /// The last pages, and the target with them.
    fn hand_over(&mut self, target: &mut dyn Target, last: &Final, mut pause: Pause) -> Result<(), MoveError> {
        let journey = self.round(&last.plan, &*target.frozen_pages(), true)?;
        self.note_round(journey.sent.pages, &journey.stats(), None);
        pause.part("residual");
        self.prepared()?;
        pause.part("rebuild");
        self.commit(target, pause)
    }

    /// The destination is told what the target is now.
    fn prepare(&mut self, last: &Final) -> Result<(), MoveError> {
        self.link.control.during("the destination rebuilds the target");
        let (spaces, later) = (last.spaces.clone(), postcopy::encode(&last.later));
        let (model_bytes, late_bytes) = (last.model.len() as u64, later.len() as u64);
        let prepare = FromSource::Prepare { attempt: self.id, spaces, model_bytes, late_bytes };
        protocol::send(&mut self.link.control, &prepare)?;
        protocol::send_model(&mut self.link.control, &last.model)?;
        protocol::send_model(&mut self.link.control, &later)?;
        self.prepare_sent = true;
        Ok(())
    }

    /// The destination has rebuilt the target and stopped short of running it.
    fn prepared(&mut self) -> Result<(), MoveError> {
        self.link.control.during("the destination rebuilds the target");
        match self.receive()? {
            FromDestination::Prepared { took_us, .. } => {
                self.report.rebuild = Some(Duration::from_micros(took_us));
                Ok(())
            }
            other => Err(self.unexpected(&other, "the rebuilt target")),
        }
    }

    /// From the moment COMMIT may have left this host, only the destination knows who owns the target.
    fn commit(&mut self, target: &mut dyn Target, pause: Pause) -> Result<(), MoveError> {
        fault::strike(Point::SourceReady);
        self.link.control.during("handing the target over");
        // Who wants this to end now is told how it ended: a wait for the peer ends with its silence.
        let interrupted = self.link.control.patience().abort.clone();
        if interrupted.is_triggered() {
            return Err(TransportError::Aborted { during: "handing the target over" }.into());
        }
        self.link.control.abort_with(Abort::new().map_err(|source| MoveError::Journal { source })?);
        let mut trouble = self.happened(target, Happened::Said(ONE, self.id, Reply::Prepared));
        let mut pause = Some(pause);
        while self.machine.phase() == Phase::Committed(ONE) {
            let said = self.receive();
            let event = match said {
                Ok(FromDestination::Running { pid: theirs, .. }) => {
                    fault::strike(Point::SourceMoved);
                    self.switched(theirs, pause.take());
                    if let Err(error) = self.drained(&interrupted) {
                        return Err(self.in_doubt(error));
                    }
                    Happened::Said(ONE, self.id, Reply::Running)
                }
                Ok(FromDestination::Says { reply: Some(reply), .. }) => Happened::Said(ONE, self.id, reply),
                // Said after COMMIT was read: it durably does not run there.
                Err(error @ (MoveError::Destination(_) | MoveError::Blocked(_))) => {
                    trouble = Some(error);
                    Happened::Said(ONE, self.id, Reply::Aborted)
                }
                Ok(other) => {
                    trouble = Some(self.unexpected(&other, "the word that the target runs"));
                    Happened::Silent(ONE)
                }
                Err(error) => {
                    trouble = Some(error);
                    Happened::Silent(ONE)
                }
            };
            let failed = self.happened(target, event);
            trouble = trouble.or(failed);
        }
        if let Phase::InDoubt(_) = self.machine.phase() {
            let pid = self.ask_until_known(target, &interrupted)?;
            self.switched(pid.unwrap_or_default(), pause.take().filter(|_| pid.is_some()));
        }
        match self.machine.phase() {
            // It runs there: what fails from here on is a warning, not a failure of the move.
            Phase::Moved(_) => Ok(()),
            Phase::InDoubt(_) => Err(self.in_doubt(trouble.unwrap_or(MoveError::Worker))),
            _ => Err(trouble.unwrap_or(MoveError::Stays { reason: "the destination has given it up".into() })),
        }
    }

    /// The pause is over.
    fn switched(&mut self, pid: i32, pause: Option<Pause>) {
        let Some(mut pause) = pause else { return };
        pause.part("handover");
        self.report.switched(pid, pause);
        let downtime = self.report.downtime.unwrap_or_default();
        self.events.event(Event::Switched { downtime });
    }

    /// Looks for a link, and asks who owns the target: until that is known, or somebody wants this to end.
    fn ask_until_known(&mut self, target: &mut dyn Target, interrupted: &Abort) -> Result<Option<i32>, MoveError> {
        let Some(again) = self.wishes.again else { return Ok(None) };
        let (mut pause, mut pid) = (LOOK_AGAIN.0, None);
        self.events.event(Event::Warning(format!(
            "in doubt: the target is held here while {} is asked whether it runs there",
            self.link.control.peer()
        )));
        let mut silence = Silence::begin(self.wishes.fence);
        while let Phase::InDoubt(_) = self.machine.phase() {
            if interrupted.is_triggered() {
                break;
            }
            if silence.ends_by_fence() {
                self.events.event(Event::Warning(format!(
                    "the fencing command has switched {} off: the target goes on here",
                    self.link.control.peer()
                )));
                self.happened(target, Happened::Fenced(ONE));
                break;
            }
            if let Ok(link) = again.0() {
                self.link = link;
                self.link.control.during("asking who owns the target");
                self.happened(target, Happened::Connected(ONE));
                // Until nothing new is said: an answer may be followed by another COMMIT.
                while let Ok(FromDestination::Says { attempt, reply, pid: theirs, .. }) =
                    protocol::receive(&mut self.link.control)
                {
                    silence.is_broken();
                    let Some(reply) = reply else { break };
                    pid = theirs.or(pid);
                    if reply == Reply::Running
                        && let Err(error) = self.drained(interrupted)
                    {
                        return Err(self.in_doubt(error));
                    }
                    self.happened(target, Happened::Said(ONE, attempt, reply));
                    if self.machine.phase() != Phase::Committed(ONE) {
                        break;
                    }
                }
                if self.machine.phase() == Phase::Committed(ONE) {
                    self.happened(target, Happened::Silent(ONE));
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
        Ok(pid)
    }

    /// Performs what the machine decides; what kept it from being done.
    fn happened(&mut self, target: &mut dyn Target, event: Happened) -> Option<MoveError> {
        let mut trouble = None;
        let mut actions = self.machine.on(event);
        while !actions.is_empty() {
            let decides = matches!(actions.last(), Some(Action::Record(..)));
            let mut done = true;
            for action in std::mem::take(&mut actions) {
                if let Err(error) = self.perform(target, action) {
                    trouble.get_or_insert(error);
                    done = false;
                    if decides {
                        break;
                    }
                }
            }
            if decides {
                actions = self.machine.on(if done { Happened::Recorded } else { Happened::NotRecorded });
            }
        }
        trouble
    }

    fn perform(&mut self, target: &mut dyn Target, action: Action) -> Result<(), MoveError> {
        let attempt = self.id;
        match action {
            Action::Hold => {
                self.journal.set_held(target.held()?);
                self.note(Step::Begun, Sync::Later)?;
                target.hold()?;
                fault::strike(Point::SourceHeld);
            }
            Action::Record(record, sync) => {
                let step = Step::from(&record);
                if step == Step::Done {
                    self.journal.set_cost(self.report.downtime, self.link.bytes_sent());
                }
                self.note(step, sync)?;
                if step == Step::Committing {
                    fault::strike(Point::SourceCommitting);
                }
            }
            Action::Send(_, request) => {
                let message = match request {
                    Request::Commit => FromSource::Commit { attempt },
                    Request::Ask => FromSource::Ask { attempt },
                    Request::Done => FromSource::Done { attempt },
                    Request::Abort => {
                        self.link.control.deadline(Some(Duration::from_secs(1)));
                        FromSource::Abort { attempt, reason: "the target stays".into() }
                    }
                };
                // Unheard it is silence, which has an event of its own.
                let sent = self.send_segments(target, request);
                if let Err(error) = sent.and_then(|()| Ok(protocol::send(&mut self.link.control, &message)?)) {
                    tracing::debug!(%error, ?request, "the destination was not told");
                }
                if request == Request::Commit {
                    fault::strike(Point::SourceCommitted);
                }
            }
            Action::Release => {
                if let Err(failure) = target.resume() {
                    self.not_resumed = Some(failure);
                }
            }
            Action::End => {
                self.forward_first(target);
                self.end_original(target);
                fault::strike(Point::SourceEnded);
            }
            Action::Connect(_) => self.lost = true,
        }
        Ok(())
    }

    /// What the network has brought for the target goes before these words, on the link that the target went over.
    fn send_segments(&mut self, target: &mut dyn Target, request: Request) -> Result<(), MoveError> {
        if self.lost {
            return Ok(());
        }
        let control = &mut self.link.control;
        match request {
            Request::Commit => {
                target.segments_ahead().iter().try_for_each(|body| Ok(control.send(FrameKind::SEGMENTS, body)?))
            }
            Request::Done => target.forward_segments(true, &mut |body| Ok(control.send(FrameKind::SEGMENTS, body)?)),
            Request::Ask | Request::Abort => Ok(()),
        }
    }

    /// The target runs: what has come here since COMMIT is forwarded before its original is ended.
    fn forward_first(&mut self, target: &mut dyn Target) {
        let control = &mut self.link.control;
        let mut send = |body: &[u8]| Ok(control.send(FrameKind::SEGMENTS, body)?);
        if !self.lost
            && let Err(error) = target.forward_segments(false, &mut send)
        {
            tracing::debug!(%error, "packets were not forwarded");
        }
    }

    fn note(&mut self, step: Step, sync: Sync) -> Result<(), MoveError> {
        let written = match sync {
            Sync::Now => self.journal.write_synced(step),
            Sync::Later => self.journal.write(step),
        };
        if let (Err(error), Step::Done | Step::Aborted) = (&written, step) {
            let path = self.journal.path().display();
            self.report.warnings.push(format!("the journal {path} could not be written: {error}"));
        }
        written.map_err(|source| MoveError::Journal { source })
    }

    fn end_original(&mut self, target: &mut dyn Target) {
        if let Err(failure) = target.end() {
            self.report.warnings.push(format!("the frozen original could not be ended: {failure}"));
        }
    }

    /// The next message; a failure over there is an error here.
    fn receive(&mut self) -> Result<FromDestination, MoveError> {
        let message: FromDestination = protocol::receive(&mut self.link.control)?;
        let attempt = match &message {
            FromDestination::Verdict { attempt, .. }
            | FromDestination::Asks { attempt, .. }
            | FromDestination::FilesDone { attempt }
            | FromDestination::Built { attempt }
            | FromDestination::RoundDone { attempt, .. }
            | FromDestination::Prepared { attempt, .. }
            | FromDestination::Running { attempt, .. }
            | FromDestination::Says { attempt, .. }
            | FromDestination::Point { attempt, .. }
            | FromDestination::Failed { attempt, .. } => *attempt,
        };
        if attempt != self.id {
            return Err(MoveError::WrongAttempt { found: attempt, wanted: self.id });
        }
        match message {
            FromDestination::Failed { failure: WireFailure { blockers, .. }, .. } if !blockers.is_empty() => {
                Err(MoveError::Blocked(blockers.into_iter().map(Blocker::from).collect()))
            }
            FromDestination::Failed { failure, .. } => Err(MoveError::Destination(failure)),
            message => Ok(message),
        }
    }

    fn unexpected(&self, got: &FromDestination, expected: &'static str) -> MoveError {
        MoveError::OutOfTurn { peer: self.link.control.peer().into(), expected, got: format!("{got:?}") }
    }
}
