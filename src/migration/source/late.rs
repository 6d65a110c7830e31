//! Post-copy, as the attempt sees it: pages are served until the destination has them all, beside the handover: with one destination
//! from before PREPARED on, of several to the one that is told to run the target. The original ends only then.

use super::{Abort, Attempt, Compression, MoveError, ReadPages};
use crate::failure::Failure;
use crate::image::{Pid, mm::PAGE};
use crate::migration::handover::Candidate;
use crate::migration::points::series::{self, Original, Series};
use crate::migration::points::taking::Taking;
use crate::migration::postcopy::Later;
use crate::migration::postcopy::serving::{Serving, Unlinked};
use crate::ops::Event;
use crossbeam_channel::{Sender, unbounded};
use std::cell::Cell;

/// Pages follow when the target runs.
pub(super) struct Following {
    begun: Sender<Begun>,
    /// Who has the address spaces of the original.
    owners: Vec<Pid>,
    /// Who gets them now.
    to: Option<Candidate>,
}

/// Threads for one destination.
struct Begun {
    to: Candidate,
    serving: Serving,
    taking: Option<(Taking, Series)>,
}

impl Attempt<'_> {
    /// Pages can be served ([`Attempt::serve`]) while `work` hands the target over.
    pub(super) fn with_pages(
        &mut self,
        pages: Box<dyn ReadPages + Send>,
        owners: Vec<Pid>,
        work: impl FnOnce(&mut Self) -> Result<(), MoveError>,
    ) -> Result<(), MoveError> {
        let again = self.wishes.again.ok_or(MoveError::Worker)?;
        let (begun, threads) = unbounded::<Begun>();
        self.following = Some(Following { begun, owners, to: None });
        let pages = &*pages;
        let done = std::thread::scope(|scope| {
            scope.spawn(move || {
                for Begun { to, serving, taking } in threads {
                    scope.spawn(move || serving.run(again.to(to), pages));
                    if let Some((taking, series)) = taking {
                        scope.spawn(move || taking.run(again.to(to), series));
                    }
                }
            });
            let done = work(self);
            self.stop_serving();
            self.following = None;
            done
        });
        if !matches!(done, Err(MoveError::InDoubt { .. })) {
            self.forget_points();
        }
        done
    }

    /// From here on this destination gets the pages that it lacks when the target runs there, and no other: whoever got some
    /// before has given the target up. Nothing where none follow, or where it is so already.
    pub(super) fn serve(&mut self, to: Candidate, later: &Later) -> Result<(), MoveError> {
        if self.following.as_ref().is_none_or(|following| following.to == Some(to)) {
            return Ok(());
        }
        self.stop_serving();
        if self.following.as_mut().is_some_and(|following| following.to.take().is_some()) {
            // There are none yet of a copy that has not run; those of this one are of another original.
            self.forget_points();
        }
        self.journal.set_pages_owed(!later.is_empty());
        let Some(following) = &mut self.following else { return Ok(()) };
        if later.is_empty() {
            return Ok(());
        }
        let level = match self.wishes.compression {
            Compression::Level(level) => Some(level),
            // Of pages that somebody waits for, compression is a part of the wait.
            Compression::Auto | Compression::Off => None,
        };
        let known = match self.peers.get(to) {
            Some(peer) if peer.names_late => peer.catalogue.earlier(),
            _ => Default::default(),
        };
        let serving = Serving::new(self.id, level)?.naming(known);
        let taking = match self.wishes.recoverable {
            Some(every) => {
                let original = Original::of(&following.owners, later);
                let original = original.map_err(|e| Failure::of("the original cannot be named", &e))?;
                let series = Series::make(&series::directory(self.wishes.journals, self.id), original);
                Some((Taking::new(self.id, every, level)?, series.map_err(|source| MoveError::Kept { source })?))
            }
            None => None,
        };
        following.to = Some(to);
        self.serving = Some(serving.clone());
        self.taking = taking.as_ref().map(|(taking, _)| taking.clone());
        following.begun.send(Begun { to, serving, taking }).map_err(|_| MoveError::Worker)
    }

    /// Nobody gets any.
    fn stop_serving(&mut self) {
        self.serving.take().iter().for_each(Serving::stop);
        self.taking.take().iter().for_each(|taking| drop(taking.stop()));
    }

    /// States of it come back from here on, if that is wanted.
    pub(super) fn takes_states(&self) {
        self.taking.iter().for_each(Taking::begin);
    }

    /// Nobody will resume any.
    fn forget_points(&mut self) {
        if self.wishes.recoverable.is_some() {
            series::remove(&series::directory(self.wishes.journals, self.id));
        }
    }

    /// Waits until the destination has every page; nothing where it has them anyway.
    pub(super) fn drained(&mut self, interrupted: &Abort) -> Result<(), MoveError> {
        let Some(serving) = &self.serving else { return Ok(()) };
        let (total, told) = (Cell::new(0), Cell::new(u64::MAX));
        let progress = |left: u64| {
            total.set(total.get().max(left));
            if told.replace(left) != left {
                let (done, total) = ((total.get() - left) * PAGE, total.get() * PAGE);
                self.events.event(Event::Progress { phase: "missing pages", done, total });
            }
        };
        self.takes_states();
        let silent = Unlinked::default();
        let given_up = || interrupted.is_triggered() || self.is_to_be_fenced(&silent);
        let served = serving.wait(&given_up, &progress)?;
        self.journal.set_pages_owed(false);
        let cost = self.taking.as_ref().map(Taking::stop);
        self.report.drained(served, cost);
        Ok(())
    }

    /// There has been no link for so long that the destination's host is to be switched off, and a state of the target is here
    /// to go on from: the guardian does that.
    fn is_to_be_fenced(&self, silent: &Unlinked) -> bool {
        let (Some(fence), Some(_)) = (self.wishes.fence, self.wishes.recoverable) else { return false };
        silent.since() >= fence.after
    }

    /// Only the destination knows what becomes of it.
    pub(super) fn in_doubt(&self, error: MoveError) -> MoveError {
        let peer = self.peers.link.control.peer().to_owned();
        MoveError::InDoubt { peer, journal: self.journal.path().into(), source: Box::new(error) }
    }
}
