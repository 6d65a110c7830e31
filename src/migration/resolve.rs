//! What journals say of moves, and a person's decision for a copy on this host whose programs are dead.

use super::destination::Builder;
use super::handover::source::{Event, Phase};
use super::handover::{Candidate, Choice, Reply, Request};
use super::heir::{Heir, Original};
use super::journal::{self, Journal, Line, Role, Step};
use super::keeper::{self, Answer, Question};
use super::protocol::{self, FromDestination, FromSource};
use crate::companion::held::Held;
use crate::companion::lock_guard::will;
use crate::transport::{Channel, Result};
use std::io;
use std::path::Path;

/// Who owns the target, as far as this host can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This host.
    Here,
    /// The other one.
    There,
    /// It has ended here, with its host.
    EndedHere,
    /// Only the other host's journal can tell.
    InDoubt,
}

/// Reads it from the last line of a journal.
pub fn owner(line: &Line) -> Owner {
    let this_boot = line.is_of_this_boot();
    match (line.role, line.step) {
        (Role::Source, Step::Committing | Step::Owner) => Owner::InDoubt,
        (Role::Source, Step::Done) => Owner::There,
        (Role::Source, _) | (Role::Destination, Step::Owner | Step::Done) if this_boot => Owner::Here,
        (Role::Source, _) | (Role::Destination, Step::Owner | Step::Done) => Owner::EndedHere,
        (Role::Destination, _) => Owner::There,
    }
}

/// What a destination says of an attempt, over a new link.
///
/// # Errors
/// The link is lost.
pub fn ask(control: &mut Channel, line: &Line, request: Request) -> Result<Answer> {
    let attempt = line.attempt;
    control.during("asking who owns the target");
    let message = match request {
        Request::Ask => FromSource::Ask { attempt },
        Request::Commit => FromSource::Commit { attempt },
        Request::Done => FromSource::Done { attempt },
        Request::Abort => {
            FromSource::Abort { attempt, reason: "a person has decided at the source".into(), keep: false }
        }
    };
    protocol::send(control, &message)?;
    match protocol::receive(control)? {
        FromDestination::Says { attempt: about, reply, pid, lacks_pages } if about == attempt => {
            Ok(Answer { reply, pid, lacks_pages, trouble: None })
        }
        _ => Ok(Answer { reply: None, pid: None, lacks_pages: true, trouble: None }),
    }
}

/// A person's decision for the source's copy. What the destination has said, if it was asked, goes before it.
///
/// # Errors
/// A program of ours still decides ([`io::ErrorKind::WouldBlock`]); the journal cannot be written; nothing was committed, so
/// that the copy here is the only one ([`io::ErrorKind::PermissionDenied`]).
pub fn source(
    journals: &Path,
    run: &Path,
    line: &Line,
    (said, choice): (Option<Reply>, Choice),
    instead: Option<&Instead<'_>>,
) -> io::Result<Phase> {
    if choice == Choice::Discard {
        let (_lock, last) = Journal::take_over(journals, Role::Source, line.attempt)?;
        if matches!(last.of_source(), super::handover::source::Record::Begun) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    let mut heir = Heir::take_over(journals, line.attempt, &mut |last| Box::new(OnlyHeld::of(last, run, instead)))?;
    if let Some(reply) = said.filter(|reply| matches!(reply, Reply::Running | Reply::Aborted)) {
        heir.on(Event::Said(Candidate(line.candidate), line.attempt, reply))?;
    }
    heir.on(Event::Resolved(choice))?;
    Ok(heir.phase())
}

/// The original as its journal describes it, with what a guard that was killed has left written down of it.
struct OnlyHeld<'a> {
    held: Option<Held>,
    run: &'a Path,
    instead: Option<&'a Instead<'a>>,
}

/// Lets something else run instead of the original, and ends that.
pub type Instead<'a> = dyn Fn(Option<&Held>) -> io::Result<()> + 'a;

impl<'a> OnlyHeld<'a> {
    fn of(last: &Line, run: &'a Path, instead: Option<&'a Instead<'a>>) -> Self {
        Self { held: last.held.clone().filter(|_| last.is_of_this_boot()), run, instead }
    }
}

impl Original for OnlyHeld<'_> {
    fn release(&mut self) -> io::Result<()> {
        if let Some(instead) = self.instead {
            return instead(self.held.as_ref());
        }
        // Before it runs: it would meet errors of its sockets.
        will::execute(self.run, self.held.as_ref());
        self.held.as_ref().map_or(Ok(()), Held::release)
    }

    fn end(&mut self) {
        if let Some(held) = &self.held {
            held.kill();
            will::forget(self.run, held);
        }
    }
}

/// A person's decision for the destination's copy.
/// `builder` makes a tree of what is parked.
pub fn destination(journals: &Path, run: &Path, line: &Line, choice: Choice, builder: &mut dyn Builder) -> Answer {
    keeper::answer(journals, run, line.attempt, Question::Person(choice), builder)
}

/// Journals of one session, or of all; the oldest first.
///
/// # Errors
/// The directory cannot be read.
pub fn lines(journals: &Path, session: Option<&str>) -> io::Result<Vec<Line>> {
    let mut lines = journal::all(journals)?;
    lines.retain(|line| session.is_none_or(|id| line.session.starts_with(id)));
    Ok(lines)
}
