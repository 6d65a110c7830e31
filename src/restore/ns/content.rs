//! Made by the engine: the files of a tmpfs of the tree's own.

use super::failed;
use crate::image::ns::mnt::{Content, Entry};
use crate::restore::{Error, Result};
use crate::sys::openat2::reopen;
use crate::sys::{Errno, xattr};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, fchownat, ftruncate, linkat, symlinkat};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// Writes the files below the root of a mount that nobody else sees yet.
pub(super) fn write(mount: &OwnedFd, content: &Content) -> Result<()> {
    let root = reopen(mount, libc::O_DIRECTORY as u32).map_err(failed("open", "root of a new file system"))?;
    for entry in &content.entries {
        one(&root, entry, content)?;
    }
    // Times of directories last: making files in them has changed them.
    for entry in content.entries.iter().filter(|e| e.mode & libc::S_IFMT == libc::S_IFDIR) {
        let dir = open(&root, name(entry), OFlag::O_DIRECTORY)?;
        futimens(&dir, &time(entry.atime_ns), &time(entry.mtime_ns)).map_err(failed("futimens", text(entry)))?;
    }
    Ok(())
}

fn name(entry: &Entry) -> &OsStr {
    if entry.path.0.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(&entry.path.0) }
}

fn text(entry: &Entry) -> String {
    entry.path.to_string()
}

fn open(root: &OwnedFd, name: &OsStr, flags: OFlag) -> Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(root, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("open", name.to_string_lossy()))
}

fn one(root: &OwnedFd, entry: &Entry, content: &Content) -> Result<()> {
    let name = name(entry);
    if let Some(first) = entry.link_of.and_then(|n| content.entries.get(n as usize)) {
        let first = OsStr::from_bytes(&first.path.0);
        return linkat(root, first, root, name, LinkatFlags::empty()).map_err(failed("link", text(entry)));
    }
    match entry.mode & libc::S_IFMT {
        libc::S_IFDIR => {
            if !entry.path.0.is_empty() {
                mkdirat(root, name, Mode::S_IRWXU).map_err(failed("mkdir", text(entry)))?;
            }
            with_attributes(&open(root, name, OFlag::O_DIRECTORY)?, entry)
        }
        libc::S_IFREG => {
            let file = open(root, name, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR)?;
            ftruncate(&file, entry.size as i64).map_err(failed("ftruncate", text(entry)))?;
            let writer = std::fs::File::from(file.try_clone().map_err(io(entry))?);
            for (offset, bytes) in &entry.extents {
                writer.write_all_at(&bytes.0, *offset).map_err(io(entry))?;
            }
            with_attributes(&file, entry)?;
            futimens(&file, &time(entry.atime_ns), &time(entry.mtime_ns)).map_err(failed("futimens", text(entry)))
        }
        libc::S_IFLNK => {
            symlinkat(OsStr::from_bytes(&entry.target.0), root, name).map_err(failed("symlink", text(entry)))?;
            owner_and_times(root, entry)
        }
        kind => {
            let mode = Mode::from_bits_truncate(entry.mode & 0o7777);
            mknodat(root, name, SFlag::from_bits_truncate(kind), mode, entry.rdev)
                .map_err(failed("mknod", text(entry)))?;
            let flags = nix::sys::stat::FchmodatFlags::FollowSymlink;
            owner_and_times(root, entry)?;
            nix::sys::stat::fchmodat(root, name, mode, flags).map_err(failed("chmod", text(entry)))
        }
    }
}

fn owner_and_times(root: &OwnedFd, entry: &Entry) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(root, name(entry), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(failed("chown", text(entry)))?;
    let (atime, mtime) = (time(entry.atime_ns), time(entry.mtime_ns));
    utimensat(root, name(entry), &atime, &mtime, UtimensatFlags::NoFollowSymlink)
        .map_err(failed("utimensat", text(entry)))
}

fn with_attributes(file: &OwnedFd, entry: &Entry) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    nix::unistd::fchown(file, Some(uid), Some(gid)).map_err(failed("fchown", text(entry)))?;
    fchmod(file, Mode::from_bits_truncate(entry.mode & 0o7777)).map_err(failed("fchmod", text(entry)))?;
    for (name, value) in &entry.xattrs {
        xattr::set(file, &name.0, &value.0).map_err(failed("fsetxattr", text(entry)))?;
    }
    Ok(())
}

fn time(ns: i64) -> TimeSpec {
    TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
}

fn io(entry: &Entry) -> impl FnOnce(std::io::Error) -> Error + '_ {
    |e| failed("write", text(entry))(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}
