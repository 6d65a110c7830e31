//! `migrate restore --on`: an image is restored on other hosts. It goes the way of a target that moves: its tree is offered to all of
//! them, its pages are read once for all, and the first host that is ready runs it, or each a copy. The source of it is the image, which
//! nobody writes to: nothing runs or stands still here meanwhile, and nothing has to be let go if all of them fail.

use super::guardian::{Charge, Guardian};
use super::image::{image_failure, not_to_be_trusted};
use super::options::{CloneOptions, ImageOptions, ImagePlace, Mode, ModeOptions, MoveOptions};
use super::options::{RemoteOptions, RestoreOptions, StateOptions, Stdio};
use super::outcome::{Outcome, Where};
use super::places::Places;
use super::words::{Dest, Target};
use super::{Event, Events, choices, clones, luggage, many, move_, reach, restore, verify};
use crate::blocker::Blocker;
use crate::companion::held::Held;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::image::Model;
use crate::memory::pipeline::ReadPages;
use crate::memory::store::{Contents, Source};
use crate::memory::{PageRange, Space};
use crate::migration::MoveError;
use crate::migration::conventions::Conventions;
use crate::migration::handover::Candidate;
use crate::migration::pages::{Run, What};
use crate::migration::protocol::{AttemptId, TargetSummary};
use crate::migration::report::Report;
use crate::migration::source::{self, Again, Final, Plan, Send, Survey, Taken, Wishes};
use crate::transport::{Abort, Link};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Restores an image on other hosts. Everything in it is checked before any of them is asked.
///
/// # Errors
/// As [`super::move_::run`], and those of [`verify::run`] (exit code 7); the failure says whether anything was started.
pub fn run(options: &RestoreOptions, remote: &RemoteOptions, events: &dyn Events, abort: &Abort) -> Result<Outcome> {
    let began = Instant::now();
    let (moves, dir) = as_move(options, remote)?;
    verify::run(&ImageOptions { dir: dir.clone() }, events).map_err(not_started)?;
    let (image, state) = Image::open(&dir, &moves)?;
    let moves = MoveOptions { state, ..moves };
    let asked = moves.dests.len();
    let many::Reached { links, .. } = many::connect(&moves, events, abort).map_err(not_started)?;
    let (links, places): (Vec<Link>, Vec<usize>) = links.into_iter().map(|(link, (place, _))| (link, place)).unzip();
    let dests = places.iter().map(|place| moves.dests[*place].clone()).collect();
    let moves = MoveOptions { dests, ..moves };
    let mut stored = Stored { moves: &moves, image, guardian: None, untold: false };
    let report = attempt(links, &mut stored, &places, events, abort)?;
    report.warnings.iter().for_each(|warning| events.event(Event::Warning(warning.clone())));
    if options.dry_run {
        return Ok(Outcome { candidates: report.candidates, ..restore::nothing_in_the_way(options).outcome });
    }
    let was_frozen = !stored.image.model.frozen.is_empty();
    let outcome = Outcome {
        place: Where::Dest(many::owner(&moves, &report)),
        // Nothing of it is here, and nothing has stood still.
        target_pid: None,
        mode: None,
        exit_condition: None,
        downtime: None,
        downtime_parts: Vec::new(),
        expected_downtime: None,
        ..move_::outcome(&moves, stored.image.root(), report, (Vec::new(), was_frozen))
    };
    let outcome = Outcome { total: Some(began.elapsed()), ..outcome };
    Ok(clones::complete(outcome, &moves, (&places, asked)))
}

