//! Destination: contents that sessions of one evacuation share, each of them a process of its own. A directory beside the journals:
//!
//! ```text
//! NAME.common/pages     contents, one behind the other; only ever added to, under a lock of `digests`
//! NAME.common/digests   which shelf this is, and since which start of this host; then the digest of each of the contents
//! NAME.common/owner     locked by the session process that removes it when nobody has used it for a while
//! NAME.common/used      locked by every session that uses it
//! ```
//! A content is there once its digest is. It is removed when the source says that the evacuation is over ([`forget`]), or, as of
//! pages that are kept warm ([`leftover`]), by a session that has stayed for that, or by the next one that finds nobody there.

use super::{CommonId, Shared};
use crate::image::mm::PAGE;
use crate::memory::store::free_bytes;
use crate::migration::leftover;
use crate::migration::pages::DIGEST_BYTES;
use crate::migration::shelf::SHELF_MAX;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How its directory ends.
pub const END: &str = ".common";

/// Shelves beside one set of journals, at most: a GiB.
const SHELVES_MAX: usize = 4;

/// So long it stays when nobody uses it: other hosts may have their turn meanwhile.
const HELD_FOR: Duration = Duration::from_secs(15 * 60);

/// Until whoever adds contents is done, which takes milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Between two looks whether it is.
const LOCK_LOOK: Duration = Duration::from_micros(200);

/// Of the file of digests: 128 random bits, and as many of this start of the host. After another one what was written is in doubt.
const HEAD_BYTES: usize = 32;

type Digest = [u8; DIGEST_BYTES];

/// Where contents of a shelf lie, as far as this process has read.
#[derive(Debug, Default)]
struct Index {
    places: HashMap<Digest, u64>,
    /// Contents that were read of the file.
    read: u64,
}

/// A shelf that is used.
#[derive(Debug)]
pub struct CommonShelf {
    dir: PathBuf,
    pages: File,
    digests: File,
    index: Mutex<Index>,
    shared: Shared,
    /// Contents it takes at most, of any of the sessions of its peer.
    most: u64,
    used: Flock<File>,
}

/// Where a shelf lies: who has begun it, and has to know its id, finds it again.
fn directory(journals: &Path, principal: &str, id: CommonId) -> PathBuf {
    let mut name = blake3::Hasher::new();
    name.update(principal.as_bytes()).update(&[0]).update(&id.0);
    journals.join(format!("{}{END}", &name.finalize().to_hex()[..32]))
}

/// Whether a directory is that of a shelf, by its name: no image that somebody has named for its pages is called so.
pub fn is_one(dir: &Path) -> bool {
    let hash = dir.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(END));
    hash.is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

impl CommonShelf {
    /// The one that this peer has begun under this id, or a new one; it takes no more bytes than a target may have. `None`: there is
    /// no room.
    ///
    /// # Errors
    /// Those of files.
    pub fn begin(
        journals: &Path,
        (principal, id): (&str, CommonId),
        max_memory_bytes: Option<u64>,
    ) -> io::Result<Option<Self>> {
        leftover::sweep_those(journals, END);
        let dir = directory(journals, principal, id);
        let is_new = !dir.exists();
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        // Counted when it is there: several may be begun at the same time.
        if is_new && others(journals) > SHELVES_MAX {
            leftover::remove(&dir);
            return Ok(None);
        }
        let mut shelf = Self::open(&dir)?;
        shelf.most = max_memory_bytes.map_or(shelf.most, |max| shelf.most.min(max / PAGE));
        // Of what is free a half is for the target, which may have to be parked there.
        let free = free_bytes(journals).map_err(Error::other)? / 2 / PAGE + shelf.lock().read;
        shelf.shared.room_pages = u32::try_from(free.min(shelf.most)).unwrap_or(u32::MAX);
        Ok((shelf.shared.room_pages > 0).then_some(shelf))
    }

