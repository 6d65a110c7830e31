//! `migrate clone`.

use super::{Context, config::Config, r#move};
use crate::failure::Failure;
use crate::migration::source::Quorum;
use crate::net::address::Place;
use crate::ops::options::{CloneOptions, Mode, ModeOptions, MoveAddress, MoveOptions};
use crate::ops::words::{Dest, WordError};
use std::str::FromStr;

/// Start a copy of a running process tree on every destination
///
/// All copies are of one moment. The target stands still for that moment, and goes on as soon as every destination has taken what it still lacks, unless it is to end.
/// Each copy is in PID, network, UTS and mount namespaces of its own: it has the process ids of the original, its host name with the id of the clone behind it, and a network in which there is only loopback and the address it was given, if it was given one. Its id is in clone-id in the run-time directory of its host (/run/migrate for root), which shows nothing else to it.
/// Listening sockets listen in its own network; established TCP connections stay with the original, and the copy finds them reset. Memory with MADV_WIPEONFORK is empty, as in a child of fork. Files are as for a move: on one file system the original and its copies write to the same ones.
/// Not with --mode post-copy or hybrid, --recoverable, --fence-cmd, --pids same, --then and --keep-warm, and --move-address only with --connections; --mode auto is pre-copy, and --tcp keep resets the copy's end of a connection. --supervisor is for the target, with --end-source. A prepared copy is deleted when --lease is over, never parked.
/// Exit code 6 if some were started and others were not. If none was, the target runs on.
#[derive(Debug, Clone, clap::Args)]
// That of a move is in it, and has the same name.
#[group(skip)]
#[command(mut_arg("dests", |arg| arg.help(DESTS)), mut_arg("quorum", |arg| arg.help(QUORUM)))]
pub struct Args {
    /// End the target once a copy runs
    ///
    /// It stands still until then. If no copy can be started it goes on.
    #[arg(long)]
    end_source: bool,
    /// What becomes of established TCP connections: close, or the destination that they are left to
    ///
    /// close: they stay with the target, and copies find them reset. With a destination the target itself goes there, by the handover of a move, with its connections, process ids and host name as in a move, and with the address of --move-address; the others start copies beside it. Only with --end-source: a connection has one end here. If that destination does not take the target it goes on here, and no copy is started.
    #[arg(long, value_name = "DEST|close", default_value = "close", value_hint = clap::ValueHint::Hostname)]
    connections: ConnectionsArg,
    /// An address for the copy on the destination at this place of the list: IP/LEN@IF; once for each
    ///
    /// It is on an interface of the copy's own that is called IF and joined to IF of the destination (macvlan), so that it is reached from that network, though not from the destination itself.
    #[arg(long = "address", value_name = "IP/LEN@IF")]
    addresses: Vec<AddressArg>,
    #[command(flatten)]
    moves: r#move::Args,
}

const DESTS: &str = "[USER@]HOST (ssh), tcp://HOST[:PORT] (TLS), unix:PATH, local, or @GROUP; a copy for each, also for one that is named again";
const QUORUM: &str = "The pause begins when the exit condition holds for so many of the destinations: a number, or a share such as 75% [default: 100%]";

impl Args {
    /// Starts the copies and says what became of each.
    ///
    /// # Errors
    /// Usage, before anything has happened; a failure is shown as the session's result.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        self.moves.run_as(&self.options(&context.config)?, context)
    }

    /// The choices as the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn options(&self, config: &Config) -> Result<MoveOptions, Failure> {
        let options = self.moves.options(config)?;
        // What may follow when it runs would be one copy's alone.
        let mode = if options.mode.mode == Mode::Auto { Mode::PreCopy } else { options.mode.mode };
        let addresses = self.addresses.iter().map(|address| address.0.clone()).collect();
        Ok(MoveOptions {
            mode: ModeOptions { mode, ..options.mode },
            quorum: self.moves.quorum_or(Quorum::Percent(100)),
            clones: Some(CloneOptions {
                end_source: self.end_source,
                addresses,
                connections: self.connections.0.clone(),
                left_out: 0,
            }),
            ..options
        })
    }
}

/// `DEST|close`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ConnectionsArg(Option<Dest>);

impl FromStr for ConnectionsArg {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "close" => Ok(Self(None)),
            dest => dest.parse().map(|dest| Self(Some(dest))),
        }
    }
}

/// `IP/LEN@IF`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AddressArg(Place);

impl FromStr for AddressArg {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let address: MoveAddress = word.parse().map_err(|error: WordError| error.to_string())?;
        match address.dest_interface {
            None => Ok(Self(Place { ip: address.ip, prefix: address.prefix, interface: address.interface })),
            Some(_) => Err("write IP/LEN@IF: the interface is the destination's".to_owned()),
        }
    }
}
