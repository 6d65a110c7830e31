//! mmap(2) of files: one that is only read; one that has no write(2); one that is never touched.

use super::{Errno, Result};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

/// Writes `bytes` to a file at `offset` through a mapping of that part: for hugetlbfs, which has no write(2). The part must
/// lie within the file.
pub fn write_at(file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
    let meta = file.metadata().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    // On hugetlbfs this is the size of its pages; mappings begin and end at one.
    let block = meta.blksize().max(4096);
    let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= meta.size()).ok_or(Errno::EFBIG)?;
    if bytes.is_empty() {
        return Ok(());
    }
    let start = offset - offset % block;
    let length = (end - start).next_multiple_of(block) as usize;
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let fd = file.as_raw_fd();
    // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, fd, start as libc::off_t) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // Pages of the pool are reserved by mmap(2), so touching them cannot fail; and the end was checked above.
    // SAFETY: the target lies within the mapping, which nobody else knows of; `bytes` is borrowed memory of ours.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast::<u8>().add((offset - start) as usize), bytes.len());
        libc::munmap(at, length);
    }
    Ok(())
}

/// A whole memory object at some address of ours, shared, until it is dropped: for userfaultfd(2), which makes pages of an
/// object through any mapping of it. Nobody reads or writes through this one.
#[derive(Debug)]
pub struct Window {
    start: usize,
    length: usize,
}

impl Window {
    /// Maps `length` bytes (whole pages of the object, more than 0) from its start.
    pub fn new(file: BorrowedFd<'_>, length: usize) -> Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Self { start: at as usize, length }) }
    }

    /// Its address, a number only.
    pub fn start(&self) -> u64 {
        self.start as u64
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length as u64
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; no reference to it was ever made.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.length) };
    }
}

/// A whole file in memory, read-only, until it is dropped.
///
/// Touching a part that has been cut off the file since raises SIGBUS, as does an error of the medium: so this is for
/// files on tmpfs that this program's user alone can write.
#[derive(Debug)]
pub struct FileMapping {
    start: *const u8,
    length: usize,
}

// SAFETY: the memory is never written through this mapping and belongs to no thread.
unsafe impl Send for FileMapping {}
// SAFETY: as above.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// Maps `length` bytes (more than 0) from the start of the file.
    pub fn new(file: &File, length: usize) -> Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Self { start: at.cast(), length }) }
    }

    /// Has the kernel enter pages of this part in our page tables, as far as it can (Linux 5.14).
    pub fn populate(&self, offset: u64, length: u64) {
        const MADV_POPULATE_READ: i32 = 22;
        let end = offset.saturating_add(length).min(self.length as u64);
        if offset < end {
            // SAFETY: the range lies within the mapping; its content does not change.
            unsafe {
                libc::madvise(
                    self.start.add(offset as usize).cast_mut().cast(),
                    (end - offset) as usize,
                    MADV_POPULATE_READ,
                )
            };
        }
    }

    /// Copies from `offset` on, if all of that is mapped. The caller knows that the file is still as long, and that nobody
    /// cuts it short meanwhile.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        let inside = offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.length as u64);
        if inside {
            // SAFETY: the source lies within the mapping, the target is ours; bytes that change meanwhile are bytes still.
            unsafe { std::ptr::copy_nonoverlapping(self.start.add(offset as usize), buf.as_mut_ptr(), buf.len()) };
        }
        inside
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.cast_mut().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_through_a_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10_000).unwrap();
        write_at(&file, 4090, b"0123456789").unwrap();
        let mut read = [0; 12];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, 4089).unwrap();
        assert_eq!(&read, b"\x000123456789\0");
        assert_eq!(write_at(&file, 9_999, b"xy"), Err(Errno::EFBIG));
    }

    #[test]
    fn shows_the_content() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"hello").unwrap();
        let (mapping, mut read) = (FileMapping::new(&file, 5).unwrap(), [0; 3]);
        assert!(mapping.read(2, &mut read) && !mapping.read(3, &mut read));
        assert_eq!(&read, b"llo");
        assert!(FileMapping::new(&file, 0).is_err());
    }
}
