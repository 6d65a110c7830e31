//! `migrate demo`.

use super::options::mode::MODE;
use super::options::one_of;
use crate::ops::options::{DemoOptions, Mode};

/// Show a live move between two hosts made of namespaces
///
/// Starts a program with a counter and a TCP client, moves it while both run, and prints what they saw: the pause, bytes lost, resets, the client's longest gap.
/// The exit code is 1 if anything was lost.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How the target moves
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = one_of(MODE))]
    mode: Mode,
    /// Leave logs and images behind and say where
    #[arg(long)]
    keep: bool,
}

impl Args {
    /// The choices as the engine takes them.
    pub fn options(&self) -> DemoOptions {
        DemoOptions { mode: self.mode, keep: self.keep }
    }
}
