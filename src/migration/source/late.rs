//! Post-copy, as the attempt sees it: pages are served from before PREPARED until the destination has them all, beside the
//! handover. The original ends only then.

use super::{Abort, Attempt, Compression, MoveError, ReadPages};
use crate::failure::Failure;
use crate::image::{Pid, mm::PAGE};
use crate::migration::points::kept::{self, Kept, Original};
use crate::migration::points::taking::Taking;
use crate::migration::postcopy::Later;
use crate::migration::postcopy::serving::{Serving, Unlinked};
use crate::ops::Event;
use std::cell::Cell;
use std::time::Duration;

impl Attempt<'_> {
    /// Serves pages while `work` hands the target over.
    pub(super) fn with_pages(
        &mut self,
        pages: Box<dyn ReadPages + Send>,
        kept: Option<(Kept, Duration)>,
        work: impl FnOnce(&mut Self) -> Result<(), MoveError>,
    ) -> Result<(), MoveError> {
        let again = self.wishes.again.ok_or(MoveError::Worker)?;
        let level = match self.wishes.compression {
            Compression::Level(level) => Some(level),
            // Of pages that somebody waits for, compression is a part of the wait.
            Compression::Auto | Compression::Off => None,
        };
        let known = if self.peers.names_late { self.peers.catalogue.earlier() } else { Default::default() };
        let serving = Serving::new(self.id, level)?.naming(known);
        self.serving = Some(serving.clone());
        let taking = kept.as_ref().map(|(_, every)| Taking::new(self.id, *every, level)).transpose()?;
        self.taking.clone_from(&taking);
        self.journal.set_pages_owed(true);
        let done = std::thread::scope(|scope| {
            scope.spawn(|| serving.run(again, &*pages));
            if let (Some(taking), Some((kept, _))) = (&taking, kept) {
                scope.spawn(|| taking.run(again, kept));
            }
            let done = work(self);
            serving.stop();
            taking.iter().for_each(|taking| drop(taking.stop()));
            done
        });
        (self.serving, self.taking) = (None, None);
        if !matches!(done, Err(MoveError::InDoubt { .. })) {
            self.forget_points();
        }
        done
    }

    /// Where states of the target are kept that come back, if that is wanted.
    pub(super) fn kept(&self, owners: &[Pid], later: &Later) -> Result<Option<(Kept, Duration)>, MoveError> {
        let Some(every) = self.wishes.recoverable else { return Ok(None) };
        let original = Original::of(owners, later).map_err(|e| Failure::of("the original cannot be named", &e))?;
        let kept = Kept::make(&kept::directory(self.wishes.journals, self.id), original);
        Ok(Some((kept.map_err(|source| MoveError::Kept { source })?, every)))
    }

    /// Nobody will resume any.
    fn forget_points(&mut self) {
        if self.wishes.recoverable.is_some() {
            kept::remove(&kept::directory(self.wishes.journals, self.id));
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
        self.taking.iter().for_each(Taking::begin);
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
