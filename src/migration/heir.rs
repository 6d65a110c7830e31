//! The source's end of the handover when the program that drove it is dead: performs what [`super::handover::source`] decides,
//! from the journal. Mirror of [`super::keeper`].
//!
//! Two come by it: the guardian of a move ([`settle`]), and a person ([`super::resolve`]). The journal is held while something is
//! decided, and not while the destination is asked: whoever of the two is first decides, and the other finds it decided.
//!
//! In post-copy the original has memory that the copy lacks. The guardian goes on to serve it where the move's program has
//! stopped ([`Rest`]): what is owed the destination says on the new links. A person cannot, and decides nothing before that.

use super::handover::source::{Action, Event, Phase, Record, Source};
use super::handover::{Candidate, Reply, Request, Rules, Sync};
use super::journal::{Journal, Line, Role, Step};
use super::points::series::Series;
use super::points::taking::Taking;
use super::postcopy::serving::{Serving, Unlinked};
use super::protocol::AttemptId;
use super::resolve;
use super::source::again::Silence;
use super::source::{Again, Fence};
use crate::companion::held::Held;
use crate::memory::pipeline::ReadPages;
use crate::transport::Link;
use crate::transport::backoff::Backoff;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks for the destination: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a destination is looked for that may hold a copy which nobody needs. After that a person ends it there.
const TELL_FOR: Duration = Duration::from_secs(600);

/// A copy that has all of its memory looks for a source to say so, for half as long.
const MAY_BE_THERE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// Without a link for pages for so long it is asked again who owns the target.
const NO_LINK: Duration = Duration::from_secs(3);

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

/// Memory of the original, for as long as the copy lacks some of it.
pub struct Rest<'a> {
    /// Where it is read.
    pub pages: &'a (dyn ReadPages + std::marker::Sync),
    /// zstd level.
    pub level: Option<i32>,
    /// Where states of the copy are kept that come back meanwhile, and how often ([`super::points`]).
    pub states: Option<(PathBuf, Duration)>,
}

/// Who decides at the source now.
pub struct Heir<'a> {
    machine: Source,
    journal: Journal,
    /// The last line, as it was found.
    last: Line,
    original: Box<dyn Original + 'a>,
    /// What destinations have not been told yet.
    unsaid: Vec<(Candidate, Request)>,
}

