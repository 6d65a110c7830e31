//! M07 CPU and kernel, M08 privilege, M09 peer and transport, M11 supervisor and container.

use super::table;

table! { KERNEL:
    CPU_FEATURES = 701, "CPU features missing here",
        object: "the features by their names in /proc/cpuinfo",
        why: "A program picks code for its CPU when it starts (glibc does for memcpy). Without the features it would be killed by SIGILL later.",
        remedy: "choose a destination with these features, or --cpu minimal at your own risk",
        kernel: "all";
    XSTATE = 702, "extended CPU state does not fit here",
        object: "the components (AVX-512, AMX, PKRU, ...) that are in use",
        why: "Registers of these components have no place on this CPU.",
        remedy: "choose a destination with these components",
        kernel: "all";
    ARCHITECTURE = 703, "other architecture or page size",
        object: "both architectures",
        why: "Machine code and memory layout are of the other kind.",
        remedy: "choose a destination of the same architecture",
        kernel: "all";
    KERNEL_OLD = 704, "kernel is too old",
        object: "the function that is missing and the version that has it",
        why: "The state cannot be read or set on this kernel.",
        remedy: "use a newer kernel, or the option that the message names",
        kernel: "clone3 with set_tid since 5.5; PTRACE_GET_RSEQ_CONFIGURATION since 5.13";
    KERNEL_OPTION = 705, "kernel was built without a needed option",
        object: "the option, as CONFIG_CHECKPOINT_RESTORE",
        why: "The state cannot be read or set on this kernel.",
        remedy: "use a kernel of a distribution: Debian, Ubuntu, Fedora, RHEL and SUSE have it on",
        kernel: "all";
    VDSO = 706, "vDSO cannot be joined with the one here",
        object: "functions of the old vDSO that cannot be redirected",
        why: "The program calls the kernel's clock code at a fixed address; on another kernel calls are redirected to its own, if there is room.",
        remedy: "choose a destination with the same kernel",
        kernel: "all";
    TRACKING = 707, "dirty tracking of this kind is not available",
        object: "the back end named by --track",
        why: "Write-protect tracking needs userfaultfd with WP_ASYNC and PAGEMAP_SCAN; soft-dirty bits need CONFIG_MEM_SOFT_DIRTY.",
        remedy: "--track auto",
        kernel: "wp since 6.7; soft-dirty since 3.11";
    SYSTEM_CALL_MISSING = 708, "system call or option not available here",
        object: "its name and the error",
        why: "A filter of the container or a security module forbids it, or the kernel does not have it.",
        remedy: "run outside the container, or allow the call",
        kernel: "all";
}

table! { PRIVILEGE:
    NO_PRIVILEGE = 801, "belongs to another user",
        object: "a task and its user",
        why: "Only root, or the user itself for a program without special rights, may read and stop it.",
        remedy: "run as root (sudo migrate ...)",
        kernel: "all";
    PTRACE_FORBIDDEN = 802, "tracing is forbidden by the system",
        object: "a task and what forbids it: Yama (kernel.yama.ptrace_scope), a security module, a user namespace",
        why: "The tree is stopped and read by ptrace.",
        remedy: "run as root, or sysctl kernel.yama.ptrace_scope=0",
        kernel: "all";
    TRACER_SECCOMP = 803, "this command itself runs under a seccomp filter",
        object: "the migrate command or agent",
        why: "The kernel then refuses to suspend the filters of the target while its state is read.",
        remedy: "run outside the container or sandbox; the agent's unit must not set SystemCallFilter",
        kernel: "all";
    HARD_LIMITS = 804, "resource limit above the one allowed here",
        object: "a limit of a task, its hard value and the one of this command",
        why: "Only CAP_SYS_RESOURCE raises a hard limit.",
        remedy: "run as root with CAP_SYS_RESOURCE, or raise the limit of this session (ulimit -H)",
        kernel: "all";
    LANDLOCK = 805, "confined by Landlock",
        object: "a task that has restricted itself by landlock_restrict_self",
        why: "The rules cannot be read back; restored without them the program would be less confined than before.",
        remedy: "turn the sandbox off in the program's configuration",
        kernel: "since 5.13";
    LSM_LABEL = 806, "security label or profile not available here",
        object: "a task and its SELinux context or AppArmor profile",
        why: "Restored without it the program would be less confined than before.",
        remedy: "load the policy on the destination",
        kernel: "all";
    SET_TID = 807, "process ids cannot be chosen here",
        object: "this command",
        why: "To give a process the id it had needs CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN) in the user namespace that owns the PID namespace.",
        remedy: "run as root, or --pids new where user namespaces are allowed",
        kernel: "CAP_CHECKPOINT_RESTORE since 5.9";
    CREDENTIALS = 808, "users or groups that cannot be given here",
        object: "a task and its user, groups or capabilities",
        why: "Only root may start a program as somebody else.",
        remedy: "run as root",
        kernel: "all";
    NOT_DUMPABLE = 809, "program forbids to be read",
        object: "a task that has set PR_SET_DUMPABLE to 0, or was started from a file its user may not read",
        why: "Its memory is open to root only.",
        remedy: "run as root",
        kernel: "all";
    SECCOMP_FILTER = 810, "seccomp filter cannot be read",
        object: "a task with a filter",
        why: "Reading filters needs CAP_SYS_ADMIN in the first user namespace; restored without it the program would be less confined than before.",
        remedy: "run as root",
        kernel: "CONFIG_CHECKPOINT_RESTORE, since 4.4";
    MAPPED_FILE = 811, "mapped memory that only root can reach",
        object: "a mapping of a memfd, of shared anonymous memory, of a deleted file, or of one that has another name now",
        why: "What has no name is reached through /proc/PID/map_files, which the kernel opens to CAP_CHECKPOINT_RESTORE only.",
        remedy: "run as root",
        kernel: "CAP_CHECKPOINT_RESTORE since 5.9, before CAP_SYS_ADMIN";
}

