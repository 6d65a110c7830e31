//! Processes and threads.

use super::{
    Bytes, CgroupSetId, FdTableId, FsId, GhostId, MmId, NsId, NsPid, SighandId, TaskId,
    creds::{Creds, Seccomp},
    fd::PathRef,
    numa::Policy,
    signals::{AltStack, SigInfo},
    timers::{IntervalTimers, PosixTimer},
};
use serde::{Deserialize, Serialize};

/// One process (thread group).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Process id as the target sees it.
    pub pid: NsPid,
    /// Ids in the PID namespaces below the root task's, outermost first; empty where the task lives in the root task's own.
    pub inner_pids: Vec<NsPid>,
    /// The parent, `None` for the root of the tree.
    pub parent: Option<TaskId>,
    /// Process group; 0 where its number is not visible in the root task's PID namespace.
    pub pgid: NsPid,
    /// Session; 0 where its number is not visible in the root task's PID namespace.
    pub sid: NsPid,
    /// Running, stopped or zombie.
    pub state: TaskState,
    /// Name and credentials of a zombie, which has no threads to keep them.
    pub dead: Option<Dead>,
    /// Signal sent to the parent when the process ends (`clone(2)`), 17 = SIGCHLD.
    pub exit_signal: i32,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// Threads, the leader first; empty for a zombie.
    pub threads: Vec<Thread>,
    /// Address space; `None` for a zombie.
    pub mm: Option<MmId>,
    /// Table of signal actions; `None` for a zombie.
    pub sighand: Option<SighandId>,
    /// Signals pending for the process.
    pub pending: Vec<SigInfo>,
    /// `setitimer(2)`.
    pub itimers: IntervalTimers,
    /// `timer_create(2)`.
    pub posix_timers: Vec<PosixTimer>,
    /// Resource limits by number (`RLIMIT_CPU` = 0 ...): soft and hard.
    pub rlimits: Vec<RLimit>,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `/proc/PID/coredump_filter`, a bit mask.
    pub coredump_filter: u32,
    /// `/proc/PID/loginuid`; `u32::MAX` is unset.
    pub loginuid: u32,
    /// Namespaces, one index a kind that differs from the model's first of that kind or equals it.
    pub namespaces: TaskNamespaces,
    /// The controlling terminal's device number, 0 without one.
    pub tty_device: u64,
    /// cgroup memberships of the leader.
    pub cgroups: Option<CgroupSetId>,
    /// Stop signal that is reported to a waiting parent is still unread (`wait4(WSTOPPED)` would return it).
    pub stop_reported: bool,
}

impl Task {
    /// The process id as another task of the tree, in this or an outer PID namespace, sees it.
    pub fn id_seen_by(&self, other: &Task) -> NsPid {
        match other.inner_pids.len() {
            0 => self.pid,
            depth => self.inner_pids.get(depth - 1).copied().unwrap_or(self.pid),
        }
    }
}

/// What is left of a process that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    /// Its name.
    pub comm: Bytes,
    /// User, groups, capabilities: who may ask about it, and what its parent is told.
    pub creds: Creds,
}

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    /// Runs, or sleeps in a system call.
    Running,
    /// Stopped by this signal (job control).
    Stopped(i32),
    /// Ended; the parent has not waited. The value is a wait status as of `wait4(2)`.
    Zombie(i32),
}

/// One resource limit; `u64::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RLimit {
    /// What `setrlimit` enforces.
    pub soft: u64,
    /// What the soft limit can be raised to.
    pub hard: u64,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Thread id as the target sees it.
    pub tid: NsPid,
    /// Ids in the PID namespaces below the root task's, outermost first.
    pub inner_tids: Vec<NsPid>,
    /// `PR_SET_NAME`, at most 15 bytes.
    pub comm: Bytes,
    /// Registers and floating point state.
    pub regs: Registers,
    /// Blocked signals, bit n-1 for signal n.
    pub blocked: u64,
    /// `sigaltstack(2)`.
    pub alt_stack: AltStack,
    /// Signals pending for this thread alone.
    pub pending: Vec<SigInfo>,
    /// User, groups, capabilities.
    pub creds: Creds,
    /// seccomp mode and filters.
    pub seccomp: Seccomp,
    /// `PR_SET_PDEATHSIG`, 0 = none.
    pub pdeath_signal: i32,
    /// Scheduling.
    pub sched: Sched,
    /// `set_mempolicy(2)`.
    pub numa: Option<Policy>,
    /// `PR_SET_TIMERSLACK`, nanoseconds.
    pub timer_slack_ns: u64,
    /// `set_tid_address(2)`: where the kernel writes 0 and wakes when the thread ends.
    pub clear_child_tid: u64,
    /// `set_robust_list(2)`: head address and length.
    pub robust_list: (u64, u64),
    /// `rseq(2)` registration.
    pub rseq: Option<Rseq>,
    /// Table of descriptors (threads may have tables of their own: `unshare(CLONE_FILES)`).
    pub fd_table: FdTableId,
    /// umask, working directory and root.
    pub fs: FsId,
    /// Threads with the same number share an I/O context (`CLONE_IO`); 0 = none.
    pub io_context: u32,
    /// `personality(2)`.
    pub personality: u32,
    /// The thread's own cgroups where they differ from the leader's (threaded cgroups, v1).
    pub cgroups: Option<CgroupSetId>,
    /// What the thread was waiting in, if an interrupted system call has to be armed again.
    pub restart: Restart,
}

