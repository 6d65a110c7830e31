//! Mount namespaces of the tree's own: the table, and the files of what nobody else has mounted.

use super::table::{self, Host};
use super::{content, inside, owner};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Error, Result};
use crate::image::NsId;
use crate::image::ns::NsKind;
use crate::image::ns::mnt::{Content, Mount};
use crate::proc::ProcDir;
use crate::sys::openat2::open_in_root;
use crate::sys::{Errno, mount};
use nix::fcntl::OFlag;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

/// Fills in every mount namespace that is not the host's.
pub fn fill(cx: &mut Cx<'_>) -> Result<()> {
    let own = |n: &crate::image::ns::Namespace| !n.of_host && matches!(n.kind, NsKind::Mnt(_));
    let all: Vec<NsId> =
        (0..cx.model.namespaces.len()).filter(|n| own(&cx.model.namespaces[*n])).map(NsId::from).collect();
    if all.is_empty() {
        return Ok(());
    }
    let host = Host::read(&mut cx.buf)?;
    // A file system that several namespaces have is read once, with the first.
    let mut read = HashSet::new();
    for ns in all {
        let Some(at) = inside(cx, ns, "mnt") else { continue };
        let process = &cx.frozen.processes[at];
        let link = process.dir.open_file("ns/mnt", OFlag::O_RDONLY)?;
        let of = format!("pid {}", process.pid);
        let mounts = process.dir.mountinfo(&mut cx.buf)?;
        let mut mounts = table::sort_out(mounts, &host, &of, &mut cx.blockers);
        // The files come with the mount that shows most of them.
        let mut widest: Vec<usize> = (0..mounts.len()).collect();
        widest.sort_by_key(|n| mounts[*n].root.0.len());
        for n in widest {
            if table::is_carried(&mounts[n]) && read.insert(mounts[n].device) {
                let covers = table::covers(&mounts, &mounts[n]).len() as u32;
                mounts[n].content = carried(&mounts[n], covers, &link, &of, &mut cx.blockers)?;
            }
        }
        let owner = owner(cx, &link);
        let namespace = &mut cx.model.namespaces[ns.at()];
        namespace.owner = owner;
        namespace.kind = NsKind::Mnt(crate::image::ns::mnt::MntNs { mounts });
    }
    Ok(())
}

/// The files of a mount; `None` where a blocker was noted.
fn carried(mount: &Mount, covers: u32, ns: &OwnedFd, of: &str, blockers: &mut Vec<Blocker>) -> Result<Option<Content>> {
    let object = format!("{of}: {} mounted on {}", String::from_utf8_lossy(&mount.fs_type.0), mount.mount_point);
    let found = mount::copy_in(ns.as_fd(), &mount.mount_point.0, covers, mount.unbindable).and_then(|copy| {
        // Something else hides it: a mount further up.
        if nix::sys::stat::fstat(&copy)?.st_dev == mount.device { content::read(copy) } else { Err(Errno::ESTALE) }
    });
    match found {
        Ok(content) => Ok(Some(content)),
        Err(Errno::ESTALE) => {
            let reason = "another mount hides it, and its files cannot be read";
            blockers.push(Blocker::new(codes::MOUNT_KIND, object).because(reason));
            Ok(None)
        }
        Err(Errno::EFBIG) => {
            let limit = content::BYTES_MAX >> 20;
            let reason = format!(
                "its files are more than can travel in the image ({limit} MiB, {} files)",
                content::ENTRIES_MAX
            );
            blockers.push(Blocker::new(codes::MOUNT_KIND, object).because(reason));
            Ok(None)
        }
        Err(errno) => Err(Error::System { operation: "read the files", object, errno }),
    }
}

/// What is in the way of making the mount namespace of a running process again.
///
/// # Errors
/// `/proc` cannot be read.
pub fn look(dir: &ProcDir, of: &str, buf: &mut Vec<u8>, found: &mut Vec<Blocker>) -> crate::proc::Result<()> {
    let host = Host::read(buf)?;
    let mounts = table::sort_out(dir.mountinfo(buf)?, &host, of, found);
    let root = dir.open_file("root", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    for mount in mounts.iter().filter(|m| table::is_carried(m)) {
        let object = format!("{of}: {} mounted on {}", String::from_utf8_lossy(&mount.fs_type.0), mount.mount_point);
        let opened = open_in_root(&root, &mount.mount_point.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32, 0);
        // What lies under another mount is looked at when the tree stands still.
        let Some(opened) = opened.ok().filter(|fd| mount::id_of(fd).is_ok_and(|id| id == mount.id)) else { continue };
        let Ok(stat) = nix::sys::statfs::fstatfs(&opened) else { continue };
        let used = stat.blocks().saturating_sub(stat.blocks_free()) * stat.block_size() as u64;
        let files = stat.files().saturating_sub(stat.files_free());
        if used > content::BYTES_MAX || files > content::ENTRIES_MAX as u64 {
            let limit = content::BYTES_MAX >> 20;
            let reason = format!("its files ({} MiB) are more than can travel in the image ({limit} MiB)", used >> 20);
            found.push(Blocker::new(codes::MOUNT_KIND, object).because(reason));
        }
    }
    Ok(())
}
