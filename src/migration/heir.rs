//! The source's end of the handover when the program that drove it is dead: performs what [`super::handover::source`] decides,
//! from the journal. Mirror of [`super::keeper`].
//!
//! Two come by it: the guardian of a move ([`settle`]), and a person ([`super::resolve`]). The journal is held while something is
//! decided, and not while the destination is asked: whoever of the two is first decides, and the other finds it decided.

use super::handover::source::{Action, Event, Phase, Record, Source};
use super::handover::{Candidate, Reply, Request, Rules, Sync};
use super::journal::{Journal, Line, Role, Step};
use super::protocol::AttemptId;
use super::resolve;
use super::source::again::Silence;
use super::source::{Again, Fence};
use crate::transport::Link;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// The one destination there is.
const ONE: Candidate = Candidate(0);
/// Between two looks for the destination: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a destination is looked for that may hold a copy which nobody needs. After that a person ends it there.
const TELL_FOR: Duration = Duration::from_secs(600);

/// A copy that has all of its memory looks for a source to say so, for half as long.
const MAY_BE_THERE: Duration = Duration::from_secs(60);

/// The copy at the source, held.
pub trait Original {
    /// Lets it go on. No harm if it runs.
    ///
    /// # Errors
    /// It cannot be let go.
    fn release(&mut self) -> io::Result<()>;

    /// Ends it: it runs elsewhere.
    fn end(&mut self);
}

/// What a journal says of the original.
pub type Found<'a> = dyn FnMut(&Line) -> Box<dyn Original + 'a> + 'a;

/// Who decides at the source now.
pub struct Heir<'a> {
    machine: Source,
    journal: Journal,
    /// The last line, as it was found.
    last: Line,
    original: Box<dyn Original + 'a>,
    /// What the destination has not been told yet.
    unsaid: Option<Request>,
}

impl<'a> Heir<'a> {
    /// Takes the journal of an attempt over, and does what its last line asks for.
    ///
    /// # Errors
    /// Those of [`Journal::take_over`]; the original cannot be let go; the journal cannot be written.
    pub fn take_over(journals: &Path, attempt: AttemptId, found: &mut Found<'a>) -> io::Result<Self> {
        let (journal, last) = Journal::take_over(journals, Role::Source, attempt)?;
        let (machine, actions) = Source::recover(attempt, Some(last.of_source()), 1, Rules::in_force());
        let original = found(&last);
        let mut heir = Self { machine, journal, last, original, unsaid: None };
        heir.perform(actions)?;
        Ok(heir)
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.machine.phase()
    }

    /// Something has happened: does what follows from it.
    ///
    /// # Errors
    /// The original cannot be let go; the journal cannot be written, and nothing was decided.
    pub fn on(&mut self, event: Event) -> io::Result<()> {
        let actions = self.machine.on(event);
        self.perform(actions)
    }

    fn perform(&mut self, mut actions: Vec<Action>) -> io::Result<()> {
        let mut first = Ok(());
        while !actions.is_empty() {
            let decides = matches!(actions.last(), Some(Action::Record(..)));
            let mut written = true;
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Record(record, sync) => {
                        let done = self.record(record, sync);
                        written = done.is_ok();
                        first = first.and(done);
                    }
                    Action::Release => first = first.and(self.original.release()),
                    Action::End => self.original.end(),
                    Action::Send(_, request) => self.unsaid = Some(request),
                    Action::Connect(_) | Action::Hold => {}
                }
            }
            if decides {
                actions = self.machine.on(if written { Event::Recorded } else { Event::NotRecorded });
            }
        }
        first
    }

    fn record(&mut self, record: Record, sync: Sync) -> io::Result<()> {
        let step = Step::from(&record);
        match sync {
            Sync::Now => self.journal.write_synced(step),
            Sync::Later => self.journal.write(step),
        }
    }
}

/// How the guardian of a move comes to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The target goes on here.
    Stays,
    /// It runs at the destination, and the original has ended.
    Moved,
    /// The copy there lacks memory that only this one has: a person decides.
    PagesOwed,
    /// It ran there, and has ended with that host: a person decides.
    EndedWithHost,
}

