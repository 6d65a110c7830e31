//! M01 tasks and M02 memory.

use super::table;

table! { TASKS:
    TRACED = 101, "traced by another process",
        object: "a task whose TracerPid in /proc/PID/status is not 0: under gdb, strace, rr, a sandbox",
        why: "A task has one tracer at a time, and this engine has to be it. What the other tracer knows (breakpoints, pending stops) is in its own memory.",
        remedy: "end or detach the tracer first (in gdb: detach)",
        kernel: "all";
    DOES_NOT_STOP = 102, "does not stop",
        object: "a task in state D, or waiting for a child made by vfork; its wchan is named",
        why: "A task stops only at a point where the kernel looks for signals. One that waits for a disk or a network file system, or a vfork parent, does not come there. The tree is let go at once and tried again with growing pauses; half-frozen it would hang.",
        remedy: "wait until the operation ends, or repair the device or server it waits for; then try again",
        kernel: "all";
    LEADER_EXITED = 103, "first thread has exited while others run",
        object: "a process in state Z that still has threads",
        why: "The first thread ended by pthread_exit. Its descriptors and memory are still used by the others, but the kernel does not allow to look at them through the process id.",
        remedy: "let the first thread wait for the others (pthread_join), or stop the program",
        kernel: "all";
    TASK_32BIT = 104, "32-bit program",
        object: "a task that runs 32-bit code",
        why: "Registers, vDSO and restart of system calls differ from those of 64-bit programs and are not handled yet.",
        remedy: "use the 64-bit build of the program",
        kernel: "all";
    SHADOW_STACK = 105, "uses a shadow stack",
        object: "a task with x86 user shadow stacks on: a mapping with the flag `ss` in smaps",
        why: "The shadow stack and its pointer can be written by the kernel only in ways that are not handled yet.",
        remedy: "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        kernel: "since 6.6 with CONFIG_X86_USER_SHADOW_STACK";
    PID_IN_USE = 106, "process id in use here",
        object: "a process, thread, session or group id of the image that another process has on this host",
        why: "Programs remember process ids, so they have to stay the same. Two processes of one PID namespace cannot share one.",
        remedy: "--pids new (a new PID namespace), or --pids auto, which does so by itself",
        kernel: "all";
    SESSION_OUTSIDE = 107, "session or process group begun outside the tree",
        object: "a task whose session or group leader is not in the tree, typically a job of an interactive shell",
        why: "The id of the session belongs to a process that stays. At the destination there is no such session to join.",
        remedy: "take the whole job along (name the process that started it), or start the job with setsid",
        kernel: "all";
    KERNEL_THREAD = 108, "thread of the kernel",
        object: "a task without memory of its own: kthreadd and its children",
        why: "It is a part of the running kernel, not a program.",
        remedy: "name a process",
        kernel: "all";
    OWN_ANCESTOR = 109, "this command runs inside the target",
        object: "a target that contains the migrate command itself, the shell or the ssh session it was started from",
        why: "It would have to stop itself.",
        remedy: "run the command from another session, or name a smaller tree",
        kernel: "all";
    PID_ABOVE_MAX = 110, "process id above the limit here",
        object: "an id in the image that is not below kernel.pid_max of this host",
        why: "The kernel gives no ids above kernel.pid_max.",
        remedy: "sysctl kernel.pid_max=4194304 on the destination, or --pids new",
        kernel: "all";
    SHARES_OUTSIDE = 111, "shares memory or descriptors with a process outside",
        object: "a task that shares its address space, descriptor table, file-system state or signal handlers with a process outside the tree",
        why: "Sharing of this kind (clone with CLONE_VM or CLONE_FILES) cannot reach across two hosts, and to cut it would change both programs.",
        remedy: "name the common ancestor as the target",
        kernel: "all";
    KEEPS_FORKING = 112, "makes new tasks faster than they can be stopped",
        object: "a tree in which each look finds tasks that were not there before",
        why: "A tree is stopped when two looks in a row find nothing new.",
        remedy: "put the tree into a cgroup of its own: a cgroup is stopped all at once",
        kernel: "all";
    SCHEDULING = 113, "scheduling policy cannot be given here",
        object: "a task with SCHED_DEADLINE, SCHED_FIFO or SCHED_RR, or with a CPU affinity that leaves no CPU of this host",
        why: "The policy needs bandwidth, a privilege or CPUs that this host does not have.",
        remedy: "change it first with chrt or taskset, or choose a destination with these CPUs",
        kernel: "all";
}

