//! Pages that a destination keeps which has not got the target: it is to be kept up to date from where the target is now (`--keep-warm`),
//! and what it has already need not come again. A directory beside the journal of the attempt:
//!
//! ```text
//! ATTEMPT.kept/image/   the target as it stood ready there
//! ATTEMPT.kept/owner    locked by the session process that has written it, which removes it when nobody has used it for a lease
//! ATTEMPT.kept/used     locked by every session whose offer names it as its base
//! ```
//! It is named by the attempt ([`name`]), as no other host knows where it is.

use super::protocol::AttemptId;
use super::{common_pages, parked};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How its name begins: no path at another host does.
const NAME: &str = "kept:";

/// How its directory ends.
const END: &str = ".kept";

/// Between two looks whether somebody uses it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What an offer calls the pages that were kept of this attempt.
pub fn name(attempt: AttemptId) -> String {
    format!("{NAME}{attempt}")
}

/// Where they are, if an offer's base is that; they may be gone.
pub fn directory_of(journals: &Path, base: &[u8]) -> Option<PathBuf> {
    let attempt = std::str::from_utf8(base).ok()?.strip_prefix(NAME)?;
    let is_one = attempt.len() == 32 && attempt.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_one.then(|| journals.join(format!("{attempt}{END}")))
}

/// Where those of this attempt are.
pub fn directory(journals: &Path, attempt: AttemptId) -> PathBuf {
    journals.join(format!("{attempt}{END}"))
}

/// Locks a file of such a directory.
pub(super) fn lock(dir: &Path, name: &str, how: FlockArg) -> io::Result<Flock<File>> {
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(name))?;
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

/// Pages that this process keeps. Dropped, they stay until somebody sweeps.
#[derive(Debug)]
pub struct Leftover {
    dir: PathBuf,
    lease: Duration,
    _owner: Flock<File>,
}

impl Leftover {
    /// Makes the directory, for an image in it ([`parked::image`]).
    ///
    /// # Errors
    /// A full disk.
    pub fn begin(dir: &Path, lease: Duration) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(dir)?;
        let owner = lock(dir, "owner", FlockArg::LockExclusiveNonblock)?;
        Ok(Self { dir: dir.to_owned(), lease, _owner: owner })
    }

    /// They are not worth keeping.
    pub fn discard(self) {
        remove(&self.dir);
    }

    /// Waits until nobody has used them for a lease, or somebody has removed them; then they are gone.
    pub fn hold(self) {
        hold(&self.dir, self.lease);
    }
}

/// Waits until nobody has used such a directory for so long, or somebody has removed it; then it is gone.
pub(super) fn hold(dir: &Path, lease: Duration) {
    let mut used = Instant::now();
    while used.elapsed() < lease && dir.exists() {
        if lock(dir, "used", FlockArg::LockExclusiveNonblock).is_err() {
            used = Instant::now();
        }
        std::thread::sleep(LOOK_EVERY.min(lease / 4));
    }
    remove(dir);
}

/// Removes it, if it is there.
pub(super) fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "pages that were kept stay");
        }
        _ => {}
    }
}

/// Somebody uses them.
#[derive(Debug)]
pub struct Used {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Used {
    /// From now on; `None`: they are gone.
    pub fn begin(dir: &Path) -> Option<Self> {
        let lock = parked::is_there(dir).ok().filter(|is| *is).and_then(|_| {
            // The owner only looks.
            lock(dir, "used", FlockArg::LockShared).ok()
        })?;
        dir.exists().then(|| Self { dir: dir.to_owned(), _lock: lock })
    }

    /// The image.
    pub fn image(&self) -> PathBuf {
        parked::image(&self.dir)
    }

    /// Nobody needs them any more.
    pub fn end(self) {
        remove(&self.dir);
    }
}

/// Removes what a process has kept that is dead; also what trees of an evacuation have shared.
pub fn sweep(journals: &Path) {
    sweep_those(journals, END);
    sweep_those(journals, common_pages::shelf::END);
}

/// The same of directories whose names end like this.
pub(super) fn sweep_those(journals: &Path, end: &str) {
    for entry in fs::read_dir(journals).into_iter().flatten().flatten() {
        let dir = entry.path();
        let is_kept = dir.file_name().is_some_and(|name| name.to_string_lossy().ends_with(end));
        if is_kept
            && let Ok(_owner) = lock(&dir, "owner", FlockArg::LockExclusiveNonblock)
            && let Ok(_used) = lock(&dir, "used", FlockArg::LockExclusiveNonblock)
        {
            remove(&dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(100);

    fn kept(journals: &Path, lease: Duration) -> (PathBuf, Leftover) {
        let dir = directory(journals, AttemptId([0xa7; 16]));
        let kept = Leftover::begin(&dir, lease).unwrap();
        fs::create_dir(parked::image(&dir)).unwrap();
        (dir, kept)
    }

    #[test]
    fn only_an_attempt_is_a_name() {
        let (journals, attempt) = (Path::new("/j"), AttemptId([0xa7; 16]));
        assert_eq!(directory_of(journals, name(attempt).as_bytes()), Some(directory(journals, attempt)));
        for other in ["/j/x", "kept:", "kept:../../../../../../../../etc/xyz", "kept:A7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7"]
        {
            assert_eq!(directory_of(journals, other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn they_are_gone_a_lease_after_nobody_uses_them() {
        let journals = tempfile::tempdir().unwrap();
        let (dir, kept) = kept(journals.path(), LEASE);
        let used = Used::begin(&dir).unwrap();
        let holds = std::thread::spawn(|| kept.hold());
        std::thread::sleep(5 * LEASE);
        sweep(journals.path());
        assert!(used.image().exists(), "somebody uses them");
        drop(used);
        holds.join().unwrap();
        assert!(!dir.exists() && Used::begin(&dir).is_none());
    }

    #[test]
    fn who_is_done_with_them_removes_them_and_what_a_dead_process_has_left_is_swept() {
        let journals = tempfile::tempdir().unwrap();
        let (dir, of_first) = kept(journals.path(), Duration::from_secs(60));
        sweep(journals.path());
        Used::begin(&dir).unwrap().end();
        of_first.hold();
        let (dir, of_second) = kept(journals.path(), LEASE);
        drop(of_second);
        sweep(journals.path());
        assert!(!dir.exists());
    }
}
