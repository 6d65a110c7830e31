//! The scripts of targets that cannot be saved, and the codes that nobody provokes.

/// What stands in the way of saving a target: code, script, what its object has to contain, further options.
pub type Saved = (&'static str, &'static str, &'static str, &'static [&'static str]);

pub const SAVED: &[Saved] = &[
    (
        "TRACED",
        "
apart()
target = os.getpid()
if os.fork():
    beat()
call(101, 0x4206, target, 0, 0)
time.sleep(1000)",
        "pid ",
        &[],
    ),
    (
        "LEADER_EXITED",
        "
threading.Thread(target=beat).start()
while not os.path.exists(path('pid')): time.sleep(0.01)
libc.syscall(60, 0)",
        "pid ",
        &[],
    ),
    (
        "SHARES_OUTSIDE",
        "
def child(_):
    beat()
stack = ctypes.create_string_buffer(1 << 20)
entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(child)
top = ctypes.c_void_p((ctypes.addressof(stack) + (1 << 20)) & ~15)
if libc.clone(entry, top, 0x400 | 17, None) < 0: unavailable('clone')
time.sleep(1000)",
        "pid ",
        &[],
    ),
    (
        "SHARED_OUTSIDE",
        "
m = mmap.mmap(-1, 4096); m[0] = 1
apart()
beat()",
        "pid ",
        &[],
    ),
    (
        "SYSV_OUTSIDE",
        "
segment = call(29, 0, 4096, 0o1600)
libc.shmat.restype = ctypes.c_void_p
if libc.shmat(segment, None, 0) in (None, 2**64 - 1): unavailable('shmat')
call(31, segment, 0, 0)
apart()
beat()",
        "pid ",
        &[],
    ),
    (
        "MEMORY_UFFD",
        "
fd = call(323, 0x80000)
fcntl.ioctl(fd, 0xc018aa3f, struct.pack('=QQQ', 0xaa, 0, 0))
at = libc.mmap(None, 4096, 3, 0x22, -1, 0)
fcntl.ioctl(fd, 0xc020aa00, struct.pack('=QQQQ', at, 4096, 1, 0))
beat()",
        "pid ",
        &[],
    ),
    ("USERFAULTFD", "call(323, 0x80000)\nbeat()", "userfaultfd", &[]),
    (
        "MEMFD_SECRET",
        "
fd = call(447, 0)
os.ftruncate(fd, 4096)
if libc.mmap(None, 4096, 3, 1, fd, 0) in (None, 2**64 - 1): unavailable('no secret memory')
beat()",
        "secretmem",
        &[],
    ),
    (
        "AIO_CONTEXT",
        "
context = ctypes.c_ulong(0)
call(206, 8, ctypes.byref(context))
beat()",
        "aio",
        &[],
    ),
    (
        "IO_URING",
        "
call(425, 4, (ctypes.c_char * 120)())
beat()",
        "io_uring",
        &[],
    ),
    (
        "PERF_EVENT",
        "
attr = bytearray(128)
attr[0:4], attr[4:8] = struct.pack('=I', 1), struct.pack('=I', 128)
call(298, (ctypes.c_char * 128).from_buffer(attr), 0, -1, -1, 0)
beat()",
        "perf_event",
        &[],
    ),
    (
        "BPF",
        "
attr = (ctypes.c_char * 128).from_buffer(bytearray(struct.pack('=IIII', 2, 4, 8, 1).ljust(128, b'\\0')))
call(321, 0, attr, 72)
beat()",
        "bpf",
        &[],
    ),
    ("FANOTIFY", "call(300, 0, 0)\nbeat()", "fanotify", &[]),
    (
        "KVM",
        "
try: fd = os.open('/dev/kvm', os.O_RDWR)
except OSError as error: unavailable(error)
beat()",
        "/dev/kvm",
        &[],
    ),
    (
        "DEVICE",
        "
devices = [name for name in ('/dev/net/tun', '/dev/fuse', '/dev/loop-control', '/dev/mem') if os.path.exists(name)]
try: fd = os.open(devices[0], os.O_RDWR)
except (OSError, IndexError) as error: unavailable(error)
beat()",
        "/dev/",
        &[],
    ),
    (
        "TTY_OUTSIDE",
        "
master, slave = os.openpty()
if os.fork(): time.sleep(1000)
os.close(master)
beat()",
        "fd ",
        &[],
    ),
    (
        "PIPE_OUTSIDE",
        "
r, w = os.pipe()
if os.fork(): time.sleep(1000)
os.close(w)
beat()",
        "pipe:",
        &[],
    ),
    (
        "SECCOMP_LISTENER",
        "
allow = (ctypes.c_char * 8).from_buffer(bytearray(struct.pack('=HBBI', 6, 0, 0, 0x7fff0000)))
class Program(ctypes.Structure): _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
call(317, 1, 8, ctypes.byref(Program(1, ctypes.addressof(allow))))
beat()",
        "seccomp",
        &[],
    ),
    ("PIDFD_OUTSIDE", "apart()\nfd = os.pidfd_open(os.getppid())\nbeat()", "pidfd", &[]),
    (
        "MESSAGE_QUEUE",
        "
name = 'migrate-%d' % os.getpid()
call(240, name.encode(), os.O_CREAT | os.O_RDWR, 0o600, None)
call(241, name.encode())
beat()",
        "fd ",
        &[],
    ),
    ("DESCRIPTOR_UNKNOWN", "call(447, 0)\nbeat()", "secretmem", &[]),
    (
        "EPOLL_OUTSIDE",
        "
import select
fd = call(290, 0, 0)
if os.fork(): time.sleep(1000)
epoll = select.epoll()
epoll.register(fd, select.EPOLLIN)
os.close(fd)
beat()",
        "eventpoll",
        &[],
    ),
    (
        "LANDLOCK_RULESET",
        "
attr = (ctypes.c_char * 8).from_buffer(bytearray(struct.pack('=Q', 1)))
call(444, attr, 8, 0)
beat()",
        "landlock",
        &[],
    ),
    (
        "INOTIFY_PATH",
        "
fd = call(294, 0)
held = open(path('watched'), 'w')
call(254, fd, path('watched').encode(), 1)
os.unlink(path('watched'))
beat()",
        "inotify",
        &[],
    ),
    (
        "INOTIFY_EVENTS",
        "
fd = call(294, 0)
call(254, fd, home.encode(), 0x100)
open(path('made'), 'w').close()
beat()",
        "inotify",
        &[],
    ),
    ("PROC_OUTSIDE", "apart()\nfd = os.open('/proc/%d/stat' % os.getppid(), os.O_RDONLY)\nbeat()", "/stat", &[]),
    (
        "NAMESPACE_OUTSIDE",
        "
r, w = os.pipe()
other = os.fork()
if other == 0:
    call(272, 0x04000000)
    os.close(r); os.close(w)
    time.sleep(1000)
os.close(w)
os.read(r, 1)
os.close(r)
if os.fork(): time.sleep(1000)
fd = os.open('/proc/%d/ns/uts' % other, os.O_RDONLY)
beat()",
        "uts:",
        &[],
    ),
    (
        "OWNER_OUTSIDE",
        "
r, w = os.pipe()
if os.fork(): time.sleep(1000)
s, t = socket.socketpair()
os.close(r); os.close(w)
fcntl.fcntl(s, fcntl.F_SETOWN, os.getppid())
beat()",
        "fd ",
        &[],
    ),
    (
        "UNIX_OUTSIDE",
        "
s, t = socket.socketpair()
if os.fork(): time.sleep(1000)
t.close()
beat()",
        "socket:",
        &[],
    ),
    ("PACKET_SOCKET", "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)\nbeat()", "socket:", &[]),
    ("NETLINK", "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)\nbeat()", "socket:", &[]),
    (
        "VSOCK",
        "
try: s = socket.socket(40, socket.SOCK_STREAM)
except OSError as error: unavailable(error)
beat()",
        "socket:",
        &[],
    ),
    (
        "RAW_SOCKET",
        "
try: s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
except OSError as error: unavailable(error)
s.setsockopt(58, 1, bytes([255] * 32))
beat()",
        "socket:",
        &[],
    ),
    (
        "SOCKET_FAMILY",
        "
def made(family, kind):
    try: return socket.socket(family, kind)
    except OSError: return None
made = [s for s in (made(38, 5), made(15, 3), made(30, 1), made(29, 3), made(42, 2), made(43, 1), made(44, 3), made(31, 3)) if s]
if not made: unavailable('no socket of an unusual kind')
beat()",
        "socket:",
        &[],
    ),
    (
        "TCP_REFUSED",
        "
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
s, _ = server.accept()
beat()",
        "",
        &["--tcp", "refuse"],
    ),
    (
        "TCP_URGENT",
        "
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
s, _ = server.accept()
client.send(b'x', socket.MSG_OOB)
beat()",
        "",
        &[],
    ),
    (
        "TCP_ULP",
        "
try: s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
except OSError as error: unavailable(error)
beat()",
        "",
        &[],
    ),
    (
        "TCP_SIGNED",
        "
server = socket.create_server(('127.0.0.1', 0))
key = struct.pack('=HH4s', socket.AF_INET, 0, bytes([127, 0, 0, 2])).ljust(128, b'\\0')
try: server.setsockopt(socket.IPPROTO_TCP, 14, key + struct.pack('=BBHi', 0, 0, 3, 0) + b'key'.ljust(80, b'\\0'))
except OSError as error: unavailable(error)
beat()",
        "socket:",
        &[],
    ),
    (
        "ACCEPT_QUEUE",
        "
server = socket.create_server(('127.0.0.1', 0))
if os.fork():
    client = socket.create_connection(server.getsockname())
    server.close()
    time.sleep(1000)
time.sleep(0.2)
beat()",
        "",
        &[],
    ),
    (
        "SOCKET_FILTER",
        "
text = bytearray(struct.pack('=BBhiBBhi', 0xb7, 0, 0, 0, 0x95, 0, 0, 0))
text, licence = (ctypes.c_char * 16).from_buffer(text), ctypes.create_string_buffer(b'GPL')
attr = struct.pack('=IIQQ', 1, 2, ctypes.addressof(text), ctypes.addressof(licence)).ljust(128, b'\\0')
program = call(321, 5, (ctypes.c_char * 128).from_buffer(bytearray(attr)), 72)
s, t = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 50, program)
os.close(program)
beat()",
        "socket",
        &[],
    ),
    (
        "SOCKET_NETNS",
        "
own = os.open('/proc/self/ns/net', os.O_RDONLY)
call(272, 0x40000000)
s = socket.socket()
call(308, own, 0)
os.close(own)
beat()",
        "socket",
        &[],
    ),
    (
        "GHOST_SIZE",
        "
fd = os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR)
try: os.posix_fallocate(fd, 0, (1 << 30) + (1 << 20))
except OSError as error: unavailable(error)
beat()",
        "fd ",
        &[],
    ),
    (
        "DIRECTORY_REMOVED",
        "
os.mkdir(path('gone'))
held, out = os.open(home, os.O_RDONLY), os.open(path('beat'), os.O_WRONLY | os.O_CREAT)
os.chroot(path('gone'))
os.rmdir('gone', dir_fd=held)
file = os.open('new', os.O_WRONLY | os.O_CREAT, dir_fd=held)
os.write(file, b'%d' % os.getpid())
os.close(file)
os.rename('new', 'pid', src_dir_fd=held, dst_dir_fd=held)
os.close(held)
n = 0
while True:
    n += 1
    os.pwrite(out, b'%12d' % n, 0)
    time.sleep(0.005)",
        "root directory",
        &[],
    ),
    (
        "FILE_HIDDEN",
        "
os.mknod(path('node'), 0o20600, os.makedev(1, 3))
try: fd = os.open(path('node'), os.O_RDWR)
except OSError as error: unavailable(error)
os.unlink(path('node'))
beat()",
        "node",
        &[],
    ),
    (
        "MEMORY_DEVICE",
        "
try: fd = os.open('/dev/mem', os.O_RDONLY)
except OSError as error: unavailable(error)
if libc.mmap(None, 4096, 1, 1, fd, 0xf0000) in (None, 2**64 - 1): unavailable('memory of the machine cannot be mapped')
os.close(fd)
beat()",
        "/dev/mem",
        &[],
    ),
    ("NAMESPACE_KIND", "call(272, 0x08000000)\nbeat()", "pid ", &[]),
    ("NETNS_OUTSIDE", "call(272, 0x40000000)\napart()\nbeat()", "pid ", &[]),
    ("USERNS_NESTED", "call(272, 0x10000000)\nopen('/proc/self/uid_map', 'w').write('0 0 1')\nopen('/proc/self/setgroups', 'w').write('deny')\nopen('/proc/self/gid_map', 'w').write('0 0 1')\ncall(272, 0x10000000)\nbeat()", "pid ", &[]),
];

