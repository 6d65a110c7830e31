//! MANY: several destinations.

use super::dest::{self, DestArg};
use super::{Words, one_of};
use crate::cli::config::Config;
use crate::failure::Failure;
use crate::migration::source::{Quorum, fan};
use crate::ops::attempts::Further;
use crate::ops::cascade::Cascade;
use crate::ops::options::{PeerOptions, Pinned};
use crate::ops::paths::Disjoint;
use crate::ops::words::{Time, WordError};
use std::str::FromStr;

/// The MANY group.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct ManyArgs {
    #[command(flatten)]
    quorum: QuorumArgs,
    /// Where to if none of the destinations takes the target
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    alternate: Vec<DestArg>,
    #[command(flatten)]
    retries: RetryArgs,
    #[command(flatten)]
    paths: PathArgs,
    #[command(flatten)]
    proxies: ProxyArgs,
    #[command(flatten)]
    then: ThenArgs,
}

impl ManyArgs {
    /// What is tried when an attempt has failed.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn further(&self, config: &Config) -> Result<Further, Failure> {
        Ok(Further {
            alternates: dest::resolve(&self.alternate, config)?,
            disjoint: self.paths.disjoint(),
            ..self.retries.further()
        })
    }

    /// With the ways to some of them.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn add_to(&self, peer: PeerOptions, config: &Config) -> Result<PeerOptions, Failure> {
        self.proxies.add_to(self.paths.add_to(peer), config)
    }

    /// The stages to come, each of which is tried as the first one is.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn then(&self, config: &Config) -> Result<Cascade, Failure> {
        let Further { retries, within, .. } = self.retries.further();
        let disjoint = self.paths.disjoint();
        Ok(Cascade { retries, within, disjoint, ..self.then.cascade(config)? })
    }

    /// The quorum as the engine takes it; this one if none was chosen.
    pub fn quorum_or(&self, usual: Quorum) -> Quorum {
        self.quorum.quorum_or(usual)
    }
}

/// How often the same destinations are tried.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct RetryArgs {
    /// Try all of them again so often (not at all), after a second and then after longer pauses
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Try nothing again after this time; without --retries as often as it allows
    #[arg(long, value_name = "TIME")]
    retry_timeout: Option<Time>,
}

impl RetryArgs {
    /// What is tried when an attempt has failed.
    pub fn further(&self) -> Further {
        Further { retries: self.retries, within: self.retry_timeout.map(|time| time.0), ..Further::default() }
    }
}

/// What of the group a warm-up has, too.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct QuorumArgs {
    /// The pause begins when the exit condition holds for so many of the destinations: a number, or a share such as 75% [default: 1]
    #[arg(long, value_name = "N|PERCENT")]
    quorum: Option<QuorumArg>,
}

impl QuorumArgs {
    /// The quorum as the engine takes it; this one if none was chosen.
    pub fn quorum_or(&self, usual: Quorum) -> Quorum {
        self.quorum.map_or(usual, |quorum| quorum.0)
    }
}

/// The stages to come.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct ThenArgs {
    /// Where to from its destination; each use is one further stage
    ///
    /// The host that has got the target moves it on to the first of these that is ready. What is chosen here holds for each stage, but for --base, --fence-cmd, --rsh and --alternate; a --route to one of these names an interface or address of the host that moves it there, and the DEST_IF of --move-address is where the address goes on from. Groups are those of this host; keys, names and ssh are those of the host in between, which has to reach one of these before anything is stopped. The command ends when the target is at its last stage; if one fails the target runs on at the host it has come to (exit code 6). Who may have a host do this: migrate-security(7).
    #[arg(long, value_name = "LIST", value_parser = list)]
    then: Vec<List>,
    /// Keep the destinations that have not got the target up to date, from the one that has; the id of that session is in the report
    ///
    /// It is a session as migrate warm begins one, on the host that has the target: migrate status, switch and cancel know it there. That host reaches the others by keys and ssh of its own; what it cannot reach is said before anything is stopped, and looked for again later. Those that stood ready keep their pages for it, which are named then, not sent. It takes a quarter of a processor at most, and has no --standby and no --disjoint-paths. Not with --then, and not for local.
    #[arg(long)]
    keep_warm: bool,
}

/// Destinations with commas between them.
type List = std::sync::Arc<[DestArg]>;

fn list(words: &str) -> Result<List, String> {
    words.split(',').map(|word| word.parse().map_err(|error: WordError| error.to_string())).collect()
}

impl ThenArgs {
    /// As the engine takes them.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn cascade(&self, config: &Config) -> Result<Cascade, Failure> {
        let stages = self.then.iter().map(|list| dest::resolve(list, config)).collect::<Result<_, _>>()?;
        Ok(Cascade { stages, keep_warm: self.keep_warm, ..Cascade::default() })
    }
}

/// The ways to the destinations.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct PathArgs {
    /// When the paths to two destinations share a node: both ends are not counted
    ///
    /// The nodes are looked for as traceroute(8) does. Whoever is named first stays. The only gateway of this host is named as such; only refuse counts it.
    #[arg(long, value_name = "WHAT", value_parser = one_of(DISJOINT))]
    disjoint_paths: Option<Disjoint>,
    #[command(flatten)]
    routes: RouteArgs,
}

