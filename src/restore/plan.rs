//! What is made in which order, and where our scratch area can lie: pure.

use super::{Error, Result};
use crate::arch::USER_END;
use crate::image::mm::PAGE;
use crate::image::{Model, NsPid, TaskId};
use crate::trace::remote::DATA_LEN;
use std::collections::BTreeSet;

/// The order of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Tasks, parents before children.
    pub order: Vec<TaskId>,
    /// Where the scratch area lies in every skeleton: free in all their layouts, and in ours.
    pub scratch: u64,
    /// Leaders of process groups that have ended while members live: a helper takes the id while the group is made.
    pub dead_groups: Vec<(NsPid, NsPid)>,
}

/// Plans the restore of a model.
pub fn plan(model: &Model) -> Result<Plan> {
    let order = (0..model.tasks.len()).map(TaskId::from).collect();
    Ok(Plan { order, scratch: scratch(model)?, dead_groups: dead_groups(model) })
}

/// The same for a tree whose scratch area lies somewhere already; see [`is_free`].
pub fn with_scratch(model: &Model, scratch: u64) -> Plan {
    let order = (0..model.tasks.len()).map(TaskId::from).collect();
    Plan { order, scratch, dead_groups: dead_groups(model) }
}

/// Whether a scratch area at this address is in the way of no mapping.
pub fn is_free(model: &Model, scratch: u64) -> bool {
    let end = scratch + PAGE + DATA_LEN;
    model.mms.iter().flat_map(|mm| mm.vmas.iter()).all(|v| v.end <= scratch || v.start >= end)
}

/// (group, session) of groups whose leader is not in the tree. That of a session comes with the session.
fn dead_groups(model: &Model) -> Vec<(NsPid, NsPid)> {
    let pids: BTreeSet<NsPid> = model.tasks.iter().map(|t| t.pid).collect();
    // A terminal may still have a foreground group whose last member has ended.
    let foreground = model.ptys.iter().filter(|pty| pids.contains(&pty.sid)).map(|pty| (pty.pgid, pty.sid));
    let groups: BTreeSet<(NsPid, NsPid)> = model
        .tasks
        .iter()
        .map(|t| (t.pgid, t.sid))
        .chain(foreground)
        .filter(|(pgid, sid)| pgid.0 != 0 && pgid != sid && !pids.contains(pgid))
        .collect();
    groups.into_iter().collect()
}

/// A hole of the size of a scratch area in all address spaces at once.
fn scratch(model: &Model) -> Result<u64> {
    let need = PAGE + DATA_LEN + 2 * PAGE;
    let mut taken: Vec<(u64, u64)> =
        model.mms.iter().flat_map(|mm| mm.vmas.iter()).map(|v| (v.start, v.end)).chain(own_mappings()).collect();
    // A stack needs its guard gap to grow; stay 16 MiB below one.
    let stacks = model.mms.iter().flat_map(|mm| mm.vmas.iter()).filter(|v| v.grows_down);
    taken.extend(stacks.map(|v| (v.start.saturating_sub(16 << 20), v.end)));
    taken.sort_unstable();
    let mut from = 0x1_0000_0000;
    for (start, end) in taken {
        if start >= from + need {
            break;
        }
        from = from.max(end);
    }
    if from + need > USER_END {
        return Err(Error::Impossible {
            object: "address space".to_owned(),
            reason: "no room for a scratch area that is free in every process".to_owned(),
        });
    }
    Ok((from + PAGE).next_multiple_of(PAGE))
}

/// Our own mappings: a skeleton begins as a copy of us.
fn own_mappings() -> Vec<(u64, u64)> {
    let maps = crate::proc::ProcDir::of_self().and_then(|d| d.maps(&mut Vec::new()));
    maps.unwrap_or_default().iter().map(|m| (m.start, m.end)).collect()
}
