//! `--fanout-tree`: which destination passes on to which.

/// Destinations, by their places in a list, each of which passes on what it gets to so many after it. The first ones get it from the
/// source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    /// How many there are.
    pub count: usize,
    /// To how many each passes on, and the source sends.
    pub fanout: usize,
}

impl Tree {
    /// Those that the source sends to.
    pub fn roots(self) -> usize {
        self.fanout.min(self.count)
    }

    /// Whether this one passes on to another.
    pub fn passes_on(self, n: usize) -> bool {
        (n + 1) * self.fanout < self.count
    }

    /// Those by which it comes to this one, the nearest to the source first: itself is the last, if it passes on what it gets.
    pub fn way(self, n: usize) -> Vec<usize> {
        let parent = |n: &usize| (n / self.fanout).checked_sub(1);
        let mut way: Vec<usize> = std::iter::successors(Some(n), parent).collect();
        way.reverse();
        if !self.passes_on(n) {
            way.pop();
        }
        way
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ways(count: usize, fanout: usize) -> Vec<Vec<usize>> {
        let tree = Tree { count, fanout };
        (0..count).map(|n| tree.way(n)).collect()
    }

    #[test]
    fn one_each_is_a_chain_and_two_each_a_binary_tree() {
        assert_eq!(ways(4, 1), [vec![0], vec![0, 1], vec![0, 1, 2], vec![0, 1, 2]]);
        // The third, which has it from the first, passes on to the last.
        assert_eq!(ways(7, 2), [vec![0], vec![1], vec![0, 2], vec![0], vec![1], vec![1], vec![0, 2]]);
        assert_eq!(ways(3, 3), [vec![], vec![], Vec::<usize>::new()], "all are reached directly");
        assert_eq!(ways(1, 1), [Vec::<usize>::new()]);
    }

    proptest! {
        #[test]
        fn nobody_passes_on_to_more_than_its_share(count in 1usize..40, fanout in 1usize..10) {
            let tree = Tree { count, fanout };
            let parents: Vec<Option<usize>> = (0..count).map(|n| {
                let mut way = tree.way(n);
                way.retain(|on_it| *on_it != n);
                way.last().copied()
            }).collect();
            prop_assert_eq!(parents.iter().filter(|parent| parent.is_none()).count(), tree.roots());
            for n in 0..count {
                let children = parents.iter().filter(|parent| **parent == Some(n)).count();
                prop_assert!(children <= fanout);
                prop_assert_eq!(children > 0, tree.passes_on(n));
                prop_assert_eq!(tree.way(n).last() == Some(&n), tree.passes_on(n));
                prop_assert!(tree.way(n).iter().all(|on_it| *on_it <= n), "who is named first passes on");
            }
        }
    }
}
