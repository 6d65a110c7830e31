//! The log for developers: `-v`, `-vv`, `--log FILE`.

use crate::failure::{Failure, FailureKind};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use tracing::level_filters::LevelFilter;

/// Starts the log, if one is asked for: to the file everything, to standard error what `-v` and `-vv` ask for.
///
/// # Errors
/// Usage, when the file cannot be written.
pub fn begin(verbose: u8, file: Option<&Path>) -> Result<(), Failure> {
    let shown = match verbose {
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        _ => LevelFilter::TRACE,
    };
    // A log on a full disk ends nobody: to say so on a standard error that is closed would be a panic.
    let builder = tracing_subscriber::fmt().with_ansi(false).with_target(true).log_internal_errors(false);
    // A program that uses this library may have a subscriber of its own: then that one stays.
    match file {
        Some(path) => {
            // The log names files and addresses of the target, hence the mode.
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|error| {
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
