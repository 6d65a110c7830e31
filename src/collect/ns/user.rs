//! User namespaces of the tree's own: maps and owner.

use super::{inside, owner};
use crate::collect::{Cx, Error, Result};
use crate::image::NsId;
use crate::image::ns::{NsKind, user::UserNs};
use crate::sys::nsfs;
use nix::fcntl::OFlag;

/// Fills in every user namespace that is not the host's.
pub fn fill(cx: &mut Cx<'_>) -> Result<()> {
    for n in 0..cx.model.namespaces.len() {
        let ns = NsId::from(n);
        let namespace = &cx.model.namespaces[n];
        if namespace.of_host || !matches!(namespace.kind, NsKind::User(_)) {
            continue;
        }
        let Some(at) = inside(cx, ns, "user") else { continue };
        let dir = &cx.frozen.processes[at].dir;
        let link = dir.open_file("ns/user", OFlag::O_RDONLY)?;
        let owner_uid = nsfs::owner_uid(&link).map_err(|errno| Error::System {
            operation: "ioctl NS_GET_OWNER_UID",
            object: format!("user namespace of process {}", cx.frozen.processes[at].pid),
            errno,
        })?;
        let user = UserNs {
            uid_map: dir.uid_map(&mut cx.buf)?,
            gid_map: dir.gid_map(&mut cx.buf)?,
            setgroups_denied: dir.setgroups_denied(&mut cx.buf)?,
            owner_uid,
        };
        // For a user namespace that is its parent.
        let owner = owner(cx, &link);
        let namespace = &mut cx.model.namespaces[n];
        namespace.owner = owner;
        namespace.kind = NsKind::User(user);
    }
    Ok(())
}
