//! `migrate clone`: what differs from a move, as the operation of a move asks for it; and several clones of an image.

use super::Events;
use super::attempts::Further;
use super::options::{Mode, MoveOptions, Pids, RestoreOptions, StateOptions, Supervisor, Tcp};
use super::outcome::{Outcome, State, Where};
use super::words::SessionId;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::handover::Candidate;
use crate::migration::report::{Became, CandidateReport};
use crate::migration::source::Original;
use crate::net::address::Place;
use crate::restore::clone::Identity;
use std::time::Instant;

/// What becomes of the original; `None` in a move.
///
/// # Errors
/// The destination that is to have its connections is not among those that were reached.
pub(super) fn original(options: &MoveOptions) -> Result<Option<Original>> {
    let Some(clones) = &options.clones else { return Ok(None) };
    let Some(dest) = &clones.connections else {
        return Ok(Some(if clones.end_source { Original::Ends } else { Original::RunsOn }));
    };
    let found = (0..).zip(&options.dests).find(|(_, other)| *other == dest).map(|(n, _)| Candidate(n));
    found.map(|to| Some(Original::Moves(to))).ok_or_else(|| {
        let what = format!("{dest}, which was to have the connections, cannot be reached");
        Failure::new(what).kind(FailureKind::Peer).target(TargetState::Running)
    })
}

/// The original goes on beside its clones.
pub(super) fn original_stays(options: &MoveOptions) -> bool {
    options.clones.as_ref().is_some_and(|clones| !clones.end_source)
}

/// There are clones and nothing else: nobody takes over what only one can have.
pub(super) fn only(options: &MoveOptions) -> bool {
    options.clones.as_ref().is_some_and(|clones| clones.connections.is_none())
}

/// What becomes of connections: a clone has none of them.
pub(super) fn tcp(options: &MoveOptions) -> Tcp {
    match options.state.tcp {
        Tcp::Keep if only(options) => Tcp::Close,
        chosen => chosen,
    }
}

/// What makes no sense for clones.
///
/// # Errors
/// Usage.
pub(super) fn refuse(options: &MoveOptions) -> Result<()> {
    let Some(clones) = &options.clones else { return Ok(()) };
    let (mode, state) = (&options.mode, &options.state);
    let what = if matches!(mode.mode, Mode::PostCopy | Mode::Hybrid) {
        "a copy has all of its memory before it runs: --mode pre-copy or stop-and-copy"
    } else if mode.recoverable.is_some() || mode.fence.is_some() {
        "--recoverable and --fence-cmd are for a target that only one host may have, not for copies of it"
    } else if !state.move_addresses.is_empty() && only(options) {
        "the address of the original is not for several copies: --address gives each one of its own"
    } else if state.pids == Some(Pids::Same) {
        "a copy has the process ids of the original in a PID namespace of its own, not --pids same"
    } else if !options.then.stages.is_empty() {
        "--then moves a target on, not copies of it: they stay where they are started"
    } else if clones.addresses.len() > options.dests.len() {
        "there are more addresses than destinations: each --address is for the destination at its place"
    } else {
        return refuse_connections(options);
    };
    Err(Failure::new(what).kind(FailureKind::Usage))
}

/// What makes no sense where the target itself goes to one of the destinations, with its connections.
fn refuse_connections(options: &MoveOptions) -> Result<()> {
    let Some((clones, dest)) = options.clones.as_ref().and_then(|clones| Some((clones, clones.connections.as_ref()?)))
    else {
        return Ok(());
    };
    let (what, hint) = if !clones.end_source {
        let what =
            "a connection cannot have two ends on this side: the target would go on to speak on those that a copy has";
        (what, "--end-source ends it here; without, its connections stay with it (--connections close)")
    } else if options.state.tcp != Tcp::Keep {
        ("--connections leaves established connections to a destination, and --tcp does not keep them", "one of both")
    } else if options.dests.iter().position(|other| other == dest).is_some_and(|place| place < clones.addresses.len()) {
        let what = "the destination that has the connections has the addresses of the target, and no --address";
        (what, "name it behind those that an --address is for; --move-address takes one of the target's along")
    } else {
        return Ok(());
    };
    Err(Failure::new(what).hint(hint).kind(FailureKind::Usage))
}

