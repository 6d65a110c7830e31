//! `migrate move`: a running tree goes to another host. The source's end: the engine behind
//! [`crate::migration::source`]; `begin` before anything has happened to the target, `look` at it when it stands still.

use super::guardian::{Charge, Guardian};
use super::held_locks::GivenUp;
use super::hooks::{HookPoint, Hooks, Side};
use super::network::Leaving;
use super::offered::Offered;
use super::options::{Compress, Mode, ModeOptions, MoveOptions, StateOptions, Stdio};
use super::outcome::{Outcome, State, Where};
use super::places::Places;
use super::supervisor;
use super::systemd::HeldUnits;
use super::target::Resolved;
use super::{
    Event, Events, addresses, cascade, clones, fence, late, luggage, many, outside, preflight, proxies, reach,
    standstill,
};
use crate::collect::preflight::{Findings, size::Size};
use crate::collect::{self, Collection, Policy, ShmemSource, Sources, sysv};
use crate::companion::held::Held;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::files;
use crate::image::{Bytes, MmId, Model, Pid, codec};
use crate::memory::pipeline::ReadPages;
use crate::memory::rounds::{Named, Residual, Tree, inherit_at_once};
use crate::memory::shared::Objects;
use crate::memory::track::{Backend, TrackError};
use crate::memory::{PageRange, RangeSet, Space, scan};
use crate::migration::MoveError;
use crate::migration::common_pages::desk::Account;
use crate::migration::conventions::Conventions;
use crate::migration::handover::Candidate;
use crate::migration::pages::{Run, What};
use crate::migration::protocol::{AttemptId, SpaceName, TargetSummary};
use crate::migration::report::Report;
use crate::migration::source::{
    Again, Compression, Fence, Final, Plan, Send, SendSegments, StandBy, Still, Survey, Taken, Target, Wishes,
};
use crate::migration::switchover::{Goals, Step};
use crate::migration::warm::Warm;
use crate::proc::ProcDir;
use crate::proc::cgroupfs;
use crate::proc::cpu_limit::CpuLimit;
use crate::proc::smaps::Flagged;
use crate::proc::table::Table;
use crate::trace::freeze::Frozen;
use crate::trace::pages::TargetPages;
use crate::transport::{Abort, Link};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

mod begin;
mod look;

use look::LastLook;

/// Between two states of a target that come back.
const STATES_MIN: Duration = Duration::from_millis(10);

/// Moves the target. `abort` rolls it back until the moment of handing over.
///
/// # Errors
/// [`FailureKind::Blocked`], [`FailureKind::Peer`], and whatever else keeps it here; the failure says where it runs.
pub fn run(options: &MoveOptions, events: &dyn Events, abort: &Abort) -> Result<Outcome> {
    many::refuse(options)?;
    run_when(options, None, events, abort)
}

/// The same, once the warm-up says so if there is one.
///
/// # Errors
/// As [`run`].
pub(super) fn run_when(
    options: &MoveOptions,
    warm: Option<&Warm>,
    events: &dyn Events,
    abort: &Abort,
) -> Result<Outcome> {
    refuse(options)?;
    cascade::refuse(options)?;
    proxies::or_directly(options, events, abort, &|options| attempt(options, warm, events, abort))
}

