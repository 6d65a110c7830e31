//! Memory that comes when the target runs already: what a move puts off, and how whoever wants to read such a target waits
//! until all of it is there.

use super::places::Places;
use super::{Event, Events, interrupt};
use crate::companion::pager::{self, Kept, KeptObject, KeptSpace, KeptView, News, Watch};
use crate::failure::{Failure, Result, TargetState};
use crate::image::{Model, Pid};
use crate::memory::{RangeSet, Space};
use crate::migration::pages::{Run, What};
use crate::migration::postcopy::Later;
use crate::migration::source::Plan;
use crate::proc::ProcDir;
use crate::proc::smaps::VmFlags;
use crate::restore::lazy::{self, Late, at_once, shared};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Sees to it that nothing of these processes is missing. Reading a missing page would wait for it, and in the pause of a
/// dump nobody should.
///
/// # Errors
/// Pages are lost, or whoever brings them does not answer.
pub fn complete(processes: &[Pid], events: &dyn Events) -> Result<()> {
    let sockets = pager::sockets(&Places::here().run);
    // Most of the time there are none, and nobody's flags need to be read.
    if sockets.is_empty() || !waits(processes) {
        return Ok(());
    }
    let mut total = 0;
    for watch in sockets.iter().filter_map(|socket| Watch::begin(socket)) {
        finish(watch, processes, &mut total, events)?;
    }
    // What is still served by somebody else is in the way, and named by the preflight.
    Ok(())
}

/// Whether memory of any of them is served page by page.
fn waits(processes: &[Pid]) -> bool {
    let mut buf = Vec::new();
    processes.iter().any(|pid| {
        let flags = ProcDir::open(*pid).and_then(|dir| dir.smaps_flags(&mut buf));
        flags.is_ok_and(|all| all.iter().any(|f| f.flags.contains(VmFlags::UFFD_MISSING)))
    })
}

/// One that has done its work, or has served somebody else, may end before it answers: is everything there?
fn is_over(processes: &[Pid]) -> bool {
    const LOOKS: (u32, Duration) = (20, Duration::from_millis(50));
    (0..LOOKS.0).any(|n| {
        std::thread::sleep(LOOKS.1 * n.min(1));
        !waits(processes)
    })
}

fn finish(mut watch: Watch, processes: &[Pid], total: &mut u64, events: &dyn Events) -> Result<()> {
    loop {
        interrupt::check().map_err(|failure| failure.target(TargetState::Untouched))?;
        match watch.news() {
            Ok(News::Complete) => return Ok(()),
            Ok(News::Missing(pages)) => {
                let left = pages * crate::image::mm::PAGE;
                *total = left.max(*total);
                events.event(Event::Progress { phase: "missing pages", done: *total - left, total: *total });
            }
            Ok(News::Lost(message)) => {
                let mut lines = message.lines();
                let mut failure = Failure::new(lines.next().unwrap_or_default());
                failure.causes = lines.filter(|line| line.starts_with("missing")).map(str::to_owned).collect();
                return Err(failure.target(TargetState::Stopped));
            }
            Err(_) if is_over(processes) => return Ok(()),
            Err(error) => {
                let what = "the process that brings the target's memory in does not answer";
                return Err(Failure::of(what, &error).target(TargetState::Untouched));
            }
        }
    }
}

/// For a report: memory of a kind that can come later and that comes at once, with the reason.
pub(super) fn at_once<'a>(model: &Model, held: impl IntoIterator<Item = (&'a Space, &'a RangeSet)>) -> Vec<String> {
    let mut rows: Vec<(&str, u64)> = at_once::reasons(model, held).into_iter().collect();
    rows.sort_by_key(|(_, pages)| std::cmp::Reverse(*pages));
    let kib = |pages: u64| pages * crate::image::mm::PAGE / 1024;
    rows.into_iter().map(|(why, pages)| format!("{} KiB could not come later: {why}", kib(pages))).collect()
}

