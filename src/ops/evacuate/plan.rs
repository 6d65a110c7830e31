//! Which tree goes to which host, and in which order: pure, without clock or I/O.
//!
//! Trees are placed largest first. Where the first choice of each leaves no room for a later one the choices are taken back
//! (depth first, a limited number of steps); where no way places all of them, as many are placed as the first choices allow.

use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

/// Choices that are tried at most: beyond that the first choices stand.
const STEPS_MAX: usize = 100_000;

/// `--place`: what decides between hosts that would take a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Place {
    /// The one with most free memory; of equal ones that with less of what is placed, then the first.
    #[default]
    Spread,
    /// As few of them as possible.
    Fill,
    /// The first.
    Fixed,
}

/// What is to be placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// Memory that each tree takes, bytes.
    pub trees: Vec<u64>,
    /// For each host, in the order in which they were named, whose memory it has: an index of `free`. Several that are one machine
    /// have the same.
    pub hosts: Vec<usize>,
    /// Memory that can be taken, bytes; `None` = unknown.
    pub free: Vec<Option<u64>>,
    /// Trees and hosts that do not go together.
    pub refused: BTreeSet<(usize, usize)>,
}

/// For each tree its host.
pub type Placement = Vec<Option<usize>>;

/// What is taken so far.
#[derive(Debug, Clone)]
struct Room<'p> {
    problem: &'p Problem,
    free: Vec<Option<u64>>,
    /// Bytes and trees that each host has got.
    taken: Vec<(u64, usize)>,
}

impl<'p> Room<'p> {
    fn of(problem: &'p Problem) -> Self {
        Self { problem, free: problem.free.clone(), taken: vec![(0, 0); problem.hosts.len()] }
    }

    fn fits(&self, tree: usize, host: usize) -> bool {
        let free = self.free[self.problem.hosts[host]];
        !self.problem.refused.contains(&(tree, host)) && free.is_none_or(|free| free >= self.problem.trees[tree])
    }

    fn take(&mut self, tree: usize, host: usize) {
        let bytes = self.problem.trees[tree];
        if let Some(free) = &mut self.free[self.problem.hosts[host]] {
            *free -= bytes;
        }
        self.taken[host] = (self.taken[host].0 + bytes, self.taken[host].1 + 1);
    }

    fn give_back(&mut self, tree: usize, host: usize) {
        let bytes = self.problem.trees[tree];
        if let Some(free) = &mut self.free[self.problem.hosts[host]] {
            *free += bytes;
        }
        self.taken[host] = (self.taken[host].0 - bytes, self.taken[host].1 - 1);
    }

    /// Those of `hosts` that would take a tree, the best one first.
    fn choices(&self, how: Place, tree: usize, hosts: &[usize]) -> Vec<usize> {
        let mut fitting: Vec<usize> = hosts.iter().copied().filter(|host| self.fits(tree, *host)).collect();
        let free = |host: usize| self.free[self.problem.hosts[host]].unwrap_or(0);
        match how {
            Place::Spread => fitting.sort_by_key(|host| (Reverse(free(*host)), self.taken[*host], *host)),
            // What fits best leaves most room in the others.
            Place::Fill => fitting.sort_by_key(|host| (Reverse(self.taken[*host].1.min(1)), free(*host), *host)),
            Place::Fixed => {}
        }
        fitting
    }
}

/// Finds a place for each tree; `None` for one that no host takes, or that there is no room for beside the others.
pub fn place(problem: &Problem, how: Place) -> Placement {
    let empty = Room::of(problem);
    let hosts: Vec<usize> = (0..problem.hosts.len()).collect();
    let is_placeable = |tree: &usize| hosts.iter().any(|host| empty.fits(*tree, *host));
    let mut trees: Vec<usize> = (0..problem.trees.len()).filter(is_placeable).collect();
    trees.sort_by_key(|tree| Reverse(problem.trees[*tree]));
    let mut search =
        Search { how, trees: &trees, room: empty, placement: vec![None; problem.trees.len()], steps: STEPS_MAX };
    let is_found = match how {
        Place::Fill => (1..=hosts.len()).any(|count| search.with_only(count, &hosts, &mut Vec::new())),
        Place::Spread | Place::Fixed => search.all(0, &hosts),
    };
    if is_found { search.placement } else { first_choices(problem, how, &trees, &hosts) }
}

/// Places all trees, or takes everything back.
struct Search<'p> {
    how: Place,
    trees: &'p [usize],
    room: Room<'p>,
    placement: Placement,
    steps: usize,
}

impl Search<'_> {
    /// All trees from the `from`-th on, to these hosts.
    fn all(&mut self, from: usize, hosts: &[usize]) -> bool {
        let Some(&tree) = self.trees.get(from) else { return true };
        for host in self.room.choices(self.how, tree, hosts) {
            if self.steps == 0 {
                return false;
            }
            self.steps -= 1;
            self.room.take(tree, host);
            self.placement[tree] = Some(host);
            if self.all(from + 1, hosts) {
                return true;
            }
            self.placement[tree] = None;
            self.room.give_back(tree, host);
        }
        false
    }

    /// All trees, to `count` of these hosts, which are tried in their order beside those that are chosen already.
    fn with_only(&mut self, count: usize, hosts: &[usize], chosen: &mut Vec<usize>) -> bool {
        if count == 0 {
            return self.all(0, chosen);
        }
        for (n, host) in hosts.iter().enumerate() {
            if self.steps == 0 {
                return false;
            }
            self.steps -= 1;
            chosen.push(*host);
            if self.with_only(count - 1, &hosts[n + 1..], chosen) {
                return true;
            }
            chosen.pop();
        }
        false
    }
}

/// Each tree to the best host that has room for it still.
fn first_choices(problem: &Problem, how: Place, trees: &[usize], hosts: &[usize]) -> Placement {
    let (mut room, mut placement) = (Room::of(problem), vec![None; problem.trees.len()]);
    for &tree in trees {
        placement[tree] = room.choices(how, tree, hosts).first().copied();
        if let Some(host) = placement[tree] {
            room.take(tree, host);
        }
    }
    placement
}

/// In which order moves begin so that all of them together end soon: what takes longest first, as what begins last should be
/// short. Of equal ones the first.
pub fn order(times: &[Duration]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|n| Reverse(times[*n]));
    order
}

/// How long moves that begin in this order take, `jobs` at a time.
pub fn makespan(times: impl IntoIterator<Item = Duration>, jobs: usize) -> Duration {
    let mut ends = vec![Duration::ZERO; jobs.max(1)];
    for time in times {
        let soonest = ends.iter_mut().min().expect("there is one job at least");
        *soonest = soonest.saturating_add(time);
    }
    ends.into_iter().max().unwrap_or_default()
}

/// What a move that begins gets of a rate for all of them: `given` is what those have that are under way, `jobs` how many there can
/// still be with this one, `waiting` how many want to begin. All together never have more than the rate; the last one gets the rest.
/// `None`: nothing is left until one has ended.
pub fn share(rate: u64, given: u64, jobs: usize, waiting: usize) -> Option<u64> {
    let share = rate.saturating_sub(given) / jobs.min(waiting).max(1) as u64;
    (share > 0).then_some(share)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
