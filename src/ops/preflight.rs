//! The preflight of every operation that saves a target: all that is in the way, before anything is stopped.

use super::{Event, Events, options::Supervisor, supervisor, target::Resolved, words::Target};
use crate::{
    collect::{
        Policy,
        preflight::{self, Findings},
    },
    failure::{Failure, Result},
};

/// Looks at a target while it runs. `ends_here` tells what to do about whoever would start the target again; `None` for
/// operations after which it runs on.
///
/// # Errors
/// `/proc` cannot be read.
pub fn look(target: &Target, resolved: &Resolved, policy: &Policy, ends_here: Option<Supervisor>) -> Result<Findings> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::of(format!("Cannot look at {target}"), e);
    let mut findings = preflight::run(&resolved.table, &resolved.processes, policy).map_err(|e| failed(&e))?;
    if let Some(choice) = ends_here {
        let choice = supervisor::choice(target, choice);
        let watched = supervisor::look(&resolved.table, &resolved.roots, &resolved.processes, choice);
        findings.blockers.extend(watched.blockers);
        findings.warnings.extend(watched.warnings);
    }
    Ok(findings)
}

/// Looks at a target until its processes are the same before and after, if anything is in the way: what was made or has
/// ended in that moment makes a descriptor seem to be held by a stranger.
///
/// # Errors
/// It names no target; and those of [`look`].
pub fn look_again(target: &Target, policy: &Policy, ends_here: Option<Supervisor>) -> Result<(Resolved, Findings)> {
    const LOOKS: u32 = 10;
    let mut resolved = super::target::resolve(target)?;
    for _ in 1..LOOKS {
        let findings = look(target, &resolved, policy, ends_here)?;
        let now = super::target::resolve(target)?;
        if findings.blockers.is_empty() || now.processes == resolved.processes {
            return Ok((resolved, findings));
        }
        resolved = now;
    }
    let findings = look(target, &resolved, policy, ends_here)?;
    Ok((resolved, findings))
}

/// The same as [`look`], told to `events`; a target with blockers is refused.
///
/// # Errors
/// [`crate::failure::FailureKind::Blocked`] with everything in the way, and those of [`look`].
pub fn pass(
    target: &Target,
    resolved: &Resolved,
    policy: &Policy,
    ends_here: Option<Supervisor>,
    events: &dyn Events,
) -> Result<Findings> {
    let findings = look(target, resolved, policy, ends_here)?;
    events.event(Event::Preflight {
        blockers: findings.blockers.clone(),
        tasks: findings.threads,
        memory_bytes: findings.memory_bytes,
    });
    if findings.blockers.is_empty() {
        warn(&findings, events);
        return Ok(findings);
    }
    Err(Failure::blocked(format!("{target} cannot be saved"), findings.blockers))
}

/// Tells what a person should know.
pub fn warn(findings: &Findings, events: &dyn Events) {
    for warning in &findings.warnings {
        events.event(Event::Warning(warning.clone()));
    }
}
