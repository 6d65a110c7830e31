//! `migrate check`: what this host can do, and what stands in the way of a target, here and where it is to go.

pub mod peers;

use super::{
    options::{CheckOptions, Supervisor},
    preflight,
    target::{self, Resolved},
    words::Target,
};
use crate::{
    blocker::Blocker,
    collect::Policy,
    failure::{Failure, FailureKind, Result},
    image::Pid,
    kernel::{self, Answer, Facts, Need, Probe},
    transport::Abort,
};
use peers::PeerReport;

/// One probe with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeLine {
    /// The probe: its name, purpose and what is lost without it.
    pub probe: Probe,
    /// What it found.
    pub answer: Answer,
}

/// What was found of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetReport {
    /// The target as it was named.
    pub target: Target,
    /// Its roots.
    pub roots: Vec<Pid>,
    /// Name of the first root.
    pub comm: String,
    /// Processes, zombies included.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Resident memory, bytes; pages that several of the processes have count for each.
    pub memory_bytes: u64,
    /// A cgroup holds exactly this target, so that it can be stopped all at once.
    pub has_freezer: bool,
    /// Everything in the way.
    pub blockers: Vec<Blocker>,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Facts of this host.
    pub facts: &'static Facts,
    /// Every probe, in the order of [`Probe::ALL`].
    pub probes: Vec<ProbeLine>,
    /// What this host lacks and nothing works without.
    pub blockers: Vec<Blocker>,
    /// Targets, in the order in which they were named.
    pub targets: Vec<TargetReport>,
    /// Destinations, in the order in which they were named.
    pub peers: Vec<PeerReport>,
}

impl Report {
    /// Everything in the way, the host's own first.
    pub fn all_blockers(&self) -> Vec<Blocker> {
        let here = self.blockers.iter().chain(self.targets.iter().flat_map(|t| &t.blockers));
        here.chain(self.peers.iter().flat_map(PeerReport::all_blockers)).cloned().collect()
    }

    /// Nothing needed is missing.
    pub fn is_ok(&self) -> bool {
        self.all_blockers().is_empty()
    }
}

/// Checks this host, the targets that are named, and the destinations. A target with something in its way here is not
/// asked about over there.
///
/// A report with blockers is a success of this function; the command then ends with 3.
///
/// # Errors
/// A target that does not exist, a mask of probes that names none, or a destination that fails while it is asked.
pub fn run(options: &CheckOptions, abort: &Abort) -> Result<Report> {
    let unknown = kernel::unknown_masks();
    if !unknown.is_empty() {
        let failure = Failure::new(format!("{} names no probe: {}", kernel::MASK, unknown.join(", ")));
        return Err(failure.kind(FailureKind::Usage).hint("`migrate check` lists the names"));
    }
    let resolved = options.targets.iter().map(|t| Ok((t, target::resolve(t)?))).collect::<Result<Vec<_>>>()?;
    let probes: Vec<ProbeLine> =
        Probe::ALL.iter().map(|&probe| ProbeLine { probe, answer: probe.answer().clone() }).collect();
    let targets: Vec<TargetReport> =
        resolved.iter().map(|(target, resolved)| report(target, resolved)).collect::<Result<_>>()?;
    let free: Vec<Target> = targets.iter().filter(|t| t.blockers.is_empty()).map(|t| t.target.clone()).collect();
    let peers = options.to.iter().map(|dest| peers::look(dest, &free, options, abort)).collect::<Result<_>>()?;
    Ok(Report { facts: kernel::facts(), blockers: missing(&probes), probes, targets, peers })
}

/// Blockers of the host: required probes that do not answer yes.
fn missing(probes: &[ProbeLine]) -> Vec<Blocker> {
    let required = probes.iter().filter(|line| line.probe.need() == Need::Required);
    required
        .filter_map(|ProbeLine { probe, answer }| {
            let why = match answer {
                Answer::Yes => return None,
                Answer::No(why) => why.clone(),
                Answer::Masked => format!("switched off by {}", kernel::MASK),
            };
            Some(Blocker::new(probe.code(), format!("this host: {}", probe.name())).because(why))
        })
        .collect()
}

fn report(target: &Target, resolved: &Resolved) -> Result<TargetReport> {
    let findings = preflight::look(target, resolved, &Policy::default(), Some(Supervisor::Refuse))?;
    let comm = resolved.dir.comm(&mut Vec::new()).map(|comm| comm.to_string()).unwrap_or_default();
    Ok(TargetReport {
        target: target.clone(),
        roots: resolved.roots.clone(),
        comm,
        processes: findings.processes,
        threads: findings.threads,
        memory_bytes: findings.memory_bytes,
        has_freezer: resolved.freezer.is_some(),
        blockers: findings.blockers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocker::codes;

    #[test]
    fn this_host_and_a_child() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep is installed");
        let target = Target::Pid(Pid(child.id() as i32));
        let report =
            run(&CheckOptions { targets: vec![target.clone()], ..CheckOptions::default() }, &Abort::new().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        let report = report.unwrap();
        assert_eq!(report.probes.len(), Probe::ALL.len());
        let found = &report.targets[0];
        assert_eq!((&found.target, found.processes, found.threads, found.comm.as_str()), (&target, 1, 1, "sleep"));
        // Descriptors that this test was started with are open in every child.
        assert!(found.blockers.iter().all(|b| b.code.group() == 3), "{found:?}");
        assert!(found.memory_bytes > 0);
    }

    #[test]
    fn a_target_that_has_ended_is_a_failure() {
        let mut child = std::process::Command::new("true").spawn().expect("true is installed");
        child.wait().unwrap();
        let target = Target::Pid(Pid(child.id() as i32));
        let failure = run(&CheckOptions { targets: vec![target], ..CheckOptions::default() }, &Abort::new().unwrap())
            .unwrap_err();
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn required_probes_that_fail_block() {
        let line = |probe, answer| ProbeLine { probe, answer };
        let lines = [
            line(Probe::Kcmp, Answer::No("kcmp: Function not implemented".into())),
            line(Probe::SoftDirty, Answer::No("none".into())),
            line(Probe::Ptrace, Answer::Masked),
            line(Probe::Clone3, Answer::Yes),
        ];
        let blockers = missing(&lines);
        assert_eq!(
            blockers.iter().map(|b| b.code).collect::<Vec<_>>(),
            [codes::KERNEL_OPTION, codes::PTRACE_FORBIDDEN]
        );
        assert_eq!(blockers[0].reason, "kcmp: Function not implemented");
        assert!(blockers[0].object.contains("kcmp"));
    }
}
