//! `migrate check`.

use super::Context;
use super::config::Config;
use super::options::dest::{DestArg, resolve};
use super::options::peer::PeerArgs;
use crate::failure::Failure;
use crate::ops::{self, options::CheckOptions, words::Target};
use crate::transport::Abort;
use crate::ui;

/// Say what this host can do, and what stands in the way of a target
///
/// Without a target: what the kernel and this user allow, and what is lost where they do not. With targets: everything about them that is in the way. With --to: what those hosts lack, and whether each target could go there, for which it stands still for some milliseconds. Nothing else is stopped.
/// The exit code is 0, or 3 if a needed thing is missing.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// PID, pidfile:PATH, unit:NAME or cgroup:PATH
    #[arg(value_name = "TARGET")]
    targets: Vec<Target>,
    /// Hosts to ask as well, as for `move`: separated by commas, or @GROUP
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_hint = clap::ValueHint::Hostname)]
    to: Vec<DestArg>,
    #[command(flatten)]
    peer: PeerArgs,
}

impl Args {
    /// Runs the verb.
    ///
    /// # Errors
    /// A target that does not exist; an unknown group; a destination that fails while it is asked.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let abort = Abort::new().map_err(|error| Failure::of("nothing can be interrupted", &error))?;
        let report = ops::check::run(&self.options(&context.config)?, &abort)?;
        Ok(ui::check::report(&report, &context.settings))
    }

    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn options(&self, config: &Config) -> Result<CheckOptions, Failure> {
        Ok(CheckOptions { targets: self.targets.clone(), to: resolve(&self.to, config)?, peer: self.peer.options() })
    }
}
