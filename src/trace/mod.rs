//! Stopped tasks and what can be done with them: registers, memory, batches of system calls.
//!
//! One thread drives all tasks of a tree (ptrace belongs to a thread); nothing here is `Send`. Only this room calls
//! ptrace and process_vm_*. Guards undo: a [`freeze::Frozen`] tree is thawed when dropped, a [`remote::Scratch`] is
//! removed by its owner before that.
//!
//! Stopping: [`freeze`] (a tree), `stopping` (its processes), `frost` (by its cgroup), `witness` (one that executes a program meanwhile).
//! What a stop breaks: [`waits`], [`socket_waits`], [`sleepers`], [`group_stop`], [`vdso`]. Work in a task: [`remote`], [`batch`],
//! [`calls`], [`memory`], [`pages`], [`fill`]. If we die: [`lifeline`].

pub mod batch;
pub mod calls;
pub mod fill;
pub mod freeze;
mod frost;
pub mod group_stop;
pub mod lifeline;
pub mod memory;
pub mod pages;
pub mod remote;
pub mod sleepers;
pub mod socket_waits;
mod stopping;
pub mod task;
pub mod vdso;
pub mod waits;
mod witness;

pub use batch::{Arg, Batch, Ref, Results};
pub use task::{Running, Stop, Stopped, Tracee};

use crate::image::Pid;
use crate::sys::Errno;

/// What goes wrong while tracing; every variant names the task.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A ptrace request failed.
    #[error("ptrace {operation} of task {pid}: {errno}")]
    Ptrace {
        /// Task.
        pid: Pid,
        /// Request.
        operation: &'static str,
        /// Kernel's answer.
        errno: Errno,
    },
    /// The task ended (it was killed, or the whole process exited).
    #[error("task {pid} ended while it was traced")]
    Died {
        /// Task.
        pid: Pid,
    },
    /// Another tracer has it.
    #[error("task {pid} is already traced by {tracer}")]
    Traced {
        /// Task.
        pid: Pid,
        /// Its tracer.
        tracer: Pid,
    },
    /// It did not stop in time.
    #[error("task {pid} did not stop within {ms} ms (it waits in {wchan})")]
    DoesNotStop {
        /// Task.
        pid: Pid,
        /// Deadline.
        ms: u64,
        /// `/proc/PID/wchan`.
        wchan: String,
    },
    /// Each look at a tree found tasks that had not been there before.
    #[error("the tree of process {root} makes new tasks faster than they can be stopped: {tasks} were met in {ms} ms")]
    KeepsForking {
        /// Its first process.
        root: Pid,
        /// Processes that were met.
        tasks: usize,
        /// Deadline.
        ms: u64,
    },
    /// Memory of a task could not be read or written.
    #[error("{operation} {len} bytes at {address:#x} of task {pid}: {errno}")]
    Memory {
        /// Task.
        pid: Pid,
        /// `read` or `write`.
        operation: &'static str,
        /// First address.
        address: u64,
        /// Length.
        len: usize,
        /// Kernel's answer.
        errno: Errno,
    },
    /// A system call made inside a task failed.
    #[error("{call} inside task {pid}: {errno}")]
    Call {
        /// Task.
        pid: Pid,
        /// Name of the call.
        call: String,
        /// Kernel's answer.
        errno: Errno,
    },
    /// The task stopped somewhere it should not.
    #[error("task {pid} stopped unexpectedly while it ran {what}: {status}")]
    OddStop {
        /// Task.
        pid: Pid,
        /// What we had it run.
        what: &'static str,
        /// What it reported.
        status: String,
    },
    /// A cgroup could not be frozen or thawed.
    #[error("the freezer of {dir}: {source}")]
    Freezer {
        /// Directory of the cgroup.
        dir: String,
        /// Why.
        source: std::io::Error,
    },
    /// `/proc` could not be read.
    #[error(transparent)]
    Proc(#[from] crate::proc::Error),
}

impl Error {
    /// The tree did not stop this time, and may at another.
    pub fn is_of_the_moment(&self) -> bool {
        matches!(self, Self::DoesNotStop { .. } | Self::KeepsForking { .. })
    }
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;
