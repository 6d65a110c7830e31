//! `migrate promote`: the newest state of a target that was kept warm with `--standby` is started on this host, because its source is dead
//! ([`crate::migration::standby`]).
//!
//! What can fail comes first: the state becomes an image, which is looked at as any other before it is restored. Then it is taken away
//! from whoever would start it a second time, the journal says so, and a source that returns is refused by that. If the restore does not
//! work out after all, the image stays where it is.

use super::options::{ExternalUnix, Files, ImagePlace, Pids, PromoteOptions, RestoreOptions, StateOptions, Stdio, Tcp};
use super::places::Places;
use super::{Quiet, fence, recover, restore as images};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::fault::{self, Point};
use crate::migration::destination::sweep_files;
use crate::migration::journal::{self, Journal, Line, Role, Step};
use crate::migration::resolve;
use crate::migration::standby::state::Complete;
use crate::migration::standby::{self, Became, Earlier, Newest, Terms};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an ended copy may take to give back its memory.
const COPY_ENDS: Duration = Duration::from_secs(5);

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promoted {
    /// The session.
    pub session: String,
    /// Process id of its root here.
    pub pid: i32,
    /// How old the state was.
    pub age: Duration,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Starts it.
///
/// # Errors
/// No state of such a session is kept here, or of several; its source is heard; a copy is prepared here; `--yes` is missing (the failure
/// says what is risked); the source's host could not be switched off; something is in the way of restoring it.
pub fn run(options: &PromoteOptions) -> Result<Promoted> {
    let journals = Places::here().state.join("moves");
    let (line, newest) = find(&journals, &options.session)?;
    let age = newest.taken.elapsed().unwrap_or_default();
    let mut journal = decide(&journals, &line, &newest.terms)?;
    let warnings: Vec<String> =
        std::iter::once(recover::loss(newest.taken)).chain(risks(&line, &newest.terms)).collect();
    if !options.yes {
        return Err(Failure::new("a promotion needs --yes")
            .hint(warnings.join("; "))
            .kind(FailureKind::Usage)
            .target(TargetState::NotStarted));
    }
    let dir = standby::directory(&journals, line.attempt);
    let state = choices(&newest.terms)?;
    prepare(&dir, &state)?;
    if let Some(command) = &options.fence
        && !fence::switch_off(command, source(&line, &newest.terms), &line.session)
    {
        let what = format!("the fencing command does not say that {} is off", source(&line, &newest.terms));
        return Err(Failure::new(what)
            .hint("nothing was started; see to it that the host is off, then promote without --fence-cmd")
            .kind(FailureKind::NeedsPerson)
            .target(TargetState::NotStarted));
    }
    let taken = take_up(&dir, &mut journal)?;
    if is_heard(&journals, &line) {
        give_back(&taken, &dir, &mut journal);
        return Err(heard(&line, &newest.terms));
    }
    fault::strike(Point::Promoting);
    let pid = start(&standby::image(&taken), state)?;
    journal.set_target(pid);
    if let Err(error) = journal.write(Step::Done) {
        tracing::warn!(%error, "the journal does not say as which process it runs");
    }
    standby::forget(&taken);
    Earlier::find(&journals, &line.session, line.attempt).forget();
    drop(journal);
    // Those that came along are its own from here on.
    sweep_files(&journals);
    Ok(Promoted { session: line.session, pid, age, warnings })
}

/// Deletes the state of this session that is kept here, if there is one; the whole id of the session then.
///
/// # Errors
/// Its source is heard; several fit.
pub(super) fn discard(session: &str) -> Result<Option<String>> {
    let journals = Places::here().state.join("moves");
    let Some((line, newest)) = kept(&journals, session)? else { return Ok(None) };
    let mut journal = decide(&journals, &line, &newest.terms)?;
    let dir = standby::directory(&journals, line.attempt);
    standby::remove(&dir).map_err(|e| Failure::of("the state that is kept here cannot be deleted", &e))?;
    journal.set_standby(None);
    journal.write(Step::Aborted).map_err(|e| Failure::of("the journal cannot be written", &e))?;
    Earlier::find(&journals, &line.session, line.attempt).forget();
    drop(journal);
    sweep_files(&journals);
    Ok(Some(line.session))
}

/// The state that is meant.
fn find(journals: &Path, session: &str) -> Result<(Line, Newest)> {
    let lines = lines(journals, session)?;
    if let Some(image) = lines.iter().find_map(|line| standby::left(journals, line.attempt)) {
        return Err(unfinished(&image, "another promote was ended when it was about to start the target here"));
    }
    let found = kept(journals, session)?;
    // Whatever else is kept of that session: it would be started a second time.
    let is_meant = |line: &&Line| found.as_ref().is_none_or(|(kept, _)| kept.session == line.session);
    let promoted = |line: &&Line| line.standby == Some(Became::Promoted);
    if let Some(line) = lines.iter().filter(is_meant).find(promoted) {
        let pid = line.target_pid.map(|pid| format!(" as process {pid}")).unwrap_or_default();
        return Err(Failure::new(format!("the target of session {} was started here before{pid}", line.session))
            .target(TargetState::NotStarted));
    }
    found.ok_or_else(|| {
        Failure::new(format!("no state of a session {session} is kept on this host"))
            .target(TargetState::NotStarted)
            .hint("migrate status shows what is kept here: by migrate warm with --standby, from its first state on")
    })
}

fn lines(journals: &Path, session: &str) -> Result<Vec<Line>> {
    let mut lines =
        resolve::lines(journals, Some(session)).map_err(|e| Failure::of("the journals of moves cannot be read", &e))?;
    lines.retain(|line| line.role == Role::Destination);
    Ok(lines)
}

/// The newest state of the one session that fits.
fn kept(journals: &Path, session: &str) -> Result<Option<(Line, Newest)>> {
    let with_state = |line: Line| {
        let newest = standby::newest(&standby::directory(journals, line.attempt))?;
        Some((line, newest))
    };
    let mut all: Vec<_> = lines(journals, session)?.into_iter().filter_map(with_state).collect();
    all.sort_by_key(|(_, newest)| newest.taken);
    let newest = all.pop();
    let other = |(line, _): &&(Line, Newest)| newest.as_ref().is_some_and(|(found, _)| found.session != line.session);
    match (all.iter().find(other), &newest) {
        (Some((other, _)), Some((line, _))) => {
            let what = format!("{session} can be any of: {}, {}", other.session, line.session);
            Err(Failure::new(what).kind(FailureKind::Usage))
        }
        _ => Ok(newest),
    }
}

/// From here on nobody else decides: no session hears the source, and no copy of the target is prepared here.
fn decide(journals: &Path, line: &Line, terms: &Terms) -> Result<Journal> {
    let session = &line.session;
    let (journal, last) =
        Journal::take_over(journals, Role::Destination, line.attempt).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => heard(line, terms),
            _ => Failure::of("the journal of the session cannot be read", &error).target(TargetState::NotStarted),
        })?;
    if is_heard(journals, line) {
        return Err(heard(line, terms));
    }
    // The copy of a switch that was cut off before anybody could decide about it.
    if let (Step::Begun, true, Some(held)) = (last.step, last.is_of_this_boot(), &last.held) {
        held.kill();
        held.wait_until_gone(COPY_ENDS);
    }
    match last.step {
        Step::Begun | Step::Aborted => Ok(journal),
        step => Err(Failure::new(format!("the move of session {session} has gone beyond a warm-up here ({step:?})"))
            .hint(format!("migrate status {session} says who has the target; migrate resolve {session} decides"))
            .kind(FailureKind::NeedsPerson)
            .target(TargetState::InDoubt)),
    }
}