/// What a pager is told of what is late, and the descriptors that belong to it.
pub(super) fn keep(late: Late, kept: Kept) -> (Kept, Vec<OwnedFd>) {
    let mut descriptors = Vec::new();
    let mut spaces = Vec::new();
    for space in late.spaces {
        let kept = KeptSpace::new(space.mm, space.pid, &space.pages);
        spaces.push(KeptSpace { watched: space.watched, ..kept });
        descriptors.push(space.uffd);
    }
    let mut views = Vec::new();
    for view in late.views {
        let areas = view.areas.iter().map(|area| (area.at.first, area.at.count, area.object.0, area.from));
        views.push(KeptView { pid: view.pid.0, areas: areas.collect() });
        descriptors.push(view.uffd);
    }
    let mut objects = Vec::new();
    for object in late.objects {
        let missing = object.pages.iter().map(|range| (range.first, range.count)).collect();
        objects.push(KeptObject { shmem: object.id.0, size: object.size, unit: object.unit, missing });
        descriptors.push(object.file);
    }
    (Kept { spaces, views, objects, ..kept }, descriptors)
}

/// How a move is wanted whose memory comes later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Some of it has been sent.
    pub had_rounds: bool,
    /// States of the target are to come back meanwhile.
    pub recoverable: bool,
}

/// Of these pages, by the name that the model has for the space, those that can come when the target runs.
pub(super) fn can_follow(
    model: &Model,
    space: Space,
    pages: &RangeSet,
    Wanted { had_rounds, recoverable }: Wanted,
) -> RangeSet {
    match space {
        Space::Mm(mm) => lazy::part(model, mm, pages),
        // What others write to it nobody tells.
        Space::Shmem(_) if recoverable => RangeSet::new(),
        // Huge pages are late as a whole; some of what they have has been sent.
        Space::Shmem(id) if had_rounds && shared::is_huge(model, id) => RangeSet::new(),
        Space::Shmem(id) => shared::part(model, id, pages),
    }
}

/// Takes pages out of the plan that can come when the target runs, by the names of the model. What rounds have sent of them
/// is gone by that. With it, for the report, what could not be put off.
pub(super) fn put_off(
    model: &Model,
    plan: &mut Plan,
    names: &[(Space, Option<Space>)],
    Wanted { had_rounds, recoverable }: Wanted,
) -> (Later, Vec<String>) {
    let home = |space: Space| names.iter().find(|(from, _)| *from == space).map_or(Some(space), |(_, to)| *to);
    let mut held: BTreeMap<Space, RangeSet> = BTreeMap::new();
    for (space, range) in &plan.pages {
        if let Some(space) = home(*space) {
            held.entry(space).or_default().insert(*range);
        }
    }
    let mut at_once = at_once(model, &held);
    let shared = held.iter().filter_map(|(space, pages)| match *space {
        Space::Shmem(id) if recoverable => Some(shared::part(model, id, pages).pages()),
        _ => None,
    });
    if let kib @ 1.. = shared.sum::<u64>() * crate::image::mm::PAGE / 1024 {
        at_once.push(format!("{kib} KiB could not come later: it is shared, and states come back"));
    }
    let part = |space: Space, pages: &RangeSet| can_follow(model, space, pages, Wanted { had_rounds, recoverable });
    let later: BTreeMap<Space, RangeSet> =
        held.into_iter().map(|(space, pages)| (space, part(space, &pages))).collect();
    let mut now = Vec::new();
    for (space, range) in std::mem::take(&mut plan.pages) {
        let all: RangeSet = [range].into_iter().collect();
        let put_off = home(space).and_then(|space| later.get(&space)).map(|pages| pages.intersection(&all));
        let put_off = put_off.unwrap_or_default();
        now.extend(all.difference(&put_off).iter().map(|range| (space, range)));
        if had_rounds {
            plan.notes.extend(put_off.iter().map(|range| Run::new(space, range, What::Hole)));
        }
    }
    plan.pages = now;
    (later.into_iter().filter(|(_, pages)| !pages.is_empty()).collect(), at_once)
}
