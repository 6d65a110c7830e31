//! One address space of a live tree: what was written to it, what the image has of it, what it shares with its parent's.

use super::Residual;
use crate::image::{MmId, Model, Pid};
use crate::memory::track::{Area, Last, TrackError, Tracking, areas_of_maps, hash};
use crate::memory::{RangeSet, Space};
use crate::proc::ProcDir;
use crate::trace::pages::Sharing;
use std::collections::HashMap;

/// One address space that is watched.
#[derive(Debug)]
pub struct Watched {
    /// A process that has it.
    pub dir: ProcDir,
    /// When that process started, clock ticks after boot: with its id its identity.
    pub start_time: u64,
    /// What rounds call it.
    pub space: Space,
    /// `None`: could not be watched, everything is copied in the pause.
    pub tracking: Option<Box<dyn Tracking>>,
    /// Pages that the image has.
    pub shipped: RangeSet,
    /// Pages that were taken and did not make it: taken again.
    pub owed: RangeSet,
    /// How it is to be read.
    pub sharing: Sharing,
    /// What it shares with its parent process; `None` = not looked for yet.
    pub kinship: Option<Kinship>,
}

/// Pages that an address space shares copy-on-write with that of the parent process, as the image says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kinship {
    /// What rounds call the parent's.
    pub parent: Option<Space>,
    /// Pages that neither has written since they were found to be shared.
    pub shared: RangeSet,
}

impl Watched {
    pub(super) fn take(&mut self) -> Result<RangeSet, TrackError> {
        let Some(tracking) = &mut self.tracking else { return Ok(RangeSet::new()) };
        let areas = areas_of_maps(&self.dir.maps(&mut Vec::new())?);
        let found = tracking.take(&self.dir, &areas)?;
        let owed = std::mem::take(&mut self.owed);
        if owed.is_empty() {
            return Ok(found);
        }
        let mapped: RangeSet = areas.iter().map(Area::pages).collect();
        Ok(found.union(&owed.intersection(&mapped)))
    }

    pub(super) fn last(&mut self, id: MmId, areas: &[Area]) -> Result<Look, TrackError> {
        let Last { changed, empty } = match &mut self.tracking {
            Some(tracking) => tracking.last(&self.dir, areas)?,
            None => Tracking::last(&mut hash::Everything, &self.dir, areas)?,
        };
        let all: RangeSet = areas.iter().map(Area::pages).collect();
        let held = all.difference(&empty);
        // What is owed, and (never seen, but it costs nothing to be sure) what is held, unchanged, and was never copied.
        let missing = held.difference(&self.shipped.difference(&self.owed));
        Ok(Look { id, plan: changed.union(&missing), held })
    }

    /// From what was seen of this address space and its parent's to what is to be done.
    pub(super) fn settle(&self, look: &Look, looks: &HashMap<Space, Look>, residual: &mut Residual) {
        let mut plan = look.plan.clone();
        if let Some(kinship) = self.kinship.as_ref().filter(|k| !k.shared.is_empty()) {
            let still = kinship.shared.intersection(&look.held).difference(&look.plan);
            let parent = kinship.parent.and_then(|p| looks.get(&p));
            let same = parent.map(|p| still.intersection(&p.held.difference(&p.plan))).unwrap_or_default();
            plan = plan.union(&still.difference(&same));
            if let Some(parent) = parent.filter(|_| !same.is_empty()) {
                residual.kin.push((look.id, parent.id));
            }
        }
        residual.plan.extend(plan.iter().map(|r| (self.space, r)));
        residual.gone.extend(self.shipped.difference(&look.held).iter().map(|r| (self.space, r)));
    }
}

/// What the last look at an address space has shown.
pub(super) struct Look {
    pub(super) id: MmId,
    /// Pages to be copied.
    pub(super) plan: RangeSet,
    /// Pages that hold something.
    pub(super) held: RangeSet,
}

/// Finds shared pages of a stopped tree that was not watched, and takes them out of the plan.
///
/// # Errors
/// A pagemap cannot be read.
pub fn inherit_at_once(model: &Model, processes: &[Pid], residual: &mut Residual) -> Result<(), TrackError> {
    let owner = |mm: MmId| model.tasks.iter().find(|t| t.mm == Some(mm));
    for n in 0..model.mms.len() {
        let id = MmId::from(n);
        let parent = owner(id).and_then(|t| t.parent).and_then(|p| model.tasks[p.at()].mm).filter(|p| *p != id);
        let Some(parent) = parent else { continue };
        let (dir, of_parent) = (ProcDir::open(processes[n])?, ProcDir::open(processes[parent.at()])?);
        let planned = |id: MmId| -> RangeSet {
            residual.plan.iter().filter(|(s, _)| *s == Space::Mm(id)).map(|(_, r)| *r).collect()
        };
        let own = planned(id);
        let inherited: RangeSet =
            residual.inherited.iter().filter(|(s, _)| *s == Space::Mm(parent)).map(|(_, r)| *r).collect();
        let in_parent = planned(parent).union(&inherited);
        let shared = crate::memory::cow::shared(&dir, &of_parent, &own.intersection(&in_parent))?;
        if shared.is_empty() {
            continue;
        }
        residual.plan.retain(|(s, _)| *s != Space::Mm(id));
        residual.plan.extend(own.difference(&shared).iter().map(|r| (Space::Mm(id), r)));
        residual.inherited.extend(shared.iter().map(|r| (Space::Mm(id), r)));
        residual.kin.push((id, parent));
    }
    Ok(())
}
