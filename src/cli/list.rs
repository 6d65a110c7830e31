//! `migrate list`.

use super::Context;
use super::config::Config;
use super::options::dest::{DestArg, resolve};
use super::options::peer::PeerArgs;
use crate::failure::Failure;
use crate::ops::{self, options::ListOptions};
use crate::transport::Abort;
use crate::ui;

/// List process trees that could be moved
///
/// One line for each tree, unit and container: process id, processes, memory, and whether it can be moved or the first thing that stands in the way. With --to: whether it could go to each of those hosts.
/// Nothing is stopped, so this is what can be seen from outside; `migrate check TARGET --to LIST` looks closely.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Hosts to ask, as for `move`: separated by commas, or @GROUP
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_hint = clap::ValueHint::Hostname)]
    to: Vec<DestArg>,
    #[command(flatten)]
    peer: PeerArgs,
}

impl Args {
    /// Runs the verb.
    ///
    /// # Errors
    /// Those of the operation; an unknown group.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let abort = Abort::new().map_err(|error| Failure::of("nothing can be interrupted", &error))?;
        ui::list::listing(&ops::list::run(&self.options(&context.config)?, &abort)?, &context.settings);
        Ok(0)
    }

    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn options(&self, config: &Config) -> Result<ListOptions, Failure> {
        Ok(ListOptions { to: resolve(&self.to, config)?, peer: self.peer.options() })
    }
}
