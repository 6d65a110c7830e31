//! One instant of a tree's memory, saved behind the running tree.
//!
//! ```text
//! before:   [`ahead`]        --> as much as can be is protected in short stops
//! stopped:  Snapshot::arm  --> private anonymous pages are write-protected (userfaultfd, synchronous)
//! running:  a write to a page that is owed --> fault --> serve: read (first), keep, lift the protection
//!           the saver, slice by slice      --> read, prove, write to the image, lift the protection
//! ```
//! Properties of the kernel relied on (measured on 6.18):
//! - Whoever writes to a protected page waits, in user mode and in the kernel (read(2) into it); reads go on. When the
//!   descriptor is closed, also by our death, everybody goes on.
//! - The bit in the page table is the proof that a page is as it was, see [`guarded`]. `munmap`, `MADV_DONTNEED`, exec take pages
//!   away before anybody hears of it: that is noticed, and the instant is [`Lost`] then, never wrong. Events of
//!   userfaultfd would not help, those of munmap and mremap come after the fact.
//! - A child of fork has no protection, needs none (what it writes it copies before), and leaves the parent's alone.
//! - The kernel does not wait in a task that ends: its last writes (`set_tid_address`, robust futexes) would fail and others
//!   wait for ever. Pages of such are never protected, see [`eager`]. A page a thread is born with later was written then.
//! - Private mappings of files cannot be protected so; shared memory is written through other mappings and descriptors, too.
//!   Both are left to whoever asks.

pub mod ahead;
pub mod eager;
mod guarded;
mod table;

pub use guarded::Lost;

use super::pipeline::{PageError, ReadPages, default_workers};
use super::{PageRange, RangeSet, Space};
use crate::image::Pid;
use crate::image::mm::{Backing, Mm, PAGE};
use crate::sys::Errno;
use crate::sys::userfaultfd::{self as sys, Message};
use guarded::{Guarded, Served};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most bytes that are kept for writes that did not want to wait; then they wait for the saver.
const KEPT_MAX: i64 = 256 << 20;
/// Pages of a slice, after each of which kept ones are written: 128 MiB.
const SLICE: u64 = 32 << 10;
/// What a thread of ours protects in one call, pages.
const PROTECT_PIECE: u64 = 16 << 10;
/// What is protected between two looks at the clock, pages: 0.1 ms.
const PROTECT_STEP: u64 = 512;
/// Gaps of pages that are protected already and that cost less than another call.
const GAP: u64 = 32;
/// Between two looks after writes for which there was no room, milliseconds.
const LATER: u16 = 2;
/// Between two looks whether a content was lost, milliseconds.
const IDLE: u16 = 50;

/// An address space that may be protected.
#[derive(Debug)]
pub struct Candidate<'m> {
    /// What the image calls it.
    pub space: Space,
    /// A process that has it.
    pub pid: Pid,
    /// A userfaultfd of it that handles faults of the kernel, too.
    pub uffd: OwnedFd,
    /// Its mappings.
    pub mm: &'m Mm,
    /// Pages that hold something.
    pub held: RangeSet,
    /// Pages that must not be protected.
    pub spared: RangeSet,
    /// Some are protected already.
    pub ahead: bool,
}

/// Protected memory of a tree. Dropped, the protection ends.
#[derive(Debug, Default)]
pub struct Snapshot {
    spaces: Vec<Guarded>,
    /// Bytes kept for writes that did not wait.
    kept: AtomicI64,
    /// The first content that was lost.
    lost: Mutex<Option<Lost>>,
    /// Writes that had to wait.
    faults: AtomicUsize,
}

/// Whether this kernel takes the protection off pages that mremap(2) moves (6.13): without that nothing proves a content.
pub fn is_possible() -> bool {
    crate::kernel::is_at_least(6, 13)
}

impl Snapshot {
    /// Protects what can be of stopped processes. Gives for each candidate the pages that are protected and owed: the others
    /// of those held are left to the caller.
    ///
    /// # Errors
    /// The kernel's refusal; nothing is protected then.
    pub fn arm(candidates: Vec<Candidate<'_>>) -> std::io::Result<(Self, Vec<(Space, RangeSet)>)> {
        let mut snapshot = Self::default();
        let mut owed = Vec::new();
        let mut pieces = Vec::new();
        let mut spared = Vec::new();
        for candidate in candidates {
            let anonymous = candidate.mm.vmas.iter().filter(|v| v.backing == Backing::Anon && !v.shared);
            let areas: Vec<PageRange> = anonymous.map(|v| PageRange::of_bytes(v.start, v.end)).collect();
            let mut guarded = Guarded::new(candidate.space, candidate.pid, candidate.uffd, &areas)?;
            let held = candidate.held.intersection(guarded.registered());
            let pages = held.difference(&candidate.spared);
            guarded.owe(&pages);
            let n = snapshot.spaces.len();
            // Mapping by mapping, from the first page to the last: few calls, and what is between is nearly for nothing.
            for area in areas {
                let inside =
                    if candidate.ahead { guarded.bare(area)?.intersection(&pages) } else { pages.within(area) };
                let together = if candidate.ahead { GAP } else { u64::MAX };
                pieces.extend(
                    joined(&inside, together).flat_map(|range| range.pieces(PROTECT_PIECE)).map(|piece| (n, piece)),
                );
            }
            owed.push((candidate.space, pages));
            snapshot.spaces.push(guarded);
            spared.push(candidate.spared);
        }
        snapshot.protect(&pieces)?;
        for (guarded, pages) in snapshot.spaces.iter().zip(&spared) {
            guarded.prove()?;
            guarded.spare(&pages.intersection(guarded.registered()));
        }
        // Whoever has little of its own may be a child that ends in a moment.
        snapshot.spaces.sort_by_key(|guarded| guarded.table().len());
        Ok((snapshot, owed))
    }

