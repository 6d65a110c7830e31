//! `migrate dump`: a tree becomes an image.
//!
//! Memory is taken in rounds while the target runs ([`rounds`]); inside the pause come only the collection of everything
//! else, a last look at the page tables, and the pages that were written since. A target that is to run on goes on as soon as
//! those pages are copied to our memory; one that is to end does so after the image is complete, synced and renamed.

mod ahead;
pub(super) mod memory;
pub(super) mod place;
mod snapshot;
mod writing;

use super::options::{AfterDump, Compress, DumpOptions, Stdio, Tcp, Track};
use super::outcome::{Outcome, State, Where};
use super::surety::Surety;
use super::systemd::HeldUnits;
use super::words::Target;
use super::{Event, Events, addresses, choices, interrupt, late, preflight, standstill, supervisor, target};
use crate::blocker::{Blocker, codes};
use crate::collect::mappings::Mappings;
use crate::collect::{self, Collection, Policy};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::fault::{self, Point};
use crate::image::mm::PAGE;
use crate::image::{Model, Pid};
use crate::memory::pipeline::default_workers;
use crate::memory::rounds::{Copied, Named};
use crate::memory::store::Compression;
use crate::memory::track::Backend;
use crate::net::address;
use crate::net::lock::NetLock;
use crate::net::nft::{Lifetime, PacketLock};
use crate::proc;
use crate::trace::freeze::Frozen;
use crate::trace::pages::TargetPages;
use crate::trace::sleepers;
use memory::{Rounds, Taken};
use place::{Place, Sink};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use writing::Writing;

/// What does not change in the course of a dump.
pub(super) struct Job<'a> {
    pub root: Pid,
    /// Its processes when the dump began.
    pub known: &'a [Pid],
    pub events: &'a dyn Events,
    pub workers: usize,
    pub resident_bytes: u64,
    pub processes: u32,
    /// Their threads, the first ones too.
    pub threads: u32,
    /// `--bandwidth`, bytes a second.
    pub bandwidth: Option<u64>,
}

/// Saves the target.
///
/// # Errors
/// Whatever keeps the image from being complete; then the target runs on, and nothing of the image is left.
pub fn run(options: &DumpOptions, events: &dyn Events) -> Result<Outcome> {
    super::luggage::no_copies(options.state.files)?;
    let began = Instant::now();
    // Behind a snapshot the target runs on, whatever else was asked for.
    let running = DumpOptions { after: AfterDump::Run, ..options.clone() };
    let options = if options.snapshot { &running } else { options };
    look_ahead(&options.target);
    let resolved = target::resolve(&options.target)?;
    let root = resolved.root(&options.target)?;
    let policy = policy(options);
    let places = addresses_that_leave(options)?;
    late::complete(&resolved.processes, events)?;
    let ends_here = (options.after == AfterDump::End).then_some(options.state.supervisor);
    let findings = preflight::pass(&options.target, &resolved, &policy, ends_here, events)?;
    let mut outcome = Outcome::new(options.session, State::Running, Where::Source);
    outcome.target_pid = Some(root.0);
    if options.dry_run {
        (outcome.processes, outcome.threads) = (Some(findings.processes), Some(findings.threads));
        return Ok(outcome);
    }
    let held = hold(options, &resolved)?;
    let mut surety = Surety::of_connections(findings.tcp && policy.tcp == Tcp::Keep);
    let job = Job {
        root,
        known: &resolved.processes,
        events,
        workers: options.memory.streams.map_or_else(default_workers, usize::from),
        resident_bytes: findings.memory_bytes,
        processes: findings.processes,
        threads: findings.threads,
        bandwidth: options.memory.bandwidth,
    };
    let place = Place::begin(options, &resolved.processes, compression(options.memory.compress))?;
    let (place, model) = match options.snapshot {
        true => snapshot::dump(options, &job, &policy, place, &mut outcome, &mut surety)?,
        false => (place, None),
    };
    match model {
        Some(model) => complete(options, place, &model)?,
        None => by_rounds(options, &job, &policy, place, places, &mut outcome, &mut surety)?,
    }
    warnings_of(held).for_each(|warning| events.event(Event::Warning(warning)));
    outcome.total = Some(began.elapsed());
    outcome.pages = Some(outcome.rounds.iter().map(|r| r.pages).sum());
    outcome.bytes = Some(outcome.rounds.iter().map(|r| r.bytes).sum());
    Ok(outcome)
}

