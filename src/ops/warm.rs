//! `migrate warm`, `migrate switch`: a process of its own keeps destinations up to date without end, until it is told to move the
//! target, or to stop.
//!
//! ```text
//! migrate warm ── charge ──> session process ── rounds ──> destinations
//!                               ^ socket RUN/warm-ID.sock, mode 0600
//!      migrate status, switch, cancel
//! ```
//! What a switch has to say is made where it happens, the way the command wants it, and travels as text ([`wire`]).

pub mod session;
pub mod wire;

use super::Events;
use super::many;
use super::options::{Mode, SwitchOptions, WarmOptions};
use super::outcome::Outcome;
use super::places::Places;
use super::proxies;
use super::words::{Dest, SessionId, Target};
use crate::companion::{parcel, spawn};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::source::fan::CANDIDATES_MAX;
use crate::migration::switchover::Step;
use crate::transport::Abort;
use serde::{Deserialize, Serialize};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wire::{Account, Reply, Request};

/// The hidden first word of a session process.
const ENTRY: &str = "warm-session-process";

/// A session that says nothing for so long while it begins, or where it answers at once, is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a session may take to tell all destinations that they are to delete what they hold.
const CANCELLED_AFTER: Duration = Duration::from_secs(60);

/// Between two states that destinations keep.
const STATES_MIN: Duration = Duration::from_millis(100);

/// Says something: on standard output (`true`) or standard error.
pub type Say = Box<dyn Fn(bool, &str) + Send + Sync>;

/// Somebody who shows what happens, and how it has ended.
pub trait Shown: Events + Send {
    /// Shows the end; the exit code.
    fn finish(self: Box<Self>, result: Result<Outcome>) -> u8;
}

/// Who shows things in the session process; the program's user interface implements it.
pub trait Front: Sync {
    /// Begins to watch for signals that end a program, before it has threads: what they trigger. `None`: it cannot.
    fn watch(&self) -> Option<Abort>;

    /// The session keeps a log.
    fn log(&self, session: SessionId);

    /// Begins to show what this verb does, by `settings` that a [`Front`] of the command has written.
    fn begin(&self, settings: &str, verb: &str, session: SessionId, target: &str, say: Say) -> Box<dyn Shown>;

    /// The same of what is a part of something larger: its end is no result of the command.
    fn begin_part(&self, settings: &str, verb: &str, session: SessionId, target: &str, say: Say) -> Box<dyn Shown>;
}

/// What a session process is for.
#[derive(Debug, Serialize, Deserialize)]
struct Charge {
    options: WarmOptions,
    /// How the command that starts it shows things.
    settings: String,
}

/// Starts a session. What it has to say until its destinations are willing, or why that cannot be, goes to `say`; the exit code.
///
/// # Errors
/// Usage; no process can be started.
pub fn start(options: &WarmOptions, settings: String, say: &mut dyn FnMut(bool, &str)) -> Result<u8> {
    refuse(options)?;
    let failed = |e: &std::io::Error| Failure::of("the process of the session cannot be started", e);
    let (_child, mut socket) = spawn(ENTRY).map_err(|e| failed(&e))?;
    let charge = Charge { options: in_full(options.clone())?, settings };
    parcel::send(&mut socket, &charge, &[]).map_err(|e| failed(&e))?;
    attend(&mut socket, say).map_err(|failure| failure.target(TargetState::Running))
}

/// Wants the target of a session to move. What is to be said goes to `say`; the exit code.
///
/// # Errors
/// No such session, or several; it has ended before its time.
pub fn switch(options: &SwitchOptions, settings: String, say: &mut dyn FnMut(bool, &str)) -> Result<u8> {
    if options.mode == Mode::StopAndCopy {
        let what = "a warm-up has sent memory already: --mode auto, pre-copy, hybrid or post-copy";
        return Err(Failure::new(what).hint("--now waits for no exit condition").kind(FailureKind::Usage));
    }
    let (_, mut socket) = only(&options.session)?;
    let dests = options.dests.iter().cloned().map(|dest| Ok(absolute(dest)?.to_string())).collect::<Result<_>>()?;
    let SwitchOptions { now, timeout, mode, .. } = *options;
    let request = Request::Switch { dests, now, timeout, mode, settings };
    let failed = |e: &std::io::Error| Failure::of("the session does not answer", e);
    wire::send(&mut socket, &request).map_err(|e| failed(&e))?;
    socket.set_read_timeout(None).map_err(|e| failed(&e))?;
    attend(&mut socket, say)
}

