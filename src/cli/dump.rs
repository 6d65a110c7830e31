//! `migrate dump`.

use super::Context;
use super::options::{image::ImageArgs, memory::MemoryArgs, state::StateArgs};
use super::signals::Watch;
use crate::failure::Failure;
use crate::ops;
use crate::ops::options::{AfterDump, DumpOptions, ImagePlace};
use crate::ops::words::{SessionId, Target};
use std::path::PathBuf;

/// Save a process tree to an image
///
/// The target is a process and all its descendants, or every process of a unit or cgroup. Its memory is copied while it runs; then it is stopped for a moment for what is left.
/// It ends, unless told otherwise, only after the image is complete and safe on disk. What cannot be saved is named before anything is stopped.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// PID, pidfile:PATH, unit:NAME or cgroup:PATH
    #[arg(value_name = "TARGET")]
    target: Target,
    #[command(flatten)]
    image: ImageArgs,
    /// Add to this image: only pages that differ from it are written
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    parent: Option<PathBuf>,
    /// Let the target run on
    #[arg(long, overrides_with = "leave_stopped")]
    leave_running: bool,
    /// Leave the target stopped, as by SIGSTOP
    #[arg(long, overrides_with = "leave_running")]
    leave_stopped: bool,
    /// Stop the target before the first page is read: one copy, a longer pause
    #[arg(long)]
    stop_first: bool,
    /// Save one instant behind the running target
    ///
    /// The target stands still for milliseconds, in which its memory is write-protected; then it runs on. A write to a page that
    /// is not saved yet waits until that page is. What cannot be protected (private mappings of files, shared memory, huge
    /// pages of hugetlbfs) is copied before the target runs on. Where it gives memory back before that is saved, the instant is
    /// taken anew, in rounds. Implies --leave-running.
    #[arg(long, conflicts_with_all = ["stop_first", "leave_stopped"])]
    snapshot: bool,
    /// Only say what stands in the way, if anything
    #[arg(long)]
    dry_run: bool,
    /// Replace an image that is already there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    state: StateArgs,
}

impl Args {
    /// Saves the target and says what became of it.
    ///
    /// # Errors
    /// The command is in the target and cannot leave it; any other failure is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = self.options();
        if !context.is_outside(&self.target)? {
            return Ok(0);
        }
        let data = matches!(options.image, ImagePlace::Stream);
        let _watch = Watch::begin()?;
        let session = context.session(options.session, Some(self.target.to_string()), data);
        let result = ops::dump::run(&options, &session);
        Ok(session.finish(result))
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> DumpOptions {
        DumpOptions {
            session: SessionId::random(),
            target: self.target.clone(),
            image: self.image.place(),
            parent: self.parent.clone(),
            after: match (self.leave_running || self.snapshot, self.leave_stopped) {
                (true, _) => AfterDump::Run,
                (_, true) => AfterDump::Stop,
                _ => AfterDump::End,
            },
            stop_first: self.stop_first,
            snapshot: self.snapshot,
            memory: self.memory.options(),
            state: self.state.options(),
            dry_run: self.dry_run,
            force: self.force,
        }
    }
}
