//! `/proc/PID/pagemap` (pagemap in the kernel's documentation): what one entry of 8 bytes says. The reads are in `sys/`.

/// One entry, as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Entry(pub u64);

impl Entry {
    /// Bytes of an entry.
    pub const SIZE: usize = 8;

    /// In memory.
    pub fn is_present(self) -> bool {
        self.0 >> 63 & 1 == 1
    }

    /// Swapped out, or a marker of userfaultfd where a page may never have been.
    pub fn is_swapped(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    /// A page of a file or of shared memory, as opposed to an anonymous one.
    pub fn is_file(self) -> bool {
        self.0 >> 61 & 1 == 1
    }

    /// `MADV_GUARD_INSTALL` (6.15+).
    pub fn is_guard(self) -> bool {
        self.0 >> 58 & 1 == 1
    }

    /// Write-protected through userfaultfd: not written since it was armed.
    pub fn is_uffd_wp(self) -> bool {
        self.0 >> 57 & 1 == 1
    }

    /// Mapped by this address space alone.
    pub fn is_exclusive(self) -> bool {
        self.0 >> 56 & 1 == 1
    }

    /// Written since `clear_refs` (CONFIG_MEM_SOFT_DIRTY).
    pub fn is_soft_dirty(self) -> bool {
        self.0 >> 55 & 1 == 1
    }

    /// There are contents: in memory or swapped out, and not a mere marker of userfaultfd (present pages may carry the
    /// bit, markers show as swapped with a type and offset of their own that the reader cannot know: they count).
    pub fn has_content(self) -> bool {
        (self.is_present() || self.is_swapped()) && !self.is_guard()
    }

    /// Number of the page frame; 0 for a reader without CAP_SYS_ADMIN, `None` if the page is not present.
    pub fn frame(self) -> Option<u64> {
        self.is_present().then_some(self.0 & ((1 << 55) - 1))
    }
}

/// Decodes what was read; a last entry that is cut is left out.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    bytes.as_chunks::<{ Entry::SIZE }>().0.iter().map(|entry| Entry(u64::from_ne_bytes(*entry)))
}

/// Where in the file the entry of an address lies, bytes.
pub fn offset_of(address: u64) -> u64 {
    address / crate::image::mm::PAGE * Entry::SIZE as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn bits() {
        let entry = Entry(1 << 63 | 1 << 56 | 1 << 55 | 0x1234);
        assert!(entry.is_present() && entry.is_exclusive() && entry.is_soft_dirty() && entry.has_content());
        assert!(!entry.is_swapped() && !entry.is_file() && !entry.is_uffd_wp() && !entry.is_guard());
        assert_eq!(entry.frame(), Some(0x1234));
        assert_eq!(Entry(1 << 62 | 1 << 57).frame(), None);
        assert!(!Entry(1 << 58 | 1 << 62).has_content());
        assert_eq!(entries(&[0; 20]).count(), 2);
    }

    #[test]
    fn a_page_of_ours_is_present() {
        let page = vec![1u8; 8192];
        let address = (page.as_ptr() as u64 + 4095) & !4095;
        let file = std::fs::File::open("/proc/self/pagemap").unwrap();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset_of(address)).unwrap();
        let entry = entries(&bytes).next().unwrap();
        assert!(entry.is_present() && !entry.is_file(), "{entry:?}");
        assert_eq!(page[0], 1);
    }
}
