//! `migrate cancel`.

use super::Context;
use crate::failure::Failure;
use crate::ops::{self, options::CancelOptions};
use crate::ui;

/// End a warm-up, or the tracker that a pre-dump has left
///
/// Returns when the destinations of a warm-up have deleted what they hold. Its target runs on.
/// On a host that keeps a state of the target of a warm-up (see --standby of migrate warm), once the source is not heard any more: deletes that.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Session id, or a beginning of it that fits one session only
    #[arg(value_name = "ID")]
    session: String,
}

impl Args {
    /// Ends the session and prints its id.
    ///
    /// # Errors
    /// No such session, or several.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let id = ops::cancel::run(&self.options())?;
        ui::agent::cancelled(&id, &context.settings);
        Ok(0)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> CancelOptions {
        CancelOptions { session: self.session.clone() }
    }
}
