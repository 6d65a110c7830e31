//! `migrate cancel`.

use crate::ops::options::CancelOptions;

/// End the tracker that a pre-dump has left
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Session id, or a beginning of it that fits one session only
    #[arg(value_name = "ID")]
    session: String,
}

impl Args {
    /// The choices as the engine takes them.
    pub fn options(&self) -> CancelOptions {
        CancelOptions { session: self.session.clone() }
    }
}
