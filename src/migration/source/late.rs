//! Post-copy, as the attempt sees it: pages are served from before PREPARED until the destination has them all, beside the
//! handover. The original ends only then.

use super::{Abort, Attempt, Compression, MoveError, ReadPages};
use crate::image::mm::PAGE;
use crate::migration::postcopy::serving::Serving;
use crate::ops::Event;
use std::cell::Cell;

impl Attempt<'_> {
    /// Serves pages while `work` hands the target over.
    pub(super) fn with_pages(
        &mut self,
        pages: Box<dyn ReadPages + Send>,
        work: impl FnOnce(&mut Self) -> Result<(), MoveError>,
    ) -> Result<(), MoveError> {
        let again = self.wishes.again.ok_or(MoveError::Worker)?;
        let level = match self.wishes.compression {
            Compression::Level(level) => Some(level),
            // Of pages that somebody waits for, compression is a part of the wait.
            Compression::Auto | Compression::Off => None,
        };
        let serving = Serving::new(self.id, level)?;
        self.serving = Some(serving.clone());
        self.journal.set_pages_owed(true);
        let done = std::thread::scope(|scope| {
            scope.spawn(|| serving.run(again, &*pages));
            let done = work(self);
            serving.stop();
            done
        });
        self.serving = None;
        done
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
        let served = serving.wait(&|| interrupted.is_triggered(), &progress)?;
        self.journal.set_pages_owed(false);
        self.report.drained(served);
        Ok(())
    }

    /// Only the destination knows what becomes of it.
    pub(super) fn in_doubt(&self, error: MoveError) -> MoveError {
        let peer = self.link.control.peer().to_owned();
        MoveError::InDoubt { peer, journal: self.journal.path().into(), source: Box::new(error) }
    }
}
