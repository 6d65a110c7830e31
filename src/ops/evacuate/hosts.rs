//! The hosts that trees are to go to.

use super::plan::Problem;
use crate::blocker::Blocker;
use crate::failure::{Failure, FailureKind, Result};
use crate::ops::check::peers::{self, PeerReport};
use crate::ops::interrupt;
use crate::ops::options::PeerOptions;
use crate::ops::words::Dest;
use crate::transport::Abort;
use std::collections::HashMap;

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) dest: Dest,
    /// Why nothing of this host goes there.
    pub(super) out: Option<Failure>,
    /// It takes what no other one takes (`--alternate`).
    is_alternate: bool,
    /// Whose memory it has: those that run on one machine have the same.
    machine: usize,
}

/// All of them.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    pub(super) each: Vec<Host>,
    /// Memory of each machine that could be taken, bytes.
    free: Vec<Option<u64>>,
}

impl Hosts {
    /// Asks them what they are, all at once; the alternates, too.
    ///
    /// # Errors
    /// None of them can be reached; somebody wants this to end.
    pub(super) fn reach(dests: &[Dest], alternates: &[Dest], options: &PeerOptions, abort: &Abort) -> Result<Self> {
        let reports: Vec<PeerReport> = std::thread::scope(|scope| {
            let all = dests.iter().chain(alternates);
            let asked: Vec<_> = all.map(|dest| scope.spawn(|| peers::reach(dest, options, abort))).collect();
            asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
        });
        interrupt::check()?;
        let hosts = Self::of(&reports, dests.len());
        if reports.iter().all(|report| report.program.is_none()) {
            let mut failure = Failure::new("none of the destinations can be reached").kind(FailureKind::Peer);
            failure.causes = reports.iter().flat_map(|report| report.blockers.iter().map(unreachable)).collect();
            return Err(failure);
        }
        Ok(hosts)
    }

    /// Those from number `first` on are alternates.
    fn of(reports: &[PeerReport], first: usize) -> Self {
        let (mut machines, mut free): (HashMap<&str, usize>, Vec<Option<u64>>) = (HashMap::new(), Vec::new());
        let each = reports.iter().enumerate().map(|(n, report)| {
            let of_its_own = free.len();
            let machine = match report.host.boot_id.as_str() {
                "" => of_its_own,
                boot => *machines.entry(boot).or_insert(of_its_own),
            };
            let bytes = Some(report.host.memory_available_bytes).filter(|bytes| *bytes > 0);
            match free.get_mut(machine) {
                // They are asked one after the other, and it changes all the time.
                Some(known) => *known = (*known).into_iter().chain(bytes).min(),
                None => free.push(bytes),
            }
            Host { dest: report.dest.clone(), out: out(report), is_alternate: n >= first, machine }
        });
        Self { each: each.collect(), free }
    }

    /// Takes bytes off the memory that is free there.
    pub(super) fn take(&mut self, host: usize, bytes: u64) {
        if let Some(free) = &mut self.free[self.each[host].machine] {
            *free = free.saturating_sub(bytes);
        }
    }

    /// Gives them back.
    pub(super) fn give_back(&mut self, host: usize, bytes: u64) {
        if let Some(free) = &mut self.free[self.each[host].machine] {
            *free = free.saturating_add(bytes);
        }
    }

    /// Memory that is free there, bytes.
    pub(super) fn free(&self, host: usize) -> Option<u64> {
        self.free[self.each[host].machine]
    }

    /// What is to be placed, with trees of these sizes: at the alternates, or at the others.
    pub(super) fn problem(&self, trees: Vec<u64>, alternates: bool) -> Problem {
        let is_out = |host: &Host| host.out.is_some() || host.is_alternate != alternates;
        let out = self.each.iter().enumerate().filter(|(_, host)| is_out(host));
        let refused = out.flat_map(|(host, _)| (0..trees.len()).map(move |tree| (tree, host))).collect();
        Problem { hosts: self.each.iter().map(|host| host.machine).collect(), free: self.free.clone(), trees, refused }
    }

    /// Nothing goes there any more.
    pub(super) fn lose(&mut self, host: usize, failure: Failure) {
        self.each[host].out.get_or_insert(failure);
    }
}

fn out(report: &PeerReport) -> Option<Failure> {
    if report.program.is_none() {
        let mut failure = Failure::new(format!("{} cannot be reached", report.dest)).kind(FailureKind::Peer);
        failure.causes = report.blockers.iter().map(|blocker| blocker.reason.clone()).collect();
        return Some(failure);
    }
    let blockers = report.blockers.clone();
    (!blockers.is_empty()).then(|| Failure::blocked(format!("nothing of this host runs on {}", report.dest), blockers))
}

fn unreachable(blocker: &Blocker) -> String {
    format!("{}: {}", blocker.object, blocker.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocker::codes;
    use crate::transport::HostFacts;

    fn report(dest: &str, boot: &str, free: u64) -> PeerReport {
        PeerReport {
            dest: dest.parse().unwrap(),
            program: Some("1".to_owned()),
            host: HostFacts { boot_id: boot.to_owned(), memory_available_bytes: free, ..HostFacts::default() },
            blockers: Vec::new(),
            targets: Vec::new(),
        }
    }

    #[test]
    fn hosts_on_one_machine_have_one_memory() {
        let reports =
            [report("a", "x", 7), report("b", "y", 5), report("c", "x", 6), report("d", "", 0), report("e", "", 3)];
        let mut hosts = Hosts::of(&reports, reports.len());
        assert_eq!(hosts.free, [Some(6), Some(5), None, Some(3)]);
        hosts.take(0, 4);
        assert_eq!([0, 1, 2, 3].map(|host| hosts.free(host)), [Some(2), Some(5), Some(2), None]);
        hosts.give_back(2, 1);
        assert_eq!(hosts.free(0), Some(3));
    }

    #[test]
    fn nothing_is_placed_where_nothing_can_go() {
        let mut unfit = report("a", "x", 7);
        unfit.blockers.push(Blocker::new(codes::CPU_FEATURES, "a"));
        let mut hosts = Hosts::of(&[unfit, report("b", "y", 5), report("c", "z", 5)], 2);
        let refused = |hosts: &Hosts, alternates| {
            hosts.problem(vec![1, 1], alternates).refused.into_iter().map(|(_, host)| host).collect::<Vec<_>>()
        };
        assert_eq!(refused(&hosts, false), [0, 2, 0, 2]);
        assert_eq!(refused(&hosts, true), [0, 1, 0, 1], "the third is an alternate");
        hosts.lose(1, Failure::new("it is lost"));
        assert_eq!(refused(&hosts, false), [0, 1, 2, 0, 1, 2]);
    }
}
