//! `migrate clone`: what differs from a move, as the operation of a move asks for it; and several copies of an image.

use super::Events;
use super::options::{Mode, MoveOptions, Pids, RestoreOptions, StateOptions, Supervisor, Tcp};
use super::outcome::{Outcome, State, Where};
use super::words::SessionId;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::report::{Became, CandidateReport};
use crate::migration::source::Original;
use crate::net::address::Place;
use crate::restore::clone::Identity;
use std::time::Instant;

/// What becomes of the original; `None` in a move.
pub(super) fn original(options: &MoveOptions) -> Option<Original> {
    let copies = options.copies.as_ref()?;
    Some(if copies.end_source { Original::Ends } else { Original::RunsOn })
}

/// The original goes on beside its copies.
pub(super) fn original_stays(options: &MoveOptions) -> bool {
    original(options) == Some(Original::RunsOn)
}

/// What becomes of connections: a copy has none of them.
pub(super) fn tcp(options: &MoveOptions) -> Tcp {
    match options.state.tcp {
        Tcp::Keep if options.copies.is_some() => Tcp::Close,
        chosen => chosen,
    }
}

/// What makes no sense for copies.
///
/// # Errors
/// Usage.
pub(super) fn refuse(options: &MoveOptions) -> Result<()> {
    let Some(copies) = &options.copies else { return Ok(()) };
    let (mode, state) = (&options.mode, &options.state);
    let what = if matches!(mode.mode, Mode::PostCopy | Mode::Hybrid) {
        "a copy has all of its memory before it runs: --mode pre-copy or stop-and-copy"
    } else if mode.recoverable.is_some() || mode.fence.is_some() {
        "--recoverable and --fence-cmd are for a target that only one host may have, not for copies of it"
    } else if !state.move_addresses.is_empty() {
        "the address of the original is not for several copies: --address gives each one of its own"
    } else if state.pids == Some(Pids::Same) {
        "a copy has the process ids of the original in a PID namespace of its own, not --pids same"
    } else if !options.then.stages.is_empty() {
        "--then moves a target on, not copies of it: they stay where they are started"
    } else if copies.addresses.len() > options.dests.len() {
        "there are more addresses than destinations: each --address is for the destination at its place"
    } else {
        return Ok(());
    };
    Err(Failure::new(what).kind(FailureKind::Usage))
}

/// The id of one of the copies of a session, the first is 0.
fn id(session: SessionId, number: usize) -> String {
    format!("{session}-{}", number + 1)
}

/// The choices for the destination at this place of the list.
pub(super) fn state(options: &MoveOptions, place: usize, state: StateOptions) -> StateOptions {
    match &options.copies {
        Some(copies) => of_copy(id(options.session, place), copies.addresses.get(place).cloned(), state),
        None => state,
    }
}

/// The choices for a copy that is called so.
fn of_copy(id: String, address: Option<Place>, state: StateOptions) -> StateOptions {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    StateOptions {
        pids: Some(Pids::New),
        // It takes no unit's place.
        supervisor: Supervisor::Ignore,
        identity: Some(Identity { id, host, address }),
        ..state
    }
}

/// Makes so many copies of an image, one after the other, each in namespaces of its own.
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
        let state = of_copy(id.clone(), None, options.state.clone());
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
    if options.copies.is_none() || options.dry_run {
        return outcome;
    }
    for (candidate, place) in outcome.candidates.iter_mut().zip(places) {
        candidate.clone_id = Some(id(options.session, *place));
    }
    let started = outcome.candidates.iter().filter(|one| matches!(one.became, Became::Runs(_))).count();
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
    use crate::ops::options::CopyOptions;
    use crate::ops::words::Target;

    fn options(words: &[&str]) -> MoveOptions {
        let mut options = MoveOptions::new(Target::Pid(crate::image::Pid(7)), words[0].parse().unwrap());
        options.dests = words.iter().map(|word| word.parse().unwrap()).collect();
        options.copies = Some(CopyOptions::default());
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
            options.copies = None;
            assert!(refuse(&options).is_ok(), "a move may");
        }
    }

    #[test]
    fn ids_go_by_the_place_on_the_command_line() {
        let options = options(&["b", "c", "c"]);
        let of = |place| state(&options, place, StateOptions::default()).identity.unwrap().id;
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
    }
}
