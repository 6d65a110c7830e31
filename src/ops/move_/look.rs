//! The last look at a target that stands still: what rounds have not sent of it. It may move then, or go on.

use super::{Collection, Failure, Final, Live, Model, Named, Plan, Residual, Result, ShmemSource, Space, Still};
use super::{Objects, Sources, TargetPages, What, encoded, everything, inherit_at_once, notes, space_names};
use crate::failure::TargetState;
use crate::memory::rounds::Copied;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Pages of a target that goes on are copied while it stands still, bytes at most: a tenth of a second or two.
const STILL_MAX: u64 = 256 << 20;

/// What it has shown.
pub(super) struct LastLook {
    /// With what of its memory is shared copy-on-write.
    pub model: Model,
    /// What is left to send.
    pub plan: Plan,
    /// Its memory, by the model's names.
    pub pages: TargetPages,
    /// What rounds called address spaces, and what the model calls them.
    pub names: Vec<(Space, Option<Space>)>,
}

impl Live<'_> {
    /// Looks at what was collected of the tree, which stands still. Rounds can go on after it.
    pub(super) fn last_look(&mut self, mut model: Model, sources: Sources) -> Result<LastLook> {
        let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("cannot find the target's pages", e);
        let mut residual: Residual = match &mut self.tree {
            Some(tree) => tree.last(&model, &sources.mms).map_err(|e| failed(&e))?,
            None => {
                let mut all = everything(&model, &sources).map_err(|e| failed(&e))?;
                inherit_at_once(&model, &sources.mms, &mut all).map_err(|e| failed(&e))?;
                all
            }
        };
        let files = sources.shmems.iter().map(|ShmemSource::File(file)| file.as_fd());
        let shared = match &self.tree {
            Some(tree) => tree.last_shared(&model, files),
            None => Objects::default().last(&model, files),
        };
        let shared = shared.map_err(|e| failed(&e))?;
        residual.plan.extend(shared.plan);
        residual.gone.extend(shared.gone);
        residual.names.extend(shared.names);
        for (child, parent) in &residual.kin {
            model.mms[child.at()].cow_parent = Some(*parent);
        }
        let mut all_notes = notes(&residual.gone, What::Hole);
        all_notes.extend(notes(&residual.inherited, What::Inherit));
        let plan = Plan { pages: residual.plan, notes: all_notes, spaces: Vec::new() };
        let shmems = sources.shmems.into_iter().map(|ShmemSource::File(file)| file).collect();
        let known = |pid| self.tree.as_ref().and_then(|tree| tree.sharing(pid));
        let pages = TargetPages::new(sources.mms, shmems).sharing(known);
        Ok(LastLook { model, plan, pages, names: residual.names })
    }

    /// It stands still for a moment, and goes on: no hook runs, and nothing of it leaves this host.
    pub(super) fn stand_still(&mut self) -> Result<Still> {
        let (frozen, Collection { model, sources, .. }) = self.freeze_and_collect()?;
        let taken = frozen.since;
        let looked = self.last_look(model, sources).and_then(copied);
        self.network.resume();
        let held = |e| Failure::of("the target could not be released after a look", &e).target(TargetState::Held);
        frozen.thaw().map_err(held)?;
        let pause = taken.elapsed();
        let (LastLook { model, plan, names, .. }, pages) = looked?;
        let spaces = space_names(&model, &names);
        let last = Final { plan, model: encoded(&model)?, spaces, later: Vec::new(), files: Vec::new() };
        Ok(Still { last: Arc::new(last), pages: Box::new(pages), taken, pause })
    }
}

/// With the content of what is left to send.
fn copied(look: LastLook) -> Result<(LastLook, Copied)> {
    let bytes = look.plan.bytes();
    if bytes > STILL_MAX {
        let what =
            format!("{} MiB of it were written since the last round, more than {} MiB", bytes >> 20, STILL_MAX >> 20);
        return Err(Failure::new(what));
    }
    let copied = Copied::of(&Named::new(&look.pages, &look.names), &look.plan.pages);
    let copied = copied.map_err(|e| Failure::of("cannot read the target's pages", &e))?;
    Ok((look, copied))
}
