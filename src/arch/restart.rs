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
/// `deliverable`: a signal is pending that is not blocked, so the program sees `EINTR` rightly.
pub fn hide_stop(regs: &mut UserRegs, deliverable: bool) {
    let call = regs.orig_rax as i64;
    if deliverable || regs.rax as i64 != EINTR || call < 0 || !LEAKS_EINTR.contains(&call) || regs.is_32bit() {
        return;
    }
    regs.rax = regs.orig_rax;
    regs.rip -= 2;
    regs.orig_rax = u64::MAX;
}
