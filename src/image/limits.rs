//! The largest things an image may hold. Everything decoded is held against these before memory is asked for.

/// Bytes of one decoded section of the model (but for ghosts), far above what 100 000 threads need.
pub const SECTION_BYTES: usize = 512 << 20;
/// Bytes of the decoded section with the contents of deleted files.
pub const GHOST_BYTES: usize = 4 << 30;
/// Bytes of `model.bin` in all.
pub const MODEL_BYTES: u64 = 4 << 30;
/// Bytes of `manifest.json`.
pub const MANIFEST_BYTES: u64 = 64 << 20;
/// Bytes of the page index: 24 bytes a run, enough for the worst scattering of 2 TiB of memory.
pub const INDEX_BYTES: u64 = 8 << 30;
/// Sections of a model file.
pub const SECTIONS: usize = 64;
/// Page files of one image (one for each worker that wrote).
pub const PAGE_FILES: usize = 1024;
/// Pages of one frame of a page file.
pub const FRAME_PAGES: u32 = 256;
/// Page numbers stay below this: addresses below 2^63, so that arithmetic on bytes cannot overflow.
pub const PAGE_NUMBERS: u64 = 1 << 51;
/// Images in a chain of parents, the youngest included.
pub const CHAIN: usize = 256;
/// Largest text of a vDSO, bytes; those of Linux 5.10 to 7.3 have 8 KiB.
pub const VDSO_TEXT_BYTES: u64 = 64 << 10;
/// Texts of other kernels' vDSOs in an address space.
pub const OLD_VDSOS: usize = 256;
/// Address spaces of which each is forked from the next and shares its pages.
pub const COW_CHAIN: usize = 512;
/// Processes of a tree: the kernel's `PID_MAX_LIMIT`.
pub const TASKS: usize = 1 << 22;
/// Descriptor numbers stay below this (`fs.nr_open` defaults to 2^20; the kernel's own bound is higher, ours is not).
pub const FD: u32 = 1 << 20;
/// Process ids stay below this: the kernel's `PID_MAX_LIMIT`.
pub const PID: i32 = 1 << 22;
/// First address past user space on x86-64 with five-level page tables.
pub const USER_SPACE: u64 = (1 << 56) - 4096;
/// Bytes of a path: the kernel's `PATH_MAX`.
pub const PATH: usize = 4096;
/// Bytes of one XSAVE area; AMX has 11 KiB in all.
pub const XSTATE: usize = 64 << 10;
