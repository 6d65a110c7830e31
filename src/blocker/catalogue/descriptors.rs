//! M03 descriptors and M04 sockets.

use super::table;

table! { DESCRIPTORS:
    IO_URING = 301, "io_uring instance",
        object: "a descriptor whose link is anon_inode:[io_uring]",
        why: "How a ring was set up and which requests are under way is not fully visible from outside, so that it cannot be made again with certainty.",
        remedy: "turn it off (node: UV_USE_IO_URING=0, mariadb: innodb_use_native_aio=0, or kernel.io_uring_disabled=2)",
        kernel: "since 5.1";
    USERFAULTFD = 302, "userfaultfd",
        object: "a descriptor whose link is anon_inode:[userfaultfd]",
        why: "Which ranges it watches and which faults wait cannot be carried over yet.",
        remedy: "let the program close it, then try again",
        kernel: "all";
    PERF_EVENT = 303, "performance counter",
        object: "a descriptor whose link is anon_inode:[perf_event]",
        why: "Counters belong to CPUs of this host; their setting cannot be read back.",
        remedy: "end the measurement, then try again",
        kernel: "all";
    BPF = 304, "BPF program, map or link",
        object: "a descriptor whose link is anon_inode:bpf-prog, bpf-map, bpf_link or btf",
        why: "Programs are loaded into this kernel and attached to things of this host.",
        remedy: "let the program close it, or start it on the destination",
        kernel: "all";
    FANOTIFY = 305, "fanotify group",
        object: "a descriptor whose link is anon_inode:[fanotify]",
        why: "Permission events that wait for an answer would be lost, and marks refer to mounts of this host.",
        remedy: "let the program close it, then try again",
        kernel: "all";
    KVM = 306, "virtual machine",
        object: "a descriptor of /dev/kvm or anon_inode:kvm-vm, kvm-vcpu",
        why: "The state of the machine is in the kernel and has its own way to move.",
        remedy: "use the migration of the hypervisor (virsh migrate)",
        kernel: "all";
    DEVICE = 307, "device with state of its own",
        object: "a descriptor of a device node that is not one of the plain ones (null, zero, full, random, urandom, tty)",
        why: "What the program has set up in the device is not visible from outside.",
        remedy: "let the program close it, then try again",
        kernel: "all";
    TTY_OUTSIDE = 308, "terminal held outside the tree",
        object: "a pseudo-terminal whose other end a process outside the tree has (sshd, tmux, a terminal window), or a real terminal",
        why: "The window or connection stays here, while the program goes.",
        remedy: "--stdio attach, --stdio null or --stdio log; or take the process at the other end along",
        kernel: "all";
    PIPE_OUTSIDE = 309, "pipe that ends outside the tree",
        object: "a pipe or FIFO whose other end a process outside the tree has; it is named",
        why: "A pipe does not reach across hosts, and what is written by one side would never arrive.",
        remedy: "take the whole pipeline along (name the shell that started it), or --stdio null or --stdio log",
        kernel: "all";
    SECCOMP_LISTENER = 310, "seccomp notification listener",
        object: "a descriptor whose link is anon_inode:seccomp notify",
        why: "It belongs to a filter of another task and cannot be asked for a second time.",
        remedy: "let the supervising program close it, then try again",
        kernel: "since 5.0";
    DMABUF = 311, "buffer shared with a device",
        object: "a descriptor whose link is /dmabuf:, or of a graphics or media device",
        why: "The memory belongs to a device of this host.",
        remedy: "let the program close its window or device, then try again",
        kernel: "all";
    PIDFD_OUTSIDE = 312, "pidfd of a process outside the tree",
        object: "a descriptor whose link is anon_inode:[pidfd] and whose process stays",
        why: "The process it names is not at the destination.",
        remedy: "name the common ancestor as the target",
        kernel: "since 5.3";
    LEASE = 313, "file lease of the original",
        object: "a file with a lease to write (F_SETLEASE), or one that is being broken, which a move within one kernel would open",
        why: "Whoever opens such a file breaks the lease, and its holder, the original, gets a signal that ends most programs.",
        remedy: "let the program release it (Samba: kernel oplocks = no), then try again",
        kernel: "all";
    MESSAGE_QUEUE = 314, "POSIX message queue",
        object: "a descriptor of a file on an mqueue file system",
        why: "Its messages and its notifications are not saved yet.",
        remedy: "let the program empty and close the queue, then try again",
        kernel: "all";
    DESCRIPTOR_UNKNOWN = 315, "descriptor of an unknown kind",
        object: "a descriptor whose link is named",
        why: "What it stands for is not known, so it cannot be made again.",
        remedy: "let the program close it; report its link and fdinfo",
        kernel: "all";
    EPOLL_OUTSIDE = 316, "epoll set watches a file nobody has open",
        object: "an epoll descriptor with an entry whose file was closed here but is still open in a process outside the tree",
        why: "There is no descriptor in the tree through which the entry could be made again.",
        remedy: "name the common ancestor as the target",
        kernel: "all";
    DESCRIPTOR_LIMIT = 317, "descriptor number above the limit here",
        object: "a descriptor number not below fs.nr_open of this host",
        why: "The kernel gives no descriptors above fs.nr_open.",
        remedy: "sysctl fs.nr_open=1048576 (or more) on the destination",
        kernel: "all";
    LANDLOCK_RULESET = 318, "Landlock rule set",
        object: "a descriptor whose link is anon_inode:[landlock-ruleset]",
        why: "The rules in it cannot be read back.",
        remedy: "let the program apply and close it, then try again",
        kernel: "since 5.13";
    INOTIFY_PATH = 319, "watched file cannot be found",
        object: "an inotify watch whose file has no name that leads to it any more",
        why: "A watch is made by a path.",
        remedy: "let the program remove the watch, then try again",
        kernel: "all";
    PIPE_SIZE = 320, "pipe larger than allowed here",
        object: "a pipe that holds more than fs.pipe-max-size, where CAP_SYS_RESOURCE is missing",
        why: "What is in it does not fit into a pipe that can be made here.",
        remedy: "sysctl fs.pipe-max-size=SIZE on the destination",
        kernel: "all";
    PROC_OUTSIDE = 321, "open file in /proc of a process outside the tree",
        object: "a descriptor of /proc/PID/... where PID stays",
        why: "The process it describes is not at the destination.",
        remedy: "name the common ancestor as the target, or let the program close it",
        kernel: "all";
    LOCK_CONFLICT = 322, "file lock held by another process here",
        object: "a lock of the image that a process of the destination holds",
        why: "Two holders of one lock would harm the file.",
        remedy: "end the other process (lslocks lists them), then restore",
        kernel: "all";
    NAMESPACE_OUTSIDE = 323, "descriptor of a namespace outside the tree",
        object: "a descriptor whose link is like net:[4026531840], of a namespace that no task of the tree is in",
        why: "The namespace is not at the destination.",
        remedy: "let the program close it, then try again",
        kernel: "all";
    INOTIFY_EVENTS = 324, "file events that were not read yet",
        object: "an inotify descriptor with events in its queue",
        why: "An event can only be seen by taking it out of the queue, and only what happens to a watched file puts one in: a program that goes on after all would miss those that were taken. It is tried again for a quarter of a second.",
        remedy: "let the program read its events (it may hang, or be stopped), then try again",
        kernel: "all";
    OWNER_OUTSIDE = 325, "signals of a descriptor go to a process outside",
        object: "a descriptor with F_SETOWN to a process or group that is not in the tree",
        why: "The receiver stays here.",
        remedy: "take the receiver along, or let the program name another",
        kernel: "all";
}

