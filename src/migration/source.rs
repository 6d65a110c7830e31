//! The side that has the target: offer, rounds, switch-over. Mirror of [`super::destination`]. With several destinations [`fan`] is in the
//! place of `rounds`; `peer` is one of them, [`again`] how it is found when its link is lost, `late` memory that follows,
//! `foresee` what a move would cost.

use super::MoveError;
use super::cascade::{Observer, Onward};
use super::common_pages::desk::Account;
use super::effort::Effort;
use super::handover::source::{Event as Happened, Source};
use super::handover::{Candidate, Rules};
use super::journal::{Journal, Role, Step};
use super::points::taking::Taking;
use super::postcopy::{self, serving::Serving};
use super::protocol::AttemptId;
use super::report::{Pause, Report};
use super::switchover::{Decision, ExitCondition, Goals, RoundStats, Step as Help};
use super::warm::Warm;
use crate::blocker::Blocker;
use crate::companion::held::Held;
use crate::failure::Failure;
use crate::files::Wish;
use crate::image::{Bytes, Pid};
use crate::memory::pipeline::ReadPages;
use crate::memory::{RangeSet, Space};
use crate::ops::{Event, Events};
use crate::transport::{Abort, Link, TransportError};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub mod again;
pub mod fan;
mod foresee;
mod handover;
mod late;
mod luggage;
mod peer;
mod plan;
mod rounds;

pub use again::{Again, Fence};
pub use plan::{Final, Plan, Still, Survey, Taken};

use again::Silence;
use fan::Fan;
use late::Following;
use peer::{Peer, Peers};

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

    /// Stops it for a moment, and reads all that rounds have not, as [`Target::freeze`] does; then it goes on, and rounds too, as if
    /// nothing had been.
    ///
    /// # Errors
    /// It cannot be read, or too much of it is left. It runs on.
    fn still(&mut self) -> Result<Still, Failure> {
        Err(Failure::new("states of it cannot be taken"))
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

    /// Of these pages, by the name that rounds have for the space, those that can be sent when it runs, once it is frozen; none
    /// where memory does not follow.
    fn can_follow(&self, _space: Space, _pages: &RangeSet) -> RangeSet {
        RangeSet::new()
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
    /// The target, as a person has named it.
    pub asked_for: String,
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
    /// Choices for the destination, as JSON; of several each has its own.
    pub states: Vec<serde_json::Value>,
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
    /// Of several destinations, how many the exit condition has to hold for.
    pub quorum: Quorum,
    /// What is the same for several destinations leaves this host so many times at most; `None` = once for each.
    pub uplink_copies: Option<u64>,
    /// Rounds go on without end, until this says that the target is to move.
    pub warm: Option<&'a Warm>,
    /// Each destination starts a clone, and this becomes of the original ([`fan`] only).
    pub clones: Option<Original>,
    /// Where the target is to go on from its destination.
    pub onward: Option<Onward>,
    /// The target comes from an image: nothing of it runs here, or stands still meanwhile.
    pub from_image: bool,
    /// Of a warm-up: destinations keep states of the target for our death ([`super::standby`]).
    pub standby: Option<StandBy>,
    /// Other trees that go to the same destination share pages with this one ([`super::common_pages`]).
    pub common: Option<Arc<Account>>,
}

/// States that destinations keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandBy {
    /// How often one is taken.
    pub every: Duration,
    /// The destinations, as a person has named them, by their numbers.
    pub dests: Vec<String>,
}

/// What becomes of a target that clones are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Original {
    /// It goes on as soon as everything that it is has been read.
    RunsOn,
    /// It ends once a clone runs.
    Ends,
    /// It goes to this destination by the handover of a move, with what only one can have, and the others start clones beside it.
    Moves(Candidate),
}

impl Wishes<'_> {
    /// Whether this destination is to start a clone.
    pub(super) fn is_clone(&self, who: Candidate) -> bool {
        self.clones.is_some_and(|original| original != Original::Moves(who))
    }
}

/// How many of several destinations have to be as far as the exit condition asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quorum {
    /// So many.
    Number(u8),
    /// This share of them, rounded up.
    Percent(u8),
}

impl Default for Quorum {
    fn default() -> Self {
        Self::Number(1)
    }
}

impl Quorum {
    /// As a number, of so many destinations.
    pub fn of(self, all: usize) -> usize {
        match self {
            Self::Number(number) => usize::from(number).clamp(1, all.max(1)),
            Self::Percent(percent) => (all * usize::from(percent.min(100))).div_ceil(100).max(1),
        }
    }
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
    /// The destinations, as far as their links are in this thread's hands.
    peers: Peers<'a>,
    wishes: &'a Wishes<'a>,
    events: &'a dyn Events,
    rounds: Vec<RoundStats>,
    /// What has been done to make the rounds converge.
    effort: Effort,
    report: Report,
    journal: Journal,
    /// How long the target stood still for the survey.
    look: Duration,
    /// The least time that an answer has taken.
    round_trip: Option<Duration>,
    /// Who owns the target.
    machine: Source,
    /// It was to go on here, and could not be let go.
    not_resumed: Option<Failure>,
    /// It is held by something that outlives this program.
    is_held: bool,
    /// What the network has brought for it until then.
    ahead: Option<Vec<Vec<u8>>>,
    /// Several destinations: the threads that send to them.
    fan: Option<Fan<'a>>,
    /// Pages follow when the target runs.
    following: Option<Following>,
    /// Pages that the target lacks over there are sent by this.
    serving: Option<Serving>,
    /// States of it come back by this.
    taking: Option<Taking>,
}

