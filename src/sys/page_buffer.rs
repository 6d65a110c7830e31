//! Room for the content of pages.

use std::ops::{Deref, DerefMut};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const PAGE: usize = 4096;

#[derive(Clone, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Bytes that begin at a page boundary.
///
/// The kernel copies by `rep movsb`, which AMD's processors with FSRM (Zen 3 and later) do at a third of their speed where the
/// destination lies 1 to 31 bytes higher within its page than the source does. A page lies at the beginning of one; what malloc(3)
/// gives that is large begins 16 bytes later. A GiB read by process_vm_readv(2) takes 750 ms then, and 260 ms into such a buffer.
#[derive(Default)]
pub struct PageBuffer {
    pages: Vec<Page>,
    bytes: usize,
}

impl PageBuffer {
    /// So many bytes, zero.
    pub fn of(bytes: usize) -> Self {
        let mut buffer = Self::default();
        buffer.resize(bytes);
        buffer
    }

    /// Makes it so many bytes long. Those that it had are kept; any others are zero or from an earlier use.
    pub fn resize(&mut self, bytes: usize) {
        let pages = bytes.div_ceil(PAGE);
        if self.pages.len() < pages {
            self.pages.resize_with(pages, Page::new_zeroed);
        }
        self.bytes = bytes;
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.bytes]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.bytes]
    }
}

impl std::fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBuffer({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page_whatever_its_length() {
        let mut buffer = PageBuffer::default();
        assert!(buffer.is_empty());
        for bytes in [1, 4096, 300_000, 17] {
            buffer.resize(bytes);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % 4096), (bytes, 0));
        }
        buffer.fill(7);
        buffer.resize(20);
        assert_eq!(&buffer[15..], [7, 7, 0, 0, 0]);
    }
}