    /// Page tables can be worked on in several places at once.
    fn protect(&self, pieces: &[(usize, PageRange)]) -> Result<(), Errno> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Errno> {
            while let Some((n, range)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.spaces[*n].protect(*range)?;
            }
            Ok(())
        };
        let helpers = default_workers().min(pieces.len() / 2);
        std::thread::scope(|scope| {
            let begin = || std::thread::Builder::new().name("protect".to_owned()).spawn_scoped(scope, work).ok();
            let helpers: Vec<_> = (1..helpers).filter_map(|_| begin()).collect();
            let own = work();
            helpers.into_iter().fold(own, |all, helper| all.and(helper.join().unwrap_or(Err(Errno::EIO))))
        })
    }

    /// The first content that could not be had.
    pub fn lost(&self) -> Option<Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, lost: &Lost) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| lost.clone());
    }

    /// Everything that was owed has been given.
    pub fn is_done(&self) -> bool {
        self.lost().is_none() && self.spaces.iter().all(|guarded| guarded.table().is_done())
    }

    /// Writes that have waited so far.
    pub fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }

    /// Pages to be written next, those first that are kept in memory; empty when all are. To be called by one thread, after
    /// what it gave the last time has been read.
    pub fn next(&self) -> Vec<(Space, PageRange)> {
        let mut plan = Vec::new();
        for guarded in &self.spaces {
            plan.extend(guarded.table().kept().iter().map(|range| (guarded.space, range)));
        }
        let mut left = SLICE;
        for guarded in &self.spaces {
            let ranges = guarded.table().next(left);
            left -= ranges.iter().map(|r| r.count).sum::<u64>();
            plan.extend(ranges.into_iter().map(|range| (guarded.space, range)));
            if left == 0 {
                break;
            }
        }
        plan.sort_unstable();
        plan
    }

    /// Ends the protection: everybody goes on.
    pub fn release(&self) {
        self.spaces.iter().for_each(Guarded::release);
    }

    /// Lets writes through, each after what it would overwrite has been read, until `stop` is readable or a content is lost.
    pub fn serve(&self, stop: BorrowedFd<'_>) {
        let mut later: Vec<(usize, u64)> = Vec::new();
        loop {
            let fds = self.spaces.iter().map(|guarded| guarded.uffd.as_fd());
            let mut wanted: Vec<PollFd<'_>> =
                [stop].into_iter().chain(fds).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let timeout = if later.is_empty() { PollTimeout::from(IDLE) } else { PollTimeout::from(LATER) };
            // An error is nothing to wait for: the next look finds out.
            let _ = poll(&mut wanted, timeout);
            let told = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLIN));
            if self.lost().is_some() {
                // There is nothing to be saved any more, and nobody who would let a write through.
                return self.release();
            }
            if told(&wanted[0]) {
                return;
            }
            let mut faults = std::mem::take(&mut later);
            for n in (0..self.spaces.len()).filter(|n| told(&wanted[n + 1])) {
                let messages = sys::messages(self.spaces[n].uffd.as_fd()).unwrap_or_default();
                self.faults.fetch_add(messages.len(), Ordering::Relaxed);
                faults.extend(messages.iter().filter_map(|message| match message {
                    Message::Fault { address, .. } => Some((n, address / PAGE)),
                    _ => None,
                }));
            }
            for (n, page) in faults {
                let room = self.kept.load(Ordering::Relaxed) < KEPT_MAX;
                match self.spaces[n].serve(page, room, &self.kept) {
                    Ok(Served::Done) => {}
                    Ok(Served::Later) => later.push((n, page)),
                    Err(lost) => self.note(&lost),
                }
            }
        }
    }
}

/// Ranges of a set, joined over gaps of at most so many pages.
fn joined(pages: &RangeSet, gap: u64) -> impl Iterator<Item = PageRange> {
    let mut all: Vec<PageRange> = Vec::new();
    for range in pages.iter() {
        match all.last_mut() {
            Some(last) if range.first - last.end() <= gap => last.count = range.end() - last.first,
            _ => all.push(range),
        }
    }
    all.into_iter()
}

impl ReadPages for Snapshot {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        let mut rest = buf;
        for range in ranges {
            let (part, later) = rest.split_at_mut(range.bytes() as usize);
            let missing = || PageError { page: range.first, source: std::io::ErrorKind::NotFound.into() };
            let guarded = self.spaces.iter().find(|guarded| guarded.space == space).ok_or_else(missing)?;
            guarded.take(*range, part, &self.kept).map_err(|lost| {
                self.note(&lost);
                PageError { page: lost.page, source: std::io::Error::other(lost) }
            })?;
            rest = later;
        }
        Ok(())
    }
}
