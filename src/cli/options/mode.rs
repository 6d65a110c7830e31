//! MODE: how a target moves and when its rounds end.

use super::{Words, one_of};
use crate::migration::switchover::{ExitCondition, Step};
use crate::ops::options::{Mode, ModeOptions};
use crate::ops::words::{Size, Time};

/// Words of `--mode`, for `move` and `demo`.
pub const MODE: Words<Mode> = &[
    ("auto", Mode::Auto, "pre-copy; what does not converge goes on as in post-copy"),
    ("pre-copy", Mode::PreCopy, "copy while the target runs, then pause it for what is left"),
    ("stop-and-copy", Mode::StopAndCopy, "pause it, copy everything"),
    (
        "post-copy",
        Mode::PostCopy,
        "pause it, move what it needs to run; memory follows as it is touched, the rest behind",
    ),
    ("hybrid", Mode::Hybrid, "pre-copy, and what is left follows as in post-copy"),
];

/// The same for `switch`: rounds were made already.
pub const MODE_OF_SWITCH: Words<Mode> = &[MODE[0], MODE[1], MODE[3], MODE[4]];

/// The MODE group.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Mode")]
pub struct ModeArgs {
    /// How the target moves
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = one_of(MODE))]
    mode: Mode,
    /// The pause to aim at: rounds go on until what is left fits in it
    #[arg(long, value_name = "TIME", default_value = "50ms")]
    max_downtime: Time,
    /// Pause after this many rounds at the latest
    #[arg(long, value_name = "N", default_value = "30")]
    max_rounds: u32,
    /// Pause when the rounds have taken this long
    #[arg(long, value_name = "TIME", default_value = "10m")]
    max_time: Time,
    /// Pause when the rounds have sent this much [default: unlimited]
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<Size>,
    /// Conditions that end the rounds: the first that holds
    #[arg(long, value_name = "COND", value_delimiter = ',', default_value = "downtime-net,not-converging,rounds,time,bytes", value_parser = one_of(ExitCondition::CHOICES))]
    exit_when: Vec<ExitCondition>,
    /// What is tried, in this order, for a target that writes as fast as it is sent
    ///
    /// Each step gets a few rounds. --mode pre-copy leaves post-copy out. The last word is post-copy, anyway or abort: it also counts where a limit is reached before the pause would be short enough.
    #[arg(long, value_name = "STEP", value_delimiter = ',', default_value = "defer,delta,compress,throttle,post-copy,anyway", value_parser = one_of(Step::CHOICES))]
    converge: Vec<Step>,
    /// Command that switches the destination's host off, for a move in doubt whose destination is silent
    ///
    /// Run by a shell once nothing was heard for --peer-timeout, with MIGRATE_PEER and MIGRATE_SESSION in its environment. Exit code 0 says that the host is off: then the target goes on here, from the state it had in the pause. Any other, and it is asked and run again later.
    #[arg(long, value_name = "COMMAND")]
    fence_cmd: Option<String>,
    /// In post-copy: a consistent state comes back every TIME until all memory is there, from which it can be resumed here
    ///
    /// For a destination that dies meanwhile: migrate resolve (or the guardian of the move, once --fence-cmd has switched that host off) resumes the newest complete state here. Replies and changes of files since then are lost, and TCP connections are reset. The target is stopped for a moment for each. Shared memory is not put off then.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1s")]
    recoverable: Option<Time>,
}

impl ModeArgs {
    /// The choices as the engine takes them.
    pub fn options(&self) -> ModeOptions {
        ModeOptions {
            mode: self.mode,
            max_downtime: self.max_downtime.0,
            max_rounds: self.max_rounds,
            max_time: self.max_time.0,
            max_bytes: self.max_bytes.map(|size| size.0),
            exit_when: self.exit_when.clone(),
            converge: self.converge.clone(),
            fence: self.fence_cmd.clone(),
            recoverable: self.recoverable.map(|time| time.0),
        }
    }
}
