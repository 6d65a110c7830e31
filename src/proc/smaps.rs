//! `/proc/PID/smaps` (proc_pid_smaps(5)): `maps` with sizes and flags.
//!
//! The kernel walks the page tables to make this file: 14-20 ms/GiB of 4 KiB pages. Read it once for each dump, not for each
//! round, and not in the pause if mappings have not changed.

use super::{
    ProcDir, Result, Syntax,
    maps::{self, Mapping},
    scan,
    status::kib,
};

bitflags::bitflags! {
    /// Attributes of a mapping (`VmFlags`). The numbers are ours, not the kernel's.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct VmFlags: u64 {
        /// `rd` readable
        const READ = 1 << 0;
        /// `wr` writable
        const WRITE = 1 << 1;
        /// `ex` executable
        const EXEC = 1 << 2;
        /// `sh` shared
        const SHARED = 1 << 3;
        /// `mr` may read
        const MAY_READ = 1 << 4;
        /// `mw` may write
        const MAY_WRITE = 1 << 5;
        /// `me` may execute
        const MAY_EXEC = 1 << 6;
        /// `ms` may share: `MAP_SHARED` was asked for, whatever the file was opened for
        const MAY_SHARE = 1 << 7;
        /// `gd` stack that grows down
        const GROWS_DOWN = 1 << 8;
        /// `pf` page frames without `struct page`
        const PFN_MAP = 1 << 9;
        /// `lo` locked
        const LOCKED = 1 << 10;
        /// `io` memory of a device
        const IO = 1 << 11;
        /// `sr` `MADV_SEQUENTIAL`
        const SEQUENTIAL = 1 << 12;
        /// `rr` `MADV_RANDOM`
        const RANDOM = 1 << 13;
        /// `dc` `MADV_DONTFORK`
        const DONT_FORK = 1 << 14;
        /// `de` cannot be extended by mremap
        const DONT_EXPAND = 1 << 15;
        /// `lf` `MLOCK_ONFAULT`
        const LOCK_ON_FAULT = 1 << 16;
        /// `ac` counted against the commit limit
        const ACCOUNT = 1 << 17;
        /// `nr` `MAP_NORESERVE`
        const NO_RESERVE = 1 << 18;
        /// `ht` huge page of hugetlbfs
        const HUGETLB = 1 << 19;
        /// `sf` `MAP_SYNC`
        const SYNC = 1 << 20;
        /// `ar` architecture's own
        const ARCH = 1 << 21;
        /// `wf` `MADV_WIPEONFORK`
        const WIPE_ON_FORK = 1 << 22;
        /// `dd` `MADV_DONTDUMP`
        const DONT_DUMP = 1 << 23;
        /// `sd` soft-dirty
        const SOFT_DIRTY = 1 << 24;
        /// `mm` mixed map
        const MIXED_MAP = 1 << 25;
        /// `hg` `MADV_HUGEPAGE`
        const HUGE_PAGE = 1 << 26;
        /// `nh` `MADV_NOHUGEPAGE`
        const NO_HUGE_PAGE = 1 << 27;
        /// `mg` `MADV_MERGEABLE`
        const MERGEABLE = 1 << 28;
        /// `um` userfaultfd, missing pages
        const UFFD_MISSING = 1 << 29;
        /// `uw` userfaultfd, write protection
        const UFFD_WP = 1 << 30;
        /// `ui` userfaultfd, minor faults
        const UFFD_MINOR = 1 << 31;
        /// `ss` shadow stack
        const SHADOW_STACK = 1 << 32;
        /// `dp` `MAP_DROPPABLE`
        const DROPPABLE = 1 << 33;
        /// `sl` `mseal(2)`
        const SEALED = 1 << 34;
        /// `gu` may hold guard pages (6.19+)
        const GUARD = 1 << 35;
        /// `bt` branch target identification (arm64)
        const BTI = 1 << 36;
        /// `mt` memory tagging (arm64)
        const MTE = 1 << 37;
        /// A flag this program does not know: the mapping may have an attribute that would be lost.
        const UNKNOWN = 1 << 63;
    }
}

