//! Read from fdinfo, paths by file handle: inotify(7).

use super::State;
use super::views::{View, Views, mnt_of, path_ref};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::fd::FileKind;
use crate::image::fd::inotify::{Inotify, Watch};
use crate::image::ns::NsKind;
use crate::image::{Bytes, FileId, NsId};
use crate::proc::ProcDir;
use crate::proc::fdinfo::{Detail, InotifyWatch};
use crate::sys::{file_handle, pipe};
use nix::sys::stat::{FileStat, fstat};
use std::os::fd::{AsRawFd, OwnedFd};

/// Mounts of one file system that are tried.
const MOUNTS_MAX: usize = 64;

/// Watches with their paths. Events that were not read are in the way: to look at one is to take it out of the queue (read(2)
/// has no way to peek, fdinfo shows none), and nothing puts it back for a program that goes on after all.
pub fn collect(cx: &mut Cx<'_>, state: &mut State, id: FileId, fd: &OwnedFd) -> Result<Option<FileKind>> {
    let State { set, views, .. } = state;
    let d = &set[id];
    let waiting = pipe::readable(fd).map_err(d.failed("ioctl FIONREAD"))?;
    if waiting != 0 {
        let reason = format!("{waiting} bytes of events are in its queue");
        cx.blockers.push(Blocker::new(codes::INOTIFY_EVENTS, d.object()).because(reason));
        return Ok(None);
    }
    let Detail::Inotify(found) = &d.info.detail else {
        return Ok(Some(FileKind::Inotify(Inotify { watches: Vec::new() })));
    };
    let mut watches = Vec::with_capacity(found.len());
    let own = mnt_of(cx, d.at);
    for watch in found {
        match locate(cx, views, own, watch)? {
            Some((path, mnt, stat)) => {
                let path = path_ref(path, mnt, &stat, false);
                watches.push(Watch { wd: watch.wd, path, mask: watch.mask });
            }
            None => {
                let reason = format!("watch {} is of inode {} on device {:#x}", watch.wd, watch.ino, watch.device);
                cx.blockers.push(Blocker::new(codes::INOTIFY_PATH, d.object()).because(reason));
            }
        }
    }
    watches.sort_by_key(|w| w.wd);
    Ok(Some(FileKind::Inotify(Inotify { watches })))
}

/// Finds a path of a watched file, in the task's own mount namespace or another one of the tree.
fn locate(
    cx: &mut Cx<'_>,
    views: &mut Views,
    own: NsId,
    watch: &InotifyWatch,
) -> Result<Option<(Bytes, NsId, FileStat)>> {
    let is_mnt = |n: &crate::image::ns::Namespace| matches!(n.kind, NsKind::Mnt(_));
    let all = cx.model.namespaces.iter().enumerate().filter(|(_, n)| is_mnt(n)).map(|(n, _)| NsId::from(n));
    let others: Vec<NsId> = all.filter(|ns| *ns != own).collect();
    for ns in std::iter::once(own).chain(others) {
        let Some(view) = views.of(cx, ns)? else { continue };
        if let Some((path, stat)) = in_view(view, watch)? {
            return Ok(Some((path, ns, stat)));
        }
    }
    Ok(None)
}

fn in_view(view: &View, watch: &InotifyWatch) -> Result<Option<(Bytes, FileStat)>> {
    for mount in view.mounts_of(watch.device).take(MOUNTS_MAX) {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let Ok(mount) = view.open(&mount.mount_point.0, flags) else { continue };
        let Ok(file) = file_handle::open(&mount, watch.handle_type, &watch.handle.0, libc::O_PATH) else { continue };
        let path = ProcDir::of_self()?.readlink(&format!("fd/{}", file.as_raw_fd()))?;
        let Ok(stat) = fstat(&file) else { continue };
        if view.leads_to(&path.0, (stat.st_dev, stat.st_ino)) {
            return Ok(Some((path, stat)));
        }
    }
    Ok(None)
}
