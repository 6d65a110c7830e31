//! One address space: protection, and reads that are proved to be of the instant.

use super::table::{Content, Table, Wanted};
use crate::image::Pid;
use crate::image::mm::PAGE;
use crate::memory::{PageRange, RangeSet, Space, unprotect};
use crate::proc::ProcDir;
use crate::proc::pagemap::{self, Entry};
use crate::sys::Errno;
use crate::sys::userfaultfd::{self as sys, mode};
use nix::fcntl::OFlag;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages that are read along with one that is written: a fault costs about as much as reading this many.
const WINDOW: u64 = 16;

/// Why a content of the instant is not to be had any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("process {pid} gave memory back, or moved it, that was not saved yet (at {:#x})", page * PAGE)]
pub struct Lost {
    /// The process.
    pub pid: Pid,
    /// Number of the page.
    pub page: u64,
}

/// What to do about a write that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// It goes on, or will in a moment.
    Done,
    /// There is no room for a copy: later.
    Later,
}

/// An address space with protected pages.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) space: Space,
    pub(super) pid: Pid,
    pub(super) uffd: OwnedFd,
    dir: ProcDir,
    /// Both are of the address space of the instant, also when the process executes another program.
    memory: File,
    pagemap: File,
    registered: RangeSet,
    table: Mutex<Table>,
}

impl Guarded {
    /// Registers what can be: anonymous mappings, `areas` by their page numbers.
    ///
    /// # Errors
    /// The process is gone.
    pub(super) fn new(space: Space, pid: Pid, uffd: OwnedFd, areas: &[PageRange]) -> std::io::Result<Self> {
        let memory = crate::proc::open_mem(pid)?;
        let dir = ProcDir::open(pid).map_err(std::io::Error::other)?;
        let pagemap = dir.open_file("pagemap", OFlag::O_RDONLY).map_err(std::io::Error::other)?.into();
        let mut registered = RangeSet::new();
        for area in areas {
            match sys::register(uffd.as_fd(), area.start_byte(), area.bytes(), mode::WP) {
                Ok(()) => registered.insert(*area),
                Err(errno) => tracing::debug!("process {pid}: {:#x} cannot be protected: {errno}", area.start_byte()),
            }
        }
        Ok(Self { space, pid, uffd, dir, memory, pagemap, registered, table: Mutex::default() })
    }

    /// What could be registered.
    pub(super) fn registered(&self) -> &RangeSet {
        &self.registered
    }

    /// These pages are owed: to be said before anything of them is protected.
    pub(super) fn owe(&mut self, pages: &RangeSet) {
        self.table = Mutex::new(Table::new(pages));
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Protects a range of the stopped process.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn protect(&self, range: PageRange) -> Result<(), Errno> {
        unprotect::write_protect(self.uffd.as_fd(), range, true)
    }

    /// Pages of an area that are not protected yet.
    ///
    /// # Errors
    /// The process is gone.
    pub(super) fn bare(&self, area: PageRange) -> Result<RangeSet, Errno> {
        let mut found = RangeSet::new();
        if !self.registered.within(area).is_empty() {
            super::ahead::bare(&self.pagemap, area, &mut |range| found.insert(range))?;
        }
        Ok(found)
    }

    /// Is it the memory of this process that was protected? Of one that has executed another program in the last moment the
    /// descriptor may be that of the memory it had before.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn prove(&self) -> std::io::Result<()> {
        let Some(page) = self.table().first() else { return Ok(()) };
        let mut entry = [0; Entry::SIZE];
        self.pagemap.read_exact_at(&mut entry, pagemap::offset_of(page * PAGE))?;
        let protected = pagemap::entries(&entry).all(|entry| entry.is_uffd_wp());
        if protected { Ok(()) } else { Err(std::io::Error::other("it has other memory by now")) }
    }

    /// Whoever waits to write there goes on.
    fn lift(&self, range: PageRange) {
        for piece in [range].into_iter().chain(range.pieces(1)) {
            match unprotect::write_protect(self.uffd.as_fd(), piece, false) {
                Ok(()) if piece == range => return,
                Ok(()) => {}
                // Not of a mapping of ours any more: then page by page. Whoever waits there looks again.
                Err(_) => drop(sys::wake(self.uffd.as_fd(), piece.start_byte(), piece.bytes())),
            }
        }
    }

