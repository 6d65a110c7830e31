//! ptrace(2), the `PTRACE_SEIZE` half of it (Linux 3.4).

use super::abi::{RseqConfiguration, UserRegs};
use super::{Result, check};
use crate::image::Pid;
use zerocopy::{FromZeros, IntoBytes};

/// Options for [`seize`].
pub mod options {
    /// Mark system call stops by bit 7 of the signal.
    pub const TRACE_SYSGOOD: u64 = 1;
    /// Attach to forked children.
    pub const TRACE_FORK: u64 = 2;
    /// Attach to vforked children.
    pub const TRACE_VFORK: u64 = 4;
    /// Attach to cloned children.
    pub const TRACE_CLONE: u64 = 8;
    /// Report execve.
    pub const TRACE_EXEC: u64 = 16;
    /// The tracee dies with its tracer.
    pub const EXIT_KILL: u64 = 1 << 20;
    /// Filters of the tracee do not apply while it is traced (needs CAP_SYS_ADMIN and a tracer without filters).
    pub const SUSPEND_SECCOMP: u64 = 1 << 21;
}

/// `PTRACE_EVENT_EXEC`: an execve(2) is about to return.
pub const EVENT_EXEC: i32 = 4;

/// `NT_X86_XSTATE`.
pub const NT_X86_XSTATE: i32 = 0x202;
const GETREGS: u32 = 12;
const SETREGS: u32 = 13;
const GETREGSET: u32 = 0x4204;
const SETREGSET: u32 = 0x4205;
const SEIZE: u32 = 0x4206;
const INTERRUPT: u32 = 0x4207;
const PEEKSIGINFO: u32 = 0x4209;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;
const SECCOMP_GET_FILTER: u32 = 0x420c;
const SECCOMP_GET_METADATA: u32 = 0x420d;
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const SETOPTIONS: u32 = 0x4200;
const GETEVENTMSG: u32 = 0x4201;
const GETSIGINFO: u32 = 0x4202;
const CONT: u32 = 7;
const DETACH: u32 = 17;
const SYSCALL: u32 = 24;

/// Calls ptrace with integer arguments.
///
/// # Safety
/// `data` must be what the request wants there: an integer, or the address of memory it may read or write.
unsafe fn request(request: u32, pid: Pid, addr: u64, data: u64) -> Result<i64> {
    // SAFETY: the caller vouches for `data`; the other arguments are plain integers.
    check(unsafe { libc::syscall(libc::SYS_ptrace, request as u64, pid.0 as i64, addr, data) })
}

macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $request:expr) => {
        $(#[$doc])*
        pub fn $name(pid: Pid, data: u64) -> Result<()> {
            // SAFETY: these requests take an integer (a signal, or options) as data.
            unsafe { request($request, pid, 0, data) }.map(drop)
        }
    };
}

plain!(
    /// `PTRACE_SEIZE`: attaches without stopping; data = [`options`].
    seize,
    SEIZE
);
plain!(
    /// `PTRACE_SETOPTIONS`.
    set_options,
    SETOPTIONS
);
plain!(
    /// `PTRACE_INTERRUPT`: data = 0.
    interrupt,
    INTERRUPT
);
plain!(
    /// `PTRACE_CONT`: data = signal to deliver, 0 = none.
    cont,
    CONT
);
plain!(
    /// `PTRACE_SYSCALL`: runs to the next entry or exit of a system call.
    syscall,
    SYSCALL
);
plain!(
    /// `PTRACE_DETACH`: data = signal to deliver, 0 = none.
    detach,
    DETACH
);

/// `PTRACE_GETREGS`: general registers, the 64-bit view also of a 32-bit task.
pub fn get_regs(pid: Pid) -> Result<UserRegs> {
    let mut regs = UserRegs::new_zeroed();
    // SAFETY: GETREGS writes one user_regs_struct, which UserRegs mirrors, to `data`.
    unsafe { request(GETREGS, pid, 0, &raw mut regs as u64) }?;
    Ok(regs)
}

/// `PTRACE_SETREGS`.
pub fn set_regs(pid: Pid, regs: &UserRegs) -> Result<()> {
    // SAFETY: SETREGS reads one user_regs_struct from `data`.
    unsafe { request(SETREGS, pid, 0, &raw const *regs as u64) }.map(drop)
}

