//! Descriptors of other processes and descriptors handed over: pidfd_open(2), pidfd_getfd(2), unix(7) `SCM_RIGHTS`.

use super::{Errno, Result, check};
use crate::image::Pid;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// pidfd_open(2), Linux 5.3.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// pidfd_getfd(2), Linux 5.6: a duplicate (close-on-exec) of descriptor `fd` of the process.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: u32) -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Descriptors that this program has room for from its start.
const ROOM: u64 = 4096;

/// Has the kernel make the descriptor table as large as it may become, before there are threads: a table that grows while threads
/// share it waits for a grace period of RCU each time, 10 ms and more (`expand_fdtable()`, fs/file.c), and it never shrinks.
///
/// # Errors
/// None that matters: then it grows later.
pub fn make_room() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let room = hard.min(ROOM);
    if room > soft {
        setrlimit(Resource::RLIMIT_NOFILE, room, hard)?;
    }
    let null = std::fs::File::open("/dev/null").map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    // SAFETY: integers only.
    let last = check(unsafe { libc::fcntl(null.as_raw_fd(), libc::F_DUPFD_CLOEXEC, (room - 1) as i32) }.into());
    // SAFETY: the kernel has just given us this descriptor.
    let last = last.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
    // What it starts has the limit that it was started with.
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    last.map(drop)
}

/// close_range(2), Linux 5.9: closes every descriptor from this number on. Only for a process that has not opened any yet.
pub fn close_from(first: u32) -> Result<()> {
    // SAFETY: called before anything in this process owns a descriptor of such a number.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// dup2(2) onto standard input.
pub fn replace_stdin(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: standard input has no owner that could be confused by another file behind it.
    check(unsafe { libc::dup2(fd.as_raw_fd(), 0) }.into()).map(drop)
}

/// Most descriptors in one message (`SCM_MAX_FD`).
pub const RIGHTS_MAX: usize = 253;

/// Sends `fds` (at most [`RIGHTS_MAX`]) with one byte of data over a UNIX socket.
pub fn send_fds(socket: BorrowedFd<'_>, fds: &[RawFd]) -> Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let data = [std::io::IoSlice::new(&[0u8])];
    sendmsg::<()>(socket.as_raw_fd(), &data, &[ControlMessage::ScmRights(fds)], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// kcmp(2) types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Kcmp {
    /// Open file descriptions of two descriptors.
    File = 0,
    /// Address spaces.
    Vm = 1,
    /// Descriptor tables.
    Files = 2,
    /// umask, working directory, root.
    Fs = 3,
    /// Signal actions.
    Sighand = 4,
    /// I/O contexts.
    Io = 5,
    /// System V semaphore undo lists.
    Sysvsem = 6,
}

/// kcmp(2), Linux 3.5: how two tasks' objects compare; for [`Kcmp::File`] `a_index` and `b_index` are descriptors.
pub fn kcmp(a: Pid, b: Pid, kind: Kcmp, a_index: u64, b_index: u64) -> Result<std::cmp::Ordering> {
    // SAFETY: integers only.
    let order = check(unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, kind as i32, a_index, b_index) })?;
    match order {
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        2 => Ok(std::cmp::Ordering::Greater),
        _ => Err(Errno::ENOTSUP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_costs_no_descriptor_and_no_limit() {
        use nix::sys::resource::{Resource, getrlimit};
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        let before = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        make_room().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), before);
        assert!(size() >= before.1.min(ROOM), "{}", size());
    }
}
