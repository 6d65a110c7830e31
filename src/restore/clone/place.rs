//! Made by the engine and by the first task of a clone: what is around it.

use super::{ID_FILE, Identity};
use crate::image::Pid;
use crate::net::{self, namespace};
use crate::proc::ProcDir;
use crate::restore::{Error, Result};
use crate::sys::packet;
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};
use nix::fcntl::OFlag;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Makes the network of a clone usable, which this task of it was born in: loopback, and its own address, if it has one, on an
/// interface that is joined to one of this host (macvlan, in mode bridge). It ends with the clone.
///
/// # Errors
/// Names the address or the interface.
pub(in crate::restore) fn network(task: Pid, identity: &Identity) -> Result<()> {
    let failed = |error| Error::Socket { object: format!("the network of clone {}", identity.id), error };
    let ns = ProcDir::open(task)?.open_file("ns/net", OFlag::O_RDONLY)?;
    if let Some(place) = &identity.address {
        net::link::join(&place.interface, ns.as_fd()).map_err(failed)?;
    }
    let up = |name: &str| packet::set_up(name).map_err(net::failed("netdevice", &format!("bringing {name} up")));
    let inside = || {
        up("lo")?;
        let Some(place) = &identity.address else { return Ok(()) };
        up(&place.interface)?;
        place.add()
    };
    namespace::inside(Some(ns.as_fd()), inside).and_then(|done| done).map_err(failed)
}

/// Writes the id where this task, the first of the clone, finds it: into a small file system of its own, over this directory of its
/// mount namespace. A warning where that is not possible, as with a read-only root directory without such a place.
///
/// # Errors
/// The task cannot be worked with.
pub(in crate::restore) fn write_id(
    task: &mut Remote,
    scratch: Scratch,
    (identity, dir): (&Identity, &Path),
) -> Result<Option<String>> {
    let mut batch = Batch::new();
    let mut above: Vec<&Path> = dir.ancestors().filter(|dir| dir.parent().is_some()).collect();
    above.reverse();
    for dir in above {
        let dir = batch.c_string(dir.as_os_str().as_bytes());
        batch.may(libc::SYS_mkdir, &[dir, 0o755u32.into()]);
    }
    let (point, kind, none) =
        (batch.c_string(dir.as_os_str().as_bytes()), batch.c_string(b"tmpfs"), batch.c_string(b"none"));
    let options = batch.c_string(b"size=16k,mode=755");
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // What follows is only done where this is.
    batch.must(libc::SYS_mount, &[kind, point, kind, flags.into(), options]);
    write(&mut batch, identity, dir);
    let read_only = flags | libc::MS_REMOUNT | libc::MS_RDONLY;
    batch.must(libc::SYS_mount, &[none, point, none, read_only.into(), 0u64.into()]);
    let results = task.run(&scratch, &batch)?;
    Ok(results.first_error().map(|(_, call, errno)| {
        format!("clone {} finds its id in no file of {}: {call}: {errno}", identity.id, dir.display())
    }))
}

fn write(batch: &mut Batch, identity: &Identity, dir: &Path) {
    let (path, line) = (dir.join(ID_FILE), format!("{}\n", identity.id));
    let (path, text) = (batch.c_string(path.as_os_str().as_bytes()), batch.bytes(line.as_bytes()));
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    let file = batch.must(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, flags.into(), 0o444u32.into()]);
    batch.must(libc::SYS_write, &[file.into(), text, (line.len() as u64).into()]);
    // Whatever our umask is.
    batch.must(libc::SYS_fchmod, &[file.into(), 0o444u32.into()]);
    batch.must(libc::SYS_close, &[file.into()]);
}
