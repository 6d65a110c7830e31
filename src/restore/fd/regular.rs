//! Made by the engine, through the root directory of the task's mount namespace: regular files, directories, `O_PATH`.

use super::{Maker, TMPFILE, roots};
use crate::image::fd::{PathRef, regular::Regular};
use crate::ops::options::Files;
use crate::restore::{Error, Options, Result, ns::Made};
use crate::sys::Errno;
use nix::sys::stat::{FileStat, fstat};
use std::os::fd::OwnedFd;

pub use super::ghost::make_ghosts;

/// Flags that would change the file, or that only mean something at its first opening.
const ONCE: u32 = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC) as u32 | TMPFILE;

/// Opens a file by its path.
pub(crate) fn make(maker: &mut Maker<'_>, regular: &Regular, flags: u32) -> Result<OwnedFd> {
    let root = maker.roots.get(maker.model, maker.skeletons, regular.path.mnt)?;
    open(root, &regular.path, flags, maker.options)
}

/// Opens a file, before there are tasks, after comparing it with what the tree had.
///
/// # Errors
/// [`Error::File`] names a file that is missing or differs.
pub fn open_checked(path: &PathRef, flags: u32, options: &Options, made: &Made) -> Result<OwnedFd> {
    match made.root(path.mnt) {
        Some(root) => open(root, path, flags, options),
        None => open(&roots::own()?, path, flags, options),
    }
}

fn open(root: &OwnedFd, path: &PathRef, flags: u32, options: &Options) -> Result<OwnedFd> {
    // Looked at before it is opened for good: opening a device or a FIFO that took the name would have effects.
    let seen = roots::open(root, &path.path.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32)?;
    let stat =
        fstat(&seen).map_err(|errno| Error::System { operation: "stat", object: path.path.to_string(), errno })?;
    if let Some(reason) = difference(path, &stat, flags, options.files) {
        return Err(Error::File { path: path.path.to_string(), reason });
    }
    let flags = flags & !ONCE;
    let noctty = if flags & libc::O_PATH as u32 == 0 { libc::O_NOCTTY as u32 } else { 0 };
    let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG && flags & libc::O_PATH as u32 == 0;
    // Where somebody has a lease against it an opening would wait for as long as that may take, 45 s by default. The flag goes
    // with the others that are set later.
    let at_once = if regular { libc::O_NONBLOCK as u32 } else { 0 };
    match roots::open(root, &path.path.0, flags | noctty | at_once) {
        Err(Error::System { errno: Errno::EAGAIN, .. }) if regular => Err(Error::File {
            path: path.path.to_string(),
            reason: "another process here has a lease for it".to_owned(),
        }),
        opened => opened,
    }
}

/// What is different from the file that was open.
pub(crate) fn difference(path: &PathRef, stat: &FileStat, flags: u32, files: Files) -> Option<String> {
    if (stat.st_mode ^ path.mode) & libc::S_IFMT != 0 {
        return Some(format!("it is {} here, it was {}", kind(stat.st_mode), kind(path.mode)));
    }
    let comparable = path.mode & libc::S_IFMT == libc::S_IFREG && (path.size, path.mtime_ns) != (0, 0);
    if files == Files::Skip || !comparable || flags & libc::O_PATH as u32 != 0 {
        return None;
    }
    let size = stat.st_size as u64;
    let grown = size > path.size && flags & libc::O_APPEND as u32 != 0;
    if size != path.size && !grown {
        return Some(format!("it is {size} bytes long here, it was {}", path.size));
    }
    let mtime = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec);
    (mtime != path.mtime_ns && !grown).then(|| "it was written to after the checkpoint, or is another file".to_owned())
}

fn kind(mode: u32) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFREG => "a regular file",
        libc::S_IFDIR => "a directory",
        libc::S_IFCHR | libc::S_IFBLK => "a device",
        libc::S_IFIFO => "a FIFO",
        libc::S_IFSOCK => "a socket",
        libc::S_IFLNK => "a symbolic link",
        _ => "something unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Bytes, NsId};

    fn file() -> (PathRef, FileStat) {
        let stat = nix::sys::stat::stat("/etc/passwd").unwrap();
        let path = PathRef {
            path: Bytes(b"/etc/passwd".to_vec()),
            mnt: NsId(0),
            mode: stat.st_mode,
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mtime_ns: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec,
        };
        (path, stat)
    }

    #[test]
    fn differences_are_found() {
        let (path, stat) = file();
        let differs = |path: &PathRef, flags: i32, files| difference(path, &stat, flags as u32, files).is_some();
        assert!(!differs(&path, 0, Files::Auto));
        let was_shorter = PathRef { size: path.size - 1, mtime_ns: path.mtime_ns - 1, ..path.clone() };
        assert!(differs(&was_shorter, libc::O_RDWR, Files::Auto));
        assert!(!differs(&was_shorter, libc::O_WRONLY | libc::O_APPEND, Files::Auto), "a log only grew");
        let was_longer = PathRef { size: path.size + 1, ..path.clone() };
        assert!(differs(&was_longer, libc::O_APPEND, Files::Auto));
        assert!(!differs(&was_longer, 0, Files::Skip));
        let written = PathRef { mtime_ns: path.mtime_ns - 1, ..path.clone() };
        assert!(differs(&written, 0, Files::Check));
        let directory = PathRef { mode: libc::S_IFDIR | 0o755, ..path };
        assert!(differs(&directory, 0, Files::Skip));
    }

    #[test]
    fn missing_files_are_named() {
        let (path, _) = file();
        let path = PathRef { path: Bytes(b"/no/such/file".to_vec()), ..path };
        let error = open_checked(&path, 0, &Options::default(), &Made::default()).unwrap_err();
        assert_eq!(error.to_string(), "/no/such/file: it does not exist here");
    }
}
