//! Namespaces of the tree's own, made before anything is opened in them; tasks enter them once they are there.
//!
//! Mount namespaces are made by a thread of ours ([`mnt`]), user namespaces by a short-lived child ([`user`]). A descriptor
//! keeps each alive until tasks are in it.

pub mod content;
pub mod enter;
pub mod ids;
pub mod mnt;
pub mod user;
pub mod uts;

use super::{Error, Options, Result};
use crate::blocker::{Blocker, codes};
use crate::image::ns::NsKind;
use crate::image::{Bytes, Model, NsId};
use crate::sys::Errno;
use crate::sys::openat2::open_in_root;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The namespaces that were made, by their number in the model.
#[derive(Debug, Default)]
pub struct Made {
    mounts: HashMap<NsId, mnt::MadeMnt>,
    users: HashMap<NsId, OwnedFd>,
    /// UTS namespaces.
    names: HashMap<NsId, OwnedFd>,
}

impl Made {
    /// Root directory of a mount namespace.
    pub fn root(&self, ns: NsId) -> Option<&OwnedFd> {
        self.mounts.get(&ns).map(|made| &made.root)
    }

    /// Descriptor of a mount namespace; skeletons have it under the same number.
    pub fn mnt(&self, ns: NsId) -> Option<RawFd> {
        self.mounts.get(&ns).map(|made| made.ns.as_raw_fd())
    }

    /// What the first task of a mount namespace has to mount.
    pub fn late(&self, ns: NsId) -> &[mnt::Late] {
        self.mounts.get(&ns).map_or(&[], |made| &made.late)
    }

    /// Descriptor of a UTS namespace; skeletons have it under the same number.
    pub fn names(&self, ns: NsId) -> Option<RawFd> {
        self.names.get(&ns).map(AsRawFd::as_raw_fd)
    }

    /// Descriptor of a user namespace; skeletons have it under the same number.
    pub fn user(&self, ns: NsId) -> Option<RawFd> {
        self.users.get(&ns).map(AsRawFd::as_raw_fd)
    }
}

/// Makes what the tree has of its own.
///
/// # Errors
/// [`Error::File`] names what a mount needs and the host has not.
pub fn make(model: &Model, options: &Options, warnings: &mut Vec<String>) -> Result<Made> {
    let mut made = Made::default();
    user::make(model, &mut made)?;
    uts::make(model, &mut made)?;
    mnt::make(model, options, &mut made, warnings)?;
    Ok(made)
}

/// The mounts of a namespace, if it is one that is made.
pub fn table(model: &Model, ns: NsId) -> Option<&[crate::image::ns::mnt::Mount]> {
    let namespace = &model.namespaces[ns.at()];
    match &namespace.kind {
        // Without a table (an older image) it was a copy of the host's.
        NsKind::Mnt(mnt) if !namespace.of_host && !mnt.mounts.is_empty() => Some(&mnt.mounts),
        _ => None,
    }
}

/// Places of the host that mounts of the tree need, and that are not here; but for those at or below `coming`.
pub fn missing(model: &Model, coming: &HashSet<Bytes>) -> Vec<Blocker> {
    let Ok(own) = super::fd::roots::own() else { return Vec::new() };
    let all = (0..model.namespaces.len()).filter_map(|ns| table(model, NsId::from(ns))).flatten();
    let absent = |mount: &crate::image::ns::mnt::Mount| {
        let path = mount.host_path.as_ref()?;
        let mut steps = Path::new(OsStr::from_bytes(&path.0)).ancestors();
        if steps.any(|above| coming.contains(&Bytes(above.as_os_str().as_bytes().to_vec()))) {
            return None;
        }
        let errno = open_in_root(&own, &path.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32, 0).err()?;
        let reason =
            format!("the target has it mounted on {}, and here it is not: {}", mount.mount_point, errno.desc());
        Some(Blocker::new(codes::MOUNT_OUTSIDE, path.to_string()).because(reason))
    };
    all.filter_map(absent).collect()
}

fn failed(operation: &'static str, object: impl Into<String>) -> impl FnOnce(Errno) -> Error {
    let object = object.into();
    move |errno| Error::System { operation, object, errno }
}
