//! Every code of the catalogue: provoked with a real target, or listed with the reason why not.
//!
//! A refused target runs on, and every blocker names its object, says why, and what to do.

use crate::cli::{events, migrate};
use crate::networks::Killed;
use migrate_engine::blocker::entries;
use migrate_engine::image::manifest::Manifest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What every script begins with. The target is whoever calls `beat`; it counts in a file as long as it runs.
const PRELUDE: &str = "
import array, ctypes, fcntl, mmap, os, signal, socket, struct, sys, tempfile, threading, time
os.closerange(3, 1024)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
home = sys.argv[1]
def path(name): return home + '/' + name
def unavailable(why):
    open(path('new'), 'w').write(str(why))
    os.rename(path('new'), path('unavailable'))
    os._exit(0)
def call(number, *args):
    got = libc.syscall(number, *args)
    if got < 0: unavailable('system call %d: %s' % (number, os.strerror(ctypes.get_errno())))
    return got
def beat():
    out = os.open(path('beat'), os.O_WRONLY | os.O_CREAT)
    os.pwrite(out, b'%12d' % 0, 0)
    open(path('new'), 'w').write(str(os.getpid()))
    os.rename(path('new'), path('pid'))
    n = 0
    while True:
        n += 1
        os.pwrite(out, b'%12d' % n, 0)
        time.sleep(0.005)
def apart():
    'The child goes on as the target, the parent stays outside.'
    if os.fork(): time.sleep(1000)
";

