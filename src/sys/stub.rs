//! The code that runs inside a target: a loop over a table of system calls, position-independent, about 350 bytes.
//!
//! On entry `rbx` is the address of the first [`super::abi::BatchRow`], `r12` their number, `r15` the base of the
//! table, `r13` the address of a [`super::abi::Lifeline`] or 0. High half of `BatchRow::call`: bits 0..=5 = argument n is a
//! byte offset from `r15` of the value to use; bit 6 = stop the batch when the call fails.
//!
//! Without a lifeline it ends in `int3`, which ends a task that nobody traces. With one it sends itself a signal that the task
//! ignores: a tracer is told of it all the same, at [`Stub::stop`]. Where there is no tracer any more the signal is dropped,
//! and the code goes on to put everything back that the lifeline holds: signal mask, registers, the place in the program.
//!
//! A system call that our stop has interrupted is made again then, or returns `EINTR` where a handler has run before, as the
//! kernel would have had it. While all signals are blocked the code asks for those that wait, and for their actions. In
//! the moments in which the thread has its own mask and our registers, these say that a call was interrupted just
//! here ([`INTERRUPTED`]), so that the kernel decides: it lets the thread go on two bytes before, or there, with `r14` set.

use super::abi::{Lifeline, UserRegs};
use core::mem::offset_of;

/// Argument n refers to an earlier result.
pub const REFERENCE_SHIFT: u32 = 32;
/// Stop the batch if the call returns an error.
pub const ABORT_ON_ERROR: u64 = 1 << 38;
/// Where a place of the code ([`Stub::code`], [`Stub::single`], [`Stub::stop`]) is entered with registers that say that a call
/// was interrupted there: behind its first instruction, which is as long as `syscall`.
pub const INTERRUPTED: u64 = 2;

core::arch::global_asm!(
    ".pushsection .rodata.migrate_stub, \"a\", @progbits",
    ".globl migrate_stub_start",
    ".globl migrate_stub_called",
    ".globl migrate_stub_syscall",
    ".globl migrate_stub_single",
    ".globl migrate_stub_stopping",
    ".globl migrate_stub_stop",
    ".globl migrate_stub_end",
    "migrate_stub_start:",
    "   jmp 1f",
    "   mov r14d, 1",
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
    "migrate_stub_called:",
    "   mov [rbx + 56], rax",
    "   add rbx, 64",
    "   dec r12",
    "   bt ebp, 6",
    "   jnc 1b",
    "   cmp rax, -4096",
    "   jbe 1b",
    "9: test r13, r13",
    "   jnz migrate_stub_stopping",
    "   int3",
    "migrate_stub_syscall:",
    "   syscall",
    "   int3",
    // One call, its number in rbx, its result in r15, and the end of a batch with a lifeline: this part is also used by itself.
    "migrate_stub_single:",
    "   jmp 2f",
    "   mov r14d, 1",
    "2: mov rax, rbx",
    "   syscall",
    "   mov r15, rax",
    "migrate_stub_stopping:",
    // A signal that the thread itself blocks must not be left waiting, if our tracer died before it could set our mask.
    "   cmp qword ptr [r13 + {own_blocks}], 0",
    "   je 2f",
    "   lea rsi, [r13 + {work_mask}]",
    "   mov edi, 2",
    "   xor edx, edx",
    "   mov r10d, 8",
    "   mov eax, 14",
    "   syscall",
    "2: mov eax, 39",
    "   syscall",
    "   mov edi, eax",
    "   mov eax, 186",
    "   syscall",
    "   mov esi, eax",
    "   mov edx, [r13 + {signal}]",
    "   mov eax, 234",
    "   syscall",
    "migrate_stub_stop:",
    "   jmp 3f",
    "   mov r14d, 1",
    // From here on only if the tracer has died. Signals that wait and have handlers end an interrupted call.
    "3: test r14, r14",
    "   jnz 8f",
    "   mov rbx, [r13 + {interrupted}]",
    "   test rbx, rbx",
    "   jz 8f",
    "   lea rdi, [r13 + {pending}]",
    "   mov esi, 8",
    "   mov eax, 127",
    "   syscall",
    "   test rax, rax",
    "   jnz 6f",
    "   mov r12, [r13 + {mask}]",
    "   not r12",
    "   and r12, [r13 + {pending}]",
    "4: bsf rbp, r12",
    "   jz 8f",
    "   btr r12, rbp",
    "   lea edi, [rbp + 1]",
    "   xor esi, esi",
    "   lea rdx, [r13 + {action}]",
    "   mov r10d, 8",
    "   mov eax, 13",
    "   syscall",
    "   test rax, rax",
    "   jnz 4b",
    "   cmp qword ptr [r13 + {action}], 1",
    "   jbe 4b",
    // The first one decides: with SA_RESTART it lets some calls begin again.
    "   cmp rbx, 1",
    "   je 7f",
    "   test dword ptr [r13 + {action} + 8], 0x10000000",
    "   jnz 8f",
    "   jmp 7f",
    // The lifeline cannot be written to. A ppoll(2) of nothing, for no time, with the thread's own mask, is ended by a handler.
    "6: cmp rbx, 1",
    "   jne 8f",
    "   xor edi, edi",
    "   xor esi, esi",
    "   lea rdx, [r13 + {pending}]",
    "   lea r10, [r13 + {mask}]",
    "   mov r8d, 8",
    "   mov eax, 271",
    "   syscall",
    "   cmp rax, -4",
    "   jne 8f",
    "7: mov r14d, 1",
    // The stack is the thread's own, so handlers that this lets run find everything they need.
    "8: lea rsi, [r13 + {mask}]",
    "   mov edi, 2",
    "   xor edx, edx",
    "   mov r10d, 8",
    "   mov eax, 14",
    "   syscall",
    // As `struct user_regs_struct` lies; nothing but `iretq` puts the last five back at once.
    "   mov rsp, r13",
    "   test r14, r14",
    "   jz 9f",
    "   add rsp, {ended}",
    "9: pop r15",
    "   pop r14",
    "   pop r13",
    "   pop r12",
    "   pop rbp",
    "   pop rbx",
    "   pop r11",
    "   pop r10",
    "   pop r9",
    "   pop r8",
    "   pop rax",
    "   pop rcx",
    "   pop rdx",
    "   pop rsi",
    "   pop rdi",
    "   lea rsp, [rsp + 8]",
    "   iretq",
    "migrate_stub_end:",
    ".popsection",
    own_blocks = const offset_of!(Lifeline, own_blocks),
    work_mask = const offset_of!(Lifeline, work_mask),
    signal = const offset_of!(Lifeline, signal),
    interrupted = const offset_of!(Lifeline, interrupted),
    pending = const offset_of!(Lifeline, pending),
    mask = const offset_of!(Lifeline, mask),
    action = const offset_of!(Lifeline, action),
    ended = const offset_of!(Lifeline, ended),
);