fn attempt(options: &MoveOptions, warm: Option<&Warm>, events: &dyn Events, abort: &Abort) -> Result<Outcome> {
    let looked = look(options, events)?;
    let root = looked.root;
    let peers = many::names(&options.dests);
    let mut hooks = Hooks::new(Side::Source, options.state.hooks.clone(), options.session.to_string(), peers);
    hooks.target_pid = Some(root.0);
    hooks.run(HookPoint::Preflight, events).map_err(|failure| failure.target(TargetState::Running))?;
    let backend = backend(options)?;
    let addresses = addresses::here(&options.state).map_err(|failure| failure.target(TargetState::Running))?;
    let (asked, many::Reached { links, ways }) = (options.dests.len(), many::connect(options, events, abort)?);
    let (links, (places, vias)): (Vec<Link>, (Vec<usize>, Vec<_>)) = links.into_iter().unzip();
    let vias = Mutex::new(vias);
    let dests = places.iter().map(|place| options.dests[*place].clone()).collect();
    let options = &MoveOptions { dests, ..options.clone() };
    let (journals, session) = (Places::here().state.join("moves"), options.session.to_string());
    let files = luggage::wish(options, &supervisor::directories(&looked.resolved))
        .map_err(|failure| failure.target(TargetState::Running))?;
    let link_again = |to: Candidate, ends: Option<&Abort>| match (&ways, ends, options.dests.get(usize::from(to.0))) {
        // One that a warm-up has lost comes back by the way that the others go.
        (Some(ways), Some(ends), Some(dest)) => {
            let (link, via) = proxies::link(ways, dest, (&options.peer, 0), events, ends)?;
            vias.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(to.0)] = via;
            Ok(link)
        }
        _ => reach::again(&options.dests, to, (&options.peer, ways.as_ref()), ends.unwrap_or(abort)),
    };
    let again = Some(Again::new(&link_again));
    let command = options
        .mode
        .fence
        .as_ref()
        .map(|command| |who: Candidate| fence::switch_off(command, &many::name(&options.dests, who), &session));
    let fence = command.as_ref().map(|command| Fence { command, after: options.peer.peer_timeout });
    let wishes = Wishes {
        stop_and_copy: backend.is_none(),
        uplink_copies: ways.as_ref().map(|ways| ways.copies),
        again,
        fence,
        files,
        warm,
        standby: standby(options, warm),
        states: many::states(options, &places)?,
        ..wishes(options, &journals)?
    };
    let mut live = Live::new(options, looked, backend.unwrap_or(Backend::Hash), addresses, (hooks.clone(), events));
    live.same_host = links.iter().any(Link::is_same_host);
    // In a warm-up its supervisor goes on to look after it, until the pause.
    match warm {
        Some(warm) => warm.begins(options.dests.iter().map(ToString::to_string).collect()),
        None => live.hold_units()?,
    }
    live.holds_late = warm.is_some();
    let mut moved = many::run(links, &mut live, &wishes, events, abort);
    if let (Some(ways), Ok(report)) = (&ways, &mut moved) {
        proxies::complete(report, ways, &vias.lock().unwrap_or_else(PoisonError::into_inner));
    }
    live.part(&moved);
    release(live.held.take(), &moved, events);
    hooks.dest_pid = moved.as_ref().ok().and_then(|report| report.pid);
    run_last(options, &hooks, &moved, events);
    let mut report = moved.map_err(|error| failure(options, error))?;
    let observer = report.observer.take();
    report.warnings.iter().for_each(|warning| events.event(Event::Warning(warning.clone())));
    let mut outcome = outcome(options, root.0, report, (std::mem::take(&mut live.at_once), live.was_frozen));
    drop(live);
    outcome.via = ways.map_or_else(Vec::new, |_| options.peer.via.iter().map(ToString::to_string).collect());
    cascade::follow(options, observer, clones::complete(outcome, options, (&places, asked)), events, abort)
}

/// States that destinations of a warm-up keep for the death of this host.
fn standby(options: &MoveOptions, warm: Option<&Warm>) -> Option<StandBy> {
    let every = warm.and_then(Warm::standby)?;
    Some(StandBy { every, dests: options.dests.iter().map(ToString::to_string).collect() })
}

/// The way to what the other trees of an evacuation share with this one. Without it all of its pages are sent.
fn common(options: &MoveOptions) -> Option<Arc<Account>> {
    let [dest] = options.dests.as_slice() else { return None };
    let account = Account::at(&Places::here().run, options.common?, dest.to_string());
    account.inspect_err(|error| tracing::info!(%error, "nothing is shared with other trees")).ok().map(Arc::new)
}

/// A target in which nothing is in the way.
struct Looked {
    resolved: Resolved,
    /// Of all its processes.
    root: Pid,
    policy: Policy,
    findings: Findings,
}

/// The preflight on this side.
fn look(options: &MoveOptions, events: &dyn Events) -> Result<Looked> {
    let policy = Policy { tcp: clones::tcp(options), ..policy(&options.state) };
    late::complete(&super::target::resolve(&options.target)?.processes, events)?;
    // Whose original goes on has no supervisor that would start it again.
    let ends_here = Some(options.state.supervisor).filter(|_| !clones::original_stays(options));
    let (resolved, findings) = preflight::look_again(&options.target, &policy, ends_here)?;
    let root = resolved.root(&options.target)?;
    if !findings.blockers.is_empty() {
        return Err(Failure::blocked(format!("{} cannot be moved", options.target), findings.blockers)
            .target(TargetState::Running));
    }
    preflight::warn(&findings, events);
    Ok(Looked { resolved, root, policy, findings })
}

