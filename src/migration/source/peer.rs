//! One destination, as the source speaks with it: what is said and heard, and what it has by now.

use super::luggage::Luggage;
use super::{Final, Survey, Wishes};
use crate::blocker::{Blocker, codes};
use crate::image::limits;
use crate::memory::{PageRange, Space};
use crate::migration::MoveError;
use crate::migration::bases::Bases;
use crate::migration::cascade::Onward;
use crate::migration::handover::Candidate;
use crate::migration::postcopy::{self, Later};
use crate::migration::protocol::{self, AttemptId, FromDestination, FromSource, SpaceName, WireFailure};
use crate::migration::shelf::Catalogue;
use crate::migration::standby::Standby;
use crate::ops::Events;
use crate::transport::Link;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

/// One destination.
pub(super) struct Peer<'a> {
    pub id: AttemptId,
    /// Which of several it is.
    candidate: Candidate,
    pub link: Link,
    pub wishes: &'a Wishes<'a>,
    pub events: &'a dyn Events,
    /// What deltas are made against.
    pub bases: Bases,
    /// What it keeps to be named by digest.
    pub catalogue: Catalogue,
    /// That also while pages follow.
    pub names_late: bool,
    /// What it could still store when it last said so.
    pub room_bytes: u64,
    /// The next round.
    pub number: u32,
    /// Not after the model of the survey was read.
    pub surveyed: Instant,
    /// The least time that an answer has taken.
    pub round_trip: Option<Duration>,
    /// It has been told to make the tree ahead of time.
    pub built: bool,
    /// It may have a prepared copy, which waits until it is told something.
    pub prepare_sent: bool,
    /// The link that the target went over is lost.
    pub lost: bool,
    /// Files that go along.
    pub luggage: Luggage,
}

impl<'a> Peer<'a> {
    /// One that has heard nothing yet.
    pub fn new(
        id: AttemptId,
        (candidate, link): (Candidate, Link),
        wishes: &'a Wishes<'a>,
        events: &'a dyn Events,
    ) -> Self {
        Self {
            id,
            candidate,
            link,
            wishes,
            events,
            bases: Bases::default(),
            catalogue: Catalogue::new(0, 1),
            names_late: false,
            room_bytes: u64::MAX,
            number: 1,
            surveyed: Instant::now(),
            round_trip: None,
            built: false,
            prepare_sent: false,
            lost: false,
            luggage: Luggage::default(),
        }
    }
}

