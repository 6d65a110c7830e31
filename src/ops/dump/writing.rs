//! Pages of a stopped tree on their way into an image.

use super::place::{Identities, Place};
use super::{Job, memory};
use crate::failure::{Failure, Result};
use crate::memory::pipeline::{ReadPages, dump_changed_pages, dump_pages};
use crate::memory::rounds::Residual;
use crate::memory::store::{Mark, PageSink};
use crate::memory::{PageRange, Space};

/// Writes what a pause has found.
pub(super) struct Writing<'a> {
    pub job: &'a Job<'a>,
    pub place: &'a Place,
    pub out: &'a dyn PageSink,
    pub identities: &'a Identities,
}

impl Writing<'_> {
    /// All of it.
    pub fn residual(&self, residual: &Residual, from: &dyn ReadPages, rate: Option<u64>) -> Result<()> {
        self.marks(residual)?;
        let told = memory::progress(self.job, "memory", residual.plan.iter().map(|(_, r)| r.bytes()).sum());
        let pace = memory::pace(self.place, rate);
        self.pages(from, &residual.plan, &|bytes| {
            told(bytes);
            pace();
        })?;
        self.names(residual)
    }

    /// What is not given by content.
    pub fn marks(&self, residual: &Residual) -> Result<()> {
        for (space, range) in &residual.gone {
            self.out.mark(*space, *range, Mark::Hole).map_err(|e| failed(&e))?;
        }
        for (space, range) in &residual.inherited {
            self.out.mark(*space, *range, Mark::Inherit).map_err(|e| failed(&e))?;
        }
        Ok(())
    }

    /// Contents.
    pub fn pages(
        &self,
        from: &dyn ReadPages,
        plan: &[(Space, PageRange)],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let workers = self.job.workers;
        match self.place.against(self.identities) {
            Some(against) => dump_changed_pages(from, plan, self.out, against.get(), workers, progress),
            None => dump_pages(from, plan, self.out, workers, progress),
        }
        .map_err(|e| Failure::of("cannot save the target's memory", &e))
    }

    /// What the spaces are called, and known by.
    pub fn names(&self, residual: &Residual) -> Result<()> {
        for (from, to) in &residual.names {
            self.out.rename(*from, *to).map_err(|e| failed(&e))?;
        }
        self.place.declare(self.out, self.identities).map_err(|e| failed(&e))
    }
}

fn failed(e: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::of("cannot write the image", e)
}
