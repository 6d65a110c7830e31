//! Small processes of ours that hold something for longer than a command runs.
//!
//! Each is this program started again with a hidden first word: no threads, no descriptor but those it was handed, a session
//! of its own, outside the caller's cgroup.

pub mod detach;
pub mod held;
pub mod lock_guard;
pub mod pager;
pub(crate) mod parcel;
pub mod tracker;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Starts this program as one of ours, by its hidden first word, with a socket as standard input; our end of that.
pub(crate) fn spawn(entry: &str) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0("migrate").arg(entry).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.current_dir("/").spawn()?;
    Ok((child, ours))
}
