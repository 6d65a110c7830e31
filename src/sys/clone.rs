//! clone3(2) without exec: how skeletons begin.

use super::abi::CloneArgs;
use super::{Result, check};
use crate::image::Pid;

/// Makes a child that does nothing but wait (`pause`) for its tracer. `set_tid` holds its ids, innermost PID namespace
/// first (needs CAP_CHECKPOINT_RESTORE; Linux 5.5). `EEXIST`: the id is in use.
///
/// The child allocates nothing, takes no lock and never returns, so it may be made while other threads run.
pub fn paused_child(flags: u64, exit_signal: i32, set_tid: &[i32], cgroup: Option<i32>) -> Result<Pid> {
    make(flags, exit_signal, set_tid, cgroup, || {
        loop {
            // SAFETY: pause(2) has no arguments and touches no memory.
            unsafe { libc::syscall(libc::SYS_pause) };
        }
    })
}

/// Makes process 1 of a new PID namespace (`flags` has `CLONE_NEWPID`): it reaps whatever ends there and exits as `root`
/// did, a process id in the new namespace, once that one has ended.
pub fn reaper(flags: u64, root: i32, cgroup: Option<i32>) -> Result<Pid> {
    make(flags, libc::SIGCHLD, &[], cgroup, || {
        loop {
            let mut status = 0i32;
            // SAFETY: `status` lives on this copy of the stack.
            let ended = unsafe { libc::syscall(libc::SYS_wait4, -1, &raw mut status, libc::__WALL, 0) };
            if ended == i64::from(root) && !libc::WIFSTOPPED(status) {
                let code =
                    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
                // SAFETY: ends this process; no memory is involved.
                unsafe { libc::syscall(libc::SYS_exit_group, code) };
            }
            if ended < 0 {
                // Before the tree is there, and while it is being made: no child yet. 10 ms.
                let wait = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                // SAFETY: `wait` is a valid timespec; no remainder is asked for.
                unsafe { libc::syscall(libc::SYS_nanosleep, &raw const wait, 0) };
            }
        }
    })
}

fn make(flags: u64, exit_signal: i32, set_tid: &[i32], cgroup: Option<i32>, child: impl Fn() -> ()) -> Result<Pid> {
    let args = CloneArgs {
        flags: flags | if cgroup.is_some() { 0x2_0000_0000 } else { 0 },
        exit_signal: exit_signal as u64,
        set_tid: if set_tid.is_empty() { 0 } else { set_tid.as_ptr() as u64 },
        set_tid_size: set_tid.len() as u64,
        cgroup: cgroup.unwrap_or(0) as u64,
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM, so the child has its own copy of everything; it runs only `child`, an endless loop of system
    // calls that allocates nothing and takes no lock.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if ret == 0 {
        loop {
            child();
        }
    }
    check(ret).map(|pid| Pid(pid as i32))
}
