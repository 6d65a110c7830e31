//! Memory of a dump: rounds while the target runs, and what is left for the pause.

use super::Job;
use super::place::{Place, Sink};
use crate::collect::{ShmemSource, Sources, mappings::Mappings};
use crate::companion::tracker::{self, Kept};
use crate::failure::{Failure, Result};
use crate::image::mm::PAGE;
use crate::image::{MmId, Model, Pid};
use crate::memory::pipeline::dump_pages;
use crate::memory::rounds::{Residual, Tree, Watched, inherit_at_once, worth_watching};
use crate::memory::scan;
use crate::memory::shared::Objects;
use crate::memory::store::Mark;
use crate::memory::throttle::Throttle;
use crate::memory::track::{Backend, Tracking};
use crate::memory::{RangeSet, Space};
use crate::ops::outcome::Round;
use crate::ops::places::Places;
use crate::ops::{Event, Events};
use crate::proc::ProcDir;
use crate::trace::pages::Sharing;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the rounds have left.
#[derive(Default)]
pub(crate) struct Rounds {
    /// The tree, still watched; `None` where there were no rounds.
    pub tree: Option<Tree>,
    /// Rounds so far.
    pub done: Vec<Round>,
    /// What ended them.
    pub exit_condition: Option<&'static str>,
    /// Mappings as they were a moment ago.
    pub mappings: HashMap<Pid, Mappings>,
}

impl Rounds {
    /// No rounds at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Lets the target go on unwatched.
    pub fn end_tracking(&mut self) {
        if let Some(tree) = &mut self.tree {
            tree.end();
        }
    }
}

/// What follows after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Again,
    /// The pause comes now, for this reason.
    Pause(&'static str),
}

/// Most rounds.
const ROUNDS_MAX: usize = 10;
/// So few pages are copied in a fraction of a millisecond.
const FEW_PAGES: u64 = 256;

/// Another round, or the pause? `pages` of the rounds so far.
fn decide(pages: &[u64]) -> Decision {
    match *pages {
        [.., last] if last <= FEW_PAGES => Decision::Pause("downtime"),
        _ if pages.len() >= ROUNDS_MAX => Decision::Pause("rounds"),
        // What is written during a round hardly shrinks with the round any more.
        [.., before, last] if last * 10 > before * 8 => Decision::Pause("not-converging"),
        _ => Decision::Again,
    }
}

/// Tells how far a phase is.
pub(crate) fn progress<'j>(job: &'j Job<'_>, phase: &'static str, total: u64) -> impl Fn(u64) + Sync + 'j {
    let done = AtomicU64::new(0);
    move |n| {
        let done = done.fetch_add(n, Ordering::Relaxed) + n;
        job.events.event(Event::Progress { phase, done, total });
    }
}

/// Holds `--bandwidth` over what is written to a place from now on: to be called by whoever has written.
pub(crate) fn pace<'p>(place: &'p Place, rate: Option<u64>) -> impl Fn() + Sync + 'p {
    let (throttle, before) = (Throttle::new(rate), place.bytes());
    move || {
        if rate.is_some() {
            throttle.reached(place.bytes() - before);
        }
    }
}

/// What the tracker of a pre-dump has kept.
pub(crate) struct Taken {
    kept: Kept,
    descriptors: Vec<OwnedFd>,
}

impl Taken {
    /// Takes over from the tracker of this tree, if there is one. It ends.
    pub fn of(root: Pid) -> Option<Self> {
        let start_time = ProcDir::open(root).and_then(|d| d.stat(&mut Vec::new())).ok()?.starttime;
        let (kept, descriptors) = tracker::take_over(&Places::here().run, root, start_time)?;
        Some(Self { kept, descriptors })
    }

    /// What was tracked fits this image's parent: says so to the image. Otherwise the tracking ends.
    pub fn fitting(self, place: &mut Place, events: &dyn Events) -> Option<Self> {
        if place.parent_id() == Some(&self.kept.image) {
            place.tracked_since_parent();
            return Some(self);
        }
        if place.parent_id().is_some() {
            warn_compared(events);
        }
        self.end();
        None
    }

