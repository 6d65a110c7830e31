//! `migrate check`.

use super::Context;
use crate::failure::Failure;
use crate::ops::{self, options::CheckOptions, words::Target};
use crate::ui;

/// Say what this host can do, and what stands in the way of a target
///
/// Without a target: what the kernel and this user allow, and what is lost where they do not. With targets: everything about them that is in the way. Nothing is stopped.
/// The exit code is 0, or 3 if a needed thing is missing.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// PID, pidfile:PATH, unit:NAME or cgroup:PATH
    #[arg(value_name = "TARGET")]
    targets: Vec<Target>,
}

impl Args {
    /// Runs the verb.
    ///
    /// # Errors
    /// A target that does not exist.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let report = ops::check::run(&self.options())?;
        Ok(ui::check::report(&report, &context.settings))
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> CheckOptions {
        CheckOptions { targets: self.targets.clone(), ..CheckOptions::default() }
    }
}
