//! `migrate status`.

use super::Context;
use super::signals::Watch;
use crate::failure::Failure;
use crate::ops::{self, options::StatusOptions};
use crate::transport::Abort;
use crate::ui;

/// Show moves of this host, and who owns the target
///
/// Reads the journals of this host; where only the other host can tell who owns the target, that is asked, if it can be reached.
/// Of a warm-up it says for each destination how far it is, and the pause that a switch would have now.
/// Of a prepared copy that is parked (see --lease of migrate move) it says where the image lies, its size and its age.
/// Of a state that is kept here for the death of the source (see --standby of migrate warm) it says how old it is; on the source what such states have cost, and who keeps which.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Session id, or a beginning of it
    #[arg(value_name = "ID")]
    session: Option<String>,
    /// Also those that have ended in the last 30 days
    #[arg(long)]
    all: bool,
    /// Look again and again, and show what changes, until the session is over or this is interrupted
    #[arg(long)]
    watch: bool,
}

impl Args {
    /// Shows them.
    ///
    /// # Errors
    /// The journals cannot be read; no such session.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        if !self.watch {
            let entries = ops::status::run(&self.options())?;
            ui::status::show(&entries, &context.settings);
            return Ok(0);
        }
        let signals = Watch::begin()?;
        let abort = Abort::new().map_err(|error| Failure::of("nothing can be interrupted", &error))?;
        signals.abort_with(&abort);
        let mut view = ui::status::View::begin(&context.settings);
        let last = ops::status::watch(&self.options(), &abort, &mut |entries| view.show(entries))?;
        view.end(&last);
        Ok(0)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> StatusOptions {
        StatusOptions { session: self.session.clone(), all: self.all }
    }
}
