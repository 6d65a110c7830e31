//! The log: a file, which exists afterwards also on failure, or standard error. Callers look for lines with `Error` in it
//! and quote them, so that word stands only where something has failed:
//! `(00.001234) Error (criu-compat/src/actions.rs:47): text`.

use crate::options::Settings;
use migrate_engine::failure::Failure;
use migrate_engine::ops::{Event, Events};
use std::fs::File;
use std::io::Write;
use std::panic::Location;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Longest text of a line, bytes: runtimes read lines of less than 64 KiB.
const LINE: usize = 60 << 10;

/// How much a line matters, by CRIU's levels of verbosity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Error = 1,
    Warn = 2,
    Info = 3,
}

/// Where lines go.
#[derive(Debug)]
pub struct Log {
    file: Option<Mutex<File>>,
    verbosity: u8,
    began: Instant,
}

impl Log {
    /// Makes the file anew.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(settings: &Settings) -> std::io::Result<Self> {
        let file = match settings.log.as_deref() {
            None => None,
            Some(name) if name == Path::new("-") => None,
            Some(name) => Some(Mutex::new(File::create(settings.in_work_dir(name))?)),
        };
        Ok(Self { file, verbosity: settings.verbosity, began: Instant::now() })
    }

    /// What goes on.
    pub fn info(&self, text: &str) {
        self.write(Level::Info, None, text);
    }

    /// A failure: to standard error, too, where the log is a file.
    #[track_caller]
    pub fn failure(&self, action: &str, failure: &Failure) {
        let place = Location::caller();
        let blockers = failure.blockers.iter();
        let blockers = blockers.map(|b| format!("{} {}: {} ({})", b.code, b.object, b.reason, b.remedy));
        let hint = failure.hint.iter().map(|hint| format!("hint: {hint}"));
        let all = std::iter::once(format!("{action}: {failure}")).chain(blockers).chain(hint);
        for text in all.chain([format!("target: {}", failure.target)]) {
            self.write(Level::Error, Some(place), &text);
            if self.file.is_some() {
                eprintln!("{}", line(Level::Error, Some(place), &text));
            }
        }
    }

    fn write(&self, level: Level, place: Option<&Location<'_>>, text: &str) {
        if self.verbosity < level as u8 && level != Level::Error {
            return;
        }
        for text in text.lines() {
            let line = line(level, place, text);
            let Some(file) = &self.file else {
                eprintln!("{line}");
                continue;
            };
            let after = self.began.elapsed();
            let line = format!("({:02}.{:06}) {line}\n", after.as_secs(), after.subsec_micros());
            // A full disk under the log is no reason to end the work.
            let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        }
    }
}

/// One line without its time.
fn line(level: Level, place: Option<&Location<'_>>, text: &str) -> String {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let text = &text[..(0..=text.len().min(LINE)).rev().find(fits).unwrap_or(0)];
    let place = place.map_or_else(String::new, |place| format!("({}:{}): ", place.file(), place.line()));
    match level {
        Level::Error => format!("Error {place}{text}"),
        Level::Warn => format!("Warn  {place}{text}"),
        Level::Info => text.to_owned(),
    }
}

impl Events for Log {
    fn event(&self, event: Event) {
        match event {
            Event::Warning(text) => self.write(Level::Warn, Some(Location::caller()), &text),
            Event::Frozen => self.info("Tasks are stopped"),
            Event::Round { number, pages, .. } => self.info(&format!("Round {number}: {pages} pages")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_callers_look_for_them() {
        let place = Location::caller();
        let error = line(Level::Error, Some(place), "dump: 7 cannot be saved");
        let at = format!("({}:{})", place.file(), place.line());
        assert_eq!(error, format!("Error {at}: dump: 7 cannot be saved"));
        assert_eq!(line(Level::Warn, Some(place), "x"), format!("Warn  {at}: x"));
        assert!(line(Level::Info, None, &"é".repeat(1 << 16)).len() <= LINE);
    }
}