/// Ways that are pinned.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct RouteArgs {
    /// The way to a destination: an interface of this host, or one of its addresses; may be given several times
    ///
    /// With ssh its options -B and -b.
    #[arg(long = "route", value_name = "DEST=IF|ADDRESS")]
    routes: Vec<RouteArg>,
}

impl RouteArgs {
    /// How peers are reached, with the ways to some of them.
    pub fn add_to(&self, mut peer: PeerOptions) -> PeerOptions {
        peer.routes.extend(self.routes.iter().map(|arg| arg.0.clone()));
        peer
    }
}

const DISJOINT: Words<Disjoint> = &[
    ("refuse", Disjoint::Refuse, "nothing is moved"),
    ("drop", Disjoint::Drop, "the later one is left out"),
    ("replace", Disjoint::Replace, "an alternate takes its place, the first whose path shares nothing"),
];

impl PathArgs {
    /// What becomes of destinations whose paths share a node.
    pub fn disjoint(&self) -> Option<Disjoint> {
        self.disjoint_paths
    }

    /// How peers are reached, with the ways to some of them.
    pub fn add_to(&self, peer: PeerOptions) -> PeerOptions {
        self.routes.add_to(peer)
    }
}

/// Hosts on the way.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct ProxyArgs {
    /// Send what is for the destinations once to this host, which passes it on; of several, each to the next
    ///
    /// They run an agent, or are reached by ssh, as destinations are, and reach destinations (tcp:// or ssh) by keys of their own. A proxy keeps nothing. Where it fails before the target is handed over, destinations are connected to directly. Not with --disjoint-paths, and not for a destination on this host (unix:, local).
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    via: Vec<DestArg>,
    /// Destinations pass on what is for several of them, to so many each: this host sends it to the first K only, to the first alone with 1
    ///
    /// Those that are named first pass it on to those named later, which they reach (tcp:// or ssh) by keys of their own. One that fails is passed by: what is behind it is connected to by the first on that way, or directly. Not with --via and --disjoint-paths, and not for a destination on this host (unix:, local).
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(1..=FANOUT_MAX))]
    fanout_tree: Option<u8>,
}

/// As many as there can be destinations.
const FANOUT_MAX: i64 = fan::CANDIDATES_MAX as i64;

impl ProxyArgs {
    /// How peers are reached, with the hosts on the way.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn add_to(&self, mut peer: PeerOptions, config: &Config) -> Result<PeerOptions, Failure> {
        peer.via = dest::resolve(&self.via, config)?;
        peer.fanout_tree = self.fanout_tree;
        Ok(peer)
    }
}

/// `DEST=IF|ADDRESS`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RouteArg(Pinned);

impl FromStr for RouteArg {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let (dest, route) = word.rsplit_once('=').ok_or_else(|| format!("'{word}' is not DEST=IF or DEST=ADDRESS"))?;
        let dest = dest.parse().map_err(|error: WordError| error.to_string())?;
        Ok(Self(Pinned { dest, route: route.parse()? }))
    }
}

/// `N` or `PERCENT`.
#[derive(Debug, Clone, Copy)]
struct QuorumArg(Quorum);

impl FromStr for QuorumArg {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || format!("'{word}' is neither a number of destinations nor a share of them such as 75%");
        let number = |digits: &str| digits.parse::<u8>().ok().filter(|number| *number > 0);
        match word.strip_suffix('%') {
            Some(percent) => number(percent).filter(|percent| *percent <= 100).map(Quorum::Percent),
            None => number(word).map(Quorum::Number),
        }
        .map(Self)
        .ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_of_a_destination() {
        let route = |word: &str| word.parse::<RouteArg>().map(|arg| (arg.0.dest.to_string(), arg.0.route.to_string()));
        assert_eq!(route("tcp://b=eth1"), Ok(("tcp://b:7413".into(), "eth1".into())));
        assert_eq!(route("me@host-b=192.0.2.1"), Ok(("me@host-b".into(), "192.0.2.1".into())));
        assert_eq!(route("tcp://[fd00::2]:7=fd00::1"), Ok(("tcp://[fd00::2]:7".into(), "fd00::1".into())));
        for wrong in ["host-b", "=eth0", "host-b=", "host-b=a/b"] {
            assert!(route(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_quorum_is_a_number_or_a_share() {
        let quorum = |word: &str| word.parse::<QuorumArg>().map(|arg| arg.0);
        assert_eq!(quorum("2"), Ok(Quorum::Number(2)));
        assert_eq!(quorum("75%"), Ok(Quorum::Percent(75)));
        for wrong in ["0", "0%", "101%", "-1", "x", "", "%"] {
            assert!(quorum(wrong).is_err(), "{wrong}");
        }
        assert_eq!([1, 2, 9].map(|n| Quorum::Number(n).of(3)), [1, 2, 3]);
        assert_eq!([1, 50, 67, 100].map(|share| Quorum::Percent(share).of(3)), [1, 2, 3, 3]);
    }
}
