//! clone3(2): how skeletons begin, which never execute another program, and how small processes of ours do, which do at once.

use super::abi::CloneArgs;
use super::{Result, check};
use crate::image::Pid;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The child becomes one of the caller's parent. It has the exit signal of its maker then; the kernel takes no other.
const SIBLING: u64 = libc::CLONE_PARENT as u64;

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
    make(flags, libc::SIGCHLD, &[], cgroup, || reap(root))
}

/// A [`reaper`] in a session that was begun outside its PID namespace (by a child of ours that has ended): all who inherit
/// it see session 0. With `CLONE_PARENT` both are children of our parent, which reaps the one that has ended.
pub fn reaper_of_outer_session(flags: u64, root: i32, cgroup: Option<i32>) -> Result<Pid> {
    let (told, tells) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let fd = tells.as_raw_fd();
    let leader = make(flags & SIBLING, libc::SIGCHLD, &[], None, || {
        // SAFETY: no arguments.
        unsafe { libc::syscall(libc::SYS_setsid) };
        // The child of its maker's parent, though it is made here.
        let made = make(flags | SIBLING, libc::SIGCHLD, &[], cgroup, || reap(root));
        let answer = made.map_or_else(|errno| -(errno as i32), |pid| pid.0).to_ne_bytes();
        // SAFETY: pointer and length belong together; the descriptor is this process's copy.
        unsafe { libc::syscall(libc::SYS_write, fd, answer.as_ptr(), answer.len()) };
        // SAFETY: ends this process; no memory is involved.
        unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    })?;
    drop(tells);
    let mut answer = [0; 4];
    let read = nix::unistd::read(&told, &mut answer);
    if flags & SIBLING == 0 {
        super::wait::wait(leader)?;
    }
    match (read?, i32::from_ne_bytes(answer)) {
        (4, pid) if pid > 0 => Ok(Pid(pid)),
        (4, errno) => Err(super::Errno::from_raw(-errno)),
        _ => Err(super::Errno::ECHILD),
    }
}

/// Starts a program with these arguments and this environment, in the root directory, with `stdin` as standard input, the others
/// open on nothing, and no signal blocked; born in `cgroup` (a directory of version 2). Returns once it executes, or has ended with
/// code 127 because it cannot.
pub fn program(
    path: &CString,
    arguments: &[CString],
    environment: &[CString],
    stdin: BorrowedFd<'_>,
    cgroup: Option<i32>,
) -> Result<Pid> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    let no_signal = [0u64; 1];
    let stdin = stdin.as_raw_fd();
    make(libc::CLONE_VFORK as u64, libc::SIGCHLD, &[], cgroup, || {
        // SAFETY: paths and arrays are complete strings and end with a null pointer, made before the child was; descriptors are
        // this process's copies. None of these calls allocates or takes a lock.
        unsafe {
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            let placed = null >= 0 && libc::dup2(stdin, 0) == 0 && libc::dup2(null, 1) == 1 && libc::dup2(null, 2) == 2;
            if placed && libc::chdir(c"/".as_ptr()) == 0 {
                libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, no_signal.as_ptr(), 0usize, 8usize);
                libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr());
            }
            libc::syscall(libc::SYS_exit_group, 127);
        }
    })
}

