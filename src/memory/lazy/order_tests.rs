use super::*;
use crate::image::MmId;
use proptest::prelude::*;

const OWN: Space = Space::Mm(MmId(0));
const OTHER: Space = Space::Mm(MmId(1));

fn owed(pages: u64) -> Order {
    Order::new([(OWN, [PageRange::new(0, pages)].into_iter().collect())])
}

fn fault(page: u64, thread: u32) -> Fault {
    Fault { space: OWN, page, count: 1, thread }
}

/// Everything that is given without a fault in between, page by page.
fn drain(order: &mut Order) -> Vec<(Space, u64)> {
    let mut pages = Vec::new();
    while let Some(next) = order.next_pages() {
        pages.extend((next.range.first..next.range.end()).map(|page| (next.space, page)));
    }
    pages
}

proptest! {
    #[test]
    fn each_page_is_given_once(
        sets in prop::collection::vec(prop::collection::vec((0u64..300, 1u64..40), 0..6), 2),
        faults in prop::collection::vec((any::<bool>(), 0u64..330, 0u32..5, 0usize..4), 0..60),
        early in prop::collection::vec((0u64..300, 1u64..20), 0..5),
    ) {
        let sets: Vec<RangeSet> =
            sets.iter().map(|set| set.iter().map(|(first, count)| PageRange::new(*first, *count)).collect()).collect();
        let all: RangeSet = sets[0].clone();
        let mut order = Order::new([(OWN, sets[0].clone()), (OTHER, sets[1].clone())]);
        order.first(early.iter().map(|(first, count)| (OWN, PageRange::new(*first, *count))));
        prop_assert_eq!(order.pages(), all.pages() + sets[1].pages());
        let mut given = Vec::new();
        for (other, page, thread, then) in faults {
            let space = if other { OTHER } else { OWN };
            let is_owed = order.is_owed(space, page);
            order.fault(Fault { space, page, count: 1, thread });
            if is_owed {
                let next = order.next_pages().unwrap();
                prop_assert_eq!(next, Next { space, range: PageRange::new(page, 1), urgent: true });
                given.push((space, page));
            }
            for _ in 0..then {
                let next = order.next_pages();
                prop_assert!(next.is_none_or(|next| !next.urgent && next.range.count <= FAR_PAGES));
                given.extend(next.into_iter().flat_map(|n| (n.range.first..n.range.end()).map(move |p| (n.space, p))));
            }
        }
        given.extend(drain(&mut order));
        prop_assert_eq!(order.pages(), 0);
        given.sort_unstable();
        let mut want: Vec<(Space, u64)> = Vec::new();
        for (space, set) in [(OWN, &sets[0]), (OTHER, &sets[1])] {
            want.extend(set.iter().flat_map(|r| r.first..r.end()).map(|page| (space, page)));
        }
        prop_assert_eq!(given, want);
    }
}

/// Faults of a program that touches these pages in turn, while `between` pieces are sent between two touches.
fn faults_of(order: &mut Order, touches: impl Iterator<Item = (u64, u32)>, between: usize) -> usize {
    let (mut there, mut faults) = (RangeSet::new(), 0);
    for (page, thread) in touches {
        if !there.contains(page) {
            faults += 1;
            order.fault(fault(page, thread));
            while !there.contains(page) {
                let next = order.next_pages().expect("the page is owed");
                there.insert(next.range);
            }
        }
        for _ in 0..between {
            order.next_pages().into_iter().for_each(|next| there.insert(next.range));
        }
    }
    faults
}

#[test]
fn a_sequence_is_foreseen_in_both_directions() {
    let (low, high) = (10_000, 14_000);
    let upward = faults_of(&mut owed(100_000), (low..high).map(|page| (page, 1)), 1);
    assert!(upward < 40, "{upward} faults in 4000 pages upward");
    let downward = faults_of(&mut owed(100_000), (low..high).rev().map(|page| (page, 1)), 1);
    assert!(downward < 80, "{downward} faults in 4000 pages downward");
}

#[test]
fn threads_do_not_spoil_each_others_windows() {
    // Two that go upward, and one that jumps about.
    let mut jump = 7u64;
    let touches = (0..1000u64).flat_map(|n| {
        jump = (jump * 1_103_515_245 + 12345) % 50_000;
        [(20_000 + n, 1), (60_000 + n, 2), (100_000 + jump, 3)]
    });
    let touches: Vec<(u64, u32)> = touches.collect();
    let ordered = touches.iter().filter(|(_, thread)| *thread < 3).copied();
    let alone = faults_of(&mut owed(200_000), ordered, 1);
    let together = faults_of(&mut owed(200_000), touches.iter().copied(), 1);
    assert!(together <= alone + 1000 + alone, "{alone} faults alone, {together} with a third");
}

#[test]
fn windows_shrink_where_they_do_not_help() {
    let mut order = owed(1_000_000);
    for n in 0..20 {
        order.fault(fault(n * 40_000 % 999_999, 1));
        assert!(order.next_pages().unwrap().urgent);
    }
    assert_eq!(order.threads[&1].window, WINDOW.0);
    // What was pushed around the last position is as little as that.
    let near: u64 = order.threads[&1].pivots[0].left_up + order.threads[&1].pivots[0].left_down;
    assert_eq!(near, WINDOW.0);
}

#[test]
fn what_was_touched_early_comes_before_the_rest() {
    let mut order = owed(1000);
    order.first([(OWN, PageRange::new(900, 2)), (OTHER, PageRange::new(5, 1)), (OWN, PageRange::new(40, 1))]);
    let pages: Vec<u64> = drain(&mut order).into_iter().map(|(_, page)| page).collect();
    assert_eq!(pages[..4], [900, 901, 40, 0]);
}

#[test]
fn what_is_forgotten_is_not_sent() {
    let mut order = owed(100);
    order.fault(fault(50, 1));
    order.forget(OWN, PageRange::new(40, 20));
    assert_eq!(order.pages(), 80);
    let pages: Vec<u64> = drain(&mut order).into_iter().map(|(_, page)| page).collect();
    assert_eq!(pages.len(), 80);
    assert!(pages.iter().all(|page| !(40..60).contains(page)));
}
