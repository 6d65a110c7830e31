//! NUMA memory policies: set_mempolicy(2), mbind(2).

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Nodes are below this: the most that a kernel for x86-64 can be built for (`CONFIG_NODES_SHIFT`).
pub const NODES: u32 = 1024;

/// Nodes are meant by their numbers, also those that the task may not use at the moment (`MPOL_F_STATIC_NODES`).
const STATIC_NODES: u32 = 1 << 15;

/// The nodes of a mode that has this flag are counted within those that a task may use, whatever their numbers
/// (`MPOL_F_RELATIVE_NODES`).
const RELATIVE_NODES: u32 = 1 << 14;

/// Where memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `MPOL_*` with its flags; never `MPOL_DEFAULT` alone, which is no policy.
    pub mode: u32,
    /// Numbers of nodes, ascending.
    pub nodes: Vec<u32>,
}

impl Policy {
    /// The policy that get_mempolicy(2) tells of; `None` for the default one. `mask`: one bit a node, little-endian.
    pub fn of_mask(mode: u32, mask: &[u8]) -> Option<Self> {
        let set = |node: &u32| mask.get(*node as usize / 8).is_some_and(|byte| byte & 1 << (node % 8) != 0);
        (mode != 0).then(|| Self { mode, nodes: (0..NODES).filter(set).collect() })
    }

    /// The nodes as set_mempolicy(2) takes them: one bit each, of [`NODES`].
    pub fn mask(&self) -> Vec<u8> {
        let mut mask = vec![0; NODES as usize / 8];
        for node in self.nodes.iter().filter(|node| **node < NODES) {
            mask[*node as usize / 8] |= 1 << (node % 8);
        }
        mask
    }

    /// A node that a host with these would have to have.
    pub fn lacking(&self, here: &BTreeSet<u32>) -> Option<u32> {
        let mut lacking = self.nodes.iter().filter(|node| !here.contains(node)).copied();
        match self.mode & (STATIC_NODES | RELATIVE_NODES) {
            RELATIVE_NODES => None,
            // The kernel remembers those that are not there yet, as long as it has one.
            STATIC_NODES if self.nodes.iter().any(|node| here.contains(node)) => None,
            _ => lacking.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_as_they_are_written() {
        let policy = Policy { mode: 3 | 1 << 15, nodes: vec![0, 1, 9, 63, 64, 1023] };
        let mask = policy.mask();
        assert_eq!((mask[0], mask[1], mask[7], mask[8], mask[127]), (3, 2, 0x80, 1, 0x80));
        assert_eq!(Policy::of_mask(policy.mode, &mask), Some(policy.clone()));
        assert_eq!(Policy::of_mask(0, &mask), None);
        assert_eq!(Policy::of_mask(4, &[]), Some(Policy { mode: 4, nodes: Vec::new() }));
    }

    #[test]
    fn a_host_has_to_have_the_nodes_that_are_named() {
        let policy = |mode, nodes: &[u32]| Policy { mode, nodes: nodes.to_vec() };
        let here = BTreeSet::from([0, 2]);
        assert_eq!(policy(2, &[0, 2]).lacking(&here), None);
        assert_eq!(policy(2, &[0, 1, 3]).lacking(&here), Some(1));
        assert_eq!(policy(4, &[]).lacking(&here), None);
        assert_eq!(policy(3 | RELATIVE_NODES, &[1]).lacking(&here), None);
        assert_eq!(policy(3 | STATIC_NODES, &[1, 2]).lacking(&here), None);
        assert_eq!(policy(3 | STATIC_NODES, &[1]).lacking(&here), Some(1));
    }
}