/// What stands in the way of saving a target: code, script, what its object has to contain, further options.
type Saved = (&'static str, &'static str, &'static str, &'static [&'static str]);

const SAVED: &[Saved] = &[
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
    ("RAW_SOCKET", "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nbeat()", "socket:", &[]),
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
    ("NAMESPACE_KIND", "call(272, 0x08000000)\nbeat()", "pid ", &[]),
    ("NETNS_OUTSIDE", "call(272, 0x40000000)\napart()\nbeat()", "pid ", &[]),
    ("USERNS_NESTED", "call(272, 0x10000000)\nopen('/proc/self/uid_map', 'w').write('0 0 1')\nopen('/proc/self/setgroups', 'w').write('deny')\nopen('/proc/self/gid_map', 'w').write('0 0 1')\ncall(272, 0x10000000)\nbeat()", "pid ", &[]),
];

/// What stands in the way of restoring [`RESTORABLE`] here, and what is to be done to have it so.
const RESTORED: &[&str] = &[
    "PID_IN_USE",
    "PORT_IN_USE",
    "LOCK_CONFLICT",
    "FILE_MISSING",
    "FILE_CHANGED",
    "FILE_ACCESS",
    "CODE_DIFFERS",
    "IMAGE_TRUST",
    "IMAGE_INCOMPLETE",
    "IMAGE_DAMAGED",
    "IMAGE_VERSION",
    "PARENT_MISSING",
    "IMAGE_EXISTS",
    "DIRECTORY_USED",
];

/// What is said of a target, or of a peer, without any script.
const ASKED: &[&str] = &[
    "OWN_ANCESTOR",
    "KERNEL_THREAD",
    "PEER_UNREACHABLE",
    "PLAIN",
    "NO_PRIVILEGE",
    "NOT_DUMPABLE",
    "CGROUP_FROZEN",
    "CGROUP_MISSING",
];

/// Codes that are not provoked here, and why.
const NOT_HERE: &[(&str, &str)] = &[
    ("DOES_NOT_STOP", "takes a task that no signal wakes; tests/it/choices.rs and criu-compat have a vfork(2)"),
    ("KEEPS_FORKING", "takes a machine too busy to stop a tree within 100 ms; src/trace/freeze.rs"),
    ("TASK_32BIT", "takes a kernel and a compiler for 32-bit programs; src/collect/preflight"),
    ("SHADOW_STACK", "takes a processor and a kernel with shadow stacks; src/collect/preflight/memory.rs"),
    ("SESSION_OUTSIDE", "not in use"),
    ("PID_ABOVE_MAX", "takes another host, or a limit of this one to be lowered; src/restore/limits.rs"),
    ("SCHEDULING", "takes another host; src/restore/limits.rs"),
    ("MEMORY_DEVICE", "takes a device with memory; src/collect/preflight/memory.rs"),
    ("HUGETLB_SHORT", "takes another host; src/restore/limits.rs"),
    ("UPROBES", "takes a probe in somebody's program; src/collect/preflight/memory.rs"),
    ("MEMORY_SHORT", "takes a host without memory"),
    ("MEMORY_LOCK", "takes another host; src/restore/limits.rs"),
    ("PROTECTION_KEYS", "takes another processor; src/restore/limits.rs"),
    ("ADDRESS_SPACE", "takes another processor; src/restore/limits.rs"),
    ("MEMORY_UNKNOWN", "takes a newer kernel; src/collect/preflight/memory.rs"),
    ("DMABUF", "takes a graphics device; src/collect/fd/classify.rs"),
    ("DESCRIPTOR_LIMIT", "takes another host; src/restore/limits.rs"),
    ("PIPE_SIZE", "takes another host; src/restore/limits.rs"),
    ("LEASE", "not in use"),
    ("TCP_STATE", "lasts for a moment of a handshake; src/collect/fd/tcp.rs"),
    ("UNIX_QUEUE", "takes more messages than are looked at; src/collect/fd/unix.rs"),
    ("TCP_REPAIR", "takes a user with half of root's rights; src/restore/preflight.rs"),
    ("ADDRESS_MISSING", "src/restore/preflight.rs, and tests/it/networks.rs with addresses that move"),
    ("TCP_SIGNED", "not in use"),
    ("SAME_NETWORK", "tests/it/same_network.rs"),
    ("DISK_SPACE", "takes a full disk; src/ops/verify.rs"),
    ("FILE_HIDDEN", "tests/it/zoo, with mounts over a file"),
    ("MOUNT_OUTSIDE", "tests/it/confined.rs and src/collect/ns, with mounts of all kinds"),
    ("FILE_SPACE", "takes a full disk; src/files"),
    ("FILE_PLACE", "tests/it/files.rs"),
    ("PIDNS_NESTED", "not in use"),
    ("CLOCK_BACK", "takes another host without time namespaces; src/restore/clock.rs"),
    ("NAMESPACE_LIMIT", "takes a host that allows no namespaces; src/kernel"),
    ("CGROUP_ACCESS", "a probe of `migrate check`; src/kernel"),
    ("IPC_OBJECTS", "not in use"),
    ("MOUNT_KIND", "src/collect/ns/table.rs, with mounts of all kinds"),
    ("CPU_FEATURES", "takes another processor; tests/it/zoo/other_kernel.rs"),
    ("XSTATE", "takes another processor; src/restore/preflight.rs"),
    ("ARCHITECTURE", "takes another processor; src/image/manifest.rs"),
    ("KERNEL_OLD", "a probe of `migrate check`; src/kernel"),
    ("KERNEL_OPTION", "a probe of `migrate check`; src/kernel"),
    ("VDSO", "takes another kernel; src/restore/vdso.rs"),
    ("TRACKING", "tests/it/rounds.rs, with back ends that are masked"),
    ("SYSTEM_CALL_MISSING", "a probe of `migrate check`; src/kernel"),
    ("PTRACE_FORBIDDEN", "takes Yama or another security module"),
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
    ("PARENT_OTHER", "not in use"),
    ("SUPERVISED", "tests/it/supervisors.rs"),
    ("CONTAINER", "takes a container; src/ops/supervisor.rs"),
    ("WATCHDOG", "takes a service manager; src/ops/supervisor.rs"),
    ("OTHER_SUPERVISOR", "takes a supervisor; src/ops/supervisor.rs"),
    ("UNIT_BESIDE", "tests/it/supervisors.rs"),
];

/// A target made of a script, with all that it has started.
struct Target {
    dir: tempfile::TempDir,
    group: Killed,
}

impl Target {
    /// The reason, where the kernel or the machine does not have what it takes.
    fn start(script: &str, user: Option<u32>) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), user, None).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", &format!("{PRELUDE}{}", script.trim_start())]).arg(dir.path()).process_group(0);
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("errors")).unwrap());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let target = Self { group: Killed(command.spawn().unwrap()), dir };
        let until = Instant::now() + Duration::from_secs(30);
        while !target.path("pid").exists() {
            if let Ok(reason) = fs::read_to_string(target.path("unavailable")) {
                return Err(reason);
            }
            let errors = fs::read_to_string(target.path("errors")).unwrap_or_default();
            assert!(Instant::now() < until && errors.is_empty(), "the target does not get ready: {errors}{script}");
            std::thread::sleep(Duration::from_millis(2));
        }
        target.goes_on();
        Ok(target)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self) -> String {
        fs::read_to_string(self.path("pid")).unwrap()
    }

    fn goes_on(&self) {
        let beats = || fs::read_to_string(self.path("beat")).unwrap_or_default();
        let (before, until) = (beats(), Instant::now() + Duration::from_secs(30));
        while beats() == before {
            assert!(Instant::now() < until, "it does not go on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.group.0.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::SIGKILL);
        let _ = self.group.0.wait();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.end();
    }
}

/// What was said: codes, each with its object, or with what has failed.
fn said(output: &Output) -> BTreeMap<String, Vec<String>> {
    let result = events(output).pop().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for blocker in result["blockers"].as_array().into_iter().flatten() {
        for field in ["object", "reason", "remedy"] {
            assert!(!text(&blocker[field]).is_empty(), "{field} of {blocker}");
        }
        found.entry(text(&blocker["code"])).or_default().push(text(&blocker["object"]));
    }
    let failure = &result["failure"];
    if let Some(code) = failure["code"].as_str() {
        assert!(!text(&failure["what"]).is_empty(), "{failure}");
        found.entry(code.to_owned()).or_default().push(text(&failure["what"]));
    }
    found
}

fn code(name: &str) -> String {
    entries().find(|entry| entry.name == name).unwrap_or_else(|| panic!("no code is called {name}")).code.to_string()
}

fn names(output: &Output, name: &str, object: &str) {
    let found = said(output);
    let objects = found
        .get(&code(name))
        .unwrap_or_else(|| panic!("{name} is not said: {found:?} {}", events(output).pop().unwrap()["failure"]));
    assert!(objects.iter().any(|text| text.contains(object)), "{name} does not name {object:?}: {objects:?}");
    assert!(matches!(output.status.code(), Some(1 | 2 | 3 | 5 | 7)), "{:?} after {name}", output.status);
}

/// Whether it can be tried; said where it cannot.
fn can() -> bool {
    let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
    if !root || !python {
        crate::skip!("codes: needs root ({root}) and /usr/bin/python3 ({python})");
    }
    root && python
}

#[test]
fn every_code_is_provoked_or_has_a_reason_why_not() {
    let provoked = SAVED.iter().map(|(name, ..)| *name).chain(RESTORED.iter().chain(ASKED).copied());
    let mut known = BTreeSet::new();
    let count = provoked.clone().count();
    for name in provoked.chain(NOT_HERE.iter().map(|(name, _)| *name)) {
        assert!(known.insert(name), "{name} is listed twice");
    }
    let all: BTreeSet<&str> = entries().map(|entry| entry.name).collect();
    let missing: Vec<_> = all.difference(&known).collect();
    let unknown: Vec<_> = known.difference(&all).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "in no list: {missing:?}; no codes: {unknown:?}");
    assert!(NOT_HERE.iter().all(|(_, reason)| !reason.is_empty()));
    println!("{count} of {} codes are provoked", all.len());
}

