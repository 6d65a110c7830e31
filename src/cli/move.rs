//! `migrate move`.

use super::options::dest::{DestArg, single};
use super::options::{memory::MemoryArgs, mode::ModeArgs, peer::PeerArgs, state::StateArgs};
use super::signals::Watch;
use super::{Context, config::Config};
use crate::failure::Failure;
use crate::ops;
use crate::ops::options::MoveOptions;
use crate::ops::words::{SessionId, Target};
use crate::transport::Abort;

/// Move a running process tree to another host
///
/// The memory is copied while the target runs; then it is paused for a moment, the rest follows, and it goes on over there with its files, pipes and connections.
/// If anything fails before it runs there, it goes on here.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// PID, pidfile:PATH, unit:NAME or cgroup:PATH
    #[arg(value_name = "TARGET")]
    target: Target,
    /// [USER@]HOST (ssh), tcp://HOST[:PORT] (TLS), unix:PATH, local, or @GROUP
    #[arg(value_name = "DEST", required = true, value_delimiter = ',', value_hint = clap::ValueHint::Hostname)]
    dests: Vec<DestArg>,
    /// Only say what stands in the way on either side, if anything
    #[arg(long)]
    dry_run: bool,
    /// Write what happened to this file as a page for a browser: timeline, rounds, where the pause went
    #[arg(long, value_name = "FILE.html", value_hint = clap::ValueHint::FilePath)]
    report: Option<std::path::PathBuf>,
    #[command(flatten)]
    mode: ModeArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    state: StateArgs,
    /// A directory that goes along as a whole, such as a database's; may be given several times
    ///
    /// It takes the place of the one at the destination, which comes back if the target stays here after all.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "State")]
    with: Vec<std::path::PathBuf>,
    #[command(flatten)]
    peer: PeerArgs,
}

impl Args {
    /// Moves the target and says what became of it. Signals roll it back until the moment of handing over.
    ///
    /// # Errors
    /// Usage, before anything has happened; a failure of the move is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = self.options(&context.config)?;
        let watch = Watch::begin()?;
        let abort = Abort::new().map_err(|error| Failure::of("nothing can be interrupted", &error))?;
        watch.abort_with(&abort);
        let session =
            context.session(options.session, Some(self.target.to_string()), false).with_page(self.report.clone());
        let result = ops::move_::run(&options, &session, &abort);
        Ok(session.finish(result))
    }

    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group or several destinations.
    pub fn options(&self, config: &Config) -> Result<MoveOptions, Failure> {
        Ok(MoveOptions {
            session: SessionId::random(),
            target: self.target.clone(),
            dest: single(&self.dests, config)?,
            mode: self.mode.options(),
            memory: self.memory.options(),
            state: self.state.options(),
            with: self.with.clone(),
            peer: self.peer.options(),
            dry_run: self.dry_run,
        })
    }
}
