//! Processes of ours beside a command. Those of this room are small: they have no threads, and hold something for longer than a
//! command runs. Those of `ops/` are started from here, too, and a move goes on in them: a warm-up, a stage of a cascade, one tree
//! of an evacuation. [`tracker`] keeps note of writes between two dumps, [`pager`] serves missing pages, [`lock_guard`] gives a target's
//! connections back; [`held`] is how whoever comes later finds a tree that stands still, `parcel` what is handed over at the start.
//!
//! Each is this program started again with a hidden first word, with no descriptor but those it was handed, in a session of its
//! own, outside the caller's cgroup.

pub mod detach;
pub mod held;
pub mod lock_guard;
pub mod pager;
pub(crate) mod parcel;
pub mod tracker;

use crate::image::Pid;
use crate::sys::{clone, fd, wait};
use serde::de::DeserializeOwned;
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What its starter has to say to a companion comes within this time, or does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a companion is started from: the program that runs, also when its file was replaced since, as in an upgrade.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// A process of ours that was just started.
#[derive(Debug)]
pub(crate) struct Started(Pid);

impl Started {
    /// Ends it.
    pub(crate) fn kill(self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.0), nix::sys::signal::Signal::SIGKILL);
        self.wait();
    }

    /// Waits until it has ended.
    pub(crate) fn wait(self) {
        let _ = wait::wait(self.0);
    }
}

/// What a companion with such a socket does first: it leaves its caller, and keeps nothing of that but the socket, which it was given
/// as standard input. `None`: it cannot.
pub(crate) fn leave() -> Option<UnixStream> {
    fd::close_from(3).ok()?;
    detach::leave_the_caller();
    starter().ok()
}

/// Starts this program as one of ours, by its hidden first word, with a socket as standard input; our end of that. It is born
/// outside the caller's cgroups where that can be.
pub(crate) fn spawn(entry: &str) -> io::Result<(Started, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let string = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::other);
    let path = string(OWN_PROGRAM.into())?;
    let arguments = [string(b"migrate".to_vec())?, string(entry.into())?];
    let setting = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        string([name.into_vec(), value.into_vec()].join(&b'='))
    };
    let environment = std::env::vars_os().map(setting).collect::<io::Result<Vec<_>>>()?;
    let child = detach::outside(|cgroup| clone::program(&path, &arguments, &environment, theirs.as_fd(), cgroup))?;
    Ok((Started(child), ours))
}

/// The socket that a process of ours was started with; its standard input is nobody's from here on.
pub(crate) fn starter() -> io::Result<UnixStream> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from)?;
    let null = std::fs::File::open("/dev/null")?;
    fd::replace_stdin(null.as_fd())?;
    Ok(socket)
}

/// What a process of ours is started for, from whoever has started it. The companion never waits longer than ten seconds for the other end,
/// afterwards either.
///
/// # Errors
/// The socket's; what is no such charge.
pub(crate) fn charge<T: DeserializeOwned>(starter: &mut UnixStream) -> io::Result<T> {
    starter.set_read_timeout(Some(PATIENCE))?;
    starter.set_write_timeout(Some(PATIENCE))?;
    parcel::receive(starter, |_| 0).map(|(charge, _)| charge)
}