    /// Ends the tracking.
    pub fn end(self) {
        for (space, fd) in self.kept.spaces.iter().zip(self.descriptors) {
            tracker::end(space, fd);
        }
    }

    fn watched(self) -> Vec<Watched> {
        let mut all = Vec::new();
        for (space, fd) in self.kept.spaces.into_iter().zip(self.descriptors) {
            let Ok(dir) = ProcDir::open(Pid(space.pid)) else { continue };
            if !dir.stat(&mut Vec::new()).is_ok_and(|s| s.starttime == space.start_time) {
                continue;
            }
            all.push(Watched {
                dir,
                start_time: space.start_time,
                // Named by the tree it becomes part of.
                space: Space::Mm(MmId(u32::MAX)),
                tracking: Some(Box::new(tracker::tracking(&space, fd))),
                shipped: RangeSet::new(),
                owed: tracker::set(&space.owed),
                sharing: Sharing::default(),
                kinship: None,
            });
        }
        all
    }
}

/// Says that nothing tells which pages were written since the parent image.
pub(crate) fn warn_compared(events: &dyn Events) {
    let text = "no tracker has followed the target since the parent image was made: every page is compared with it";
    events.event(Event::Warning(text.to_owned()));
}

/// Begins to watch a tree, or goes on where a tracker has left off: then everything is as in the parent image but for what
/// the first round finds.
pub(crate) fn begin(job: &Job<'_>, sink: &Sink<'_>, place: &Place, taken: Option<Taken>) -> Result<Tree> {
    let cannot = |e: &(dyn std::error::Error + 'static)| Failure::of("cannot watch the target's memory", e);
    let Some(taken) = taken else { return Tree::watch(job.root, sink.backend()).map_err(|e| cannot(&e)) };
    let mut tree = Tree::resume(job.root, Backend::WriteProtect, taken.watched());
    for watched in tree.watched() {
        let identity = super::place::identity(watched.dir.pid(), watched.start_time);
        match place.pages_of_parent(identity) {
            Some(pages) => {
                for range in pages.iter() {
                    sink.get().mark(watched.space, range, Mark::Parent).map_err(|e| cannot(&e))?;
                }
                watched.shipped = pages;
            }
            // Unknown to the parent image: registered anew, and so taken as a whole.
            None => {
                let uffd = watched.tracking.take().and_then(|t| t.into_uffd());
                watched.tracking = uffd.map(|uffd| -> Box<dyn Tracking> { Box::new(uffd.anew()) });
            }
        }
    }
    Ok(tree)
}

/// Takes the memory in rounds, if that makes the pause shorter.
pub(crate) fn run(job: &Job<'_>, sink: &Sink<'_>, place: &Place, taken: Option<Taken>) -> Result<Rounds> {
    let mut rounds = Rounds::none();
    if taken.is_none() && !worth_watching(job.resident_bytes, job.processes.into(), job.threads.into()) {
        return Ok(rounds);
    }
    let mut tree = begin(job, sink, place, taken)?;
    if place.parent_id().is_none() {
        tree = tree.with_shared();
    }
    let mut began = Instant::now();
    loop {
        let pages = one(job, sink, place, &mut tree, &mut rounds, &mut began)?;
        tracing::debug!("round {}: {pages} pages", rounds.done.len());
        let counts: Vec<u64> = rounds.done.iter().map(|r| r.pages).collect();
        if let Decision::Pause(why) = decide(&counts) {
            rounds.exit_condition = Some(why);
            break;
        }
    }
    let reading = Instant::now();
    rounds.mappings = tree.mappings();
    if reading.elapsed() > Duration::from_millis(2) && rounds.exit_condition == Some("downtime") {
        one(job, sink, place, &mut tree, &mut rounds, &mut began)?;
    }
    rounds.tree = Some(tree);
    Ok(rounds)
}

/// One round; gives its pages. `began`: when the one before took its pages.
pub(crate) fn one(
    job: &Job<'_>,
    sink: &Sink<'_>,
    place: &Place,
    tree: &mut Tree,
    rounds: &mut Rounds,
    began: &mut Instant,
) -> Result<u64> {
    let start = Instant::now();
    let identities = place.live_identities(tree);
    let round = tree.round().map_err(|e| Failure::of("cannot watch the target's memory", &e))?;
    let since = began.elapsed();
    *began = Instant::now();
    let pages = round.pages();
    let (told, pace) = (progress(job, "memory", pages * PAGE), pace(place, job.bandwidth));
    let progress = |bytes| {
        told(bytes);
        pace();
    };
    let out = sink.get();
    for (space, range) in round.inherited() {
        out.mark(*space, *range, Mark::Inherit).map_err(|e| Failure::of("cannot write the image", &e))?;
    }
    match place.against(&identities) {
        Some(against) => crate::memory::pipeline::dump_changed_pages(
            &round.source(),
            round.plan(),
            out,
            against.get(),
            job.workers,
            &progress,
        ),
        None => dump_pages(&round.source(), round.plan(), out, job.workers, &progress),
    }
    .map_err(|e| Failure::of("cannot save the target's memory", &e))?;
    round.commit();
    let number = rounds.done.len() as u32 + 1;
    let took = start.elapsed();
    rounds.done.push(Round { number, pages, bytes: pages * PAGE, took });
    let dirty = if number == 1 { 0.0 } else { (pages * PAGE) as f64 / since.as_secs_f64().max(1e-6) };
    job.events.event(Event::Round {
        number,
        pages,
        bytes: pages * PAGE,
        took,
        dirty_bytes_per_s: dirty as u64,
        expected_pause: None,
    });
    Ok(pages)
}

/// What the stopped tree still owes the image.
pub(crate) fn residual(model: &Model, sources: &Sources, rounds: &mut Rounds) -> Result<Residual> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("cannot find the pages of the target", e);
    let mut residual = match &mut rounds.tree {
        Some(tree) => tree.last(model, &sources.mms).map_err(|e| failed(&e))?,
        None => Residual::default(),
    };
    if rounds.tree.is_none() {
        for (n, (mm, pid)) in model.mms.iter().zip(&sources.mms).enumerate() {
            let pagemap = crate::proc::ProcDir::open(*pid)
                .and_then(|dir| dir.open_file("pagemap", nix::fcntl::OFlag::O_RDONLY))
                .map_err(|e| failed(&e))?;
            residual.plan.extend(scan::private_pages(MmId::from(n), mm, &pagemap.into()).map_err(|e| failed(&e))?);
        }
        inherit_at_once(model, &sources.mms, &mut residual).map_err(|e| failed(&e))?;
    }
    let files = sources.shmems.iter().map(|ShmemSource::File(file)| file.as_fd());
    let shared = match &rounds.tree {
        Some(tree) => tree.last_shared(model, files),
        None => Objects::default().last(model, files),
    };
    let shared = shared.map_err(|e| failed(&e))?;
    residual.plan.extend(shared.plan);
    residual.gone.extend(shared.gone);
    residual.names.extend(shared.names);
    Ok(residual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_end_when_they_no_longer_help() {
        assert_eq!(decide(&[262_144]), Decision::Again);
        assert_eq!(decide(&[262_144, 2_000]), Decision::Again);
        assert_eq!(decide(&[262_144, 2_000, 40]), Decision::Pause("downtime"));
        assert_eq!(decide(&[262_144, 250_000]), Decision::Pause("not-converging"));
        assert_eq!(decide(&[262_144, 90_000, 80_000]), Decision::Pause("not-converging"));
        assert_eq!(decide(&[100_000; 10]), Decision::Pause("rounds"));
        assert_eq!(decide(&[0]), Decision::Pause("downtime"));
    }
}
