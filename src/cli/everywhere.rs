//! Options that every verb takes.

use super::options::{Words, one_of};
use crate::ui::{Color, Progress, Settings};
use std::path::PathBuf;

const PROGRESS: Words<Progress> = &[
    ("auto", Progress::Auto, "bar on a terminal, else plain"),
    ("bar", Progress::Bar, "a bar that moves"),
    ("plain", Progress::Plain, "a line every 5 seconds"),
    ("none", Progress::None, "nothing"),
];
const COLOR: Words<Color> = &[
    ("auto", Color::Auto, "on a terminal, unless NO_COLOR is set"),
    ("always", Color::Always, "always"),
    ("never", Color::Never, "never"),
];

/// Options that every verb takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Everywhere {
    /// Say more on standard error; -vv says everything
    #[arg(short, action = clap::ArgAction::Count, global = true, conflicts_with = "quiet", display_order = 100)]
    verbose: u8,
    /// Say nothing but failures
    #[arg(short, global = true, display_order = 101)]
    quiet: bool,
    /// Write events and the result to standard output as JSON Lines, see migrate-events(5)
    #[arg(long, global = true, display_order = 102)]
    pub json: bool,
    /// Write a debug log to this file
    #[arg(long, value_name = "FILE", global = true, value_hint = clap::ValueHint::FilePath, display_order = 103)]
    pub log: Option<PathBuf>,
    /// Read this configuration before the user's and the system's
    #[arg(long, value_name = "FILE", global = true, value_hint = clap::ValueHint::FilePath, display_order = 104)]
    pub config: Option<PathBuf>,
    /// How progress is shown
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = one_of(PROGRESS), global = true, display_order = 105)]
    progress: Progress,
    /// Whether colours are used
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = one_of(COLOR), global = true, display_order = 106)]
    color: Color,
}

impl Everywhere {
    /// The choices as `ui/` takes them.
    pub fn settings(&self) -> Settings {
        Settings {
            json: self.json,
            quiet: self.quiet,
            verbose: self.verbose,
            progress: self.progress,
            color: self.color,
        }
    }
}
