//! Interrupted system calls: what the kernel leaves in `rax`, and what a program must not see of it (kernel.md 1).

use super::UserRegs;

/// `-ERESTARTSYS`.
pub const ERESTARTSYS: i64 = -512;
/// `-ERESTARTNOINTR`.
pub const ERESTARTNOINTR: i64 = -513;
/// `-ERESTARTNOHAND`.
pub const ERESTARTNOHAND: i64 = -514;
/// `-ERESTART_RESTARTBLOCK`.
pub const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -4;

/// Calls that return `EINTR` to the program merely because it was stopped (signal(7), "Interruption of system calls ...
/// by stop signals").
const LEAKS_EINTR: [i64; 19] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    441, // epoll_pwait2
    libc::SYS_rt_sigtimedwait,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
    333, // io_pgetevents
    libc::SYS_read,
    libc::SYS_readv,
];

/// Registers as they are saved: a call that would report `EINTR` only because of our stop is made again instead.
/// `deliverable`: a signal is pending that is not blocked, so the program sees `EINTR` rightly. Tells whether it did so.
pub fn hide_stop(regs: &mut UserRegs, deliverable: bool) -> bool {
    let call = regs.orig_rax as i64;
    if deliverable || regs.rax as i64 != EINTR || call < 0 || !LEAKS_EINTR.contains(&call) || regs.is_32bit() {
        return false;
    }
    make_again(regs, regs.orig_rax);
    true
}

/// Has the call be made again from the start.
pub fn make_again(regs: &mut UserRegs, call: u64) {
    regs.rax = call;
    regs.rip -= 2;
    regs.orig_rax = u64::MAX;
}

/// A wait with a time-out in a register, in milliseconds: which register.
pub fn timeout_ms(regs: &mut UserRegs, call: u64) -> Option<&mut u64> {
    match call as i64 {
        libc::SYS_poll => Some(&mut regs.rdx),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Some(&mut regs.r10),
        _ => None,
    }
}

/// A wait with a relative time-out in memory (`struct timespec`): which register points to it.
pub fn timeout_pointer(regs: &mut UserRegs, call: u64) -> Option<&mut u64> {
    const TIMER_ABSTIME: u64 = 1;
    const FUTEX_WAIT: u64 = 0;
    // FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME do not change the operation.
    const FUTEX_OPERATION: u64 = 0x7f;
    match call as i64 {
        libc::SYS_nanosleep => Some(&mut regs.rdi),
        libc::SYS_clock_nanosleep if regs.rsi & TIMER_ABSTIME == 0 => Some(&mut regs.rdx),
        libc::SYS_futex if regs.rsi & FUTEX_OPERATION == FUTEX_WAIT && regs.r10 != 0 => Some(&mut regs.r10),
        _ => None,
    }
}

/// Where the kernel has written what was left of a sleep, if the program asked for it.
pub fn remainder_pointer(regs: &UserRegs, call: u64) -> Option<u64> {
    let pointer = match call as i64 {
        libc::SYS_nanosleep => regs.rsi,
        libc::SYS_clock_nanosleep => regs.r10,
        _ => 0,
    };
    (pointer != 0).then_some(pointer)
}

/// The call that an instruction `mov $N, %eax` right before the `syscall` has made, if there is one: what is left to go by
/// once the kernel has put `restart_syscall` into `orig_rax`. `code` is the 7 bytes before the return address.
pub fn call_in_code(code: &[u8; 7]) -> Option<u32> {
    let [0xb8, a, b, c, d, 0x0f, 0x05] = *code else { return None };
    Some(u32::from_le_bytes([a, b, c, d]))
}