/// Registers as the kernel gives them to a tracer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registers {
    /// `struct user_regs_struct` (x86-64: 27 words), raw: also `orig_rax` and a negative restart code in `rax`.
    pub general: Vec<u64>,
    /// `NT_X86_XSTATE`: the XSAVE area of the source, standard format.
    pub xstate: Bytes,
}

/// How an interrupted system call goes on in the restored thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Nothing to do, or the kernel's ordinary restart of the saved registers is right.
    None,
    /// `-ERESTART_RESTARTBLOCK`: a wait whose end the kernel keeps to itself. It is begun again with what was left.
    Block {
        /// Number of the system call; `None` where it had been restarted before and cannot be told any more: the program
        /// then sees `EINTR`.
        call: Option<u32>,
        /// What was left of a relative time-out, nanoseconds; `None` where there is none, or it is absolute.
        remaining_ns: Option<u64>,
    },
    /// A call on a socket that has a time-out (`SO_RCVTIMEO`, `SO_SNDTIMEO`), which is made again.
    Socket {
        /// What was left of it, nanoseconds.
        remaining_ns: u64,
    },
}

/// `rseq(2)` as registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of the area.
    pub address: u64,
    /// Its length in bytes.
    pub size: u32,
    /// Signature in front of abort handlers.
    pub signature: u32,
}

/// Scheduling of one thread (`sched_getattr(2)`, `ioprio_get(2)`, `sched_getaffinity(2)`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sched {
    /// `SCHED_OTHER` = 0, `SCHED_FIFO` = 1, ...
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, -20..19.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// `SCHED_DEADLINE`: runtime in nanoseconds.
    pub runtime_ns: u64,
    /// `SCHED_DEADLINE`: relative deadline in nanoseconds.
    pub deadline_ns: u64,
    /// `SCHED_DEADLINE`: period in nanoseconds.
    pub period_ns: u64,
    /// Processors the thread may run on, one bit each, as many bytes as the source had.
    pub affinity: Bytes,
    /// `ioprio_get(2)`.
    pub io_priority: i32,
}

/// File-system state that tasks may share (`CLONE_FS`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fs {
    /// `umask(2)`.
    pub umask: u32,
    /// Working directory.
    pub cwd: PathRef,
    /// The same where it was removed: it is made anew and removed again.
    pub removed_cwd: Option<GhostId>,
    /// Root directory.
    pub root: PathRef,
}

impl Fs {
    /// The paths that have to exist: of a directory that was removed it is made anew.
    pub fn places(&self) -> impl Iterator<Item = &PathRef> {
        let cwd = self.removed_cwd.is_none().then_some(&self.cwd);
        cwd.into_iter().chain([&self.root])
    }
}

/// The namespaces a process is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskNamespaces {
    /// Mount namespace.
    pub mnt: NsId,
    /// Network namespace.
    pub net: NsId,
    /// PID namespace of the task itself.
    pub pid: NsId,
    /// PID namespace of children yet to be made.
    pub pid_for_children: NsId,
    /// User namespace.
    pub user: NsId,
    /// UTS namespace.
    pub uts: NsId,
    /// IPC namespace.
    pub ipc: NsId,
    /// cgroup namespace.
    pub cgroup: NsId,
    /// Time namespace.
    pub time: NsId,
    /// Time namespace of children yet to be made.
    pub time_for_children: NsId,
}
