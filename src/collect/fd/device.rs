//! Read from the link: device nodes without state of their own.

use super::State;
use super::views::{Place, path_ref};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::FileId;
use crate::image::fd::{FileKind, device::Device};

/// Path and number of a device node.
pub fn collect(cx: &mut Cx<'_>, state: &mut State, id: FileId) -> Result<Option<FileKind>> {
    let State { set, views, .. } = state;
    let d = &set[id];
    match views.place_of(cx, d)? {
        Place::Named(path, mnt) => {
            let path = path_ref(path, mnt, &d.stat, false);
            Ok(Some(FileKind::Device(Device { path, rdev: d.stat.st_rdev })))
        }
        Place::Deleted(..) | Place::Hidden => {
            cx.blockers.push(Blocker::new(codes::FILE_HIDDEN, d.object()));
            Ok(None)
        }
    }
}