/// What of other destinations makes no sense where places in the list count, or one destination in it does.
///
/// # Errors
/// Usage.
pub(super) fn refuse_further(options: &MoveOptions, further: &Further) -> Result<()> {
    let Some(clones) = &options.clones else { return Ok(()) };
    let usage = |what: String| Err(Failure::new(what).kind(FailureKind::Usage));
    if let Some(dest) = clones.connections.as_ref().filter(|dest| !options.dests.contains(dest)) {
        return usage(format!("--connections {dest} is none of the destinations"));
    }
    let by_place = if clones.connections.is_some() {
        "--connections names one of the destinations"
    } else if !clones.addresses.is_empty() {
        "--address goes by the places of the destinations"
    } else {
        return Ok(());
    };
    match further.disjoint.is_some() || !further.alternates.is_empty() {
        true => usage(format!("{by_place}: not with --disjoint-paths or --alternate")),
        false => Ok(()),
    }
}

/// The id of one of the clones of a session, the first is 0.
fn id(session: SessionId, number: usize) -> String {
    format!("{session}-{}", number + 1)
}

/// The choices for this destination, which was at this place of the list that was asked for.
pub(super) fn state(options: &MoveOptions, who: Candidate, place: usize, state: StateOptions) -> StateOptions {
    match &options.clones {
        Some(_) if matches!(original(options), Ok(Some(Original::Moves(to))) if to == who) => state,
        Some(clones) => of_clone(id(options.session, place), clones.addresses.get(place).cloned(), state),
        None => state,
    }
}

/// The choices for a clone that is called so.
fn of_clone(id: String, address: Option<Place>, state: StateOptions) -> StateOptions {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    StateOptions {
        pids: Some(Pids::New),
        // It takes no unit's place.
        supervisor: Supervisor::Ignore,
        // They are the original's.
        move_addresses: Vec::new(),
        identity: Some(Identity { id, host, address }),
        ..state
    }
}

/// Makes so many clones of an image, one after the other, each in namespaces of its own.
///
/// # Errors
/// Those of [`super::restore::run`] for the first; where a later one fails, the outcome says so.
pub fn restore(options: &RestoreOptions, count: u16, events: &dyn Events) -> Result<Outcome> {
    if options.state.pids == Some(Pids::Same) {
        let what = "copies have the process ids of the image in PID namespaces of their own, not --pids same";
        return Err(Failure::new(what).kind(FailureKind::Usage).target(TargetState::NotStarted));
    }
    let began = Instant::now();
    let mut whole = Outcome::new(options.session, State::Running, Where::Dest("local".to_owned()));
    for number in 0..usize::from(count) {
        let id = id(options.session, number);
        let state = of_clone(id.clone(), None, options.state.clone());
        let one = match super::restore::run(&RestoreOptions { state, ..options.clone() }, events) {
            // Nothing was started: what holds for one holds for all.
            Ok(one) if options.dry_run => return Ok(one.outcome),
            Ok(one) => one.outcome,
            Err(failure) if number == 0 => return Err(failure),
            Err(failure) => {
                whole.partly = Some(format!("{number} of {count} copies were started: {failure}"));
                break;
            }
        };
        (whole.pid, whole.state) = (whole.pid.or(one.pid), one.state);
        whole.candidates.push(CandidateReport {
            name: "local".to_owned(),
            became: Became::Runs(one.pid.unwrap_or_default()),
            clone_id: Some(id),
            rounds: 0,
            bytes_sent: 0,
            ready_after: None,
            via: Vec::new(),
        });
    }
    whole.total = Some(began.elapsed());
    Ok(whole)
}

/// Adds to the outcome who is who, by their places in the list that was asked for, and what was not done of it.
pub(super) fn complete(mut outcome: Outcome, options: &MoveOptions, (places, asked): (&[usize], usize)) -> Outcome {
    if options.clones.is_none() || options.dry_run {
        return outcome;
    }
    let asked = asked + options.clones.as_ref().map_or(0, |clones| clones.left_out);
    let mut started = 0;
    for (candidate, place) in outcome.candidates.iter_mut().zip(places) {
        // Whoever has the target itself has no copy of it.
        if candidate.became != Became::Owner {
            candidate.clone_id = Some(id(options.session, *place));
        }
        started += usize::from(matches!(candidate.became, Became::Owner | Became::Runs(_)));
    }
    outcome.partly = (started < asked).then(|| format!("{started} of {asked} copies were started"));
    outcome
}

