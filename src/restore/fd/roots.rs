//! Made by the engine: ways into the mount namespaces of the tree.

use super::super::skeleton::Skeletons;
use super::super::{Error, Result};
use crate::image::task::TaskState;
use crate::image::{Model, NsId, TaskId};
use crate::proc::ProcDir;
use crate::sys::Errno;
use crate::sys::openat2::open_in_root;
use nix::fcntl::OFlag;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Root directories by mount namespace, opened when first needed.
#[derive(Debug, Default)]
pub(crate) struct Roots(HashMap<NsId, OwnedFd>);

impl Roots {
    /// The root directory of a mount namespace: that of a task in it, which has not changed its own root yet.
    pub(crate) fn get(&mut self, model: &Model, skeletons: &Skeletons, ns: NsId) -> Result<&OwnedFd> {
        if let std::collections::hash_map::Entry::Vacant(e) = self.0.entry(ns) {
            let inside =
                |t: &crate::image::task::Task| t.namespaces.mnt == ns && !matches!(t.state, TaskState::Zombie(_));
            let made = skeletons.made.root(ns).map(OwnedFd::try_clone).and_then(std::io::Result::ok);
            let root = match model.tasks.iter().position(inside) {
                _ if made.is_some() => made.map_or_else(own, Ok)?,
                Some(task) => ProcDir::open(skeletons.pid(TaskId::from(task)))?.open_file("root", ROOT)?,
                None => own()?,
            };
            e.insert(root);
        }
        Ok(&self.0[&ns])
    }
}

const ROOT: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// Our own root directory.
pub(crate) fn own() -> Result<OwnedFd> {
    Ok(ProcDir::of_self()?.open_file("root", ROOT)?)
}

/// Opens a path below a root. A missing file is an error that names it.
pub(crate) fn open(root: &OwnedFd, path: &[u8], flags: u32) -> Result<OwnedFd> {
    open_in_root(root, path, flags, 0).map_err(|errno| {
        let path = String::from_utf8_lossy(path).into_owned();
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => Error::File { path, reason: "it does not exist here".to_owned() },
            errno => Error::System { operation: "open", object: path, errno },
        }
    })
}