impl VmFlags {
    /// Userfaultfd of any mode.
    pub const UFFD: Self = Self::UFFD_MISSING.union(Self::UFFD_WP).union(Self::UFFD_MINOR);

    /// One mnemonic of the kernel.
    pub fn of_mnemonic(word: &[u8]) -> Self {
        match word {
            b"rd" => Self::READ,
            b"wr" => Self::WRITE,
            b"ex" => Self::EXEC,
            b"sh" => Self::SHARED,
            b"mr" => Self::MAY_READ,
            b"mw" => Self::MAY_WRITE,
            b"me" => Self::MAY_EXEC,
            b"ms" => Self::MAY_SHARE,
            b"gd" => Self::GROWS_DOWN,
            b"pf" => Self::PFN_MAP,
            b"lo" => Self::LOCKED,
            b"io" => Self::IO,
            b"sr" => Self::SEQUENTIAL,
            b"rr" => Self::RANDOM,
            b"dc" => Self::DONT_FORK,
            b"de" => Self::DONT_EXPAND,
            b"lf" => Self::LOCK_ON_FAULT,
            b"ac" => Self::ACCOUNT,
            b"nr" => Self::NO_RESERVE,
            b"ht" => Self::HUGETLB,
            b"sf" => Self::SYNC,
            b"ar" => Self::ARCH,
            b"wf" => Self::WIPE_ON_FORK,
            b"dd" => Self::DONT_DUMP,
            b"sd" => Self::SOFT_DIRTY,
            b"mm" => Self::MIXED_MAP,
            b"hg" => Self::HUGE_PAGE,
            b"nh" => Self::NO_HUGE_PAGE,
            b"mg" => Self::MERGEABLE,
            b"um" => Self::UFFD_MISSING,
            b"uw" => Self::UFFD_WP,
            b"ui" => Self::UFFD_MINOR,
            b"ss" => Self::SHADOW_STACK,
            b"dp" => Self::DROPPABLE,
            b"sl" => Self::SEALED,
            b"gu" => Self::GUARD,
            b"bt" => Self::BTI,
            b"mt" => Self::MTE,
            _ => Self::UNKNOWN,
        }
    }
}

/// A mapping with its flags: what a dump needs of `smaps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flagged {
    /// The line of `maps`.
    pub mapping: Mapping,
    /// `VmFlags`.
    pub flags: VmFlags,
    /// `ProtectionKey`, 0 where the processor has none.
    pub pkey: u32,
    /// `KernelPageSize`, bytes: 4096, or that of hugetlbfs.
    pub page_size: u64,
}

/// Sizes of a mapping, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// `Rss`: resident.
    pub rss: u64,
    /// `Pss`: resident, each page divided by the number of its users.
    pub pss: u64,
    /// `Pss_Anon`: of that, pages that belong to no file.
    pub pss_anon: u64,
    /// `Pss_Shmem`: of that, pages of shared memory and memfds.
    pub pss_shmem: u64,
    /// `Shared_Clean`
    pub shared_clean: u64,
    /// `Shared_Dirty`
    pub shared_dirty: u64,
    /// `Private_Clean`
    pub private_clean: u64,
    /// `Private_Dirty`
    pub private_dirty: u64,
    /// `Anonymous`: pages that belong to no file.
    pub anonymous: u64,
    /// `AnonHugePages`
    pub anon_huge: u64,
    /// `Shared_Hugetlb`
    pub shared_hugetlb: u64,
    /// `Private_Hugetlb`
    pub private_hugetlb: u64,
    /// `Swap`
    pub swap: u64,
    /// `SwapPss`: swapped out, each page divided by the number of its users.
    pub swap_pss: u64,
    /// `Locked`
    pub locked: u64,
}

