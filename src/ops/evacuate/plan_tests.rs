use super::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

/// Hosts that have their own memory each.
fn problem(trees: &[u64], free: &[u64]) -> Problem {
    Problem {
        trees: trees.to_vec(),
        hosts: (0..free.len()).collect(),
        free: free.iter().map(|free| Some(*free)).collect(),
        refused: BTreeSet::new(),
    }
}

#[test]
fn each_way_to_place_does_what_its_name_says() {
    let three = problem(&[2 * GIB, 2 * GIB, GIB], &[8 * GIB, 7 * GIB]);
    assert_eq!(place(&three, Place::Spread), [Some(0), Some(1), Some(0)]);
    assert_eq!(place(&three, Place::Fill), [Some(0); 3]);
    assert_eq!(place(&three, Place::Fixed), [Some(0); 3]);
    let small = problem(&[2 * GIB, 2 * GIB, GIB], &[3 * GIB, 5 * GIB]);
    assert_eq!(place(&small, Place::Fixed), [Some(0), Some(1), Some(0)]);
    assert_eq!(place(&small, Place::Fill), [Some(1); 3]);
}

#[test]
fn hosts_on_one_machine_share_its_memory_and_the_trees() {
    let mut two = problem(&[GIB, GIB, GIB], &[4 * GIB]);
    two.hosts = vec![0, 0];
    assert_eq!(place(&two, Place::Spread), [Some(0), Some(1), Some(0)]);
    two.free = vec![Some(2 * GIB)];
    assert_eq!(place(&two, Place::Spread).iter().flatten().count(), 2, "there is no third GiB");
    two.free = vec![None];
    assert_eq!(place(&two, Place::Spread).iter().flatten().count(), 3, "of unknown memory there is enough");
}

#[test]
fn a_choice_that_leaves_no_room_is_taken_back() {
    // The larger one would take the only host of the smaller one.
    let mut tight = problem(&[3 * GIB, 2 * GIB], &[4 * GIB, 3 * GIB]);
    tight.refused.insert((1, 1));
    for how in [Place::Spread, Place::Fill, Place::Fixed] {
        assert_eq!(place(&tight, how), [Some(1), Some(0)], "{how:?}");
    }
    tight.refused.insert((1, 0));
    assert_eq!(place(&tight, Place::Fixed), [Some(0), None], "nobody takes it, and the others do not mind");
}

#[test]
fn what_takes_longest_begins_first() {
    let times = [1, 5, 3, 5].map(Duration::from_secs);
    let order = order(&times);
    assert_eq!(order, [1, 3, 2, 0]);
    assert_eq!(makespan(order.iter().map(|n| times[*n]), 2), Duration::from_secs(8));
    assert_eq!(makespan(times, 2), Duration::from_secs(9), "as they were named");
    assert_eq!(makespan(times, 1), Duration::from_secs(14));
}

#[test]
fn a_rate_is_shared_and_never_exceeded() {
    assert_eq!(share(100, 0, 2, 3), Some(50));
    assert_eq!(share(100, 50, 1, 2), Some(50));
    assert_eq!(share(100, 0, 2, 1), Some(100), "who is alone has all of it");
    assert_eq!(share(100, 100, 1, 1), None, "and 0 would be no limit");
}

/// Every way to place every tree.
fn all_placements(trees: usize, hosts: usize) -> Vec<Placement> {
    (0..trees).fold(vec![Vec::new()], |before, _| {
        let with = |placement: &Placement| {
            (0..hosts).map(|host| placement.iter().copied().chain([Some(host)]).collect()).collect::<Vec<_>>()
        };
        before.iter().flat_map(with).collect()
    })
}

fn is_allowed(problem: &Problem, placement: &Placement) -> bool {
    let mut free: Vec<i128> = problem.free.iter().map(|free| free.map_or(i128::MAX, i128::from)).collect();
    placement.iter().enumerate().all(|(tree, host)| match host {
        Some(host) => {
            let free = &mut free[problem.hosts[*host]];
            *free -= i128::from(problem.trees[tree]);
            *free >= 0 && !problem.refused.contains(&(tree, *host))
        }
        None => true,
    })
}

fn hosts_of(placement: &Placement) -> usize {
    placement.iter().flatten().collect::<BTreeSet<_>>().len()
}

