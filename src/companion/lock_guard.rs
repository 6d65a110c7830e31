//! Sees to it that the lock on a target's network dies with its owner: a small process that gives TCP sockets and addresses
//! back when whoever has locked them ends without a word. The kernel lets the target go on then, and it must not be deaf: it
//! is held (a SIGSTOP waits for it) as long as its sockets are locked, and the guard continues it when they are not. A target
//! that was given less processor time gets back what it had.
//!
//! Messages over one socket (unix(7), `SOCK_SEQPACKET`): who is held; what is about to be locked, with its descriptors; that
//! everything was given back or stays locked for good. The end of the socket is the end of the owner. While it is not known who owns the target, nothing is
//! given back at that end: whoever decides then has another hand on the socket ([`Hand`]), and says what is to be done.

pub mod will;

use super::detach;
use super::held::Held;
use crate::net::address::Place;
use crate::net::announce::Announcer;
use crate::net::gate;
use crate::net::lock::{NetLock, Terms};
use crate::proc::cpu_limit::Before;
use crate::sys::{fd, socket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use will::Will;

/// The hidden first word of its command line.
const ENTRY: &str = "lock-guard-process";
/// Sockets in one message: it takes at most 253 descriptors.
const LOCKS_AT_ONCE: usize = 100;
/// Longest message, bytes: what a socket's buffer holds by default, with the room that the kernel needs.
const MESSAGE_MAX: usize = 128 << 10;

/// When addresses that came back are announced again.
const ANNOUNCE_AGAIN: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];

/// How long a target is continued again that was found stopped.
const WAKE_FOR: Duration = Duration::from_millis(300);

/// To the guard.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Message {
    /// These listening sockets let nobody begin a connection, from now on; their descriptors come with it.
    Gated(usize),
    /// This target stands still, and is held.
    Held(Held),
    /// These sockets are about to be locked; their descriptors come with it.
    Locked(Vec<Terms>),
    /// The target is about to get less processor time than this.
    Slowed(Before),
    /// This address was taken off its interface.
    Removed { ip: IpAddr, prefix: u8, interface: String },
    /// All sockets and addresses were given back. Who is held may be held yet.
    GivenBack,
    /// All stays as it is.
    Forget,
    /// From here on nothing is given back unasked.
    Hold,
    /// Everything is to be given back now, and a byte to be answered.
    GiveBack,
}

/// A guard, from its owner's side. Dropping it ends it: it gives back what it was told of since the last
/// [`Guard::forget`].
#[derive(Debug)]
pub struct Guard {
    /// Closed to end it.
    socket: Option<OwnedFd>,
    child: Child,
    /// There is another hand on the socket: its end is not ours to wait for.
    lent: bool,
    /// For a later program, should the guard be killed as well.
    will: Option<Will>,
    will_path: PathBuf,
}

/// Another hand on a guard: of whoever decides when its owner is dead.
#[derive(Debug)]
pub struct Hand(OwnedFd);

/// How long giving back may take.
const GIVING_BACK: Duration = Duration::from_secs(3);

impl Hand {
    /// With this descriptor, which came from [`Guard::lend`].
    pub fn of(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Everything is given back when this returns.
    ///
    /// # Errors
    /// The guard has died, or does not answer.
    pub fn give_back(&self) -> io::Result<()> {
        send(&self.0, &Message::GiveBack, &[])?;
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(GIVING_BACK).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, limit)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Everything stays as it is for good.
    ///
    /// # Errors
    /// The guard has died.
    pub fn forget(&self) -> io::Result<()> {
        send(&self.0, &Message::Forget, &[])
    }
}

impl Guard {
    /// Starts one. It takes some milliseconds. What it is told is written down in this run-time directory.
    ///
    /// # Errors
    /// No process can be made.
    pub fn start(run: &Path) -> io::Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let (ours, theirs) = socket::socketpair(libc::SOCK_SEQPACKET)?;
        let will_path = will::path(run, std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(super::OWN_PROGRAM);
        command.arg0("migrate").arg(ENTRY).arg(&will_path);
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.current_dir("/").spawn()?;
        let warn =
            |error: &io::Error| tracing::warn!(%error, "nobody takes the place of a guard that is killed as well");
        let will = Will::begin(&will_path, child.id()).inspect_err(warn).ok();
        Ok(Self { socket: Some(ours), child, lent: false, will, will_path })
    }

