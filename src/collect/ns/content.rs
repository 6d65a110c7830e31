//! The files of a tmpfs that is mounted in the target's namespace alone.

use crate::collect::fd::views::nanoseconds;
use crate::image::Bytes;
use crate::image::ns::mnt::{Content, Entry};
use crate::sys::{Errno, Result, xattr};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Bytes of files that travel with one mount.
pub const BYTES_MAX: u64 = 256 << 20;
/// Files, directories, links and nodes of one mount.
pub const ENTRIES_MAX: usize = 100_000;
/// Directories within directories.
const DEPTH_MAX: usize = 256;

/// Reads everything below a mount of which `root` is a copy without what is mounted on it. `EFBIG`: it is too much.
pub fn read(root: OwnedFd) -> Result<Content> {
    let mut reader = Reader { content: Content::default(), links: HashMap::new(), bytes: 0 };
    let stat = nix::sys::stat::fstat(&root)?;
    let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let flags = libc::O_NOATIME | if is_directory { libc::O_DIRECTORY } else { 0 };
    let opened = crate::sys::openat2::reopen(&root, flags as u32)?;
    reader.entry(opened.as_fd(), c"", b"", &stat)?;
    if is_directory {
        reader.directory(opened, b"", 0)?;
    }
    Ok(reader.content)
}

struct Reader {
    content: Content,
    links: HashMap<u64, u32>,
    bytes: u64,
}

impl Reader {
    fn directory(&mut self, dir: OwnedFd, path: &[u8], depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Errno::EFBIG);
        }
        let own = dir.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::from_fd(dir)?.iter() {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        // The order of a tmpfs is that of creation; two readings shall give the same.
        names.sort();
        for name in names {
            let stat = fstatat(&own, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let below = if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
            self.entry(own.as_fd(), &name, &below, &stat)?;
            if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                let flags =
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
                let inner = openat(&own, name.as_c_str(), flags, Mode::empty())?;
                self.directory(inner, &below, depth + 1)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: std::os::fd::BorrowedFd<'_>,
        name: &std::ffi::CStr,
        path: &[u8],
        stat: &FileStat,
    ) -> Result<()> {
        if self.content.entries.len() >= ENTRIES_MAX {
            return Err(Errno::EFBIG);
        }
        let number = self.content.entries.len() as u32;
        let mut entry = Entry {
            path: Bytes(path.to_vec()),
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev,
            atime_ns: nanoseconds(stat.st_atime, stat.st_atime_nsec),
            mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ..Entry::default()
        };
        let kind = stat.st_mode & libc::S_IFMT;
        if kind != libc::S_IFDIR && stat.st_nlink > 1 {
            entry.link_of = self.links.get(&stat.st_ino).copied();
            self.links.entry(stat.st_ino).or_insert(number);
        }
        if entry.link_of.is_none() {
            match kind {
                libc::S_IFREG | libc::S_IFDIR => {
                    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
                    let file = if name.is_empty() {
                        dir.try_clone_to_owned().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?
                    } else {
                        openat(dir, name, flags, Mode::empty())?
                    };
                    let xattrs = xattr::all(&file)?;
                    entry.xattrs = xattrs.into_iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect();
                    if kind == libc::S_IFREG {
                        entry.size = stat.st_size as u64;
                        let left = BYTES_MAX - self.bytes;
                        entry.extents = crate::collect::fd::read_extents(file.into(), entry.size, left)?;
                        self.bytes += entry.extents.iter().map(|(_, bytes)| bytes.0.len() as u64).sum::<u64>();
                    }
                }
                libc::S_IFLNK => {
                    let target = readlinkat(dir, OsStr::from_bytes(name.to_bytes()))?;
                    entry.target = Bytes(target.as_bytes().to_vec());
                }
                _ => {}
            }
        }
        self.content.entries.push(entry);
        Ok(())
    }
}
