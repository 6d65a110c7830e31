//! `migrate check`.

use super::config::Config;
use super::options::dest::{DestArg, resolve};
use super::options::peer::PeerArgs;
use crate::failure::Failure;
use crate::ops::options::CheckOptions;
use crate::ops::words::Target;

/// Say what this host can do, and what stands in the way of a target
///
/// Without a target: what the kernel and this user allow, and what each thing turns on or off. With targets: everything in them that cannot be saved. Nothing is stopped.
/// The exit code is 0, or 3 if a needed thing is missing.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// PID, pidfile:PATH, unit:NAME or cgroup:PATH
    #[arg(value_name = "TARGET")]
    targets: Vec<Target>,
    /// Check these hosts as well, and whether the targets would run there
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_hint = clap::ValueHint::Hostname)]
    to: Vec<DestArg>,
    #[command(flatten)]
    peer: PeerArgs,
}

impl Args {
    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn options(&self, config: &Config) -> Result<CheckOptions, Failure> {
        Ok(CheckOptions { targets: self.targets.clone(), to: resolve(&self.to, config)?, peer: self.peer.options() })
    }
}
