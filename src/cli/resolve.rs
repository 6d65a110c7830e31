//! `migrate resolve`.

use super::Context;
use crate::failure::Failure;
use crate::migration::handover::Choice;
use crate::ops::{self, options::ResolveOptions};
use crate::ui;

/// Decide what becomes of this host's copy of a target whose move is in doubt
///
/// For a move that was cut off in the moment of handing over, when the two hosts cannot settle it by themselves. Works from the journal, also when every program of the session is dead.
/// A host that can be reached is asked first, and a decision that would double or lose the target is refused.
/// A copy that is parked (see --lease of migrate move) is restored from its image and runs, or its image is deleted.
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("choice").required(true).args(["run", "discard"])))]
pub struct Args {
    /// Session id, or a beginning of it that fits one session only
    #[arg(value_name = "ID")]
    session: String,
    /// Let the copy of this host run
    #[arg(long)]
    run: bool,
    /// End the copy of this host
    #[arg(long)]
    discard: bool,
    /// Without it only the risk is told
    #[arg(long)]
    yes: bool,
}

impl Args {
    /// Decides, and says where the target is.
    ///
    /// # Errors
    /// See [`ops::resolve::run`].
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let resolved = ops::resolve::run(&self.options())?;
        ui::status::resolved(&resolved, &context.settings);
        Ok(0)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> ResolveOptions {
        let choice = if self.run { Choice::Run } else { Choice::Discard };
        ResolveOptions { session: self.session.clone(), choice, yes: self.yes }
    }
}
