//! The code that runs inside a target: a loop over a table of system calls, position-independent, about 100 bytes.
//!
//! On entry `rbx` is the address of the first [`super::abi::BatchRow`], `r12` their number, `r15` the base of the
//! table. Ends in `int3`, at [`Stub::end`]. High half of `BatchRow::call`: bits 0..=5 = argument n is a byte offset from `r15`
//! of the value to use; bit 6 = stop the batch when the call fails; bit 7 = whoever gets 0 from the call (the child of a
//! `clone3`) parks in `pause`-less spinning sleep until a tracer takes it.

/// Argument n refers to an earlier result.
pub const REFERENCE_SHIFT: u32 = 32;
/// Stop the batch if the call returns an error.
pub const ABORT_ON_ERROR: u64 = 1 << 38;
/// The child of this clone3 parks.
pub const PARK_CHILD: u64 = 1 << 39;

core::arch::global_asm!(
    ".pushsection .rodata.migrate_stub, \"a\", @progbits",
    ".globl migrate_stub_start",
    ".globl migrate_stub_syscall",
    ".globl migrate_stub_end",
    "migrate_stub_start:",
    "1: test r12, r12",
    "   jz 9f",
    "   mov rax, [rbx]",
    "   mov rbp, rax",
    "   shr rbp, 32",
    "   xor edx, edx",
    "6: bt ebp, edx",
    "   jnc 7f",
    "   mov rsi, [rbx + rdx*8 + 8]",
    "   mov rsi, [r15 + rsi]",
    "   mov [rbx + rdx*8 + 8], rsi",
    "7: inc edx",
    "   cmp edx, 6",
    "   jb 6b",
    "   mov rdi, [rbx + 8]",
    "   mov rsi, [rbx + 16]",
    "   mov rdx, [rbx + 24]",
    "   mov r10, [rbx + 32]",
    "   mov r8, [rbx + 40]",
    "   mov r9, [rbx + 48]",
    "   mov eax, eax",
    "   syscall",
    "   test rax, rax",
    "   jnz 3f",
    "   bt ebp, 7",
    "   jnc 3f",
    // The child of a clone3: wait here, without touching the table, until a tracer takes over.
    "4: mov eax, 34",
    "   syscall",
    "   jmp 4b",
    "3: mov [rbx + 56], rax",
    "   add rbx, 64",
    "   dec r12",
    "   bt ebp, 6",
    "   jnc 1b",
    "   cmp rax, -4096",
    "   jbe 1b",
    "9: int3",
    "migrate_stub_syscall:",
    "   syscall",
    "   int3",
    "migrate_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static migrate_stub_start: u8;
    static migrate_stub_syscall: u8;
    static migrate_stub_end: u8;
}

/// The stub's bytes and the places in it that matter.
#[derive(Debug, Clone, Copy)]
pub struct Stub {
    /// The code.
    pub code: &'static [u8],
    /// Offset of a lone `syscall; int3`.
    pub syscall: u64,
}

/// The stub as it is copied into a target.
pub fn stub() -> Stub {
    // SAFETY: the three symbols are defined above in one section, in this order, and never change; the bytes between
    // them are initialised read-only data of this program.
    unsafe {
        let start = &raw const migrate_stub_start;
        let syscall = (&raw const migrate_stub_syscall).offset_from(start);
        let len = (&raw const migrate_stub_end).offset_from(start);
        Stub { code: std::slice::from_raw_parts(start, len as usize), syscall: syscall as u64 }
    }
}
