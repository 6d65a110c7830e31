//! Address spaces and shared memory objects: layout and attributes. Contents lie in the page store.

use super::numa::Policy;
use super::{Bytes, FileId, GhostId, MmId, ShmemId, fd::PathRef};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Size of a page, bytes.
pub const PAGE: u64 = 4096;

/// One address space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mm {
    /// `PR_SET_MM_MAP`: where code, data, heap, stack, arguments and environment lie.
    pub layout: Layout,
    /// Auxiliary vector, raw.
    pub auxv: Bytes,
    /// The executable (`/proc/PID/exe`).
    pub exe: PathRef,
    /// Mappings, ascending, not overlapping.
    pub vmas: Vec<Vma>,
    /// Start and length of the block `[vvar] [vvar_vclock] [vdso]`, if mapped.
    pub vdso: Option<VdsoBlock>,
    /// Texts of vDSOs of kernels the program ran under before: ordinary memory whose functions lead to the block.
    pub old_vdsos: Vec<OldVdso>,
    /// `PR_GET_DUMPABLE`: 0, 1 or 2.
    pub dumpable: u32,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: u32,
    /// `PR_GET_MDWE`, bits.
    pub mdwe: u32,
    /// `MCL_FUTURE`, and `MCL_ONFAULT` with it, of mlockall(2): how mappings yet to come are locked; 0 = not at all.
    pub mlock_future: u32,
    /// Protection keys in use (pkey_alloc(2)), a bit mask.
    pub pkeys: u32,
    /// `membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS)`.
    pub membarrier: u32,
    /// The address space (of an ancestor) whose pages are shared copy-on-write at equal addresses, if any are.
    pub cow_parent: Option<MmId>,
}

impl Mm {
    /// Addresses of the texts of vDSOs: the kernel's, then those of kernels before.
    pub fn vdso_texts(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        vdso_texts(self.vdso, &self.old_vdsos)
    }
}

/// The same for parts of an address space.
pub fn vdso_texts(block: Option<VdsoBlock>, old: &[OldVdso]) -> impl Iterator<Item = Range<u64>> + '_ {
    let own = block.map(|block| block.text..block.end);
    own.into_iter().chain(old.iter().map(OldVdso::range))
}

/// Fields of `struct prctl_mm_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// First byte of the text.
    pub start_code: u64,
    /// End of the text.
    pub end_code: u64,
    /// First byte of the initialised data.
    pub start_data: u64,
    /// End of the initialised data.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// End of the heap.
    pub brk: u64,
    /// Start of the stack (its highest address in use at exec).
    pub start_stack: u64,
    /// Command line.
    pub arg_start: u64,
    /// Its end.
    pub arg_end: u64,
    /// Environment.
    pub env_start: u64,
    /// Its end.
    pub env_end: u64,
}

/// The kernel's block of special mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdsoBlock {
    /// Address of the first `[vvar]` page.
    pub start: u64,
    /// Address of `[vdso]`.
    pub text: u64,
    /// End of the block.
    pub end: u64,
}

/// The text of another kernel's vDSO, kept because the program knows addresses in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldVdso {
    /// Where it is.
    pub start: u64,
    /// What is there: the ELF image, jumps at the beginning of its functions.
    pub text: Bytes,
}

impl OldVdso {
    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.text.0.len() as u64
    }
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address past the end.
    pub end: u64,
    /// `PROT_*`.
    pub prot: u32,
    /// What lies behind it.
    pub backing: Backing,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// Offset in the backing object, bytes.
    pub offset: u64,
    /// `MAP_GROWSDOWN`.
    pub grows_down: bool,
    /// Locked in memory: `Some(true)` = on fault only.
    pub locked: Option<bool>,
    /// `MAP_NORESERVE`.
    pub no_reserve: bool,
    /// Counted against the commit limit (flag `ac`): it is, or once was, private and writable.
    pub accounted: bool,
    /// Advice that stays with a mapping.
    pub advice: Advice,
    /// May be made writable later (`VM_MAYWRITE`: flag `mw`).
    pub may_write: bool,
    /// `mbind(2)`. Of shared memory it is the object's, for a part of it: of several mappings of that part one has it.
    pub numa: Option<Policy>,
    /// `mseal(2)`.
    pub sealed: bool,
    /// Protection key.
    pub pkey: u32,
    /// Ranges with `MADV_GUARD_INSTALL`, (start, end).
    pub guards: Vec<(u64, u64)>,
    /// Has, or once had, such ranges (flag `gu`, Linux 6.18): the mark stays.
    pub guarded: bool,
    /// `PR_SET_VMA_ANON_NAME`.
    pub anon_name: Option<Bytes>,
}

