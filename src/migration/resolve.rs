//! What journals say of moves, and a person's decision for a copy on this host whose programs are dead.

use super::handover::source::{Action, Event, Phase, Source};
use super::handover::{Candidate, Choice, Reply, Request, Rules, Sync};
use super::journal::{self, Journal, Line, Role, Step};
use super::keeper::{self, Answer, Question};
use super::protocol::{self, FromDestination, FromSource};
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
        Request::Abort => FromSource::Abort { attempt, reason: "a person has decided at the source".into() },
    };
    protocol::send(control, &message)?;
    match protocol::receive(control)? {
        FromDestination::Says { attempt: about, reply, pid } if about == attempt => Ok(Answer { reply, pid }),
        _ => Ok(Answer { reply: None, pid: None }),
    }
}

/// A person's decision for the source's copy. What the destination has said, if it was asked, goes before it.
///
/// # Errors
/// A program of ours still decides ([`io::ErrorKind::WouldBlock`]); the journal cannot be written; nothing was committed, so
/// that the copy here is the only one ([`io::ErrorKind::PermissionDenied`]).
pub fn source(journals: &Path, line: &Line, said: Option<Reply>, choice: Choice) -> io::Result<Phase> {
    let (mut journal, last) = Journal::take_over(journals, Role::Source, line.attempt)?;
    let only_here = matches!(last.of_source(), super::handover::source::Record::Begun);
    if only_here && choice == Choice::Discard {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (mut machine, mut actions) = Source::recover(last.attempt, Some(last.of_source()), 1, Rules::in_force());
    perform(&mut journal, &mut machine, &last, std::mem::take(&mut actions))?;
    if let Some(reply) = said.filter(|reply| matches!(reply, Reply::Running | Reply::Aborted)) {
        let actions = machine.on(Event::Said(Candidate(0), last.attempt, reply));
        perform(&mut journal, &mut machine, &last, actions)?;
    }
    let actions = machine.on(Event::Resolved(choice));
    perform(&mut journal, &mut machine, &last, actions)?;
    Ok(machine.phase())
}

fn perform(journal: &mut Journal, machine: &mut Source, last: &Line, mut actions: Vec<Action>) -> io::Result<()> {
    let held = last.held.as_ref().filter(|_| last.is_of_this_boot());
    while !actions.is_empty() {
        let decides = matches!(actions.last(), Some(Action::Record(..)));
        for action in std::mem::take(&mut actions) {
            match action {
                Action::Record(record, sync) => {
                    let step = Step::from(&record);
                    match sync {
                        Sync::Now => journal.write_synced(step)?,
                        Sync::Later => journal.write(step)?,
                    }
                }
                Action::Release => held.map_or(Ok(()), crate::companion::held::Held::release)?,
                Action::End => held.into_iter().for_each(crate::companion::held::Held::kill),
                // The person's command tells the other side, if it can be reached.
                Action::Send(..) | Action::Connect(_) | Action::Hold => {}
            }
        }
        if decides {
            actions = machine.on(Event::Recorded);
        }
    }
    Ok(())
}

/// A person's decision for the destination's copy.
pub fn destination(journals: &Path, run: &Path, line: &Line, choice: Choice) -> Answer {
    keeper::answer(journals, run, line.attempt, Question::Person(choice))
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