/// What does not go together.
fn refuse(options: &MoveOptions) -> Result<()> {
    clones::refuse(options)?;
    if options.state.stdio != Stdio::Attach {
        return refuse_recoverable(options);
    }
    let what = "--stdio attach does not reach from another host to this terminal";
    Err(Failure::new(what).hint("use --stdio log or --stdio null").kind(FailureKind::Usage))
}

/// What does not go together with states that come back.
fn refuse_recoverable(options: &MoveOptions) -> Result<()> {
    let Some(every) = options.mode.recoverable else { return Ok(()) };
    let what = if !may_follow(&options.mode) {
        "--recoverable is for memory that follows: with --mode post-copy, hybrid or auto"
    } else if every < STATES_MIN {
        "--recoverable takes no state more often than every 10 ms"
    } else if !options.state.move_addresses.is_empty() {
        "--recoverable brings no address back: not with --move-address"
    } else if options.state.stdio == Stdio::Log {
        "--recoverable does not bring back what --stdio log writes: use --stdio null"
    } else {
        return Ok(());
    };
    Err(Failure::new(what).kind(FailureKind::Usage))
}

/// The hooks of a move that has come to its end: whatever they say, it stays as it is. Nothing is done where a copy was made of what
/// goes on.
fn run_last(options: &MoveOptions, hooks: &Hooks, moved: &std::result::Result<Report, MoveError>, events: &dyn Events) {
    let point = match moved {
        Err(MoveError::InDoubt { .. } | MoveError::NotResumed { .. }) => return,
        Ok(_) if clones::original_stays(options) => return,
        Ok(_) => HookPoint::Done,
        Err(_) => HookPoint::RolledBack,
    };
    if !options.dry_run {
        hooks.run_all(point, events).into_iter().for_each(|text| events.event(Event::Warning(text)));
    }
}

fn release(held: Option<HeldUnits>, moved: &std::result::Result<Report, MoveError>, events: &dyn Events) {
    match (held, moved) {
        (Some(held), Ok(_)) => held.after_end().into_iter().for_each(|text| events.event(Event::Warning(text))),
        // Until somebody decides.
        (Some(held), Err(MoveError::InDoubt { .. })) => held.leave(),
        _ => {}
    }
}

/// How writes are found; `None` = no rounds, because they were not wanted or would not pay.
fn backend(options: &MoveOptions) -> Result<Option<Backend>> {
    let backend = super::dump::backend(options.memory.track)?;
    // For a small target, too: what rounds take over is out of the pause, and they tell which processes share pages, without
    // which the destination cannot make a tree of several ahead of time.
    let rounds = !matches!(options.mode.mode, Mode::StopAndCopy | Mode::PostCopy);
    // By comparison alone every round is a whole copy: the pause would gain nothing.
    Ok(Some(backend).filter(|backend| rounds && *backend != Backend::Hash))
}

/// The wishes as the protocol takes them, but for what depends on the destinations.
pub(super) fn wishes<'a>(options: &MoveOptions, journals: &'a std::path::Path) -> Result<Wishes<'a>> {
    Ok(Wishes {
        session: options.session.to_string(),
        asked_for: options.target.to_string(),
        goals: Goals {
            downtime_max: options.mode.max_downtime,
            rounds_max: options.mode.max_rounds,
            time_max: options.mode.max_time,
            bytes_max: options.mode.max_bytes,
            exit_when: options.mode.exit_when.clone(),
            converge: many::steps(options, steps(&options.mode)),
        },
        stop_and_copy: false,
        follows: matches!(options.mode.mode, Mode::PostCopy | Mode::Hybrid),
        may_follow: may_follow(&options.mode),
        dry_run: options.dry_run,
        compression: match options.memory.compress {
            Compress::Auto => Compression::Auto,
            Compress::Off => Compression::Off,
            Compress::Level(level) => Compression::Level(level.into()),
        },
        bandwidth: options.memory.bandwidth,
        files: Default::default(),
        base: options.base.as_ref().map(|dir| Bytes(dir.as_os_str().as_encoded_bytes().to_vec())),
        states: Vec::new(),
        journals,
        again: None,
        fence: None,
        recoverable: options.mode.recoverable,
        lease: options.lease,
        quorum: options.quorum,
        uplink_copies: None,
        warm: None,
        clones: clones::original(options)?,
        onward: cascade::onward(options)?,
        from_image: options.is_image(),
        standby: None,
        common: common(options),
    })
}

