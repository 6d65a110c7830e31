//! A move to several destinations: those that can be reached, and the first of them that is ready.

use super::move_::{connect_to, peer_failure};
use super::options::MoveOptions;
use super::proxies;
use super::words::Dest;
use super::{Event, Events};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::MoveError;
use crate::migration::handover::Candidate;
use crate::migration::report::{Became, Report};
use crate::migration::source::{self, Target, Wishes, fan};
use crate::migration::switchover::Step;
use crate::transport::hello::Purpose;
use crate::transport::proxy::Trunk;
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
        return usage(format!("a target moves to {} destinations at once, at most", fan::CANDIDATES_MAX));
    }
    for (n, dest) in options.dests.iter().enumerate() {
        if options.dests[..n].contains(dest) {
            return usage(format!("{dest} is named twice"));
        }
    }
    if options.state.move_addresses.is_empty() {
        return Ok(());
    }
    usage("--move-address is for one destination, for now: each of several would announce the address".to_owned())
}

/// The steps for a target that does not converge: what deltas are made against is one destination's.
pub(super) fn steps(options: &MoveOptions, mut steps: Vec<Step>) -> Vec<Step> {
    if options.dests.len() > 1 {
        steps.retain(|step| *step != Step::Delta);
    }
    steps
}

/// All of them, for a person.
pub(super) fn names(dests: &[Dest]) -> String {
    dests.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// One of them.
pub(super) fn name(dests: &[Dest], who: Candidate) -> String {
    dests.get(usize::from(who.0)).map(ToString::to_string).unwrap_or_default()
}

/// Which of them has the target.
pub(super) fn owner(options: &MoveOptions, report: &Report) -> String {
    let n = report.candidates.iter().position(|candidate| candidate.became == Became::Owner).unwrap_or(0);
    options.dests.get(n).map(ToString::to_string).unwrap_or_default()
}

/// Those that can be reached.
pub(super) struct Reached {
    pub links: Vec<Link>,
    pub dests: Vec<Dest>,
    /// The way that links take.
    pub trunk: Option<Trunk>,
}

/// Links to those that can be reached, all tried at once; of the others a warning tells.
///
/// # Errors
/// None can be.
pub(super) fn connect(options: &MoveOptions, streams: u16, events: &dyn Events, abort: &Abort) -> Result<Reached> {
    let trunk = proxies::begin(&options.peer, events, abort)?;
    let connect = |dest| match &trunk {
        Some(trunk) => proxies::link(trunk, dest, (&options.peer, streams), events, abort),
        None => connect_to(dest, &options.peer, Purpose::Send, streams, abort),
    };
    let tried: Vec<_> = std::thread::scope(|scope| {
        let tries = options.dests.iter().map(|dest| scope.spawn(move || connect(dest)));
        let tries: Vec<_> = tries.collect();
        tries.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let (mut links, mut dests, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for (dest, tried) in options.dests.iter().zip(tried) {
        match tried {
            Ok(Ok(link)) => {
                links.push(link);
                dests.push(dest.clone());
            }
            Ok(Err(error)) => failures.push(peer_failure(&dest.to_string(), &error)),
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
    Ok(Reached { links, dests, trunk })
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
        1 if wishes.warm.is_none() => source::run(links.remove(0), target, wishes, events),
        _ => fan::run(links, target, wishes, events, abort),
    }
}
