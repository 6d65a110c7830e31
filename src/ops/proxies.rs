//! `--via`: what is for the destinations goes to a proxy, which passes it on; `--fanout-tree`: destinations are proxies for each other.
//! Who may be one, how destinations are reached by it, and what is done where it fails; [`proxy`] is the way itself.

use super::attempts::{in_short, may_go_on};
use super::options::{MoveOptions, PeerOptions};
use super::outcome::{Attempt, Outcome};
use super::paths::Disjoint;
use super::words::Dest;
use super::{Event, Events};
use super::{many, reach};
use crate::companion::OWN_PROGRAM;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::report::Report;
use crate::transport::connect::ConnectOptions;
use crate::transport::hello::Purpose;
use crate::transport::link::Request;
use crate::transport::proxy::{self, Branch, Own, Trunk};
use crate::transport::{Abort, Link, TransportError};
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};
use ways::{Way, Ways};

mod tree;
pub(super) mod ways;

/// Connections for pages to one destination: all of them go over one link first, which more do not make faster.
const STREAMS: u16 = 2;

/// How long it is tried to reach a destination past the proxy, where its link has to be made anew.
const DIRECTLY: Duration = Duration::from_secs(2);

/// Who passes on what goes over a link, the nearest first, the destination itself left out; `None` = it goes there directly.
pub(super) type Via = Option<Vec<Dest>>;

/// What does not go together with proxies.
///
/// # Errors
/// Usage.
pub(super) fn refuse(peer: &PeerOptions, dests: &[Dest], disjoint: Option<Disjoint>) -> Result<()> {
    let usage = |what: String, hint: &str| Err(Failure::new(what).hint(hint).kind(FailureKind::Usage));
    for (n, proxy) in peer.via.iter().enumerate() {
        if *proxy == Dest::Local || n > 0 && matches!(proxy, Dest::Unix(_)) {
            return usage(format!("{proxy} is no other host that passes things on"), "--via takes tcp:// and ssh");
        }
        if peer.via[..n].contains(proxy) {
            return usage(format!("--via names {proxy} twice"), "each proxy sends to the next, once");
        }
        if dests.contains(proxy) {
            return usage(format!("{proxy} is a proxy and a destination"), "a proxy keeps nothing: name one of both");
        }
    }
    let option = match (peer.via.is_empty(), peer.fanout_tree) {
        (true, None) => return Ok(()),
        (false, None) => "--via",
        (true, Some(_)) => "--fanout-tree",
        (false, Some(_)) => {
            let what = "--fanout-tree and --via: either destinations pass on what they get, or proxies do".to_owned();
            return usage(what, "--via p,q is a chain of proxies; --fanout-tree 1 a chain of destinations");
        }
    };
    if let Some(dest) = dests.iter().find(|dest| matches!(dest, Dest::Unix(_) | Dest::Local)) {
        let what = format!("{dest} is on this host, where nothing comes through another one");
        return usage(what, &format!("with {option} a destination is tcp:// or ssh, as other hosts reach it"));
    }
    if disjoint.is_some() {
        let what = match peer.fanout_tree {
            None => "--disjoint-paths and --via: all paths go through the proxy",
            Some(_) => "--disjoint-paths and --fanout-tree: paths go through other destinations",
        };
        return usage(what.to_owned(), "--route pins the way to those that are sent to from here");
    }
    Ok(())
}

/// The ways through others; none where there are none, or where a proxy fails: then destinations are connected to directly.
///
/// # Errors
/// Somebody wants this to end.
pub(super) fn begin(dests: &[Dest], peer: &PeerOptions, events: &dyn Events, abort: &Abort) -> Result<Option<Ways>> {
    if let (Some(fanout), true) = (peer.fanout_tree, ways::is_tree(peer, dests)) {
        return Ways::as_tree((dests, fanout.into()), peer, events, abort);
    }
    match trunk(peer, abort) {
        None => Ok(None),
        Some(Ok(trunk)) => Ok(Some(Ways::through(trunk, &peer.via, dests))),
        Some(Err(error @ TransportError::Aborted { .. })) => Err(reach::failure(&many::names(&peer.via), &error)),
        Some(Err(error)) => {
            let failure = reach::failure(&many::names(&peer.via), &error);
            let what = format!("{}: the destinations are connected to directly", in_short(&failure));
            events.event(Event::Warning(what));
            Ok(None)
        }
    }
}

fn trunk(peer: &PeerOptions, abort: &Abort) -> Option<std::result::Result<Trunk, TransportError>> {
    let via: Vec<_> = peer.via.iter().map(reach::address).collect();
    Some(Trunk::begin(&via, &reach::manner(peer.via.first()?, peer), abort))
}

