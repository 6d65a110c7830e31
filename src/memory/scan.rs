//! Which pages of an address space have contents that must be saved.

use super::{PageRange, Space};
use crate::image::mm::{Backing, Mm, PAGE, Vma};
use crate::image::{MmId, ShmemId};
use crate::sys::Errno;
use crate::sys::abi::PageRegion;
use crate::sys::pagemap::{self, Query, category};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// A mapping whose pages belong to the address space and travel with it.
pub fn carries_pages(vma: &Vma) -> bool {
    vma.owns_pages() && !matches!(vma.backing, Backing::Droppable | Backing::Descriptor(_))
}

/// The pages of an address space that hold something of its own: populated anonymous memory, and pages of private file
/// mappings that differ from the file because they were written to.
///
/// # Errors
/// What `PAGEMAP_SCAN`, or reading the pagemap where the kernel lacks it, fails with.
pub fn private_pages(id: MmId, mm: &Mm, pagemap: &std::fs::File) -> Result<Vec<(Space, PageRange)>, Errno> {
    let mut plan = Vec::new();
    let mut areas: Vec<(u64, u64, bool)> = Vec::new();
    for vma in mm.vmas.iter().filter(|v| carries_pages(v)) {
        match areas.last_mut() {
            // Neighbours are looked at together: most of what a small mapping costs is the system call.
            Some((_, end, kind)) if *end == vma.start && *kind == of_file(vma) => *end = vma.end,
            _ => areas.push((vma.start, vma.end, of_file(vma))),
        }
    }
    for (start, end, of_file) in areas {
        let mut found = |start: u64, end: u64| {
            plan.push((Space::Mm(id), PageRange::new(start / PAGE, (end - start) / PAGE)));
        };
        held_pages((start, end), of_file, pagemap, &mut found)?;
    }
    Ok(plan)
}

/// The same for one stretch of addresses; `of_file` = a private mapping of a file. Calls `found` with the start and end of
/// each run of pages, ascending.
///
/// # Errors
/// As [`private_pages`].
pub fn held_pages(
    area: (u64, u64),
    of_file: bool,
    pagemap: &std::fs::File,
    found: &mut dyn FnMut(u64, u64),
) -> Result<(), Errno> {
    match scan(area, of_file, pagemap.as_fd(), found) {
        Err(Errno::ENOTTY) => read_entries(area, of_file, pagemap, found),
        other => other,
    }
}

fn of_file(vma: &Vma) -> bool {
    !matches!(vma.backing, Backing::Anon | Backing::HugeAnon { .. })
}

fn scan(
    (start, end): (u64, u64),
    of_file: bool,
    pagemap: BorrowedFd<'_>,
    found: &mut dyn FnMut(u64, u64),
) -> Result<(), Errno> {
    let mut buf: Vec<PageRegion> = Vec::new();
    let held = category::PRESENT | category::SWAPPED;
    // FILE makes the kernel look at each struct page: only where a file is mapped. PFN_ZERO: read but never written.
    let not = if of_file { category::FILE | category::PFN_ZERO } else { category::PFN_ZERO };
    let not = not | pagemap::guard_category();
    let query = Query { all_of: not, inverted: not, any_of: held, report: held, flags: 0 };
    let mut open: Option<(u64, u64)> = None;
    pagemap::scan(pagemap, start, end, query, &mut buf, |region| match &mut open {
        Some((_, end)) if *end == region.start => *end = region.end,
        _ => {
            if let Some((start, end)) = open.replace((region.start, region.end)) {
                found(start, end);
            }
        }
    })?;
    if let Some((start, end)) = open {
        found(start, end);
    }
    Ok(())
}

/// Linux before 6.7: 8 bytes a page. Bit 63 present, 62 swapped, 61 of a file.
fn read_entries(
    (start, end): (u64, u64),
    file: bool,
    pagemap: &std::fs::File,
    found: &mut dyn FnMut(u64, u64),
) -> Result<(), Errno> {
    let mut buf = vec![0u8; 1 << 16];
    let mut page = start / PAGE;
    let last = end / PAGE;
    while page < last {
        let want = ((last - page) as usize * 8).min(buf.len());
        let n = pagemap.read_at(&mut buf[..want], page * 8).map_err(errno_of)?;
        // Memory that is gone with its process has no entries: what PAGEMAP_SCAN answers then.
        if n < 8 {
            return Err(Errno::ESRCH);
        }
        for entry in buf[..n - n % 8].chunks_exact(8) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("8 bytes"));
            if entry >> 62 != 0 && !(file && entry >> 61 & 1 == 1) {
                found(page * PAGE, (page + 1) * PAGE);
            }
            page += 1;
        }
    }
    Ok(())
}

/// The parts of a shared memory object that are no holes.
///
/// # Errors
/// What lseek(2) fails with.
pub fn shared_pages(id: ShmemId, size: u64, file: BorrowedFd<'_>) -> Result<Vec<(Space, PageRange)>, Errno> {
    let mut plan = Vec::new();
    let mut offset = 0;
    while offset < size {
        let start = match nix::unistd::lseek(file, offset as i64, nix::unistd::Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break,
            // hugetlbfs knows no holes.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => offset,
            Err(e) => return Err(e),
        };
        let end = nix::unistd::lseek(file, start as i64, nix::unistd::Whence::SeekHole).map_or(size, |e| e as u64);
        let (first, last) = (start / PAGE, end.min(size).div_ceil(PAGE));
        if last <= first {
            break;
        }
        plan.push((Space::Shmem(id), PageRange::new(first, last - first)));
        offset = end.max(start + 1);
    }
    tracing::trace!("shared memory {:?} (descriptor {}): {} ranges", id, file.as_raw_fd(), plan.len());
    Ok(plan)
}

fn errno_of(e: std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_gone_is_no_failure_of_the_kernel() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pagemap = std::fs::File::open(format!("/proc/{}/pagemap", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(read_entries((0x1000, 0x9000), false, &pagemap, &mut |_, _| {}), Err(Errno::ESRCH));
    }
}
