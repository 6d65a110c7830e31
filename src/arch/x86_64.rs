//! x86-64: how a system call is made to happen in a stopped task.

pub use crate::sys::abi::UserRegs;
use crate::sys::stub::INTERRUPTED;

/// First address above user space (47 bits).
pub const USER_END: u64 = 0x7fff_ffff_f000;

impl UserRegs {
    /// These registers, but about to execute the `syscall` instruction at `ip`.
    pub fn calling(&self, ip: u64, call: u64, args: &[u64; 6]) -> Self {
        Self {
            rip: ip,
            rax: call,
            // Anything else would make the kernel restart the interrupted call on top of ours.
            orig_rax: u64::MAX,
            rdi: args[0],
            rsi: args[1],
            rdx: args[2],
            r10: args[3],
            r8: args[4],
            r9: args[5],
            cs: 0x33,
            ss: 0x2b,
            // No single-stepping, no direction flag.
            eflags: self.eflags & !0x500,
            ..*self
        }
    }

    /// These registers, but about to make one call by the stub's part for that ([`crate::sys::stub::Stub::single`]) at `code`.
    pub fn running_single(&self, code: u64, call: u64, args: &[u64; 6], lifeline: u64) -> Self {
        Self { rbx: call, r13: lifeline, r14: 0, ..self.calling(code, u64::MAX, args) }
    }

    /// These registers, but about to run the batch stub at `code` over `rows` rows at `table`. `lifeline` is the address of a
    /// [`crate::sys::abi::Lifeline`], or 0.
    pub fn running_batch(&self, code: u64, table: u64, rows: u64, lifeline: u64) -> Self {
        Self {
            rip: code,
            orig_rax: u64::MAX,
            rbx: table,
            r12: rows,
            r13: lifeline,
            r14: 0,
            r15: table,
            cs: 0x33,
            ss: 0x2b,
            eflags: self.eflags & !0x500,
            ..*self
        }
    }

    /// These registers at `place`, but so that the kernel sees a call that was interrupted: where `saved` was stopped in one that a
    /// handler could end.
    pub fn interrupted_at(&self, place: u64, saved: &Self) -> Self {
        match super::restart::goes_on(saved).ended_by {
            super::restart::EndedBy::Nothing => Self { rip: place, ..*self },
            _ => Self { rip: place + INTERRUPTED, rax: saved.rax, orig_rax: saved.orig_rax, ..*self },
        }
    }

    /// The task runs 32-bit code.
    pub fn is_32bit(&self) -> bool {
        self.cs == 0x23
    }

    /// In the middle of a system call that the kernel will restart or fail when the task goes on.
    pub fn interrupted_call(&self) -> Option<u64> {
        ((self.orig_rax as i64) >= 0).then_some(self.orig_rax)
    }
}

/// Stack pointer and base of the thread area (`fs`), of registers as the kernel gives them; 0 for one that is not there.
pub fn stack_and_thread_area(general: &[u64]) -> (u64, u64) {
    let word = |offset: usize| general.get(offset / size_of::<u64>()).copied().unwrap_or(0);
    (word(std::mem::offset_of!(UserRegs, rsp)), word(std::mem::offset_of!(UserRegs, fs_base)))
}

/// The rights of a thread to protection keys, out of its XSAVE area (standard format); `None` on a processor without.
pub fn pkru(xstate: &[u8]) -> Option<u32> {
    const PKRU: u32 = 9;
    const HEADER: usize = 512;
    if xfeatures() & 1 << PKRU == 0 {
        return None;
    }
    let in_use = u64::from_ne_bytes(*xstate.get(HEADER..)?.first_chunk()?);
    if in_use & 1 << PKRU == 0 {
        // The initial state: everything is allowed.
        return Some(0);
    }
    let offset = std::arch::x86_64::__cpuid_count(0xd, PKRU).ebx as usize;
    Some(u32::from_ne_bytes(*xstate.get(offset..)?.first_chunk()?))
}

/// Components of the extended state that this kernel has enabled (XCR0 as CPUID leaf 0xD shows it), a bit mask.
pub fn xfeatures() -> u64 {
    let leaf = std::arch::x86_64::__cpuid_count(0xd, 0);
    u64::from(leaf.edx) << 32 | u64::from(leaf.eax)
}