pub(super) fn may_follow(mode: &ModeOptions) -> bool {
    matches!(mode.mode, Mode::PostCopy | Mode::Hybrid) || steps(mode).contains(&Step::PostCopy)
}

/// What is tried for a target that writes as fast as it is sent. Who asks for pre-copy wants all memory there before it runs.
fn steps(mode: &ModeOptions) -> Vec<Step> {
    let wanted = |step: &Step| mode.mode != Mode::PreCopy || *step != Step::PostCopy;
    mode.converge.iter().copied().filter(wanted).collect()
}

/// The choices as a preflight takes them.
pub(super) fn policy(state: &StateOptions) -> Policy {
    Policy {
        tcp: state.tcp,
        external_unix: state.external_unix.unwrap_or_default(),
        lacks_memory: false,
        allow_external_stdio: !matches!(state.stdio, Stdio::Auto | Stdio::Refuse),
    }
}

/// A live tree, for [`source::run`].
struct Live<'a> {
    options: &'a MoveOptions,
    looked: Looked,
    backend: Backend,
    /// Its memory, watched.
    tree: Option<Tree>,
    frozen: Option<Frozen>,
    /// Memory of the frozen tree, by the model's names.
    pages: TargetPages,
    /// What rounds called address spaces, and what the model calls them.
    names: Vec<(Space, Option<Space>)>,
    /// Its TCP sockets and addresses.
    network: Leaving,
    /// Its System V shared memory: goes with it.
    segments: Vec<i32>,
    /// What the model of the survey calls its memory.
    offered: Offered,
    /// Both ends are on one kernel.
    same_host: bool,
    /// File locks of it that the destination takes.
    given_up: GivenUp,
    /// Its processor time, while it is limited.
    slowed: Option<CpuLimit>,
    /// Rounds did not help: memory follows when it runs.
    put_off: bool,
    /// Somebody holds it frozen, which it is to be over there.
    was_frozen: bool,
    /// The frozen tree, where destinations lack different pages that may follow.
    model: Option<Model>,
    /// What could not follow then, for the report.
    at_once: Vec<String>,
    /// Commands at points of the move.
    hooks: Hooks,
    /// Who is told of them.
    events: &'a dyn Events,
    /// Settles the move if this program dies in the handover.
    guardian: Option<Guardian>,
    /// The destination does not know yet that the target stays.
    untold: bool,
    /// Units that would start it again.
    held: Option<HeldUnits>,
    /// They are held when the pause begins.
    holds_late: bool,
}

impl Live<'_> {
    /// The target stays held: another program decides what becomes of it.
    fn leave(&mut self) {
        if let Some(Err(error)) = self.frozen.take().map(Frozen::leave) {
            tracing::error!(%error, "a task of the held target");
        }
    }

    /// The move is over; the guardian goes on where something is left to be settled.
    fn part(&mut self, moved: &std::result::Result<Report, MoveError>) {
        match moved {
            Err(MoveError::InDoubt { .. }) => self.leave(),
            _ if self.untold => self.guardian.take().into_iter().for_each(Guardian::tells),
            _ => self.guardian.take().into_iter().for_each(Guardian::over),
        }
    }

    /// Memory follows when the target runs.
    fn is_late(&self) -> bool {
        self.put_off || matches!(self.options.mode.mode, Mode::PostCopy | Mode::Hybrid)
    }

    fn late_wanted(&self) -> late::Wanted {
        late::Wanted { had_rounds: self.tree.is_some(), recoverable: self.options.mode.recoverable.is_some() }
    }

    fn freeze_and_collect(&mut self) -> Result<(Frozen, Collection)> {
        let root = self.looked.root;
        // Nothing that is sent to the original is for its copies.
        if !clones::only(self.options) {
            self.network.before_freeze(root);
        }
        // Walking the page tables for flags of mappings is done while the target runs.
        let known = self.tree.as_ref().map_or_else(|| mappings(root), Tree::mappings);
        let reached = standstill::reach((root, &[]), &self.looked.policy, &known, |_| Ok(()), &mut self.network);
        // It goes on, and so does a warm-up.
        let (frozen, mut collection) = reached.inspect_err(|_| self.network.resume())?;
        self.network.locked(std::mem::take(&mut collection.locks), &collection.model);
        Ok((frozen, collection))
    }
}

