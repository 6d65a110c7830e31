//! Interrupted system calls: what the kernel leaves in `rax`, and what a program must not see of it (kernel.md 1).

use super::UserRegs;
use crate::sys::socket::{SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW};

/// `-ERESTARTSYS`.
pub const ERESTARTSYS: i64 = -512;
/// `-ERESTARTNOINTR`.
pub const ERESTARTNOINTR: i64 = -513;
/// `-ERESTARTNOHAND`.
pub const ERESTARTNOHAND: i64 = -514;
/// `-ERESTART_RESTARTBLOCK`.
pub const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -4;

const EPOLL_PWAIT2: i64 = 441;
const IO_PGETEVENTS: i64 = 333;

/// Calls that return `EINTR` to the program merely because it was stopped (signal(7), "Interruption of system calls ...
/// by stop signals"): some always, those of sockets where a time-out is set, the last three where the kernel cannot write
/// the rest of the time-out back because it is in read-only memory.
const LEAKS_EINTR: [i64; 24] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    EPOLL_PWAIT2,
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
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendfile,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_select,
];

/// Calls that begin anew with their whole time-out where the kernel itself restarts them.
const BEGINS_ANEW: [(i64, i64); 2] = [(libc::SYS_recvmmsg, ERESTARTSYS), (IO_PGETEVENTS, ERESTARTNOHAND)];

/// Registers as they are saved: a call that would report `EINTR` only because of our stop is left to the kernel as one
/// that is made again, unless a handler of the program runs first: then the program sees `EINTR`, as it should. Tells
/// whether the call will begin anew, so that what is left of its time-out has to be put into its arguments.
pub fn hide_stop(regs: &mut UserRegs) -> bool {
    let (call, ret) = (regs.orig_rax as i64, regs.rax as i64);
    if call < 0 || regs.is_32bit() {
        return false;
    }
    if ret == EINTR && LEAKS_EINTR.contains(&call) {
        regs.rax = ERESTARTNOHAND as u64;
        return true;
    }
    BEGINS_ANEW.contains(&(call, ret))
}

/// What a handler that runs before the program goes on does to its interrupted call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// Nothing: there is none, or it is made again in any case, or the kernel sees to it.
    Nothing = 0,
    /// It returns `EINTR`.
    Any = 1,
    /// It returns `EINTR` unless the handler has `SA_RESTART`.
    WithoutRestart = 2,
}

/// The registers that the kernel lets a thread go on with that was stopped with these and has no signal to take: those of a
/// finished call as they are, others about to make the call again (arch_do_signal_or_restart(), arch/x86/kernel/signal.c).
#[derive(Debug)]
pub struct GoesOn {
    /// Registers; no call is interrupted any more.
    pub regs: UserRegs,
    /// The same if a handler has run that ends the call.
    pub ended: UserRegs,
    /// Which handler does.
    pub ended_by: EndedBy,
}

/// See [`GoesOn`].
pub fn goes_on(saved: &UserRegs) -> GoesOn {
    let mut regs = UserRegs { orig_rax: u64::MAX, ..*saved };
    let ended = UserRegs { rax: EINTR as u64, ..regs };
    let Some(call) = saved.interrupted_call() else { return GoesOn { regs, ended, ended_by: EndedBy::Nothing } };
    // Of the kernel's own restart code the 32-bit number is 0.
    let restart = if saved.is_32bit() { 0 } else { libc::SYS_restart_syscall as u64 };
    let (again, ended_by) = match saved.rax as i64 {
        ERESTARTSYS => (call, EndedBy::WithoutRestart),
        ERESTARTNOHAND => (call, EndedBy::Any),
        ERESTARTNOINTR => (call, EndedBy::Nothing),
        // The return from a handler has the kernel forget what it would go on with: EINTR comes from there.
        ERESTART_RESTARTBLOCK => (restart, EndedBy::Nothing),
        _ => return GoesOn { regs, ended, ended_by: EndedBy::Nothing },
    };
    make_again(&mut regs, again);
    GoesOn { regs, ended, ended_by }
}

