//! `--snapshot`: the memory of one instant, saved behind the running target.
//!
//! The pause reads everything but page contents and write-protects the memory ([`crate::memory::snapshot`]); what cannot be
//! protected is copied in it. Where that is not possible, or the target gives memory back faster than it is saved, the instant is
//! another one, reached by rounds: an image is of one instant in any case.

use super::memory::{self, Rounds, Taken};
use super::place::{Identities, Place};
use super::writing::Writing;
use super::{HOLD_MAX, Job, Parts, ahead, counted, injected};
use crate::collect::mappings::Mappings;
use crate::collect::{Collection, Policy, ShmemSource, Sources};
use crate::failure::{Failure, Result, TargetState};
use crate::fault::{self, Point};
use crate::image::mm::PAGE;
use crate::image::{MmId, Model, Pid};
use crate::memory::rounds::{Copied, Named, Residual};
use crate::memory::snapshot::ahead::Ahead;
use crate::memory::snapshot::{Candidate, Snapshot, eager, is_possible};
use crate::memory::track::uffd;
use crate::memory::{PageRange, RangeSet, Space};
use crate::net::lock::NetLock;
use crate::ops::options::{DumpOptions, ImagePlace};
use crate::ops::outcome::{Outcome, Round, State, Where};
use crate::ops::surety::Surety;
use crate::ops::{Event, interrupt};
use crate::proc::ProcDir;
use crate::sys::eventfd::eventfd;
use crate::trace::freeze::Frozen;
use crate::trace::pages::TargetPages;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

/// What became of the attempt.
pub(super) enum Attempt {
    /// All pages are in the image; what it is the memory of.
    Saved(Box<Model>),
    /// Nothing was written: this is why.
    Unable(String),
    /// What was written is of no use: this is why.
    Lost(String),
}

/// More than this is said when it is copied in the pause, bytes.
const TELL: u64 = 1 << 20;

/// What a pause has left, the target still standing.
struct Standing {
    frozen: Frozen,
    locks: Vec<NetLock>,
    parts: Parts,
    rest: Rest,
    // Dropped before the target goes on.
    snapshot: Snapshot,
}

/// What is needed when the target runs again.
struct Rest {
    model: Model,
    residual: Residual,
    identities: Identities,
    /// Contents of pages that are not protected.
    copied: Copied,
    copied_plan: Vec<(Space, PageRange)>,
}

/// Saves the target's memory; gives the place back, with the model where that worked, and as new where rounds have to do.
///
/// # Errors
/// What no other way could help; the target runs.
pub(super) fn dump(
    options: &DumpOptions,
    job: &Job<'_>,
    policy: &Policy,
    place: Place,
    outcome: &mut Outcome,
    surety: &mut Surety,
) -> Result<(Place, Option<Model>)> {
    let running = |failure: Failure| failure.target(TargetState::Running);
    if let Some(taken) = Taken::of(job.root) {
        // Memory has one userfaultfd at a time.
        taken.end();
    }
    let warn = |text: String| job.events.event(Event::Warning(text));
    match attempt(job, policy, &place, outcome, surety).map_err(running)? {
        Attempt::Saved(model) => Ok((place, Some(*model))),
        Attempt::Unable(why) => {
            warn(format!("the memory cannot be write-protected: {why}; the instant is taken in rounds"));
            Ok((place, None))
        }
        Attempt::Lost(why) => {
            if options.image == ImagePlace::Stream {
                let hint = "dump into a directory (-D), or without --snapshot";
                return Err(running(Failure::new(format!("the snapshot is lost: {why}")).hint(hint)));
            }
            warn(format!("the snapshot is lost: {why}; the instant is taken anew, in rounds"));
            drop(place);
            outcome.rounds.clear();
            Ok((Place::begin(options, job.known, super::compression(options.memory.compress))?, None))
        }
    }
}