/// Moves the target over the link. Whatever fails before the destination runs it: it goes on here.
///
/// # Errors
/// [`MoveError::InDoubt`] says that the target is held and that the destination may have it; any other error, that it
/// runs on here.
pub fn run(link: Link, target: &mut dyn Target, wishes: &Wishes<'_>, events: &dyn Events) -> Result<Report, MoveError> {
    let id = AttemptId::random()?;
    let journal = journal(id, wishes, &[link.control.peer()])?;
    let peer = Peer::new(id, (Candidate(0), link), wishes, events);
    let mut attempt = Attempt::new(id, Peers::of(vec![Some(peer)]), wishes, events, journal);
    match attempt.whole(target) {
        Ok(()) => {
            attempt.report.bytes_sent = attempt.peers.link.bytes_sent();
            attempt.report.observer = attempt.part();
            Ok(attempt.report)
        }
        Err(error @ MoveError::InDoubt { .. }) => Err(error),
        Err(error) => Err(attempt.roll_back(target, error)),
    }
}

/// Begun long before the pause: making a file costs a wait for the disk.
fn journal(id: AttemptId, wishes: &Wishes<'_>, peers: &[&str]) -> Result<Journal, MoveError> {
    let first = peers.first().copied().unwrap_or_default();
    let mut journal = Journal::begin(wishes.journals, Role::Source, id, first, &wishes.session)
        .map_err(|source| MoveError::Journal { source })?;
    journal.set_asked_for(&wishes.asked_for);
    if wishes.from_image {
        journal.set_from_image();
    }
    if peers.len() > 1 {
        // Whoever takes over has to know all of them from the first line on.
        journal.set_candidates(peers);
        journal.write(Step::Begun).map_err(|source| MoveError::Journal { source })?;
    }
    Ok(journal)
}

impl<'a> Attempt<'a> {
    fn new(id: AttemptId, peers: Peers<'a>, wishes: &'a Wishes<'a>, events: &'a dyn Events, journal: Journal) -> Self {
        let machine = Source::new(id, peers.count(), Rules::in_force());
        Self {
            id,
            peers,
            wishes,
            events,
            rounds: Vec::new(),
            effort: Effort::default(),
            report: Report::begin(),
            look: Duration::ZERO,
            round_trip: None,
            journal,
            machine,
            not_resumed: None,
            is_held: false,
            ahead: None,
            fan: None,
            following: None,
            serving: None,
            taking: None,
        }
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

    /// The link that the target went over, where it goes on from there: what is left to be done here is done.
    fn part(&mut self) -> Option<Observer> {
        self.wishes.onward.as_ref()?;
        let owner = self.owner()?;
        let peer = self.peers.take(owner).filter(|peer| !peer.lost)?;
        Some(Observer::new(peer.link, self.id))
    }

    /// Both sides' preflight, before anything but a short look has happened to the target.
    fn offer(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        self.peers.surveyed = Instant::now();
        let survey = target.survey()?;
        self.look = survey.look;
        let mut blockers = survey.blockers.clone();
        blockers.extend(self.peers.offer(&survey)?);
        self.surveyed(&survey, &blockers);
        if !blockers.is_empty() {
            return Err(MoveError::Blocked(blockers));
        }
        if !self.wishes.dry_run {
            self.peers.ship(|| target.mapped_files())?;
        }
        // Without rounds nobody would say which processes share pages.
        let ahead = self.wishes.stop_and_copy && !self.wishes.dry_run && survey.is_single;
        if ahead { self.peers.build(&[]) } else { Ok(()) }
    }

    fn surveyed(&mut self, survey: &Survey, blockers: &[Blocker]) {
        let summary = &survey.summary;
        self.events.event(Event::Preflight {
            blockers: blockers.to_vec(),
            tasks: summary.tasks,
            memory_bytes: summary.memory_bytes,
        });
        self.journal.set_target(summary.pid);
        self.report.target = Some(summary.clone());
    }

    /// The pause.
    fn switch_over(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        target.guard(self.id);
        let mut pause = Pause::begin();
        let last = target.freeze()?;
        pause.frozen(target.frozen_since());
        self.events.event(Event::Frozen);
        target.make_way()?;
        if self.peers.ship_last(&last.files)? {
            pause.part("files");
        }
        self.peers.prepare(&last, &last.later)?;
        if last.later.is_empty() {
            return self.hand_over(target, &last, pause);
        }
        self.with_pages(target.later_pages()?, target.owners(), |attempt| {
            attempt.serve(attempt.peers.spoken(), &last.later)?;
            attempt.hand_over(target, &last, pause)
        })
    }

    /// The last pages, and the target with them.
    fn hand_over(&mut self, target: &mut dyn Target, last: &Final, mut pause: Pause) -> Result<(), MoveError> {
        let journey = self.round(&last.plan, &*target.frozen_pages(), true)?;
        self.note_round(journey.sent.pages, &journey.stats(), None);
        pause.part("residual");
        self.report.rebuild = Some(self.peers.prepared()?);
        self.peers.catalogue.stored();
        pause.part("rebuild");
        // Who wants this to end now is told how it ended: a wait for the peer ends with its silence.
        let interrupted = self.peers.link.control.patience().abort.clone();
        if interrupted.is_triggered() {
            return Err(TransportError::Aborted { during: "handing the target over" }.into());
        }
        self.peers.link.control.abort_with(Abort::new().map_err(|source| MoveError::Journal { source })?);
        self.commit(target, pause, &interrupted)
    }
}
