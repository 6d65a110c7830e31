//! `--via`: what is for the destinations goes to a proxy, which passes it on. Who may be one, how destinations are reached by it, and
//! what is done where it fails; [`proxy`] is the way itself.

use super::attempts::{in_short, may_go_on};
use super::options::{MoveOptions, PeerOptions};
use super::outcome::{Attempt, Outcome};
use super::paths::Disjoint;
use super::words::Dest;
use super::{Event, Events};
use super::{many, reach};
use crate::companion::OWN_PROGRAM;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::transport::connect::ConnectOptions;
use crate::transport::hello::Purpose;
use crate::transport::link::Request;
use crate::transport::proxy::{self, Trunk};
use crate::transport::{Abort, Link, TransportError};
use std::path::Path;
use std::time::{Duration, Instant};

/// Connections for pages to one destination: all of them go over one link first, which more do not make faster.
const STREAMS: u16 = 2;

/// How long it is tried to reach a destination past the proxy, where its link has to be made anew.
const DIRECTLY: Duration = Duration::from_secs(2);

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
    if peer.via.is_empty() {
        return Ok(());
    }
    if let Some(dest) = dests.iter().find(|dest| matches!(dest, Dest::Unix(_) | Dest::Local)) {
        let what = format!("{dest} is on this host, where nothing comes through a proxy");
        return usage(what, "with --via a destination is tcp:// or ssh, as the proxy reaches it");
    }
    if disjoint.is_some() {
        let what = "--disjoint-paths and --via: all paths go through the proxy".to_owned();
        return usage(what, "--route pins the way to the first proxy");
    }
    Ok(())
}

/// The way through the proxies; none where there are none, or where one fails: then destinations are connected to directly.
///
/// # Errors
/// Somebody wants this to end.
pub(super) fn begin(peer: &PeerOptions, events: &dyn Events, abort: &Abort) -> Result<Option<Trunk>> {
    match trunk(peer, abort) {
        None => Ok(None),
        Some(Ok(trunk)) => Ok(Some(trunk)),
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

/// A link to a destination through the proxies, or past them if they do not reach it.
///
/// # Errors
/// It cannot be reached by either way.
pub(super) fn link(
    trunk: &Trunk,
    dest: &Dest,
    (peer, streams): (&PeerOptions, u16),
    events: &dyn Events,
    abort: &Abort,
) -> std::result::Result<Link, TransportError> {
    let error = match through(trunk, dest, (peer, streams), abort) {
        Err(error) if !matches!(error, TransportError::Aborted { .. }) => error,
        done => return done,
    };
    let link = reach::to(dest, peer, Purpose::Send, streams, abort)?;
    let failure = Failure::of(format!("{dest} is connected to directly"), &error);
    events.event(Event::Warning(in_short(&failure)));
    Ok(link)
}

fn through(
    trunk: &Trunk,
    dest: &Dest,
    (peer, streams): (&PeerOptions, u16),
    abort: &Abort,
) -> std::result::Result<Link, TransportError> {
    let request = Request { purpose: Purpose::Send, streams: streams.min(STREAMS) };
    trunk.connect(&reach::address(dest), &reach::manner(dest, peer), request, abort)
}

/// A link to a destination anew, without channels for pages: past the proxies, which may be what has failed; through them if it is not
/// reached otherwise.
///
/// # Errors
/// It cannot be reached by either way.
pub(super) fn link_again(dest: &Dest, peer: &PeerOptions, abort: &Abort) -> std::result::Result<Link, TransportError> {
    if peer.via.is_empty() {
        return reach::to(dest, peer, Purpose::Send, 0, abort);
    }
    let quickly = PeerOptions { connect_timeout: peer.connect_timeout.min(DIRECTLY), ..peer.clone() };
    match reach::to(dest, &quickly, Purpose::Send, 0, abort) {
        Err(error) if !matches!(error, TransportError::Aborted { .. }) => {
            let trunk = trunk(peer, abort).and_then(std::result::Result::ok);
            trunk.map_or(Err(error), |trunk| through(&trunk, dest, (peer, 0), abort))
        }
        done => done,
    }
}

/// Makes an attempt; and another one past the proxies, if the way through them fails while the target goes on here.
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
    let (via, dests) = (many::names(&options.peer.via), options.dests.iter().map(ToString::to_string).collect());
    let failed = Attempt { dests, failure: in_short(&failure), took: begun.elapsed() };
    let what = format!("the way through {via} has failed, the target goes on here: {}", failed.failure);
    events.event(Event::Warning(format!("{what}: all is sent anew, directly")));
    let peer = PeerOptions { via: Vec::new(), ..options.peer.clone() };
    let mut outcome = attempt(&MoveOptions { peer, ..options.clone() })?;
    outcome.attempts.insert(0, failed);
    Ok(outcome)
}

/// Links were there, and are lost. Whom nobody has reached was tried directly already.
fn is_of_the_way(options: &MoveOptions, failure: &Failure) -> bool {
    let is_lost = failure.kind == FailureKind::Peer && failure.target == TargetState::Running;
    is_lost && !options.peer.via.is_empty()
}

/// Is a proxy for a source, until either end has closed the link. `keys`, `peers`: of this host, by which it is known to others.
///
/// # Errors
/// Those of [`proxy::serve`].
pub fn serve(link: Link, keys: &Path, peers: &Path) -> std::result::Result<(), TransportError> {
    let usual = PeerOptions::default();
    let own = ConnectOptions {
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
    proxy::serve(link, &own)
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
                assert_eq!(options.peer.via.is_empty(), tries.get() == 2 || kind == FailureKind::Usage);
                Err::<Outcome, _>(Failure::new("x").kind(kind).target(target.clone()))
            };
            let _ = or_directly(options, &Silent, &abort, &attempt);
            tries.get()
        };
        assert_eq!(tries(&options, FailureKind::Usage, TargetState::Running), 1);
        options.peer.via = dests(&["p"]);
        assert_eq!(tries(&options, FailureKind::Peer, TargetState::Running), 2);
        assert_eq!(tries(&options, FailureKind::Peer, TargetState::Untouched), 1);
        assert_eq!(tries(&options, FailureKind::Blocked, TargetState::Running), 1);
        assert_eq!(tries(&options, FailureKind::NeedsPerson, TargetState::InDoubt), 1);
    }
}
