//! `migrate status`.

use super::Context;
use crate::failure::Failure;
use crate::ops::{self, options::StatusOptions};
use crate::ui;

/// Show moves of this host, and who owns the target
///
/// Reads the journals of this host; where only the other host can tell who owns the target, that is asked, if it can be reached.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Session id, or a beginning of it
    #[arg(value_name = "ID")]
    session: Option<String>,
    /// Also those that are over
    #[arg(long)]
    all: bool,
}

impl Args {
    /// Shows them.
    ///
    /// # Errors
    /// The journals cannot be read; no such session.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let entries = ops::status::run(&self.options())?;
        ui::status::show(&entries, &context.settings);
        Ok(0)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> StatusOptions {
        StatusOptions { session: self.session.clone(), all: self.all }
    }
}
