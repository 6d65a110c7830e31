//! `--disjoint-paths`: destinations whose paths share a node fail together with it.

use super::options::{PeerOptions, Pinned};
use super::words::Dest;
use super::{Event, Events};
use crate::blocker::{Blocker, codes};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::transport::path::{self, Path};
use crate::transport::route::Route;
use crate::transport::ssh_config::{self, By};
use crate::transport::{Abort, address, ssh};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What becomes of destinations whose paths share a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disjoint {
    /// Nothing is moved.
    Refuse,
    /// The later one is left out.
    Drop,
    /// And an alternate takes its place, if there is one with a path of its own.
    Replace,
}

/// Refuses ways that nothing takes.
///
/// # Errors
/// Usage.
pub fn refuse(peer: &PeerOptions, dests: &[Dest]) -> Result<()> {
    let usage = |what: String| Err(Failure::new(what).kind(FailureKind::Usage));
    for (n, Pinned { dest: to, route }) in peer.routes.iter().enumerate() {
        // The way to a proxy is one from here, too.
        if !dests.contains(to) && !peer.via.contains(to) {
            return usage(format!("--route {to}={route}: {to} is neither a destination nor a proxy of this"));
        }
        if matches!(to, Dest::Unix(_) | Dest::Local) {
            return usage(format!("--route {to}={route}: there is no network on the way to it"));
        }
        if peer.routes[..n].iter().any(|other| other.dest == *to) {
            return usage(format!("--route names two ways to {to}"));
        }
    }
    Ok(())
}

/// Where a path ends, and the nodes before that.
#[derive(Debug, Clone, Default)]
struct Way {
    /// Addresses of the destination; none where there is no network in between.
    ends: Vec<IpAddr>,
    path: Path,
}

impl Way {
    fn nodes(&self) -> BTreeSet<IpAddr> {
        self.path.nodes.iter().flatten().copied().collect()
    }
}

/// Destinations, and where to go instead, with paths that share no node; the ends are not counted. What is left out, and why, is told.
///
/// # Errors
/// [`FailureKind::Blocked`] where paths share a node and that is to be refused. Usage: there is no such way to one of them.
pub fn choose(
    disjoint: Disjoint,
    (dests, alternates): (&[Dest], &[Dest]),
    peer: &PeerOptions,
    events: &dyn Events,
    abort: &Abort,
) -> Result<(Vec<Dest>, Vec<Dest>)> {
    let all: Vec<&Dest> = dests.iter().chain(alternates).collect();
    let ways: Vec<Result<Way>> = std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|dest| scope.spawn(|| look(dest, peer, abort))).collect();
        let lost = || Err(Failure::new("a path was not looked for"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
    });
    let ways: Vec<Way> = ways.into_iter().collect::<Result<_>>()?;
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    tell_unknown(&names, &ways, events);
    let ends: BTreeSet<IpAddr> = ways.iter().flat_map(|way| way.ends.iter().copied()).collect();
    let nodes: Vec<BTreeSet<IpAddr>> =
        ways.iter().map(|way| way.nodes().difference(&ends).copied().collect()).collect();
    let gateways = gateways();
    let choice = decide(disjoint, &nodes, dests.len(), &gateways);
    let shared = |(node, of): (&IpAddr, &Vec<usize>)| {
        let of: Vec<&str> = of.iter().map(|n| names[*n].as_str()).collect();
        (*node, of.join(", "), gateways.len() == 1 && gateways.contains(node))
    };
    let shared: Vec<(IpAddr, String, bool)> = choice.shared.iter().map(shared).collect();
    if disjoint == Disjoint::Refuse && !shared.is_empty() {
        return Err(refused(&shared).target(TargetState::Untouched));
    }
    for (node, of, is_only) in &shared {
        let only = if *is_only { ": it is the only gateway of this host, nothing goes past it" } else { "" };
        events.event(Event::Warning(format!("the paths to {of} share the node {node}{only}")));
    }
    for n in choice.dropped {
        events.event(Event::Warning(format!("{} is left out: its path is not its own", names[n])));
    }
    for n in &choice.taken {
        events.event(Event::Warning(format!("{} is taken instead", names[*n])));
    }
    let chosen = choice.kept.iter().chain(&choice.taken).map(|n| all[*n].clone()).collect();
    let rest = (dests.len()..all.len()).filter(|n| !choice.taken.contains(n)).map(|n| all[n].clone()).collect();
    Ok((chosen, rest))
}