#[test]
fn what_cannot_be_saved_is_refused_and_runs_on() {
    if !can() {
        return;
    }
    let (mut provoked, mut wrong) = (0, Vec::new());
    for (name, script, object, options) in SAVED {
        let target = match Target::start(script, None) {
            Ok(target) => target,
            Err(reason) => {
                crate::skip!("{name}: {reason}");
                continue;
            }
        };
        let (pid, image) = (target.pid(), target.path("image"));
        let mut args = vec!["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running", "--json"];
        args.extend(*options);
        let output = migrate(&args).output().unwrap();
        let found = said(&output);
        let named = found.get(&code(name)).is_some_and(|objects| objects.iter().any(|text| text.contains(object)));
        if !named || output.status.code() != Some(3) || image.exists() {
            wrong.push(format!("{name} ({}): {:?}, {found:?}", code(name), output.status.code()));
        }
        target.goes_on();
        provoked += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{provoked} of {} kinds were refused", SAVED.len());
}

/// Has files of each kind, a lock and a port.
const RESTORABLE: &str = "
os.mkdir(path('sub'))
def made(name):
    open(path(name), 'w').write(name * 1000)
    return os.open(path(name), os.O_RDONLY)
data, code, lock, deep = made('data'), made('code'), made('lock'), made('sub/deep')
mapped = libc.mmap(None, 4096, 5, 2, code, 0)
os.close(code)
fcntl.flock(lock, fcntl.LOCK_EX)
server = socket.create_server(('127.0.0.1', 0))
open(path('port'), 'w').write(str(server.getsockname()[1]))
beat()";

#[test]
fn what_cannot_be_restored_is_said_before_anything_is_made() {
    if !can() {
        return;
    }
    let mut target = Target::start(RESTORABLE, None).unwrap();
    let (pid, path) = (target.pid(), |name: &str| target.path(name).to_str().unwrap().to_owned());
    let (first, child, image, port) =
        (path("first"), path("child"), path("image"), fs::read_to_string(path("port")).unwrap());
    let run = |args: &[&str]| migrate(args).arg("--json").output().unwrap();
    for args in [
        &["dump", &pid, "-D", &first, "--leave-running"][..],
        &["dump", &pid, "-D", &child, "--parent", &first, "--leave-running"],
    ] {
        assert!(run(args).status.success(), "{args:?}");
    }
    let of = |image: &str, options: &[&str]| run(&[&["restore", "-D", image, "--dry-run"], options].concat());
    // While the original runs.
    names(&of(&first, &["--pids", "same"]), "PID_IN_USE", &pid);
    names(&of(&first, &["--pids", "new"]), "PORT_IN_USE", &port);
    names(&of(&first, &["--pids", "new"]), "LOCK_CONFLICT", &path("lock"));
    names(&run(&["dump", &pid, "-D", &first, "--leave-running"]), "IMAGE_EXISTS", &first);
    fs::create_dir(path("other")).unwrap();
    fs::write(path("other/file"), "").unwrap();
    names(&run(&["dump", &pid, "-D", &path("other"), "--leave-running", "--force"]), "DIRECTORY_USED", "other");
    target.goes_on();
    assert!(run(&["dump", &pid, "-D", &image]).status.success());
    let home = target.dir.path().to_owned();
    target.end();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let restore = |options: &[&str]| of(&image, options);
    // Each in turn, and back.
    let away = path("away");
    let (swap, back) = (
        |name: &str| fs::rename(path(name), &away).unwrap(),
        |name: &str| {
            let _ = fs::remove_file(path(name));
            fs::rename(&away, path(name)).unwrap();
        },
    );
    assert!(restore(&[]).status.success(), "nothing is in the way of {pid}: {:?}", said(&restore(&[])));
    swap("data");
    names(&restore(&[]), "FILE_MISSING", &path("data"));
    fs::write(path("data"), "another").unwrap();
    names(&restore(&[]), "FILE_CHANGED", &path("data"));
    back("data");
    swap("code");
    fs::write(path("code"), "another").unwrap();
    names(&restore(&[]), "CODE_DIFFERS", &path("code"));
    back("code");
    swap("sub");
    std::os::unix::fs::symlink("sub", path("sub")).unwrap();
    names(&restore(&[]), "FILE_ACCESS", &path("sub"));
    back("sub");
    let mode = |mode| fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o777);
    names(&restore(&[]), "IMAGE_TRUST", &image);
    mode(0o700);
    swap("first");
    names(&run(&["verify", &child]), "PARENT_MISSING", &child);
    back("first");
    swap("image/manifest.json");
    names(&restore(&[]), "IMAGE_INCOMPLETE", &image);
    let text = fs::read_to_string(&away).unwrap();
    let (mut manifest, _) = Manifest::decode(text.as_bytes()).unwrap();
    manifest.version = 9999;
    fs::write(path("image/manifest.json"), manifest.encode().unwrap().0).unwrap();
    names(&restore(&[]), "IMAGE_VERSION", &image);
    back("image/manifest.json");
    let mut model = fs::read(path("image/model.bin")).unwrap();
    let middle = model.len() / 2;
    model[middle] ^= 0x55;
    fs::write(path("image/model.bin"), model).unwrap();
    names(&restore(&[]), "IMAGE_DAMAGED", &image);
}

