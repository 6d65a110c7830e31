//! `migrate demo`.

use super::Context;
use super::options::mode::MODE;
use super::options::{Words, one_of};
use crate::failure::Failure;
use crate::ops::options::{DemoOptions, Kill, Mode};
use crate::{ops, ui};

const KILL: Words<Kill> = &[
    ("source", Kill::Source, "migrate move is killed as COMMIT has left; its guardian settles it"),
    ("destination", Kill::Destination, "the session is killed before it can say PREPARED; it stays"),
    ("link", Kill::Link, "the link is cut as COMMIT goes over it, and mended; the source asks"),
];

/// Show a live move between two hosts made of namespaces
///
/// Starts a program with a counter and a TCP client, moves it while both run, and prints what they saw: the pause, bytes lost, resets, the client's longest gap.
/// The exit code is 1 if anything was lost.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How the target moves
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = one_of(MODE))]
    mode: Mode,
    /// Cut something off in the moment of handing over, and show that exactly one copy goes on
    #[arg(long, value_name = "WHAT", value_parser = one_of(KILL))]
    kill: Option<Kill>,
    /// Leave logs and images behind and say where
    #[arg(long)]
    keep: bool,
    /// One of the programs of the demo, run by the demo itself
    #[arg(long, hide = true, value_parser = ["counter", "client"])]
    part: Option<String>,
    /// Where that program writes its process id
    #[arg(long, hide = true, requires = "part")]
    file: Option<std::path::PathBuf>,
}

impl Args {
    /// Runs the demo; exit code 1 if anything was lost.
    ///
    /// # Errors
    /// The demo cannot be run here.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        match self.part.as_deref() {
            None => {
                let verdict = ops::demo::run(&self.options(), &mut |scene| ui::demo::show(scene, &context.settings))?;
                Ok(u8::from(!verdict.is_good()))
            }
            Some("counter") => ops::demo::parts::counter(self.file.as_deref())
                .map(|()| 0)
                .map_err(|e| Failure::of("the demo's program", &e)),
            Some(_) => ops::demo::parts::client(&mut std::io::stdout())
                .map(|()| 0)
                .map_err(|e| Failure::of("the demo's client", &e)),
        }
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> DemoOptions {
        DemoOptions { mode: self.mode, kill: self.kill, keep: self.keep }
    }
}
