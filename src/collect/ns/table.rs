//! The mounts of a namespace against those of the host: what is bound from there, what is mounted anew, what is in the way.
//! Pure but for the look whether a path of the host leads to a mount.

use crate::blocker::{Blocker, codes};
use crate::image::Bytes;
use crate::image::ns::mnt::Mount;
use crate::proc::ProcDir;
use crate::sys::{mount, openat2::open_in_root};
use nix::fcntl::OFlag;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

/// File systems that a new mount shows as the old one did: what they hold is the kernel's, or in a namespace.
const MADE_ANEW: [&[u8]; 11] = [
    b"proc",
    b"sysfs",
    b"devpts",
    b"mqueue",
    b"cgroup2",
    b"debugfs",
    b"tracefs",
    b"securityfs",
    b"configfs",
    b"pstore",
    b"fusectl",
];

/// File systems in memory, whose files travel.
const CARRIED: [&[u8]; 2] = [b"tmpfs", b"ramfs"];

/// The host's mounts with a way to them.
pub struct Host {
    root: OwnedFd,
    mounts: Vec<Mount>,
}

impl Host {
    /// The mounts that this program sees.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn read(buf: &mut Vec<u8>) -> crate::proc::Result<Self> {
        let own = ProcDir::of_self()?;
        let root = own.open_file("root", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(Self { root, mounts: own.mountinfo(buf)? })
    }

    /// A path of the host where the same part of the same file system is; mounts at the same place come first.
    fn path_to(&self, mount: &Mount) -> Option<(Bytes, u32)> {
        let same = |m: &&Mount| m.device == mount.device;
        let mut found: Vec<(&Mount, Vec<u8>)> =
            self.mounts.iter().filter(same).filter_map(|m| Some((m, path_below(m, &mount.root.0)?))).collect();
        found.sort_by_key(|(_, path)| *path != mount.mount_point.0);
        found.into_iter().find_map(|(m, path)| {
            // Only what lies over the mount's own root can be told from the table.
            let over = if path == m.mount_point.0 { covers(&self.mounts, m) } else { Vec::new() };
            let top = over.last().unwrap_or(&m.id);
            self.leads_to(&path, *top).then_some((Bytes(path), over.len() as u32))
        })
    }

    fn leads_to(&self, path: &[u8], mount_id: u32) -> bool {
        let opened = open_in_root(&self.root, path, (libc::O_PATH | libc::O_NOFOLLOW) as u32, 0);
        opened.and_then(mount::id_of).is_ok_and(|id| id == mount_id)
    }
}

/// Ids of the mounts that lie over one at its mount point, the lowest first.
pub fn covers(mounts: &[Mount], of: &Mount) -> Vec<u32> {
    let over = |id: u32| mounts.iter().find(|m| m.parent_id == id && m.id != id && m.mount_point == of.mount_point);
    let all = std::iter::successors(over(of.id), |m| over(m.id));
    all.take(mounts.len()).map(|m| m.id).collect()
}

/// Where a mount shows this part of its file system.
fn path_below(mount: &Mount, part: &[u8]) -> Option<Vec<u8>> {
    let strip = |root: &[u8]| if root == b"/" { Vec::new() } else { root.to_vec() };
    let rest = part.strip_prefix(strip(&mount.root.0).as_slice())?;
    if !rest.is_empty() && rest[0] != b'/' {
        return None;
    }
    let rest = if rest == b"/" { b"" } else { rest };
    let path = [strip(&mount.mount_point.0).as_slice(), rest].concat();
    Some(if path.is_empty() { b"/".to_vec() } else { path })
}

/// Parents before what is mounted on them, and what covers a mount after everything else on it: in this order they can be
/// mounted again.
pub fn in_order(mounts: Vec<Mount>) -> Vec<Mount> {
    let ids: HashSet<u32> = mounts.iter().map(|m| m.id).collect();
    let mut below: HashMap<u32, Vec<Mount>> = HashMap::new();
    let mut stack = Vec::new();
    for mount in mounts {
        if ids.contains(&mount.parent_id) && mount.parent_id != mount.id {
            below.entry(mount.parent_id).or_default().push(mount);
        } else {
            stack.push(mount);
        }
    }
    stack.reverse();
    let mut ordered = Vec::new();
    while let Some(mount) = stack.pop() {
        let mut children = below.remove(&mount.id).unwrap_or_default();
        // Else in the order of the file, that of mounting; layers of an overlay may lie in any of the others.
        children.sort_by_key(|c| (c.mount_point == mount.mount_point, c.fs_type.0 == b"overlay"));
        ordered.push(mount);
        stack.extend(children.into_iter().rev());
    }
    ordered
}