/// The same as a move of what is in the image, and where that is.
///
/// # Errors
/// Usage: choices that make no sense for an image, or not on another host.
fn as_move(options: &RestoreOptions, remote: &RemoteOptions) -> Result<(MoveOptions, PathBuf)> {
    let usage = |what: &str| Err(Failure::new(what).kind(FailureKind::Usage).target(TargetState::NotStarted));
    let ImagePlace::Dir(dir) = &options.image else {
        return usage(
            "an image that comes as a stream would be lost with the hosts: --on takes one that is in a directory",
        );
    };
    luggage::no_copies(options.state.files)?;
    if options.state.stdio == Stdio::Attach {
        return usage(
            "--stdio attach does not reach from another host to this terminal: use --stdio log or --stdio null",
        );
    }
    let dests = match remote.count {
        Some(count) if usize::from(count) < remote.dests.len() => {
            return usage("there are more hosts than copies: --count is of all hosts together");
        }
        Some(count) => remote.dests.iter().cycle().take(count.into()).cloned().collect(),
        None => remote.dests.clone(),
    };
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    let moves = MoveOptions {
        session: options.session,
        dests,
        mode: ModeOptions { mode: Mode::StopAndCopy, ..ModeOptions::default() },
        state: options.state.clone(),
        peer: remote.peer.clone(),
        lease: remote.lease,
        dry_run: options.dry_run,
        clones: remote.count.map(|_| CloneOptions::default()),
        ..MoveOptions::new(Target::Image(dir.clone()), Dest::Local)
    };
    many::refuse(&moves)?;
    clones::refuse(&moves)?;
    Ok((moves, dir))
}

/// One attempt over these links, which lead to the hosts at these places of the list.
fn attempt(
    links: Vec<Link>,
    stored: &mut Stored<'_>,
    places: &[usize],
    events: &dyn Events,
    abort: &Abort,
) -> Result<Report> {
    let (moves, journals) = (stored.moves, Places::here().state.join("moves"));
    let link_again = |to: Candidate, ends: Option<&Abort>| {
        reach::again(&moves.dests, to, (&moves.peer, None), ends.unwrap_or(abort))
    };
    let wishes = Wishes {
        stop_and_copy: true,
        again: Some(Again::new(&link_again)),
        states: many::states(moves, places)?,
        ..move_::wishes(moves, &journals)?
    };
    let restored = many::run(links, stored, &wishes, &Unpaused(events), abort);
    stored.part(&restored);
    restored.map_err(|error| not_started(move_::failure(moves, error)))
}

/// What is said of a target that stays where it runs is wrong for one that runs nowhere.
fn not_started(failure: Failure) -> Failure {
    let target = match failure.target {
        TargetState::Untouched | TargetState::Running if failure.kind == FailureKind::NeedsPerson => {
            TargetState::InDoubt
        }
        TargetState::Untouched | TargetState::Running => TargetState::NotStarted,
        known => known,
    };
    Failure { target, ..failure }
}

/// Without the events of a pause: nothing stands still.
struct Unpaused<'a>(&'a dyn Events);

impl Events for Unpaused<'_> {
    fn event(&self, event: Event) {
        if !matches!(event, Event::Frozen | Event::Switched { .. }) {
            self.0.event(event);
        }
    }
}

/// What is in an image, as it is sent.
struct Image {
    model: Model,
    contents: Contents,
    /// Pages with content.
    pages: Vec<(Space, PageRange)>,
    /// Pages without content of their own: zero, or as in the address space which theirs was forked from.
    notes: Vec<Run>,
    /// What stands in the way on whatever host.
    blockers: Vec<Blocker>,
}

impl Image {
    /// Opens a whole image; with the choices of the restore, completed by what the image says.
    fn open(dir: &Path, moves: &MoveOptions) -> Result<(Self, StateOptions)> {
        let (image, mut model, reader) = restore::opened(dir, None)?;
        let mut state = choices::completed(&moves.state, &image.manifest().restore).map_err(not_started)?;
        if moves.clones.is_some() {
            // The image may name addresses of the one tree that it was made of.
            state.move_addresses.clear();
        }
        // Peers of connections that are closed hear of it when they next send: from here nobody speaks for the other host.
        let (_, mut blockers) = choices::apply(&mut model, &StateOptions { tcp: clones::tcp(moves), ..state.clone() });
        blockers.extend(restore::not_given(&model, state.stdio));
        blockers.extend(not_to_be_trusted(dir));
        let (mut pages, mut notes) = (Vec::new(), Vec::new());
        for space in reader.spaces() {
            for run in reader.runs(space).map_err(|e| not_started(image_failure(dir, &e)))? {
                match run.source {
                    Source::Data { .. } => pages.push((space, run.range)),
                    Source::Zero => notes.push(Run::new(space, run.range, What::Zero)),
                    Source::Inherit => notes.push(Run::new(space, run.range, What::Inherit)),
                }
            }
        }
        Ok((Self { model, contents: Contents::of(reader), pages, notes, blockers }, state))
    }

