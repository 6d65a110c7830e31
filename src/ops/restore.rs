//! `migrate restore`: an image becomes a tree.

use super::foreground::Foreground;
use super::options::{ImagePlace, RestoreOptions, StateOptions, Stdio};
use super::outcome::{Outcome, State, Where};
use super::places::Places;
use super::scope::adopt_aside;
use super::spool::Spooled;
use super::systemd::MaskedUnit;
use super::words::SessionId;
use super::{Event, Events, addresses, choices, interrupt, supervisor};
use crate::blocker::{Blocker, codes};
use crate::companion::held::Held;
use crate::companion::pager::{self, Kept, News, Origin, Ready, Watch};
use crate::failure::{Failure, Result, TargetState};
use crate::image::fd::{External, FileKind};
use crate::image::task::Task;
use crate::image::{Model, Pid};
use crate::memory::RangeSet;
use crate::memory::pipeline::default_workers;
use crate::memory::store::{ImageDir, PageReader, Source, StoreError};
use crate::net::address::Place;
use crate::restore;
use crate::restore::clone::{Identity, as_clone};
use crate::sys::wait::{Status, wait};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A tree that runs (or is stopped, if that was asked for), a child of this process.
#[derive(Debug)]
pub struct Running {
    /// What has been achieved.
    pub outcome: Outcome,
    root: Pid,
    child: Pid,
    terminal: Option<Foreground>,
    late: Option<Late>,
}

/// Memory that still comes in while the target runs.
#[derive(Debug)]
pub struct Late {
    socket: PathBuf,
}

impl Late {
    /// Waits until all of it is in. What a person has to know if it will not come.
    pub fn wait(&self) -> Option<String> {
        let mut watch = Watch::begin(&self.socket)?;
        loop {
            match watch.news().ok()? {
                News::Missing(_) => {}
                News::Complete => return None,
                News::Lost(message) => return Some(message),
            }
        }
    }
}

