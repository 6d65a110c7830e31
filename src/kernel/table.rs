//! The probes: name, how much depends on it, what it is for, what is lost without it.

use crate::blocker::{Code, codes};

/// How much depends on a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nothing can be saved or restored without it.
    Required,
    /// A part cannot be saved or restored, or only worse.
    Wanted,
    /// Something is slower or bound to conditions.
    Useful,
}

macro_rules! probes {
    ($($variant:ident = $name:literal, $need:ident, $code:ident, $purpose:literal, $without:literal;)*) => {
        /// Something that a kernel or a user may or may not be able to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Probe {
            $(#[doc = $purpose] $variant,)*
        }

        impl Probe {
            /// All probes, in the order in which `migrate check` prints them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name, as in `migrate check` and `MIGRATE_MASK_PROBES`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// How much depends on it.
            pub const fn need(self) -> Need {
                match self { $(Self::$variant => Need::$need,)* }
            }

            /// The code of the blocker that it becomes where it is required and missing.
            pub const fn code(self) -> Code {
                match self { $(Self::$variant => codes::$code,)* }
            }

            /// What it is for.
            pub const fn purpose(self) -> &'static str {
                match self { $(Self::$variant => $purpose,)* }
            }

            /// What is lost without it.
            pub const fn without(self) -> &'static str {
                match self { $(Self::$variant => $without,)* }
            }
        }
    };
}

probes! {
    Ptrace = "ptrace", Required, PTRACE_FORBIDDEN,
        "stops processes and reads their registers (PTRACE_SEIZE)", "nothing can be saved or restored";
    ProcessVm = "process-vm", Required, SYSTEM_CALL_MISSING,
        "copies memory of other processes (process_vm_readv)", "nothing can be saved or restored";
    Clone3 = "clone3", Required, KERNEL_OLD,
        "makes processes with chosen properties (clone3)", "nothing can be restored";
    SetTid = "set-tid", Wanted, SET_TID,
        "gives processes the ids they had (clone3 set_tid)", "restore needs a new PID namespace";
    Kcmp = "kcmp", Required, KERNEL_OPTION,
        "tells which descriptors and tables are shared (kcmp)", "sharing cannot be seen, so nothing can be saved";
    PidfdGetfd = "pidfd-getfd", Required, KERNEL_OLD,
        "duplicates descriptors of other processes (pidfd_getfd)", "descriptors cannot be saved or restored";
    SetMmMap = "set-mm-map", Required, KERNEL_OPTION,
        "sets where heap, stack and arguments lie (PR_SET_MM_MAP)", "nothing can be restored";
    MapVdso = "map-vdso", Wanted, KERNEL_OPTION,
        "maps the vDSO at a chosen address (ARCH_MAP_VDSO_64)", "programs restore only on a host with the same layout";
    Children = "children", Useful, KERNEL_OPTION,
        "lists children of a process (CONFIG_PROC_CHILDREN)", "the process tree is searched in the whole of /proc";
    Timers = "timers", Wanted, KERNEL_OPTION,
        "lists POSIX timers (/proc/PID/timers)", "programs with POSIX timers cannot be saved";
    TimerIds = "timer-ids", Useful, KERNEL_OLD,
        "gives POSIX timers the ids they had (PR_TIMER_CREATE_RESTORE_IDS)", "timers are made until the right id comes";
    SuspendSeccomp = "suspend-seccomp", Wanted, TRACER_SECCOMP,
        "suspends seccomp filters while a process is read", "programs with a seccomp filter cannot be saved";
    Rseq = "rseq", Wanted, KERNEL_OLD,
        "tells a thread's restartable sequences (PTRACE_GET_RSEQ_CONFIGURATION)", "programs that use rseq cannot be saved";
    PagemapScan = "pagemap-scan", Useful, KERNEL_OLD,
        "finds pages quickly (PAGEMAP_SCAN)", "page tables are read entry by entry: 20 ms/GiB instead of 3";
    Userfaultfd = "userfaultfd", Useful, KERNEL_OPTION,
        "watches writes and missing pages (userfaultfd)", "pages are compared by hash, and nothing is loaded lazily";
    WpAsync = "wp-async", Useful, TRACKING,
        "tracks written pages without stopping the writer (UFFD_FEATURE_WP_ASYNC)", "soft-dirty bits or hashes are used";
    UffdKernelFaults = "uffd-kernel-faults", Useful, NO_PRIVILEGE,
        "handles faults that system calls meet (userfaultfd without UFFD_USER_MODE_ONLY)", "no post-copy, no lazy restore";
    UffdPoison = "uffd-poison", Useful, KERNEL_OLD,
        "marks pages that are lost (UFFDIO_POISON)", "a broken post-copy has to stop the program instead";
    SoftDirty = "soft-dirty", Useful, TRACKING,
        "soft-dirty bits in pagemap (CONFIG_MEM_SOFT_DIRTY)", "without wp-async either, pages are compared by hash";
    GuardPages = "guard-pages", Useful, KERNEL_OLD,
        "light guard pages (MADV_GUARD_INSTALL)", "programs that use them cannot be restored here";
    TimeNamespace = "time-namespace", Wanted, KERNEL_OPTION,
        "keeps CLOCK_MONOTONIC steady between hosts (CLONE_NEWTIME)", "clocks may jump after a move to another host";
    UserNamespace = "user-namespace", Useful, NAMESPACE_LIMIT,
        "makes user namespaces", "programs that are confined by one cannot be restored";
    CloneIntoCgroup = "clone-into-cgroup", Useful, KERNEL_OLD,
        "starts processes in their cgroup (CLONE_INTO_CGROUP)", "processes are moved into their cgroup after the start";
    CgroupV2Freezer = "cgroup-v2-freezer", Useful, CGROUP_ACCESS,
        "stops all processes of a cgroup at once (cgroup.freeze)", "trees with many busy threads stop more slowly";
    CgroupV1Freezer = "cgroup-v1-freezer", Useful, CGROUP_ACCESS,
        "the same in cgroup version 1 (freezer.state)", "nothing, where version 2 has it";
    TcpRepair = "tcp-repair", Wanted, TCP_REPAIR,
        "keeps TCP connections (TCP_REPAIR)", "established connections are refused or closed";
    SockDiag = "sock-diag", Wanted, KERNEL_OPTION,
        "finds peers and queues of sockets (sock_diag)", "programs with connected UNIX sockets cannot be saved";
    MapFiles = "map-files", Wanted, NO_PRIVILEGE,
        "opens mapped files that have no name (/proc/PID/map_files)", "deleted mapped files cannot be saved";
    CheckpointRestore = "cap-checkpoint-restore", Useful, NO_PRIVILEGE,
        "CAP_CHECKPOINT_RESTORE", "ids and map_files then need CAP_SYS_ADMIN";
    SysPtrace = "cap-sys-ptrace", Useful, NO_PRIVILEGE,
        "CAP_SYS_PTRACE", "only one's own programs can be saved";
    SysAdmin = "cap-sys-admin", Useful, NO_PRIVILEGE,
        "CAP_SYS_ADMIN", "no namespaces, mounts or seccomp filters";
    NetAdmin = "cap-net-admin", Useful, NO_PRIVILEGE,
        "CAP_NET_ADMIN", "no TCP connections, no addresses that move along";
    SysResource = "cap-sys-resource", Useful, HARD_LIMITS,
        "CAP_SYS_RESOURCE", "hard limits and large pipes above this session's cannot be restored";
    Setuid = "cap-setuid", Useful, CREDENTIALS,
        "CAP_SETUID, CAP_SETGID", "only programs of this user can be restored";
}