/// A link to a destination by its way, past those on it that fail; and who passes on what goes over it.
///
/// # Errors
/// It cannot be reached by any way.
pub(super) fn link(
    ways: &Ways,
    dest: &Dest,
    (peer, streams): (&PeerOptions, u16),
    events: &dyn Events,
    abort: &Abort,
) -> std::result::Result<(Link, Via), TransportError> {
    let (way, mut failed) = (ways.to(dest), None);
    let shorter = way.and_then(Way::by_the_first);
    for way in way.into_iter().chain(&shorter) {
        match through((&way.trunk, &way.branch), dest, (peer, streams), abort) {
            Ok(link) => {
                tell(&failed, events);
                let others = way.via.iter().filter(|via| *via != dest).cloned().collect();
                return Ok((link, Some(others)));
            }
            Err(error @ TransportError::Aborted { .. }) => return Err(error),
            Err(error) => {
                let by = match way.branch.by.is_empty() {
                    true => "directly".to_owned(),
                    false => format!("by {} alone", many::names(&way.via[..1])),
                };
                failed = Some(Failure::of(format!("{dest} is connected to {by}"), &error));
            }
        }
    }
    let link = reach::to(dest, peer, Purpose::Send, streams, abort)?;
    tell(&failed, events);
    Ok((link, None))
}

/// Which way is taken instead of one that has failed.
fn tell(failed: &Option<Failure>, events: &dyn Events) {
    failed.iter().for_each(|failure| events.event(Event::Warning(in_short(failure))));
}

fn through(
    (trunk, branch): (&Trunk, &Branch),
    dest: &Dest,
    (peer, streams): (&PeerOptions, u16),
    abort: &Abort,
) -> std::result::Result<Link, TransportError> {
    let request = Request { purpose: Purpose::Send, streams: streams.min(STREAMS) };
    trunk.connect((&reach::address(dest), branch), &reach::manner(dest, peer), request, abort)
}

/// A link to a destination anew, without channels for pages: past the others on its way, which may be what has failed; through them if
/// it is not reached otherwise. `ways`: those that there were, where they may still be there.
///
/// # Errors
/// It cannot be reached by either way.
pub(super) fn link_again(
    dest: &Dest,
    peer: &PeerOptions,
    ways: Option<&Ways>,
    abort: &Abort,
) -> std::result::Result<Link, TransportError> {
    let way = ways.and_then(|ways| ways.to(dest));
    if way.is_none() && peer.via.is_empty() {
        return reach::to(dest, peer, Purpose::Send, 0, abort);
    }
    let quickly = PeerOptions { connect_timeout: peer.connect_timeout.min(DIRECTLY), ..peer.clone() };
    match reach::to(dest, &quickly, Purpose::Send, 0, abort) {
        Err(error) if !matches!(error, TransportError::Aborted { .. }) => {
            if let Some(Ok(trunk)) = trunk(peer, abort) {
                return through((&trunk, &Branch::default()), dest, (peer, 0), abort);
            }
            way.map_or(Err(error), |way| through((&way.trunk, &way.branch), dest, (peer, 0), abort))
        }
        done => done,
    }
}

/// Adds to the report who has passed on to whom, and counts what went to the first of them once. `vias`: of each destination.
pub(super) fn complete(report: &mut Report, ways: &Ways, vias: &[Via]) {
    // A single one is no candidate in the report.
    if report.candidates.is_empty() && vias.iter().all(Option::is_none) {
        return;
    }
    report.bytes_sent = ways.bytes_sent();
    for (candidate, via) in report.candidates.iter_mut().zip(vias) {
        match via {
            Some(via) => candidate.via = via.iter().map(ToString::to_string).collect(),
            None => report.bytes_sent += candidate.bytes_sent,
        }
    }
}

/// Makes an attempt; and another one past the others, if the way through them fails while the target goes on here.
///
/// # Errors
/// Those of the last attempt.
pub(super) fn or_directly(
    options: &MoveOptions,
    events: &dyn Events,
    abort: &Abort,
    attempt: &dyn Fn(&MoveOptions) -> Result<Outcome>,
) -> Result<Outcome> {
    let begun = Instant::now();
    let failure = match attempt(options) {
        Err(failure) if is_of_the_way(options, &failure) && may_go_on(&failure, abort) => failure,
        done => return done,
    };
    let (via, dests) = (ways::names(&options.peer), options.dests.iter().map(ToString::to_string).collect());
    let failed = Attempt { dests, failure: in_short(&failure), took: begun.elapsed() };
    let what = format!("the way through {via} has failed, the target goes on here: {}", failed.failure);
    events.event(Event::Warning(format!("{what}: all is sent anew, directly")));
    let peer = PeerOptions { via: Vec::new(), fanout_tree: None, ..options.peer.clone() };
    let mut outcome = attempt(&MoveOptions { peer, ..options.clone() })?;
    outcome.attempts.insert(0, failed);
    Ok(outcome)
}

/// Links were there, and are lost. Whom nobody has reached was tried directly already.
fn is_of_the_way(options: &MoveOptions, failure: &Failure) -> bool {
    let is_lost = failure.kind == FailureKind::Peer && failure.target == TargetState::Running;
    is_lost && (!options.peer.via.is_empty() || ways::is_tree(&options.peer, &options.dests))
}

