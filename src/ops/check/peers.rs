//! `check --to` and `list --to`: the other ends. Each host says what it is; `check` asks about each target what a move would ask
//! there, with a look at the target for which it stands still for a moment; `list` leaves processes alone.

use crate::blocker::{Blocker, codes};
use crate::failure::{Failure, FailureKind, Result};
use crate::migration::switchover::forecast::Forecast;
use crate::ops::options::{CheckOptions, MoveOptions, PeerOptions};
use crate::ops::words::{Dest, Target};
use crate::ops::{Quiet, move_, reach};
use crate::transport::hello::{HostFacts, Purpose};
use crate::transport::link::Link;
use crate::transport::{Abort, TransportError};

/// What was found of one target there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct There {
    /// What is in its way.
    pub blockers: Vec<Blocker>,
    /// What its move would cost, if nothing is.
    pub forecast: Option<Forecast>,
}

/// What was found of one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReport {
    /// The destination as it was named.
    pub dest: Dest,
    /// Version of the program over there; `None` where it cannot be reached.
    pub program: Option<String>,
    /// What the host is; empty where it cannot be reached.
    pub host: HostFacts,
    /// What keeps every target of this host from going there.
    pub blockers: Vec<Blocker>,
    /// What keeps each of the targets from going there, or what it would cost.
    pub targets: Vec<(Target, There)>,
}

impl PeerReport {
    /// Everything in the way there.
    pub fn all_blockers(&self) -> impl Iterator<Item = &Blocker> {
        self.blockers.iter().chain(self.targets.iter().flat_map(|(_, there)| &there.blockers))
    }
}

/// Looks at one destination; `targets` are those that could leave this host.
///
/// # Errors
/// The destination failed while it was asked about a target; one that cannot be reached is a blocker.
pub fn look(dest: &Dest, targets: &[Target], options: &CheckOptions, abort: &Abort) -> Result<PeerReport> {
    let mut report = reach(dest, &options.peer, abort);
    if report.program.is_some() {
        for target in targets {
            report.targets.push((target.clone(), there(target, dest, options, abort)?));
        }
    }
    Ok(report)
}

/// What a destination is, whatever would go there; one that cannot be reached has that as its blocker.
pub fn reach(dest: &Dest, options: &PeerOptions, abort: &Abort) -> PeerReport {
    let (mut program, mut host) = (None, HostFacts::default());
    let blockers = match reach::to(dest, options, Purpose::Look, 0, abort) {
        Ok(Link { peer, peer_program, .. }) => {
            let blockers = unfit(&HostFacts::here(), &peer);
            (host, program) = (peer, Some(peer_program));
            blockers
        }
        Err(error) => vec![unreachable(dest, &error)],
    };
    PeerReport { dest: dest.clone(), program, host, blockers, targets: Vec::new() }
}

/// What makes a host unfit for anything that runs on this one.
fn unfit(here: &HostFacts, there: &HostFacts) -> Vec<Blocker> {
    if here.arch != there.arch {
        return vec![Blocker::new(codes::ARCHITECTURE, format!("{}: {}", there.hostname, there.arch))];
    }
    let missing = crate::arch::features::lacking(&here.cpu_features, &there.cpu_features);
    if missing.is_empty() || there.cpu_features.is_empty() {
        return Vec::new();
    }
    vec![Blocker::new(codes::CPU_FEATURES, format!("{}: {}", there.hostname, missing.join(" ")))]
}

fn unreachable(dest: &Dest, error: &TransportError) -> Blocker {
    let code = error.code().unwrap_or(codes::PEER_UNREACHABLE);
    Blocker::new(code, dest.to_string()).because(error.to_string())
}

/// A move that only asks.
fn there(target: &Target, dest: &Dest, options: &CheckOptions, abort: &Abort) -> Result<There> {
    let ask =
        MoveOptions { peer: options.peer.clone(), dry_run: true, ..MoveOptions::new(target.clone(), dest.clone()) };
    match move_::run(&ask, &Quiet, abort) {
        Ok(outcome) => Ok(There { forecast: outcome.forecast, ..There::default() }),
        Err(Failure { kind: FailureKind::Blocked, blockers, .. }) => Ok(There { blockers, forecast: None }),
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_must_have_what_this_one_has() {
        let facts = |arch: &str, features: &[&str]| HostFacts {
            arch: arch.into(),
            cpu_features: features.iter().map(|f| (*f).to_owned()).collect(),
            ..HostFacts::default()
        };
        let here = facts("x86_64", &["avx", "avx2"]);
        assert_eq!(unfit(&here, &facts("x86_64", &["avx", "avx2", "avx512f"])), []);
        assert_eq!(unfit(&here, &facts("aarch64", &[]))[0].code, codes::ARCHITECTURE);
        let lacking = unfit(&here, &facts("x86_64", &["avx"]));
        assert_eq!(lacking[0].code, codes::CPU_FEATURES);
        assert!(lacking[0].object.contains("avx2"), "{lacking:?}");
    }
}
