//! `migrate move`.

use super::options::dest::{DestArg, resolve};
use super::options::many::ManyArgs;
use super::options::{memory::MemoryArgs, mode::ModeArgs, peer::PeerArgs, state::StateArgs};
use super::signals::Watch;
use super::{Context, config::Config};
use crate::failure::{Failure, FailureKind};
use crate::migration::source::Quorum;
use crate::ops;
use crate::ops::hooks::Hook;
use crate::ops::options::{Compress, MoveOptions, StateOptions};
use crate::ops::words::{SessionId, Target, Time};
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
    /// [USER@]HOST (ssh), tcp://HOST[:PORT] (TLS), unix:PATH, local, or @GROUP; of several, the first that is ready gets the target
    #[arg(value_name = "DEST", required = true, value_delimiter = ',', value_hint = clap::ValueHint::Hostname)]
    dests: Vec<DestArg>,
    /// Only say what stands in the way on either side, if anything
    #[arg(long)]
    dry_run: bool,
    /// Run a command at a point of the move: POINT=COMMAND; may be given several times
    ///
    /// Points: preflight, pre-freeze, frozen, pre-commit, network, running, rolled-back, done, and clone where a copy runs that migrate clone has made. Ten seconds each, on the side where it belongs; one that fails before the target is handed over rolls the move back. It finds MIGRATE_HOOK (the point), MIGRATE_SIDE, MIGRATE_SESSION, MIGRATE_TARGET_PID, MIGRATE_DEST_PID, MIGRATE_PEER and MIGRATE_CLONE_ID in its environment. See also /etc/migrate/hooks.d/POINT/.
    #[arg(long = "hook", value_name = "POINT=COMMAND")]
    hooks: Vec<Hook>,
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
    /// An image at the destination, such as an earlier one of the target: pages that it has are named, not sent
    ///
    /// An absolute path there. Not with --compress off.
    #[arg(long, value_name = "DIR", value_parser = absolute, help_heading = "Memory")]
    base: Option<std::path::PathBuf>,
    #[command(flatten)]
    peer: PeerArgs,
    /// What the destination waits for this side when it hears nothing before it deletes what it has of the target
    ///
    /// A destination that has already said that it is prepared deletes nothing on its own: after this time it parks the target, that is, it writes it as an image, ends its stopped processes there, and keeps the image until it is told what holds, by this side or by migrate resolve. This holds also where memory follows when the target runs (post-copy): what is still here is asked for when the image becomes a tree. Once the order to run is out such a move cannot be given up any more: both hosts have a part of the target.
    #[arg(long, value_name = "TIME", default_value = "60s", help_heading = "Peer")]
    lease: Time,
    #[command(flatten)]
    many: ManyArgs,
}

fn absolute(word: &str) -> Result<std::path::PathBuf, String> {
    let path = std::path::PathBuf::from(word);
    if path.is_absolute() { Ok(path) } else { Err("a path at another host begins with /".to_owned()) }
}

impl Args {
    /// Moves the target and says what became of it. Signals roll it back until the moment of handing over.
    ///
    /// # Errors
    /// Usage, before anything has happened; a failure of the move is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        self.run_as(&self.options(&context.config)?, context)
    }

    /// The same with these choices.
    pub(super) fn run_as(&self, options: &MoveOptions, context: &Context) -> Result<u8, Failure> {
        let further = self.many.further(&context.config)?;
        if !context.is_outside(&self.target)? {
            return Ok(0);
        }
        let log = context.log(options.session, options.dry_run);
        let watch = Watch::begin()?;
        let abort = Abort::new().map_err(|error| Failure::of("nothing can be interrupted", &error))?;
        watch.abort_with(&abort);
        let session = context
            .session(options.session, Some(self.target.to_string()), false)
            .with_page(self.report.clone())
            .with_log(log);
        let result = ops::attempts::run(options, &further, &session, &abort);
        Ok(session.finish(result))
    }

    /// The quorum, or another one than is usual if none was chosen.
    pub(super) fn quorum_or(&self, usual: Quorum) -> Quorum {
        self.many.quorum_or(usual)
    }

    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group or choices that contradict each other.
    pub fn options(&self, config: &Config) -> Result<MoveOptions, Failure> {
        let memory = self.memory.options();
        if self.base.is_some() && memory.compress == Compress::Off {
            let what = "--base names pages instead of sending them, and --compress off sends all of them";
            return Err(Failure::new(what).kind(FailureKind::Usage));
        }
        Ok(MoveOptions {
            session: SessionId::random(),
            target: self.target.clone(),
            dests: resolve(&self.dests, config)?,
            mode: self.mode.options(),
            memory,
            state: StateOptions { hooks: self.hooks.clone(), ..self.state.options() },
            with: self.with.clone(),
            base: self.base.clone(),
            peer: self.many.add_to(self.peer.options(), config)?,
            lease: self.lease.0,
            quorum: self.quorum_or(Quorum::default()),
            dry_run: self.dry_run,
            clones: None,
            common: None,
            then: self.many.then(config)?,
        })
    }
}
