//! Asked for inside: get_mempolicy(2). What `numa_maps` prints are the nodes in use, not those that the program named, and of a
//! mapping without a policy the thread's own.

use super::{Cx, Result};
use crate::image::mm::{Backing, Vma};
use crate::image::numa::{NODES, Policy};
use crate::image::{Model, ShmemId};
use crate::proc::maps::Special;
use crate::proc::smaps::Flagged;
use crate::trace::Batch;
use crate::trace::batch::{Out, Results};
use crate::trace::calls::get_mempolicy;
use std::collections::{BTreeMap, HashMap};

/// The question of each mapping's mode, by its first address.
pub struct Query(Vec<(u64, Out)>);

/// Adds a call for each mapping: only a page walk of all memory would tell more cheaply which of them have a policy.
pub fn ask(batch: &mut Batch, mappings: &[Flagged]) -> Query {
    let of_program = mappings.iter().map(|m| &m.mapping).filter(|m| {
        let special = m.special();
        !matches!(special, Some(Special::Vdso | Special::Vvar | Special::Vsyscall))
    });
    Query(of_program.map(|m| (m.start, get_mempolicy(batch, None, Some(m.start)))).collect())
}

/// Policies by the first address of their mappings.
pub fn answer(cx: &mut Cx<'_>, at: usize, results: &Results, query: &Query) -> Result<HashMap<u64, Policy>> {
    let Some(scratch) = cx.frozen.processes[at].scratch else { return Ok(HashMap::new()) };
    let with_policy: Vec<u64> =
        query.0.iter().filter(|(_, mode)| results.value::<u32>(*mode) != 0).map(|(start, _)| *start).collect();
    let mut batch = Batch::new();
    let mut asked = Vec::with_capacity(with_policy.len());
    for start in with_policy {
        let mask = batch.out(NODES as usize / 8);
        asked.push((start, get_mempolicy(&mut batch, Some(mask), Some(start)), mask));
    }
    let results = cx.frozen.processes[at].leader().run(&scratch, &batch)?;
    let policy = |mode, mask| Policy::of_mask(results.value(mode), results.bytes(mask));
    Ok(asked.into_iter().filter_map(|(start, mode, mask)| Some((start, policy(mode, mask)?))).collect())
}

/// The policy of shared memory is its object's, for a part of it: a mapping shows the one at its beginning, which is not that
/// of all of it where another mapping begins inside with another one. That other one, or one before it, then tells.
pub fn settle(model: &mut Model) {
    let object = |vma: &Vma| match vma.backing {
        Backing::Shmem(id) if vma.shared => Some(id),
        _ => None,
    };
    let mappings = || model.mms.iter().flat_map(|mm| &mm.vmas);
    if !mappings().any(|vma| vma.numa.is_some() && object(vma).is_some()) {
        return;
    }
    let begins: BTreeMap<(ShmemId, u64), Option<Policy>> =
        mappings().filter_map(|vma| Some(((object(vma)?, vma.offset), vma.numa.clone()))).collect();
    for vma in model.mms.iter_mut().flat_map(|mm| &mut mm.vmas).filter(|vma| vma.numa.is_some()) {
        let Some(id) = object(vma) else { continue };
        let mut inside = begins.range((id, vma.offset + 1)..(id, vma.offset + vma.len()));
        if inside.any(|(_, policy)| *policy != vma.numa) {
            vma.numa = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::arbitrary;
    use crate::image::mm::Mm;

    fn vma(pages: std::ops::Range<u64>, policy: Option<u32>) -> Vma {
        let page = |n| n * crate::image::mm::PAGE;
        Vma {
            start: page(100 + pages.start),
            end: page(100 + pages.end),
            offset: page(pages.start),
            shared: true,
            backing: Backing::Shmem(ShmemId(0)),
            numa: policy.map(|mode| Policy { mode, nodes: vec![0] }),
            ..arbitrary::value(&[])
        }
    }

    #[test]
    fn a_part_with_a_policy_does_not_speak_for_the_whole() {
        let mut model: Model = Model::empty(arbitrary::value(&[]));
        let mm = |vmas| Mm { vmas, ..arbitrary::value(&[]) };
        model.mms.push(mm(vec![vma(0..4, Some(2)), vma(4..8, None)]));
        model.mms.push(mm(vec![vma(0..8, Some(2))]));
        model.mms.push(mm(vec![vma(2..8, Some(2)), vma(0..2, Some(2))]));
        settle(&mut model);
        let have: Vec<Vec<bool>> =
            model.mms.iter().map(|mm| mm.vmas.iter().map(|vma| vma.numa.is_some()).collect()).collect();
        assert_eq!(have, [vec![true, false], vec![false], vec![false, true]]);
    }
}
