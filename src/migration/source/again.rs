//! A destination whose link is lost: how it is found again, and what is done about one that stays silent.

use super::{Attempt, MoveError, Target};
use crate::migration::handover::Reply;
use crate::migration::handover::source::Event as Happened;
use crate::migration::protocol::{self, FromDestination, FromSource};
use crate::ops::Event;
use crate::transport::Link;
use std::time::{Duration, Instant};

/// How to find a link again.
#[derive(Clone, Copy)]
pub struct Again<'a>(pub &'a (dyn Fn() -> crate::transport::Result<Link> + std::marker::Sync + 'a));

/// Switches the destination's host off.
#[derive(Clone, Copy)]
pub struct Fence<'a> {
    /// Whether it is off now.
    pub command: &'a (dyn Fn() -> bool + std::marker::Sync + 'a),
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
    since: Instant,
}

impl<'a> Silence<'a> {
    /// Begins now.
    pub(in crate::migration) fn begin(fence: Option<Fence<'a>>) -> Self {
        Self { fence, since: Instant::now() }
    }

    /// Something was heard.
    pub(in crate::migration) fn is_broken(&mut self) {
        self.since = Instant::now();
    }

    /// Has it switched off, if the silence is long enough; whether it is off.
    pub(in crate::migration) fn ends_by_fence(&mut self) -> bool {
        let Some(fence) = self.fence.filter(|fence| self.since.elapsed() >= fence.after) else { return false };
        let off = (fence.command)();
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
        let link = self.wishes.again.map(|again| again.0());
        let told = link.is_some_and(|link| {
            let Ok(link) = link else { return false };
            self.link = link;
            self.link.control.deadline(Some(Duration::from_secs(5)));
            let abort = FromSource::Abort { attempt: self.id, reason: "the link was lost".into() };
            let said =
                protocol::send(&mut self.link.control, &abort).and_then(|()| protocol::receive(&mut self.link.control));
            matches!(said, Ok(FromDestination::Says { reply: Some(Reply::Aborted), .. }))
        });
        if !told {
            let peer = self.link.control.peer();
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
        if error.is_link_lost() && self.prepare_sent {
            self.tell_that_it_stays(target);
        }
        match self.not_resumed.take() {
            None => error,
            Some(failure) => MoveError::NotResumed { failure, source: Box::new(error) },
        }
    }
}