/// Where a call that begins anew has its relative time-out.
#[derive(Debug, PartialEq, Eq)]
pub enum Place<'r> {
    /// In this register, milliseconds (an `int`; negative: none).
    Milliseconds(&'r mut u64),
    /// In a `struct timespec`, where this register points to.
    Timespec(&'r mut u64),
    /// In a `struct timeval`, where this register points to.
    Timeval(&'r mut u64),
    /// In a `struct timespec` at this address, which the call itself changes.
    Own(u64),
}

/// Where the interrupted call has its time-out, if it can have one. Null pointers are none.
pub fn place(regs: &mut UserRegs) -> Option<Place<'_>> {
    let place = match regs.orig_rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => return Some(Place::Milliseconds(&mut regs.r10)),
        EPOLL_PWAIT2 | libc::SYS_semtimedop => Place::Timespec(&mut regs.r10),
        libc::SYS_rt_sigtimedwait | libc::SYS_ppoll => Place::Timespec(&mut regs.rdx),
        libc::SYS_io_getevents | IO_PGETEVENTS | libc::SYS_pselect6 => Place::Timespec(&mut regs.r8),
        libc::SYS_select => Place::Timeval(&mut regs.r8),
        libc::SYS_recvmmsg => Place::Own(regs.r8),
        _ => return None,
    };
    match &place {
        Place::Timespec(pointer) | Place::Timeval(pointer) if **pointer == 0 => None,
        Place::Own(0) => None,
        _ => Some(place),
    }
}

/// The descriptor that the interrupted call is about, and the option in which it would have its time-out if that is one of
/// a socket.
pub fn socket_option(regs: &UserRegs) -> Option<(u32, i32)> {
    let option = match regs.orig_rax as i64 {
        libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_read
        | libc::SYS_readv => SO_RCVTIMEO_NEW,
        libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg
        | libc::SYS_connect
        | libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_sendfile => SO_SNDTIMEO_NEW,
        _ => return None,
    };
    Some((regs.rdi as u32, option))
}