fn refused(shared: &[(IpAddr, String, bool)]) -> Failure {
    let blocker = |(node, of, is_only): &(IpAddr, String, bool)| {
        let blocker = Blocker::new(codes::SHARED_NODE, node.to_string()).because(format!("the paths to {of} share it"));
        match is_only {
            true => blocker.remedy("it is the only gateway of this host: drop and replace do not count it"),
            false => blocker,
        }
    };
    let blockers = shared.iter().map(blocker).collect();
    Failure::blocked("the paths to the destinations are not disjoint", blockers)
}

fn tell_unknown(names: &[String], ways: &[Way], events: &dyn Events) {
    for (name, way) in names.iter().zip(ways) {
        let silent = way.path.nodes.iter().filter(|node| node.is_none()).count();
        let what = match (silent, way.path.is_whole) {
            (0, true) => continue,
            (0, false) if way.path.nodes.is_empty() => format!("the path to {name} is not known"),
            (0, false) => format!("the path to {name} is known for {} nodes only", way.path.nodes.len()),
            (silent, _) => format!("{silent} nodes on the path to {name} do not say who they are"),
        };
        events.event(Event::Warning(format!("{what}: what they share with others is not seen")));
    }
}

/// The path to a destination.
fn look(dest: &Dest, peer: &PeerOptions, abort: &Abort) -> Result<Way> {
    let route = peer.route_to(dest);
    // Whoever goes there may know more than this host's resolver: then the path is not known.
    let resolve = |host: &str, port| -> Vec<IpAddr> {
        let found = address::resolve(host, port).unwrap_or_default();
        found.into_iter().map(|address| address.ip()).collect()
    };
    let (host, port, by) = match dest {
        Dest::Unix(_) | Dest::Local => {
            return Ok(Way { ends: Vec::new(), path: Path { is_whole: true, ..Path::default() } });
        }
        Dest::Tls(at) | Dest::Plain(at) => (at.host.clone(), at.port, By::Directly),
        Dest::Ssh { user, host, port } => {
            let place = ssh::Place { user: user.as_deref(), host, port: *port };
            let found = ssh_config::resolve(&place, &peer.rsh)
                .map_err(|e| Failure::of(format!("{dest} is not resolved"), &e))?;
            (found.host, found.port, found.by)
        }
    };
    let traced = |to: &[IpAddr]| {
        trace_any(to, route, abort).map_err(|e| {
            let way = route.map(|route| format!(" by {route}")).unwrap_or_default();
            Failure::of(format!("there is no way to {dest}{way}"), &e).kind(FailureKind::Usage)
        })
    };
    let ends = resolve(&host, port);
    match by {
        By::Directly if ends.is_empty() => Ok(Way::default()),
        By::Directly => Ok(Way { path: traced(&ends)?, ends }),
        // Another host passes everything on: it is a node, and what is behind it is not seen from here.
        By::Jump(jump, port) => {
            let jump = resolve(&jump, port);
            let Some(first) = jump.first().copied() else { return Ok(Way { ends, ..Way::default() }) };
            let mut path = traced(&jump)?;
            path.nodes.push(Some(first));
            path.is_whole = false;
            Ok(Way { ends, path })
        }
        By::Command => Ok(Way::default()),
    }
}

