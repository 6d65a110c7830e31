//! Tables shared with processes outside the tree (`clone` with CLONE_VM or CLONE_FILES and without CLONE_THREAD).

use super::{Member, reach::object};
use crate::{
    blocker::{Blocker, codes},
    image::Pid,
    proc::table::Table,
    sys::fd::{Kcmp, kcmp},
};
use std::{cmp::Ordering, collections::HashSet};

const KINDS: [(Kcmp, &str); 4] = [
    (Kcmp::Vm, "address space"),
    (Kcmp::Files, "descriptor table"),
    (Kcmp::Fs, "working directory and umask"),
    (Kcmp::Sighand, "signal handlers"),
];

/// Names members that share something with a process outside. Processes that may not be looked at are passed over: what
/// shares with the tree was made by one of its relatives, and runs as the same user as a rule.
pub(super) fn tables(table: &Table, members: &[Member<'_>], found: &mut Vec<Blocker>) {
    let tree: HashSet<Pid> = members.iter().map(|m| m.row.pid).collect();
    let mut inside: Vec<&Member<'_>> = members.iter().collect();
    for (kind, name) in KINDS {
        let compare = |a: Pid, b: Pid| kcmp(a, b, kind, 0, 0).ok();
        // The kernel's order is the same for all of this boot; a member that has ended sorts anywhere.
        inside.sort_by(|a, b| compare(a.row.pid, b.row.pid).unwrap_or(Ordering::Equal));
        let outside = table.rows().iter().filter(|r| !tree.contains(&r.pid) && !r.is_kernel() && !r.stat.is_zombie());
        for row in outside {
            let at = inside.binary_search_by(|member| compare(member.row.pid, row.pid).unwrap_or(Ordering::Less));
            if let Ok(at) = at {
                let reason = format!("shares its {name} with {}", object(row));
                found.push(Blocker::new(codes::SHARES_OUTSIDE, object(inside[at].row)).because(reason));
            }
        }
    }
}
