//! Set inside: mappings before their contents, as the kernel takes pages for them from where their policy says; threads at the
//! end.

use crate::blocker::{Blocker, codes};
use crate::image::Model;
use crate::image::mm::Vma;
use crate::image::numa::{NODES, Policy};
use crate::proc::sys;
use crate::trace::Batch;
use crate::trace::batch::{Arg, Ref};
use std::collections::BTreeSet;

/// The length of masks as the kernel counts it: one more than the bits (get_mempolicy(2), "BUGS").
const MASK_BITS: u32 = NODES + 1;

/// mbind(2) of `len` bytes, without moving pages.
pub(super) fn bind(batch: &mut Batch, (start, len): (u64, u64), policy: Option<&Policy>) -> Ref {
    let (mode, mask, bits) = arguments(batch, policy);
    batch.must(libc::SYS_mbind, &[start.into(), len.into(), mode.into(), mask, bits.into(), 0u64.into()])
}

/// set_mempolicy(2). Without a policy the default one: that of whoever started us is not the tree's.
pub(super) fn of_thread(batch: &mut Batch, policy: Option<&Policy>) {
    let (mode, mask, bits) = arguments(batch, policy);
    let args = [mode.into(), mask, bits.into()];
    match policy {
        Some(_) => batch.must(libc::SYS_set_mempolicy, &args),
        // There may be no such call in this kernel.
        None => batch.may(libc::SYS_set_mempolicy, &args),
    };
}

/// Mode, address of the mask and its length.
fn arguments(batch: &mut Batch, policy: Option<&Policy>) -> (u32, Arg, u32) {
    match policy {
        Some(policy) if !policy.nodes.is_empty() => (policy.mode, batch.bytes(&policy.mask()), MASK_BITS),
        _ => (policy.map_or(0, |policy| policy.mode), 0u64.into(), 0),
    }
}

/// Policies that this host cannot give. The kernel would take one with nodes that it lacks, and leave those out for good.
pub(super) fn blockers(model: &Model) -> Vec<Blocker> {
    let policies = policies(model);
    if policies.is_empty() {
        return Vec::new();
    }
    let here = sys::memory_nodes().ok().flatten();
    let mut named = BTreeSet::new();
    let blocker = |(policy, whose): (&Policy, String)| {
        let Some(here) = &here else {
            let first = named.insert(None);
            return first.then(|| Blocker::new(codes::NUMA_NODE, whose).because("this kernel has no NUMA policies"));
        };
        let node = policy.lacking(here)?;
        let list: Vec<String> = here.iter().map(u32::to_string).collect();
        let reason = format!("it names node {node}; this host has memory on node {}", list.join(", "));
        named.insert(Some(node)).then(|| Blocker::new(codes::NUMA_NODE, whose).because(reason))
    };
    policies.into_iter().filter_map(blocker).collect()
}

/// All policies, with whose they are.
fn policies(model: &Model) -> Vec<(&Policy, String)> {
    let mut all = Vec::new();
    for task in &model.tasks {
        let of_threads = task.threads.iter().filter_map(|thread| Some((thread, thread.numa.as_ref()?)));
        all.extend(of_threads.map(|(thread, policy)| (policy, format!("thread {} ({})", thread.tid, thread.comm))));
        let vmas = task.mm.iter().flat_map(|mm| &model.mms[mm.at()].vmas);
        let of_mappings = vmas.filter_map(|vma| Some((vma, vma.numa.as_ref()?)));
        let mapping = |vma: &Vma| format!("pid {} mapping {:#x}-{:#x}", task.pid, vma.start, vma.end);
        all.extend(of_mappings.map(|(vma, policy)| (policy, mapping(vma))));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use crate::image::arbitrary;
    use crate::image::mm::{Backing, Mm};
    use crate::image::task::{Task, Thread};

    fn model(of_thread: Option<Policy>, of_mapping: Option<Policy>) -> Model {
        let mut model = Model::empty(arbitrary::value(&[]));
        let vma = Vma { start: 0x1000, end: 0x3000, backing: Backing::Anon, numa: of_mapping, ..arbitrary::value(&[]) };
        let thread = Thread { numa: of_thread, ..arbitrary::value(&[]) };
        model.mms.push(Mm { vmas: vec![vma], ..arbitrary::value(&[]) });
        model.tasks.push(Task { mm: Some(MmId(0)), threads: vec![thread], ..arbitrary::value(&[]) });
        model
    }

    #[test]
    fn a_node_that_nobody_has_is_in_the_way() {
        let Some(here) = sys::memory_nodes().unwrap() else { return crate::skip!("this kernel has no NUMA") };
        let policy = |nodes: Vec<u32>| Some(Policy { mode: 2, nodes });
        let there: Vec<u32> = here.iter().copied().collect();
        assert_eq!(blockers(&model(policy(there.clone()), policy(there.clone()))), []);
        assert_eq!(blockers(&model(None, None)), []);
        let lacking = policy(there.into_iter().chain([NODES - 1]).collect());
        let found = blockers(&model(None, lacking.clone()));
        assert_eq!((found.len(), found[0].code), (1, codes::NUMA_NODE));
        assert!(found[0].object.ends_with("mapping 0x1000-0x3000"), "{}", found[0].object);
        // Each node once.
        let found = blockers(&model(lacking.clone(), lacking));
        assert_eq!((found.len(), found[0].object.starts_with("thread")), (1, true));
    }
}