/// Settles an attempt whose program is dead: asks the destination for as long as it takes.
///
/// # Errors
/// There is no such journal, or it cannot be written.
pub fn settle<'a>(
    journals: &Path,
    attempt: AttemptId,
    again: Again<'_>,
    fence: Option<Fence<'_>>,
    found: &mut Found<'a>,
) -> io::Result<Settled> {
    let mut pause = LOOK_AGAIN.0;
    let mut silence = Silence::begin(fence);
    let mut owed_since = None;
    loop {
        match Heir::take_over(journals, attempt, found) {
            Ok(mut heir) => match heir.phase() {
                Phase::Stays | Phase::Moved(_) => {
                    let (line, phase, request) = (heir.last.clone(), heir.phase(), heir.unsaid.take());
                    drop(heir);
                    request.into_iter().for_each(|request| tell(&line, request, again));
                    return Ok(if phase == Phase::Stays { Settled::Stays } else { Settled::Moved });
                }
                _ => {
                    let line = heir.last.clone();
                    drop(heir);
                    match ask(journals, &line, again, &mut silence, found) {
                        Ok(Some(Settled::PagesOwed))
                            if owed_since.get_or_insert_with(Instant::now).elapsed() < MAY_BE_THERE => {}
                        Ok(Some(settled)) => return Ok(settled),
                        Ok(None) => {}
                        Err(error) => tracing::warn!(%error, "what was heard could not be done"),
                    }
                    if silence.ends_by_fence() {
                        // A person may have decided meanwhile: then nothing follows from it.
                        let heir = Heir::take_over(journals, attempt, found);
                        if let Err(error) = heir.and_then(|mut heir| heir.on(Event::Fenced(ONE))) {
                            tracing::warn!(%error, "nothing could be done about a fenced destination");
                        }
                        continue;
                    }
                }
            },
            // A person decides, or the disk is full for the moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(error) => tracing::info!(%error, %attempt, "not settled yet"),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_AGAIN.1);
    }
}

/// Asks the destination once who owns the target, and does what follows. `None`: that is not known yet, or is for the next look to
/// see.
fn ask<'a>(
    journals: &Path,
    line: &Line,
    again: Again<'_>,
    silence: &mut Silence<'_>,
    found: &mut Found<'a>,
) -> io::Result<Option<Settled>> {
    let Ok(mut link) = again.0() else { return Ok(None) };
    let Ok(answer) = resolve::ask(&mut link.control, line, Request::Ask) else { return Ok(None) };
    silence.is_broken();
    let Some(mut reply) = answer.reply else { return Ok(None) };
    if line.pages_owed && reply == Reply::Prepared {
        // Nobody serves the rest any more: the only whole copy is this one.
        let Some(next) = said(&mut link, line, Request::Abort) else { return Ok(None) };
        reply = next;
    }
    match reply {
        Reply::Running if line.pages_owed && answer.lacks_pages => return Ok(Some(Settled::PagesOwed)),
        Reply::EndedWithHost => return Ok(Some(Settled::EndedWithHost)),
        _ => {}
    }
    let mut heir = Heir::take_over(journals, line.attempt, found)?;
    loop {
        heir.on(Event::Said(ONE, line.attempt, reply))?;
        // It waits for a COMMIT that was lost.
        let next = match (heir.phase(), heir.unsaid.take()) {
            (Phase::Committed(_), Some(Request::Commit)) => said(&mut link, line, Request::Commit),
            (phase @ (Phase::Stays | Phase::Moved(_)), request) => {
                drop(heir);
                request.into_iter().for_each(|request| tell(line, request, again));
                return Ok(Some(if phase == Phase::Stays { Settled::Stays } else { Settled::Moved }));
            }
            _ => None,
        };
        match next {
            // To say COMMIT over and over helps nobody.
            Some(Reply::Prepared) | None => return Ok(None),
            Some(next) => reply = next,
        }
    }
}

fn said(link: &mut Link, line: &Line, request: Request) -> Option<Reply> {
    resolve::ask(&mut link.control, line, request).ok()?.reply
}

/// Tells the destination of an attempt that the target goes on here, if that is so.
pub fn tell_that_it_stays(journals: &Path, attempt: AttemptId, again: Again<'_>) {
    match Journal::take_over(journals, Role::Source, attempt) {
        Ok((_, line)) if line.step == Step::Aborted => tell(&line, Request::Abort, again),
        Ok((_, line)) => tracing::error!(step = ?line.step, "the journal does not say that it stays"),
        Err(error) => tracing::error!(%error, "the journal cannot be read"),
    }
}

/// Tells the destination what has been decided, until it has heard.
fn tell(line: &Line, request: Request, again: Again<'_>) {
    let (until, mut pause) = (Instant::now() + TELL_FOR, LOOK_AGAIN.0);
    while Instant::now() < until {
        let answer = again.0().and_then(|mut link| resolve::ask(&mut link.control, line, request));
        match answer {
            // Nothing is to be answered to DONE.
            Ok(answer) if request == Request::Done || answer.reply.is_some() => return,
            Ok(_) => tracing::debug!(?request, "nobody decides there now"),
            Err(error) => tracing::debug!(%error, ?request, "the destination was not told"),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_AGAIN.1);
    }
    tracing::warn!(?request, "the destination was not told: it may hold a copy, which waits there");
}
