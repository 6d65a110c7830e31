//! This side's preflight: what stands in the way here, and what is here already.

use super::Attempt;
use crate::blocker::{Blocker, codes};
use crate::memory::store::ImageDir;
use crate::migration::common_pages::shelf::CommonShelf;
use crate::migration::conventions::Conventions;
use crate::migration::earlier::Earlier;
use crate::migration::protocol::{self, FromDestination, TargetSummary};
use crate::migration::{MoveError, too_large, while_alive};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Less memory is free here than the target takes. What cannot be found out is not in the way.
fn memory_short(needed: u64) -> Option<Blocker> {
    let here = crate::proc::sys::meminfo().ok()?;
    let free = here.available + here.swap_free;
    let reason = format!("{needed} bytes are needed, {free} are free with swap");
    (needed > free).then(|| Blocker::new(codes::MEMORY_SHORT, "memory of the destination").because(reason))
}

impl Attempt<'_> {
    /// This side's preflight. Whether there is nothing in the way.
    pub(super) fn verdict(
        &mut self,
        target: &TargetSummary,
        conventions: &Conventions,
        model_bytes: u64,
        dry_run: bool,
    ) -> Result<bool, MoveError> {
        let model = self.model(model_bytes)?;
        let mut blockers = match &self.around.max_memory_bytes {
            Some(max) if target.memory_bytes > *max => vec![too_large(target.memory_bytes, *max)],
            _ => Vec::new(),
        };
        blockers.extend(memory_short(target.once_bytes));
        blockers.extend(self.judge(&model)?);
        let (state, judged) = (self.state.clone(), self.luggage.paths());
        blockers.extend(while_alive(&mut self.control, || self.builder.preflight(&model, &state, judged))?);
        let (of_stages, stages) = self.look_onward();
        blockers.extend(of_stages);
        let earlier = self.earlier(&mut blockers, dry_run);
        let may_come = blockers.is_empty();
        let blockers = blockers.iter().map(Into::into).collect();
        let (attempt, room_bytes, order) = (self.id, self.store.room_bytes(), self.luggage.order());
        let (shelf_pages, earlier_bytes) = (self.shelf.max() as u32, earlier.len() as u64);
        let warnings = conventions.differences().into_iter().chain(stages).collect();
        let shared = self.shelf.common().map(CommonShelf::shared);
        let names_late = earlier_bytes > 0 || shared.is_some();
        self.send(&FromDestination::Verdict {
            attempt,
            blockers,
            room_bytes,
            order,
            shelf_pages,
            earlier_bytes,
            warnings,
            names_late,
            is_clone: self.is_clone,
            passes_on: true,
            images: true,
            stands_by: true,
            shared,
        })?;
        protocol::send_model(&mut self.control, &earlier)?;
        if may_come {
            self.offered = Some(self.builder.adapted(model)?);
        }
        Ok(may_come)
    }

    /// What an image here has, unless nothing will be sent; then only whether it can be opened.
    fn earlier(&mut self, blockers: &mut Vec<Blocker>, dry_run: bool) -> Vec<u8> {
        let Some(base) = self.base.take() else { return Vec::new() };
        let dir = Path::new(OsStr::from_bytes(&base.0));
        let image = match dry_run || !blockers.is_empty() {
            true => ImageDir::open(dir).map(|_| None),
            false => while_alive(&mut self.control, || Earlier::open(dir)).map(Some),
        };
        match image {
            Ok(image) => image.map_or_else(Vec::new, |image| self.shelf.add_earlier(image)),
            Err(error) => {
                let blocker = Blocker::new(codes::BASE, dir.display().to_string());
                blockers.push(blocker.because(error.to_string()));
                Vec::new()
            }
        }
    }
}