pub(super) fn encoded(model: &Model) -> Result<Vec<u8>> {
    codec::encode(model).map_err(|e| Failure::of("the target's state cannot be written", &e))
}

impl Target for Live<'_> {
    fn survey(&mut self) -> Result<Survey> {
        let size = Size::of(&self.looked.resolved.processes);
        let mut summary = TargetSummary {
            pid: self.looked.root.0,
            comm: String::new(),
            tasks: self.looked.findings.threads,
            memory_bytes: if size.once > 0 { size.unshared } else { self.looked.findings.memory_bytes },
            once_bytes: size.once,
        };
        let (frozen, Collection { model, sources, .. }) = self.freeze_and_collect()?;
        let since = frozen.since;
        self.network.resume();
        self.offered = Offered::of(&model, sources).map_err(|e| Failure::of("cannot read the target's state", &e))?;
        frozen.thaw().map_err(|e| Failure::of("the target could not be released after a look", &e))?;
        let look = since.elapsed();
        summary.comm = comm(&model);
        let is_single = model.mms.len() == 1;
        let files = files::wanted(&model);
        let conventions = Conventions::of(&model);
        Ok(Survey { summary, model: encoded(&model)?, blockers: Vec::new(), is_single, files, look, conventions })
    }

    fn round(&mut self, send: &mut Send<'_>) -> std::result::Result<Taken, MoveError> {
        if self.holds_late {
            self.check_lives()?;
        }
        let failed = |e: TrackError| MoveError::from(Failure::of("cannot watch the target's memory", &e));
        let tree = match &mut self.tree {
            Some(tree) => tree,
            none => none.insert(Tree::watch(self.looked.root, self.backend).map_err(failed)?.with_shared()),
        };
        let round = tree.round().map_err(failed)?;
        let notes = notes(round.inherited(), What::Inherit);
        let plan = Plan { pages: round.plan().to_vec(), notes, spaces: self.offered.names(&round) };
        let taken = send(&plan, &round.source())?;
        if let Taken::Stored { deferred } = &taken {
            round.commit_but(deferred);
        }
        Ok(taken)
    }

    fn slow_down(&mut self, times: usize) -> std::result::Result<(), String> {
        // Of the processors that it can use: all but half, three quarters, nine tenths.
        let thousandths = match times {
            1 => 500,
            2 => 250,
            _ => 100,
        };
        if self.slowed.is_none() {
            let cannot = |e: crate::proc::Error| e.to_string();
            let table = Table::read().map_err(cannot)?;
            let processes = table.tree(self.looked.root);
            let hierarchies = cgroupfs::hierarchies().map_err(cannot)?;
            let limit = CpuLimit::of(&table, &processes, &hierarchies);
            let limit = limit.ok_or("it has no cgroup of its own with a processor controller")?;
            self.network.slows(limit.before());
            self.slowed = Some(limit);
        }
        let threads = self.looked.findings.threads.max(1) as usize;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(threads);
        let slowed = self.slowed.as_ref().expect("set above");
        slowed.set(processors as u64 * thousandths).map_err(|e| e.to_string())
    }

    fn put_off(&mut self) {
        self.put_off = true;
    }

    fn mapped_files(&mut self) -> HashSet<Bytes> {
        luggage::mapped(self.looked.root)
    }

    fn still(&mut self) -> Result<Still> {
        self.stand_still()
    }

    fn freeze(&mut self) -> Result<Final> {
        if self.holds_late {
            self.hold_units()?;
        }
        self.hooks.run(HookPoint::PreFreeze, self.events)?;
        let (frozen, Collection { model, sources, .. }) = self.freeze_and_collect()?;
        let LastLook { model, mut plan, pages, names } = self.last_look(model, sources)?;
        (self.pages, self.names) = (pages, names);
        self.segments = sysv::ids(&model);
        self.was_frozen = !model.frozen.is_empty();
        let spaces = space_names(&model, &self.names);
        let mut later = Vec::new();
        if self.is_late() {
            (later, self.at_once) = late::put_off(&model, &mut plan, &self.names, self.late_wanted());
        }
        self.given_up = GivenUp::plan(&model);
        let files = files::wanted(&model);
        let encoded = encoded(&model)?;
        self.model = Some(model).filter(|_| self.is_late() && self.options.dests.len() > 1);
        self.frozen = Some(frozen);
        self.network.give_up_addresses()?;
        self.hooks.run(HookPoint::Frozen, self.events)?;
        if !clones::only(self.options) {
            self.hooks.run(HookPoint::Network, self.events)?;
        }
        Ok(Final { plan, model: encoded, spaces, later, files })
    }

    fn make_way(&mut self) -> Result<()> {
        match &mut self.frozen {
            Some(frozen) if self.same_host => self.given_up.give_up(frozen),
            _ => Ok(()),
        }
    }

    fn frozen_pages(&self) -> Box<dyn ReadPages + '_> {
        Box::new(Named::new(&self.pages, &self.names))
    }

    fn later_pages(&self) -> Result<Box<dyn ReadPages + std::marker::Send>> {
        let shmems: std::io::Result<_> = self.pages.shmems.iter().map(|file| Ok(file.try_clone()?.into())).collect();
        let shmems = shmems.map_err(|e| Failure::of("cannot read the target's shared memory later", &e))?;
        let (mms, known) = (self.pages.mms.clone(), self.pages.sharing.clone());
        Ok(Box::new(TargetPages { sharing: known, ..TargetPages::new(mms, shmems) }))
    }

    fn can_follow(&self, space: Space, pages: &RangeSet) -> RangeSet {
        let Some(model) = &self.model else { return RangeSet::new() };
        let home = self.names.iter().find(|(from, _)| *from == space).map_or(Some(space), |(_, to)| *to);
        home.map_or_else(RangeSet::new, |space| late::can_follow(model, space, pages, self.late_wanted()))
    }

    fn owners(&self) -> Vec<Pid> {
        self.pages.mms.clone()
    }

    fn frozen_since(&self) -> Option<Instant> {
        self.frozen.as_ref().map(|frozen| frozen.since)
    }

    fn held(&self) -> Result<Held> {
        let frozen = self.frozen.as_ref().ok_or_else(|| Failure::new("the target is not frozen"))?;
        let live = || frozen.processes.iter().filter(|process| !process.zombie);
        let pids: Vec<Pid> = live().map(|process| process.pid).collect();
        let mut held = Held::of(&pids, None).map_err(|e| Failure::of("the target cannot be held", &e))?;
        held.stopped = live().filter(|process| process.stopped_by.is_none()).map(|process| process.pid.0).collect();
        Ok(held)
    }

    fn guard(&mut self, attempt: AttemptId) {
        let charge = Charge::of(attempt, self.options);
        let warn =
            |error: &std::io::Error| tracing::warn!(%error, "if this program dies in the handover a person resolves");
        self.guardian = Guardian::start(&charge).inspect_err(warn).ok();
    }

    fn leave_untold(&mut self) -> bool {
        self.untold = true;
        self.guardian.is_some()
    }

    fn hold(&mut self) -> Result<()> {
        self.hooks.run(HookPoint::PreCommit, self.events)?;
        match &mut self.frozen {
            Some(frozen) => frozen.hold().map_err(|e| Failure::of("the target cannot be held", &e))?,
            None => return Err(Failure::new("the target is not frozen")),
        }
        let late = self.is_late();
        if let Some(guardian) = &mut self.guardian {
            guardian.holds(&self.segments, self.network.lend_guard());
            if late {
                guardian.serves(&self.pages);
            }
        }
        self.network.hold();
        Ok(())
    }

    fn segments_ahead(&mut self) -> Vec<Vec<u8>> {
        self.network.ahead()
    }

    fn forward_segments(
        &mut self,
        to_the_end: bool,
        send: &mut SendSegments<'_>,
    ) -> std::result::Result<(), MoveError> {
        self.network.forward(to_the_end, send)
    }

    fn resume(&mut self) -> Result<()> {
        self.network.resume();
        let back = self.frozen.as_mut().is_none_or(|frozen| self.given_up.take_back(frozen));
        let thawed = match self.frozen.take() {
            Some(frozen) if !back => {
                frozen.thaw_stopped().map_err(|e| Failure::of("the target could not be released", &e))?;
                Err(Failure::new("another process has taken a file lock of the target meanwhile")
                    .hint("it is stopped and without that lock; SIGCONT lets it go on"))
            }
            Some(frozen) => frozen.thaw().map_err(|e| Failure::of("the target could not be released", &e)),
            None => Ok(()),
        };
        // In small steps, while it runs.
        self.tree = None;
        self.slowed = None;
        thawed
    }

    fn end(&mut self) -> Result<()> {
        // Segments that come in after the original's sockets are gone must not be answered with a reset.
        let held = self.network.hold_off();
        if let Some(frozen) = self.frozen.take() {
            frozen.kill().map_err(|e| Failure::of("the original could not be ended", &e))?;
        }
        sysv::remove_left(&self.segments);
        self.network.end();
        held.map_err(|e| Failure::of("segments for the original's sockets are answered with a reset", &e))?;
        Ok(())
    }
}