/// Where a process has many threads they are looked at beside what comes before the stop, which may be little.
fn look_ahead(target: &Target) {
    let Target::Pid(pid) = target else { return };
    if proc::task::about_how_many(*pid) >= sleepers::FEW as u64 {
        sleepers::look_ahead(vec![*pid]);
    }
}

/// Memory in rounds while the target runs, or in one go; then the pause, and what becomes of the target.
fn by_rounds(
    options: &DumpOptions,
    job: &Job<'_>,
    policy: &Policy,
    mut place: Place,
    places: Vec<address::Place>,
    outcome: &mut Outcome,
    surety: &mut Surety,
) -> Result<()> {
    let taken = match Taken::of(job.root) {
        // Without rounds everything is compared.
        Some(taken) if !options.stop_first => taken.fitting(&mut place, job.events),
        _ if options.parent.is_some() => {
            memory::warn_compared(job.events);
            None
        }
        _ => None,
    };
    let sink = Sink::of(&place, backend(options.memory.track)?);
    let mut rounds = match options.stop_first {
        true => Rounds::none(),
        false => memory::run(job, &sink, &place, taken).map_err(|f| f.target(TargetState::Running))?,
    };
    interrupt::check().map_err(|failure| failure.target(TargetState::Running))?;
    let mut paused = pause((options, policy), job, &place, &sink, &mut rounds, outcome, surety)?;
    drop(sink);
    complete(options, place, &paused.model)?;
    paused.parts.end("image");
    if let Some(frozen) = paused.held.take() {
        let since = frozen.since;
        finish(options, frozen, (paused.locks, surety), places, outcome)?;
        outcome.downtime = (options.after != AfterDump::End).then(|| since.elapsed());
    } else {
        // It has run since before the image was written.
        paused.parts.parts.pop();
    }
    outcome.downtime_parts = paused.parts.parts;
    rounds.end_tracking();
    outcome.mode = Some(if rounds.tree.is_some() { "pre-copy" } else { "stop-and-copy" });
    outcome.exit_condition = rounds.exit_condition;
    Ok(())
}

/// Completes the image of a target of which all pages are written.
fn complete(options: &DumpOptions, place: Place, model: &Model) -> Result<()> {
    let running = |failure: Failure| failure.target(TargetState::Running);
    // The last moment at which nothing has happened.
    interrupt::check().map_err(running)?;
    fault::at(Point::DumpModel).map_err(injected)?;
    place.finish(model, choices::to_note(&options.state)).map_err(running)?;
    fault::at(Point::DumpCommitted).map_err(injected)
}

/// Units that would start the target again when it ends here.
fn hold(options: &DumpOptions, resolved: &target::Resolved) -> Result<Option<HeldUnits>> {
    if options.after != AfterDump::End {
        return Ok(None);
    }
    let choice = supervisor::choice(&options.target, options.state.supervisor);
    supervisor::hold(resolved, choice, options.session).map_err(|failure| failure.target(TargetState::Running))
}

/// What a person should know of the units that were held.
fn warnings_of(held: Option<HeldUnits>) -> impl Iterator<Item = String> {
    held.map(HeldUnits::after_end).unwrap_or_default().into_iter()
}

/// How dirty pages are found, if that works here.
pub(super) fn backend(track: Track) -> Result<Backend> {
    let wanted = match track {
        Track::Auto => return Ok(Backend::choose()),
        Track::WriteProtect => Backend::WriteProtect,
        Track::SoftDirty => Backend::SoftDirty,
        Track::SoftDirtyPagemap => Backend::SoftDirtyPagemap,
        Track::Hash => Backend::Hash,
    };
    if wanted.works() {
        return Ok(wanted);
    }
    let blocker = Blocker::new(codes::TRACKING, format!("--track {}", wanted.name()));
    Err(Failure::blocked("the target's writes cannot be tracked", vec![blocker]).target(TargetState::Untouched))
}