    /// One that is there.
    ///
    /// # Errors
    /// Those of files; it is being removed.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let used = leftover::lock(dir, "used", FlockArg::LockShared)?;
        let file = |name: &str| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(name))
        };
        let (pages, digests) = (file("pages")?, file("digests")?);
        let instance = {
            let _alone = alone(&digests)?;
            head(&digests, &pages)?
        };
        let shared = Shared { instance, room_pages: 0 };
        let shelf =
            Self { dir: dir.to_owned(), pages, digests, index: Mutex::default(), shared, most: SHELF_MAX as u64, used };
        shelf.catch_up(&mut shelf.lock())?;
        Ok(shelf)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the source is told of it.
    pub fn shared(&self) -> Shared {
        self.shared
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what others have added.
    fn catch_up(&self, index: &mut Index) -> io::Result<()> {
        let there = self.digests.metadata()?.len().saturating_sub(HEAD_BYTES as u64) / DIGEST_BYTES as u64;
        let mut bytes = vec![0; there.saturating_sub(index.read) as usize * DIGEST_BYTES];
        self.digests.read_exact_at(&mut bytes, HEAD_BYTES as u64 + index.read * DIGEST_BYTES as u64)?;
        for digest in bytes.as_chunks::<DIGEST_BYTES>().0 {
            index.places.entry(*digest).or_insert(index.read);
            index.read += 1;
        }
        Ok(())
    }

    /// Adds contents that are not there. Whether there was room for all of them.
    ///
    /// # Errors
    /// Those of files, as of a full disk.
    pub fn keep(&self, pages: &[(Digest, &[u8])]) -> io::Result<bool> {
        let mut index = self.lock();
        let _alone = alone(&self.digests)?;
        self.catch_up(&mut index)?;
        let (begin, mut contents, mut digests) = (index.read, Vec::new(), Vec::new());
        let mut fits = true;
        for (digest, page) in pages {
            if index.places.contains_key(digest) {
                continue;
            }
            fits = index.read < self.most;
            if !fits {
                break;
            }
            let place = index.read;
            index.places.insert(*digest, place);
            index.read += 1;
            contents.extend_from_slice(page);
            digests.extend_from_slice(digest);
        }
        self.pages.write_all_at(&contents, begin * PAGE)?;
        self.digests.write_all_at(&digests, HEAD_BYTES as u64 + begin * DIGEST_BYTES as u64)?;
        Ok(fits)
    }

    /// Reads the content with that digest; whether it is there by now. The caller checks it.
    ///
    /// # Errors
    /// Those of files.
    pub fn read(&self, digest: &Digest, content: &mut [u8]) -> io::Result<bool> {
        let mut index = self.lock();
        if !index.places.contains_key(digest) {
            self.catch_up(&mut index)?;
        }
        let Some(place) = index.places.get(digest).copied() else { return Ok(false) };
        drop(index);
        self.pages.read_exact_at(content, place * PAGE)?;
        Ok(true)
    }

    /// The session is over. Unless another process does it already, this one stays until the shelf is not needed any more.
    pub fn hold(self) {
        self.hold_for(HELD_FOR);
    }

    fn hold_for(self, time: Duration) {
        let Self { dir, used, .. } = self;
        let Ok(_owner) = leftover::lock(&dir, "owner", FlockArg::LockExclusiveNonblock) else { return };
        drop(used);
        leftover::hold(&dir, time);
    }
}

/// Shelves that there are.
fn others(journals: &Path) -> usize {
    fs::read_dir(journals).into_iter().flatten().flatten().filter(|entry| is_one(&entry.path())).count()
}

/// Nobody else adds anything for as long as this is there. It holds for the open file: threads of this process have their index.
///
/// # Errors
/// [`ErrorKind::TimedOut`]: somebody who does stands still.
fn alone(digests: &File) -> io::Result<Flock<File>> {
    let (mut file, until) = (digests.try_clone()?, Instant::now() + LOCK_WAIT);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= until => return Err(ErrorKind::TimedOut.into()),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
            Err((_, errno)) => return Err(errno.into()),
        }
        std::thread::sleep(LOCK_LOOK);
    }
}

/// Which shelf this is. What was written before this host was started anew is gone.
fn head(digests: &File, pages: &File) -> io::Result<[u8; 16]> {
    let boot = crate::proc::sys::boot_id().map_err(Error::other)?;
    let boot = blake3::hash(boot.to_string().as_bytes());
    let (mut head, start) = ([0; HEAD_BYTES], &boot.as_bytes()[..16]);
    match digests.read_exact_at(&mut head, 0) {
        Ok(()) if head[16..] == *start => {}
        Ok(()) => return begin(digests, pages, start),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return begin(digests, pages, start),
        Err(error) => return Err(error),
    }
    Ok(*head.first_chunk().expect("it is longer"))
}

fn begin(digests: &File, pages: &File, start: &[u8]) -> io::Result<[u8; 16]> {
    let instance = crate::transport::link::random_bits().map_err(Error::other)?;
    digests.set_len(0)?;
    pages.set_len(0)?;
    digests.write_all_at(&[&instance, start].concat(), 0)?;
    Ok(instance)
}