impl Peer<'_> {
    /// Offers it the target; what stands in the way there.
    pub fn offer(&mut self, survey: &Survey) -> Result<Vec<Blocker>, MoveError> {
        self.link.control.during("the preflight");
        let told = |onward: &Onward| Box::new(onward.told_to(usize::from(self.candidate.0)));
        let (keep_warm, onward): (Vec<_>, Vec<_>) =
            self.wishes.onward.iter().map(told).partition(|onward| onward.keep_warm);
        let offer = FromSource::Offer {
            attempt: self.id,
            session: self.wishes.session.clone(),
            target: survey.summary.clone(),
            state: self.state(),
            dry_run: self.wishes.dry_run,
            model_bytes: survey.model.len() as u64,
            follows: self.wishes.follows,
            may_follow: self.wishes.may_follow,
            recoverable: self.wishes.recoverable.is_some(),
            // What files were when the image was made no file here can tell.
            files: (!self.wishes.from_image).then(|| self.wishes.files.clone()),
            base: self.wishes.base.clone(),
            lease_ms: u64::try_from(self.wishes.lease.as_millis()).ok(),
            to_several: self.wishes.states.len() > 1,
            conventions: Box::new(survey.conventions.clone()),
            is_clone: self.is_clone(),
            onward: onward.into_iter().next(),
            keep_warm: keep_warm.into_iter().next(),
            standby: self.standby().map(Box::new),
            common: self.wishes.common.as_ref().map(|account| account.id()),
        };
        protocol::send(&mut self.link.control, &offer)?;
        protocol::send_model(&mut self.link.control, &survey.model)?;
        self.verdict(survey.files.clone())
    }

    fn state(&self) -> serde_json::Value {
        self.wishes.states.get(usize::from(self.candidate.0)).cloned().unwrap_or_default()
    }

    /// It is to start a clone.
    pub fn is_clone(&self) -> bool {
        self.wishes.is_clone(self.candidate)
    }

    /// What it is to keep for our death.
    fn standby(&self) -> Option<Standby> {
        let wanted = self.wishes.standby.as_ref()?;
        let dests = wanted.dests.iter().enumerate();
        let others = dests.filter(|(n, _)| *n != usize::from(self.candidate.0)).map(|(_, name)| name.clone());
        let every_ms = u64::try_from(wanted.every.as_millis()).unwrap_or(u64::MAX);
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Some(Standby { every_ms, host, others: others.collect() })
    }

    /// It has not understood that it is to keep the newest state.
    pub fn stands_by_nothing(&self) -> Blocker {
        let theirs = &self.link.peer_program;
        Blocker::new(codes::PEER_VERSION, format!("migrate {theirs}")).because("it does not stand by (--standby)")
    }

    /// It has not understood that the target is to go on from there.
    pub fn passes_nothing_on(&self) -> Blocker {
        let theirs = &self.link.peer_program;
        Blocker::new(codes::PEER_VERSION, format!("migrate {theirs}")).because("it does not move a target on (--then)")
    }

    /// It makes the tree ahead of time.
    pub fn build(&mut self, spaces: &[SpaceName]) -> Result<(), MoveError> {
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

    /// A round begins: its pages are on their way, or will be. `state`: they go into a state alone.
    pub fn begin_round(&mut self, state: bool) -> Result<u32, MoveError> {
        let number = self.number;
        self.number += 1;
        self.link.control.during("sending pages");
        protocol::send(&mut self.link.control, &FromSource::Round { attempt: self.id, number, state })?;
        Ok(number)
    }

    /// The round of a state is stored: it keeps that, with this model. Why it does not, if so.
    pub fn keep(&mut self, last: &Final, taken: Instant) -> Result<Option<String>, MoveError> {
        self.link.control.during("the destination stores a state of the target");
        let age_us = u64::try_from(taken.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (spaces, model_bytes) = (last.spaces.clone(), last.model.len() as u64);
        protocol::send(&mut self.link.control, &FromSource::Keep { attempt: self.id, age_us, spaces, model_bytes })?;
        protocol::send_model(&mut self.link.control, &last.model)?;
        match self.receive()? {
            FromDestination::Kept { trouble, .. } => Ok(trouble),
            other => Err(self.unexpected(&other, "the word that a state is kept")),
        }
    }

    /// All pages of a round are sent; waits until they are stored unless it is the last. Those that are to be sent again.
    pub fn end_round(&mut self, number: u32, in_pause: bool) -> Result<Vec<(Space, PageRange)>, MoveError> {
        protocol::send(&mut self.link.control, &FromSource::RoundEnd { attempt: self.id, number })?;
        if in_pause {
            return Ok(Vec::new());
        }
        let asked = Instant::now();
        match self.receive()? {
            FromDestination::RoundDone { number: done, room_bytes, lacking, .. } if done == number => {
                self.room_bytes = room_bytes;
                let answer = asked.elapsed();
                self.round_trip = Some(self.round_trip.map_or(answer, |least| least.min(answer)));
                self.catalogue.stored();
                // Of what else it names nothing was sent.
                let is_page =
                    |first, count| first < limits::PAGE_NUMBERS && (1..=limits::PAGE_NUMBERS - first).contains(&count);
                let lacking = lacking.into_iter().filter(|(_, first, count)| is_page(*first, *count));
                Ok(lacking.map(|(space, first, count)| (space.into(), PageRange::new(first, count))).collect())
            }
            other => Err(self.unexpected(&other, "the end of the round")),
        }
    }

    /// It is told what the target is now, and which pages it will lack when that runs.
    pub fn prepare(&mut self, last: &Final, later: &Later) -> Result<(), MoveError> {
        self.link.control.during("the destination rebuilds the target");
        let (spaces, later) = (last.spaces.clone(), postcopy::encode(later));
        let (model_bytes, late_bytes) = (last.model.len() as u64, later.len() as u64);
        let prepare = FromSource::Prepare { attempt: self.id, spaces, model_bytes, late_bytes };
        protocol::send(&mut self.link.control, &prepare)?;
        protocol::send_model(&mut self.link.control, &last.model)?;
        protocol::send_model(&mut self.link.control, &later)?;
        self.prepare_sent = true;
        Ok(())
    }

    /// It has rebuilt the target and stopped short of running it; how long it took.
    pub fn prepared(&mut self) -> Result<Duration, MoveError> {
        self.link.control.during("the destination rebuilds the target");
        match self.receive()? {
            FromDestination::Prepared { took_us, .. } => Ok(Duration::from_micros(took_us)),
            other => Err(self.unexpected(&other, "the rebuilt target")),
        }
    }

    /// The next message; a failure over there is an error here.
    pub fn receive(&mut self) -> Result<FromDestination, MoveError> {
        let message: FromDestination = protocol::receive(&mut self.link.control)?;
        let attempt = match &message {
            FromDestination::Verdict { attempt, .. }
            | FromDestination::Asks { attempt, .. }
            | FromDestination::FilesDone { attempt }
            | FromDestination::Built { attempt }
            | FromDestination::RoundDone { attempt, .. }
            | FromDestination::Kept { attempt, .. }
            | FromDestination::Prepared { attempt, .. }
            | FromDestination::Running { attempt, .. }
            | FromDestination::Says { attempt, .. }
            | FromDestination::Point { attempt, .. }
            | FromDestination::Reaches { attempt, .. }
            | FromDestination::Forgotten { attempt }
            | FromDestination::Stage { attempt, .. }
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

    /// A link that was cut by the destination: it may have said why.
    pub fn explain(&mut self, error: MoveError) -> MoveError {
        if !error.is_link_lost() {
            return error;
        }
        self.link.control.deadline(Some(Duration::from_millis(500)));
        match self.receive() {
            Err(said @ (MoveError::Destination(_) | MoveError::Blocked(_))) => said,
            _ => error,
        }
    }

    pub fn unexpected(&self, got: &FromDestination, expected: &'static str) -> MoveError {
        MoveError::OutOfTurn { peer: self.link.control.peer().into(), expected, got: format!("{got:?}") }
    }
}

/// The destinations whose links are in this thread's hands; reads as the one that is spoken to. With one destination that
/// is always here; of several, others are with the threads that send to them.
pub(super) struct Peers<'a> {
    all: Vec<Option<Peer<'a>>>,
    spoken: Candidate,
}

impl<'a> Peers<'a> {
    /// All of them, those that are here; the first is spoken to.
    pub fn of(all: Vec<Option<Peer<'a>>>) -> Self {
        Self { all, spoken: Candidate(0) }
    }

    /// How many there are, wherever they are.
    pub fn count(&self) -> u8 {
        u8::try_from(self.all.len()).unwrap_or(u8::MAX)
    }

    /// Who is spoken to.
    pub fn spoken(&self) -> Candidate {
        self.spoken
    }

    /// From here on this one is spoken to. It has to be here.
    pub fn speak_to(&mut self, candidate: Candidate) {
        self.spoken = candidate;
    }

    /// One that is here.
    pub fn get(&mut self, candidate: Candidate) -> Option<&mut Peer<'a>> {
        self.all.get_mut(usize::from(candidate.0))?.as_mut()
    }

    /// Takes it away.
    pub fn take(&mut self, candidate: Candidate) -> Option<Peer<'a>> {
        self.all.get_mut(usize::from(candidate.0))?.take()
    }

    /// It is here again.
    pub fn put(&mut self, candidate: Candidate, peer: Peer<'a>) {
        if let Some(place) = self.all.get_mut(usize::from(candidate.0)) {
            *place = Some(peer);
        }
    }
}

impl<'a> Deref for Peers<'a> {
    type Target = Peer<'a>;

    fn deref(&self) -> &Peer<'a> {
        self.all[usize::from(self.spoken.0)].as_ref().expect("who is spoken to is here")
    }
}

impl<'a> DerefMut for Peers<'a> {
    fn deref_mut(&mut self) -> &mut Peer<'a> {
        self.all[usize::from(self.spoken.0)].as_mut().expect("who is spoken to is here")
    }
}