fn any_problem() -> impl Strategy<Value = Problem> {
    let hosts = proptest::collection::vec(0usize..3, 1..4);
    let free = proptest::collection::vec(proptest::option::weighted(0.8, 0u64..12), 3);
    let refused = proptest::collection::btree_set((0usize..5, 0usize..3), 0..6);
    (proptest::collection::vec(0u64..8, 0..5), hosts, free, refused).prop_map(|(trees, hosts, free, refused)| Problem {
        trees,
        hosts,
        free,
        refused,
    })
}

proptest! {
    #[test]
    fn nothing_is_placed_where_it_cannot_be_and_everything_where_it_can(
        problem in any_problem(), how in prop_oneof![Just(Place::Spread), Just(Place::Fill), Just(Place::Fixed)])
    {
        let found = place(&problem, how);
        prop_assert_eq!(found.len(), problem.trees.len());
        prop_assert!(is_allowed(&problem, &found));
        // Trees that nobody takes by themselves are no reason to leave others.
        let alone = |tree: usize| (0..problem.hosts.len()).any(|host| Room::of(&problem).fits(tree, host));
        let rest: Vec<usize> = (0..problem.trees.len()).filter(|tree| alone(*tree)).collect();
        let whole = |placement: &Placement| {
            let mut whole = vec![None; problem.trees.len()];
            rest.iter().zip(placement).for_each(|(tree, host)| whole[*tree] = *host);
            whole
        };
        let mut ways: Vec<Placement> = all_placements(rest.len(), problem.hosts.len()).iter().map(whole).collect();
        ways.retain(|way| is_allowed(&problem, way));
        if !ways.is_empty() {
            prop_assert!(rest.iter().all(|tree| found[*tree].is_some()), "{found:?}");
            if how == Place::Fill {
                prop_assert_eq!(Some(hosts_of(&found)), ways.iter().map(hosts_of).min());
            }
        } else {
            prop_assert!(found.iter().enumerate().all(|(tree, host)| host.is_none() || rest.contains(&tree)));
        }
    }

    #[test]
    fn with_room_enough_the_first_that_takes_it_is_the_fixed_place(
        trees in proptest::collection::vec(0u64..100, 0..20), refused in proptest::collection::btree_set((0usize..20, 0usize..4), 0..40))
    {
        let problem = Problem { refused, ..problem(&trees, &[u64::MAX; 4]) };
        for (tree, host) in place(&problem, Place::Fixed).into_iter().enumerate() {
            prop_assert_eq!(host, (0..4).find(|host| !problem.refused.contains(&(tree, *host))));
        }
    }

    #[test]
    fn equal_trees_are_spread_evenly(trees in 0usize..30, hosts in 1usize..6) {
        let found = place(&problem(&vec![GIB; trees], &vec![64 * GIB; hosts]), Place::Spread);
        let count = |host| found.iter().filter(|place| **place == Some(host)).count();
        let counts: Vec<usize> = (0..hosts).map(count).collect();
        prop_assert_eq!(counts.iter().sum::<usize>(), trees);
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
    }

    /// Graham's bound for the longest first: 4/3 - 1/(3 jobs) of the best order.
    #[test]
    fn the_order_is_near_the_best_one(times in proptest::collection::vec(1u64..50, 1..7), jobs in 1usize..4) {
        let times: Vec<Duration> = times.into_iter().map(Duration::from_secs).collect();
        let order = order(&times);
        let sorted: BTreeSet<usize> = order.iter().copied().collect();
        prop_assert_eq!(sorted.len(), times.len());
        let found = makespan(order.iter().map(|n| times[*n]), jobs);
        let of = |way: &Placement| {
            let on = |job| -> Duration {
                way.iter().zip(&times).filter(|(place, _)| **place == Some(job)).map(|(_, time)| *time).sum()
            };
            (0..jobs).map(on).max().unwrap()
        };
        let best = all_placements(times.len(), jobs).iter().map(of).min().unwrap();
        prop_assert!(found >= best);
        prop_assert!(found.as_secs_f64() <= best.as_secs_f64() * (4.0 / 3.0 - 1.0 / (3.0 * jobs as f64)) + 1e-9);
    }

    #[test]
    fn what_all_have_together_is_the_rate_at_most(rate in 1000u64..1_000_000, jobs in 1usize..8, trees in 1usize..20) {
        let mut given: Vec<u64> = Vec::new();
        for waiting in (1..=trees).rev() {
            // One has ended, where all were busy.
            if given.len() == jobs {
                given.remove(waiting % jobs);
            }
            given.push(share(rate, given.iter().sum(), jobs - given.len(), waiting).unwrap());
            prop_assert!(given.iter().sum::<u64>() <= rate, "{given:?}");
        }
    }
}
