//! The tracker: holds the userfaultfds of a tree from a pre-dump to the next dump. Closing them would lose the tracking.
//!
//! It is found by the root's process id and start time, in the name of its socket in the run-time directory, and by the
//! session id that `migrate cancel` takes. A dump takes the descriptors over; the tracker ends when it has them. It also ends
//! with the target, after a time, and when it is told to.
//!
//! Conversation, over a UNIX stream socket (the directory is private): the client sends one byte, `T` (take over) or `C`
//! (cancel). To `T` it answers with the length (u32, little-endian) and the JSON of [`Kept`], then one descriptor for each
//! space; the client's `A` ends it. To `C` it answers `A` and ends.

use super::{detach, parcel, spawn};
use crate::image::Pid;
use crate::memory::track::{Tracking, uffd::Uffd};
use crate::memory::{PageRange, RangeSet};
use crate::proc::ProcDir;
use crate::sys::fd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// First argument of a tracker process; not a verb of the command line.
pub const ENTRY: &str = "tracker-process";

/// A client that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a tracker keeps of one address space, besides its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSpace {
    /// A process that has it.
    pub pid: i32,
    /// When that started, clock ticks after boot.
    pub start_time: u64,
    /// What is registered: (first page, pages).
    pub tracked: Vec<(u64, u64)>,
    /// Its userfaultfd handles faults of the kernel.
    #[serde(default)]
    pub kernel_faults: bool,
    /// Pages whose copy in the image is not good.
    pub owed: Vec<(u64, u64)>,
}

/// What a tracker keeps of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Root of the tree.
    pub root: i32,
    /// When it started.
    pub start_time: u64,
    /// The session that left it.
    pub session: String,
    /// The image that has every page but those written since.
    pub image: String,
    /// Address spaces, one for each descriptor.
    pub spaces: Vec<KeptSpace>,
    /// Seconds until it ends by itself.
    pub keep_s: u64,
    /// Its socket.
    pub socket: PathBuf,
}

fn count(kept: &Kept) -> usize {
    kept.spaces.len()
}

/// A set of pages as it is kept.
pub fn pairs(set: &RangeSet) -> Vec<(u64, u64)> {
    set.iter().map(|r| (r.first, r.count)).collect()
}

/// The other way.
pub fn set(pairs: &[(u64, u64)]) -> RangeSet {
    pairs.iter().map(|&(first, count)| PageRange::new(first, count)).collect()
}

/// Goes on with what was kept of an address space.
pub fn tracking(space: &KeptSpace, fd: OwnedFd) -> Uffd {
    Uffd::kept(fd, set(&space.tracked), space.kernel_faults)
}

/// Ends the tracking of an address space.
pub fn end(space: &KeptSpace, fd: OwnedFd) {
    // Without a process there is nobody who would be held up by the close.
    if let Ok(dir) = ProcDir::open(Pid(space.pid)) {
        Box::new(tracking(space, fd)).end(&dir);
    }
}

fn prefix(root: Pid, start_time: u64) -> String {
    format!("tracker-{root}-{start_time}-")
}

/// Where the tracker of a session listens.
pub fn socket_path(run: &Path, root: Pid, start_time: u64, session: &str) -> PathBuf {
    run.join(format!("{}{session}.sock", prefix(root, start_time)))
}

/// Makes the run-time directory.
fn private_dir(run: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(run)
}

/// Starts a tracker. Returns when it has everything and listens.
///
/// # Errors
/// It cannot be started, or does not answer; then nothing is tracked any more.
pub fn leave(kept: &Kept, descriptors: &[OwnedFd]) -> io::Result<()> {
    private_dir(kept.socket.parent().unwrap_or(Path::new("/")))?;
    let (child, mut ours) = spawn(ENTRY)?;
    parcel::send(&mut ours, kept, descriptors)?;
    ours.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0];
    if let Err(e) = ours.read_exact(&mut answer) {
        child.kill();
        return Err(e);
    }
    // It has left our session; whoever reaps orphans reaps it.
    Ok(())
}

