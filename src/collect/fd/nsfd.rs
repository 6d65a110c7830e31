//! Read from the inode number: descriptors of namespaces.

use super::set::Description;
use crate::blocker::{Blocker, codes};
use crate::collect::Cx;
use crate::image::NsId;
use crate::image::fd::{FileKind, nsfd::NsFd};

/// The namespace, which has to be one of the tree's or the host's own.
pub fn collect(cx: &mut Cx<'_>, d: &Description) -> Option<FileKind> {
    match cx.model.namespaces.iter().position(|n| n.inode == d.stat.st_ino) {
        Some(known) => Some(FileKind::Namespace(NsFd { ns: NsId::from(known) })),
        None => {
            cx.blockers.push(Blocker::new(codes::NAMESPACE_OUTSIDE, d.object()));
            None
        }
    }
}
