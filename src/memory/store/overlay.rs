//! From what was said about pages, call by call, to what holds in the end.

use super::{
    index::{Run, RunKind, SpaceEntry},
    writer::{Record, SpaceInfo},
};
use crate::memory::{PageRange, Space};
use std::collections::BTreeMap;

/// The spaces of an index: later records win over earlier ones.
pub(super) fn spaces(mut records: Vec<Record>, infos: &BTreeMap<Space, SpaceInfo>) -> Vec<SpaceEntry> {
    records.sort_unstable_by_key(|r| (r.space, r.range.first, r.sequence));
    let mut runs: BTreeMap<Space, Vec<Run>> = infos.keys().map(|space| (*space, Vec::new())).collect();
    for records in records.chunk_by(|a, b| a.space == b.space) {
        let disjoint = records.windows(2).all(|w| w[0].range.end() <= w[1].range.first);
        let settled = if disjoint { in_order(records) } else { overlaid(records) };
        runs.insert(records[0].space, settled);
    }
    let entry = |(space, runs)| {
        let info = infos.get(&space).copied().unwrap_or_default();
        SpaceEntry { space, identity: info.identity, parent: info.parent, cow_parent: info.cow_parent, runs }
    };
    runs.into_iter().map(entry).collect()
}

/// Appends a run, or lets the last one grow by it.
fn push(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut().filter(|last| last.range.end() == run.range.first) {
        let grows = match (last.kind, run.kind) {
            (RunKind::Data { frame, page }, RunKind::Data { frame: next, page: at }) => {
                frame == next && u64::from(page) + last.range.count == u64::from(at)
            }
            (a, b) => a == b,
        };
        if grows {
            last.range.count += run.range.count;
            return;
        }
    }
    runs.push(run);
}

fn in_order(records: &[Record]) -> Vec<Run> {
    let mut runs = Vec::with_capacity(records.len());
    for record in records {
        if let Some(kind) = record.kind {
            push(&mut runs, Run { range: record.range, kind });
        }
    }
    runs
}

fn overlaid(records: &[Record]) -> Vec<Run> {
    let mut by_call: Vec<&Record> = records.iter().collect();
    by_call.sort_unstable_by_key(|r| r.sequence);
    let mut settled: BTreeMap<u64, Run> = BTreeMap::new();
    for record in by_call {
        clear(&mut settled, record.range);
        if let Some(kind) = record.kind {
            settled.insert(record.range.first, Run { range: record.range, kind });
        }
    }
    let mut runs = Vec::with_capacity(settled.len());
    for run in settled.into_values() {
        push(&mut runs, run);
    }
    runs
}

/// Takes a range out of the runs, which are keyed by their first page and disjoint.
fn clear(runs: &mut BTreeMap<u64, Run>, range: PageRange) {
    if let Some((_, before)) = runs.range(..range.first).next_back() {
        let before = *before;
        if before.range.end() > range.first {
            let left = PageRange::new(before.range.first, range.first - before.range.first);
            runs.insert(left.first, before.cut(left));
            if before.range.end() > range.end() {
                let right = PageRange::new(range.end(), before.range.end() - range.end());
                runs.insert(right.first, before.cut(right));
            }
        }
    }
    while let Some((&first, &run)) = runs.range(range.first..range.end()).next() {
        runs.remove(&first);
        if run.range.end() > range.end() {
            let right = PageRange::new(range.end(), run.range.end() - range.end());
            runs.insert(right.first, run.cut(right));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use proptest::prelude::*;

    const SPACE: Space = Space::Mm(MmId(3));

    fn record() -> impl Strategy<Value = (PageRange, Option<RunKind>)> {
        let kind = prop_oneof![
            (0u32..4, 0u32..40).prop_map(|(frame, page)| Some(RunKind::Data { frame, page })),
            Just(Some(RunKind::Zero)),
            Just(Some(RunKind::Parent)),
            Just(None),
        ];
        ((0u64..50, 1u64..12).prop_map(|(f, c)| PageRange::new(f, c)), kind)
    }

    proptest! {
        #[test]
        fn the_later_call_wins(said in prop::collection::vec(record(), 0..20)) {
            let mut want: BTreeMap<u64, RunKind> = BTreeMap::new();
            let mut records = Vec::new();
            for (n, (range, kind)) in said.into_iter().enumerate() {
                for page in range.first..range.end() {
                    match kind {
                        None => want.remove(&page),
                        Some(kind) => want.insert(page, Run { range, kind }.cut(PageRange::new(page, 1)).kind),
                    };
                }
                records.push(Record { space: SPACE, range, sequence: n as u64, kind });
            }
            records.reverse();
            let found = spaces(records, &BTreeMap::new());
            let runs = found.first().map(|s| s.runs.clone()).unwrap_or_default();
            prop_assert!(runs.windows(2).all(|w| w[0].range.end() <= w[1].range.first));
            let mut have = BTreeMap::new();
            for run in runs {
                for page in run.range.first..run.range.end() {
                    have.insert(page, run.cut(PageRange::new(page, 1)).kind);
                }
            }
            prop_assert_eq!(have, want);
        }
    }
}