/// Mappings of the processes of a tree that is not watched, read while it runs; what cannot be read is read in the pause.
pub(super) fn mappings(root: Pid) -> HashMap<Pid, Vec<Flagged>> {
    let mut buf = Vec::new();
    let processes = Table::read().map(|table| table.tree(root)).unwrap_or_default();
    let mut read = |pid: Pid| Some((pid, ProcDir::open(pid).and_then(|dir| dir.smaps_flags(&mut buf)).ok()?));
    processes.into_iter().filter_map(&mut read).collect()
}

/// The same about all of these pages.
fn notes(ranges: &[(Space, PageRange)], what: What) -> Vec<Run> {
    ranges.iter().map(|(space, range)| Run::new(*space, *range, what)).collect()
}

/// Every page of the private memory of a tree that was not watched.
pub(super) fn everything(model: &Model, sources: &Sources) -> collect::Result<Residual> {
    let mut residual = Residual::default();
    for (n, (mm, pid)) in model.mms.iter().zip(&sources.mms).enumerate() {
        let pagemap = ProcDir::open(*pid)?.open_file("pagemap", nix::fcntl::OFlag::O_RDONLY)?;
        let failed =
            |errno| collect::Error::System { operation: "scan", object: format!("memory of process {pid}"), errno };
        residual.plan.extend(scan::private_pages(MmId::from(n), mm, &pagemap.into()).map_err(failed)?);
    }
    Ok(residual)
}

