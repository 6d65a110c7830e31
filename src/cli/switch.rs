//! `migrate switch`.

use super::Context;
use super::options::dest::{DestArg, resolve};
use super::options::mode::MODE_OF_SWITCH;
use super::options::one_of;
use crate::failure::Failure;
use crate::ops::options::{Mode, SwitchOptions};
use crate::ops::warm;
use crate::ops::words::Time;
use crate::ui;

/// Move the target of a warm-up to a destination that is warm
///
/// At once if the exit condition of the warm-up holds, else as soon as it does; until then the target runs on. Says what a move says, with its exit codes; the other destinations delete what they hold.
/// Ended before the pause begins, by a signal or --timeout, it leaves the warm-up as it was. If the move fails in the pause, the target goes on here, and the warm-up has ended.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Session id, or a beginning of it that fits one session only
    #[arg(value_name = "ID")]
    session: String,
    /// To one of these [default: of all that are warm, the first that is ready]; --quorum of the warm-up counts them
    #[arg(value_name = "DEST", value_delimiter = ',', value_hint = clap::ValueHint::Hostname)]
    dests: Vec<DestArg>,
    /// Do not wait for the exit condition, however long the pause will be
    #[arg(long)]
    now: bool,
    /// How the target moves: with what is left in the pause, or following when it runs
    ///
    /// auto: what is left goes in the pause, unless the target writes as fast as it is sent and --converge of the warm-up has it follow. pre-copy: it always goes in the pause. hybrid: it follows when the target runs; the exit condition is waited for. post-copy: the same, at once, as with --now. hybrid and post-copy not where the warm-up was begun with --mode pre-copy, or without post-copy in --converge.
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = one_of(MODE_OF_SWITCH))]
    mode: Mode,
    /// Give up when the exit condition has not held for so long [default: wait]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Time>,
}

impl Args {
    /// Moves the target and says what became of it.
    ///
    /// # Errors
    /// No such session; what becomes of the move is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = SwitchOptions {
            session: self.session.clone(),
            dests: resolve(&self.dests, &context.config)?,
            now: self.now,
            timeout: self.timeout.map(|time| time.0),
            mode: self.mode,
        };
        warm::switch(&options, context.settings.to_hand_on(), &mut ui::relayed)
    }
}