/// Fills in where each mount comes from; those that cannot be had again are named. `of` names the target.
pub fn sort_out(mounts: Vec<Mount>, host: &Host, of: &str, blockers: &mut Vec<Blocker>) -> Vec<Mount> {
    let mut mounts = in_order(mounts);
    for mount in &mut mounts {
        if let Some((path, covers)) = host.path_to(mount) {
            (mount.host_path, mount.covers) = (Some(path), covers);
        }
        if mount.host_path.is_none()
            && let Some((code, reason)) = in_the_way(mount)
        {
            let object =
                format!("{of}: {} mounted on {}", String::from_utf8_lossy(&mount.fs_type.0), mount.mount_point);
            blockers.push(Blocker::new(code, object).because(reason));
        }
    }
    let foreign = mounts.iter().filter(|m| m.mount_point.0.ends_with(b"//deleted"));
    blockers.extend(foreign.map(|m| {
        let reason = "the directory it is mounted on was removed";
        Blocker::new(codes::MOUNT_KIND, format!("{of}: {}", m.mount_point)).because(reason)
    }));
    mounts
}

/// Whether the files of a mount travel in the image.
pub fn is_carried(mount: &Mount) -> bool {
    mount.host_path.is_none() && CARRIED.contains(&mount.fs_type.0.as_slice())
}

fn in_the_way(mount: &Mount) -> Option<(crate::blocker::Code, String)> {
    let kind = mount.fs_type.0.as_slice();
    if mount.options.0.split(|b| *b == b',').any(|o| o == b"idmapped") {
        return Some((codes::MOUNT_KIND, "its users are mapped by the mount".to_owned()));
    }
    if MADE_ANEW.contains(&kind) || CARRIED.contains(&kind) {
        return None;
    }
    if kind == b"overlay" {
        return overlay_in_the_way(mount).map(|reason| (codes::MOUNT_KIND, reason));
    }
    if mount.source.0.starts_with(b"/dev/") {
        let reason = format!("the host itself has not mounted {} there or elsewhere", mount.source);
        return Some((codes::MOUNT_OUTSIDE, reason));
    }
    Some((codes::MOUNT_KIND, "the host has it nowhere, and it cannot be mounted anew as it is".to_owned()))
}

/// Layers are found again by their paths.
fn overlay_in_the_way(mount: &Mount) -> Option<String> {
    if mount.root.0 != b"/" {
        return Some("only a part of it is mounted".to_owned());
    }
    let layers = mount.super_options.0.split(|b| *b == b',').filter_map(|option| {
        let at = option.iter().position(|b| *b == b'=')?;
        option[..at].ends_with(b"dir").then(|| &option[at + 1..])
    });
    let relative = layers.flat_map(|l| l.split(|b| *b == b':')).find(|path| !path.starts_with(b"/"));
    relative.map(|path| format!("its layer {} has no absolute path", String::from_utf8_lossy(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: u32, parent: u32, root: &str, point: &str) -> Mount {
        Mount {
            id,
            parent_id: parent,
            device: 1,
            root: Bytes(root.into()),
            mount_point: Bytes(point.into()),
            options: Bytes(b"rw".to_vec()),
            shared: 0,
            master: 0,
            unbindable: false,
            fs_type: Bytes(b"ext4".to_vec()),
            source: Bytes(b"/dev/x".to_vec()),
            super_options: Bytes::default(),
            host_path: None,
            covers: 0,
            content: None,
        }
    }

    #[test]
    fn what_covers_comes_last() {
        let mounts = vec![
            mount(5, 4, "/", "/proc"),
            mount(4, 2, "/", "/proc"),
            mount(6, 4, "/", "/proc/sys"),
            mount(2, 1, "/", "/"),
            mount(7, 2, "/", "/tmp"),
        ];
        let order: Vec<u32> = in_order(mounts).iter().map(|m| m.id).collect();
        assert_eq!(order, [2, 4, 6, 5, 7]);
    }

    #[test]
    fn parts_of_file_systems() {
        let path = |root, point, part: &str| {
            path_below(&mount(1, 0, root, point), part.as_bytes()).map(|p| String::from_utf8(p).unwrap())
        };
        assert_eq!(path("/", "/", "/a/b").as_deref(), Some("/a/b"));
        assert_eq!(path("/", "/", "/").as_deref(), Some("/"));
        assert_eq!(path("/", "/mnt", "/").as_deref(), Some("/mnt"));
        assert_eq!(path("/a", "/mnt", "/a/b").as_deref(), Some("/mnt/b"));
        assert_eq!(path("/a", "/mnt", "/a").as_deref(), Some("/mnt"));
        assert_eq!(path("/a", "/mnt", "/ab"), None);
        assert_eq!(path("/a", "/mnt", "/"), None);
    }
}
