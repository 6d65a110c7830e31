//! A move to several destinations: those that can be reached, and the first of them that is ready.

use super::options::{MoveOptions, Pids, StateOptions};
use super::proxies::{self, Via, ways::Ways};
use super::reach;
use super::words::Dest;
use super::{Event, Events, clones};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::MoveError;
use crate::migration::handover::Candidate;
use crate::migration::report::{Became, Report};
use crate::migration::source::{self, Target, Wishes, fan};
use crate::migration::switchover::Step;
use crate::transport::hello::Purpose;
use crate::transport::{Abort, Link};

/// What does not go together with several destinations, yet or at all.
///
/// # Errors
/// Usage.
pub(super) fn refuse(options: &MoveOptions) -> Result<()> {
    let usage = |what: String| Err(Failure::new(what).kind(FailureKind::Usage));
    if options.dests.is_empty() {
        return usage("the group of destinations is empty".to_owned());
    }
    if options.dests.len() == 1 {
        return Ok(());
    }
    if options.dests.len() > fan::CANDIDATES_MAX {
        let what = if options.clones.is_some() { "copies are started" } else { "destinations get a target" };
        return usage(format!("{} {what} at once, at most", fan::CANDIDATES_MAX));
    }
    for (n, dest) in options.dests.iter().enumerate() {
        // Copies have nothing in common that two of them could not have at one host, unless it passes on what it gets.
        let once = options.clones.is_none() || options.peer.fanout_tree.is_some();
        if once && options.dests[..n].contains(dest) {
            return usage(format!("{dest} is named twice"));
        }
    }
    Ok(())
}

/// The steps for a target that does not converge: what deltas are made against is one destination's.
pub(super) fn steps(options: &MoveOptions, mut steps: Vec<Step>) -> Vec<Step> {
    if options.dests.len() > 1 || options.clones.is_some() {
        steps.retain(|step| *step != Step::Delta);
    }
    steps
}

/// The choices for each destination, by their places in the list that was asked for.
///
/// # Errors
/// They cannot be written.
pub(super) fn states(options: &MoveOptions, places: &[usize]) -> Result<Vec<serde_json::Value>> {
    let state = |((who, dest), place): ((u8, &Dest), &usize)| {
        let mut state = StateOptions { from_image: options.is_image(), ..options.state.clone() };
        if *dest == Dest::Local && state.pids.unwrap_or_default() == Pids::Auto {
            state.pids = Some(Pids::New);
        }
        let state = clones::state(options, Candidate(who), *place, state);
        serde_json::to_value(&state).map_err(|e| Failure::of("the choices cannot be written", &e))
    };
    (0..).zip(&options.dests).zip(places).map(state).collect()
}

/// All of them, for a person.
pub(super) fn names(dests: &[Dest]) -> String {
    dests.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// One of them.
pub(super) fn name(dests: &[Dest], who: Candidate) -> String {
    dests.get(usize::from(who.0)).map(ToString::to_string).unwrap_or_default()
}

/// Which of them has the target, or the first that has a copy.
pub(super) fn owner(options: &MoveOptions, report: &Report) -> String {
    let first = |is: fn(&Became) -> bool| report.candidates.iter().position(|candidate| is(&candidate.became));
    let copy = || first(|became| matches!(became, Became::Runs(_)));
    let n = first(|became| *became == Became::Owner).or_else(copy).unwrap_or(0);
    options.dests.get(n).map(ToString::to_string).unwrap_or_default()
}

/// Channels for pages to each when nobody chose a number: more than two bring nothing on one link.
const STREAMS: u16 = 2;

/// Those that can be reached.
pub(super) struct Reached {
    /// With their places in the list, and who passes on what goes over them.
    pub links: Vec<(Link, (usize, Via))>,
    /// The ways that links take through others.
    pub ways: Option<Ways>,
}

/// Links to those that can be reached, all tried at once; of the others a warning tells.
///
/// # Errors
/// None can be.
pub(super) fn connect(options: &MoveOptions, events: &dyn Events, abort: &Abort) -> Result<Reached> {
    let streams = options.memory.streams.unwrap_or(STREAMS);
    let ways = proxies::begin(&options.dests, &options.peer, events, abort)?;
    let connect = |dest| match &ways {
        Some(ways) => proxies::link(ways, dest, (&options.peer, streams), events, abort),
        None => reach::to(dest, &options.peer, Purpose::Send, streams, abort).map(|link| (link, None)),
    };
    let tried: Vec<_> = std::thread::scope(|scope| {
        let tries = options.dests.iter().map(|dest| scope.spawn(move || connect(dest)));
        let tries: Vec<_> = tries.collect();
        tries.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let (mut links, mut failures) = (Vec::new(), Vec::new());
    for ((place, dest), tried) in options.dests.iter().enumerate().zip(tried) {
        match tried {
            Ok(Ok((link, via))) => links.push((link, (place, via))),
            Ok(Err(error)) => failures.push(reach::failure(&dest.to_string(), &error)),
            Err(_) => failures.push(Failure::new(format!("{dest} was not tried")).kind(FailureKind::Peer)),
        }
    }
    let is_interrupted = |failure: &&Failure| failure.kind != FailureKind::Peer;
    if let Some(failure) = failures.iter().find(is_interrupted) {
        return Err(failure.clone());
    }
    if links.is_empty() {
        return Err(none(failures));
    }
    for failure in failures {
        let causes: String = failure.causes.iter().map(|cause| format!(": {cause}")).collect();
        events.event(Event::Warning(format!("{} and is left out{causes}", failure.what)));
    }
    Ok(Reached { links, ways })
}

/// Nobody can be reached.
fn none(mut failures: Vec<Failure>) -> Failure {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    let causes = failures.iter().flat_map(|failure| std::iter::once(&failure.what).chain(&failure.causes)).cloned();
    let mut failure = Failure::new("none of the destinations can be reached").kind(FailureKind::Peer);
    failure.causes = causes.collect();
    failure.hint = failures.into_iter().find_map(|failure| failure.hint);
    failure.target(TargetState::Untouched)
}

/// Moves the target over the links that there are.
pub(super) fn run(
    mut links: Vec<Link>,
    target: &mut dyn Target,
    wishes: &Wishes<'_>,
    events: &dyn Events,
    abort: &Abort,
) -> std::result::Result<Report, MoveError> {
    match links.len() {
        1 if wishes.warm.is_none() && wishes.clones.is_none() => source::run(links.remove(0), target, wishes, events),
        _ => fan::run(links, target, wishes, events, abort),
    }
}