    /// Process id of the root, as it was.
    fn root(&self) -> i32 {
        self.model.root().pid.0
    }

    fn plan(&self) -> Plan {
        Plan { pages: self.pages.clone(), notes: self.notes.clone(), spaces: Vec::new() }
    }

    fn summary(&self) -> TargetSummary {
        let once_bytes = self.plan().bytes();
        let threads: usize = self.model.tasks.iter().map(|task| task.threads.len()).sum();
        TargetSummary {
            pid: self.root(),
            comm: move_::comm(&self.model),
            tasks: u32::try_from(threads).unwrap_or(u32::MAX),
            memory_bytes: once_bytes + self.notes.iter().map(|note| note.range.bytes()).sum::<u64>(),
            once_bytes,
        }
    }
}

/// An image as the target of a move: nothing runs that would have to be stopped, held, let go or ended.
struct Stored<'a> {
    moves: &'a MoveOptions,
    image: Image,
    /// Settles the attempt if this program dies in the handover.
    guardian: Option<Guardian>,
    /// A host does not know yet that the tree is not its own.
    untold: bool,
}

impl Stored<'_> {
    /// The attempt is over; the guardian goes on where something is left to be settled.
    fn part(&mut self, restored: &std::result::Result<Report, MoveError>) {
        match (restored, self.guardian.take()) {
            (_, None) => {}
            // Without a last word it goes on.
            (Err(MoveError::InDoubt { .. }), Some(guardian)) => drop(guardian),
            (_, Some(guardian)) if self.untold => guardian.tells(),
            (_, Some(guardian)) => guardian.over(),
        }
    }
}

impl source::Target for Stored<'_> {
    fn survey(&mut self) -> Result<Survey> {
        let model = &self.image.model;
        Ok(Survey {
            summary: self.image.summary(),
            model: move_::encoded(model)?,
            blockers: self.image.blockers.clone(),
            is_single: model.mms.len() == 1,
            files: Vec::new(),
            look: Duration::ZERO,
            conventions: Conventions::of(model),
        })
    }

    fn round(&mut self, send: &mut Send<'_>) -> std::result::Result<Taken, MoveError> {
        send(&self.image.plan(), &self.image.contents)
    }

    fn freeze(&mut self) -> Result<Final> {
        let model = &self.image.model;
        Ok(Final {
            plan: self.image.plan(),
            model: move_::encoded(model)?,
            spaces: move_::space_names(model, &[]),
            later: Vec::new(),
            files: Vec::new(),
        })
    }

    fn frozen_pages(&self) -> Box<dyn ReadPages + '_> {
        Box::new(&self.image.contents)
    }

    fn frozen_since(&self) -> Option<Instant> {
        None
    }

    fn held(&self) -> Result<Held> {
        Ok(Held::default())
    }

    fn guard(&mut self, attempt: AttemptId) {
        let warn =
            |error: &std::io::Error| tracing::warn!(%error, "if this program dies in the handover a person resolves");
        self.guardian = Guardian::start(&Charge::of(attempt, self.moves)).inspect_err(warn).ok();
    }

    fn leave_untold(&mut self) -> bool {
        self.untold = true;
        self.guardian.is_some()
    }

    fn hold(&mut self) -> Result<()> {
        if let Some(guardian) = &mut self.guardian {
            guardian.holds(&[], None);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}
