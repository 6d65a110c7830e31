//! `migrate evacuate`.

use super::options::dest::{DestArg, resolve};
use super::options::many::{RetryArgs, RouteArgs};
use super::options::{Words, memory::MemoryArgs, mode::ModeArgs, one_of, peer::PeerArgs, state::StateArgs};
use super::signals::Watch;
use super::{Context, config::Config};
use crate::failure::Failure;
use crate::ops;
use crate::ops::attempts::Further;
use crate::ops::evacuate::plan::Place;
use crate::ops::hooks::Hook;
use crate::ops::options::{EvacuateOptions, StateOptions};
use crate::ops::words::{SessionId, Target, Time};
use crate::transport::Abort;
use crate::ui;

const PLACE: Words<Place> = &[
    ("spread", Place::Spread, "each tree to the host with most free memory"),
    ("fill", Place::Fill, "as few hosts as possible"),
    ("fixed", Place::Fixed, "the first of the list that would take it"),
];

/// Move trees of this host to others, by a plan
///
/// Every tree is looked at here and at the destination that it is placed at; what cannot move stays, with the reasons, and does not keep the others. Several move at a time, what takes longest first; each move is one of migrate move, with a session of its own, and --bandwidth is for all of them together. A destination that is lost gets nothing more, and what was to go there goes to another one that would take it.
/// A page that several trees have goes to each host once: what one has sent the others name by digest, whether they move before, after or beside it. The destination keeps up to 256 MiB for that until the evacuation is over, or until nobody has come for 15 minutes; --compress off sends everything. The plan counts each tree by itself.
/// It is safe to run again: trees that have left are no error, and one whose move is in doubt or under way is named and left alone. An interrupt rolls back the moves that are under way, until the moment of handing over, and none begins.
/// A destination is another host, named once; --move-address is for one tree only.
/// The exit code is 0 if nothing is left, 6 if something stayed, 4 if a person is needed for one of the trees.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// PID, pidfile:PATH, unit:NAME or cgroup:PATH
    #[arg(value_name = "TARGET", required_unless_present = "all", conflicts_with = "all")]
    targets: Vec<Target>,
    /// Every tree of this host that can be meant
    ///
    /// That is every unit, container, session and other tree of migrate list that is not part of a larger one, but for those in which this command or a program of migrate's runs, and units that serve this host, as systemd's own, ssh, dbus, getty and cron; the report names what was left out. Threads of the kernel and process 1 are none.
    #[arg(long)]
    all: bool,
    /// Where to: destinations as for move, separated by commas, or @GROUP
    #[arg(long, value_name = "LIST", required = true, value_delimiter = ',', value_hint = clap::ValueHint::Hostname)]
    to: Vec<DestArg>,
    /// How many move at a time
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Which of the hosts that would take a tree gets it
    ///
    /// Memory that is free there is counted, less that of trees that were placed there before; hosts that are one machine have one memory.
    #[arg(long, value_name = "HOW", default_value = "spread", value_parser = one_of(PLACE))]
    place: Place,
    /// One by one: the first by pre-copy, the others by post-copy
    ///
    /// Each has the links for itself, and but for the first no page is sent twice, whatever is written meanwhile. Not with --mode and --jobs; --recoverable holds for all but the first.
    #[arg(long, conflicts_with = "jobs")]
    serial: bool,
    /// Begin moves also after one has failed
    ///
    /// Without it those that are under way are finished, and nothing else begins. A tree that could not move from the beginning, or that went elsewhere instead, is no failure.
    #[arg(long)]
    keep_going: bool,
    /// Print the plan: what would go where, in which order, bytes and time; nothing is moved
    #[arg(long)]
    dry_run: bool,
    /// Run a command at a point of each move: POINT=COMMAND; may be given several times; see migrate-move(1)
    #[arg(long = "hook", value_name = "POINT=COMMAND")]
    hooks: Vec<Hook>,
    /// Write what happened to this file as a page for a browser: a timeline of all moves, and what has become of each tree
    #[arg(long, value_name = "FILE.html", value_hint = clap::ValueHint::FilePath)]
    report: Option<std::path::PathBuf>,
    #[command(flatten)]
    mode: ModeArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    peer: PeerArgs,
    /// What a destination waits for this side when it hears nothing before it deletes what it has of a target
    ///
    /// See migrate-move(1).
    #[arg(long, value_name = "TIME", default_value = "60s", help_heading = "Peer")]
    lease: Time,
    /// Where what none of the others takes is to go
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Many destinations")]
    alternate: Vec<DestArg>,
    #[command(flatten)]
    retries: RetryArgs,
    #[command(flatten)]
    routes: RouteArgs,
}

impl Args {
    /// Moves the trees and says what became of them. Signals roll back those that move, until the moment of handing over.
    ///
    /// # Errors
    /// Usage, before anything has happened; a failure of the whole is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = self.options(&context.config)?;
        let watch = Watch::begin()?;
        let abort = Abort::new().map_err(|error| Failure::of("nothing can be interrupted", &error))?;
        watch.abort_with(&abort);
        let mut view = ui::evacuate::View::begin(context.session(options.session, None, false), self.report.clone());
        let shows = view.shows();
        let result = ops::evacuate::run(&options, &shows, &mut |notice| view.notice(notice), &abort);
        Ok(view.end(result))
    }

    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn options(&self, config: &Config) -> Result<EvacuateOptions, Failure> {
        Ok(EvacuateOptions {
            session: SessionId::random(),
            targets: self.targets.clone(),
            all: self.all,
            to: resolve(&self.to, config)?,
            jobs: self.jobs.into(),
            place: self.place,
            serial: self.serial,
            keep_going: self.keep_going,
            dry_run: self.dry_run,
            further: Further { alternates: resolve(&self.alternate, config)?, ..self.retries.further() },
            mode: self.mode.options(),
            memory: self.memory.options(),
            state: StateOptions { hooks: self.hooks.clone(), ..self.state.options() },
            peer: self.routes.add_to(self.peer.options()),
            lease: self.lease.0,
        })
    }
}
