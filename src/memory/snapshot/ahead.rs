//! Protection that begins before the instant, so that little of it is left for the pause.
//!
//! The target is stopped for a moment again and again, a part of what is not protected is protected ([`Ahead::protect`]), and it
//! runs on: a page that is written in between loses its protection at once ([`Ahead::serve`]), and is found again by its bit
//! ([`Ahead::bare`]). At the instant only those are left.
//!
//! Why not while it runs: the kernel does not wait in a task that ends, see [`super`]. At each stop it is known which pages
//! those are that are alive may write to then ([`super::eager::at_the_end`]): they are left out. Whoever is born later has
//! written to its own after that stop, and whoever takes a robust futex to that: these pages are not protected any more.

use super::PROTECT_STEP;
use crate::image::Pid;
use crate::memory::{PageRange, RangeSet, unprotect};
use crate::proc::ProcDir;
use crate::sys::Errno;
use crate::sys::pagemap::{self, Query, category};
use crate::sys::procmap;
use crate::sys::userfaultfd::{self as sys, Message, mode};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Memory of a tree that is protected ahead. Dropped, the protection ends.
#[derive(Debug, Default)]
pub struct Ahead {
    spaces: Vec<Early>,
    faults: AtomicUsize,
}

/// One address space.
#[derive(Debug)]
struct Early {
    pid: Pid,
    dir: ProcDir,
    pagemap: File,
    /// `None` when it was handed over.
    uffd: Option<OwnedFd>,
    registered: RangeSet,
}

impl Ahead {
    /// Registers the private anonymous memory of processes, by a userfaultfd of each that handles faults of the kernel, too. One
    /// that shares its memory with another is left out.
    ///
    /// # Errors
    /// A process is gone.
    pub fn new(processes: Vec<(Pid, OwnedFd)>) -> crate::proc::Result<Self> {
        let mut spaces = Vec::new();
        for (pid, uffd) in processes {
            let dir = ProcDir::open(pid)?;
            let pagemap = dir.open_file("pagemap", OFlag::O_RDONLY)?.into();
            let maps = dir.maps(&mut Vec::new())?;
            let anonymous =
                maps.iter().filter(|m| !m.has_file() && !m.shared).map(|m| PageRange::of_bytes(m.start, m.end));
            let file = dir.open_file("maps", OFlag::O_RDONLY)?;
            // With the room behind it: a mapping that has grown would be split, and an mremap(2) of it fail.
            let takes = |area: &PageRange| {
                let start = area.start_byte();
                let end = procmap::room_of(file.as_fd(), start, area.end_byte());
                end.is_some_and(|end| sys::register(uffd.as_fd(), start, end - start, mode::WP).is_ok())
            };
            let registered: RangeSet = anonymous.filter(takes).collect();
            if !registered.is_empty() {
                spaces.push(Early { pid, dir, pagemap, uffd: Some(uffd), registered });
            }
        }
        Ok(Self { spaces, faults: AtomicUsize::new(0) })
    }

    /// Pages that hold something and are not protected, with the number of their address space.
    ///
    /// # Errors
    /// A process is gone.
    pub fn bare(&self) -> Result<VecDeque<(usize, PageRange)>, Errno> {
        let mut all = VecDeque::new();
        for (n, early) in self.spaces.iter().enumerate() {
            for area in early.registered.iter() {
                bare(&early.pagemap, area, &mut |range| all.push_back((n, range)))?;
            }
        }
        Ok(all)
    }

    /// Protects of these what is not spared, until the time is up; what was looked at is taken off. The tree is stopped.
    pub fn protect(&self, todo: &mut VecDeque<(usize, PageRange)>, spared: &RangeSet, until: Instant) {
        while Instant::now() < until {
            let Some((n, range)) = todo.pop_front() else { return };
            let piece = PageRange::new(range.first, range.count.min(PROTECT_STEP));
            if piece.count < range.count {
                todo.push_front((n, PageRange::new(piece.end(), range.count - piece.count)));
            }
            let Some(uffd) = &self.spaces[n].uffd else { continue };
            let whole: RangeSet = [piece].into_iter().collect();
            for part in whole.difference(&spared.within(piece)).iter() {
                // Not of a mapping of ours any more: what is there now is protected in the pause.
                let _ = unprotect::write_protect(uffd.as_fd(), part, true);
            }
        }
    }

    /// Lets writes through at once, until `stop` is readable.
    pub fn serve(&self, stop: BorrowedFd<'_>) {
        loop {
            let fds = self.spaces.iter().filter_map(|early| early.uffd.as_ref().map(AsFd::as_fd));
            let mut wanted: Vec<PollFd<'_>> =
                [stop].into_iter().chain(fds).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            // An error is nothing to wait for: the next look finds out.
            let _ = poll(&mut wanted, PollTimeout::NONE);
            let told = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLIN));
            if told(&wanted[0]) {
                return;
            }
            for early in &self.spaces {
                early.let_through(&self.faults);
            }
        }
    }

    /// Writes that have waited.
    pub fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }

    /// The descriptor of a process, for the instant, if it still has the memory that was protected. What is protected stays so.
    pub fn hand_over(&mut self, pid: Pid) -> Option<OwnedFd> {
        let early = self.spaces.iter_mut().find(|early| early.pid == pid)?;
        early.uffd.take_if(|uffd| !sys::is_gone(uffd.as_fd()))
    }
}

/// Pages of an area that hold something and are not protected, ascending.
pub(super) fn bare(pagemap: &File, area: PageRange, found: &mut dyn FnMut(PageRange)) -> Result<(), Errno> {
    let not = category::PFN_ZERO | pagemap::guard_category();
    let held = category::PRESENT | category::SWAPPED;
    let query =
        Query { all_of: not | category::WRITTEN, inverted: not, any_of: held, report: category::WRITTEN, flags: 0 };
    pagemap::scan(pagemap.as_fd(), area.start_byte(), area.end_byte(), query, &mut Vec::new(), |region| {
        found(PageRange::of_bytes(region.start, region.end));
    })
}

impl Early {
    fn let_through(&self, faults: &AtomicUsize) {
        let Some(uffd) = &self.uffd else { return };
        for message in sys::messages(uffd.as_fd()).unwrap_or_default() {
            let Message::Fault { address, .. } = message else { continue };
            faults.fetch_add(1, Ordering::Relaxed);
            let page = PageRange::of_bytes(address, address + 1);
            if unprotect::write_protect(uffd.as_fd(), page, false).is_err() {
                // Not of a mapping of ours any more. Whoever waits there looks again.
                let _ = sys::wake(uffd.as_fd(), page.start_byte(), page.bytes());
            }
        }
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        if let Some(uffd) = &self.uffd {
            unprotect::release(uffd.as_fd(), &self.dir, &self.registered);
            unprotect::let_go(uffd.as_fd(), &self.dir, &self.registered);
        }
    }
}