table! { MEMORY:
    MEMORY_UFFD = 201, "handles its own page faults (userfaultfd)",
        object: "a mapping registered with a userfaultfd: flag `um`, `uw` or `ui` in smaps",
        why: "Pages of such a mapping come from a program when they are touched. Which are missing and who answers cannot be carried over yet.",
        remedy: "end the use of userfaultfd (garbage collectors have an option for it), then try again",
        kernel: "all";
    MEMFD_SECRET = 202, "secret memory",
        object: "a mapping or descriptor made by memfd_secret",
        why: "The kernel removes these pages from its own view of memory, so that nobody but the program reads them. That is their purpose.",
        remedy: "let the program drop its secrets, or do without memfd_secret",
        kernel: "since 5.14";
    MEMORY_DEVICE = 203, "memory of a device",
        object: "a mapping of a device file with the flag `io` or `pf` in smaps: a GPU, a network card, /dev/mem",
        why: "The memory belongs to hardware of this host; its state is not in the process.",
        remedy: "let the program close the device, then try again",
        kernel: "all";
    HUGETLB_SHORT = 204, "too few huge pages here",
        object: "mappings of huge pages, with their size and how many are needed and free",
        why: "Huge pages are taken from a pool that the administrator sizes.",
        remedy: "raise /sys/kernel/mm/hugepages/hugepages-SIZEkB/nr_hugepages on the destination",
        kernel: "all";
    SYSV_OUTSIDE = 205, "System V memory attached outside the tree",
        object: "a System V shared memory segment that processes outside the tree have attached",
        why: "Both sides would write to a copy of their own.",
        remedy: "name the common ancestor as the target, or end the other users (ipcs -mp lists them)",
        kernel: "all";
    SHARED_OUTSIDE = 206, "shared memory mapped outside the tree",
        object: "shared anonymous memory, a memfd or a file on tmpfs that a process outside the tree maps, too",
        why: "Both sides would write to a copy of their own.",
        remedy: "name the common ancestor as the target, or end the other process",
        kernel: "all";
    AIO_CONTEXT = 207, "asynchronous I/O context (io_setup)",
        object: "a mapping called /[aio]",
        why: "Requests that are under way are not visible from outside, and the ring's id is its address.",
        remedy: "turn native asynchronous I/O off (MySQL: innodb_use_native_aio=0; nginx: aio off)",
        kernel: "all";
    UPROBES = 208, "probed by uprobes",
        object: "a mapping called [uprobes]: perf, bpftrace or SystemTap watch the program",
        why: "Instructions of the program are replaced by breakpoints that only this kernel knows.",
        remedy: "end the tracing tool, then try again",
        kernel: "all";
    MEMORY_SHORT = 209, "not enough memory here",
        object: "the destination, with the bytes needed and free",
        why: "The target would be killed for lack of memory, or others would.",
        remedy: "free memory or choose another destination",
        kernel: "all";
    MEMORY_LOCK = 210, "locked memory above the limit here",
        object: "mappings locked by mlock, above RLIMIT_MEMLOCK of a user without CAP_IPC_LOCK",
        why: "The pages could not be locked again.",
        remedy: "run as root, or raise the limit (ulimit -l)",
        kernel: "all";
    PROTECTION_KEYS = 211, "protection keys that this CPU does not have",
        object: "a mapping with a ProtectionKey other than 0",
        why: "Without the keys the program would lose the protection it relies on, or be killed at its next WRPKRU.",
        remedy: "choose a destination whose CPU has pku and ospke in /proc/cpuinfo",
        kernel: "all";
    ADDRESS_SPACE = 212, "address not available here",
        object: "a mapping below vm.mmap_min_addr or above what this CPU can address (five-level page tables)",
        why: "Memory has to be at the same address, since pointers point there.",
        remedy: "lower vm.mmap_min_addr, or choose a destination with five-level page tables (la57)",
        kernel: "all";
    MEMORY_UNKNOWN = 213, "mapping of an unknown kind",
        object: "a mapping that is neither memory, a file, System V memory, nor one of the kernel's own",
        why: "What it is backed by is not known, so it cannot be made again.",
        remedy: "report the line of /proc/PID/maps; let the program unmap it",
        kernel: "all";
    NUMA_NODE = 214, "NUMA memory policy that cannot be given here",
        object: "a thread or a mapping with a policy (set_mempolicy, mbind) that names a node without memory for us here",
        why: "The kernel would leave the node out of the policy for good, and memory would come from elsewhere than the program asked for.",
        remedy: "choose a destination with memory on these nodes (numactl -H), or start the program without them",
        kernel: "all";
}