/// A session that has lost all its destinations begins anew, and keeps the old state until it has brought a new one. That is taken to be
/// so where it cannot be seen.
fn is_heard(journals: &Path, line: &Line) -> bool {
    journal::all(journals).map_or(true, |lines| standby::is_heard(journals, &lines, line))
}

fn heard(line: &Line, terms: &Terms) -> Failure {
    let session = &line.session;
    Failure::new(format!("{} is heard: session {session} goes on", source(line, terms)))
        .hint(format!(
            "migrate switch {session} there moves the target and loses nothing, migrate cancel {session} there ends \
             the session; if that host is dead, it is noticed when the lease of the session is over"
        ))
        .target(TargetState::Running)
}

/// The host where the target was.
fn source<'a>(line: &'a Line, terms: &'a Terms) -> &'a str {
    if terms.standby.host.is_empty() { &line.peer } else { &terms.standby.host }
}

/// What a person answers for.
fn risks(line: &Line, terms: &Terms) -> Vec<String> {
    let mut risks = vec![format!(
        "{} has to be off, or cut off from its clients and its storage: where the target runs on there, there are two",
        source(line, terms)
    )];
    if !terms.standby.others.is_empty() {
        let others = terms.standby.others.join(", ");
        risks.push(format!(
            "of these hosts each may keep a state, too: {others}; migrate cancel {} there deletes it",
            line.session
        ));
    }
    risks.extend(addresses(terms).into_iter().map(|address| format!("{address} does not come by itself: add it here")));
    risks
}