impl Sizes {
    fn field(&mut self, key: &[u8]) -> Option<&mut u64> {
        Some(match key {
            b"Rss" => &mut self.rss,
            b"Pss" => &mut self.pss,
            b"Pss_Anon" => &mut self.pss_anon,
            b"Pss_Shmem" => &mut self.pss_shmem,
            b"Shared_Clean" => &mut self.shared_clean,
            b"Shared_Dirty" => &mut self.shared_dirty,
            b"Private_Clean" => &mut self.private_clean,
            b"Private_Dirty" => &mut self.private_dirty,
            b"Anonymous" => &mut self.anonymous,
            b"AnonHugePages" => &mut self.anon_huge,
            b"Shared_Hugetlb" => &mut self.shared_hugetlb,
            b"Private_Hugetlb" => &mut self.private_hugetlb,
            b"Swap" => &mut self.swap,
            b"SwapPss" => &mut self.swap_pss,
            b"Locked" => &mut self.locked,
            _ => return None,
        })
    }
}

/// Walks the file: `head` for each first line, `field` for each line below it.
fn walk(
    text: &[u8],
    mut head: impl FnMut(Mapping) -> bool,
    mut field: impl FnMut(&[u8], &[u8]) -> Option<()>,
) -> std::result::Result<(), Syntax> {
    for (number, line) in scan::lines(text) {
        let syntax = |what| Syntax::new(number, what, line);
        // Heads begin with a lower-case hexadecimal address, fields with a capital letter and have a colon after a word.
        let is_head = line.first().is_some_and(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if is_head {
            let mapping = maps::line(line).ok_or_else(|| syntax("expected a mapping"))?;
            if !head(mapping) {
                return Err(syntax("mappings overlap: the process changed them while they were read"));
            }
        } else {
            let (key, value) = scan::cut(line, b':').ok_or_else(|| syntax("expected `KEY: VALUE`"))?;
            field(key, scan::trim(value)).ok_or_else(|| syntax("unexpected value"))?;
        }
    }
    Ok(())
}

/// Reads mappings with flags, passing over the sizes.
///
/// # Errors
/// A line of another form, overlapping mappings, or a mapping without `VmFlags`.
pub fn parse_flags(text: &[u8]) -> std::result::Result<Vec<Flagged>, Syntax> {
    // Both closures change it, one after the other.
    let found = std::cell::RefCell::new(Vec::<(Flagged, bool)>::with_capacity(text.len() / 600));
    walk(
        text,
        |mapping| {
            let mut found = found.borrow_mut();
            let fits = found.last().is_none_or(|(last, _)| last.mapping.end <= mapping.start);
            found.push((
                Flagged { mapping, flags: VmFlags::empty(), pkey: 0, page_size: crate::image::mm::PAGE },
                false,
            ));
            fits
        },
        |key, value| {
            let mut found = found.borrow_mut();
            let (last, has_flags) = found.last_mut()?;
            match key {
                b"VmFlags" => {
                    *has_flags = true;
                    last.flags =
                        scan::words(value).fold(VmFlags::empty(), |all, word| all | VmFlags::of_mnemonic(word));
                }
                b"ProtectionKey" => last.pkey = scan::dec32(value)?,
                b"KernelPageSize" => last.page_size = kib(value)?,
                _ => {}
            }
            Some(())
        },
    )?;
    let found = found.into_inner();
    if found.iter().any(|(_, has_flags)| !has_flags) {
        return Err(Syntax::new(0, "a mapping has no VmFlags: the kernel lacks CONFIG_PROC_PAGE_MONITOR", b""));
    }
    Ok(found.into_iter().map(|(flagged, _)| flagged).collect())
}

/// Reads mappings with their sizes.
///
/// # Errors
/// A line of another form or overlapping mappings.
pub fn parse_sizes(text: &[u8]) -> std::result::Result<Vec<(Mapping, Sizes)>, Syntax> {
    let found = std::cell::RefCell::new(Vec::<(Mapping, Sizes)>::new());
    walk(
        text,
        |mapping| {
            let mut found = found.borrow_mut();
            let fits = found.last().is_none_or(|(last, _)| last.end <= mapping.start);
            found.push((mapping, Sizes::default()));
            fits
        },
        |key, value| {
            let mut found = found.borrow_mut();
            let (_, sizes) = found.last_mut()?;
            if let Some(field) = sizes.field(key) {
                *field = kib(value)?;
            }
            Some(())
        },
    )?;
    Ok(found.into_inner())
}

/// Reads `smaps_rollup`: the sums over a process.
///
/// # Errors
/// A line of another form.
pub fn parse_rollup(text: &[u8]) -> std::result::Result<Sizes, Syntax> {
    Ok(parse_sizes(text)?.pop().map(|(_, sizes)| sizes).unwrap_or_default())
}

impl ProcDir {
    /// Reads flags of all mappings from `smaps`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn smaps_flags(&self, buf: &mut Vec<u8>) -> Result<Vec<Flagged>> {
        self.settled("smaps", buf, parse_flags)
    }

    /// Reads sizes of all mappings from `smaps`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn smaps_sizes(&self, buf: &mut Vec<u8>) -> Result<Vec<(Mapping, Sizes)>> {
        self.parsed("smaps", buf, parse_sizes)
    }

    /// Reads `smaps_rollup`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]; the kernel gives ESRCH for a zombie.
    pub fn smaps_rollup(&self, buf: &mut Vec<u8>) -> Result<Sizes> {
        self.parsed("smaps_rollup", buf, parse_rollup)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"\
55d0c0000000-55d0c0002000 r--p 00001000 fd:01 1234                       /usr/bin/Size: x
Size:                  8 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   8 kB
Pss:                   3 kB
Shared_Clean:          8 kB
Anonymous:             0 kB
THPeligible:           0
ProtectionKey:         5
VmFlags: rd mr mw me sd lo lf 
7f0000000000-7f0000200000 rw-s 00000000 00:0e 9                          /anon_hugepage (deleted)
KernelPageSize:     2048 kB
Swap:                  4 kB
VmFlags: rd wr sh mr mw me ms de ht zz 
";

    #[test]
    fn flags_and_sizes() {
        let flagged = parse_flags(SAMPLE).unwrap();
        assert_eq!(flagged.len(), 2);
        assert_eq!((flagged[0].pkey, flagged[0].page_size), (5, 4096));
        assert!(flagged[0].flags.contains(VmFlags::LOCKED | VmFlags::LOCK_ON_FAULT | VmFlags::SOFT_DIRTY));
        assert!(!flagged[0].flags.intersects(VmFlags::WRITE | VmFlags::UNKNOWN));
        assert_eq!(flagged[1].page_size, 2 << 20);
        assert!(flagged[1].flags.contains(VmFlags::HUGETLB | VmFlags::UNKNOWN));
        let sizes = parse_sizes(SAMPLE).unwrap();
        assert_eq!((sizes[0].1.rss, sizes[0].1.pss, sizes[0].1.shared_clean), (8 << 10, 3 << 10, 8 << 10));
        assert_eq!(sizes[1].1.swap, 4 << 10);
    }

    #[test]
    fn missing_flags_and_fields_without_a_mapping_are_errors() {
        assert!(parse_flags(b"1000-2000 r--p 0 0:0 0 \nRss: 4 kB\n").is_err());
        assert!(parse_flags(b"Rss: 4 kB\n").is_err());
        assert!(parse_sizes(b"1000-2000 r--p 0 0:0 0 \nRss: x kB\n").is_err());
    }

    #[test]
    fn this_kernel_has_no_flag_we_do_not_know() {
        let dir = ProcDir::of_self().unwrap();
        let mut buf = Vec::new();
        let flagged = dir.smaps_flags(&mut buf).unwrap();
        assert!(!flagged.is_empty());
        for f in &flagged {
            assert!(!f.flags.contains(VmFlags::UNKNOWN), "{f:?}");
            assert_eq!(f.flags.contains(VmFlags::READ), f.mapping.read, "{f:?}");
        }
        assert!(dir.smaps_rollup(&mut buf).unwrap().rss > 0);
    }
}