/// Codes that are not provoked here, and why.
pub const NOT_HERE: &[(&str, &str)] = &[
    ("DOES_NOT_STOP", "takes a task that no signal wakes; tests/it/choices.rs and criu-compat have a vfork(2)"),
    ("KEEPS_FORKING", "takes a machine too busy to stop a tree within 100 ms; src/trace/freeze.rs"),
    ("TASK_32BIT", "takes a kernel and a compiler for 32-bit programs; src/collect/preflight"),
    ("SHADOW_STACK", "takes a processor and a kernel with shadow stacks; src/collect/preflight/memory.rs"),
    ("SESSION_OUTSIDE", "not in use"),
    ("PID_ABOVE_MAX", "takes another host, or a limit of this one to be lowered; src/restore/limits.rs"),
    ("SCHEDULING", "takes another host; src/restore/limits.rs"),
    ("NUMA_NODE", "takes another host; src/restore/numa.rs"),
    ("HUGETLB_SHORT", "takes another host; src/restore/limits.rs"),
    ("UPROBES", "takes a probe in somebody's program; src/collect/preflight/memory.rs"),
    ("MEMORY_SHORT", "tests/it/other_end.rs"),
    ("MEMORY_LOCK", "takes another host; src/restore/limits.rs"),
    ("PROTECTION_KEYS", "takes another processor; src/restore/limits.rs"),
    ("ADDRESS_SPACE", "takes another processor; src/restore/limits.rs"),
    ("MEMORY_UNKNOWN", "takes a newer kernel; src/collect/preflight/memory.rs"),
    ("DMABUF", "takes a graphics device; src/collect/fd/classify.rs"),
    ("DESCRIPTOR_LIMIT", "takes another host; src/restore/limits.rs"),
    ("PIPE_SIZE", "takes another host; src/restore/limits.rs"),
    ("LEASE", "takes a move; tests/it/refusals.rs"),
    ("TCP_STATE", "lasts for a moment of a handshake; src/collect/fd/tcp.rs"),
    ("UNIX_QUEUE", "takes more messages than are looked at; src/collect/fd/unix.rs"),
    ("ADDRESS_MISSING", "src/restore/preflight.rs, and tests/it/networks.rs with addresses that move"),
    ("INTERFACE_MISSING", "takes another host; src/restore/preflight.rs"),
    ("ADDRESS_OF_SEVERAL", "takes a kernel without nf_tables; src/ops/network.rs"),
    ("SAME_NETWORK", "tests/it/same_network.rs"),
    ("MOUNT_OUTSIDE", "tests/it/confined.rs and src/collect/ns, with mounts of all kinds"),
    ("FILE_SPACE", "takes a full disk; src/files"),
    ("FILE_PLACE", "tests/it/files.rs"),
    ("PIDNS_NESTED", "not in use"),
    ("PROMOTED", "tests/it/standby.rs"),
    ("CLOCK_BACK", "takes another host without time namespaces; src/restore/clock.rs"),
    ("NAMESPACE_LIMIT", "takes a host that allows no namespaces; src/kernel"),
    ("CGROUP_ACCESS", "a probe of `migrate check`; src/kernel"),
    ("IPC_OBJECTS", "not in use"),
    ("MOUNT_KIND", "src/collect/ns/table.rs, with mounts of all kinds"),
    ("CPU_FEATURES", "tests/it/other_end.rs"),
    ("XSTATE", "takes another processor; src/restore/preflight.rs"),
    ("ARCHITECTURE", "takes another processor; src/image/manifest.rs"),
    ("VDSO", "takes another kernel; src/restore/vdso.rs"),
    ("TRACKING", "tests/it/rounds.rs, with back ends that are masked"),
    ("TRACER_SECCOMP", "takes this command in a filter; src/kernel"),
    ("HARD_LIMITS", "a probe of `migrate check`; src/kernel"),
    ("LANDLOCK", "not in use"),
    ("LSM_LABEL", "takes SELinux or AppArmor; src/collect/preflight/tasks.rs"),
    ("SET_TID", "tests/it/ordinary.rs"),
    ("CREDENTIALS", "tests/it/ordinary.rs"),
    ("SECCOMP_FILTER", "takes a kernel that reads no filters; src/collect/preflight/tasks.rs"),
    ("MAPPED_FILE", "tests/it/ordinary.rs"),
    ("PEER_VERSION", "takes another version; src/transport"),
    ("PEER_MISSING", "tests/it/ssh.rs"),
    ("PEER_AUTH", "src/transport/link_tests.rs"),
    ("PEER_REFUSES", "tests/it/agent.rs, with --max-memory"),
    ("PEER_BUSY", "tests/it/agent.rs, with --max-sessions"),
    ("PEER_PRIVILEGE", "not in use"),
    ("BASE", "tests/it/ahead.rs"),
    ("SHARED_NODE", "tests/it/paths.rs, with routers"),
    ("PARENT_OTHER", "not in use"),
    ("SUPERVISED", "tests/it/supervisors.rs"),
    ("CONTAINER", "takes a container; src/ops/supervisor.rs"),
    ("WATCHDOG", "takes a service manager; src/ops/supervisor.rs"),
    ("OTHER_SUPERVISOR", "takes a supervisor; src/ops/supervisor.rs"),
    ("UNIT_BESIDE", "tests/it/supervisors.rs"),
];