/// Restores the tree.
///
/// # Errors
/// Everything that keeps the tree from being made; then nothing of it is left.
pub fn run(options: &RestoreOptions, events: &dyn Events) -> Result<Running> {
    super::luggage::no_copies(options.state.files)?;
    let began = Instant::now();
    let spooled = Spooled::of(&options.image, std::io::stdin().lock())?;
    let dir = spooled.dir();
    let pager = (options.lazy && !options.dry_run).then(|| std::thread::spawn(Ready::pager));
    let (image, mut model, pages) = opened(dir, options.state.identity.as_ref())?;
    let state = choices::completed(&options.state, &image.manifest().restore)
        .map_err(|failure| failure.target(TargetState::NotStarted))?;
    let (closed, mut blockers) = choices::apply(&mut model, &state);
    let stdio = stdio(options, &state);
    let settings = settings(options, &state, stdio);
    let failed = |e: &(dyn std::error::Error + 'static)| {
        Failure::of(format!("cannot restore {}", dir.display()), e).target(TargetState::NotStarted)
    };
    let places = addresses::there(&state);
    blockers.extend(addresses::blockers(&places));
    blockers.extend(restore::preflight::look(&model, &settings, &scope(&state, &places)));
    blockers.extend(not_given(&model, stdio));
    blockers.extend(super::image::not_to_be_trusted(dir));
    blockers.extend(if options.lazy { None } else { memory_short(&image) });
    let (units, to_mask) = supervisor::beside(&model, state.supervisor);
    blockers.extend(units);
    if !blockers.is_empty() {
        let what = format!("{} cannot be restored here", dir.display());
        return Err(Failure::blocked(what, blockers).target(TargetState::NotStarted));
    }
    if options.dry_run {
        return Ok(nothing_in_the_way(options));
    }
    let masked = supervisor::mask(to_mask).map_err(|failure| failure.target(TargetState::NotStarted))?;
    // Before anybody is born who could inherit what it makes.
    let pager = pager.map(|starting| announced(starting, &image)).transpose().map_err(|e| failed(&e))?;
    let model = restore::vdso::adapted(model).map_err(|e| failed(&e))?;
    let addresses = addresses::Come::take(places, &model).map_err(|e| failed(&e))?;
    let total = image.manifest().pages.data * crate::image::mm::PAGE;
    let done = std::sync::atomic::AtomicU64::new(0);
    let mut restored = restore::build(&model, &pages, &settings, &|n| {
        let done = done.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n;
        events.event(Event::Progress { phase: "memory", done, total });
    })
    .map_err(|e| failed(&e))?;
    let warn = |warning: String| events.event(Event::Warning(warning));
    restored.warnings.drain(..).for_each(warn);
    let (root, child) = (restored.root(), restored.child());
    job_control(&model, stdio).into_iter().for_each(warn);
    interrupt::check().map_err(|failure| failure.target(TargetState::NotStarted))?;
    if let Some(path) = &options.pidfile {
        std::fs::write(path, root.to_string()).map_err(|e| failed(&e))?;
    }
    let terminal = match stdio {
        Stdio::Attach if !options.detach && !options.leave_stopped => Foreground::give(&model, root),
        _ => None,
    };
    let notes = if options.lazy { at_once(&model, &pages).map_err(|e| failed(&e))? } else { Vec::new() };
    let late = pager.map(|pager| later(options, pager, &mut restored, &image, &pages)).transpose();
    let late = late.map_err(|failure| failure.target(TargetState::NotStarted))?.flatten();
    let frozen = restored.go(options.leave_stopped).map_err(|e| failed(&e))?;
    // Whom the manager takes over leaves its cgroup, and runs.
    let _adopted = if frozen.is_none() { adopt_aside(&settings.name) } else { None };
    addresses.stay();
    masked.and_then(MaskedUnit::stay).into_iter().for_each(warn);
    closed.tell_peers().into_iter().for_each(warn);
    let (state, note) = state_of(&model, options.leave_stopped, frozen.as_deref());
    let mut outcome = Outcome::new(options.session, state, Where::Dest("local".to_owned()));
    outcome.pid = Some(root.0);
    outcome.total = Some(began.elapsed());
    outcome.notes = notes.into_iter().chain(note).collect();
    Ok(Running { outcome, root, child, terminal, late })
}

/// What a tree is in that was let go, and what a person should know of that. `frozen`: the cgroup that holds it.
fn state_of(model: &Model, stopped: bool, frozen: Option<&Path>) -> (State, Option<String>) {
    match frozen {
        _ if stopped => (State::Stopped, None),
        Some(dir) => (
            State::Held,
            Some(format!("it was frozen when it was saved, and is again, until {} is thawed", dir.display())),
        ),
        None if model.frozen.is_empty() => (State::Running, None),
        None => {
            (State::Running, Some("it was frozen when it was saved; it runs, as no cgroup here holds it alone".into()))
        }
    }
}

/// A daemon that was begun in somebody's session gets one of its own, but for a job that comes to our terminal.
fn stdio(options: &RestoreOptions, state: &StateOptions) -> Stdio {
    match state.stdio {
        Stdio::Auto if !options.detach => Stdio::Attach,
        chosen => chosen,
    }
}

fn scope(state: &StateOptions, places: &[Place]) -> restore::preflight::Scope {
    let coming = places.iter().map(|place| place.ip).collect();
    restore::preflight::Scope { cpu: state.cpu.unwrap_or_default(), coming, ..Default::default() }
}

/// The answer of `--dry-run`.
pub(super) fn nothing_in_the_way(options: &RestoreOptions) -> Running {
    let mut outcome = Outcome::new(options.session, State::Ended, Where::Nowhere);
    outcome.notes.push("nothing stands in the way; nothing was started".into());
    Running { outcome, root: Pid(0), child: Pid(0), terminal: None, late: None }
}

