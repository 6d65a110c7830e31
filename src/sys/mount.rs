//! open_tree(2), move_mount(2), mount_setattr(2), fsopen(2) and its family: mounts by descriptors (Linux 5.2, attributes
//! 5.12, joining a peer group 5.15).

use super::{Errno, Result, check, thread_ids};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `MOUNT_ATTR_RDONLY`.
pub const RDONLY: u64 = 1;
/// `MOUNT_ATTR_NOSUID`.
pub const NOSUID: u64 = 2;
/// `MOUNT_ATTR_NODEV`.
pub const NODEV: u64 = 4;
/// `MOUNT_ATTR_NOEXEC`.
pub const NOEXEC: u64 = 8;
/// `MOUNT_ATTR__ATIME`: all bits that say how access times are kept; none of them is `relatime`.
pub const ATIME: u64 = 0x70;
/// `MOUNT_ATTR_NOATIME`.
pub const NOATIME: u64 = 0x10;
/// `MOUNT_ATTR_STRICTATIME`.
pub const STRICTATIME: u64 = 0x20;
/// `MOUNT_ATTR_NODIRATIME`.
pub const NODIRATIME: u64 = 0x80;
/// `MOUNT_ATTR_NOSYMFOLLOW`.
pub const NOSYMFOLLOW: u64 = 0x20_0000;

const EMPTY: &std::ffi::CStr = c"";

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn owned(ret: i64) -> Result<OwnedFd> {
    let fd = check(ret)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A detached copy of the mount that `at` (an `O_PATH` descriptor) is on, with that directory or file as its root; what is
/// mounted below is left out. `at` must be in the mount namespace of the calling thread.
pub fn copy(at: impl AsFd) -> Result<OwnedFd> {
    const OPEN_TREE_CLONE: u32 = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the path is NUL-terminated.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, at.as_fd().as_raw_fd(), EMPTY.as_ptr(), flags) })
}

fn move_to(mount: impl AsFd, at: impl AsFd, flags: u32) -> Result<()> {
    const F_EMPTY_PATH: u32 = 4;
    const T_EMPTY_PATH: u32 = 0x40;
    let (from, to) = (mount.as_fd().as_raw_fd(), at.as_fd().as_raw_fd());
    let flags = flags | F_EMPTY_PATH | T_EMPTY_PATH;
    // SAFETY: both paths are NUL-terminated.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, EMPTY.as_ptr(), to, EMPTY.as_ptr(), flags) }).map(drop)
}

/// Mounts a detached mount on a directory or file of the calling thread's mount namespace.
pub fn attach(mount: impl AsFd, at: impl AsFd) -> Result<()> {
    move_to(mount, at, 0)
}

/// A detached copy of the mount at a path of a mount namespace, without what is mounted below. `covers` mounts that lie over it
/// there are taken away in a passing copy of the namespace first; in that one also an `unbindable` mount can be copied. A thread
/// of its own does it: it changes places.
pub fn copy_in(ns: BorrowedFd<'_>, path: &[u8], covers: u32, unbindable: bool) -> Result<OwnedFd> {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    let there = || {
        thread_ids::own_fs()?;
        thread_ids::enter_mnt(ns)?;
        if covers > 0 || unbindable {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            let alone = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, alone, None::<&str>)?;
        }
        for _ in 0..covers {
            nix::mount::umount2(path.as_c_str(), nix::mount::MntFlags::MNT_DETACH)?;
        }
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC;
        copy(nix::fcntl::open(path.as_c_str(), flags, nix::sys::stat::Mode::empty())?)
    };
    std::thread::scope(|scope| scope.spawn(there).join().unwrap_or(Err(Errno::EIO)))
}

/// Puts the mount `to`, which must be private, into the peer group, and under the master, of the mount `from`.
pub fn join_group(from: impl AsFd, to: impl AsFd) -> Result<()> {
    const SET_GROUP: u32 = 0x100;
    move_to(from, to, SET_GROUP)
}

/// Sets and clears attributes of one mount; `propagation` is 0 or one of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`,
/// `MS_UNBINDABLE`.
pub fn set_attributes(mount: impl AsFd, set: u64, clear: u64, propagation: u64) -> Result<()> {
    let attr = MountAttr { set, clear, propagation, userns_fd: 0 };
    // SAFETY: the path is NUL-terminated, `attr` has the size that is passed.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(ret).map(drop)
}

fn configure(context: &OwnedFd, command: u32, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<()> {
    let c_string = |bytes: Option<&[u8]>| bytes.map(CString::new).transpose().map_err(|_| Errno::EINVAL);
    let (key, value) = (c_string(key)?, c_string(value)?);
    let pointer = |s: &Option<CString>| s.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
    // SAFETY: key and value are NUL-terminated or null, as the command wants them.
    let ret =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(&key), pointer(&value), 0) };
    check(ret).map(drop)
}

const SET_FLAG: u32 = 0;
const SET_STRING: u32 = 1;
const CREATE: u32 = 6;
const RECONFIGURE: u32 = 7;

/// A detached mount of a new file system. Options are (key, value); without a value they are flags.
pub fn new_file_system(kind: &[u8], source: &[u8], options: &[(&[u8], Option<&[u8]>)]) -> Result<OwnedFd> {
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSMOUNT_CLOEXEC: u32 = 1;
    let kind = CString::new(kind).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the name is NUL-terminated.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    if !source.is_empty() {
        configure(&context, SET_STRING, Some(b"source"), Some(source))?;
    }
    for (key, value) in options {
        let command = if value.is_some() { SET_STRING } else { SET_FLAG };
        configure(&context, command, Some(key), *value)?;
    }
    configure(&context, CREATE, None, None)?;
    // SAFETY: no memory is involved.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

/// Makes the file system behind a mount read-only.
pub fn make_read_only(mount: impl AsFd) -> Result<()> {
    const FSPICK_CLOEXEC: u32 = 1;
    const FSPICK_EMPTY_PATH: u32 = 8;
    let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
    // SAFETY: the path is NUL-terminated.
    let context = owned(unsafe { libc::syscall(libc::SYS_fspick, mount.as_fd().as_raw_fd(), EMPTY.as_ptr(), flags) })?;
    configure(&context, SET_FLAG, Some(b"ro"), None)?;
    configure(&context, RECONFIGURE, None, None)
}

/// Id of the mount that an open file is on, as mountinfo shows it (statx(2), Linux 5.8).
pub fn id_of(file: impl AsFd) -> Result<u32> {
    const STATX_MNT_ID: u32 = 0x1000;
    // SAFETY: all-zero bytes are a valid statx buffer.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated, the buffer is one statx long.
    let ret = unsafe {
        libc::statx(file.as_fd().as_raw_fd(), EMPTY.as_ptr(), libc::AT_EMPTY_PATH, STATX_MNT_ID, &raw mut found)
    };
    check(i64::from(ret))?;
    if found.stx_mask & STATX_MNT_ID == 0 { Err(Errno::ENOSYS) } else { Ok(found.stx_mnt_id as u32) }
}
