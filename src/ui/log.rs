//! The log for developers: `-v`, `-vv`, `--log FILE`; that of a move is kept for a while without being asked for.

use crate::failure::{Failure, FailureKind};
use crate::ops::words::SessionId;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

/// A log that nobody has asked for is kept for so long.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Starts the log, if one is asked for: to the file everything, to standard error what `-v` and `-vv` ask for.
///
/// # Errors
/// Usage, when the file cannot be written.
pub fn begin(verbose: u8, file: Option<&Path>) -> Result<(), Failure> {
    let shown = shown(verbose);
    // A log on a full disk ends nobody: to say so on a standard error that is closed would be a panic.
    let builder = tracing_subscriber::fmt().with_ansi(false).with_target(true).log_internal_errors(false);
    // A program that uses this library may have a subscriber of its own: then that one stays.
    match file {
        Some(path) => {
            let file = open(path).map_err(|error| {
                Failure::of(format!("cannot write the log {}", path.display()), &error).kind(FailureKind::Usage)
            })?;
            let _ = builder.with_max_level(LevelFilter::TRACE).with_writer(Mutex::new(file)).try_init();
        }
        None if shown != LevelFilter::OFF => {
            let _ = builder.with_max_level(shown).without_time().with_writer(std::io::stderr).try_init();
        }
        None => {}
    }
    Ok(())
}

/// Starts the log of a session that is kept in this directory, beside what `-v` and `-vv` ask for; where it is. `None` where it
/// cannot be written: that is no reason not to go on.
pub fn keep(verbose: u8, dir: &Path, session: SessionId) -> Option<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).ok()?;
    remove_old(dir, SystemTime::now());
    let path = dir.join(format!("{session}.log"));
    let (file, shown) = (open(&path).ok()?, shown(verbose));
    let writer = Mutex::new(file).and(std::io::stderr.with_filter(move |event| *event.level() <= shown));
    let builder = tracing_subscriber::fmt().with_ansi(false).with_target(true).log_internal_errors(false);
    builder.with_max_level(LevelFilter::TRACE).with_writer(writer).try_init().ok()?;
    Some(path)
}

fn shown(verbose: u8) -> LevelFilter {
    match verbose {
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        _ => LevelFilter::TRACE,
    }
}

/// The log names files and addresses of the target, hence the mode.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Removes logs whose time is over.
fn remove_old(dir: &Path, now: SystemTime) {
    let logs = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
        let changed = fs::symlink_metadata(&path).and_then(|log| log.modified());
        if changed.is_ok_and(|changed| now.duration_since(changed).is_ok_and(|age| age > KEPT)) {
            // Another one may have removed it just now.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_removed_after_their_time_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.log", "b.log", "a.json"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let now = SystemTime::now();
        File::options().write(true).open(dir.path().join("b.log")).unwrap().set_modified(now + 2 * KEPT).unwrap();
        let left = || {
            let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        remove_old(dir.path(), now + KEPT / 2);
        assert_eq!(left(), ["a.json", "a.log", "b.log"]);
        remove_old(dir.path(), now + KEPT * 2);
        assert_eq!(left(), ["a.json", "b.log"]);
    }
}
