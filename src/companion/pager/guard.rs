//! The guard of a pager: has the same descriptors and does nothing, until the pager has ended. If that was without a word the
//! tree is stopped, what is missing is poisoned as far as it is known, and the descriptors stay open: nobody ever reads a
//! zero page that was not one.
//!
//! Messages: a byte with a descriptor is an address space made by a fork; `D` says that everything is in.

use super::{Kept, KeptSpace, Ready, count, parcel, standstill};
use crate::image::ShmemId;
use crate::image::mm::PAGE;
use crate::memory::lazy::source::Lost;
use crate::memory::lazy::{Arrival, Fault, Missing, Piece, Server, Source};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space};
use crate::sys::{fd, pass_fd};
use nix::sys::signal::{SigSet, Signal};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Between two looks whether anybody of the tree is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The pager's end.
#[derive(Debug)]
pub(super) struct Guard(UnixStream);

impl Guard {
    /// Has a process that is ready guard this.
    pub(super) fn begin(ready: Ready, kept: &Kept, descriptors: &[OwnedFd]) -> io::Result<Self> {
        ready.hand_over(kept, descriptors).map(Self)
    }

    /// Another address space.
    pub(super) fn pass(&self, uffd: BorrowedFd<'_>) {
        // Without it the new address space is guarded by the pager alone.
        let _ = pass_fd::send_fd(&self.0, uffd);
    }

    /// Nothing is to be guarded any more: returns when it has closed its descriptors.
    pub(super) fn end(mut self) {
        let _ = self.0.write_all(b"D").and_then(|()| self.0.read(&mut [0]));
    }
}

/// What cannot end it: a terminal that closes, a stray signal.
pub(super) fn ignore_signals() {
    let stray: SigSet = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    let _ = stray.thread_block();
}

/// Runs a guard process; the exit code.
pub(super) fn main() -> u8 {
    if fd::close_from(3).is_err() {
        return 1;
    }
    // The pager has left its caller before it started this one: entering a cgroup once more takes as long as all the rest.
    let _ = nix::unistd::setsid();
    ignore_signals();
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let mut input = UnixStream::from(input);
    // However long it takes: the end of the pager ends this as well.
    let begun = parcel::receive(&mut input, count);
    let Ok((kept, mut descriptors)) = begun else { return 0 };
    let ready = input.write_all(b"A");
    if ready.is_err() {
        return 1;
    }
    loop {
        match pass_fd::receive(&input) {
            Ok(Some((_, Some(uffd)))) => descriptors.push(uffd),
            Ok(Some((b'D', None))) => {
                drop(descriptors);
                let _ = input.write_all(b"A");
                return 0;
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    take_over(&kept, descriptors);
    1
}

/// The pager has ended without a word.
fn take_over(kept: &Kept, descriptors: Vec<OwnedFd>) {
    standstill::stop(kept);
    let _ = std::fs::remove_file(&kept.socket);
    if !kept.tree.is_there() {
        return;
    }
    let everything: Missing = all_missing(&kept.spaces);
    let shared = kept.spaces.len()..kept.spaces.len() + kept.views.len();
    let objects = shared.end..shared.end + kept.objects.len();
    let members = descriptors.into_iter().enumerate().filter(|(n, _)| !objects.contains(n)).map(|(n, uffd)| {
        let missing = match kept.spaces.get(n) {
            Some(space) => all_missing(std::slice::from_ref(space)),
            None if shared.contains(&n) => shared_missing(kept, n - shared.start),
            // Of a child it is not known whose.
            None => everything.clone(),
        };
        (uffd, missing)
    });
    let members: Vec<_> = members.collect();
    let mut server = Server::new(Nothing, members, Box::new(|_| ()));
    server.poison();
    let ranges = |space: &KeptSpace| -> Vec<(i32, u64, u64)> {
        space.pages().iter().map(|range| (space.pid, range.start_byte(), range.end_byte())).collect()
    };
    let mut missing: Vec<_> = kept.spaces.iter().flat_map(ranges).collect();
    for (n, view) in kept.views.iter().enumerate() {
        missing
            .extend(shared_missing(kept, n).iter().map(|piece| (view.pid, piece.at.start_byte(), piece.at.end_byte())));
    }
    let why = "the process that brought them has been ended; those that it had not brought are among";
    let _ = std::fs::write(&kept.report, standstill::message(kept, why, &missing, server.can_poison()) + "\n");
    // What is not poisoned is waited for as long as somebody may wait.
    while kept.tree.is_there() {
        std::thread::sleep(LOOK_EVERY);
    }
}

fn all_missing(spaces: &[KeptSpace]) -> Missing {
    let mut missing = Missing::default();
    for space in spaces {
        let pages: RangeSet = space.pages();
        for at in pages.iter() {
            missing.insert(Piece { at, space: Space::Mm(crate::image::MmId(space.mm)), from: at.start_byte() / PAGE });
        }
    }
    missing
}

/// What a view of shared memory lacked in the beginning, in whole pages of the object: by what its addresses are called there.
fn shared_missing(kept: &Kept, view: usize) -> Missing {
    let mut missing = Missing::default();
    for &(at, count, shmem, from) in &kept.views[view].areas {
        let Some(object) = kept.objects.iter().find(|object| object.shmem == shmem) else { continue };
        let unit = object.unit / PAGE;
        for range in object.pages().within(PageRange::new(from, count)).iter() {
            let (first, end) = (range.first / unit * unit, range.end().next_multiple_of(unit));
            let at = PageRange::new(at + (first - from), end - first);
            missing.insert(Piece { at, space: Space::Shmem(ShmemId(shmem)), from: first });
        }
    }
    missing
}

/// Has no pages at all.
struct Nothing;

impl Source for Nothing {
    fn want(&mut self, _: Fault) {}

    fn next(&mut self, _: &mut PageBuffer) -> Result<Option<Arrival>, Lost> {
        Ok(None)
    }
}