/// The image, found to be sound but for the contents of its pages; with the model of this copy of it, where there are several.
pub(super) fn opened(dir: &Path, identity: Option<&Identity>) -> Result<(ImageDir, Model, PageReader)> {
    let damaged =
        |e: &(dyn std::error::Error + 'static)| super::image::image_failure(dir, e).target(TargetState::NotStarted);
    let image = ImageDir::open(dir).map_err(|e| damaged(&e))?;
    let mut model = image.model().map_err(|e| damaged(&e))?;
    if let Some(field) = crate::fault::forgotten() {
        model = crate::image::forget::forget(&model, &field)
            .ok_or_else(|| Failure::new(format!("there is no model without {field} (MIGRATE_FORGET)")))?;
    }
    crate::image::verify::model(&model).map_err(|e| damaged(&e))?;
    let pages = PageReader::of(&image).map_err(|e| damaged(&e))?;
    pages.fits(&model).map_err(|e| damaged(&e))?;
    let model = match identity {
        Some(identity) => as_clone(model, identity),
        None => model,
    };
    Ok((image, model, pages))
}

/// Less memory is free here than the contents of the image take.
fn memory_short(image: &ImageDir) -> Option<Blocker> {
    let here = crate::proc::sys::meminfo().ok()?;
    let (needed, free) = (image.manifest().pages.data * crate::image::mm::PAGE, here.available + here.swap_free);
    let reason = || format!("{needed} bytes are needed, {free} are free with swap");
    (needed > free).then(|| Blocker::new(codes::MEMORY_SHORT, "memory of this host").because(reason()))
}

/// What of an image could not come later, for the report.
fn at_once(model: &Model, pages: &PageReader) -> std::result::Result<Vec<String>, StoreError> {
    let mut held = BTreeMap::new();
    for space in pages.spaces() {
        let runs = pages.runs(space)?.into_iter().filter(|run| run.source != Source::Zero);
        held.insert(space, runs.map(|run| run.range).collect::<RangeSet>());
    }
    Ok(super::late::at_once(model, &held))
}

/// The pager that was being started, which takes milliseconds, told which image it will have to read. It ends by itself where it
/// is not needed.
fn announced(starting: std::thread::JoinHandle<std::io::Result<Ready>>, image: &ImageDir) -> std::io::Result<Ready> {
    let mut pager = starting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    pager.announce(&origin(image)?)?;
    Ok(pager)
}

/// Where pages come from that come later.
fn origin(image: &ImageDir) -> std::io::Result<Origin> {
    Ok(Origin::Image { dir: std::path::absolute(image.path())?, id: image.id().to_owned() })
}

/// Leaves memory that is to come later to a process of ours that brings it. Nothing without `--lazy`.
fn later(
    options: &RestoreOptions,
    pager: Ready,
    restored: &mut restore::Restored<'_>,
    image: &ImageDir,
    pages: &PageReader,
) -> Result<Option<Late>> {
    let failed = |e: &(dyn std::error::Error + 'static)| {
        Failure::of(format!("{} cannot be restored with memory that comes later", image.path().display()), e)
    };
    let late = restored.late(Some(pages)).map_err(|e| failed(&e))?;
    if late.is_empty() {
        return Ok(None);
    }
    let (places, session) = (Places::here(), options.session.to_string());
    std::fs::create_dir_all(&places.state).map_err(|e| failed(&e))?;
    let tree = Held::of(&restored.pids_alive(), None).map_err(|e| failed(&e))?;
    let kept = Kept {
        origin: origin(image).map_err(|e| failed(&e))?,
        tree,
        spaces: Vec::new(),
        views: Vec::new(),
        objects: Vec::new(),
        socket: pager::socket_path(&places.run, &session),
        report: places.state.join(format!("{session}.lost")),
        session,
    };
    let (kept, descriptors) = super::late::keep(late, kept);
    pager.leave(&kept, &descriptors).map_err(|e| failed(&e))?;
    Ok(Some(Late { socket: kept.socket }))
}

/// What the engine is asked for.
fn settings(options: &RestoreOptions, state: &StateOptions, stdio: Stdio) -> restore::Options {
    restore::Options {
        read_at: None,
        pids: state.pids.unwrap_or_default(),
        files: state.files.unwrap_or_default(),
        externals: Vec::new(),
        stdio,
        log: log_of(&options.image, &options.session),
        own_session: stdio != Stdio::Attach,
        cgroup: state.cgroup.clone().unwrap_or_default(),
        name: state.identity.as_ref().map_or_else(|| options.session.to_string(), |identity| identity.id.clone()),
        sibling: options.sibling,
        workers: default_workers(),
        lazy: options.lazy,
        original_here: false,
        segments_kept: false,
        identity: state.identity.clone(),
        id_dir: Places::here().run,
    }
}

/// Says that a tree at our terminal does not have it as it had its own.
fn job_control(model: &Model, stdio: Stdio) -> Option<String> {
    let what =
        "the tree has a session of its own: ^C and ^Z typed here do not reach it as they did at its own terminal";
    (stdio == Stdio::Attach && has_session_at_terminal(model)).then(|| what.to_owned())
}

/// Somebody in the tree leads a session whose terminal was held outside: ours belongs to our session.
fn has_session_at_terminal(model: &Model) -> bool {
    let outside = model.files.iter().any(|file| matches!(&file.kind, FileKind::External(e) if e.terminal.is_some()));
    let inside = |task: &Task| model.ptys.iter().any(|pty| pty.sid == task.sid);
    outside && model.tasks.iter().any(|task| task.sid == task.pid && task.tty_device != 0 && !inside(task))
}

/// What was held outside the tree, where nothing is given for it.
pub(super) fn not_given(model: &Model, stdio: Stdio) -> Vec<Blocker> {
    if !matches!(stdio, Stdio::Auto | Stdio::Refuse) {
        return Vec::new();
    }
    let blocker = |(external, object): (&External, String)| {
        let code = if external.terminal.is_some() { codes::TTY_OUTSIDE } else { codes::PIPE_OUTSIDE };
        let remedy = "--stdio attach, --stdio null or --stdio log";
        Blocker::new(code, object).because("it was held outside the tree").remedy(remedy)
    };
    restore::fd::external::all(model).into_iter().map(blocker).collect()
}

/// `--stdio log`: beside the image, or in the state directory.
fn log_of(image: &ImagePlace, session: &SessionId) -> Option<PathBuf> {
    match image {
        ImagePlace::Dir(dir) => {
            let mut name = dir.file_name()?.to_owned();
            name.push(".log");
            Some(dir.with_file_name(name))
        }
        ImagePlace::Stream => state_log(session),
    }
}

/// A log in the state directory of this host.
pub(super) fn state_log(session: &impl std::fmt::Display) -> Option<PathBuf> {
    let dir = Places::here().state;
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join(format!("{session}.log")))
}

impl Running {
    /// Memory that still comes in, if any does.
    pub fn take_late(&mut self) -> Option<Late> {
        self.late.take()
    }

    /// Waits for the root: its exit code, or 128 + the signal that ended it.
    pub fn wait(&mut self) -> u8 {
        let code = match &mut self.terminal {
            Some(terminal) => terminal.wait(self.root, self.child).map_or(0, code_of),
            None => exit_code(self.child),
        };
        self.terminal = None;
        code
    }
}

fn code_of(status: Status) -> u8 {
    match status {
        Status::Exited(code) => code as u8,
        Status::Killed(signal) => 128 + signal as u8,
        _ => 0,
    }
}

fn exit_code(child: Pid) -> u8 {
    loop {
        match wait(child) {
            Ok(status) if status.ended() => return code_of(status),
            Ok(_) => {}
            Err(_) => return 0,
        }
    }
}