/// Takes over what the tracker of a tree holds, and ends it. `None`: there is no tracker.
pub fn take_over(run: &Path, root: Pid, start_time: u64) -> Option<(Kept, Vec<OwnedFd>)> {
    let wanted = prefix(root, start_time);
    sockets(run).into_iter().filter(|(name, _)| name.starts_with(&wanted)).find_map(|(_, path)| {
        let mut stream = connect(&path)?;
        stream.write_all(b"T").ok()?;
        let all = parcel::receive(&mut stream, count).ok()?;
        stream.write_all(b"A").ok()?;
        // It takes its name away before it ends: the next tracker of this tree must not be taken for it.
        let _ = stream.read(&mut [0]);
        Some(all)
    })
}

/// Ends the tracker of a session, named by its id or a beginning of it. Gives the ids that fit: exactly one was ended.
pub fn cancel(run: &Path, session: &str) -> Vec<String> {
    let fitting = trackers(run, session);
    if let [(_, path)] = fitting.as_slice()
        && let Some(mut stream) = connect(path)
        && stream.write_all(b"C").is_ok()
    {
        let _ = stream.read(&mut [0]);
    }
    fitting.into_iter().map(|(id, _)| id).collect()
}

/// The ids of sessions with a tracker that begin like this.
pub fn fitting(run: &Path, session: &str) -> Vec<String> {
    trackers(run, session).into_iter().map(|(id, _)| id).collect()
}

fn trackers(run: &Path, session: &str) -> Vec<(String, PathBuf)> {
    let mut fitting: Vec<(String, PathBuf)> = sockets(run)
        .into_iter()
        .filter_map(|(name, path)| Some((name.rsplit_once('-')?.1.strip_suffix(".sock")?.to_owned(), path)))
        .filter(|(id, _)| !session.is_empty() && id.starts_with(session))
        .collect();
    fitting.retain(|(_, path)| connect(path).is_some());
    fitting
}

/// Sockets of trackers: names and paths. Those that nobody listens at are removed by [`connect`].
fn sockets(run: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let names = entries.filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())));
    names.filter(|(name, _)| name.starts_with("tracker-") && name.ends_with(".sock")).collect()
}

fn connect(path: &Path) -> Option<UnixStream> {
    match UnixStream::connect(path) {
        Ok(stream) => {
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            stream.set_write_timeout(Some(PATIENCE)).ok()?;
            Some(stream)
        }
        Err(e) => {
            if e.kind() == io::ErrorKind::ConnectionRefused {
                // Left behind by a tracker that was killed.
                let _ = std::fs::remove_file(path);
            }
            None
        }
    }
}

/// Runs a tracker process; the exit code. Standard input is the socket that everything comes through.
pub fn main() -> u8 {
    if fd::close_from(3).is_err() {
        return 1;
    }
    detach::leave_the_caller();
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let mut input = UnixStream::from(input);
    let begun = input.set_read_timeout(Some(PATIENCE)).and_then(|()| parcel::receive(&mut input, count));
    let Ok((kept, descriptors)) = begun else { return 1 };
    match hold(&kept, &descriptors, input) {
        Ok(Ended::TakenOver) => {}
        Ok(Ended::NoLongerNeeded) => end_tracking(&kept, descriptors),
        Err(_) => return 1,
    }
    0
}

/// Why a tracker ends.
enum Ended {
    /// Somebody else has the descriptors.
    TakenOver,
    /// Nobody wants them.
    NoLongerNeeded,
}

fn hold(kept: &Kept, descriptors: &[OwnedFd], mut starter: UnixStream) -> io::Result<Ended> {
    let listener = UnixListener::bind(&kept.socket)?;
    let guard = Name(&kept.socket);
    let target = alive(kept)?;
    starter.write_all(b"A")?;
    drop(starter);
    // Standard input still refers to that socket.
    let null = std::fs::File::open("/dev/null")?;
    fd::replace_stdin(null.as_fd()).map_err(io::Error::from)?;
    let deadline = Instant::now() + Duration::from_secs(kept.keep_s);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Ended::NoLongerNeeded);
        }
        let timeout = PollTimeout::try_from(left.min(Duration::from_secs(3600))).unwrap_or(PollTimeout::MAX);
        let mut wanted =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(target.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let ready = |n: usize| wanted[n].revents().is_some_and(|r| !r.is_empty());
        let (client, ended) = (ready(0), ready(1));
        if ended {
            return Ok(Ended::NoLongerNeeded);
        }
        if !client {
            continue;
        }
        let Ok((mut client, _)) = listener.accept() else { continue };
        if let Some(ended) = serve(kept, descriptors, &mut client) {
            drop(guard);
            // The client goes on when this end is closed.
            return Ok(ended);
        }
    }
}