pub(super) fn compression(compress: Compress) -> Compression {
    match compress {
        Compress::Auto => Compression::Auto,
        Compress::Off => Compression::Off,
        Compress::Level(level) => Compression::Zstd(level.into()),
    }
}

/// Addresses that are to be taken off this host when the target ends.
fn addresses_that_leave(options: &DumpOptions) -> Result<Vec<address::Place>> {
    if options.after != AfterDump::End && !options.state.move_addresses.is_empty() {
        let what = "the target stays here, and so does its address: --move-address is for a dump that ends it";
        return Err(Failure::new(what).kind(FailureKind::Usage).target(TargetState::Untouched));
    }
    addresses::here(&options.state).map_err(|failure| failure.target(TargetState::Untouched))
}

fn policy(options: &DumpOptions) -> Policy {
    Policy {
        tcp: options.state.tcp,
        external_unix: options.state.external_unix.unwrap_or_default(),
        lacks_memory: false,
        allow_external_stdio: !matches!(options.state.stdio, Stdio::Auto | Stdio::Refuse),
    }
}

fn injected(fault: fault::Injected) -> Failure {
    Failure::of("cannot save the target", &fault).target(TargetState::Running)
}

/// Measures the parts of the pause.
struct Parts {
    last: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Parts {
    fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        self.parts.push((name, now - self.last));
        self.last = now;
    }
}

/// A target that runs on is released before its last pages are written if they are at most this many bytes.
const HOLD_MAX: u64 = 512 << 20;

/// What the pause leaves behind.
struct Paused {
    model: Model,
    /// The target, if it waits for the image to be complete.
    held: Option<Frozen>,
    /// Its TCP sockets; dropped, its connections go on.
    locks: Vec<NetLock>,
    parts: Parts,
}

/// Stops the tree and reads it, and measures that.
fn stand(
    job: &Job<'_>,
    policy: &Policy,
    known: &HashMap<Pid, Mappings>,
    surety: &mut Surety,
) -> Result<(Frozen, Collection, Parts)> {
    let mut parts = Parts { last: Instant::now(), parts: Vec::new() };
    let mut told = false;
    let stopped = |frozen: &Frozen| {
        parts = Parts { last: frozen.since, parts: Vec::new() };
        parts.end("freeze");
        if !std::mem::replace(&mut told, true) {
            job.events.event(Event::Frozen);
        }
        fault::at(Point::DumpFrozen).map_err(injected)
    };
    let (frozen, collection) = standstill::reach((job.root, job.known), policy, known, stopped, surety)?;
    parts.end("state");
    interrupt::check().map_err(|failure| failure.target(TargetState::Running))?;
    fault::at(Point::DumpCollected).map_err(injected)?;
    Ok((frozen, collection, parts))
}

