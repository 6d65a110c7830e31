//! Made by the engine; watches come last, so that nothing we do shows up as an event: inotify(7).

use super::Opened;
use super::roots::{self, Roots};
use crate::image::fd::FileKind;
use crate::image::fd::inotify::Watch;
use crate::image::{FileId, Model};
use crate::restore::{Error, Result, skeleton::Skeletons};
use crate::sys::inotify;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// An instance without watches.
pub(crate) fn make() -> Result<OwnedFd> {
    inotify::create(0).map_err(|errno| Error::System {
        operation: "inotify_init1",
        object: "an inotify instance".to_owned(),
        errno,
    })
}

/// Adds the watches of all instances under their numbers.
pub(crate) fn watch_all(model: &Model, opened: &Opened, skeletons: &Skeletons) -> Result<()> {
    let mut roots = Roots::default();
    for (n, file) in model.files.iter().enumerate() {
        let FileKind::Inotify(instance) = &file.kind else { continue };
        let fd = opened.file(FileId::from(n));
        for watch in &instance.watches {
            let root = roots.get(model, skeletons, watch.path.mnt)?;
            add(fd, root, watch)?;
        }
    }
    Ok(())
}

fn add(fd: BorrowedFd<'_>, root: &OwnedFd, watch: &Watch) -> Result<()> {
    let object = || format!("watch {} of {}", watch.wd, watch.path.path);
    let failed = |operation| move |errno| Error::System { operation, object: object(), errno };
    let watched = roots::open(root, &watch.path.path.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32)?;
    let link = CString::new(format!("/proc/self/fd/{}", watched.as_raw_fd())).expect("no NUL in digits");
    inotify::set_next_watch(fd, watch.wd).map_err(failed("ioctl INOTIFY_IOC_SETNEXTWD"))?;
    let wd = inotify::add_watch(fd, &link, watch.mask).map_err(failed("inotify_add_watch"))?;
    if wd != watch.wd {
        let reason = format!("it got number {wd}: another watch is of the same file here");
        return Err(Error::Impossible { object: object(), reason });
    }
    Ok(())
}
