//! Made by a short-lived child of the engine, named by a thread: UTS namespaces.

use super::{Made, failed, user};
use crate::image::ns::NsKind;
use crate::image::{Model, NsId};
use crate::restore::Result;
use std::os::fd::AsFd;

/// Makes the UTS namespaces of the model.
pub(super) fn make(model: &Model, made: &mut Made) -> Result<()> {
    for (n, namespace) in model.namespaces.iter().enumerate() {
        let NsKind::Uts { hostname, domainname } = &namespace.kind else { continue };
        if namespace.of_host {
            continue;
        }
        let owner = namespace.owner.and_then(|owner| made.users.get(&owner));
        let ns = user::namespace_of(owner, libc::CLONE_NEWUTS, "uts")?;
        crate::sys::uts::set_names(ns.as_fd(), &hostname.0, &domainname.0).map_err(failed("sethostname", "UTS"))?;
        made.names.insert(NsId::from(n), ns);
    }
    Ok(())
}