/// The freeze and everything in it.
fn pause(
    (options, policy): (&DumpOptions, &Policy),
    job: &Job<'_>,
    place: &Place,
    sink: &Sink<'_>,
    rounds: &mut Rounds,
    outcome: &mut Outcome,
    surety: &mut Surety,
) -> Result<Paused> {
    let running = |f: Failure| f.target(TargetState::Running);
    let known = std::mem::take(&mut rounds.mappings);
    let (frozen, Collection { mut model, sources, mut locks, .. }, mut parts) = stand(job, policy, &known, surety)?;
    let frozen_at = frozen.since;
    let residual = memory::residual(&model, &sources, rounds).map_err(running)?;
    parts.end("scan");
    residual.kin.iter().for_each(|(child, parent)| model.mms[child.at()].cow_parent = Some(*parent));
    let identities = place.identities(&model, &sources);
    let shmems = sources.shmems.into_iter().map(|collect::ShmemSource::File(f)| f).collect();
    let known = |pid| rounds.tree.as_ref().and_then(|tree| tree.sharing(pid));
    let pages = TargetPages::new(sources.mms, shmems).sharing(known);
    let source = Named::new(&pages, &residual.names);
    let bytes = residual.plan.iter().map(|(_, r)| r.bytes()).sum::<u64>();
    counted(outcome, &model);
    let write = |from: &dyn crate::memory::pipeline::ReadPages, rate: Option<u64>| -> Result<()> {
        Writing { job, place, out: sink.get(), identities: &identities }.residual(&residual, from, rate)
    };
    let took;
    let mut held = None;
    if options.after == AfterDump::Run && bytes <= HOLD_MAX {
        let copied = Copied::of(&source, &residual.plan)
            .map_err(|e| running(Failure::of("cannot copy the target's memory", &e)))?;
        parts.end("pages");
        locks.clear();
        frozen.thaw().map_err(|e| running(Failure::of("cannot release the target", &e)))?;
        parts.end("release");
        took = frozen_at.elapsed();
        outcome.downtime = Some(took);
        rounds.end_tracking();
        write(&copied, job.bandwidth).map_err(running)?;
        (outcome.state, outcome.place) = (State::Running, Where::Both);
    } else {
        // A target that waits is not kept waiting for a rate, unless it was to be stopped for all of it.
        write(&source, job.bandwidth.filter(|_| options.stop_first)).map_err(running)?;
        parts.end("pages");
        took = frozen_at.elapsed();
        held = Some(frozen);
    }
    fault::at(Point::DumpPages).map_err(injected)?;
    outcome.rounds = std::mem::take(&mut rounds.done);
    let number = outcome.rounds.len() as u32 + 1;
    outcome.rounds.push(super::outcome::Round { number, pages: bytes / PAGE, bytes, took });
    Ok(Paused { model, held, locks, parts })
}

/// Tells who the target is.
fn counted(outcome: &mut Outcome, model: &Model) {
    outcome.processes = Some(model.tasks.len() as u32);
    outcome.threads = Some(model.tasks.iter().map(|t| t.threads.len() as u32).sum());
    outcome.target_comm = model.root().threads.first().map(|t| t.comm.to_string());
}

/// Ends, stops or releases the target, now that the image is complete.
fn finish(
    options: &DumpOptions,
    frozen: Frozen,
    (locks, surety): (Vec<NetLock>, &Surety),
    places: Vec<address::Place>,
    outcome: &mut Outcome,
) -> Result<()> {
    let failed = |e: crate::trace::Error| Failure::of("the image is complete, but the target could not be ended", &e);
    match options.after {
        AfterDump::End => {
            (outcome.state, outcome.place) = (State::Ended, Where::Nowhere);
            // Segments that come in while nobody has the connections must not be answered.
            let packets = crate::net::nft::hold_off(&locks, Lifetime::Stays)
                .map_err(|e| Failure::of("the image is complete, but its connections cannot be held", &e))
                .map_err(|f| f.hint("--tcp close ends them instead").target(TargetState::Running))?;
            let gone = addresses::Gone::take(places)
                .map_err(|e| Failure::of("the image is complete, but an address cannot be moved", &e))
                .map_err(|f| f.target(TargetState::Running))?;
            frozen.kill().map_err(|e| failed(e).kind(FailureKind::NeedsPerson).target(TargetState::Held))?;
            gone.leave();
            // The last close of a locked socket is silent: the peer must not learn of this end.
            locks.into_iter().for_each(NetLock::keep);
            packets.into_iter().for_each(PacketLock::keep);
            Ok(())
        }
        AfterDump::Run => {
            drop(locks);
            (outcome.state, outcome.place) = (State::Running, Where::Both);
            frozen.thaw().map_err(failed)
        }
        AfterDump::Stop => {
            drop(locks);
            // Nobody is to continue it.
            surety.forget();
            (outcome.state, outcome.place) = (State::Stopped, Where::Both);
            frozen.thaw_stopped().map_err(failed)
        }
    }
}