/// What every space that pages are sent for is called in the model.
pub(super) fn space_names(model: &Model, names: &[(Space, Option<Space>)]) -> Vec<SpaceName> {
    let cow_parent = |of: Option<Space>| match of {
        Some(Space::Mm(id)) => model.mms[id.at()].cow_parent.map(|parent| parent.0),
        _ => None,
    };
    let name = |sent_as: Space, model: Option<Space>| SpaceName {
        sent_as: sent_as.into(),
        model: model.map(Into::into),
        cow_parent: cow_parent(model),
    };
    let renamed = |space: &Space| names.iter().any(|(_, to)| *to == Some(*space));
    let mms = (0..model.mms.len()).map(|n| Space::Mm(n.into())).filter(|space| !renamed(space));
    let shmems = (0..model.shmems.len()).map(|n| Space::Shmem(n.into())).filter(|space| !renamed(space));
    let own = mms.chain(shmems).map(|space| name(space, Some(space)));
    names.iter().map(|(from, to)| name(*from, *to)).chain(own).collect()
}

pub(super) fn comm(model: &Model) -> String {
    model.root().threads.first().map(|thread| thread.comm.to_string()).unwrap_or_default()
}

pub(super) fn outcome(
    options: &MoveOptions,
    root: i32,
    report: Report,
    (notes, was_frozen): (Vec<String>, bool),
) -> Outcome {
    let moved = report.pid.is_some();
    let dest = many::owner(options, &report);
    let place = match moved {
        true if clones::original_stays(options) => Where::Both,
        true => Where::Dest(dest.clone()),
        false => Where::Source,
    };
    let mut outcome = Outcome::new(options.session, State::Running, place);
    outcome.notes = notes;
    outcome.target_pid = Some(root);
    outcome.target_comm = report.target.as_ref().map(|target| target.comm.clone());
    outcome.threads = report.target.as_ref().map(|target| target.tasks);
    outcome.pid = report.pid;
    if moved && was_frozen {
        outcome.state = State::Held;
        outcome.notes.push("it was frozen, and is again where it is now, in a cgroup that holds it alone".to_owned());
    }
    if moved {
        outcome.mode = Some(match (report.rounds.len() > 1, report.late.is_some()) {
            (true, true) => "hybrid",
            (true, false) => "pre-copy",
            (false, true) => "post-copy",
            (false, false) => "stop-and-copy",
        });
        outcome.faults = report.late.as_ref().map(|late| late.faults);
        outcome.points = report.points;
        let late = report.late.unwrap_or_default();
        outcome.pages = Some(report.rounds.iter().map(|round| round.pages).sum::<u64>() + late.pages);
        outcome.bytes = Some(report.bytes_sent + late.bytes);
        outcome.zero_pages = Some(report.unsent.zero);
        outcome.named_pages = Some(report.unsent.named + late.named);
        outcome.stalls = late.waits;
        if outside::has_left() && !clones::original_stays(options) {
            let pid = report.pid.unwrap_or_default();
            outcome.notes.push(format!("process {root}, where this was typed, is now process {pid} on {dest}"));
        }
    } else {
        outcome.notes.push("nothing stands in the way; nothing was moved".into());
    }
    outcome.exit_condition = report.exit.map(|exit| exit.name());
    outcome.downtime = report.downtime;
    (outcome.expected_downtime, outcome.forecast) = (report.expected_downtime.filter(|_| moved), report.forecast);
    outcome.downtime_parts = report.downtime_parts;
    outcome.total = report.total;
    outcome.rounds = report.rounds;
    outcome.candidates = report.candidates;
    outcome
}

