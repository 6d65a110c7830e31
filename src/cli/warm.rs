//! `migrate warm`.

use super::options::dest::{DestArg, resolve};
use super::options::many::{PathArgs, ProxyArgs, QuorumArgs, ThenArgs};
use super::options::{memory::MemoryArgs, mode::ModeArgs, peer::PeerArgs, state::StateArgs};
use super::signals::Watch;
use super::{Context, config::Config};
use crate::failure::Failure;
use crate::migration::source::Quorum;
use crate::ops::cascade::Cascade;
use crate::ops::hooks::Hook;
use crate::ops::options::{CPU_SHARE, MoveOptions, StateOptions, WarmOptions};
use crate::ops::places::Places;
use crate::ops::warm::{self, Front, Say, Shown};
use crate::ops::words::{Percent, SessionId, Target, Time};
use crate::transport::Abort;
use crate::ui;

/// Keep a running process tree up to date on other hosts, for a move that takes a moment
///
/// Prints the id of the session and returns; a process of its own sends what the target writes, without end, also after everything was sent, until migrate switch moves the target or migrate cancel ends it.
/// Nothing is stopped meanwhile, but for the moments of --standby. A destination that is lost is left out while the others go on; it is looked for again, and sent everything anew when it is back, and so are all of them if all are lost.
/// If the process of the session is killed, the target runs on, and destinations delete what they hold, but for the newest state of --standby.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// PID, pidfile:PATH, unit:NAME or cgroup:PATH
    #[arg(value_name = "TARGET")]
    target: Target,
    /// [USER@]HOST (ssh), tcp://HOST[:PORT] (TLS), unix:PATH, local, or @GROUP
    #[arg(value_name = "DEST", required = true, value_delimiter = ',', value_hint = clap::ValueHint::Hostname)]
    dests: Vec<DestArg>,
    /// How much of one processor this takes at most while nobody waits for a switch
    #[arg(long, value_name = "PERCENT", default_value_t = Percent(CPU_SHARE))]
    cpu_share: Percent,
    /// Every TIME destinations are brought a consistent state of the target, from which migrate promote starts it there when this host is dead [default: 10s]
    ///
    /// The target stands still for each as for a switch, and goes on here: migrate status says how long and how many bytes. A destination writes what comes to its disk, beside its journals: at least once the target's memory, at most three times. What it has is at most TIME and the way there old; migrate promote says how old. Without this a destination deletes what it holds when this host is not heard any more. Files that go along are as they were last sent, which may be before or after the state. No hooks run for a state.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "10s")]
    standby: Option<Time>,
    /// Run a command at a point of the move: POINT=COMMAND; may be given several times; see migrate-move(1)
    #[arg(long = "hook", value_name = "POINT=COMMAND")]
    hooks: Vec<Hook>,
    #[command(flatten)]
    mode: ModeArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    state: StateArgs,
    /// A directory that goes along as a whole, such as a database's; may be given several times
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "State")]
    with: Vec<std::path::PathBuf>,
    #[command(flatten)]
    peer: PeerArgs,
    /// What a destination waits for this side when it hears nothing before it deletes what it has of the target
    ///
    /// See migrate-move(1).
    #[arg(long, value_name = "TIME", default_value = "60s", help_heading = "Peer")]
    lease: Time,
    #[command(flatten)]
    quorum: QuorumArgs,
    #[command(flatten)]
    paths: PathArgs,
    #[command(flatten)]
    proxies: ProxyArgs,
    #[command(flatten)]
    then: ThenArgs,
}

impl Args {
    /// Starts the session, and prints its id once destinations are willing.
    ///
    /// # Errors
    /// Usage, before anything has happened; a failure of the preflight is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = self.options(&context.config)?;
        if !context.is_outside(&self.target)? {
            return Ok(0);
        }
        warm::start(&options, context.settings.to_hand_on(), &mut ui::relayed)
    }

    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn options(&self, config: &Config) -> Result<WarmOptions, Failure> {
        let moves = MoveOptions {
            session: SessionId::random(),
            target: self.target.clone(),
            dests: resolve(&self.dests, config)?,
            mode: self.mode.options(),
            memory: self.memory.options(),
            state: StateOptions { hooks: self.hooks.clone(), ..self.state.options() },
            with: self.with.clone(),
            base: None,
            peer: self.proxies.add_to(self.paths.add_to(self.peer.options()), config)?,
            lease: self.lease.0,
            quorum: self.quorum.quorum_or(Quorum::default()),
            dry_run: false,
            clones: None,
            common: None,
            then: Cascade { disjoint: self.paths.disjoint(), ..self.then.cascade(config)? },
        };
        Ok(WarmOptions {
            moves,
            cpu_share: self.cpu_share.0,
            standby: self.standby.map(|time| time.0),
            disjoint: self.paths.disjoint(),
        })
    }
}

/// Who shows things in the process of a session.
pub static FRONT: SessionFront = SessionFront;

/// See [`FRONT`].
#[derive(Debug)]
pub struct SessionFront;

impl Front for SessionFront {
    fn watch(&self) -> Option<Abort> {
        let (watch, abort) = (Watch::begin().ok()?, Abort::new().ok()?);
        watch.abort_with(&abort);
        Some(abort)
    }

    fn log(&self, session: SessionId) {
        let _ = ui::log::keep(0, &Places::here().state.join("logs"), session);
    }

    fn begin(&self, settings: &str, verb: &str, session: SessionId, target: &str, say: Say) -> Box<dyn Shown> {
        let settings = ui::Settings::handed_on(settings);
        Box::new(ui::Session::begin_elsewhere(&settings, verb, session, target, say))
    }

    fn begin_part(&self, settings: &str, verb: &str, session: SessionId, target: &str, say: Say) -> Box<dyn Shown> {
        let settings = ui::Settings::handed_on(settings);
        Box::new(ui::Session::begin_elsewhere(&settings, verb, session, target, say).as_part())
    }
}
