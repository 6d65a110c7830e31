//! What two hosts have to agree about that no model holds: who is meant by a number, and what time it is. Where they do not, a
//! target runs all the same, as the same numbers; a person is told.

use crate::image::{Model, task::Task};
use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clocks that differ by less than this are taken for the same: it is more than a model takes on its way.
const CLOCKS_MAY_DIFFER: Duration = Duration::from_secs(2);

/// Names longer than this are cut where they are told: they come from a peer.
const NAME_MAX: usize = 64;

/// As the source has them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Conventions {
    /// Users whom tasks of the target run as, with their names.
    pub users: Vec<(u32, String)>,
    /// Groups they are in, with their names.
    pub groups: Vec<(u32, String)>,
    /// Time of day, milliseconds since 1970; `None` = unknown.
    pub clock_ms: Option<u64>,
}

impl Conventions {
    /// For this target, here and now. Ids in user namespaces of its own name nobody of the host.
    pub fn of(model: &Model) -> Self {
        let (mut users, mut groups) = (BTreeSet::new(), BTreeSet::new());
        let of_host =
            |task: &&Task| model.namespaces.get(task.namespaces.user.at()).is_none_or(|namespace| namespace.of_host);
        for creds in model.tasks.iter().filter(of_host).flat_map(|task| &task.threads).map(|thread| &thread.creds) {
            users.extend(creds.uids);
            groups.extend(creds.gids.iter().chain(&creds.groups));
        }
        let named = |name: fn(u32) -> Option<String>, ids: BTreeSet<u32>| {
            ids.into_iter().filter_map(|id| Some((id, name(id)?))).collect()
        };
        Self { users: named(user, users), groups: named(group, groups), clock_ms: now_ms() }
    }

    /// In which of them this host differs, in words for the source's user.
    pub fn differences(&self) -> Vec<String> {
        let users = self.users.iter().filter_map(|(id, name)| differs("user", *id, name, user(*id)));
        let groups = self.groups.iter().filter_map(|(id, name)| differs("group", *id, name, group(*id)));
        let clock = self.clock_ms.zip(now_ms()).and_then(|(theirs, ours)| apart(theirs, ours));
        users.chain(groups).chain(clock).collect()
    }
}

fn user(id: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(id)).ok().flatten().map(|user| user.name)
}

fn group(id: u32) -> Option<String> {
    Group::from_gid(Gid::from_raw(id)).ok().flatten().map(|group| group.name)
}

fn now_ms() -> Option<u64> {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

fn differs(what: &str, id: u32, theirs: &str, ours: Option<String>) -> Option<String> {
    let short = |name: &str| name.chars().take(NAME_MAX).collect::<String>();
    match ours {
        Some(ours) if ours == theirs => None,
        Some(ours) => Some(format!("{what} {id}, {} at the source, is {} there", short(theirs), short(&ours))),
        None => Some(format!("{what} {id}, {} at the source, has no name there", short(theirs))),
    }
}

fn apart(theirs_ms: u64, ours_ms: u64) -> Option<String> {
    let difference = Duration::from_millis(ours_ms.abs_diff(theirs_ms));
    let how = if ours_ms > theirs_ms { "ahead of" } else { "behind" };
    (difference > CLOCKS_MAY_DIFFER)
        .then(|| format!("the clock there is {} s {how} that of the source", difference.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_host_differs_in_nothing_and_another_in_each() {
        let root = || (0, user(0).expect("root has a name"));
        let here = Conventions { users: vec![root()], groups: vec![(0, group(0).unwrap())], clock_ms: now_ms() };
        assert_eq!(here.differences(), [""; 0]);
        let nobody = u32::MAX - 7;
        let there = Conventions {
            users: vec![(0, "toor".into()), (nobody, "x".repeat(1000))],
            groups: vec![(0, "wheel".into())],
            clock_ms: now_ms().map(|now| now - 60_000),
        };
        let said = there.differences();
        assert_eq!(said.len(), 4, "{said:?}");
        assert_eq!(said[0], "user 0, toor at the source, is root there");
        assert!(said[1].ends_with("has no name there") && said[1].len() < 128, "{said:?}");
        assert!(said[2].starts_with("group 0, wheel"), "{said:?}");
        assert!(said[3].ends_with("s ahead of that of the source"), "{said:?}");
        assert_eq!(Conventions { clock_ms: None, ..Conventions::default() }.differences(), [""; 0]);
    }

    #[test]
    fn clocks_are_told_only_where_they_matter() {
        assert_eq!(apart(10_000, 11_999), None);
        assert_eq!(apart(10_000, 5_000).unwrap(), "the clock there is 5 s behind that of the source");
    }
}