/// What process 1 does for ever.
fn reap(root: i32) {
    let mut status = 0i32;
    // SAFETY: `status` lives on this copy of the stack.
    let ended = unsafe { libc::syscall(libc::SYS_wait4, -1, &raw mut status, libc::__WALL, 0) };
    if ended == i64::from(root) && !libc::WIFSTOPPED(status) {
        let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
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

fn make(flags: u64, exit_signal: i32, set_tid: &[i32], cgroup: Option<i32>, child: impl Fn()) -> Result<Pid> {
    let args = CloneArgs {
        flags: flags | if cgroup.is_some() { 0x2_0000_0000 } else { 0 },
        exit_signal: if flags & SIBLING == 0 { exit_signal as u64 } else { 0 },
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

/// Where a [`placed_child`] goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Placed {
    /// Descriptor of a user namespace to enter.
    pub enter: Option<i32>,
    /// Make a user namespace that belongs to this user.
    pub owner: Option<u32>,
    /// Namespaces to make (`CLONE_NEW*`), which belong to the user namespace the child is in.
    pub make: i32,
}

/// Makes a child that goes to its place and waits there to be killed; returns once it is there.
pub fn placed_child(place: Placed) -> Result<Pid> {
    let (ready, told) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let fd = told.as_raw_fd();
    let child = make(0, libc::SIGCHLD, &[], None, || {
        if let Err(errno) = go(place) {
            // SAFETY: ends this process; no memory is involved.
            unsafe { libc::syscall(libc::SYS_exit_group, errno as i32) };
        }
        // SAFETY: one byte of a static string; the descriptor is this process's copy.
        unsafe { libc::syscall(libc::SYS_write, fd, c"r".as_ptr(), 1) };
        loop {
            // SAFETY: pause(2) has no arguments and touches no memory.
            unsafe { libc::syscall(libc::SYS_pause) };
        }
    })?;
    drop(told);
    let mut byte = [0];
    match nix::unistd::read(&ready, &mut byte) {
        Ok(1) => Ok(child),
        _ => match super::wait::wait(child) {
            Ok(super::wait::Status::Exited(code)) => Err(super::Errno::from_raw(code)),
            _ => Err(super::Errno::ECHILD),
        },
    }
}

/// Makes a child that writes `text` to `file` when the process of `owner` (a pidfd) has ended, and ends then. It is no part of the
/// caller's session or process group, so that a signal to all of that does not meet it, and blocks every other signal. Returns once
/// it watches. `SIGCHLD` does not tell of its end.
pub fn heir(owner: BorrowedFd<'_>, file: BorrowedFd<'_>, text: &'static [u8]) -> Result<Pid> {
    let (ready, told) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (owner, file, tells) = (owner.as_raw_fd(), file.as_raw_fd(), told.as_raw_fd());
    let every_signal = [u64::MAX; 1];
    let child = make(0, 0, &[], None, || {
        // SAFETY: pointers and lengths belong together, and live on this copy of the stack or for ever; descriptors are this
        // process's copies. None of these calls allocates or takes a lock.
        unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, every_signal.as_ptr(), 0usize, 8usize);
            libc::syscall(libc::SYS_setsid);
            libc::syscall(libc::SYS_write, tells, c"r".as_ptr(), 1);
            let mut watched = libc::pollfd { fd: owner, events: libc::POLLIN, revents: 0 };
            while libc::syscall(libc::SYS_poll, &raw mut watched, 1, -1) != 1 {}
            let written = libc::syscall(libc::SYS_write, file, text.as_ptr(), text.len());
            libc::syscall(libc::SYS_exit_group, i32::from(written < 0));
        }
    })?;
    drop(told);
    match nix::unistd::read(&ready, &mut [0]) {
        Ok(1) => Ok(child),
        _ => super::wait::wait(child).and(Err(super::Errno::ECHILD)),
    }
}

/// Has the next process or thread of a PID namespace (`None`: ours) get the id after `last`, if it is free then.
pub fn set_last_pid(pid_ns: Option<BorrowedFd<'_>>, last: i32) -> Result<()> {
    let failed = |e: std::io::Error| super::Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let mut file = std::fs::OpenOptions::new().write(true).open("/proc/sys/kernel/ns_last_pid").map_err(failed)?;
    let text = last.to_string();
    let Some(pid_ns) = pid_ns else { return std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed) };
    // The file is about the namespace of whoever writes: a child there does.
    let fd = file.as_raw_fd();
    let there = || {
        // SAFETY: integers only; it is children of this thread that go there.
        check(unsafe { libc::setns(pid_ns.as_raw_fd(), libc::CLONE_NEWPID) }.into())?;
        let child = make(0, libc::SIGCHLD, &[], None, || {
            // SAFETY: pointer and length belong together; the descriptor is this process's copy.
            let written = unsafe { libc::syscall(libc::SYS_write, fd, text.as_ptr(), text.len()) };
            // SAFETY: ends this process; no memory is involved.
            unsafe { libc::syscall(libc::SYS_exit_group, i32::from(written < 0)) };
        })?;
        match super::wait::wait(child)? {
            super::wait::Status::Exited(0) => Ok(()),
            _ => Err(super::Errno::EPERM),
        }
    };
    std::thread::scope(|scope| scope.spawn(there).join().unwrap_or(Err(super::Errno::EIO)))
}

/// Raw calls only: this runs in a copy of a program with threads.
fn go(place: Placed) -> Result<()> {
    if let Some(ns) = place.enter {
        // SAFETY: integers only.
        check(unsafe { libc::syscall(libc::SYS_setns, ns, libc::CLONE_NEWUSER) })?;
    }
    if let Some(owner) = place.owner {
        // SAFETY: integers only.
        check(unsafe { libc::syscall(libc::SYS_setresuid, -1, owner, -1) })?;
        // SAFETY: integers only.
        check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER) })?;
    }
    if place.make != 0 {
        // SAFETY: integers only.
        check(unsafe { libc::syscall(libc::SYS_unshare, place.make) })?;
    }
    Ok(())
}