    /// Ends all protection, so that the target is never held up for long.
    pub(super) fn release(&self) {
        unprotect::release(self.uffd.as_fd(), &self.dir, &self.registered);
    }

    /// Lifts the protection of pages that are not to have any.
    pub(super) fn spare(&self, pages: &RangeSet) {
        pages.iter().for_each(|range| self.lift(range));
    }

    /// Reads pages that are being read in the eyes of the table, proves that they are as at the instant, and lets writes to
    /// them through.
    ///
    /// The proof: nobody but us has ever protected a page here, and we did at the instant. So a page that is protected after
    /// it was read has been so all the time, and nobody has written to it. A page that was dropped, moved (Linux 6.13), or
    /// replaced has lost its protection.
    fn read(&self, range: PageRange, buf: &mut [u8]) -> Result<(), Lost> {
        let lost = |page| Lost { pid: self.pid, page };
        self.memory.read_exact_at(buf, range.start_byte()).map_err(|_| lost(range.first))?;
        let mut entries = vec![0; range.count as usize * Entry::SIZE];
        self.pagemap
            .read_exact_at(&mut entries, pagemap::offset_of(range.start_byte()))
            .map_err(|_| lost(range.first))?;
        let held = |entry: &Entry| entry.is_uffd_wp() && (entry.is_present() || entry.is_swapped());
        match pagemap::entries(&entries).position(|entry| !held(&entry)) {
            Some(n) => Err(lost(range.first + n as u64)),
            None => Ok(()),
        }
    }

    /// For the saver: the contents of a range, all of which it owns. `kept` counts the bytes of copies.
    ///
    /// # Errors
    /// A content that is lost.
    pub(super) fn take(&self, range: PageRange, buf: &mut [u8], kept: &AtomicI64) -> Result<(), Lost> {
        let (to_read, copies) = self.table().take(range);
        let place = |page: u64| ((page - range.first) * PAGE) as usize;
        let mut filled = 0;
        for (page, content) in copies {
            buf[place(page)..][..PAGE as usize].copy_from_slice(&content);
            kept.fetch_sub(PAGE as i64, Ordering::Relaxed);
            filled += 1;
        }
        for part in to_read {
            self.read(part, &mut buf[place(part.first)..][..part.bytes() as usize])?;
            self.table().safe(part);
            self.lift(part);
            filled += part.count;
        }
        if filled == range.count { Ok(()) } else { Err(Lost { pid: self.pid, page: range.first }) }
    }

    /// A thread waits to write to `page`. `room`: whether copies may be made, else only who waits for nothing goes on.
    ///
    /// # Errors
    /// A content that is lost; who waits goes on when the protection ends.
    pub(super) fn serve(&self, page: u64, room: bool, kept: &AtomicI64) -> Result<Served, Lost> {
        let window = PageRange::new(page - page % WINDOW, WINDOW);
        let mut table = self.table();
        let wanted = match room {
            true => table.wanted(page, window),
            false => table.wanted(page, PageRange::new(page, 0)),
        };
        let parts = match wanted {
            Wanted::Read(parts) if parts.is_empty() => return Ok(Served::Later),
            Wanted::Read(parts) => parts,
            Wanted::Wait => return Ok(Served::Done),
            Wanted::Nothing => {
                drop(table);
                self.lift(PageRange::new(page, 1));
                return Ok(Served::Done);
            }
        };
        // The table stays locked: whoever finds a page safe finds its content, too.
        let mut contents: Vec<(PageRange, Content)> = Vec::new();
        for part in parts {
            let mut content = vec![0; part.bytes() as usize];
            self.read(part, &mut content)?;
            contents.push((part, content.into()));
        }
        for (part, content) in &contents {
            for (page, content) in (part.first..).zip(content.chunks_exact(PAGE as usize)) {
                table.keep(page, content);
            }
            table.safe(*part);
            kept.fetch_add(content.len() as i64, Ordering::Relaxed);
        }
        drop(table);
        contents.iter().for_each(|(part, _)| self.lift(*part));
        Ok(Served::Done)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.release();
        unprotect::let_go(self.uffd.as_fd(), &self.dir, &self.registered);
    }
}