/// Ends a session: nothing is left at its destinations. `None`: there is no session of this name that runs. Else its whole id.
///
/// # Errors
/// Several; the target is moving already.
pub fn cancel(session: &str) -> Result<Option<String>> {
    if fitting(session).is_empty() {
        return Ok(None);
    }
    let (id, mut socket) = only(session)?;
    let failed = |e: &std::io::Error| Failure::of(format!("session {id} does not answer"), e);
    let asked = wire::send(&mut socket, &Request::Cancel)
        .and_then(|()| socket.set_read_timeout(Some(CANCELLED_AFTER)))
        .and_then(|()| wire::receive(&mut socket));
    match asked.map_err(|e| failed(&e))? {
        Reply::Cancelled => Ok(Some(id)),
        Reply::Refused(why) => Err(Failure::new(format!("session {id} cannot be cancelled")).hint(why)),
        other => Err(Failure::new(format!("session {id} answers {other:?}"))),
    }
}

/// How far a session is that runs here. `None`: there is none of this id.
pub fn look(session: &str) -> Option<Account> {
    let mut socket = connect(&socket_path(&Places::here().run, session))?;
    wire::send(&mut socket, &Request::Status).ok()?;
    match wire::receive(&mut socket).ok()? {
        Reply::Account(account) => Some(*account),
        _ => None,
    }
}

/// How a session has ended, where it has left word.
pub fn last_words(session: &str) -> Option<Account> {
    serde_json::from_slice(&std::fs::read(session::end_path(&Places::here().state, session)).ok()?).ok()
}

/// Shows what a session has to say until it says how it has ended.
fn attend(socket: &mut UnixStream, say: &mut dyn FnMut(bool, &str)) -> Result<u8> {
    loop {
        match wire::receive(socket) {
            Ok(Reply::Said { out, text }) => say(out, &text),
            Ok(Reply::Ended { exit }) => return Ok(exit),
            Ok(Reply::Refused(why)) => return Err(Failure::new(why).target(TargetState::Running)),
            Ok(other) => return Err(Failure::new(format!("the session answers {other:?}"))),
            Err(error) => {
                return Err(Failure::of("the process of the session has ended before its time", &error)
                    .hint("migrate status says who has the target, and the session's log what has happened"));
            }
        }
    }
}

/// What does not go together with a warm-up, yet or at all.
fn refuse(options: &WarmOptions) -> Result<()> {
    let moves = &options.moves;
    if moves.dests.len() <= CANDIDATES_MAX {
        many::refuse(moves)?;
    }
    let all: Vec<_> = moves.dests.iter().chain(moves.then.dests()).cloned().collect();
    proxies::refuse(&moves.peer, &all, options.disjoint)?;
    let what = if moves.dests.len() > CANDIDATES_MAX {
        format!("{CANDIDATES_MAX} destinations are kept warm at once, at most")
    } else if !matches!(moves.mode.mode, Mode::Auto | Mode::PreCopy) {
        "a warm-up is made of rounds: --mode auto or pre-copy".to_owned()
    } else if moves.mode.recoverable.is_some() {
        "--recoverable is not for a warm-up, for now".to_owned()
    } else if moves.base.as_ref().is_some_and(|base| base.is_absolute()) {
        // Pages that were kept for this session have another name.
        "--base is not for a warm-up, for now".to_owned()
    } else if !(1..=100).contains(&options.cpu_share) {
        "--cpu-share is from 1% to 100% of one processor".to_owned()
    } else if options.standby.is_some_and(|every| every < STATES_MIN) {
        "--standby takes no state more often than every 100 ms".to_owned()
    } else {
        return Ok(());
    };
    Err(Failure::new(what).kind(FailureKind::Usage))
}

