//! `migrate promote`.

use super::Context;
use crate::failure::Failure;
use crate::ops::{self, options::PromoteOptions};
use crate::ui;

/// Start a target that was kept warm on this host, when its source is dead
///
/// Typed on a host that was a destination of migrate warm with --standby. The target goes on as it was when the newest state that is kept here was taken: its age is told. Replies and changes of files since then are lost, TCP connections are reset, and no hook runs.
/// Whether the source is dead nobody but a person can know: a host that cannot be reached may run the target still. See to it that it is off, or cut off from clients and storage (fencing), or name a command that does so; else there are two of the target. Refused as long as the source is heard: migrate switch moves the target then, and loses nothing.
/// A source that returns is told that its session is over; its own copy of the target is left alone.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Session id, or a beginning of it that fits one session only
    #[arg(value_name = "ID")]
    session: String,
    /// Switch the source's host off first, by this command
    ///
    /// Run by a shell, for a minute at most, with MIGRATE_PEER and MIGRATE_SESSION in its environment. Exit code 0 says that the host is off; with any other nothing is started.
    #[arg(long, value_name = "COMMAND")]
    fence_cmd: Option<String>,
    /// Without it only the age of the state and the risk are told
    #[arg(long)]
    yes: bool,
}

impl Args {
    /// Starts it, and says as which process.
    ///
    /// # Errors
    /// See [`ops::promote::run`].
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let promoted = ops::promote::run(&self.options())?;
        ui::status::promoted(&promoted, &context.settings);
        Ok(0)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> PromoteOptions {
        PromoteOptions { session: self.session.clone(), fence: self.fence_cmd.clone(), yes: self.yes }
    }
}