    /// These listening sockets are about to let nobody begin a connection.
    ///
    /// # Errors
    /// The guard has died.
    pub fn gated(&self, listeners: &[OwnedFd]) -> io::Result<()> {
        for some in listeners.chunks(LOCKS_AT_ONCE) {
            let fds: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
            self.send(&Message::Gated(fds.len()), &fds)?;
        }
        Ok(())
    }

    /// This target is held: it goes on once its sockets are given back.
    ///
    /// # Errors
    /// The guard has died.
    pub fn holds(&self, target: &Held) -> io::Result<()> {
        self.send(&Message::Held(target.clone()), &[])
    }

    /// These sockets are about to be locked.
    ///
    /// # Errors
    /// The guard has died.
    pub fn locks(&self, all: &[(BorrowedFd<'_>, Terms)]) -> io::Result<()> {
        for some in all.chunks(LOCKS_AT_ONCE) {
            let fds: Vec<BorrowedFd<'_>> = some.iter().map(|(fd, _)| *fd).collect();
            self.send(&Message::Locked(some.iter().map(|(_, terms)| terms.clone()).collect()), &fds)?;
        }
        Ok(())
    }

    /// The target is about to get less processor time than this.
    ///
    /// # Errors
    /// The guard has died.
    pub fn slowed(&self, before: &Before) -> io::Result<()> {
        self.send(&Message::Slowed(before.clone()), &[])
    }

    /// This address was taken off its interface.
    ///
    /// # Errors
    /// The guard has died.
    pub fn removed(&self, place: &Place) -> io::Result<()> {
        let Place { ip, prefix, interface } = place.clone();
        self.send(&Message::Removed { ip, prefix, interface }, &[])
    }

    /// Sockets and addresses were given back. The guard closes its descriptors, and still continues the target if its owner
    /// dies before that one runs.
    ///
    /// # Errors
    /// The guard has died.
    pub fn given_back(&self) -> io::Result<()> {
        self.send(&Message::GivenBack, &[])
    }

    /// Everything stays as it is for good.
    ///
    /// # Errors
    /// The guard has died.
    pub fn forget(&self) -> io::Result<()> {
        self.send(&Message::Forget, &[])
    }

    /// From here on nothing is given back unasked: it is not known who owns the target.
    ///
    /// # Errors
    /// The guard has died.
    pub fn hold(&self) -> io::Result<()> {
        self.send(&Message::Hold, &[])
    }

    /// A descriptor for a [`Hand`] in another process.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn lend(&mut self) -> io::Result<Option<OwnedFd>> {
        let hand = self.socket.as_ref().map(OwnedFd::try_clone).transpose()?;
        self.lent = hand.is_some();
        Ok(hand)
    }

    fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        // Before the guard knows it: what it does not know of is as it was, and giving that back changes nothing.
        if let Some(Err(error)) = self.will.as_ref().map(|will| will.note(message, fds)) {
            tracing::debug!(%error, "what a guard is told is not written down");
        }
        self.socket.as_ref().map_or(Ok(()), |to| send(to, message, fds))
    }
}

fn send(to: &OwnedFd, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    // A guard that does not read is no reason for a longer pause.
    socket::send(to.as_fd(), &bytes, &[], fds, None, libc::MSG_DONTWAIT)?;
    Ok(())
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.socket = None;
        if !self.lent {
            let _ = self.child.wait();
            let _ = std::fs::remove_file(&self.will_path);
        }
    }
}

/// What a guard would give back.
#[derive(Default)]
struct Entrusted {
    gated: Vec<OwnedFd>,
    target: Option<Held>,
    locks: Vec<NetLock>,
    addresses: Vec<Place>,
    slowed: Option<Before>,
    /// Nothing is given back unasked.
    held: bool,
}

impl Entrusted {
    /// Process id of the root of the target.
    fn root(&self) -> Option<i32> {
        self.target.as_ref().and_then(Held::root)
    }