/// The options for a process in another directory; what a warm-up does not do is left out.
fn in_full(mut options: WarmOptions) -> Result<WarmOptions> {
    let moves = &mut options.moves;
    moves.dests = std::mem::take(&mut moves.dests).into_iter().map(absolute).collect::<Result<_>>()?;
    moves.peer.via = std::mem::take(&mut moves.peer.via).into_iter().map(absolute).collect::<Result<_>>()?;
    if let Target::PidFile(path) = &mut moves.target {
        *path = full(path)?;
    }
    for path in &mut moves.with {
        *path = full(path)?;
    }
    moves.mode.converge.retain(|step| *step != Step::Delta);
    Ok(options)
}

pub(super) fn absolute(dest: Dest) -> Result<Dest> {
    Ok(match dest {
        Dest::Unix(path) => Dest::Unix(full(&path)?),
        other => other,
    })
}

pub(super) fn full(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Failure::of(format!("{} cannot be found", path.display()), &e))
}

fn socket_path(run: &Path, session: &str) -> PathBuf {
    run.join(format!("warm-{session}.sock"))
}

/// Ids of the sessions that run here and begin like this.
pub fn fitting(session: &str) -> Vec<String> {
    let run = Places::here().run;
    let names = std::fs::read_dir(&run).into_iter().flatten().flatten();
    let ids = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("warm-")?.strip_suffix(".sock")?.to_owned())
    });
    let fits = |id: &String| id.starts_with(session) && connect(&socket_path(&run, id)).is_some();
    let mut ids: Vec<String> = ids.filter(fits).collect();
    ids.sort();
    ids
}

fn only(session: &str) -> Result<(String, UnixStream)> {
    match fitting(session).as_slice() {
        [id] => match connect(&socket_path(&Places::here().run, id)) {
            Some(socket) => Ok((id.clone(), socket)),
            None => Err(Failure::new(format!("session {id} has just ended"))),
        },
        [] => Err(Failure::new(format!("there is no warm-up {session} on this host"))
            .hint(format!("migrate status {session} says whether and how it has ended"))),
        several => {
            Err(Failure::new(format!("{session} can be any of: {}", several.join(", "))).kind(FailureKind::Usage))
        }
    }
}

fn connect(path: &Path) -> Option<UnixStream> {
    let socket = match UnixStream::connect(path) {
        Ok(socket) => socket,
        Err(error) => {
            if error.kind() == std::io::ErrorKind::ConnectionRefused {
                // Left behind by a session that was killed.
                let _ = std::fs::remove_file(path);
            }
            return None;
        }
    };
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    socket.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Pid;
    use crate::ops::options::{CPU_SHARE, MoveOptions};

    fn options() -> WarmOptions {
        let moves = MoveOptions::new(Target::Pid(Pid(7)), Dest::Unix("a.sock".into()));
        WarmOptions { moves, cpu_share: CPU_SHARE, standby: None, disjoint: None }
    }

    #[test]
    fn a_charge_reaches_the_session_as_it_was() {
        let mut options = options();
        options.moves.dests.push("user@host:22".parse().unwrap());
        options.moves.memory.bandwidth = Some(7);
        options.moves.state.hooks.push("frozen=true".parse().unwrap());
        let charge = Charge { options: options.clone(), settings: "{}".into() };
        let read: Charge = serde_json::from_slice(&serde_json::to_vec(&charge).unwrap()).unwrap();
        assert_eq!(read.options, options);
        let full = in_full(options).unwrap();
        assert!(matches!(&full.moves.dests[0], Dest::Unix(path) if path.is_absolute()), "{full:?}");
        assert!(!full.moves.mode.converge.contains(&Step::Delta));
    }

    #[test]
    fn what_a_warm_up_is_not_for_is_refused() {
        assert!(refuse(&options()).is_ok());
        let refused = |change: &dyn Fn(&mut WarmOptions)| {
            let mut options = options();
            change(&mut options);
            refuse(&options).is_err_and(|failure| failure.kind == FailureKind::Usage)
        };
        assert!(refused(&|options| options.moves.mode.mode = Mode::PostCopy));
        assert!(refused(&|options| options.moves.mode.mode = Mode::StopAndCopy));
        assert!(refused(&|options| options.cpu_share = 0));
        assert!(refused(&|options| options.standby = Some(Duration::from_millis(99))));
        assert!(refused(&|options| options.moves.dests.clear()));
        assert!(refused(&|options| options.moves.dests.push(Dest::Unix("a.sock".into()))));
    }
}
