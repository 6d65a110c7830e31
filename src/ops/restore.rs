//! `migrate restore`: an image becomes a tree.

use super::options::{ImagePlace, RestoreOptions};
use super::outcome::{Outcome, State, Where};
use super::{Event, Events};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::image::Pid;
use crate::memory::pipeline::default_workers;
use crate::memory::store::{ImageDir, PageReader};
use crate::restore;
use std::time::Instant;

/// Restores the tree. Without `detach` waits for its root and returns its exit code as the second value.
pub fn run(options: &RestoreOptions, events: &dyn Events) -> Result<(Outcome, Option<u8>)> {
    let began = Instant::now();
    let ImagePlace::Dir(dir) = &options.image else {
        return Err(Failure::new("a restore from a stream is not there yet").kind(FailureKind::Usage));
    };
    let damaged = |e: &(dyn std::error::Error + 'static)| {
        Failure::of(format!("cannot read the image in {}", dir.display()), e)
            .kind(FailureKind::Image)
            .target(TargetState::NotStarted)
    };
    let image = ImageDir::open(dir).map_err(|e| damaged(&e))?;
    let model = image.model().map_err(|e| damaged(&e))?;
    let pages = PageReader::of(&image).map_err(|e| damaged(&e))?;
    let settings = restore::Options {
        pids: options.state.pids,
        files: options.state.files,
        externals: Vec::new(),
        sibling: false,
        workers: default_workers(),
    };
    let failed = |e: &(dyn std::error::Error + 'static)| {
        Failure::of(format!("cannot restore {}", dir.display()), e).target(TargetState::NotStarted)
    };
    let total: u64 = image.manifest().pages.bytes();
    let done = std::sync::atomic::AtomicU64::new(0);
    let restored = restore::build(&model, &pages, &settings, &|n| {
        let done = done.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n;
        events.event(Event::Progress { phase: "memory", done, total });
    })
    .map_err(|e| failed(&e))?;
    for warning in &restored.warnings {
        events.event(Event::Warning(warning.clone()));
    }
    let root = restored.root();
    if let Some(path) = &options.pidfile {
        std::fs::write(path, root.to_string()).map_err(|e| failed(&e))?;
    }
    restored.go(options.leave_stopped).map_err(|e| failed(&e))?;
    let state = if options.leave_stopped { State::Stopped } else { State::Running };
    let mut outcome = Outcome::new(options.session.clone(), state, Where::Dest("local".to_owned()));
    outcome.pid = Some(root.0);
    outcome.total = Some(began.elapsed());
    let code = if options.detach { None } else { Some(wait(root)) };
    Ok((outcome, code))
}

/// Waits for the restored root: its exit code, or 128 + the signal that ended it.
fn wait(root: Pid) -> u8 {
    use crate::sys::wait::{Status, wait};
    loop {
        match wait(root) {
            Ok(Status::Exited(code)) => return code as u8,
            Ok(Status::Killed(signal)) => return 128 + signal as u8,
            Ok(_) => {}
            Err(_) => return 0,
        }
    }
}
