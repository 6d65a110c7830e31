//! Made by a short-lived child of the engine: user namespaces, and mount namespaces that belong to them.
//!
//! A namespace's owner is the user namespace of whoever makes it, and a program with threads cannot enter another one:
//! a child does, waits until its maps are written, and goes when we hold a descriptor.

use super::mnt::{Late, MadeMnt};
use super::{Made, failed};
use crate::image::ns::{NsKind, user::IdMap};
use crate::image::{Model, NsId, Pid};
use crate::proc::ProcDir;
use crate::restore::{Error, Result};
use crate::sys::clone::{Placed, placed_child};
use crate::sys::thread_ids;
use nix::fcntl::OFlag;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A child that holds namespaces; ended when dropped.
struct Holder(Pid);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.0), nix::sys::signal::SIGKILL);
        let _ = crate::sys::wait::wait(self.0);
    }
}

/// Makes the user namespaces of the model.
pub(super) fn make(model: &Model, made: &mut Made) -> Result<()> {
    for (n, namespace) in model.namespaces.iter().enumerate() {
        let NsKind::User(user) = &namespace.kind else { continue };
        if namespace.of_host {
            continue;
        }
        let object = format!("user namespace {}", namespace.inode);
        let place = Placed { owner: Some(user.owner_uid), ..Placed::default() };
        let holder = placed_child(place).map(Holder).map_err(failed("clone", object.clone()))?;
        let dir = ProcDir::open(holder.0)?;
        if !user.uid_map.is_empty() {
            dir.write("uid_map", lines(&user.uid_map).as_bytes())?;
        }
        if user.setgroups_denied {
            dir.write("setgroups", b"deny")?;
        }
        if !user.gid_map.is_empty() {
            dir.write("gid_map", lines(&user.gid_map).as_bytes())?;
        }
        made.users.insert(NsId::from(n), dir.open_file("ns/user", OFlag::O_RDONLY)?);
    }
    Ok(())
}

/// A namespace that belongs to a user namespace (`None`: the host's); `name` is what it is called below `/proc/PID/ns`.
pub(super) fn namespace_of(owner: Option<&OwnedFd>, kind: i32, name: &'static str) -> Result<OwnedFd> {
    let place = Placed { enter: owner.map(AsRawFd::as_raw_fd), make: kind, ..Placed::default() };
    let holder = placed_child(place).map(Holder).map_err(failed("clone", format!("{name} namespace")))?;
    Ok(ProcDir::open(holder.0)?.open_file(&format!("ns/{name}"), OFlag::O_RDONLY)?)
}

/// A copy of the calling thread's mount namespace that belongs to a user namespace. The thread is in that of the host then.
pub(super) fn copy_of_mounts(owner: &OwnedFd, late: Vec<Late>, host: &OwnedFd) -> Result<MadeMnt> {
    let place = Placed { enter: Some(owner.as_raw_fd()), make: libc::CLONE_NEWNS, ..Placed::default() };
    let holder = placed_child(place).map(Holder).map_err(failed("clone", "mount namespace"))?;
    // What was copied need not have a /proc.
    thread_ids::enter_mnt(host.as_fd()).map_err(failed("setns", "the host's mount namespace"))?;
    let dir = ProcDir::open(holder.0)?;
    let root = dir.open_file("root", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    Ok(MadeMnt { ns: dir.open_file("ns/mnt", OFlag::O_RDONLY)?, root, late })
}

/// As `/proc/PID/uid_map` takes them.
fn lines(map: &[IdMap]) -> String {
    map.iter().map(|line| format!("{} {} {}\n", line.inside, line.outside, line.count)).collect()
}

/// What an id is inside of a user namespace.
///
/// # Errors
/// It has no number there.
pub fn inside(map: &[IdMap], id: u32, what: &str) -> Result<u32> {
    crate::proc::user_ns::to_inside(map, id).ok_or_else(|| Error::Impossible {
        object: format!("{what} {id}"),
        reason: "it has no number in the user namespace".to_owned(),
    })
}
