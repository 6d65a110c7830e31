//! Kernel structs, size-asserted, as they lie in memory of this machine and of the target.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct user_regs_struct` of x86-64 (`<asm/user_64.h>`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct UserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}
const _: () = assert!(size_of::<UserRegs>() == 216);

/// `struct ptrace_rseq_configuration` (`PTRACE_GET_RSEQ_CONFIGURATION`, Linux 5.13).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RseqConfiguration {
    /// Address of the registered area, 0 = none.
    pub address: u64,
    /// Its size.
    pub size: u32,
    /// Signature of abort handlers.
    pub signature: u32,
    /// Reserved.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// `struct rseq_cs` (`<linux/rseq.h>`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RseqCs {
    /// Version, 0.
    pub version: u32,
    /// Flags.
    pub flags: u32,
    /// First instruction of the critical section.
    pub start_ip: u64,
    /// Length up to the commit.
    pub post_commit_offset: u64,
    /// Where an aborted section goes on.
    pub abort_ip: u64,
}
const _: () = assert!(size_of::<RseqCs>() == 32);

/// `struct clone_args` (clone3(2)), the version of Linux 5.7 with `cgroup`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CloneArgs {
    /// `CLONE_*`.
    pub flags: u64,
    /// Where to store the pidfd.
    pub pidfd: u64,
    /// `CLONE_CHILD_SETTID` address.
    pub child_tid: u64,
    /// `CLONE_PARENT_SETTID` address.
    pub parent_tid: u64,
    /// Signal to the parent at the end.
    pub exit_signal: u64,
    /// Lowest byte of the stack.
    pub stack: u64,
    /// Its size.
    pub stack_size: u64,
    /// New TLS.
    pub tls: u64,
    /// Address of an array of pids, innermost namespace first.
    pub set_tid: u64,
    /// Its length.
    pub set_tid_size: u64,
    /// Descriptor of a cgroup2 directory.
    pub cgroup: u64,
}
const _: () = assert!(size_of::<CloneArgs>() == 88);

/// `struct prctl_mm_map` (`PR_SET_MM_MAP`, Linux 3.18).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct PrctlMmMap {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    pub auxv: u64,
    pub auxv_size: u32,
    pub exe_fd: u32,
}
const _: () = assert!(size_of::<PrctlMmMap>() == 104);

/// `struct kernel_sigaction` of x86-64 as `rt_sigaction(2)` takes it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct KernelSigaction {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}
const _: () = assert!(size_of::<KernelSigaction>() == 32);

/// `stack_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct StackT {
    pub sp: u64,
    pub flags: i32,
    pub pad: u32,
    pub size: u64,
}
const _: () = assert!(size_of::<StackT>() == 24);

/// `struct sched_attr` (sched_setattr(2)), first version, 48 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}
const _: () = assert!(size_of::<SchedAttr>() == 48);

/// `struct itimerval` (setitimer(2)): seconds and microseconds.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct Itimerval {
    pub interval_s: i64,
    pub interval_us: i64,
    pub value_s: i64,
    pub value_us: i64,
}
const _: () = assert!(size_of::<Itimerval>() == 32);

/// `struct itimerspec`: seconds and nanoseconds.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct Itimerspec {
    pub interval_s: i64,
    pub interval_ns: i64,
    pub value_s: i64,
    pub value_ns: i64,
}
const _: () = assert!(size_of::<Itimerspec>() == 32);

/// `struct sigevent`, 64 bytes, with the thread id of `SIGEV_THREAD_ID`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct Sigevent {
    pub value: u64,
    pub signal: i32,
    pub notify: i32,
    pub tid: i32,
    pub pad: [u8; 44],
}
const _: () = assert!(size_of::<Sigevent>() == 64);

/// `struct page_region` (`PAGEMAP_SCAN`, Linux 6.7).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// First address past the end.
    pub end: u64,
    /// `PAGE_IS_*`.
    pub categories: u64,
}
const _: () = assert!(size_of::<PageRegion>() == 24);

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct PmScanArg {
    pub size: u64,
    pub flags: u64,
    pub start: u64,
    pub end: u64,
    pub walk_end: u64,
    pub vec: u64,
    pub vec_len: u64,
    pub max_pages: u64,
    pub category_inverted: u64,
    pub category_mask: u64,
    pub category_anyof_mask: u64,
    pub return_mask: u64,
}
const _: () = assert!(size_of::<PmScanArg>() == 96);

/// `struct procmap_query`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct ProcmapQuery {
    pub size: u64,
    pub query_flags: u64,
    pub query_addr: u64,
    pub vma_start: u64,
    pub vma_end: u64,
    pub vma_flags: u64,
    pub vma_page_size: u64,
    pub vma_offset: u64,
    pub inode: u64,
    pub dev: [u32; 2],
    pub vma_name_size: u32,
    pub build_id_size: u32,
    pub vma_name_addr: u64,
    pub build_id_addr: u64,
}
const _: () = assert!(size_of::<ProcmapQuery>() == 104);

/// A row of the remote batch's table: the stub in [`super::stub`] reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BatchRow {
    /// System call number in the low half; flags in the high half (`super::stub`).
    pub call: u64,
    /// Arguments; one whose bit is set in the flags is a byte offset into the table, to the value to use.
    pub args: [u64; 6],
    /// What the call returned.
    pub ret: i64,
}
const _: () = assert!(size_of::<BatchRow>() == 64);

/// What a thread that works for us goes on with if nobody traces it any more: the stub in [`super::stub`] reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lifeline {
    /// Registers, as the kernel would have had them at its return to the program.
    pub regs: UserRegs,
    /// The same where its system call has been ended by a signal's handler.
    pub ended: UserRegs,
    /// Blocked signals.
    pub mask: u64,
    /// Those blocked while it works for us.
    pub work_mask: u64,
    /// The signal that ends a batch.
    pub signal: u64,
    /// Whether `mask` blocks that signal.
    pub own_blocks: u64,
    /// What a signal with a handler does to the interrupted call: 0 = nothing, 1 = ends it, 2 = ends it without `SA_RESTART`.
    pub interrupted: u64,
    /// Room for the signals that wait; together with what follows a `struct timespec` of 0.
    pub pending: u64,
    /// Room for the action of one of them.
    pub action: [u64; 4],
}
const _: () = assert!(size_of::<Lifeline>() == 2 * size_of::<UserRegs>() + 80);
