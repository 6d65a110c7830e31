//! `migrate agent`.

use super::Context;
use crate::agent::{self, Surroundings};
use crate::failure::{Failure, FailureKind};
use crate::ops::options::{AgentOptions, AgentPlace};
use crate::ops::words::{Address, Listen, Size};
use crate::transport::Abort;
use crate::ui;
use std::path::PathBuf;

/// Receive process trees from other hosts
///
/// Whoever may send to an agent of root without `user=` in the peers file can run anything as root on this host.
///
/// Ending or upgrading the agent ends no tree that it has restored.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Listen on unix:PATH (mode 0600) or tcp://[HOST]:PORT (TLS, both sides show a key); may be given several times
    ///
    /// tcp+plain://HOST:PORT is for this host's own loopback: nothing is encrypted, and only processes of root or of the user that runs the agent are listened to.
    #[arg(long, value_name = "ADDR", conflicts_with = "stdio")]
    listen: Vec<Listen>,
    /// Serve one session over standard input and output, as ssh does
    #[arg(long)]
    stdio: bool,
    /// Who may connect: lines like those that `migrate keygen` prints [default: peers beside the configuration]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    peers: Option<PathBuf>,
    /// Refuse targets with more memory than this [default: what is free]
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<Size>,
    /// Sessions at a time
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_sessions: u32,
    /// Answer GET /metrics in the OpenMetrics format at [HOST:]PORT; loopback unless a host is named
    #[arg(long, value_name = "ADDR", conflicts_with = "stdio", value_parser = metrics)]
    metrics: Option<Address>,
    /// Allow tcp+plain beyond loopback: nothing is encrypted, and whoever connects can run anything here
    #[arg(long, conflicts_with = "stdio")]
    allow_plain: bool,
    /// Move no program on from here to a further host, whoever asks for that (migrate move --then)
    #[arg(long)]
    refuse_then: bool,
}

impl Args {
    /// Serves until a signal ends it, or (`--stdio`) until the session is over.
    ///
    /// # Errors
    /// Usage; peer, when an address cannot be listened on or the session failed.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let options = self.options()?;
        let abort = Abort::new().map_err(|error| Failure::of("the agent cannot start", &error))?;
        let settings = &context.settings;
        agent::run(&options, &Surroundings::here(), &abort, &mut |addresses| ui::agent::ready(addresses, settings))?;
        Ok(0)
    }

    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, when neither the command line nor the configuration says where to listen.
    pub fn options(&self) -> Result<AgentOptions, Failure> {
        let place = match (self.stdio, self.listen.is_empty()) {
            (true, _) => AgentPlace::Stdio,
            (false, false) => AgentPlace::Listen(self.listen.clone()),
            (false, true) => {
                return Err(Failure::new("the agent was not told where to listen")
                    .hint("--listen unix:/run/migrate/agent.sock, --listen tcp://:7413, or --stdio")
                    .kind(FailureKind::Usage));
            }
        };
        Ok(AgentOptions {
            place,
            peers: self.peers.clone(),
            max_memory: self.max_memory.map(|size| size.0),
            max_sessions: self.max_sessions,
            metrics: self.metrics.clone(),
            allow_plain: self.allow_plain,
            refuse_then: self.refuse_then,
        })
    }
}

/// `[HOST:]PORT`.
fn metrics(word: &str) -> Result<Address, String> {
    let (host, port) = word.rsplit_once(':').unwrap_or(("127.0.0.1", word));
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match port.parse() {
        Ok(port) if !host.is_empty() => Ok(Address { host: host.to_owned(), port }),
        _ => Err("write PORT, or HOST:PORT".to_owned()),
    }
}
