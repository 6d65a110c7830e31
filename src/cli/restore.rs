//! `migrate restore`.

use super::options::dest::{DestArg, resolve};
use super::options::{image::ImageArgs, peer::PeerArgs, state::StateArgs};
use super::signals::Watch;
use super::{Context, config::Config};
use crate::failure::{Failure, FailureKind};
use crate::image::Pid;
use crate::ops;
use crate::ops::options::{RemoteOptions, RestoreOptions};
use crate::ops::words::{SessionId, Time};
use crate::transport::Abort;
use crate::ui;
use std::path::PathBuf;

/// Start a process tree from an image
///
/// The tree goes on exactly where it was. Everything in the image is checked before the first process is made; if anything fails, nothing is left behind.
/// Without --detach the command stays, passes signals on and ends as the target ends: with its exit status, or 128+N after signal N.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("apart").args(["detach", "on"]).multiple(true))]
#[command(mut_group("PeerArgs", |group| group.requires("on")))]
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
    #[arg(long, value_name = "N", requires = "apart", conflicts_with_all = ["stream", "pidfile", "lazy", "move_addresses"],
        value_parser = clap::value_parser!(u16).range(1..))]
    count: Option<u16>,
    /// Restore on these hosts instead of here: [USER@]HOST (ssh), tcp://HOST[:PORT] (TLS), unix:PATH, local, or @GROUP
    ///
    /// The whole image is checked, then sent to all of them, and the first that is ready runs the tree; the others delete what they were sent. With --count so many copies are started, on the hosts in turn. The image stays here as it is: if no host takes it, nothing was started (exit code 5, or 3 if something is in the way at each). The command returns when the tree runs, as with --detach. Files are compared as by a restore here. Peers of connections that --tcp close ends hear of it when they next send.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_hint = clap::ValueHint::Hostname,
        conflicts_with_all = ["stream", "pidfile", "lazy", "leave_stopped"])]
    on: Vec<DestArg>,
    /// What a host of --on waits for this one when it hears nothing before it deletes what it was sent, or parks what is prepared
    ///
    /// See --lease in migrate-move(1).
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "on", help_heading = "Peer")]
    lease: Time,
    /// Only say whether it would run, here or on the hosts of --on
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    peer: PeerArgs,
}

impl Args {
    /// Restores the tree; without `--detach` stays until its root ends, and ends as it did.
    ///
    /// # Errors
    /// Usage, for an unknown group; any other failure is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = self.options();
        if let Some(remote) = self.remote(&context.config)? {
            return Self::run_on(&options, &remote, context);
        }
        // In the foreground standard output and the exit code are the target's.
        let foreground = !options.detach && !options.dry_run;
        let watch = if foreground { Watch::begin_foreground()? } else { Watch::begin()? };
        let session = context.session(options.session, None, foreground);
        if let Some(count) = self.count {
            let clones = ops::clones::restore(&options, count, &session);
            return Ok(session.finish(clones));
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

    /// Restores the tree on other hosts. Signals end that until the moment of handing over.
    fn run_on(options: &RestoreOptions, remote: &RemoteOptions, context: &Context) -> Result<u8, Failure> {
        let watch = Watch::begin()?;
        let abort = Abort::new().map_err(|error| Failure::of("nothing can be interrupted", &error))?;
        watch.abort_with(&abort);
        let session = context.session(options.session, None, false);
        let restored = ops::remote_restore::run(options, remote, &session, &abort);
        Ok(session.finish(restored))
    }

    /// Where it is restored instead of here, if it is.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn remote(&self, config: &Config) -> Result<Option<RemoteOptions>, Failure> {
        if self.on.is_empty() {
            return Ok(None);
        }
        let dests = resolve(&self.on, config)?;
        Ok(Some(RemoteOptions { dests, count: self.count, peer: self.peer.options(), lease: self.lease.0 }))
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
