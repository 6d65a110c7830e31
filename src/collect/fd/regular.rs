//! Read from link and `stat`: regular files, directories, anything opened with `O_PATH`.

use super::classify::magic;
use super::views::{Place, path_ref};
use super::{State, ghost};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::FileId;
use crate::image::fd::FileKind;
use crate::image::fd::regular::{GhostFile, Regular};

/// A file by its path, or a deleted one with its content.
pub fn collect(cx: &mut Cx<'_>, state: &mut State, id: FileId) -> Result<Option<FileKind>> {
    let State { set, views, .. } = state;
    let d = &set[id];
    let comparable = !magic::PSEUDO.contains(&set.magic_of(d.stat.st_dev));
    match views.place_of(cx, d)? {
        Place::Named(path, mnt) => {
            let path = path_ref(path, mnt, &d.stat, comparable);
            Ok(Some(FileKind::Regular(Regular { path })))
        }
        Place::Deleted(path, mnt) => {
            let (stat, object, file) = (d.stat, d.object(), set.duplicate(id)?);
            let found = ghost::Found { stat: &stat, path, mnt, file: &file, object: &object };
            let ghost = ghost::collect(cx, views, found)?;
            Ok(ghost.map(|ghost| FileKind::Ghost(GhostFile { ghost })))
        }
        Place::Hidden => {
            cx.blockers.push(Blocker::new(codes::FILE_HIDDEN, d.object()));
            Ok(None)
        }
    }
}
