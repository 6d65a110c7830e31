//! Made by the engine, where the file was: deleted files, which are made anew and removed again.

use super::{Maker, SETTABLE, TMPFILE, roots};
use crate::image::fd::FileKind;
use crate::image::fd::regular::Ghost;
use crate::image::{Bytes, GhostId, Model};
use crate::restore::{Error, Result, material::Material, ns::Made};
use crate::sys::openat2::{open_in_root, reopen};
use crate::sys::{Errno, fcntl, xattr};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, ftruncate, unlinkat};
use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Names tried for a file whose own name is taken by another by now.
const NAMES_MAX: u32 = 1000;

/// Makes the deleted files of the model, open for reading and writing.
///
/// # Errors
/// No directory there can be written to, or the content does not fit.
pub fn make_ghosts(model: &Model, made: &Made) -> Result<Vec<Option<OwnedFd>>> {
    let unnamed: HashSet<GhostId> = model
        .files
        .iter()
        .filter(|f| f.flags & TMPFILE != 0)
        .filter_map(|f| if let FileKind::Ghost(ghost) = &f.kind { Some(ghost.ghost) } else { None })
        .collect();
    let root = roots::own()?;
    let make = |(n, ghost): (usize, &Ghost)| {
        let root = made.root(ghost.path.mnt).unwrap_or(&root);
        make_one(root, ghost, unnamed.contains(&GhostId::from(n))).map(Some)
    };
    model.ghosts.iter().enumerate().map(make).collect()
}

/// A description of a deleted file.
pub(crate) fn make(maker: &mut Maker<'_>, ghost: GhostId, flags: u32) -> Result<OwnedFd> {
    let object = maker.model.ghosts[ghost.at()].path.path.to_string();
    let Some(file) = maker.material.ghost_file(ghost) else {
        return Err(Error::File { path: object, reason: "it was deleted and has not been made again".to_owned() });
    };
    let failed = |operation| {
        let object = object.clone();
        move |errno| Error::System { operation, object, errno }
    };
    // The description that O_TMPFILE made is the one that still says so; opened again, a file has other flags.
    let same = |has: u32| (has ^ flags) & !SETTABLE == 0;
    if flags & TMPFILE != 0 && same(fcntl::flags(file).map_err(failed("fcntl F_GETFL"))?) {
        return file.try_clone().map_err(errno).map_err(failed("dup"));
    }
    let directory = maker.model.ghosts[ghost.at()].path.mode & libc::S_IFMT == libc::S_IFDIR;
    let mut drop = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOFOLLOW | libc::O_ASYNC) as u32 | TMPFILE;
    if !directory {
        drop |= libc::O_DIRECTORY as u32;
    }
    reopen(file, flags & !drop).map_err(failed("open (deleted file)"))
}

fn make_one(root: &OwnedFd, ghost: &Ghost, unnamed: bool) -> Result<OwnedFd> {
    let path = &ghost.path.path;
    let failed = |operation| move |errno| Error::System { operation, object: format!("{path} (deleted)"), errno };
    if let Some(name) = &ghost.other_name {
        return roots::open(root, &name.0, libc::O_RDWR as u32).or_else(|_| roots::open(root, &name.0, 0));
    }
    let directory = ghost.path.mode & libc::S_IFMT == libc::S_IFDIR;
    let (parent, own_name) = parent(root, path)?;
    let file = if directory {
        nameless(own_name, path, |name| directory_once(&parent, name)).map_err(failed("mkdir"))?
    } else if let Some(file) = unnamed.then(|| temporary(&parent)).flatten() {
        file
    } else {
        nameless(own_name, path, |name| file_once(&parent, name)).map_err(failed("create"))?
    };
    if !directory {
        ftruncate(&file, ghost.path.size as i64).map_err(failed("ftruncate"))?;
        let writer = std::fs::File::from(file.try_clone().map_err(errno).map_err(failed("dup"))?);
        for (offset, bytes) in &ghost.extents {
            writer.write_all_at(&bytes.0, *offset).map_err(errno).map_err(failed("write"))?;
        }
    }
    let (uid, gid) = (Uid::from_raw(ghost.uid), Gid::from_raw(ghost.gid));
    fchown(&file, Some(uid), Some(gid)).map_err(failed("fchown"))?;
    fchmod(&file, Mode::from_bits_truncate(ghost.path.mode & 0o7777)).map_err(failed("fchmod"))?;
    for (name, value) in &ghost.xattrs {
        xattr::set(&file, &name.0, &value.0).map_err(failed("fsetxattr"))?;
    }
    Ok(file)
}

/// Sets the times of a deleted file: once it is mapped and opened, as mmap(2) counts as access.
pub(crate) fn set_times(model: &Model, material: &Material) -> Result<()> {
    for (n, ghost) in model.ghosts.iter().enumerate().filter(|(_, ghost)| ghost.other_name.is_none()) {
        let Some(file) = material.ghost_file(GhostId::from(n)) else { continue };
        futimens(file, &time(ghost.atime_ns), &time(ghost.path.mtime_ns)).map_err(|errno| {
            let object = format!("{} (deleted)", ghost.path.path);
            Error::System { operation: "futimens", object, errno }
        })?;
    }
    Ok(())
}

fn time(ns: i64) -> TimeSpec {
    TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

/// The directory the file was in, or the nearest one above that still exists; whether it is the file's own.
fn parent(root: &OwnedFd, path: &Bytes) -> Result<(OwnedFd, bool)> {
    let mut directory = path.0.as_slice();
    let mut own = true;
    loop {
        let at = directory.iter().rposition(|b| *b == b'/').unwrap_or(0);
        directory = &directory[..at];
        let name = if directory.is_empty() { b"/" } else { directory };
        match open_in_root(root, name, (libc::O_PATH | libc::O_DIRECTORY) as u32, 0) {
            Ok(found) => return Ok((found, own)),
            Err(Errno::ENOENT | Errno::ENOTDIR) if !directory.is_empty() => own = false,
            Err(errno) => {
                let object = String::from_utf8_lossy(name).into_owned();
                return Err(Error::System { operation: "open (directory)", object, errno });
            }
        }
    }
}

/// Makes a file under its own last name if that is free, so that it is shown as before, else under another one.
fn nameless(
    own_name: bool,
    path: &Bytes,
    make: impl Fn(&CString) -> crate::sys::Result<OwnedFd>,
) -> crate::sys::Result<OwnedFd> {
    let last = path.0.rsplit(|b| *b == b'/').next().unwrap_or_default();
    if own_name && let Ok(name) = CString::new(last) {
        match make(&name) {
            Err(Errno::EEXIST) => {}
            made => return made,
        }
    }
    for n in 0..NAMES_MAX {
        let name = CString::new(format!(".migrate-{}-{n}", std::process::id())).expect("no NUL in it");
        match make(&name) {
            Err(Errno::EEXIST) => {}
            made => return made,
        }
    }
    Err(Errno::EEXIST)
}

fn file_once(parent: &OwnedFd, name: &CString) -> crate::sys::Result<OwnedFd> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file = openat(parent, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
    Ok(file)
}

fn directory_once(parent: &OwnedFd, name: &CString) -> crate::sys::Result<OwnedFd> {
    mkdirat(parent, name.as_c_str(), Mode::S_IRWXU)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let directory = openat(parent, name.as_c_str(), flags, Mode::empty());
    unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
    directory
}

/// A file that never had a name; `None` where the file system cannot.
fn temporary(parent: &OwnedFd) -> Option<OwnedFd> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    openat(parent, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR).ok()
}