table! { SOCKETS:
    UNIX_OUTSIDE = 401, "UNIX socket connected to a process outside",
        object: "a UNIX socket whose peer is not in the tree; the peer's process and path are named",
        why: "The peer stays here and keeps what it knows of the connection.",
        remedy: "--external-unix reconnect|close, or take the peer along",
        kernel: "all";
    PACKET_SOCKET = 402, "packet socket",
        object: "a socket of family AF_PACKET (tcpdump, a DHCP client)",
        why: "It is bound to an interface of this host; rings and filters are not saved yet.",
        remedy: "end the capture, or start the program on the destination",
        kernel: "all";
    NETLINK = 403, "netlink socket in use",
        object: "a netlink socket with unread messages, a dump under way, or of a family that keeps state",
        why: "What the kernel is about to answer belongs to this host.",
        remedy: "try again: an idle one is no hindrance",
        kernel: "all";
    VSOCK = 404, "virtual machine socket",
        object: "a socket of family AF_VSOCK",
        why: "It is a connection to the hypervisor of this host.",
        remedy: "let the program close it, then try again",
        kernel: "all";
    RAW_SOCKET = 405, "raw socket with a filter of messages",
        object: "an IPv6 socket of type SOCK_RAW with ICMP6_FILTER (ping, a router daemon)",
        why: "The filter is not saved yet; without it the program would get what it does not expect.",
        remedy: "let the program close it, then try again",
        kernel: "all";
    SOCKET_FAMILY = 406, "socket of a kind that cannot be saved",
        object: "a socket whose family, type or protocol is named: SCTP, AF_ALG, AF_XDP, Bluetooth, CAN, TIPC, RDS",
        why: "Its state cannot be read back.",
        remedy: "let the program close it, then try again",
        kernel: "all";
    TCP_STATE = 407, "TCP connection that is just being made",
        object: "a TCP socket in state SYN-SENT or SYN-RECEIVED",
        why: "It has no sequence numbers yet that could be carried over.",
        remedy: "try again in a second, or --tcp close",
        kernel: "all";
    TCP_REFUSED = 408, "established TCP connection",
        object: "an established TCP connection; both addresses are named",
        why: "You asked for the refusal by --tcp refuse.",
        remedy: "--tcp keep or --tcp close",
        kernel: "all";
    TCP_ULP = 409, "TCP connection with kernel TLS or MPTCP",
        object: "a TCP socket with an upper-layer protocol, or with several paths",
        why: "Keys and record state in the kernel cannot be read back.",
        remedy: "turn kernel TLS or MPTCP off in the program, or --tcp close",
        kernel: "all";
    TCP_REPAIR = 410, "TCP connections cannot be repaired here",
        object: "this host, where TCP_REPAIR is refused",
        why: "Sequence numbers and queues can be read and set only in repair mode, which needs CAP_NET_ADMIN in the network namespace of the socket.",
        remedy: "run as root, or --tcp close",
        kernel: "since 3.5 with CONFIG_CHECKPOINT_RESTORE";
    ADDRESS_MISSING = 411, "address not on this host",
        object: "the local address of a connection or listener",
        why: "Packets of the peers go to the address; it has to move with the program.",
        remedy: "--move-address IP/LEN@IF, or give the destination the address first, or --tcp close",
        kernel: "all";
    PORT_IN_USE = 412, "port in use here",
        object: "a local address and port, or the path of a UNIX socket whose original stays; the process that has it is named where visible",
        why: "Two sockets cannot have the same address.",
        remedy: "end the other program (ss -ltnp shows it)",
        kernel: "all";
    ACCEPT_QUEUE = 413, "connections that were not accepted yet",
        object: "a listening socket with connections in its queue, after waiting for the program to accept them",
        why: "A connection in the queue has no descriptor through which it could be saved.",
        remedy: "try again when the program accepts, or --tcp close, which resets them",
        kernel: "all";
    SOCKET_FILTER = 414, "socket with a BPF program attached",
        object: "a socket with SO_ATTACH_BPF or a reuse-port program",
        why: "An extended BPF program cannot be read back from a socket; classic filters can and are no hindrance.",
        remedy: "let the program detach it, then try again",
        kernel: "all";
    SOCKET_NETNS = 415, "socket of a network namespace outside the tree",
        object: "a socket made in a network namespace that no task of the tree is in",
        why: "The namespace is not at the destination.",
        remedy: "let the program close it, then try again",
        kernel: "all";
    TCP_SIGNED = 416, "TCP socket with keys for signatures",
        object: "a TCP socket with TCP_MD5SIG or TCP_AO keys (BGP)",
        why: "What it sends without them is dropped by its peer; keys are secrets that an image does not keep.",
        remedy: "end the program, and start it on the destination",
        kernel: "all; a socket that neither listens nor is connected does not show TCP_MD5SIG keys";
    UNIX_QUEUE = 417, "UNIX socket with messages that cannot be read",
        object: "a UNIX socket whose queue holds descriptors of a kind that cannot be saved, or more than is looked at",
        why: "What is in the queue has to arrive, in its order.",
        remedy: "try again when the program has read its messages",
        kernel: "all";
    SAME_NETWORK = 418, "socket that cannot stay while its program moves",
        object: "a socket of a program that moves within one network namespace (a move to this host)",
        why: "Two sockets cannot have one address, so the original's own is taken over; what in it belongs to the original's \
            processes would not be the new tree's.",
        remedy: "try again when its messages are read, or dump and restore instead",
        kernel: "all";
    TCP_URGENT = 419, "urgent data in a TCP connection",
        object: "a TCP connection with an urgent byte (MSG_OOB) that was not read, or whose mark is not behind it yet",
        why: "No call makes the mark of urgent data in another socket, and without it the program would take the byte for an ordinary one, or miss the place where it was. It is tried again for a quarter of a second.",
        remedy: "let the program read what has come, past the urgent byte, then try again; or --tcp close",
        kernel: "all";
    INTERFACE_MISSING = 420, "network interface not on this host",
        object: "an interface that a socket is bound to or sends on (SO_BINDTODEVICE, IP_UNICAST_IF, IPV6_UNICAST_IF, IPV6_MULTICAST_IF)",
        why: "On any other interface its packets would go elsewhere.",
        remedy: "give the destination an interface of that name (ip link set IF name NAME), or take another destination",
        kernel: "all";
    ADDRESS_OF_SEVERAL = 421, "address that each of several destinations would answer for",
        object: "an address that moves with the target (--move-address), at one of several destinations",
        why: "Whoever is ready to run the target has the address already, and only one of them will run it. Until then neighbours that ask for it must not be answered, which takes nf_tables.",
        remedy: "load nf_tables at the destination (families arp and ip6), or move to one destination",
        kernel: "since 3.14 with CONFIG_NF_TABLES_ARP, CONFIG_NF_TABLES_IPV6";
}
