//! What comes before the first instruction although it is memory of a kind that can come later, and why.

use super::{shared, suits};
use crate::image::mm::{Backing, Mm, Vma};
use crate::image::{MmId, Model};
use crate::memory::{PageRange, RangeSet, Space};
use std::collections::BTreeMap;

/// Pages by the reason why they come at once, of those with content that the spaces of a model hold. What threads need
/// anyway and private pages of files are not among them: nobody expects these to be put off.
pub fn reasons<'a>(
    model: &Model,
    held: impl IntoIterator<Item = (&'a Space, &'a RangeSet)>,
) -> BTreeMap<&'static str, u64> {
    let mut reasons = BTreeMap::new();
    for (space, pages) in held {
        match *space {
            Space::Mm(mm) => private(model, mm, pages, &mut reasons),
            Space::Shmem(id) => {
                if let Some(why) = shared::reason(model, id) {
                    *reasons.entry(why).or_default() += pages.pages();
                }
            }
        }
    }
    reasons.retain(|_, pages| *pages > 0);
    reasons
}

fn private(model: &Model, mm: MmId, held: &RangeSet, reasons: &mut BTreeMap<&'static str, u64>) {
    let suits = suits(model, mm);
    let mm = &model.mms[mm.at()];
    for vma in &mm.vmas {
        let why =
            why(vma, mm).or((vma.backing == Backing::Anon && !suits).then_some("relatives share it copy-on-write"));
        if let Some(why) = why {
            *reasons.entry(why).or_default() += held.within(PageRange::of_bytes(vma.start, vma.end)).pages();
        }
    }
}

/// Why this private mapping cannot be served, if it can be told.
fn why(vma: &Vma, mm: &Mm) -> Option<&'static str> {
    let is_huge = matches!(vma.backing, Backing::HugeAnon { .. });
    if is_huge && !vma.shared {
        return Some("a child would need huge pages of its own");
    }
    let anonymous = vma.backing == Backing::Anon && !vma.shared;
    if !anonymous || super::comes_later(vma, mm) {
        return None;
    }
    let reasons = [
        (vma.locked.is_some(), "it is locked in memory"),
        (vma.sealed, "its mappings are sealed"),
        (vma.advice.wipe_on_fork, "children do not inherit it"),
    ];
    reasons.into_iter().find_map(|(is, why)| is.then_some(why))
}