/// The evacuation of this peer is over.
pub fn forget(journals: &Path, principal: &str, id: CommonId) {
    leftover::remove(&directory(journals, principal, id));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE as usize]
    }

    fn digest(fill: u8) -> Digest {
        blake3::hash(&page(fill)).into()
    }

    fn id(n: u8) -> CommonId {
        CommonId([n; 16])
    }

    fn begin(journals: &Path, principal: &str, n: u8) -> CommonShelf {
        CommonShelf::begin(journals, (principal, id(n)), None).unwrap().unwrap()
    }

    fn keep(shelf: &CommonShelf, fills: &[u8]) -> bool {
        let pages: Vec<_> = fills.iter().map(|fill| page(*fill)).collect();
        let pages: Vec<_> = fills.iter().map(|fill| digest(*fill)).zip(pages.iter().map(Vec::as_slice)).collect();
        shelf.keep(&pages).unwrap()
    }

    fn reads(shelf: &CommonShelf, fill: u8) -> bool {
        let mut content = page(0);
        let is_there = shelf.read(&digest(fill), &mut content).unwrap();
        assert!(!is_there || content == page(fill));
        is_there
    }

    #[test]
    fn what_one_session_keeps_another_reads_and_strangers_do_not() {
        let journals = tempfile::tempdir().unwrap();
        let (one, other) = (begin(journals.path(), "a", 1), begin(journals.path(), "a", 1));
        assert_eq!(one.shared(), other.shared());
        assert!(keep(&one, &[1, 2, 1]) && keep(&other, &[2, 3]));
        for fill in [1, 2, 3] {
            assert!(reads(&one, fill) && reads(&other, fill));
        }
        assert!(!reads(&one, 4));
        assert_eq!(fs::metadata(one.dir().join("pages")).unwrap().len(), 3 * PAGE, "each once");
        let strangers = [begin(journals.path(), "b", 1), begin(journals.path(), "a", 2)];
        assert!(strangers.iter().all(|shelf| !reads(shelf, 1) && shelf.shared().instance != one.shared().instance));
    }

    #[test]
    fn shelves_and_their_room_are_limited() {
        let journals = tempfile::tempdir().unwrap();
        let all: Vec<_> = (0..SHELVES_MAX as u8).map(|n| begin(journals.path(), "a", n)).collect();
        assert!(CommonShelf::begin(journals.path(), ("a", id(99)), None).unwrap().is_none());
        let again = CommonShelf::begin(journals.path(), ("a", id(0)), Some(3 * PAGE)).unwrap().unwrap();
        assert_eq!(again.shared().room_pages, 3);
        assert!(CommonShelf::begin(journals.path(), ("a", id(0)), Some(1)).unwrap().is_none());
        drop((all, again));
        // Nobody looks after them: the next session does away with them.
        begin(journals.path(), "a", 99);
        assert_eq!(others(journals.path()), 1);
    }

    #[test]
    fn what_was_written_before_the_host_was_started_is_not_there() {
        let journals = tempfile::tempdir().unwrap();
        let shelf = begin(journals.path(), "a", 1);
        let instance = shelf.shared().instance;
        keep(&shelf, &[1, 2]);
        shelf.digests.write_all_at(&[0; 16], 16).unwrap();
        let later = CommonShelf::open(shelf.dir()).unwrap();
        assert!(later.shared().instance != instance && !reads(&later, 1));
    }

    #[test]
    fn it_is_there_until_nobody_uses_it_or_it_is_forgotten() {
        let journals = tempfile::tempdir().unwrap();
        let time = Duration::from_millis(100);
        let (first, second) = (begin(journals.path(), "a", 1), begin(journals.path(), "a", 1));
        let dir = first.dir().to_owned();
        let holds = std::thread::spawn(move || first.hold_for(time));
        std::thread::sleep(5 * time);
        assert!(dir.exists() && !holds.is_finished(), "somebody uses it");
        second.hold_for(time);
        holds.join().unwrap();
        assert!(!dir.exists());
        let shelf = begin(journals.path(), "a", 1);
        let holds = std::thread::spawn(move || shelf.hold());
        forget(journals.path(), "b", id(1));
        assert!(dir.exists(), "it is not theirs");
        forget(journals.path(), "a", id(1));
        holds.join().unwrap();
        assert!(!dir.exists());
    }
}