pub(super) fn failure(options: &MoveOptions, error: MoveError) -> Failure {
    let (dest, session) = (many::names(&options.dests), options.session);
    let what = match options.clones {
        Some(_) => format!("no copy of the target was started on {dest}"),
        None if options.is_image() => format!("{} was not restored on {dest}", options.target),
        None => format!("the target was not moved to {dest}"),
    };
    match error {
        MoveError::Blocked(blockers) => {
            let what = match options.is_image() {
                true => format!("{} cannot be restored on {dest}", options.target),
                false => format!("the target cannot move to {dest}"),
            };
            Failure::blocked(what, blockers).target(TargetState::Running)
        }
        MoveError::Target(failure) if matches!(failure.target, TargetState::Ended(_)) => failure,
        MoveError::Target(failure) => failure.target(TargetState::Running),
        MoveError::Destination(theirs) => {
            let causes = std::iter::once(format!("{dest}: {}", theirs.what)).chain(theirs.causes).collect();
            Failure { causes, hint: theirs.hint, ..Failure::new(what) }.target(TargetState::Running)
        }
        MoveError::Transport(error) => {
            let causes = Failure::of("", &error).causes;
            Failure { what, causes, ..reach::failure(&dest, &error) }.target(TargetState::Running)
        }
        MoveError::InDoubt { ref peer, .. } => {
            let who = if options.dests.len() == 1 { &dest } else { peer };
            Failure::of(format!("it is not known whether {who} runs the target"), &error)
                .kind(FailureKind::NeedsPerson)
                .target(TargetState::InDoubt)
                .hint(format!("migrate status {session} says who has it; migrate resolve {session} decides"))
        }
        MoveError::CloneUnanswered { ref peer } => {
            Failure::of(format!("it is not known whether a copy of the target runs on {peer}"), &error)
                .kind(FailureKind::NeedsPerson)
                .target(TargetState::Running)
                .hint(format!("migrate status on {peer} says whether one runs there"))
        }
        error @ MoveError::NotResumed { .. } => {
            Failure::of(what, &error).kind(FailureKind::NeedsPerson).target(TargetState::Held)
        }
        error => Failure::of(what, &error).target(TargetState::Running),
    }
}
