//! The vDSO of this kernel: its text, and a `syscall` instruction in it.

use std::sync::OnceLock;

/// `arch_prctl(ARCH_MAP_VDSO_64)`: maps the vDSO block at an address (Linux 4.9, `CONFIG_CHECKPOINT_RESTORE`).
pub const ARCH_MAP_VDSO_64: u64 = 0x2003;

/// The bytes of this process's own `[vdso]` mapping: the same in every 64-bit process of this boot.
pub fn own_text() -> &'static [u8] {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    TEXT.get_or_init(|| crate::proc::own_mapping(b"[vdso]").unwrap_or_default())
}

/// Offset of a `syscall` instruction in the vDSO text, for a first system call in a target without touching its code.
pub fn syscall_offset(text: &[u8]) -> Option<u64> {
    text.windows(2).position(|w| w == [0x0f, 0x05]).map(|n| n as u64)
}
