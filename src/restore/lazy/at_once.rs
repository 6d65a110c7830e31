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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fd::{FileKind, regular::ShmemFile};
    use crate::image::mm::ShmemKind;
    use crate::image::{MmId, ShmemId};

    fn of(model: &Model, space: Space, range: PageRange) -> Vec<(&'static str, u64)> {
        let held: RangeSet = [range].into_iter().collect();
        reasons(model, [(&space, &held)]).into_iter().collect()
    }

    #[test]
    fn shared_memory_that_is_reached_by_another_way_comes_at_once() {
        let id = ShmemId(0);
        let mut model = crate::image::tests::sample();
        model.shmems[0].kind = ShmemKind::Anon;
        model.files.retain(|file| !matches!(file.kind, FileKind::Shmem(_)));
        for vma in model.mms.iter_mut().flat_map(|mm| &mut mm.vmas).filter(|vma| vma.backing == Backing::Shmem(id)) {
            (vma.shared, vma.may_write, vma.locked, vma.sealed) = (true, true, None, false);
        }
        let look = |model: &Model| of(model, Space::Shmem(id), PageRange::new(3, 4));
        assert_eq!(look(&model), []);
        assert!(shared::part(&model, id, &[PageRange::new(3, 4)].into_iter().collect()).pages() == 4);
        let changed = |change: &dyn Fn(&mut Model)| {
            let mut model = model.clone();
            change(&mut model);
            assert!(shared::part(&model, id, &[PageRange::new(3, 4)].into_iter().collect()).is_empty());
            look(&model)
        };
        let view = |model: &mut Model, change: &dyn Fn(&mut Vma)| {
            let vmas = model.mms.iter_mut().flat_map(|mm| &mut mm.vmas);
            vmas.filter(|vma| vma.backing == Backing::Shmem(id)).for_each(change);
        };
        let mut file = model.files[0].clone();
        file.kind = FileKind::Shmem(ShmemFile { shmem: id });
        let open = changed(&|model| model.files.push(file.clone()));
        assert_eq!(open, [("a descriptor of it is open", 4)]);
        assert_eq!(changed(&|model| view(model, &|vma| vma.shared = false)), [("it has private mappings", 4)]);
        assert_eq!(changed(&|model| view(model, &|vma| vma.locked = Some(true))), [("it is locked in memory", 4)]);
        let large = ShmemKind::HugeAnon { page_size: 1 << 30 };
        let large = changed(&|model| model.shmems[0].kind = large.clone());
        assert_eq!(large, [("its pages are too large to be waited for", 4)]);
    }

    #[test]
    fn private_memory_that_cannot_be_served_is_named() {
        let mut model = crate::image::tests::sample();
        let mm = model.tasks.iter().find_map(|task| task.mm).unwrap_or(MmId(0));
        model.mms.iter_mut().for_each(|mm| mm.cow_parent = None);
        let vma = model.mms[mm.at()].vmas.iter().position(|vma| vma.backing == Backing::Anon).unwrap();
        let at = &mut model.mms[mm.at()].vmas[vma];
        at.shared = false;
        at.locked = Some(false);
        let first = PageRange::new(PageRange::of_bytes(at.start, at.end).first, 1);
        assert_eq!(of(&model, Space::Mm(mm), first), [("it is locked in memory", 1)]);
    }
}