fn attempt(
    job: &Job<'_>,
    policy: &Policy,
    place: &Place,
    outcome: &mut Outcome,
    surety: &mut Surety,
) -> Result<Attempt> {
    if !is_possible() {
        return Ok(Attempt::Unable("that needs Linux 6.13".to_owned()));
    }
    let stop = eventfd(0).map_err(|e| Failure::of("cannot make an eventfd", &e))?;
    let Standing { frozen, locks, mut parts, rest, snapshot } = match stand(job, policy, place, outcome, surety)? {
        Ok(standing) => standing,
        Err(why) => return Ok(Attempt::Unable(why)),
    };
    counted(outcome, &rest.model);
    let saved = std::thread::scope(|scope| -> Result<()> {
        // Before anything of the target runs, and before our own writes to its memory, which wait like any other.
        let serve = || snapshot.serve(stop.as_fd());
        let server = std::thread::Builder::new().name("snapshot".to_owned()).spawn_scoped(scope, serve);
        let _stop = Stop(stop.as_fd());
        // Dropped before the server is told to stop, in every case.
        let (frozen, locks) = (frozen, locks);
        if let Err(e) = server {
            snapshot.release();
            return Err(Failure::of("cannot start a thread", &e));
        }
        let since = frozen.since;
        drop(locks);
        frozen.thaw().map_err(|e| Failure::of("cannot release the target", &e))?;
        surety.given_back();
        parts.end("release");
        outcome.downtime = Some(since.elapsed());
        fault::at(Point::DumpSnapshot).map_err(injected)?;
        save(job, place, &snapshot, &rest, outcome)
    });
    if let Some(lost) = snapshot.lost() {
        return Ok(Attempt::Lost(lost.to_string()));
    }
    saved?;
    if !snapshot.is_done() {
        return Err(Failure::new("not every page of the snapshot was saved: a defect of this program"));
    }
    fault::at(Point::DumpPages).map_err(injected)?;
    outcome.faults = Some(snapshot.faults() as u64);
    outcome.downtime_parts = parts.parts;
    (outcome.state, outcome.place, outcome.mode) = (State::Running, Where::Both, Some("snapshot"));
    Ok(Attempt::Saved(Box::new(rest.model)))
}

/// Tells the server that nobody needs it any more.
pub(super) struct Stop<'f>(pub BorrowedFd<'f>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        // A counter that was never written to takes this.
        let _ = nix::unistd::write(self.0, &1u64.to_ne_bytes());
    }
}

/// Writes everything, slice by slice, while the target runs.
fn save(job: &Job<'_>, place: &Place, snapshot: &Snapshot, rest: &Rest, outcome: &mut Outcome) -> Result<()> {
    let began = Instant::now();
    let writing = Writing { job, place, out: place.sink(), identities: &rest.identities };
    writing.marks(&rest.residual)?;
    let pages = rest.residual.plan.iter().map(|(_, r)| r.count).sum::<u64>();
    let told = memory::progress(job, "memory", pages * PAGE);
    let pace = memory::pace(place, job.bandwidth);
    let progress = |bytes| {
        told(bytes);
        pace();
    };
    loop {
        let plan = snapshot.next();
        if plan.is_empty() || snapshot.lost().is_some() {
            break;
        }
        interrupt::check()?;
        writing.pages(snapshot, &plan, &progress)?;
    }
    writing.pages(&rest.copied, &rest.copied_plan, &progress)?;
    outcome.rounds.push(Round { number: 1, pages, bytes: pages * PAGE, took: began.elapsed() });
    writing.names(&rest.residual)
}

