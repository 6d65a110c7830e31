//! `migrate resolve`: a person decides for this host's copy of a target whose move is in doubt.

use super::options::ResolveOptions;
use super::places::Places;
use super::recover::Recovery;
use super::status::ask;
use super::systemd::Manager;
use crate::companion::held::Held;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::handover::source::Phase;
use crate::migration::handover::{Choice, Reply, Request};
use crate::migration::journal::{Line, Role, Step};
use crate::migration::points::series;
use crate::migration::resolve;
use std::cell::RefCell;
use std::io;
use std::path::Path;

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The session.
    pub session: String,
    /// Where the target is now, a sentence.
    pub target: String,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Decides.
///
/// # Errors
/// No such session, or several; it is over; `--yes` is missing (the failure says what is risked); a program of ours still
/// decides; the other host says that this would double or lose the target.
pub fn run(options: &ResolveOptions) -> Result<Resolved> {
    let places = Places::here();
    let journals = places.state.join("moves");
    let lines = resolve::lines(&journals, Some(&options.session))
        .map_err(|e| Failure::of("the journals of moves cannot be read", &e))?;
    if let Some(image) = lines.iter().find_map(|line| series::left(&journals, line.attempt)) {
        return Err(left(&image));
    }
    let line = only(&options.session, lines)?;
    if !options.yes {
        let mut hint = risk(&line, options.choice);
        let newest = series::newest(&series::directory(&journals, line.attempt));
        if let (Role::Source, Choice::Run, Some(taken)) = (line.role, options.choice, newest) {
            hint = format!("{hint}; {}", super::recover::loss(taken));
        }
        return Err(Failure::new("a decision needs --yes").hint(hint).kind(FailureKind::Usage));
    }
    match line.role {
        Role::Source => at_source(&journals, &places.run, &line, options.choice),
        Role::Destination => at_destination(&journals, &places.run, &line, options.choice),
    }
}

/// Another resolve has decided, and has not come to the end.
fn left(image: &Path) -> Failure {
    Failure::new("a state of the target was about to go on here when another resolve was ended")
        .hint(format!("if it does not run, migrate restore -D {} lets it go on", image.display()))
        .kind(FailureKind::NeedsPerson)
        .target(TargetState::Ended(format!("its image is complete: {}", image.display())))
}

fn only(session: &str, mut lines: Vec<Line>) -> Result<Line> {
    let usage = |what: String| Err(Failure::new(what).kind(FailureKind::Usage));
    if lines.is_empty() {
        return Err(Failure::new(format!("there is no session {session} on this host")));
    }
    lines.retain(|line| !line.step.is_final());
    match lines.as_slice() {
        [line] => Ok(line.clone()),
        [] => Err(Failure::new(format!("session {session} is over")).hint("migrate status --all says how it ended")),
        several => {
            let ids: Vec<&str> = several.iter().map(|line| line.session.as_str()).collect();
            usage(format!("{session} can be any of: {}", ids.join(", ")))
        }
    }
}

/// What a decision risks.
fn risk(line: &Line, choice: Choice) -> String {
    let other = &line.peer;
    match (line.role, choice) {
        (_, Choice::Run) => {
            format!("if the copy of {other} runs or is let run, the target is doubled: discard it there first")
        }
        (_, Choice::Discard) => {
            format!("if {other} does not have the target, this is the only copy: see to it that it runs there first")
        }
    }
}