impl Vma {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// A mapping is never empty; clippy wants the twin of `len`.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Contents are the address space's own (private), as opposed to those of a shared object or file.
    pub fn owns_pages(&self) -> bool {
        !self.shared && !matches!(self.backing, Backing::Vdso | Backing::Vvar)
    }
}

/// Advice of `madvise(2)` that is an attribute of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Advice {
    /// `MADV_DONTFORK`.
    pub dont_fork: bool,
    /// `MADV_WIPEONFORK`.
    pub wipe_on_fork: bool,
    /// `MADV_DONTDUMP`.
    pub dont_dump: bool,
    /// `MADV_HUGEPAGE`.
    pub huge: bool,
    /// `MADV_NOHUGEPAGE`.
    pub no_huge: bool,
    /// `MADV_MERGEABLE`.
    pub mergeable: bool,
    /// `MADV_SEQUENTIAL`.
    pub sequential: bool,
    /// `MADV_RANDOM`.
    pub random: bool,
}

/// What a mapping shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Backing {
    /// Anonymous memory, private.
    Anon,
    /// Private anonymous memory whose pages the kernel may drop (`MAP_DROPPABLE`): contents never travel.
    Droppable,
    /// Private or shared mapping of a shared memory object.
    Shmem(ShmemId),
    /// A file that has a path.
    File {
        /// Where it is.
        path: PathRef,
        /// Open flags that the mapping needs: `O_RDONLY` or `O_RDWR`.
        flags: u32,
    },
    /// A deleted file whose content travels.
    Ghost(GhostId),
    /// Something mapped from a descriptor that has to exist first (device, packet ring, ...).
    Descriptor(FileId),
    /// `/dev/zero` and the like: a device node's mapping that is plain memory.
    Device(PathRef),
    /// Private anonymous huge pages of this size in bytes (`MAP_HUGETLB`).
    HugeAnon {
        /// Bytes per huge page.
        page_size: u64,
    },
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`, `[vvar_vclock]`.
    Vvar,
}

/// A shared memory object: pages that several mappings or descriptors share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shmem {
    /// Length in bytes.
    pub size: u64,
    /// What it is.
    pub kind: ShmemKind,
    /// Mode bits of the inode.
    pub mode: u32,
    /// Owner, as the engine sees it.
    pub uid: u32,
    /// Group, as the engine sees it.
    pub gid: u32,
}

/// Kinds of shared memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShmemKind {
    /// `mmap(MAP_SHARED | MAP_ANONYMOUS)`.
    Anon,
    /// `memfd_create(2)`.
    Memfd {
        /// Name without the `memfd:` prefix.
        name: Bytes,
        /// `F_GET_SEALS`.
        seals: u32,
        /// Huge page size in bytes, 0 for ordinary pages.
        huge_page: u64,
    },
    /// `shmget(2)`.
    SysV {
        /// `shmid`.
        id: i32,
        /// `key_t` it was made with.
        key: i32,
        /// `SHM_DEST`: removed once nobody is attached.
        destroyed: bool,
        /// `SHM_LOCK`.
        locked: bool,
        /// User and group of its creator, as the engine sees them.
        creator: (u32, u32),
        /// Huge page size in bytes (`SHM_HUGETLB`), 0 for ordinary pages.
        huge_page: u64,
    },
    /// `mmap(MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB)` of this page size in bytes.
    HugeAnon {
        /// Bytes per huge page.
        page_size: u64,
    },
}