/// Those that would have come with a switch.
fn addresses(terms: &Terms) -> Vec<String> {
    let state: StateOptions = serde_json::from_value(terms.state.clone()).unwrap_or_default();
    state.move_addresses.iter().map(ToString::to_string).collect()
}

/// How it is restored: as its user has chosen, but for what was lost with the source.
fn choices(terms: &Terms) -> Result<StateOptions> {
    let theirs: StateOptions = serde_json::from_value(terms.state.clone())
        .map_err(|e| Failure::of("the choices of the source cannot be read", &e))?;
    Ok(StateOptions {
        pids: theirs.pids.or(Some(Pids::Auto)),
        // What the program has written over there since is not here.
        files: Some(Files::Skip),
        // Their peers are ahead.
        tcp: Tcp::Close,
        external_unix: theirs.external_unix.or(Some(ExternalUnix::Reconnect)),
        stdio: if theirs.stdio == Stdio::Log { Stdio::Log } else { Stdio::Null },
        move_addresses: Vec::new(),
        hooks: Vec::new(),
        ..theirs
    })
}

fn options(image: &Path, state: StateOptions, dry_run: bool) -> RestoreOptions {
    RestoreOptions { detach: true, dry_run, state, ..RestoreOptions::new(ImagePlace::Dir(image.to_owned())) }
}

/// Makes an image of the state, and looks whether it can be restored here.
fn prepare(dir: &Path, state: &StateOptions) -> Result<()> {
    let failed = |e: &(dyn std::error::Error + 'static)| {
        Failure::of("the state that is kept here cannot be started", e).target(TargetState::NotStarted)
    };
    let complete = Complete::open(dir).map_err(|e| failed(&e).kind(FailureKind::Image))?;
    let image = standby::image(dir);
    complete.write_image(&image).map_err(|e| failed(&e))?;
    images::run(&options(&image, state.clone(), true), &Quiet).map(drop)
}

/// Under another name nobody starts it a second time; and a source that returns is refused.
fn take_up(dir: &Path, journal: &mut Journal) -> Result<PathBuf> {
    let failed = |e: &io::Error| {
        Failure::of("the state that is kept here cannot be taken up", e).target(TargetState::NotStarted)
    };
    let taken = standby::taken_up(dir);
    std::fs::rename(dir, &taken).map_err(|e| failed(&e))?;
    let synced = dir.parent().map_or(Ok(()), |journals| File::open(journals)?.sync_all());
    synced.map_err(|e| failed(&e))?;
    journal.set_standby(Some(Became::Promoted));
    journal.write_synced(Step::Done).map_err(|error| {
        let _ = std::fs::rename(&taken, dir);
        failed(&error)
    })?;
    Ok(taken)
}

/// The source has come back since it was last looked for: its session locks its journal before it looks whether the state was taken up, and
/// that was written before this look, so that one of the two always sees the other.
fn give_back(taken: &Path, dir: &Path, journal: &mut Journal) {
    let renamed = std::fs::rename(taken, dir);
    journal.set_standby(Some(Became::Kept));
    let written = renamed.and_then(|()| journal.write_synced(Step::Begun));
    if let Err(error) = written {
        tracing::warn!(%error, dir = %taken.display(), "the state that was to be started stays taken up");
    }
}

fn start(image: &Path, state: StateOptions) -> Result<i32> {
    let what = "the state of the target could not be started here after all";
    let running = images::run(&options(image, state, false), &Quiet).map_err(|failure| {
        let left = unfinished(image, what);
        Failure { causes: std::iter::once(failure.what).chain(failure.causes).collect(), ..left }
    })?;
    running.outcome.pid.ok_or_else(|| unfinished(image, "it was started here, but nobody says as which process"))
}

/// It is a person's from here on.
fn unfinished(image: &Path, what: &str) -> Failure {
    Failure::new(what)
        .hint(format!("if it does not run here, migrate restore -D {} starts it", image.display()))
        .kind(FailureKind::NeedsPerson)
        .target(TargetState::InDoubt)
}
