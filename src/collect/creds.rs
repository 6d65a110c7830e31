//! Credentials and seccomp of a thread.

use super::{Cx, Result};
use crate::blocker::codes;
use crate::image::SeccompFilterId;
use crate::image::creds::{Creds, Seccomp, SeccompFilter};
use crate::proc::status::Status;
use crate::trace;

/// Ids and capabilities as /proc shows them to us: outside ids, translated at restore where a user namespace is made.
pub fn collect(status: &Status, securebits: u32) -> Creds {
    Creds {
        uids: status.uids,
        gids: status.gids,
        groups: status.groups.clone(),
        caps: status.caps,
        securebits,
        no_new_privs: status.no_new_privs,
    }
}

/// Filters of a thread; equal programs are stored once.
pub fn seccomp(cx: &mut Cx<'_>, at: usize, n: usize, status: &Status) -> Result<Seccomp> {
    match status.seccomp {
        0 => return Ok(Seccomp::Disabled),
        1 => return Ok(Seccomp::Strict),
        _ => {}
    }
    let remote = &cx.frozen.processes[at].threads[n];
    let tid = remote.pid();
    let filters = match remote.tracee().seccomp_filters() {
        Ok(filters) => filters,
        Err(trace::Error::Ptrace { errno, .. }) => {
            cx.block(
                codes::SECCOMP_FILTER,
                format!("task {tid}"),
                format!("its seccomp filters cannot be read: {errno}"),
                "run migrate as root, outside of any seccomp filter",
            );
            return Ok(Seccomp::Disabled);
        }
        Err(e) => return Err(e.into()),
    };
    let mut ids = Vec::new();
    // The oldest comes first, and is installed first again.
    for (flags, program) in filters {
        let filter = SeccompFilter { flags, program };
        let known = cx.model.seccomp_filters.iter().position(|f| *f == filter);
        let id = known.unwrap_or_else(|| {
            cx.model.seccomp_filters.push(filter);
            cx.model.seccomp_filters.len() - 1
        });
        ids.push(SeccompFilterId::from(id));
    }
    Ok(Seccomp::Filter(ids))
}
