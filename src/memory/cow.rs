//! Pages that relatives share copy-on-write: equal page frames at equal addresses.

use super::track::TrackError;
use super::{PageRange, RangeSet};
use crate::image::mm::PAGE;
use crate::proc::ProcDir;
use crate::proc::pagemap::{Entry, entries, offset_of};
use crate::sys::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Entries read in one go: 512 MiB of addresses would be 1 MiB of them.
const ENTRIES: u64 = 1 << 16;

fn pagemap(dir: &ProcDir) -> Result<File, TrackError> {
    Ok(dir.open_file("pagemap", nix::fcntl::OFlag::O_RDONLY)?.into())
}

fn read(dir: &ProcDir, file: &File, page: u64, count: u64, buf: &mut Vec<u8>) -> Result<(), TrackError> {
    buf.resize(count as usize * Entry::SIZE, 0);
    file.read_exact_at(buf, offset_of(page * PAGE)).map_err(|e| TrackError::System {
        operation: "read pagemap",
        pid: dir.pid(),
        errno: Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)),
    })
}

fn is_same(a: Entry, b: Entry) -> bool {
    // Without CAP_SYS_ADMIN every frame number reads as 0: nothing is known then.
    let frame = |e: Entry| e.frame().filter(|f| *f != 0 && !e.is_file());
    frame(a).is_some_and(|f| frame(b) == Some(f))
}

/// Pages between two of interest that are read along with them: one more call costs as much.
const GAP: u64 = 16;

/// The stretches to read for these pages.
fn stretches(pages: &RangeSet) -> Vec<PageRange> {
    let mut out: Vec<PageRange> = Vec::new();
    for range in pages.iter() {
        match out.last_mut() {
            Some(last) if range.first - last.end() <= GAP => last.count = range.end() - last.first,
            _ => out.push(range),
        }
    }
    out
}

/// Pages among `held`, which both hold, that two processes share at this moment: anonymous ones, also those that a private
/// mapping of a file was given when it was written to. Takes about 30 ms for each GiB.
///
/// # Errors
/// One of them is gone, or its pagemap cannot be read.
pub fn shared(a: &ProcDir, b: &ProcDir, held: &RangeSet) -> Result<RangeSet, TrackError> {
    if held.is_empty() {
        return Ok(RangeSet::new());
    }
    let (map_a, map_b) = (pagemap(a)?, pagemap(b)?);
    let (mut buf_a, mut buf_b) = (Vec::new(), Vec::new());
    let mut out = RangeSet::new();
    for piece in stretches(held).into_iter().flat_map(|r| r.pieces(ENTRIES)) {
        read(a, &map_a, piece.first, piece.count, &mut buf_a)?;
        read(b, &map_b, piece.first, piece.count, &mut buf_b)?;
        for (page, (x, y)) in (piece.first..).zip(entries(&buf_a).zip(entries(&buf_b))) {
            if is_same(x, y) {
                out.insert(PageRange::new(page, 1));
            }
        }
    }
    Ok(out.intersection(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_close_together_is_read_at_once() {
        let pages: RangeSet =
            [PageRange::new(5, 1), PageRange::new(7, 2), PageRange::new(25, 1), PageRange::new(43, 1)]
                .into_iter()
                .collect();
        assert_eq!(stretches(&pages), [PageRange::new(5, 21), PageRange::new(43, 1)]);
        assert_eq!(stretches(&RangeSet::new()), []);
    }

    #[test]
    fn frames_must_be_known_equal_and_anonymous() {
        const PRESENT: u64 = 1 << 63;
        const FILE: u64 = 1 << 61;
        let same = |a, b| is_same(Entry(a), Entry(b));
        assert!(same(PRESENT | 7, PRESENT | 7 | 1 << 57));
        assert!(!same(PRESENT | 7, PRESENT | 8));
        assert!(!same(PRESENT, PRESENT));
        assert!(!same(7, 7));
        assert!(!same(PRESENT | FILE | 7, PRESENT | FILE | 7));
    }
}
