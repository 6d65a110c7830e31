//! `migrate restore`.

use super::Context;
use super::options::{image::ImageArgs, state::StateArgs};
use super::signals::Watch;
use crate::failure::{Failure, FailureKind};
use crate::image::Pid;
use crate::ops;
use crate::ops::options::RestoreOptions;
use crate::ops::words::SessionId;
use crate::ui;
use std::path::PathBuf;

/// Start a process tree from an image
///
/// The tree goes on exactly where it was. Everything in the image is checked before the first process is made; if anything fails, nothing is left behind.
/// Without --detach the command stays, passes signals on and ends as the target ends: with its exit status, or 128+N after signal N.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Return as soon as the target runs
    #[arg(long)]
    detach: bool,
    /// Write the process id of the tree's root to this file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pidfile: Option<PathBuf>,
    /// Leave the target stopped, as by SIGSTOP
    #[arg(long)]
    leave_stopped: bool,
    /// Run at once; memory comes when it is touched, and the rest behind
    #[arg(long, conflicts_with = "stream")]
    lazy: bool,
    /// Start so many copies, each in PID, network, UTS and mount namespaces of its own
    ///
    /// As migrate clone does, see migrate-clone(1): TCP connections are over in all of them. Exit code 6 if only some could be started.
    #[arg(long, value_name = "N", requires = "detach", conflicts_with_all = ["stream", "pidfile", "lazy", "move_addresses"],
        value_parser = clap::value_parser!(u16).range(1..))]
    count: Option<u16>,
    /// Only say whether it would run here
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    state: StateArgs,
}

impl Args {
    /// Restores the tree; without `--detach` stays until its root ends, and ends as it did.
    ///
    /// # Errors
    /// None here: a failure is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = self.options();
        // In the foreground standard output and the exit code are the target's.
        let foreground = !options.detach && !options.dry_run;
        let watch = if foreground { Watch::begin_foreground()? } else { Watch::begin()? };
        let session = context.session(options.session, None, foreground);
        if let Some(count) = self.count {
            let copies = ops::copies::restore(&options, count, &session);
            return Ok(session.finish(copies));
        }
        match ops::restore::run(&options, &session) {
            Err(failure) if foreground => Ok(session.finish(Err(failure.kind(FailureKind::BeforeRun)))),
            Err(failure) => Ok(session.finish(Err(failure))),
            Ok(mut restored) => {
                if let (true, Some(pid)) = (foreground, restored.outcome.pid) {
                    watch.forward_to(Pid(pid));
                }
                let code = session.finish(Ok(restored.outcome.clone()));
                if let (true, Some(late)) = (foreground, restored.take_late()) {
                    // Ends with this program, which ends with the target.
                    std::thread::spawn(move || late.wait().into_iter().for_each(|message| ui::warning(&message)));
                }
                Ok(if foreground { restored.wait() } else { code })
            }
        }
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> RestoreOptions {
        RestoreOptions {
            session: SessionId::random(),
            image: self.image.place(),
            detach: self.detach,
            pidfile: self.pidfile.clone(),
            sibling: false,
            leave_stopped: self.leave_stopped,
            lazy: self.lazy,
            state: self.state.options(),
            dry_run: self.dry_run,
        }
    }
}
