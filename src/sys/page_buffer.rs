//! Room for the content of pages.

use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;

/// Bytes that begin at a page boundary.
///
/// The kernel copies by `rep movsb`, which AMD's processors with FSRM (Zen 3 and later) do at a third of their speed where the
/// destination lies 1 to 31 bytes higher within its page than the source does. A page lies at the beginning of one; what malloc(3)
/// gives that is large begins 16 bytes later. A GiB read by process_vm_readv(2) takes 750 ms then, and 260 ms into such a buffer.
#[derive(Default)]
pub struct PageBuffer {
    /// A page longer than what is used of it. Asked for as zeros (calloc(3)), as what is large comes from the kernel so, and is not
    /// touched before it is written to; memory that is asked for with an alignment is filled with zeros here.
    room: Vec<u8>,
    bytes: usize,
}

impl PageBuffer {
    /// So many bytes, zero.
    pub fn of(bytes: usize) -> Self {
        let room = if bytes == 0 { Vec::new() } else { vec![0; bytes + PAGE] };
        Self { room, bytes }
    }

    /// Makes it so many bytes long. Those that it had are kept; any others are zero or from an earlier use.
    pub fn resize(&mut self, bytes: usize) {
        if self.room.len() < bytes + PAGE {
            let mut longer = Self::of(bytes);
            let kept = self.bytes.min(bytes);
            longer[..kept].copy_from_slice(&self[..kept]);
            *self = longer;
        }
        self.bytes = bytes;
    }

    /// Where the first page of the room begins.
    fn start(&self) -> usize {
        self.room.as_ptr().addr().next_multiple_of(PAGE) - self.room.as_ptr().addr()
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.bytes {
            0 => &[],
            bytes => &self.room[self.start()..][..bytes],
        }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, bytes) = (self.start(), self.bytes);
        if bytes == 0 { &mut [] } else { &mut self.room[start..][..bytes] }
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
        assert!(buffer.is_empty() && PageBuffer::of(0).is_empty());
        for bytes in [1, 4096, 300_000, 17] {
            buffer.resize(bytes);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % 4096), (bytes, 0));
        }
        buffer.fill(7);
        buffer.resize(20);
        assert_eq!(&buffer[15..], [7, 7, 0, 0, 0]);
    }

    #[test]
    fn what_it_has_is_kept_when_it_grows() {
        let mut buffer = PageBuffer::of(10);
        buffer.fill(7);
        buffer.resize(1 << 20);
        assert_eq!((&buffer[8..12], buffer[(1 << 20) - 1]), (&[7, 7, 0, 0][..], 0));
        buffer.resize(0);
        assert!(buffer.is_empty());
    }
}