#[test]
fn who_may_not_be_asked_is_named() {
    if !can() {
        return;
    }
    let run = |args: &[&str]| migrate(args).arg("--json").output().unwrap();
    let own = std::process::id().to_string();
    names(&run(&["check", &own]), "OWN_ANCESTOR", &own);
    match fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        true => names(&run(&["check", "2"]), "KERNEL_THREAD", "pid 2"),
        false => crate::skip!("KERNEL_THREAD: no thread of the kernel is to be seen here"),
    }
    names(&run(&["check", "--to", "unix:/nonexistent/socket"]), "PEER_UNREACHABLE", "/nonexistent/socket");
    names(&run(&["check", "--to", "tcp+plain://192.0.2.7:7413"]), "PLAIN", "192.0.2.7");

    // As somebody else.
    const NOBODY: u32 = 65534;
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_migrate"), place.path().join("migrate")).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"]);
        command.arg(place.path().join("migrate")).args(args).arg("--json").stdin(Stdio::null()).current_dir("/");
        command.env("XDG_CONFIG_HOME", "/nonexistent").env_remove("XDG_RUNTIME_DIR").output().unwrap()
    };
    let asked = |pid: &str| as_nobody(&["check", pid]);
    let target = Target::start("beat()", None).unwrap();
    names(&asked(&target.pid()), "NO_PRIVILEGE", &target.pid());
    target.goes_on();
    let target = Target::start("call(157, 4, 0)\nbeat()", Some(NOBODY)).unwrap();
    names(&asked(&target.pid()), "NOT_DUMPABLE", &target.pid());
    target.goes_on();
    for v2 in [false, true] {
        let Some(freezer) = crate::zoo::frozen::Freezer::make(v2) else { continue };
        let target = Target::start("call(157, 4, 1)\nbeat()", Some(NOBODY)).unwrap();
        fs::write(freezer.dir.join("cgroup.procs"), target.pid()).unwrap();
        freezer.set(true);
        assert!(freezer.is_frozen());
        names(&asked(&target.pid()), "CGROUP_FROZEN", &target.pid());
        freezer.set(false);
        target.goes_on();
    }
    let target = Target::start("call(157, 4, 1)\nbeat()", Some(NOBODY)).unwrap();
    let image = target.path("image").to_str().unwrap().to_owned();
    let dump = as_nobody(&["dump", &target.pid(), "-D", &image, "--leave-running"]);
    assert!(dump.status.success(), "{:?}", said(&dump));
    let output = as_nobody(&["restore", "-D", &image, "--dry-run", "--cgroup", "/migrate-nobody/has/this"]);
    names(&output, "CGROUP_MISSING", "/migrate-nobody/has/this");
}