/// An address for 16 bytes of ours on the stack of a thread in a system call: below what belongs to the function that made
/// it (the red zone of the calling convention), where a signal handler's frame would go.
pub fn below_stack(regs: &UserRegs) -> u64 {
    const RED_ZONE: u64 = 128;
    regs.rsp.wrapping_sub(RED_ZONE + 16) & !7
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

/// Does it matter for how long a wait in this call has lasted? Not where it can have no end of its own; only that is told
/// from the arguments alone, so calls on descriptors, which may be sockets with a time-out, count.
pub fn may_have_relative_end(call: u64, args: &[u64; 6]) -> bool {
    const FUTEX_WAITS: [u64; 3] = [0, 9, 11];
    const FUTEX_OPERATION: u64 = 0x7f;
    let for_ever = |milliseconds: u64| (milliseconds as i32) < 0;
    match call as i64 {
        libc::SYS_pause | libc::SYS_rt_sigsuspend | libc::SYS_wait4 | libc::SYS_waitid => false,
        libc::SYS_futex if FUTEX_WAITS.contains(&(args[1] & FUTEX_OPERATION)) => args[3] != 0,
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => !for_ever(args[3]),
        EPOLL_PWAIT2 => args[3] != 0,
        libc::SYS_rt_sigtimedwait | libc::SYS_ppoll => args[2] != 0,
        libc::SYS_select | libc::SYS_pselect6 => args[4] != 0,
        _ => true,
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

/// The same, by the kernel function that the thread sleeps in (`/proc/TID/wchan`), where the code does not show it. The
/// arguments are still in the registers.
pub fn call_in_function(function: &[u8], regs: &UserRegs) -> Option<u32> {
    // Clocks are small numbers, pointers are not.
    let is_clock = regs.rdi < 4096;
    // Taken up again, a wait has `_restart` in the name of its function.
    let begins = |names: &[&str]| names.iter().any(|name| function.starts_with(name.as_bytes()));
    let call = match () {
        () if begins(&["hrtimer_nanosleep", "do_nanosleep"]) && is_clock => libc::SYS_clock_nanosleep,
        () if begins(&["hrtimer_nanosleep", "do_nanosleep"]) => libc::SYS_nanosleep,
        () if begins(&["futex_"]) => libc::SYS_futex,
        // Of the calls that wait there only poll(2) leaves a restart block.
        () if begins(&["poll_schedule_timeout", "do_poll", "do_sys_poll", "do_restart_poll"]) => libc::SYS_poll,
        () => return None,
    };
    Some(call as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn interrupted(call: i64, ret: i64) -> UserRegs {
        UserRegs { orig_rax: call as u64, rax: ret as u64, cs: 0x33, ..UserRegs::new_zeroed() }
    }

    #[test]
    fn only_calls_that_a_stop_ends_are_made_again() {
        let mut regs = interrupted(libc::SYS_epoll_wait, EINTR);
        assert!(hide_stop(&mut regs));
        assert_eq!((regs.rax as i64, regs.orig_rax as i64), (ERESTARTNOHAND, libc::SYS_epoll_wait));
        assert!(!hide_stop(&mut interrupted(libc::SYS_epoll_wait, 1)));
        assert!(!hide_stop(&mut interrupted(libc::SYS_close, EINTR)));
        assert!(!hide_stop(&mut interrupted(-1, EINTR)), "user code that has -4 in this register");
        assert!(hide_stop(&mut interrupted(libc::SYS_recvmmsg, ERESTARTSYS)));
        assert!(!hide_stop(&mut interrupted(libc::SYS_recvfrom, ERESTARTSYS)), "no time-out");
    }

    #[test]
    fn a_call_is_made_again_as_the_kernel_does_it() {
        let goes_on = |call, ret| goes_on(&UserRegs { rip: 0x1002, ..interrupted(call, ret) });
        let GoesOn { regs, ended, ended_by } = goes_on(libc::SYS_pause, ERESTARTNOHAND);
        assert_eq!((ended.rip, ended.rax as i64), (0x1002, EINTR));
        assert_eq!((regs.rip, regs.rax, ended_by), (0x1000, libc::SYS_pause as u64, EndedBy::Any));
        assert_eq!(regs.orig_rax, u64::MAX);
        assert_eq!(goes_on(libc::SYS_read, ERESTARTSYS).ended_by, EndedBy::WithoutRestart);
        let regs = goes_on(libc::SYS_nanosleep, ERESTART_RESTARTBLOCK).regs;
        assert_eq!((regs.rip, regs.rax), (0x1000, libc::SYS_restart_syscall as u64));
        let done = goes_on(libc::SYS_read, 7).regs;
        assert_eq!((done.rip, done.rax), (0x1002, 7));
        let user = goes_on(-1, ERESTARTSYS).regs;
        assert_eq!((user.rip, user.rax as i64), (0x1002, ERESTARTSYS), "no call");
    }

    #[test]
    fn no_time_out_is_no_place() {
        let mut regs = interrupted(libc::SYS_rt_sigtimedwait, EINTR);
        assert_eq!(place(&mut regs), None);
        regs.rdx = 0x1000;
        assert_eq!(place(&mut regs), Some(Place::Timespec(&mut 0x1000)));
    }

    #[test]
    fn waits_without_a_time_out_need_no_clock() {
        let may = |call: i64, args: [u64; 6]| may_have_relative_end(call as u64, &args);
        assert!(!may(libc::SYS_pause, [0; 6]));
        assert!(!may(libc::SYS_futex, [0x1000, 0x189, 2, 0, 0, u64::MAX]), "FUTEX_WAIT_BITSET");
        assert!(may(libc::SYS_futex, [0x1000, 0x189, 2, 0x2000, 0, 0]), "with a time-out");
        assert!(may(libc::SYS_futex, [0x1000, 1, 2, 0, 0, 0]), "FUTEX_WAKE is no wait");
        assert!(!may(libc::SYS_epoll_wait, [3, 0x1000, 8, u64::from(u32::MAX), 0, 0]), "an int of -1");
        assert!(may(libc::SYS_epoll_wait, [3, 0x1000, 8, 100, 0, 0]));
        assert!(may(libc::SYS_poll, [0x1000, 1, u64::from(u32::MAX), 0, 0, 0]), "leaves a restart block all the same");
        assert!(may(libc::SYS_restart_syscall, [0; 6]) && may(libc::SYS_read, [0; 6]));
    }

    #[test]
    fn a_sleep_is_told_by_its_function() {
        let mut regs = interrupted(libc::SYS_restart_syscall, ERESTART_RESTARTBLOCK);
        assert_eq!(call_in_function(b"hrtimer_nanosleep", &regs), Some(libc::SYS_clock_nanosleep as u32));
        regs.rdi = 0x7fff_0000_0000;
        assert_eq!(call_in_function(b"hrtimer_nanosleep_restar", &regs), Some(libc::SYS_nanosleep as u32));
        assert_eq!(call_in_function(b"futex_do_wait", &regs), Some(libc::SYS_futex as u32));
        assert_eq!(call_in_function(b"poll_schedule_timeout.constprop.0", &regs), Some(libc::SYS_poll as u32));
        assert_eq!(call_in_function(b"pipe_read", &regs), None);
    }
}