impl<'a> Heir<'a> {
    /// Takes the journal of an attempt over, and does what its last line asks for.
    ///
    /// # Errors
    /// Those of [`Journal::take_over`]; the original cannot be let go; the journal cannot be written.
    pub fn take_over(journals: &Path, attempt: AttemptId, found: &mut Found<'a>) -> io::Result<Self> {
        let (journal, last) = Journal::take_over(journals, Role::Source, attempt)?;
        let (machine, actions) = Source::recover(attempt, Some(last.of_source()), last.candidates(), Rules::in_force());
        let original = found(&last);
        let mut heir = Self { machine, journal, last, original, unsaid: Vec::new() };
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
                    Action::Send(to, request) => self.unsaid.push((to, request)),
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
    /// The copy there lacks memory that only this one has, and it cannot be brought there: a person decides.
    PagesOwed,
    /// It ran there, and has ended with that host: a person decides.
    EndedWithHost,
}

/// Settles an attempt whose program is dead: asks the destination for as long as it takes, and serves it the rest of the memory.
///
/// # Errors
/// There is no such journal, or it cannot be written.
pub fn settle<'a>(
    journals: &Path,
    attempt: AttemptId,
    again: Again<'_>,
    fence: Option<Fence<'_>>,
    rest: Option<Rest<'_>>,
    found: &mut Found<'a>,
) -> io::Result<Settled> {
    let mut backoff = Backoff::new(LOOK_AGAIN);
    let mut silence = Silence::begin(fence, Candidate(0));
    let mut owed = Owed { rest, since: None };
    loop {
        match Heir::take_over(journals, attempt, found) {
            Ok(mut heir) => match heir.phase() {
                Phase::Stays | Phase::Moved(_) => {
                    let (line, phase, unsaid) = (heir.last.clone(), heir.phase(), std::mem::take(&mut heir.unsaid));
                    drop(heir);
                    tell_all(&line, &unsaid, again);
                    return Ok(if phase == Phase::Stays { Settled::Stays } else { Settled::Moved });
                }
                _ => {
                    let line = heir.last.clone();
                    drop(heir);
                    let asked = Candidate(line.candidate);
                    silence.is_of(asked);
                    match ask(journals, &line, again, &mut silence, found) {
                        Ok(Some(Settled::PagesOwed)) => match owed.bring(&line, again.to(asked), &mut silence) {
                            Brought::Everything => drained(journals, attempt, found),
                            Brought::Some => backoff.reset(),
                            Brought::Nothing => {}
                            Brought::InVain => return Ok(Settled::PagesOwed),
                        },
                        Ok(Some(settled)) => return Ok(settled),
                        Ok(None) => {}
                        Err(error) => tracing::warn!(%error, "what was heard could not be done"),
                    }
                    if silence.ends_by_fence() {
                        // A person may have decided meanwhile: then nothing follows from it.
                        let heir = Heir::take_over(journals, attempt, found);
                        if let Err(error) = heir.and_then(|mut heir| heir.on(Event::Fenced(asked))) {
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
        std::thread::sleep(backoff.pause());
    }
}

/// What the copy lacks, from the point of view of whoever settles.
struct Owed<'a> {
    rest: Option<Rest<'a>>,
    /// Since when it could not be brought.
    since: Option<Instant>,
}

/// How much of it was brought.
enum Brought {
    /// The copy has all of its memory.
    Everything,
    /// There was a link, and it is lost.
    Some,
    /// There was none.
    Nothing,
    /// There was none for so long that there will be none.
    InVain,
}

impl Owed<'_> {
    /// Serves the copy until it has everything, or there is no link for a while.
    fn bring(&mut self, line: &Line, again: Again<'_>, silence: &mut Silence<'_>) -> Brought {
        let since = *self.since.get_or_insert_with(Instant::now);
        let is_whole = line.is_of_this_boot() && line.held.as_ref().is_some_and(Held::is_whole);
        match self.rest.as_ref().filter(|_| is_whole).map(|rest| rest.serve(line, again)) {
            Some(Brought::Everything) => return Brought::Everything,
            Some(Brought::Some) => {
                self.since = None;
                silence.is_broken();
                return Brought::Some;
            }
            _ if since.elapsed() < MAY_BE_THERE => {}
            _ => return Brought::InVain,
        }
        Brought::Nothing
    }
}

impl Rest<'_> {
    fn serve(&self, line: &Line, again: Again<'_>) -> Brought {
        let serving = match Serving::new(line.attempt, self.level) {
            Ok(serving) => serving,
            Err(error) => {
                tracing::warn!(%error, "the rest of the memory cannot be served now");
                return Brought::Nothing;
            }
        };
        let (unlinked, taking) = (Unlinked::default(), self.taking(line.attempt));
        let done = std::thread::scope(|scope| {
            scope.spawn(|| serving.run(again, self.pages));
            let taking = taking.map(|(taking, series)| {
                let stops = taking.clone();
                scope.spawn(move || taking.run(again, series));
                stops.begin();
                stops
            });
            let done = serving.wait(&|| unlinked.since() >= NO_LINK, &|_| ());
            serving.stop();
            taking.iter().for_each(|taking| drop(taking.stop()));
            done
        });
        let served = serving.served();
        tracing::info!(pages = served.pages, faults = served.faults, links = serving.links(), "has served memory");
        match done {
            Ok(_) => Brought::Everything,
            Err(_) if serving.links() > 0 => Brought::Some,
            Err(_) => Brought::Nothing,
        }
    }
}

impl Rest<'_> {
    /// States go on to come back, if they did.
    fn taking(&self, attempt: AttemptId) -> Option<(Taking, Series)> {
        let (dir, every) = self.states.as_ref()?;
        let series = Series::again(dir).inspect_err(|error| tracing::warn!(%error, "no states come back")).ok()?;
        Some((Taking::new(attempt, *every, self.level).ok()?, series))
    }
}

/// The copy has said that it lacks nothing any more, so it runs, and the original has nothing that anybody needs.
fn drained<'a>(journals: &Path, attempt: AttemptId, found: &mut Found<'a>) {
    let ended = Heir::take_over(journals, attempt, found).and_then(|mut heir| {
        heir.journal.set_pages_owed(false);
        let owner = Candidate(heir.last.candidate);
        heir.on(Event::Said(owner, attempt, Reply::Running))
    });
    if let Err(error) = ended {
        // At the next look the copy says the same.
        tracing::warn!(%error, "the original could not be ended yet");
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
    let asked = Candidate(line.candidate);
    let Ok(mut link) = again.to(asked).link() else { return Ok(None) };
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
        heir.on(Event::Said(asked, line.attempt, reply))?;
        // It waits for a COMMIT that was lost.
        let unsaid = std::mem::take(&mut heir.unsaid);
        let next = match heir.phase() {
            Phase::Committed(_) if unsaid.iter().any(|(_, request)| *request == Request::Commit) => {
                said(&mut link, line, Request::Commit)
            }
            phase @ (Phase::Stays | Phase::Moved(_)) => {
                drop(heir);
                tell_all(line, &unsaid, again);
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

/// Tells the destinations of an attempt that the target is not their own, if that is so: it goes on here, or at another one.
pub fn tell_the_others(journals: &Path, attempt: AttemptId, again: Again<'_>) {
    let (line, owner) = match Journal::take_over(journals, Role::Source, attempt) {
        Ok((_, line)) if line.step == Step::Aborted => (line, None),
        Ok((_, line)) if line.step == Step::Done => (line.clone(), Some(Candidate(line.candidate))),
        Ok((_, line)) => return tracing::error!(step = ?line.step, "the journal does not say whose it is"),
        Err(error) => return tracing::error!(%error, "the journal cannot be read"),
    };
    let others = (0..line.candidates()).map(Candidate).filter(|to| Some(*to) != owner);
    let unsaid: Vec<_> = others.map(|to| (to, Request::Abort)).collect();
    tell_all(&line, &unsaid, again);
}

/// Each by a thread of its own: one that cannot be reached keeps nobody else waiting.
fn tell_all(line: &Line, unsaid: &[(Candidate, Request)], again: Again<'_>) {
    std::thread::scope(|scope| {
        for (to, request) in unsaid.iter().copied() {
            scope.spawn(move || tell(line, request, again.to(to)));
        }
    });
}

/// Tells the destination what has been decided, until it has heard.
fn tell(line: &Line, request: Request, again: Again<'_>) {
    let (until, mut backoff) = (Instant::now() + TELL_FOR, Backoff::new(LOOK_AGAIN));
    while Instant::now() < until {
        let answer = again.link().and_then(|mut link| resolve::ask(&mut link.control, line, request));
        match answer {
            // Nothing is to be answered to DONE.
            Ok(answer) if request == Request::Done || answer.reply.is_some() => return,
            Ok(_) => tracing::debug!(?request, "nobody decides there now"),
            Err(error) => tracing::debug!(%error, ?request, "the destination was not told"),
        }
        std::thread::sleep(backoff.pause());
    }
    tracing::warn!(?request, "the destination was not told: it may hold a copy, which waits there");
}

#[cfg(test)]
#[path = "heir_tests.rs"]
mod tests;