/// Is a proxy for a source, until either end has closed the link. `keys`, `peers`: of this host, by which it is known to others;
/// `session`: see [`Own::session`].
///
/// # Errors
/// Those of [`proxy::serve`].
pub fn serve(
    link: Link,
    (keys, peers): (&Path, &Path),
    session: std::result::Result<Vec<OsString>, String>,
) -> std::result::Result<(), TransportError> {
    let usual = PeerOptions::default();
    let connects = ConnectOptions {
        keys: keys.to_owned(),
        peers: peers.to_owned(),
        connect_timeout: usual.connect_timeout,
        peer_timeout: usual.peer_timeout,
        allow_plain: false,
        rsh: usual.rsh,
        remote: usual.remote,
        bootstrap: false,
        program: OWN_PROGRAM.into(),
        route: None,
    };
    proxy::serve(link, &Own { connects, session })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Pid;
    use crate::ops::words::Target;
    use std::cell::Cell;

    fn dests(words: &[&str]) -> Vec<Dest> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn who_cannot_be_a_proxy_or_behind_one_is_refused() {
        let refused = |via: &[&str], to: &[&str], disjoint| {
            let peer = PeerOptions { via: dests(via), ..PeerOptions::default() };
            refuse(&peer, &dests(to), disjoint).is_err_and(|failure| failure.kind == FailureKind::Usage)
        };
        assert!(!refused(&["p", "tcp://q"], &["b", "tcp://c"], None));
        assert!(!refused(&["unix:/run/p.sock"], &["b"], None) && !refused(&[], &["unix:/b", "local"], None));
        for (via, to) in [
            (vec!["local"], vec!["b"]),
            (vec!["p", "unix:/q"], vec!["b"]),
            (vec!["p", "p"], vec!["b"]),
            (vec!["b"], vec!["b"]),
            (vec!["p"], vec!["unix:/b"]),
            (vec!["p"], vec!["local"]),
        ] {
            assert!(refused(&via, &to, None), "{via:?} {to:?}");
        }
        assert!(refused(&["p"], &["b"], Some(Disjoint::Drop)) && !refused(&[], &["b"], Some(Disjoint::Drop)));
    }

    #[test]
    fn what_contradicts_a_tree_of_destinations_is_refused() {
        let refused = |via: &[&str], to: &[&str], disjoint| {
            let peer = PeerOptions { via: dests(via), fanout_tree: Some(2), ..PeerOptions::default() };
            refuse(&peer, &dests(to), disjoint).is_err_and(|failure| failure.kind == FailureKind::Usage)
        };
        assert!(!refused(&[], &["b", "tcp://c", "d"], None));
        assert!(refused(&["p"], &["b"], None) && refused(&[], &["b", "local"], None));
        assert!(refused(&[], &["b", "unix:/c"], None) && refused(&[], &["b", "c"], Some(Disjoint::Refuse)));
    }

    #[test]
    fn only_what_the_way_can_be_blamed_for_is_tried_without_it() {
        struct Silent;
        impl Events for Silent {
            fn event(&self, _: Event) {}
        }
        let mut options = MoveOptions::new(Target::Pid(Pid(7)), "b".parse().unwrap());
        let abort = Abort::new().unwrap();
        let tries = |options: &MoveOptions, kind: FailureKind, target: TargetState| {
            let tries = Cell::new(0);
            let attempt = |options: &MoveOptions| {
                tries.set(tries.get() + 1);
                let is_direct = options.peer.via.is_empty() && options.peer.fanout_tree.is_none();
                assert!(tries.get() == 1 || is_direct);
                Err::<Outcome, _>(Failure::new("x").kind(kind).target(target.clone()))
            };
            let _ = or_directly(options, &Silent, &abort, &attempt);
            tries.get()
        };
        assert_eq!(tries(&options, FailureKind::Usage, TargetState::Running), 1);
        let tree = |fanout| PeerOptions { fanout_tree: Some(fanout), ..PeerOptions::default() };
        let several = MoveOptions { dests: dests(&["b", "c"]), ..options.clone() };
        for (fanout, expected) in [(1, 2), (2, 1)] {
            let options = MoveOptions { peer: tree(fanout), ..several.clone() };
            assert_eq!(
                tries(&options, FailureKind::Peer, TargetState::Running),
                expected,
                "nobody passes on to nobody"
            );
        }
        options.peer.via = dests(&["p"]);
        assert_eq!(tries(&options, FailureKind::Peer, TargetState::Running), 2);
        assert_eq!(tries(&options, FailureKind::Peer, TargetState::Untouched), 1);
        assert_eq!(tries(&options, FailureKind::Blocked, TargetState::Running), 1);
        assert_eq!(tries(&options, FailureKind::NeedsPerson, TargetState::InDoubt), 1);
    }
}
