//! `migrate restore`: an image becomes a tree.

use super::options::{RestoreOptions, Stdio};
use super::outcome::{Outcome, State, Where};
use super::spool::Spooled;
use super::{Event, Events, interrupt};
use crate::failure::{Failure, Result, TargetState};
use crate::image::Pid;
use crate::memory::pipeline::default_workers;
use crate::memory::store::{ImageDir, PageReader};
use crate::restore;
use std::time::Instant;

/// A tree that runs (or is stopped, if that was asked for), a child of this process.
#[derive(Debug)]
pub struct Running {
    /// What has been achieved.
    pub outcome: Outcome,
    child: Pid,
}

/// Restores the tree.
///
/// # Errors
/// Everything that keeps the tree from being made; then nothing of it is left.
pub fn run(options: &RestoreOptions, events: &dyn Events) -> Result<Running> {
    let began = Instant::now();
    let spooled = Spooled::of(&options.image, std::io::stdin().lock())?;
    let dir = spooled.dir();
    let damaged =
        |e: &(dyn std::error::Error + 'static)| super::image::image_failure(dir, e).target(TargetState::NotStarted);
    let image = ImageDir::open(dir).map_err(|e| damaged(&e))?;
    let model = image.model().map_err(|e| damaged(&e))?;
    crate::image::verify::model(&model).map_err(|e| damaged(&e))?;
    let pages = PageReader::of(&image).map_err(|e| damaged(&e))?;
    pages.fits(&model).map_err(|e| damaged(&e))?;
    let settings = restore::Options {
        pids: options.state.pids,
        files: options.state.files,
        externals: Vec::new(),
        own_session: options.detach || options.state.stdio != Stdio::Attach && options.state.stdio != Stdio::Auto,
        cgroup: options.state.cgroup.clone(),
        name: options.session.to_string(),
        sibling: options.sibling,
        workers: default_workers(),
        original_here: false,
    };
    let failed = |e: &(dyn std::error::Error + 'static)| {
        Failure::of(format!("cannot restore {}", dir.display()), e).target(TargetState::NotStarted)
    };
    let scope = restore::preflight::Scope { cpu: options.state.cpu, ..Default::default() };
    let blockers = restore::preflight::look(&model, &settings, &scope);
    if !blockers.is_empty() {
        let what = format!("{} cannot be restored here", dir.display());
        return Err(Failure::blocked(what, blockers).target(TargetState::NotStarted));
    }
    if options.dry_run {
        let mut outcome = Outcome::new(options.session.clone(), State::Ended, Where::Nowhere);
        outcome.notes.push("nothing stands in the way; nothing was started".into());
        return Ok(Running { outcome, child: Pid(0) });
    }
    let total = image.manifest().pages.data * crate::image::mm::PAGE;
    let done = std::sync::atomic::AtomicU64::new(0);
    let restored = restore::build(&model, &pages, &settings, &|n| {
        let done = done.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n;
        events.event(Event::Progress { phase: "memory", done, total });
    })
    .map_err(|e| failed(&e))?;
    for warning in &restored.warnings {
        events.event(Event::Warning(warning.clone()));
    }
    let (root, child) = (restored.root(), restored.child());
    interrupt::check().map_err(|failure| failure.target(TargetState::NotStarted))?;
    if let Some(path) = &options.pidfile {
        std::fs::write(path, root.to_string()).map_err(|e| failed(&e))?;
    }
    restored.go(options.leave_stopped).map_err(|e| failed(&e))?;
    let state = if options.leave_stopped { State::Stopped } else { State::Running };
    let mut outcome = Outcome::new(options.session.clone(), state, Where::Dest("local".to_owned()));
    outcome.pid = Some(root.0);
    outcome.total = Some(began.elapsed());
    Ok(Running { outcome, child })
}

impl Running {
    /// Waits for the root: its exit code, or 128 + the signal that ended it.
    pub fn wait(&self) -> u8 {
        exit_code(self.child)
    }
}

fn exit_code(child: Pid) -> u8 {
    use crate::sys::wait::{Status, wait};
    loop {
        match wait(child) {
            Ok(Status::Exited(code)) => return code as u8,
            Ok(Status::Killed(signal)) => return 128 + signal as u8,
            Ok(_) => {}
            Err(_) => return 0,
        }
    }
}
