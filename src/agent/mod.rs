//! The listening side. The agent itself does little: it accepts connections, looks at who is there, reads the preamble,
//! and hands each session to a process of its own.
//!
//! ```text
//! agent --listen ──accept──> preamble ── control ──> re-exec: session process (own session, process group, cgroup)
//!                                └────── bulk ─────> passed (SCM_RIGHTS) to the session process through its socket
//! agent --stdio  ─────────────────────────────────> session process on standard input and output
//! ```
//! So neither stopping, killing or upgrading the agent, nor the end of ssh, ends a session, and still less a target that
//! was restored by one; and a prepared copy whose session was killed is attended by a process of its own, which an agent starts that
//! finds it ([`attend`]). TLS is spoken by the session process; the agent holds no key in its memory.

mod attend;
mod confined;
mod listen;
mod metrics;
mod notify;
mod route;
pub mod session;

use crate::companion::OWN_PROGRAM;
use crate::failure::{Failure, FailureKind, Result};
use crate::ops::options::{AgentOptions, AgentPlace};
use crate::ops::places::Places;
use crate::sys::user;
use crate::transport::{Abort, TransportError};
use attend::Attendants;
use metrics::Metrics;
use route::Router;
use session::{Carrier, SessionSpec};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// What an agent needs besides its options; tests choose their own.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Keys, peers, run-time directory.
    pub places: Places,
    /// The program that session processes run.
    pub program: PathBuf,
}

impl Surroundings {
    /// As usual for this user.
    pub fn here() -> Self {
        Self { places: Places::here(), program: OWN_PROGRAM.into() }
    }
}

/// Serves until `abort` is triggered (`--listen`), or until the one session has ended (`--stdio`). `ready` is told the
/// addresses once connections are taken.
pub fn run(options: &AgentOptions, here: &Surroundings, abort: &Abort, ready: &mut dyn FnMut(&[String])) -> Result<()> {
    // Session processes leave the working directory.
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let spec = SessionSpec {
        carrier: Carrier::Stdio,
        peer: "the ssh client".into(),
        session: [0; 16],
        keys: absolute(&here.places.keys),
        peers: absolute(options.peers.as_ref().unwrap_or(&here.places.peers)),
        run: absolute(&here.places.run),
        state: absolute(&here.places.state),
        max_memory_bytes: options.max_memory,
        refusal: None,
        user: None,
        principal: String::new(),
        attend: None,
        refuse_then: options.refuse_then,
        verbose: u8::from(tracing::enabled!(tracing::Level::INFO)) + u8::from(tracing::enabled!(tracing::Level::DEBUG)),
    };
    match &options.place {
        AgentPlace::Stdio => stdio(&spec, here),
        AgentPlace::Listen(addresses) => {
            let listeners = listen::open(addresses, &here.places.run, options.allow_plain).map_err(|e| failed(&e))?;
            // All that is left to do here is to begin processes, which have root's rights again, and to read journals. Where it
            // cannot be done the agent serves all the same.
            if let Err(error) = user::drop_until_exec(user::READ_SEARCH) {
                tracing::warn!(%error, "the agent keeps all of its capabilities");
            }
            let mut names: Vec<String> = listeners.iter().map(|listener| listener.name.clone()).collect();
            if let Some(at) = &options.metrics {
                let metrics = Metrics::open(at, &here.places.state).map_err(|source| {
                    failed(&TransportError::Listen { address: format!("{}:{} (--metrics)", at.host, at.port), source })
                })?;
                names.push(metrics.name());
                let until = abort.clone();
                std::thread::Builder::new()
                    .name("metrics".into())
                    .spawn(move || metrics.serve(&until))
                    .map_err(|e| Failure::of("the agent cannot serve", &e))?;
            }
            let attendants = attend::begin(&spec, &here.program, abort);
            let attendants = attendants.map_err(|e| Failure::of("the agent cannot serve", &e))?;
            let router = Arc::new(Router::new(spec, here.program.clone(), options.max_sessions, attendants));
            ready(&names);
            notify::ready();
            listen::accept_all(listeners, &router, abort).map_err(|e| failed(&e))
        }
    }
}

fn failed(error: &TransportError) -> Failure {
    let failure = Failure::of("the agent cannot serve", error).kind(FailureKind::Peer);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// One session over standard input and output. The process that ssh started only waits: what must survive ssh does not
/// depend on it.
fn stdio(spec: &SessionSpec, here: &Surroundings) -> Result<()> {
    let session = crate::transport::link::random_bits().map_err(|e| failed(&e))?;
    let spec = SessionSpec { session, ..spec.clone() };
    let status = command(&spec, &here.program)
        .stdin(Stdio::inherit())
        .stdout(Stdio::inherit())
        .status()
        .map_err(|e| Failure::of("the session process cannot be started", &e))?;
    Attendants::new(spec, here.program.clone()).look();
    match status.success() {
        true => Ok(()),
        false => Err(Failure::new(format!("the session ended with {status}")).kind(FailureKind::Peer)),
    }
}

/// The command that runs one session; standard input is the caller's to set.
fn command(spec: &SessionSpec, program: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.arg0("migrate").arg(session::ENTRY).arg(spec.to_argument());
    // Meant for the agent alone (sd_listen_fds(3), sd_notify(3)).
    for variable in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(variable);
    }
    command
}
