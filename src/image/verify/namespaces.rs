//! Namespaces and cgroups.

use super::{Checker, circle};
use crate::image::ns::{NsKind, mnt::Mount};
use std::collections::HashSet;

/// Lines of an id map: the kernel's `UID_GID_MAP_MAX_EXTENTS`.
const ID_MAP: usize = 340;
/// `__NEW_UTS_LEN`.
const HOST_NAME: usize = 64;

pub(super) fn check(c: &mut Checker<'_>) {
    let model = c.model;
    c.each("namespaces", &model.namespaces, |c, _, ns| {
        if let Some(owner) = ns.owner {
            c.namespace(owner, "owner", "user");
        }
        match &ns.kind {
            NsKind::Pid { parent: Some(parent) } => c.namespace(*parent, "kind.parent", "pid"),
            NsKind::User(user) => {
                for (map, step) in [(&user.uid_map, "kind.uid_map"), (&user.gid_map, "kind.gid_map")] {
                    c.must(map.len() <= ID_MAP, step, "has more lines than a kernel takes");
                    let fits = |first: u32, count: u32| u64::from(first) + u64::from(count) <= 1 << 32;
                    let sane = map.iter().all(|m| m.count > 0 && fits(m.inside, m.count) && fits(m.outside, m.count));
                    c.must(sane, step, "has a line that maps ids which are none");
                }
            }
            NsKind::Uts { hostname, domainname } => {
                c.text(hostname, "kind.hostname", HOST_NAME);
                c.text(domainname, "kind.domainname", HOST_NAME);
            }
            NsKind::Mnt(mnt) => mounts(c, &mnt.mounts),
            _ => {}
        }
    });
    let count = model.namespaces.len();
    if let Some(n) = circle(count, |n| model.namespaces[n].owner.map(|o| o.at())) {
        c.flaw(&format!("namespaces[{n}].owner"), "is its own ancestor");
    }
    let parent = |n: usize| match &model.namespaces[n].kind {
        NsKind::Pid { parent } => parent.map(|p| p.at()),
        _ => None,
    };
    if let Some(n) = circle(count, parent) {
        c.flaw(&format!("namespaces[{n}].kind.parent"), "is its own ancestor");
    }
    c.each("cgroups", &model.cgroups, |c, _, set| {
        c.each("memberships", &set.memberships, |c, _, membership| c.path_bytes(&membership.path, "path"));
    });
}

fn mounts(c: &mut Checker<'_>, mounts: &[Mount]) {
    let all: HashSet<u32> = mounts.iter().map(|m| m.id).collect();
    c.must(all.len() == mounts.len(), "kind.mounts", "have an id twice");
    let mut seen = HashSet::new();
    for mount in mounts {
        // The namespace's root is mounted on something outside of it.
        let known = !all.contains(&mount.parent_id) || seen.contains(&mount.parent_id) || mount.parent_id == mount.id;
        c.must(known, "kind.mounts", "a mount comes before what it is mounted on");
        c.path_bytes(&mount.mount_point, "kind.mounts.mount_point");
        seen.insert(mount.id);
    }
}
