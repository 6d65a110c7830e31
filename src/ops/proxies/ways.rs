//! The ways to destinations that lead through other hosts.

use super::tree::Tree;
use super::{in_short, reach};
use crate::failure::Result;
use crate::ops::many;
use crate::ops::options::PeerOptions;
use crate::ops::words::Dest;
use crate::ops::{Event, Events};
use crate::transport::proxy::{Branch, Trunk};
use crate::transport::{Abort, TransportError};
use std::sync::Arc;

/// A link to a first proxy, and how it goes on from there.
pub(in crate::ops) struct Way {
    pub trunk: Arc<Trunk>,
    pub branch: Branch,
    /// Those who pass it on, the nearest first.
    pub via: Vec<Dest>,
}

impl Way {
    /// By the end of the trunk alone, where the way goes on from there: what is left where another one fails.
    pub fn by_the_first(&self) -> Option<Self> {
        (!self.branch.by.is_empty()).then(|| Self {
            trunk: Arc::clone(&self.trunk),
            branch: Branch::default(),
            via: vec![self.via[0].clone()],
        })
    }
}

/// The ways to all destinations, as long as somebody wants them.
pub(in crate::ops) struct Ways {
    trunks: Vec<Arc<Trunk>>,
    ways: Vec<(Dest, Way)>,
    /// How many times what is for all of them leaves this host.
    pub copies: u64,
}

impl Ways {
    /// All go through these proxies, one after the other.
    pub fn through(trunk: Trunk, via: &[Dest], dests: &[Dest]) -> Self {
        let trunk = Arc::new(trunk);
        let way = || Way { trunk: Arc::clone(&trunk), branch: Branch::default(), via: via.to_vec() };
        let ways = dests.iter().map(|dest| (dest.clone(), way())).collect();
        Self { trunks: vec![trunk], ways, copies: 1 }
    }

    /// Destinations pass on what they get, to so many each. One that the source cannot reach passes on nothing; of it a warning tells.
    /// `None`: there is nobody to pass on to.
    ///
    /// # Errors
    /// Somebody wants this to end.
    pub fn as_tree(
        (dests, fanout): (&[Dest], usize),
        peer: &PeerOptions,
        events: &dyn Events,
        abort: &Abort,
    ) -> Result<Option<Self>> {
        let mut order: Vec<&Dest> = dests.iter().collect();
        let mut trunks: Vec<(&Dest, Arc<Trunk>)> = Vec::new();
        let tree = loop {
            let tree = Tree { count: order.len(), fanout };
            let roots = (0..tree.roots()).filter(|n| tree.passes_on(*n)).map(|n| order[n]);
            let untried: Vec<&Dest> = roots.filter(|root| !trunks.iter().any(|(to, _)| to == root)).collect();
            if untried.is_empty() {
                break tree;
            }
            for (root, begun) in untried.iter().zip(begin_all(&untried, peer, abort)) {
                match begun {
                    Ok(trunk) => trunks.push((root, Arc::new(trunk))),
                    Err(error) => {
                        let failure = reach::failure(&root.to_string(), &error);
                        if matches!(error, TransportError::Aborted { .. }) {
                            return Err(failure);
                        }
                        events.event(Event::Warning(format!("{}: it passes on nothing", in_short(&failure))));
                        order.retain(|dest| dest != root);
                    }
                }
            }
        };
        let way = |n: usize| {
            let via: Vec<Dest> = tree.way(n).into_iter().map(|n| order[n].clone()).collect();
            let (first, further) = via.split_first()?;
            let (_, trunk) = trunks.iter().find(|(to, _)| *to == first)?;
            let by = further.iter().map(reach::address).collect();
            let branch = Branch { by, ends_there: via.last() == Some(order[n]) };
            Some((order[n].clone(), Way { trunk: Arc::clone(trunk), branch, via }))
        };
        let ways: Vec<_> = (0..tree.count).filter_map(way).collect();
        let is_taken = |trunk: &Arc<Trunk>| ways.iter().any(|(_, way)| Arc::ptr_eq(&way.trunk, trunk));
        let trunks: Vec<_> = trunks.into_iter().map(|(_, trunk)| trunk).filter(is_taken).collect();
        let copies = (tree.roots() + dests.len() - order.len()) as u64;
        Ok(Some(Self { trunks, ways, copies }).filter(|all| !all.ways.is_empty()))
    }

    /// The way to this one; `None`: it is reached directly.
    pub fn to(&self, dest: &Dest) -> Option<&Way> {
        self.ways.iter().find(|(to, _)| to == dest).map(|(_, way)| way)
    }

    /// Bytes sent to those who pass it on.
    pub fn bytes_sent(&self) -> u64 {
        self.trunks.iter().map(|trunk| trunk.bytes_sent()).sum()
    }
}

/// A link to each, all tried at once.
fn begin_all(roots: &[&Dest], peer: &PeerOptions, abort: &Abort) -> Vec<std::result::Result<Trunk, TransportError>> {
    let begin = |root: &Dest| Trunk::begin(&[reach::address(root)], &reach::manner(root, peer), abort);
    std::thread::scope(|scope| {
        let tries: Vec<_> = roots.iter().map(|root| scope.spawn(move || begin(root))).collect();
        tries.into_iter().map(|tried| tried.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Whether destinations pass on to others, where that is wanted of so many of them.
pub(super) fn is_tree(peer: &PeerOptions, dests: &[Dest]) -> bool {
    peer.fanout_tree.is_some_and(|fanout| dests.len() > usize::from(fanout))
}

/// Those who pass on, for a person.
pub(super) fn names(peer: &PeerOptions) -> String {
    if peer.via.is_empty() { "the other destinations".to_owned() } else { many::names(&peer.via) }
}
