//! Read by the engine on a descriptor of its own: deleted files with their content.

use super::views::{Place, Views, nanoseconds, path_ref};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Error, Result};
use crate::image::fd::regular::Ghost;
use crate::image::{Bytes, GhostId, NsId};
use crate::proc::ProcDir;
use crate::sys::openat2::reopen;
use crate::sys::{Errno, file_handle, xattr};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::FileStat;
use nix::unistd::{Whence, lseek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Most bytes of content that travel for one file: more is not kept in a model.
pub const CONTENT_MAX: u64 = 1 << 30;

/// Names looked at when another name of a file is searched in its old directory.
const NAMES_MAX: usize = 100_000;

/// A file whose link says that it was removed.
pub struct Found<'a> {
    /// What it is.
    pub stat: &'a FileStat,
    /// Where it was.
    pub path: Bytes,
    /// In which mount namespace.
    pub mnt: NsId,
    /// Any descriptor of it.
    pub file: &'a OwnedFd,
    /// For messages.
    pub object: &'a str,
}

/// The deleted file behind a mapping: `link` is its name below `/proc/PID`.
///
/// # Errors
/// It cannot be read. `None`: a blocker was noted.
pub fn ghost_of_mapping(cx: &mut Cx<'_>, at: usize, link: &str) -> Result<Option<GhostId>> {
    let dir = &cx.frozen.processes[at].dir;
    let (text, stat) = (dir.readlink(link)?, dir.stat_of(link)?);
    let file = dir.open_file(link, OFlag::O_RDONLY)?;
    let object = format!("pid {} mapping of {text}", dir.pid());
    let info = ProcDir::of_self()?.fdinfo(file.as_raw_fd() as u32, &mut cx.buf)?;
    let own = crate::collect::ns::of_task(cx, at)?.mnt;
    let mut views = Views::default();
    match views.place(cx, own, &text.0, &stat, info.mnt_id)? {
        Place::Deleted(path, mnt) => {
            collect(cx, &mut views, Found { stat: &stat, path, mnt, file: &file, object: &object })
        }
        Place::Named(..) | Place::Hidden => {
            cx.blockers.push(Blocker::new(codes::FILE_HIDDEN, object));
            Ok(None)
        }
    }
}

/// Adds a deleted file to the model, unless it is there already. `None`: a blocker was noted.
pub fn collect(cx: &mut Cx<'_>, views: &mut Views, found: Found<'_>) -> Result<Option<GhostId>> {
    let inode = (found.stat.st_dev, found.stat.st_ino);
    if let Some(known) = cx.ghost_by_inode.get(&inode) {
        return Ok(Some(*known));
    }
    let failed = |operation| {
        let object = found.object.to_owned();
        move |errno| Error::System { operation, object, errno }
    };
    let kind = found.stat.st_mode & libc::S_IFMT;
    if !matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
        cx.blockers.push(Blocker::new(codes::FILE_HIDDEN, found.object).because("it was removed while it was open"));
        return Ok(None);
    }
    let mut other_name = None;
    if kind == libc::S_IFREG && found.stat.st_nlink > 0 {
        other_name = name_elsewhere(cx, views, &found)?;
        if other_name.is_none() {
            let reason = "it was opened by a name that was removed, and its other names were not found";
            cx.blockers.push(Blocker::new(codes::FILE_HIDDEN, found.object).because(reason));
            return Ok(None);
        }
    }
    let file = reopen(found.file, (libc::O_RDONLY | libc::O_NOATIME) as u32).map_err(failed("open (deleted file)"))?;
    let mut extents = Vec::new();
    if kind == libc::S_IFREG && other_name.is_none() {
        match read_extents(
            file.try_clone().map_err(errno).map_err(failed("dup"))?.into(),
            found.stat.st_size as u64,
            CONTENT_MAX,
        ) {
            Ok(read) => extents = read,
            Err(Errno::EFBIG) => {
                let size = found.stat.st_size;
                let reason = format!("it is {size} bytes long, of which more than {CONTENT_MAX} would have to travel");
                cx.blockers.push(Blocker::new(codes::GHOST_SIZE, found.object).because(reason));
                return Ok(None);
            }
            Err(errno) => return Err(failed("read (deleted file)")(errno)),
        }
    }
    let xattrs = xattr::all(&file).map_err(failed("flistxattr"))?;
    let id = GhostId::from(cx.model.ghosts.len());
    cx.model.ghosts.push(Ghost {
        path: path_ref(found.path, found.mnt, found.stat, true),
        uid: found.stat.st_uid,
        gid: found.stat.st_gid,
        atime_ns: nanoseconds(found.stat.st_atime, found.stat.st_atime_nsec),
        xattrs: xattrs.into_iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect(),
        extents,
        other_name,
    });
    cx.ghost_by_inode.insert(inode, id);
    Ok(Some(id))
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

/// Content without holes; `EFBIG` if it is more than `limit`.
pub fn read_extents(file: std::fs::File, size: u64, limit: u64) -> crate::sys::Result<Vec<(u64, Bytes)>> {
    let mut extents = Vec::new();
    let (mut at, mut total) = (0, 0);
    while at < size {
        let start = match lseek(&file, at as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break,
            // A file system without knowledge of holes.
            Err(Errno::EINVAL) => at,
            Err(e) => return Err(e),
        };
        let end = lseek(&file, start as i64, Whence::SeekHole).map_or(size, |end| end as u64).min(size);
        total += end.saturating_sub(start);
        if total > limit {
            return Err(Errno::EFBIG);
        }
        let mut bytes = vec![0; (end - start) as usize];
        file.read_exact_at(&mut bytes, start).map_err(errno)?;
        extents.push((start, Bytes(bytes)));
        at = end;
    }
    Ok(extents)
}

/// Another name of a file that still has one: in the directory where it was, or the one the kernel finds by its handle.
fn name_elsewhere(cx: &mut Cx<'_>, views: &mut Views, found: &Found<'_>) -> Result<Option<Bytes>> {
    let Some(view) = views.of(cx, found.mnt)? else { return Ok(None) };
    let inode = (found.stat.st_dev, found.stat.st_ino);
    let at = found.path.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let directory = &found.path.0[..at];
    if let Ok(fd) = view.open(&[directory, b"/"].concat(), libc::O_RDONLY | libc::O_DIRECTORY)
        && let Ok(mut entries) = Dir::from_fd(fd)
    {
        for entry in entries.iter().flatten().take(NAMES_MAX) {
            let path = [directory, b"/", entry.file_name().to_bytes()].concat();
            if entry.ino() == inode.1 && view.leads_to(&path, inode) {
                return Ok(Some(Bytes(path)));
            }
        }
    }
    let by_handle = file_handle::of(found.file).and_then(|(kind, data)| {
        let mount = view.open(&[directory, b"/"].concat(), libc::O_RDONLY | libc::O_DIRECTORY)?;
        file_handle::open(&mount, kind, &data, libc::O_PATH)
    });
    let Ok(again) = by_handle else { return Ok(None) };
    let path = ProcDir::of_self()?.readlink(&format!("fd/{}", again.as_raw_fd()))?;
    Ok(Some(path).filter(|path| view.leads_to(&path.0, inode)))
}