const _: () = assert!(
    offset_of!(Lifeline, regs) == 0 && offset_of!(UserRegs, rdi) == 14 * 8 && offset_of!(UserRegs, rip) == 16 * 8
);

unsafe extern "C" {
    static migrate_stub_start: u8;
    static migrate_stub_called: u8;
    static migrate_stub_syscall: u8;
    static migrate_stub_single: u8;
    static migrate_stub_stopping: u8;
    static migrate_stub_stop: u8;
    static migrate_stub_end: u8;
}

/// The stub's bytes and the places in it that matter, as offsets.
#[derive(Debug, Clone, Copy)]
pub struct Stub {
    /// The code.
    pub code: &'static [u8],
    /// Behind the system call of a row, whose address is in `rbx`.
    pub called: u64,
    /// A lone `syscall; int3`.
    pub syscall: u64,
    /// A lone `syscall` of the number in `rbx` that ends as a batch with a lifeline does, its result in `r15`. From here to the end the code stands by
    /// itself.
    pub single: u64,
    /// The beginning of the end of a batch with a lifeline.
    pub stopping: u64,
    /// Where such a batch is when its tracer is told of its end.
    pub stop: u64,
}

/// The stub as it is copied into a target.
pub fn stub() -> Stub {
    // SAFETY: the symbols are defined above in one section, in this order, and never change; the bytes between the first and
    // the last are initialised read-only data of this program.
    unsafe {
        let start = &raw const migrate_stub_start;
        let offset = |symbol: *const u8| symbol.offset_from(start) as u64;
        let len = offset(&raw const migrate_stub_end) as usize;
        Stub {
            code: std::slice::from_raw_parts(start, len),
            called: offset(&raw const migrate_stub_called),
            syscall: offset(&raw const migrate_stub_syscall),
            single: offset(&raw const migrate_stub_single),
            stopping: offset(&raw const migrate_stub_stopping),
            stop: offset(&raw const migrate_stub_stop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_begin_with_a_jump_as_long_as_a_system_call() {
        const JUMP: u8 = 0xeb;
        const SET_R14: [u8; 6] = [0x41, 0xbe, 1, 0, 0, 0];
        let stub = stub();
        for place in [0, stub.single, stub.stop] {
            let at = &stub.code[place as usize..];
            assert_eq!(at[0], JUMP);
            assert!(at[INTERRUPTED as usize..].starts_with(&SET_R14), "{place}");
        }
    }
}