/// `PTRACE_GETREGSET` into `buf`; the number of bytes the kernel wrote.
pub fn get_regset(pid: Pid, set: i32, buf: &mut [u8]) -> Result<usize> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `iov` describes `buf`, which outlives the call.
    unsafe { request(GETREGSET, pid, set as u64, &raw mut iov as u64) }?;
    Ok(iov.iov_len)
}

/// `PTRACE_SETREGSET`.
pub fn set_regset(pid: Pid, set: i32, buf: &[u8]) -> Result<()> {
    let mut iov = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    // SAFETY: `iov` describes `buf`; the kernel only reads it.
    unsafe { request(SETREGSET, pid, set as u64, &raw mut iov as u64) }.map(drop)
}

/// `PTRACE_GETSIGMASK` (Linux 3.11).
pub fn get_sigmask(pid: Pid) -> Result<u64> {
    let mut mask = 0u64;
    // SAFETY: writes `addr` = 8 bytes to `data`.
    unsafe { request(GETSIGMASK, pid, 8, &raw mut mask as u64) }?;
    Ok(mask)
}

/// `PTRACE_SETSIGMASK`.
pub fn set_sigmask(pid: Pid, mask: u64) -> Result<()> {
    // SAFETY: reads `addr` = 8 bytes from `data`.
    unsafe { request(SETSIGMASK, pid, 8, &raw const mask as u64) }.map(drop)
}

/// `PTRACE_GETSIGINFO`: the 128 bytes of the signal that stopped the task.
pub fn get_siginfo(pid: Pid) -> Result<[u8; 128]> {
    let mut info = [0u8; 128];
    // SAFETY: writes one siginfo_t (128 bytes) to `data`.
    unsafe { request(GETSIGINFO, pid, 0, info.as_mut_ptr() as u64) }?;
    Ok(info)
}

/// `PTRACE_GETEVENTMSG`.
pub fn get_event_message(pid: Pid) -> Result<u64> {
    let mut message = 0u64;
    // SAFETY: writes one unsigned long to `data`.
    unsafe { request(GETEVENTMSG, pid, 0, &raw mut message as u64) }?;
    Ok(message)
}

/// `PTRACE_PEEKSIGINFO` (Linux 3.10): up to `max` pending signals from position `offset` of the shared or the thread's queue.
pub fn peek_siginfo(pid: Pid, shared: bool, offset: u64, max: usize) -> Result<Vec<[u8; 128]>> {
    #[repr(C)]
    struct Args {
        offset: u64,
        flags: u32,
        count: i32,
    }
    let mut infos = vec![[0u8; 128]; max];
    let args = Args { offset, flags: u32::from(shared), count: max as i32 };
    // SAFETY: `addr` points to the arguments, `data` to room for `count` siginfo_t.
    let n = unsafe { request(PEEKSIGINFO, pid, &raw const args as u64, infos.as_mut_ptr() as u64) }?;
    infos.truncate(n as usize);
    Ok(infos)
}

/// `PTRACE_GET_RSEQ_CONFIGURATION` (Linux 5.13).
pub fn rseq_configuration(pid: Pid) -> Result<RseqConfiguration> {
    let mut config = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>() as u64;
    // SAFETY: writes at most `addr` bytes to `data`.
    unsafe { request(GET_RSEQ_CONFIGURATION, pid, size, &raw mut config as u64) }?;
    Ok(config)
}

/// `PTRACE_SECCOMP_GET_FILTER` (Linux 4.4): filter `index`, 0 = the one installed first; `ENOENT` past the end.
pub fn seccomp_filter(pid: Pid, index: u64) -> Result<Vec<u64>> {
    // SAFETY: a null address asks for the number of instructions only.
    let n = unsafe { request(SECCOMP_GET_FILTER, pid, index, 0) }?;
    let mut program = vec![0u64; n as usize];
    // SAFETY: `data` has room for the `n` instructions of 8 bytes that the filter has.
    unsafe { request(SECCOMP_GET_FILTER, pid, index, program.as_mut_ptr() as u64) }?;
    Ok(program)
}

/// `PTRACE_SECCOMP_GET_METADATA` (Linux 4.16): `SECCOMP_FILTER_FLAG_*` of filter `index`.
pub fn seccomp_filter_flags(pid: Pid, index: u64) -> Result<u64> {
    let mut metadata = [index, 0u64];
    // SAFETY: reads the offset from and writes the flags to `data`, 16 bytes.
    unsafe { request(SECCOMP_GET_METADATA, pid, 16, metadata.as_mut_bytes().as_mut_ptr() as u64) }?;
    Ok(metadata[1])
}
