//! All unsafe code of the project: thin typed wrappers, one file per man page.
//!
//! Each wrapper names its page and the kernel it needs, and returns the kernel's error number untouched: naming the
//! object is the caller's work. Kernel structs that travel through remote memory stand in [`abi`].

pub mod abi;
pub mod clone;
pub mod epoll;
pub mod eventfd;
pub mod fcntl;
pub mod fd;
pub mod file_handle;
pub mod inotify;
pub mod mapping;
pub mod mem;
pub mod memory;
pub mod mount;
pub mod nsfs;
pub mod openat2;
pub mod packet;
pub mod page_buffer;
pub mod pagemap;
pub mod pass_fd;
pub mod pidfd;
pub mod pipe;
pub mod prctl;
pub mod procmap;
pub mod ptrace;
pub mod rlimit;
pub mod sched;
pub mod signalfd;
pub mod sock_diag;
pub mod socket;
pub mod stub;
pub mod sysv;
pub mod tcp_repair;
pub mod thread_ids;
pub mod timerfd;
pub mod tty;
pub mod tty_queue;
pub mod user;
pub mod userfaultfd;
pub mod uts;
pub mod wait;
pub mod xattr;

pub use nix::errno::Errno;

/// What a wrapper returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// Turns a libc return value into a result.
fn check(ret: libc::c_long) -> Result<libc::c_long> {
    if ret == -1 { Err(Errno::last()) } else { Ok(ret) }
}

/// Size of the XSAVE area this processor can have, an upper bound for `NT_X86_XSTATE`.
pub const XSTATE_MAX: usize = 16384;
