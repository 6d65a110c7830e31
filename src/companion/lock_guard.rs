//! Sees to it that the lock on a target's network dies with its owner: a small process that gives TCP sockets and addresses
//! back when whoever has locked them ends without a word. The kernel lets the target go on then, and it must not be deaf.
//!
//! Messages over one socket (unix(7), `SOCK_SEQPACKET`): what is locked, with its descriptors; that everything was given back
//! or stays locked for good. The end of the socket is the end of the owner.

use super::detach;
use crate::net::address::Place;
use crate::net::announce::Announcer;
use crate::net::lock::{NetLock, Terms};
use crate::sys::{fd, socket};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The hidden first word of its command line.
const ENTRY: &str = "lock-guard-process";
/// Sockets in one message: it takes at most 253 descriptors.
const LOCKS_AT_ONCE: usize = 100;
/// Longest message, bytes: what a socket's buffer holds by default, with the room that the kernel needs.
const MESSAGE_MAX: usize = 128 << 10;

/// When addresses that came back are announced again.
const ANNOUNCE_AGAIN: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];

/// To the guard.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// These sockets are locked; their descriptors come with it.
    Locked(Vec<Terms>),
    /// This address was taken off its interface.
    Removed { ip: IpAddr, prefix: u8, interface: String },
    /// All was given back, or stays as it is.
    Forget,
}

/// A guard, from its owner's side. Dropping it ends it: it gives back what it was told of since the last
/// [`Guard::forget`].
#[derive(Debug)]
pub struct Guard {
    /// Closed to end it.
    socket: Option<OwnedFd>,
    child: Child,
}

impl Guard {
    /// Starts one. It takes some milliseconds.
    ///
    /// # Errors
    /// No process can be made.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = socket::socketpair(libc::SOCK_SEQPACKET)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg0("migrate").arg(ENTRY).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.current_dir("/").spawn()?;
        Ok(Self { socket: Some(ours), child })
    }

    /// These sockets are locked.
    ///
    /// # Errors
    /// The guard has died.
    pub fn locked(&self, locks: &[NetLock]) -> io::Result<()> {
        let all: Vec<(BorrowedFd<'_>, Terms)> = locks.iter().filter_map(NetLock::terms).collect();
        for some in all.chunks(LOCKS_AT_ONCE) {
            let fds: Vec<BorrowedFd<'_>> = some.iter().map(|(fd, _)| *fd).collect();
            self.send(&Message::Locked(some.iter().map(|(_, terms)| terms.clone()).collect()), &fds)?;
        }
        Ok(())
    }

    /// This address was taken off its interface.
    ///
    /// # Errors
    /// The guard has died.
    pub fn removed(&self, place: &Place) -> io::Result<()> {
        let Place { ip, prefix, interface } = place.clone();
        self.send(&Message::Removed { ip, prefix, interface }, &[])
    }

    /// Everything was given back, or stays as it is for good. The guard closes its descriptors.
    ///
    /// # Errors
    /// The guard has died.
    pub fn forget(&self) -> io::Result<()> {
        self.send(&Message::Forget, &[])
    }

    fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(to) = &self.socket else { return Ok(()) };
        let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        // A guard that does not read is no reason for a longer pause.
        socket::send(to.as_fd(), &bytes, &[], fds, None, libc::MSG_DONTWAIT)?;
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.child.wait();
    }
}

/// What a guard would give back.
#[derive(Default)]
struct Entrusted {
    locks: Vec<NetLock>,
    addresses: Vec<Place>,
}

impl Entrusted {
    fn give_back(self) {
        let mut announcers = Vec::new();
        for place in self.addresses {
            // The owner may have done it, and died before it could say so.
            if place.is_here() || place.add().is_ok() {
                announcers.extend(Announcer::open(None, &place.interface).ok().map(|to| (place.ip, to)));
            }
        }
        let announce = || announcers.iter().for_each(|(ip, to)| drop(to.announce(*ip)));
        announce();
        for lock in self.locks {
            // What somebody has touched since is not ours to undo.
            if lock.is_as_left() {
                let _ = lock.unlock();
            } else {
                lock.keep();
            }
        }
        // The destination may have announced itself before it learned that nobody comes.
        for wait in ANNOUNCE_AGAIN.iter().filter(|_| !announcers.is_empty()) {
            std::thread::sleep(*wait);
            announce();
        }
    }

    fn forget(&mut self) {
        self.locks.drain(..).for_each(NetLock::keep);
        self.addresses.clear();
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
            Ok(received) => take(&mut entrusted, &room[..received.len], received.fds),
        }
    }
    entrusted.give_back();
    0
}

fn take(entrusted: &mut Entrusted, bytes: &[u8], fds: Vec<OwnedFd>) {
    match serde_json::from_slice(bytes) {
        Ok(Message::Locked(terms)) if terms.len() == fds.len() => {
            entrusted.locks.extend(fds.into_iter().zip(terms).map(|(fd, terms)| NetLock::of_terms(fd, terms)));
        }
        Ok(Message::Removed { ip, prefix, interface }) => entrusted.addresses.push(Place { ip, prefix, interface }),
        Ok(Message::Forget) => entrusted.forget(),
        // Nobody else speaks to us: a defect, after which the owner's own way out still works.
        Ok(Message::Locked(_)) | Err(_) => {}
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