/// By the first of these addresses that there is a way to.
fn trace_any(to: &[IpAddr], route: Option<&Route>, abort: &Abort) -> std::io::Result<Path> {
    let mut last = None;
    for address in to {
        match path::trace(*address, route, abort) {
            Ok(path) => return Ok(path),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
}

/// What is chosen, by numbers: destinations first, then alternates.
#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    kept: Vec<usize>,
    dropped: Vec<usize>,
    taken: Vec<usize>,
    /// Nodes that several of the destinations have, and who.
    shared: BTreeMap<IpAddr, Vec<usize>>,
}

/// Whoever is named first stays. The only gateway is everybody's: it is told of, and counted only where that is to be refused.
fn decide(disjoint: Disjoint, nodes: &[BTreeSet<IpAddr>], dests: usize, gateways: &BTreeSet<IpAddr>) -> Choice {
    let mut choice = Choice::default();
    for (n, theirs) in nodes.iter().take(dests).enumerate() {
        theirs.iter().for_each(|node| choice.shared.entry(*node).or_default().push(n));
    }
    choice.shared.retain(|_, of| of.len() > 1);
    if disjoint == Disjoint::Refuse {
        choice.kept = (0..dests).collect();
        return choice;
    }
    let only = if gateways.len() == 1 { gateways.clone() } else { BTreeSet::new() };
    let mut used: BTreeSet<IpAddr> = BTreeSet::new();
    let mut fits = |n: usize| {
        let own: BTreeSet<IpAddr> = nodes[n].difference(&only).copied().collect();
        let fits = own.is_disjoint(&used);
        if fits {
            used.extend(own);
        }
        fits
    };
    for n in 0..dests {
        if fits(n) { choice.kept.push(n) } else { choice.dropped.push(n) }
    }
    if disjoint == Disjoint::Replace {
        for n in dests..nodes.len() {
            if choice.taken.len() < choice.dropped.len() && fits(n) {
                choice.taken.push(n);
            }
        }
    }
    choice
}

/// Nodes that the routing tables of this host send anything to.
fn gateways() -> BTreeSet<IpAddr> {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let v4 = read("/proc/net/route").lines().filter_map(gateway_v4).collect::<Vec<_>>();
    let v6 = read("/proc/net/ipv6_route").lines().filter_map(gateway_v6).collect::<Vec<_>>();
    v4.into_iter().chain(v6).collect()
}

/// `Iface Destination Gateway Flags ...`: hexadecimal, the address as the processor has it (net/ipv4/fib_trie.c).
fn gateway_v4(line: &str) -> Option<IpAddr> {
    let word = line.split_whitespace().nth(2)?;
    let address = u32::from_str_radix(word, 16).ok().filter(|address| *address != 0 && word.len() == 8)?;
    Some(IpAddr::from(address.to_ne_bytes()))
}

/// `destination length source length gateway ...`: hexadecimal (net/ipv6/route.c).
fn gateway_v6(line: &str) -> Option<IpAddr> {
    let word = line.split_whitespace().nth(4).filter(|word| word.len() == 32)?;
    let address = u128::from_str_radix(word, 16).ok().filter(|address| *address != 0)?;
    Some(IpAddr::from(address.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn nodes(all: &[&[u8]]) -> Vec<BTreeSet<IpAddr>> {
        all.iter().map(|path| path.iter().copied().map(ip).collect()).collect()
    }

    #[test]
    fn whoever_comes_later_goes_and_alternates_take_the_place() {
        let none = BTreeSet::new();
        let all = nodes(&[&[1, 2], &[3], &[2, 4], &[3], &[5, 4], &[6]]);
        let dropped = decide(Disjoint::Drop, &all, 4, &none);
        assert_eq!((dropped.kept, dropped.dropped, dropped.taken), (vec![0, 1], vec![2, 3], vec![]));
        assert_eq!(dropped.shared, [(ip(2), vec![0, 2]), (ip(3), vec![1, 3])].into());
        let replaced = decide(Disjoint::Replace, &all, 4, &none);
        assert_eq!((replaced.dropped, replaced.taken), (vec![2, 3], vec![4, 5]));
        let one = decide(Disjoint::Replace, &nodes(&[&[1], &[1], &[1], &[2], &[3]]), 2, &none);
        assert_eq!((one.kept, one.taken), (vec![0], vec![3]), "no more than have gone");
    }

    #[test]
    fn the_only_gateway_is_told_of_and_refused_and_not_a_reason_to_drop() {
        let all = nodes(&[&[9, 1], &[9, 2], &[9, 2]]);
        let choice = decide(Disjoint::Drop, &all, 3, &[ip(9)].into());
        assert_eq!((choice.kept, choice.dropped), (vec![0, 1], vec![2]));
        assert_eq!(choice.shared[&ip(9)], [0, 1, 2]);
        let several = decide(Disjoint::Drop, &all, 3, &[ip(9), ip(8)].into());
        assert_eq!(several.kept, [0], "another gateway could be taken");
        assert_eq!(decide(Disjoint::Refuse, &all, 2, &[ip(9)].into()).shared.len(), 1);
    }

    #[test]
    fn gateways_are_read_from_the_tables_of_the_kernel() {
        let line =
            format!("eth0\t00000000\t{:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0", u32::from_ne_bytes([192, 0, 2, 1]));
        assert_eq!(gateway_v4(&line), Some(ip(1)));
        assert_eq!(gateway_v4("eth0\t000200C0\t00000000\t0001\t0"), None);
        assert_eq!(gateway_v4("Iface\tDestination\tGateway \tFlags"), None);
        let via = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 400";
        assert_eq!(gateway_v6(via), "fd00::1".parse().ok());
        for wrong in ["", "x", "a b c d e f"] {
            assert_eq!((gateway_v4(wrong), gateway_v6(wrong)), (None, None), "{wrong}");
        }
    }
}
