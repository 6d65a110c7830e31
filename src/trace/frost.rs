//! A cgroup that holds a tree and nobody else is frozen for the moment in which its tasks are asked to stop: meanwhile none of them
//! runs, makes children or ends, so that the first look finds all of them.
//!
//! Measured on 6.18, two processors, both busy: forty processes that fork and wait all the time stop in 21 ms this way and in 54 ms
//! otherwise, 177 ms at worst; six hundred threads that sleep for 1 ms each time in 170 ms, otherwise in 266 ms. A hundred idle
//! processes gain nothing (41 ms, otherwise 37 ms). So this is for trees of many tasks, and for those that did not stop.
//!
//! In version 2 a frozen task reports the stop that it was asked for, in version 1 only when it is thawed; in neither does it
//! execute what we have for it to execute. So the cgroup is thawed as soon as all are asked, whose next step is into that stop.
//!
//! Who kills this program meanwhile must not leave the cgroup frozen: a child of ours thaws it then, which is made before.

use super::{Error, Result};
use crate::fault::{self, Point};
use crate::image::Pid;
use crate::proc::cgroupfs::{self, Freezer};
use crate::sys::fd::pidfd_open;
use crate::sys::{Errno, clone, wait};
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// From so many threads on a tree is stopped this way from the beginning.
pub(super) const MANY: usize = 64;

/// How long the tasks of a cgroup may take to stand still. One in the kernel may take for ever.
const COMING: Duration = Duration::from_millis(20);

/// A frozen cgroup; thawed when dropped.
#[derive(Debug)]
pub(super) struct Frost {
    freezer: Freezer,
    /// When it was told to freeze.
    pub since: Instant,
    frozen: bool,
    /// Who thaws it should we die.
    heir: Pid,
}

impl Frost {
    /// Freezes the cgroup of the tree of `root`. `None`: the tree has none for itself, it is not ours to freeze, or it
    /// cannot be frozen at this moment; it runs on then.
    pub fn over(root: Pid) -> Option<Self> {
        let freezer = cgroupfs::freezer_around(root).ok()??;
        // What somebody else has frozen is theirs.
        if freezer.is_set().unwrap_or(true) {
            return None;
        }
        let heir = heir(&freezer).inspect_err(|error| tracing::debug!(%error, "{freezer:?} is left alone")).ok()?;
        let mut frost = Self { freezer, since: Instant::now(), frozen: false, heir };
        let stands = frost.freeze().inspect_err(|error| tracing::debug!(%error, "not frozen"));
        // Dropped, it thaws. Who executes another program holds a lock that seizing waits for, and waits for the ends of its
        // threads, which in version 1 come only when they are thawed: nobody is to be seized while the cgroup is half frozen.
        let frost = stands.is_ok_and(|stands| stands).then_some(frost)?;
        tracing::debug!("all tasks of {} stand still", frost.freezer.dir.display());
        fault::strike(Point::CgroupFrozen);
        Some(frost)
    }

    /// Whether everybody stands still.
    fn freeze(&mut self) -> std::io::Result<bool> {
        let until = Instant::now() + COMING;
        self.frozen = true;
        self.freezer.set(true)?;
        while !self.freezer.all_stand()? {
            if Instant::now() > until {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(true)
    }

    /// Lets its tasks go on, each to the stop that it was asked for. No harm if they do already.
    pub fn thaw(&mut self) -> Result<()> {
        if std::mem::take(&mut self.frozen) {
            let dir = || self.freezer.dir.display().to_string();
            self.freezer.set(false).map_err(|source| Error::Freezer { dir: dir(), source })?;
        }
        Ok(())
    }
}

/// A process that thaws this cgroup when we end.
fn heir(freezer: &Freezer) -> crate::sys::Result<Pid> {
    let failed = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let file = OpenOptions::new().write(true).open(freezer.file()).map_err(failed)?;
    let ourselves = pidfd_open(Pid(std::process::id() as i32))?;
    clone::heir(ourselves.as_fd(), file.as_fd(), freezer.word(false).as_bytes())
}

impl Drop for Frost {
    fn drop(&mut self) {
        match self.thaw() {
            // Nobody has reaped it: its number is its own.
            Ok(()) => {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.heir.0), nix::sys::signal::SIGKILL);
                let _ = wait::wait(self.heir);
            }
            // The heir stays, and tries again when we end.
            Err(error) => tracing::warn!(%error, "the cgroup of the target could not be thawed"),
        }
    }
}
