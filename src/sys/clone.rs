//! clone3(2) without exec: how skeletons begin.

use super::abi::CloneArgs;
use super::{Result, check};
use crate::image::Pid;

/// Makes a child that does nothing but wait (`pause`) for its tracer. `set_tid` holds its ids, innermost PID namespace
/// first (needs CAP_CHECKPOINT_RESTORE; Linux 5.5). `EEXIST`: the id is in use.
///
/// The child allocates nothing, takes no lock and never returns, so it may be made while other threads run.
pub fn paused_child(flags: u64, exit_signal: i32, set_tid: &[i32], cgroup: Option<i32>) -> Result<Pid> {
    let args = CloneArgs {
        flags: flags | if cgroup.is_some() { 0x2_0000_0000 } else { 0 },
        exit_signal: exit_signal as u64,
        set_tid: if set_tid.is_empty() { 0 } else { set_tid.as_ptr() as u64 },
        set_tid_size: set_tid.len() as u64,
        cgroup: cgroup.unwrap_or(0) as u64,
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM, so the child has its own copy of everything; it runs only the loop below.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if ret == 0 {
        loop {
            // SAFETY: pause(2) has no arguments and touches no memory.
            unsafe { libc::syscall(libc::SYS_pause) };
        }
    }
    check(ret).map(|pid| Pid(pid as i32))
}
