//! ioctl_tty(2), pts(4): terminals and pseudo-terminals.

use super::{Errno, Result, check};
use crate::image::fd::tty::TERMIOS;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `TIOCSCTTY`: the terminal becomes the caller's controlling one.
pub const TIOCSCTTY: u64 = 0x540E;
/// `TIOCSPGRP`.
pub const TIOCSPGRP: u64 = 0x5410;
/// `TIOCNOTTY`: the caller has no controlling terminal any more.
pub const TIOCNOTTY: u64 = 0x5422;
const TIOCEXCL: u64 = 0x540C;
const TIOCGPGRP: u64 = 0x540F;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCPKT: u64 = 0x5420;
const TIOCGETD: u64 = 0x5424;
const TIOCGSID: u64 = 0x5429;
const TIOCGPTPEER: u64 = 0x5441;
const TCGETS2: u64 = 0x802C_542A;
const TCSETS2: u64 = 0x402C_542B;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;

fn get(fd: impl AsFd, request: u64) -> Result<i32> {
    let mut value = 0i32;
    // SAFETY: every request this is called with writes one int.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut value) }))?;
    Ok(value)
}

fn set(fd: impl AsFd, request: u64, value: i32) -> Result<()> {
    // SAFETY: every request this is called with reads one int.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw const value) })).map(drop)
}

/// Number of a pseudo-terminal, asked of its master.
pub fn index(master: impl AsFd) -> Result<u32> {
    get(master, TIOCGPTN).map(i32::cast_unsigned)
}

/// Device number of the terminal behind a descriptor (of the slave, for a master; of the real one, for `/dev/tty`) as
/// `makedev(3)` encodes it. `EIO` after a hang-up.
pub fn device(fd: impl AsFd) -> Result<u64> {
    // new_encode_dev() of the kernel, as in /proc/PID/stat.
    let raw = get(fd, TIOCGDEV)?.cast_unsigned();
    let (major, minor) = ((raw >> 8) & 0xfff, (raw & 0xff) | ((raw >> 12) & 0xf_ff00));
    Ok(nix::sys::stat::makedev(major.into(), minor.into()))
}

/// The line discipline, 0 = `N_TTY`.
pub fn discipline(fd: impl AsFd) -> Result<i32> {
    get(fd, TIOCGETD)
}

/// `struct termios2`, raw; a master shows those of its slave.
pub fn termios(fd: impl AsFd) -> Result<[u8; TERMIOS]> {
    let mut raw = [0u8; TERMIOS];
    // SAFETY: TCGETS2 writes one `struct termios2` of 44 bytes.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TCGETS2, raw.as_mut_ptr()) }))?;
    Ok(raw)
}

/// Sets them at once, without waiting for output.
pub fn set_termios(fd: impl AsFd, raw: &[u8; TERMIOS]) -> Result<()> {
    // SAFETY: TCSETS2 reads one `struct termios2` of 44 bytes.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TCSETS2, raw.as_ptr()) })).map(drop)
}

/// Rows, columns, and the size in pixels.
pub fn size(fd: impl AsFd) -> Result<[u16; 4]> {
    let mut size = [0u16; 4];
    // SAFETY: TIOCGWINSZ writes one `struct winsize`, four u16.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TIOCGWINSZ, size.as_mut_ptr()) }))?;
    Ok(size)
}

/// Sets the size; a change sends SIGWINCH to the foreground group.
pub fn set_size(fd: impl AsFd, size: [u16; 4]) -> Result<()> {
    // SAFETY: TIOCSWINSZ reads one `struct winsize`, four u16.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TIOCSWINSZ, size.as_ptr()) })).map(drop)
}

/// The session whose controlling terminal it is, in our PID namespace; `None` without one. A slave tells this only to
/// members of the session, a master everybody.
pub fn session(fd: impl AsFd) -> Result<Option<i32>> {
    match get(fd, TIOCGSID) {
        Err(Errno::ENOTTY) => Ok(None),
        sid => sid.map(Some),
    }
}

/// The foreground process group, in our PID namespace; 0 = none. As for [`session`], of the master.
pub fn foreground(fd: impl AsFd) -> Result<i32> {
    get(fd, TIOCGPGRP)
}

/// Sets the foreground process group of our own controlling terminal.
pub fn set_foreground(fd: impl AsFd, group: i32) -> Result<()> {
    set(fd, TIOCSPGRP, group)
}

/// Packet mode of a master (Linux 3.8).
pub fn packet_mode(master: impl AsFd) -> Result<bool> {
    get(master, TIOCGPKT).map(|on| on != 0)
}

/// Sets packet mode.
pub fn set_packet_mode(master: impl AsFd, on: bool) -> Result<()> {
    set(master, TIOCPKT, on.into())
}

/// The slave is locked (Linux 3.8).
pub fn locked(master: impl AsFd) -> Result<bool> {
    get(master, TIOCGPTLCK).map(|on| on != 0)
}

/// Locks or unlocks the slave.
pub fn set_locked(master: impl AsFd, on: bool) -> Result<()> {
    set(master, TIOCSPTLCK, on.into())
}

/// Nobody else may open it (Linux 3.8).
pub fn exclusive(fd: impl AsFd) -> Result<bool> {
    get(fd, TIOCGEXCL).map(|on| on != 0)
}

/// Lets nobody else open it.
pub fn set_exclusive(fd: impl AsFd) -> Result<()> {
    // SAFETY: integers only.
    check(i64::from(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TIOCEXCL, 0) })).map(drop)
}

/// Opens the slave of a master without a path (Linux 4.13): a new description with these flags, close-on-exec, never our
/// controlling terminal. `EIO` while it is locked.
pub fn slave(master: impl AsFd, flags: u32) -> Result<OwnedFd> {
    let flags = flags & !(libc::O_CLOEXEC as u32) | libc::O_NOCTTY as u32;
    // SAFETY: integers only.
    let fd = check(i64::from(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), TIOCGPTPEER, flags) }))?;
    // SAFETY: the kernel has just given us this descriptor.
    let slave = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // Here O_CLOEXEC would stay among the flags of the description.
    // SAFETY: integers only.
    check(i64::from(unsafe { libc::fcntl(slave.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }))?;
    Ok(slave)
}
