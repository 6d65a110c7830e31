//! Tables shared with processes outside the tree (`clone` with CLONE_VM or CLONE_FILES and without CLONE_THREAD).

use super::{Member, reach::object};
use crate::{
    blocker::{Blocker, codes},
    image::Pid,
    proc::{ProcDir, table::Table},
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
    for (kind, name) in KINDS {
        let compare = |a: Pid, b: Pid| kcmp(a, b, kind, 0, 0).ok();
        let inside = ordered(members, compare);
        let outside = table.rows().iter().filter(|r| !tree.contains(&r.pid) && !r.is_kernel() && !r.stat.is_ending());
        for row in outside {
            let at = inside.binary_search_by(|member| compare(member.row.pid, row.pid).unwrap_or(Ordering::Less));
            if let Ok(at) = at
                && is_there(inside[at].row.pid)
                && is_there(row.pid)
            {
                let reason = format!("shares its {name} with {}", object(row));
                found.push(Blocker::new(codes::SHARES_OUTSIDE, object(inside[at].row)).because(reason));
            }
        }
    }
}

/// Whether a process has anything to share. Whoever ends has no tables any more, and is in that like everybody else who ends, also
/// like the first of a PID namespace, which then waits for the others.
fn is_there(pid: Pid) -> bool {
    ProcDir::stat_of_process(pid, &mut Vec::new()).is_ok_and(|stat| !stat.is_ending())
}

/// Names members of a user namespace of their own that share working directory and umask with one another: whoever does
/// cannot enter one (setns(2)).
pub(super) fn places(members: &[Member<'_>], found: &mut Vec<Blocker>) -> crate::proc::Result<()> {
    let own = ProcDir::of_self()?.ns("user")?;
    let compare = |a: Pid, b: Pid| kcmp(a, b, Kcmp::Fs, 0, 0).ok();
    for pair in ordered(members, compare).windows(2) {
        let same = compare(pair[0].row.pid, pair[1].row.pid) == Some(Ordering::Equal);
        if same && pair[0].dir.ns("user").is_ok_and(|ns| ns != own) {
            let shared = object(pair[1].row);
            let reason =
                format!("it has a user namespace of its own, and shares its working directory and umask with {shared}");
            found.push(Blocker::new(codes::NAMESPACE_KIND, object(pair[0].row)).because(reason));
        }
    }
    Ok(())
}

/// Members in the kernel's order of their objects, which is the same for all of this boot. Put in one by one, as the
/// library's sort panics when the order changes: a member that ends meanwhile stands anywhere, and is found by nobody.
fn ordered<'m, 'a>(members: &'m [Member<'a>], compare: impl Fn(Pid, Pid) -> Option<Ordering>) -> Vec<&'m Member<'a>> {
    let mut found: Vec<&Member<'a>> = Vec::with_capacity(members.len());
    for member in members {
        let order = |other: &&Member<'a>| compare(other.row.pid, member.row.pid).unwrap_or(Ordering::Less);
        let at = found.binary_search_by(order).unwrap_or_else(|at| at);
        found.insert(at, member);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{ProcDir, table::tests::row};
    use std::cell::Cell;

    #[test]
    fn an_order_that_changes_meanwhile_is_no_panic() {
        let rows: Vec<_> = (1..200).map(|pid| row(pid, 0, 0)).collect();
        let dir = ProcDir::of_self().unwrap();
        let members: Vec<Member<'_>> = rows.iter().map(|row| Member { row, dir: &dir }).collect();
        let count = Cell::new(0u32);
        // Answers like a host whose processes end all the time.
        let answer = |a: Pid, b: Pid| {
            count.set(count.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
            (count.get() >> 24 & 3 != 0).then(|| if count.get() >> 20 & 1 == 0 { a.cmp(&b) } else { b.cmp(&a) })
        };
        assert_eq!(ordered(&members, answer).len(), members.len());
        let sorted = ordered(&members, |a, b| Some(b.cmp(&a)));
        assert!(sorted.is_sorted_by_key(|member| std::cmp::Reverse(member.row.pid)));
    }
}