/// A descriptor that becomes readable when the root has ended; fails if that is another process by now.
fn alive(kept: &Kept) -> io::Result<OwnedFd> {
    let pid = Pid(kept.root);
    let pidfd = fd::pidfd_open(pid).map_err(io::Error::from)?;
    let stat = ProcDir::open(pid).and_then(|d| d.stat(&mut Vec::new())).map_err(io::Error::other)?;
    if stat.starttime != kept.start_time {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(pidfd)
}

/// Serves one client; tells how the tracker ends, if it does.
fn serve(kept: &Kept, descriptors: &[OwnedFd], client: &mut UnixStream) -> Option<Ended> {
    client.set_read_timeout(Some(PATIENCE)).ok()?;
    client.set_write_timeout(Some(PATIENCE)).ok()?;
    let mut byte = [0];
    client.read_exact(&mut byte).ok()?;
    match byte[0] {
        b'T' => {
            parcel::send(client, kept, descriptors).ok()?;
            client.read_exact(&mut byte).ok()?;
            (byte[0] == b'A').then_some(Ended::TakenOver)
        }
        b'C' => {
            client.write_all(b"A").ok()?;
            Some(Ended::NoLongerNeeded)
        }
        _ => None,
    }
}

fn end_tracking(kept: &Kept, descriptors: Vec<OwnedFd>) {
    for (space, fd) in kept.spaces.iter().zip(descriptors) {
        end(space, fd);
    }
}

/// Takes the socket's name away.
struct Name<'a>(&'a Path);

impl Drop for Name<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// Is this the first argument of a tracker process?
pub fn is_entry(argument: &OsStr) -> bool {
    argument == ENTRY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(run: &Path, session: &str) -> Kept {
        let stat = ProcDir::of_self().unwrap().stat(&mut Vec::new()).unwrap();
        let root = Pid(std::process::id() as i32);
        Kept {
            root: root.0,
            start_time: stat.starttime,
            session: session.into(),
            image: "id".into(),
            spaces: vec![KeptSpace {
                pid: root.0,
                start_time: 7,
                tracked: vec![(1, 2)],
                kernel_faults: true,
                owed: vec![],
            }],
            keep_s: 60,
            socket: socket_path(run, root, stat.starttime, session),
        }
    }

    #[test]
    fn descriptors_are_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        let kept = kept(dir.path(), "abcdefgh");
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let tracker = {
            let kept = kept.clone();
            std::thread::spawn(move || serve_one(&kept, &[null], theirs))
        };
        (&ours).read_exact(&mut [0]).unwrap();
        let root = Pid(kept.root);
        assert!(take_over(dir.path(), root, kept.start_time + 1).is_none());
        let (found, fds) = take_over(dir.path(), root, kept.start_time).unwrap();
        assert_eq!((found, fds.len()), (kept.clone(), 1));
        assert!(tracker.join().unwrap());
        assert!(take_over(dir.path(), root, kept.start_time).is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// As [`hold`] without touching this process's standard input.
    fn serve_one(kept: &Kept, descriptors: &[OwnedFd], mut starter: UnixStream) -> bool {
        let listener = UnixListener::bind(&kept.socket).unwrap();
        let guard = Name(&kept.socket);
        starter.write_all(b"A").unwrap();
        let (mut client, _) = listener.accept().unwrap();
        let ended = serve(kept, descriptors, &mut client);
        drop(guard);
        matches!(ended, Some(Ended::TakenOver))
    }

    #[test]
    fn a_dead_trackers_socket_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = socket_path(dir.path(), Pid(5), 6, "zzzzzzzz");
        drop(UnixListener::bind(&path).unwrap());
        assert!(take_over(dir.path(), Pid(5), 6).is_none());
        assert!(!path.exists());
        assert!(cancel(dir.path(), "zz").is_empty());
    }

    #[test]
    fn sets_survive() {
        let pages: RangeSet = [PageRange::new(3, 4), PageRange::new(9, 1)].into_iter().collect();
        assert_eq!(set(&pairs(&pages)), pages);
    }
}
