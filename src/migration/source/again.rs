//! A destination whose link is lost: how it is found again, and what is done about one that stays silent.

use super::{Attempt, MoveError, Target};
use crate::migration::handover::source::Event as Happened;
use crate::migration::handover::{Candidate, Reply};
use crate::migration::protocol::{self, FromDestination, FromSource};
use crate::ops::Event;
use crate::transport::{Abort, Link};
use std::time::{Duration, Instant};

/// Connects to a destination; what ends that before its time, where it is not what ends everything.
pub type Connect<'a> = dyn Fn(Candidate, Option<&Abort>) -> crate::transport::Result<Link> + std::marker::Sync + 'a;

/// How to find a link to a destination again.
#[derive(Clone, Copy)]
pub struct Again<'a> {
    connect: &'a Connect<'a>,
    to: Candidate,
}

impl<'a> Again<'a> {
    /// To the first destination, which is the only one in most moves.
    pub fn new(connect: &'a Connect<'a>) -> Self {
        Self { connect, to: Candidate(0) }
    }

    /// The same to another one.
    pub fn to(self, to: Candidate) -> Self {
        Self { to, ..self }
    }

    /// A link.
    ///
    /// # Errors
    /// It cannot be reached just now.
    pub fn link(self) -> crate::transport::Result<Link> {
        (self.connect)(self.to, None)
    }

    /// The same, until nobody wants it any more.
    ///
    /// # Errors
    /// As [`Again::link`].
    pub fn link_until(self, abort: &Abort) -> crate::transport::Result<Link> {
        (self.connect)(self.to, Some(abort))
    }
}

/// Switches the destination's host off.
#[derive(Clone, Copy)]
pub struct Fence<'a> {
    /// Whether the host of this one is off now.
    pub command: &'a (dyn Fn(Candidate) -> bool + std::marker::Sync + 'a),
    /// After a silence of this length; and again, as often as it passes, until it is off.
    pub after: Duration,
}

impl std::fmt::Debug for Fence<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fence after {:?}", self.after)
    }
}

/// Whether a silent host is off.
#[derive(Debug)]
pub(in crate::migration) struct Silence<'a> {
    fence: Option<Fence<'a>>,
    who: Candidate,
    since: Instant,
}

impl<'a> Silence<'a> {
    /// Of this destination; begins now.
    pub(in crate::migration) fn begin(fence: Option<Fence<'a>>, who: Candidate) -> Self {
        Self { fence, who, since: Instant::now() }
    }

    /// It is this one's.
    pub(in crate::migration) fn is_of(&mut self, who: Candidate) {
        self.who = who;
    }

    /// Something was heard.
    pub(in crate::migration) fn is_broken(&mut self) {
        self.since = Instant::now();
    }

    /// Has it switched off, if the silence is long enough; whether it is off.
    pub(in crate::migration) fn ends_by_fence(&mut self) -> bool {
        let Some(fence) = self.fence.filter(|fence| self.since.elapsed() >= fence.after) else { return false };
        let off = (fence.command)(self.who);
        self.since = Instant::now();
        off
    }
}

impl std::fmt::Debug for Again<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Again")
    }
}

impl Attempt<'_> {
    /// Once more, over a new link: the target runs here already.
    pub(super) fn tell_that_it_stays(&mut self, target: &mut dyn Target) {
        let link = self.wishes.again.map(|again| again.link());
        let told = link.is_some_and(|link| {
            let Ok(link) = link else { return false };
            self.peers.link = link;
            self.peers.link.control.deadline(Some(Duration::from_secs(5)));
            let abort = FromSource::Abort { attempt: self.id, reason: "the link was lost".into(), keep: false };
            let said = protocol::send(&mut self.peers.link.control, &abort)
                .and_then(|()| protocol::receive(&mut self.peers.link.control));
            matches!(said, Ok(FromDestination::Says { reply: Some(Reply::Aborted), .. }))
        });
        if !told {
            let peer = self.peers.link.control.peer();
            let ends = match target.leave_untold() {
                true => "it is told as soon as it can be reached".to_owned(),
                false => format!("migrate resolve {} --discard ends it", self.wishes.session),
            };
            let what = format!("{peer} may hold a prepared copy of the target, which waits there: {ends}");
            self.events.event(Event::Warning(what));
        }
    }

    /// The target goes on here; the destination is told, if it can be.
    pub(super) fn roll_back(&mut self, target: &mut dyn Target, error: MoveError) -> MoveError {
        // Nothing more to be done where the machine has let it go already.
        self.happened(target, Happened::Failed);
        if error.is_link_lost() && self.peers.prepare_sent {
            self.tell_that_it_stays(target);
        }
        match self.not_resumed.take() {
            None => error,
            Some(failure) => MoveError::NotResumed { failure, source: Box::new(error) },
        }
    }
}
