//! Everything a person or a program sees: progress, events, failures, reports.
//!
//! Standard output has the result only; progress, warnings and failures go to standard error. With `--json` standard
//! output is JSON Lines. A reader that closes standard output early is no failure.

pub mod agent;
pub mod check;
mod clock;
pub mod demo;
pub mod evacuate;
pub mod explain;
pub mod failure;
mod html;
pub mod image;
mod json;
mod lines;
pub mod list;
pub mod log;
mod progress;
mod report;
mod session;
pub mod status;
mod style;
mod table;
mod units;

pub use session::Session;

use crate::ops::words::SessionId;
use serde::{Deserialize, Serialize};
use std::io::{IsTerminal, Write};

/// `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Progress {
    /// A bar on a terminal, else plain lines.
    #[default]
    Auto,
    /// A bar.
    Bar,
    /// A line every 5 seconds.
    Plain,
    /// Nothing.
    None,
}

/// `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How things are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Settings {
    /// `--json`.
    pub json: bool,
    /// `-q`.
    pub quiet: bool,
    /// How often `-v` was given.
    pub verbose: u8,
    /// `--progress`.
    pub progress: Progress,
    /// `--color`.
    pub color: Color,
}

/// The two places text goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// Results.
    Out,
    /// Progress, warnings, failures.
    Err,
}

impl Settings {
    /// For another process that says things in this one's place: it has no terminal to look at.
    pub fn to_hand_on(self) -> String {
        let color = if self.coloured(Stream::Err) { Color::Always } else { Color::Never };
        serde_json::to_string(&Self { color, progress: Progress::None, ..self }).unwrap_or_default()
    }

    /// Those that were handed on.
    pub fn handed_on(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Whether colours are used on this stream.
    fn coloured(&self, stream: Stream) -> bool {
        let terminal = match stream {
            Stream::Out => std::io::stdout().is_terminal(),
            Stream::Err => std::io::stderr().is_terminal(),
        };
        match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                terminal
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

/// Prints something that is neither a result nor a failure to standard error, unless nothing is to be said.
pub fn note(text: &str, settings: &Settings) {
    if !settings.quiet && !settings.json {
        put(Stream::Err, &format!("{text}\n"));
    }
}

/// What a person should know that comes after the result.
pub fn warning(text: &str) {
    put(Stream::Err, &format!("warning: {text}\n"));
}

/// What another process says in this one's place: on standard output or standard error.
pub fn relayed(out: bool, text: &str) {
    put(if out { Stream::Out } else { Stream::Err }, text);
}

/// Writes text as it is. Nobody is left to be told that it could not be written: a closed pipe is how `head` ends, and
/// a full disk behind standard error must not end a migration.
fn put(stream: Stream, text: &str) {
    let _ = match stream {
        Stream::Out => {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        }
        Stream::Err => std::io::stderr().lock().write_all(text.as_bytes()),
    };
}

/// Shows the result of a verb without events: fields of the `result` for programs, or a text for people.
fn result(settings: &Settings, verb: &str, fields: json::Object, text: &str) {
    result_with(settings, verb, 0, fields, text);
}

/// The same for a verb whose exit code is part of what it says.
fn result_with(settings: &Settings, verb: &str, exit: u8, fields: json::Object, text: &str) {
    if settings.json {
        let ok = json::Object::default().with("ok", exit == 0).with("exit", exit).with("verb", verb).and(fields);
        put(Stream::Out, &json::Stamp::begin(SessionId::random()).line("result", ok));
    } else {
        put(Stream::Out, text);
    }
}

/// Prints what the parser has to say: help and version on standard output (exit 0), wrong usage on standard error (2).
pub fn clap_error(error: &clap::Error) -> u8 {
    let _ = error.print();
    u8::try_from(error.exit_code()).unwrap_or(2)
}