table! { PEER:
    PEER_UNREACHABLE = 901, "host cannot be reached",
        object: "the destination and the error",
        why: "There was no connection within --connect-timeout.",
        remedy: "try `ssh HOST true`, or check the agent's address and the firewall",
        kernel: "all";
    PEER_VERSION = 902, "other version of migrate over there",
        object: "both versions",
        why: "The two programs know no common protocol.",
        remedy: "install the same version on both hosts, or --bootstrap",
        kernel: "all";
    PEER_MISSING = 903, "no migrate over there",
        object: "the destination and the command that was tried",
        why: "The remote side has to run the same program.",
        remedy: "install it, name it with --remote '/path/migrate', or --bootstrap, which sends this one",
        kernel: "all";
    PEER_AUTH = 904, "authentication failed",
        object: "the destination and the fingerprint",
        why: "The key of one side is not in the peers file of the other, or ssh asks for a password.",
        remedy: "migrate keygen on both hosts and exchange the lines; for ssh: ssh-copy-id",
        kernel: "all";
    PEER_REFUSES = 905, "peer does not allow this",
        object: "the rule in its peers file (only=, user=, max-memory=, then=), or what its agent was told to refuse",
        why: "The administrator of the other host has limited what this one may do.",
        remedy: "ask for a change of its peers file",
        kernel: "all";
    PEER_BUSY = 906, "peer has too many sessions",
        object: "the destination and its --max-sessions",
        why: "An agent takes a limited number of sessions at a time.",
        remedy: "try again later, or raise --max-sessions of the agent",
        kernel: "all";
    PLAIN = 907, "connection would not be protected",
        object: "a tcp+plain destination that is not on loopback",
        why: "Memory holds keys and passwords; anyone on the way could read or change it.",
        remedy: "use tcp:// (TLS) or ssh; --allow-plain if the network is yours alone",
        kernel: "all";
    PEER_PRIVILEGE = 908, "user over there may not restore this",
        object: "the user over there and what is missing",
        why: "Programs of other users, and kept process ids, need root at the destination.",
        remedy: "--remote 'sudo -n migrate', or root@HOST",
        kernel: "all";
    BASE = 909, "image of --base cannot be used",
        object: "the directory over there",
        why: "Pages that it has would be named, not sent: it has to be there, complete and undamaged.",
        remedy: "migrate verify DIR over there; without --base all pages are sent",
        kernel: "all";
    SHARED_NODE = 910, "paths to destinations share a node",
        object: "the address of the node",
        why: "With --disjoint-paths no node may take two of the destinations down with it.",
        remedy: "choose another destination, pin a path with --route DEST=IF, or --disjoint-paths drop or replace",
        kernel: "all";
    PROMOTED = 911, "target was started there",
        object: "the session, and the process over there",
        why: "A person has started a state of the target on that host (migrate promote) while this one was not heard: a switch would have a third one.",
        remedy: "see which of the two is to go on, and end the other; then migrate warm begins anew",
        kernel: "all";
}

table! { SUPERVISOR:
    SUPERVISED = 1101, "service manager would start it again",
        object: "a systemd unit with Restart=, whose main process is in the tree",
        why: "When the program ends here after the move, systemd would start a second one.",
        remedy: "--supervisor hold, which keeps the unit from restarting until the move is over",
        kernel: "all";
    CONTAINER = 1102, "belongs to a container runtime",
        object: "a process in the cgroup of docker, containerd, podman, CRI-O or LXC",
        why: "The runtime watches the process, owns its mounts and network, and would clean up behind it.",
        remedy: "use the runtime's own checkpoint command (podman container checkpoint)",
        kernel: "all";
    WATCHDOG = 1103, "watched by a watchdog",
        object: "a systemd unit with WatchdogSec=, or an open /dev/watchdog",
        why: "A pause longer than the time allowed would have the program killed or the host reset.",
        remedy: "lengthen the time (systemctl edit --runtime UNIT, WatchdogSec=), then try again",
        kernel: "all";
    OTHER_SUPERVISOR = 1104, "started by a supervisor that starts it again",
        object: "a parent such as supervisord, runsv, s6-supervise or monit",
        why: "When the program ends here after the move, the supervisor would start a second one.",
        remedy: "tell the supervisor to let go (sv once, supervisorctl), then --supervisor ignore",
        kernel: "all";
    UNIT_BESIDE = 1105, "a unit runs the same program here",
        object: "a systemd unit of the name that the target's had where it came from",
        why: "A second one would run beside the target, with the same files and ports.",
        remedy: "systemctl stop UNIT, then --supervisor hold; or ignore, if it is another program",
        kernel: "all";
}