fn at_source(journals: &Path, run: &Path, line: &Line, choice: Choice) -> Result<Resolved> {
    let mut warnings = Vec::new();
    let mut said = None;
    if line.step == Step::Committing {
        // A copy that is prepared there is given up before this one runs.
        let request = if choice == Choice::Run { Request::Abort } else { Request::Ask };
        let answer = ask(line, request);
        said = answer.as_ref().and_then(|answer| answer.reply);
        let owed = line.pages_owed && answer.is_none_or(|answer| answer.lacks_pages);
        match (choice, said) {
            (Choice::Run, Some(Reply::Running)) => {
                return Err(Failure::new(format!("{} says that the target runs there", line.peer))
                    .hint(at_hand(line).1)
                    .kind(FailureKind::NeedsPerson)
                    .target(TargetState::RunningOn(line.peer.clone())));
            }
            (Choice::Discard, _) if owed && !matches!(said, Some(Reply::Aborted | Reply::EndedWithHost)) => {
                let what = format!("{} still lacks memory of the target, which only the copy here has", line.peer);
                let pid = line.target_pid.unwrap_or_default();
                return Err(Failure::new(what)
                    .hint(format!("process {pid} is stopped here: it can go on (SIGCONT) once the copy there has ended, or be killed"))
                    .kind(FailureKind::NeedsPerson)
                    .target(TargetState::Held));
            }
            (Choice::Discard, Some(Reply::Aborted)) => {
                return Err(Failure::new(format!("{} says that it does not have the target", line.peer))
                    .hint(at_hand(line).0)
                    .kind(FailureKind::NeedsPerson)
                    .target(at_hand(line).2));
            }
            (_, None | Some(Reply::Prepared | Reply::Unknown)) => warnings.push(risk(line, choice)),
            _ => {}
        }
    }
    let recovery = if choice == Choice::Run { recovery(journals, line, &mut warnings)? } else { None };
    let resumed = RefCell::new(None);
    let resume = |recovery: &Recovery, held: Option<&Held>| {
        let done = recovery.resume(held, run);
        let failed = done.as_ref().err().map(|failure| io::Error::other(failure.clone()));
        resumed.replace(Some(done));
        failed.map_or(Ok(()), Err)
    };
    let instead = recovery.as_ref().map(|recovery| move |held: Option<&Held>| resume(recovery, held));
    let instead = instead.as_ref().map(|instead| instead as &resolve::Instead<'_>);
    let phase = resolve::source(journals, run, line, (said, choice), instead);
    let pid = resumed.take().transpose()?;
    let phase = phase.map_err(|error| undecided(line, &error))?;
    series::remove(&series::directory(journals, line.attempt));
    if line.step != Step::Committing && phase == Phase::Stays && ask(line, Request::Abort).is_none() {
        warnings.push(format!("{} was not told: it may hold a copy, which waits there", line.peer));
    }
    // What its command held until now.
    if let (Some(manager), Ok(session)) = (Manager::here(), line.session.parse()) {
        warnings.extend(manager.settle(session));
    }
    let target = match (phase, pid) {
        (Phase::Stays, Some(pid)) => format!("it goes on here as process {pid}"),
        (Phase::Stays, None) if line.from_image => "it runs nowhere: its image can be restored again".to_owned(),
        (Phase::Stays, None) => "it goes on here".to_owned(),
        (Phase::Moved(_), _) if line.from_image => format!("{} has the target", line.peer),
        (Phase::Moved(_), _) => format!("the copy here has ended; {} has the target", line.peer),
        _ => return Err(undecided(line, &io::Error::other("nothing could be decided"))),
    };
    Ok(Resolved { session: line.session.clone(), target, warnings })
}

/// The newest state of a target that has run over there, if such states came back.
fn recovery(journals: &Path, line: &Line, warnings: &mut Vec<String>) -> Result<Option<Recovery>> {
    if line.step != Step::Committing || !series::directory(journals, line.attempt).exists() {
        return Ok(None);
    }
    let recovery = Recovery::prepare(journals, line)?;
    warnings.push(match &recovery {
        Some(recovery) => recovery.warning(),
        None => "no later state of the target is complete: it goes on here as it was when it moved".to_owned(),
    });
    Ok(recovery)
}

fn at_destination(journals: &Path, run: &Path, line: &Line, choice: Choice) -> Result<Resolved> {
    let mut engine = super::receive::engine();
    let answer = resolve::destination(journals, run, line, choice, &mut engine);
    let target = match (answer.reply, answer.pid) {
        (Some(Reply::Running), Some(pid)) => format!("it runs here as process {pid}"),
        (Some(Reply::Aborted), _) => "the copy here is deleted".to_owned(),
        (Some(Reply::EndedWithHost), _) => "it ran here and ended with this host".to_owned(),
        _ => match answer.trouble {
            Some(trouble) => return Err(stays_parked(line, trouble)),
            None => return Err(undecided(line, &io::ErrorKind::WouldBlock.into())),
        },
    };
    Ok(Resolved { session: line.session.clone(), target, warnings: vec![risk(line, choice)] })
}

fn stays_parked(line: &Line, trouble: String) -> Failure {
    let what = format!("the parked copy of session {} cannot be made to run now: {trouble}", line.session);
    Failure::new(what)
        .hint("it stays parked: resolve can be tried again")
        .kind(FailureKind::NeedsPerson)
        .target(TargetState::Held)
}

fn undecided(line: &Line, error: &io::Error) -> Failure {
    let what = format!("session {} was not resolved", line.session);
    let hint = match error.kind() {
        io::ErrorKind::WouldBlock => "a program of this session still decides: end it first (SIGTERM), then resolve",
        io::ErrorKind::PermissionDenied => "nothing was committed: the copy here is the only one; --run lets it go on",
        _ => "the target is as it was",
    };
    Failure::of(what, error).hint(hint).kind(FailureKind::NeedsPerson).target(at_hand(line).2)
}

/// What `--run` and `--discard` do on this host, and the state that the target is in here until then.
fn at_hand(line: &Line) -> (&'static str, &'static str, TargetState) {
    match line.from_image {
        true => (
            "--run notes that it runs nowhere: its image can be restored again",
            "--discard notes that it runs there",
            TargetState::NotStarted,
        ),
        false => (
            "--run lets the copy go on that is held here",
            "--discard ends the copy that is held here",
            TargetState::Held,
        ),
    }
}
