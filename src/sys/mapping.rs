//! mmap(2) of a file that is only read.

use super::{Errno, Result};
use std::{fs::File, os::fd::AsRawFd};

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

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length and lives as long as `self`. A writer of the file could change bytes under
        // the slice; the callers' files are private to this user and complete, and every use checks what it reads.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
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
    fn shows_the_content() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"hello").unwrap();
        assert_eq!(FileMapping::new(&file, 5).unwrap().bytes(), b"hello");
        assert!(FileMapping::new(&file, 0).is_err());
    }
}
