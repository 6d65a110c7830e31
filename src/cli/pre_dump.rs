//! `migrate pre-dump`.

use super::Context;
use super::options::memory::MemoryArgs;
use super::signals::Watch;
use crate::failure::Failure;
use crate::ops;
use crate::ops::options::PreDumpOptions;
use crate::ops::words::{SessionId, Target, Time};
use std::path::PathBuf;

/// Save the memory of a process tree ahead of a dump
///
/// The target runs on. A tracker process keeps note of the pages that are written to, so that the next dump with --parent has less to do.
/// It ends with that dump, with the target, by `migrate cancel`, or after --keep-tracking; without it the next dump compares with the parent by hash.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// PID, pidfile:PATH, unit:NAME or cgroup:PATH
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Directory of the image
    #[arg(short = 'D', value_name = "DIR", required = true, value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
    /// Add to this image: only pages that differ from it are written
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    parent: Option<PathBuf>,
    /// How long the tracker waits for the next dump
    #[arg(long, value_name = "TIME", default_value = "1h")]
    keep_tracking: Time,
    #[command(flatten)]
    memory: MemoryArgs,
}

impl Args {
    /// Saves the target's memory.
    ///
    /// # Errors
    /// None here: a failure is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = self.options();
        let _watch = Watch::begin()?;
        let session = context.session(options.session, Some(self.target.to_string()), false);
        let result = ops::pre_dump::run(&options, &session);
        Ok(session.finish(result))
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> PreDumpOptions {
        PreDumpOptions {
            session: SessionId::random(),
            target: self.target.clone(),
            dir: self.dir.clone(),
            parent: self.parent.clone(),
            keep_tracking: self.keep_tracking.0,
            memory: self.memory.options(),
        }
    }
}
