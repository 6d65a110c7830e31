//! Namespaces and cgroups.

use super::{Checker, circle};
use crate::image::limits;
use crate::image::ns::{NsKind, mnt::Entry, mnt::Mount};
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
    c.each("frozen", &model.frozen, |c, _, membership| c.path_bytes(&membership.path, "path"));
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
        if let Some(path) = &mount.host_path {
            c.path_bytes(path, "kind.mounts.host_path");
        }
        if let Some(content) = &mount.content {
            entries(c, &content.entries);
        }
        seen.insert(mount.id);
    }
}

/// Files are made by their paths, as root: none may lead through anything but directories of the same list.
fn entries(c: &mut Checker<'_>, entries: &[Entry]) {
    const STEP: &str = "kind.mounts.content.entries";
    let directory = |e: &Entry| e.mode & 0o170_000 == 0o040_000;
    let mut directories: HashSet<&[u8]> = HashSet::new();
    for (n, entry) in entries.iter().enumerate() {
        let path = entry.path.0.as_slice();
        c.text(&entry.path, STEP, limits::PATH);
        c.text(&entry.target, STEP, limits::PATH);
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (b"".as_slice(), path),
        };
        let named = !name.is_empty() && name != b"." && name != b"..";
        let placed = if n == 0 { path.is_empty() } else { named && directories.contains(parent) };
        c.must(placed, STEP, "has a path that does not lead from directory to directory");
        let linked = entry.link_of.is_none_or(|of| (of as usize) < n && !directory(&entries[of as usize]));
        c.must(linked, STEP, "is another name of what is not there before it");
        let within = entry
            .extents
            .iter()
            .all(|(at, bytes)| at.checked_add(bytes.0.len() as u64).is_some_and(|end| end <= entry.size));
        c.must(within, STEP, "has content beyond its end");
        if directory(entry) && !directories.insert(path) {
            c.flaw(STEP, "comes twice");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::image::ns::mnt::{Content, Entry, MntNs, Mount};
    use crate::image::ns::{Namespace, NsKind};
    use crate::image::{Bytes, arbitrary, verify};

    fn flaws(paths: &[(&str, u32)]) -> Vec<String> {
        let entry = |(path, mode): &(&str, u32)| Entry {
            path: Bytes(path.as_bytes().to_vec()),
            mode: *mode,
            ..Entry::default()
        };
        let entries = paths.iter().map(entry).collect();
        let mut mount: Mount = arbitrary::value(&[]);
        mount.mount_point = Bytes(b"/mnt".to_vec());
        mount.content = Some(Content { entries });
        let mut model = crate::image::tests::sample();
        let kind = NsKind::Mnt(MntNs { mounts: vec![mount] });
        model.namespaces.push(Namespace { inode: 1, of_host: false, owner: None, kind });
        verify::model(&model).err().map(|e| e.flaws.into_iter().map(|f| f.what).collect()).unwrap_or_default()
    }

    #[test]
    fn files_stay_below_their_mount() {
        const DIR: u32 = 0o040_755;
        const FILE: u32 = 0o100_644;
        const LINK: u32 = 0o120_777;
        assert_eq!(flaws(&[("", DIR), ("a", DIR), ("a/b", FILE)]), [""; 0]);
        for bad in [
            &[("", DIR), ("a", LINK), ("a/b", FILE)][..],
            &[("", DIR), ("..", DIR), ("../b", FILE)],
            &[("", DIR), ("/etc/b", FILE)],
            &[("a", DIR)],
            &[("", DIR), ("a", DIR), ("a/..", FILE)],
        ] {
            assert!(!flaws(bad).is_empty(), "{bad:?}");
        }
    }
}