    fn give_back(self, done: impl FnOnce()) {
        // The cgroup may have gone with its processes.
        self.slowed.inspect(|before| drop(before.put_back()));
        let mut announcers = Vec::new();
        for place in self.addresses {
            // The owner may have done it, and died before it could say so.
            if place.is_here() || place.add().is_ok() {
                announcers.extend(Announcer::open(None, &place.interface).ok().map(|to| (place.ip, to)));
            }
        }
        // A target that was ended on purpose has left them: their last close must be silent.
        let ended = self.target.as_ref().is_some_and(|target| !target.is_there());
        let announce = || announcers.iter().for_each(|(ip, to)| drop(to.announce(*ip)));
        announce();
        for lock in self.locks {
            // What somebody has touched since is not ours to undo.
            if lock.is_left() && !ended {
                let _ = lock.unlock();
            } else {
                lock.keep();
            }
        }
        self.gated.iter().for_each(|listener| gate::open(listener.as_fd()));
        let mut target = self.target;
        target.iter_mut().for_each(Held::wake);
        done();
        // Its tracer's end comes after that of its descriptors, and a signal may have been on its way then.
        let end = Instant::now() + WAKE_FOR;
        while target.is_some() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
            target.iter_mut().for_each(Held::wake);
        }
        // The destination may have announced itself before it learned that nobody comes.
        for wait in ANNOUNCE_AGAIN.iter().filter(|_| !announcers.is_empty()) {
            std::thread::sleep(*wait);
            announce();
        }
    }

    fn given_back(&mut self) {
        self.locks.drain(..).for_each(NetLock::keep);
        self.gated.clear();
        self.addresses.clear();
    }

    fn forget(&mut self) {
        self.given_back();
        self.target = None;
        self.slowed = None;
        self.held = false;
    }
}

/// Runs a guard process; the exit code. Standard input is its socket.
pub fn main() -> u8 {
    if fd::close_from(3).is_err() {
        return 1;
    }
    detach::leave_the_caller();
    allow_many();
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let Ok(null) = std::fs::File::open("/dev/null") else { return 1 };
    if fd::replace_stdin(null.as_fd()).is_err() {
        return 1;
    }
    let mut entrusted = Entrusted::default();
    let mut room = vec![0; MESSAGE_MAX];
    loop {
        match socket::receive(input.as_fd(), &mut room, 0) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break,
            Ok(received) if received.len == 0 => break,
            // Nobody else speaks to us: a defect, after which the owner's own way out still works.
            Ok(received) => {
                if let Ok(message) = serde_json::from_slice(&room[..received.len]) {
                    take(&mut entrusted, Some(&input), message, received.fds);
                }
            }
        }
    }
    if entrusted.held {
        entrusted.forget();
    }
    entrusted.give_back(|| {});
    if let Some(will) = std::env::args_os().nth(2) {
        let _ = std::fs::remove_file(will);
    }
    0
}

fn take(entrusted: &mut Entrusted, from: Option<&OwnedFd>, message: Message, fds: Vec<OwnedFd>) {
    match message {
        Message::Locked(terms) if terms.len() == fds.len() => {
            entrusted.locks.extend(fds.into_iter().zip(terms).map(|(fd, terms)| NetLock::of_terms(fd, terms)));
        }
        Message::Gated(count) if count == fds.len() => entrusted.gated.extend(fds),
        Message::Held(target) => entrusted.target = Some(target),
        Message::Slowed(before) => drop(entrusted.slowed.get_or_insert(before)),
        Message::GivenBack => entrusted.given_back(),
        Message::Removed { ip, prefix, interface } => entrusted.addresses.push(Place { ip, prefix, interface }),
        Message::Forget => entrusted.forget(),
        Message::Hold => entrusted.held = true,
        Message::GiveBack => std::mem::take(entrusted).give_back(|| {
            // Whoever has asked may be gone.
            let _ = from.map(|from| socket::send(from.as_fd(), b"1", &[], &[], None, libc::MSG_DONTWAIT));
        }),
        // Descriptors are missing: a defect likewise.
        Message::Locked(_) | Message::Gated(_) => {}
    }
}

/// A descriptor for each connection of a target.
fn allow_many() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Is this the first argument of a guard process?
pub fn is_entry(argument: &OsStr) -> bool {
    argument == ENTRY
}
