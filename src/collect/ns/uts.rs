//! UTS namespaces of the tree's own: their names.

use super::{inside, owner};
use crate::collect::{Cx, Error, Result};
use crate::image::ns::NsKind;
use crate::image::{Bytes, NsId};
use nix::fcntl::OFlag;
use std::os::fd::AsFd;

/// Fills in every UTS namespace that is not the host's.
pub fn fill(cx: &mut Cx<'_>) -> Result<()> {
    for n in 0..cx.model.namespaces.len() {
        let namespace = &cx.model.namespaces[n];
        if namespace.of_host || !matches!(namespace.kind, NsKind::Uts { .. }) {
            continue;
        }
        let Some(at) = inside(cx, NsId::from(n), "uts") else { continue };
        let link = cx.frozen.processes[at].dir.open_file("ns/uts", OFlag::O_RDONLY)?;
        let (host, domain) = crate::sys::uts::names(link.as_fd()).map_err(|errno| Error::System {
            operation: "read the names",
            object: format!("UTS namespace of process {}", cx.frozen.processes[at].pid),
            errno,
        })?;
        let owner = owner(cx, &link);
        let namespace = &mut cx.model.namespaces[n];
        namespace.owner = owner;
        namespace.kind = NsKind::Uts { hostname: Bytes(host), domainname: Bytes(domain) };
    }
    Ok(())
}