/// Stops the tree, reads it, protects its memory and copies the rest. The inner error: why that cannot be.
fn stand(
    job: &Job<'_>,
    policy: &Policy,
    place: &Place,
    outcome: &mut Outcome,
    surety: &mut Surety,
) -> Result<std::result::Result<Standing, String>> {
    let mut early = ahead::begin(job)?;
    let stands = match &early {
        // Until it stands, somebody may wait to write.
        Some(early) => ahead::serving(early, || {
            let cost = ahead::protect(job, early)?;
            outcome.notes.extend(told(early, cost));
            super::stand(job, policy, &mappings(job.known), surety)
        })?,
        None => super::stand(job, policy, &mappings(job.known), surety),
    };
    let (mut frozen, Collection { mut model, sources, locks, .. }, mut parts) = stands?;
    let residual = memory::residual(&model, &sources, &mut Rounds::none())?;
    parts.end("scan");
    residual.kin.iter().for_each(|(child, parent)| model.mms[child.at()].cow_parent = Some(*parent));
    let identities = place.identities(&model, &sources);
    let armed = candidates(&mut frozen, &model, &sources, &residual, &mut early)
        .and_then(|all| Snapshot::arm(all).map_err(|e| e.to_string()));
    let (snapshot, owed) = match armed {
        Ok(armed) => armed,
        Err(why) => return Ok(Err(why)),
    };
    parts.end("protect");
    let copied_plan = unprotected(&residual, &owed);
    let bytes = copied_plan.iter().map(|(_, r)| r.bytes()).sum::<u64>();
    if bytes > HOLD_MAX {
        return Ok(Err(format!("{} MiB are of a kind that cannot be", bytes >> 20)));
    }
    let pages = TargetPages::new(sources.mms, sources.shmems.into_iter().map(|ShmemSource::File(file)| file).collect());
    let copied = Copied::of(&Named::new(&pages, &residual.names), &copied_plan)
        .map_err(|e| Failure::of("cannot copy the target's memory", &e))?;
    parts.end("pages");
    if bytes > TELL {
        let text = format!("{} MiB cannot be write-protected (files, shared memory): copied in the pause", bytes >> 20);
        job.events.event(Event::Warning(text));
    }
    let rest = Rest { model, residual, identities, copied, copied_plan };
    Ok(Ok(Standing { frozen, locks, parts, rest, snapshot }))
}

/// For the report: what was done before the pause.
fn told(early: &Ahead, cost: ahead::Cost) -> Option<String> {
    let (stops, longest) = (cost.stops, cost.longest.as_secs_f64() * 1e3);
    let writes = early.faults();
    let what = format!(
        "memory was protected before the pause, in {stops} stops of at most {longest:.1} ms; {writes} writes waited"
    );
    (stops > 0).then_some(what)
}

/// Mappings as they are a moment before the pause, which would take longer to read them.
fn mappings(processes: &[Pid]) -> HashMap<Pid, Mappings> {
    let mut buf = Vec::new();
    let mut read = |pid: &Pid| Some((*pid, ProcDir::open(*pid).ok()?.smaps_flags(&mut buf).ok()?));
    processes.iter().filter_map(&mut read).collect()
}

/// A userfaultfd for each address space, with what may be protected of it; else why there is none.
fn candidates<'m>(
    frozen: &mut Frozen,
    model: &'m Model,
    sources: &Sources,
    residual: &Residual,
    early: &mut Option<Ahead>,
) -> std::result::Result<Vec<Candidate<'m>>, String> {
    let mut all = Vec::new();
    for (n, (mm, pid)) in model.mms.iter().zip(&sources.mms).enumerate() {
        let space = Space::Mm(MmId::from(n));
        let held: RangeSet = residual.plan.iter().filter(|(s, _)| *s == space).map(|(_, range)| *range).collect();
        let Some(process) = frozen.processes.iter_mut().find(|p| p.pid == *pid).filter(|_| !held.is_empty()) else {
            continue;
        };
        let kept = early.as_mut().and_then(|early| early.hand_over(*pid));
        let ahead = kept.is_some();
        let uffd = match kept {
            Some(uffd) => uffd,
            None => uffd::arm_synchronous(process).map_err(|e| e.to_string())?,
        };
        let spared = eager::pages(model, MmId::from(n), *pid).map_err(|e| format!("memory of process {pid}: {e}"))?;
        all.push(Candidate { space, pid: *pid, uffd, mm, held, spared, ahead });
    }
    Ok(all)
}

/// What of the plan is not protected.
fn unprotected(residual: &Residual, owed: &[(Space, RangeSet)]) -> Vec<(Space, PageRange)> {
    let mut rest = Vec::new();
    for of_one in residual.plan.chunk_by(|a, b| a.0 == b.0) {
        let space = of_one[0].0;
        let all: RangeSet = of_one.iter().map(|(_, range)| *range).collect();
        let left = match owed.iter().find(|(s, _)| *s == space) {
            Some((_, owed)) => all.difference(owed),
            None => all,
        };
        rest.extend(left.iter().map(|range| (space, range)));
    }
    rest
}
