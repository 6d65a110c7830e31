//! The end of write protection by userfaultfd over a target that runs.
//!
//! To unregister memory, or to close the descriptor, goes through all page table entries of a mapping with the address space
//! locked: 25 ms for each GiB of small pages, whether they are protected or not (measured on 6.18). To unregister it piece by
//! piece is no way out: that splits the mapping, and an mremap(2) of the target over two halves fails with `EFAULT` until the
//! last piece is done; a realloc(3) of the target would fail. So, in this order:
//! 1. The protection is lifted in pieces ([`lift_all`]): mappings stay whole, nobody is held up for longer than 0.6 ms.
//! 2. Each mapping is registered for missing pages instead, and unregistered at once ([`let_go`]). The kernel looks at the
//!    entries only at the end of write protection, so each of the two takes some microseconds. Whoever touches a page that is
//!    not there in between waits for the second. With a descriptor that does not handle faults of the kernel a system call
//!    of the target would fail in between: there, this step is left out.
//! 3. Closing the descriptor ends the rest.

use super::{PageRange, RangeSet};
use crate::proc::ProcDir;
use crate::proc::maps::Mapping;
use crate::sys::Errno;
use crate::sys::procmap;
use crate::sys::userfaultfd::{self as sys, mode};
use std::os::fd::{AsFd, BorrowedFd};

/// Pages of which the protection is lifted in one call.
const PIECE: u64 = 4096;
/// The close of smaller mappings takes no time that anybody would notice, pages.
const SMALL: u64 = 256;

/// Mappings of the process that have something in `pages`, with what that is. None where the process is gone.
fn mapped(dir: &ProcDir, pages: &RangeSet) -> Vec<(Mapping, RangeSet)> {
    let maps = dir.maps(&mut Vec::new()).unwrap_or_default();
    let with = |m: Mapping| {
        let inside = pages.within(PageRange::of_bytes(m.start, m.end));
        (!inside.is_empty()).then_some((m, inside))
    };
    maps.into_iter().filter_map(with).collect()
}

/// Lifts the protection of `pages`, as far as they are still mapped and registered.
pub fn lift_all(fd: BorrowedFd<'_>, dir: &ProcDir, pages: &RangeSet) {
    for (_, inside) in mapped(dir, pages) {
        for piece in inside.iter().flat_map(|range| range.pieces(PIECE)) {
            // Refused: not a mapping of ours, and a mapping is registered as a whole or not at all.
            if write_protect(fd, piece, false).is_err() {
                break;
            }
        }
    }
}

/// The same of all that is registered; who waits goes on, also for a page that is not mapped any more.
pub fn release(fd: BorrowedFd<'_>, dir: &ProcDir, registered: &RangeSet) {
    lift_all(fd, dir, registered);
    for range in registered.iter() {
        let _ = sys::wake(fd, range.start_byte(), range.bytes());
    }
}

/// Unregisters the larger anonymous mappings. For a descriptor that handles faults of the kernel, when no page is protected any
/// more: a mark that is left in a page table would stay there.
///
/// With the room behind it: a mapping that grew in between would be split, and an mremap(2) of it fail.
pub fn let_go(fd: BorrowedFd<'_>, dir: &ProcDir, pages: &RangeSet) {
    let Ok(maps) = dir.open_file("maps", nix::fcntl::OFlag::O_RDONLY) else { return };
    for (mapping, inside) in mapped(dir, pages) {
        let whole = PageRange::of_bytes(mapping.start, mapping.end);
        if mapping.has_file() || mapping.shared || whole.count < SMALL || inside.ranges() != [whole] {
            continue;
        }
        // Another by now: closing the descriptor will do.
        let Some(end) = procmap::room_of(maps.as_fd(), mapping.start, mapping.end) else { continue };
        if sys::register(fd, mapping.start, end - mapping.start, mode::MISSING).is_ok() {
            // Refused only if the mapping is gone.
            let _ = sys::unregister(fd, mapping.start, end - mapping.start);
        }
    }
}

/// Protects a range, or lifts its protection.
///
/// # Errors
/// `ENOENT`: a mapping there is not registered (those before it are done). What is not mapped is passed over.
pub fn write_protect(fd: BorrowedFd<'_>, range: PageRange, on: bool) -> Result<(), Errno> {
    loop {
        match sys::write_protect(fd, range.start_byte(), range.bytes(), on) {
            // Mappings are being changed.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            done => return done,
        }
    }
}