/// That only some of them were started, for whoever asked for all.
pub fn partly(outcome: &Outcome) -> Option<Failure> {
    let failure = Failure::new(outcome.partly.clone()?).kind(FailureKind::Partly);
    Some(failure.target(match &outcome.place {
        Where::Dest(name) => TargetState::RunningOn(name.clone()),
        _ => TargetState::Running,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::options::CloneOptions;
    use crate::ops::words::Target;

    fn options(words: &[&str]) -> MoveOptions {
        let mut options = MoveOptions::new(Target::Pid(crate::image::Pid(7)), words[0].parse().unwrap());
        options.dests = words.iter().map(|word| word.parse().unwrap()).collect();
        options.clones = Some(CloneOptions::default());
        options
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        type Change = fn(&mut MoveOptions);
        let changes: [Change; 5] = [
            |options| options.mode.mode = Mode::Hybrid,
            |options| options.mode.fence = Some("true".into()),
            |options| options.state.move_addresses = vec!["10.0.0.7/24@eth0".parse().unwrap()],
            |options| options.state.pids = Some(Pids::Same),
            |options| options.then.stages = vec![vec!["c".parse().unwrap()]],
        ];
        for change in changes {
            let mut options = options(&["b"]);
            assert!(refuse(&options).is_ok());
            change(&mut options);
            assert_eq!(refuse(&options).unwrap_err().kind, FailureKind::Usage);
            options.clones = None;
            assert!(refuse(&options).is_ok(), "a move may");
        }
    }

    #[test]
    fn connections_are_left_to_one_that_can_have_them() {
        type Change = fn(&mut MoveOptions);
        let changes: [Change; 3] = [
            |options| options.clones.as_mut().unwrap().end_source = false,
            |options| options.state.tcp = Tcp::Close,
            |options| {
                let address = "10.0.0.7/24@eth0".parse::<crate::ops::options::MoveAddress>().unwrap();
                let place = Place { ip: address.ip, prefix: address.prefix, interface: address.interface };
                options.clones.as_mut().unwrap().addresses = vec![place.clone(), place];
            },
        ];
        let made = || {
            let mut options = options(&["b", "c"]);
            options.clones = Some(CloneOptions {
                end_source: true,
                connections: Some("c".parse().unwrap()),
                ..CloneOptions::default()
            });
            options
        };
        for change in changes {
            let mut options = made();
            assert!(refuse(&options).is_ok());
            change(&mut options);
            assert_eq!(refuse(&options).unwrap_err().kind, FailureKind::Usage);
        }
        let mut options = made();
        options.state.move_addresses = vec!["10.0.0.7/24@eth0".parse().unwrap()];
        assert!(refuse(&options).is_ok(), "the address of the target may go along with it");
        assert_eq!(original(&options), Ok(Some(Original::Moves(Candidate(1)))));
        let of = |who: u8| state(&options, Candidate(who), who.into(), options.state.clone());
        assert!(of(1).identity.is_none() && of(1).move_addresses.len() == 1);
        assert!(of(0).identity.is_some() && of(0).move_addresses.is_empty());
        options.dests.remove(1);
        assert_eq!(original(&options).unwrap_err().kind, FailureKind::Peer);
        let further = Further::default();
        assert_eq!(refuse_further(&options, &further).unwrap_err().kind, FailureKind::Usage);
        let further = Further { alternates: vec!["d".parse().unwrap()], ..Further::default() };
        assert_eq!(refuse_further(&made(), &further).unwrap_err().kind, FailureKind::Usage);
    }

    #[test]
    fn ids_go_by_the_place_on_the_command_line() {
        let options = options(&["b", "c", "c"]);
        let of = |place| state(&options, Candidate(0), place, StateOptions::default()).identity.unwrap().id;
        assert_eq!([of(0), of(2)], [format!("{}-1", options.session), format!("{}-3", options.session)]);
        let mut outcome = Outcome::new(options.session, State::Running, Where::Both);
        let candidate = |became| CandidateReport {
            name: "c".into(),
            became,
            clone_id: None,
            rounds: 1,
            bytes_sent: 1,
            ready_after: None,
            via: Vec::new(),
        };
        // The first could not be reached.
        outcome.candidates = vec![candidate(Became::Runs(7)), candidate(Became::Runs(8))];
        let outcome = complete(outcome, &options, (&[1, 2], 3));
        assert_eq!(outcome.candidates[1].clone_id.as_deref(), Some(of(2).as_str()));
        let partly = partly(&outcome).unwrap();
        assert_eq!((partly.kind, partly.target), (FailureKind::Partly, TargetState::Running));
        // All that were tried are started, and one was left out before, as its path was not its own.
        let left_out = CloneOptions { left_out: 1, ..CloneOptions::default() };
        let options = MoveOptions { clones: Some(left_out), ..options };
        let outcome = complete(Outcome { partly: None, ..outcome }, &options, (&[0, 1], 2));
        assert_eq!(outcome.partly.as_deref(), Some("2 of 3 copies were started"));
    }
}
