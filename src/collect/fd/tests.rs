//! Descriptors of every kind, read from a live process that stays unharmed.

use super::*;
use crate::blocker::codes;
use crate::collect::{Collection, Policy, collect};
use crate::image::Pid;
use crate::image::fd::lock::LockKind;
use crate::trace::freeze::Frozen;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// A Python program that has made its descriptors and waits.
pub(crate) struct Target {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
}

/// Names for what the standard library of Python 3.11 (Debian) lacks.
pub(crate) const PRELUDE: &str = r#"
import os, sys, select, ctypes, struct, fcntl, signal, socket, time
c = ctypes.CDLL(None, use_errno=True)
def ok(n):
    if n < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return n
def at(number, fd):
    if fd != number:
        os.dup2(fd, number); os.close(fd)
    return number
os.closerange(3, 65536)
os.chdir(sys.argv[1])
"#;

/// Runs a program without what the test runner's own parents left open.
pub(crate) fn clean(program: &str, args: &[&str]) -> Command {
    let script = "import os, sys; os.closerange(3, 65536); os.execvp(sys.argv[1], sys.argv[1:])";
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", script, program]).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Target {
    pub(crate) fn run(program: &str) -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let script =
            format!("{PRELUDE}\n{program}\nprint('ready', flush=True)\nos.close(1)\nwhile True: time.sleep(1000)");
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", &script]).arg(dir.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("python3 is installed");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let target = Self { child, dir };
        assert_eq!(line, "ready\n");
        std::thread::sleep(std::time::Duration::from_millis(20));
        target
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    pub(crate) fn collected(&self) -> Collection {
        let policy = Policy { allow_external_stdio: true, ..Policy::default() };
        self.collected_with(&policy)
    }

    pub(crate) fn collected_with(&self, policy: &Policy) -> Collection {
        let mut frozen = Frozen::tree(self.pid()).unwrap();
        let collection = collect(&mut frozen, policy, Default::default(), &mut |_, _| {}).unwrap();
        frozen.thaw().unwrap();
        collection
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let children = crate::proc::ProcDir::open(self.pid()).and_then(|d| d.children_of_all_threads(&mut Vec::new()));
        for child in children.unwrap_or_default() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0), nix::sys::signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collection {
    fn file(&self, fd: u32) -> &File {
        let entries = &self.model.fd_tables[0].entries;
        let entry = entries.iter().find(|e| e.fd == fd).unwrap_or_else(|| panic!("no descriptor {fd}: {entries:?}"));
        &self.model.files[entry.file.at()]
    }
}

#[test]
fn every_kind_twice() {
    let target = Target::run(
        r#"
at(10, c.eventfd(7, 0o4000 | 1))
mask = ctypes.c_uint64(1 << 9); at(11, c.signalfd(-1, ctypes.byref(mask), 0))
at(12, os.pidfd_open(os.getpid()))
at(13, c.inotify_init1(0)); os.mkdir("watched"); ok(c.inotify_add_watch(13, b"watched", 0xfff))
e = select.epoll(); at(14, os.dup(e.fileno())); e.close(); e = select.epoll.fromfd(14); e.register(10, 1)
at(15, os.open("/proc/self/ns/net", 0))
at(16, os.memfd_create("mem", 2)); os.write(16, b"x" * 5000)
at(17, os.open(".", os.O_RDONLY | os.O_DIRECTORY))
open("file", "w").write("hello"); at(18, os.open("file", os.O_RDWR | os.O_APPEND)); os.lseek(18, 3, 0); os.dup2(18, 19)
at(20, os.open("ghost", os.O_RDWR | os.O_CREAT)); os.pwrite(20, b"end", 100000); os.unlink("ghost")
r, w = os.pipe(); at(21, r); at(22, w); os.write(22, b"in the pipe")
os.mkfifo("fifo"); at(23, os.open("fifo", os.O_RDWR)); os.write(23, b"named")
at(24, os.open("/dev/null", os.O_WRONLY)); at(25, os.open("/proc/self/status", 0))
fcntl.flock(18, fcntl.LOCK_EX); fcntl.lockf(20, fcntl.LOCK_EX, 10, 5)
at(26, os.open("file", os.O_PATH))
at(27, os.open("file", os.O_RDONLY)); fcntl.fcntl(27, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(27, 10, 34)
at(28, ok(c.timerfd_create(1, 0))); spec = struct.pack("qqqq", 3, 0, 1000, 0); ok(c.timerfd_settime(28, 0, spec, None))
"#,
    );
    let first = target.collected();
    let second = target.collected();
    assert!(first.blockers.is_empty(), "{:#?}", first.blockers);
    let mut files = second.model.files.clone();
    for file in &mut files {
        if let FileKind::TimerFd(timer) = &mut file.kind {
            assert!((900_000_000_000..1_000_000_000_001).contains(&timer.spec.remaining_ns));
            assert_eq!((timer.clock, timer.spec.interval_ns, timer.due_ns), (1, 3_000_000_000, None));
        }
    }
    let without_timer = |files: &[File]| -> Vec<File> {
        files.iter().filter(|f| !matches!(f.kind, FileKind::TimerFd(_))).cloned().collect()
    };
    assert_eq!(without_timer(&first.model.files), without_timer(&files));
    assert_eq!(first.model.fd_tables, second.model.fd_tables);
    assert_eq!(first.model.pipes, second.model.pipes);
    assert_eq!(first.model.locks, second.model.locks);
    assert_eq!(first.model.ghosts, second.model.ghosts);
    kinds(&first);
    ids_and_locks(&first);
}

/// Often it is due just when it is looked at: then it has no time left, and neither has one that is not armed.
#[test]
fn a_timer_that_goes_off_all_the_time_is_armed_whenever_it_is_looked_at() {
    let target = Target::run(
        r#"
at(10, ok(c.timerfd_create(1, 0))); spec = struct.pack("qqqq", 0, 40000, 0, 40000); ok(c.timerfd_settime(10, 0, spec, None))
at(11, ok(c.timerfd_create(1, 0)))
"#,
    );
    for _ in 0..60 {
        let seen = target.collected();
        let timer = |fd| match &seen.file(fd).kind {
            FileKind::TimerFd(timer) => *timer,
            other => panic!("{other:?}"),
        };
        assert!((1..=40_000).contains(&timer(10).spec.remaining_ns), "{:?}", timer(10));
        assert_eq!((timer(11).spec.remaining_ns, timer(11).spec.interval_ns, timer(11).ticks), (0, 0, 0));
    }
}

fn kinds(c: &Collection) {
    let FileKind::EventFd(event) = c.file(10).kind else { panic!("{:?}", c.file(10)) };
    assert_eq!((event.count, event.semaphore, c.file(10).flags & 0o4000), (7, true, 0o4000));
    assert!(matches!(&c.file(11).kind, FileKind::SignalFd(s) if s.mask == 1 << 9));
    assert!(matches!(&c.file(12).kind, FileKind::PidFd(p) if p.pid == Some(c.model.tasks[0].pid)));
    assert!(
        matches!(&c.file(13).kind, FileKind::Inotify(i) if i.watches.len() == 1 && i.watches[0].wd == 1),
        "{:?}",
        c.file(13)
    );
    let FileKind::Epoll(epoll) = &c.file(14).kind else { panic!("{:?}", c.file(14)) };
    assert_eq!(epoll.members.len(), 1);
    assert!(std::ptr::eq(c.file(10), &c.model.files[epoll.members[0].file.at()]));
    assert!(matches!(&c.file(15).kind, FileKind::Namespace(_)));
    assert!(matches!(&c.file(16).kind, FileKind::Shmem(s) if c.model.shmems[s.shmem.at()].size == 5000));
    assert!(matches!(&c.file(17).kind, FileKind::Regular(r) if r.path.mode & libc::S_IFMT == libc::S_IFDIR));
    assert!(matches!(&c.file(18).kind, FileKind::Regular(r) if r.path.size == 5 && r.path.path.0.ends_with(b"/file")));
    assert_eq!((c.file(18).offset, c.file(18).flags & libc::O_APPEND as u32), (3, libc::O_APPEND as u32));
    assert!(std::ptr::eq(c.file(18), c.file(19)) && !std::ptr::eq(c.file(18), c.file(27)));
    let FileKind::Ghost(ghost) = c.file(20).kind else { panic!("{:?}", c.file(20)) };
    let ghost = &c.model.ghosts[ghost.ghost.at()];
    assert_eq!(ghost.extents.len(), 1, "a hole does not travel");
    assert_eq!(ghost.extents[0].0 as usize + ghost.extents[0].1.0.len(), 100_003);
    for (read, write, data) in [(21, 22, &b"in the pipe"[..]), (23, 23, b"named")] {
        let (FileKind::Pipe(read), FileKind::Pipe(write)) = (&c.file(read).kind, &c.file(write).kind) else { panic!() };
        assert_eq!(read, write);
        assert_eq!(c.model.pipes[read.pipe.at()].data.0, data);
    }
    assert!(matches!(c.file(24).kind, FileKind::Device(_)));
    assert!(matches!(&c.file(25).kind, FileKind::ProcFile(p) if p.rest.0 == b"status" && p.pid.is_some()));
    assert!(matches!(c.file(26).kind, FileKind::Regular(_)) && c.file(26).flags & libc::O_PATH as u32 != 0);
}

fn ids_and_locks(c: &Collection) {
    let owner = c.file(27).owner.unwrap();
    assert_eq!((owner.id, owner.signal, owner.kind), (c.model.tasks[0].pid, 34, 1));
    assert!(c.file(18).owner.is_none());
    assert_eq!(c.model.locks.len(), 2, "{:?}", c.model.locks);
    let posix = c.model.locks.iter().find(|l| matches!(l.kind, LockKind::Posix(_))).unwrap();
    assert_eq!((posix.start, posix.len, posix.mode), (5, 10, 1));
    assert!(c.model.locks.iter().any(|l| l.kind == LockKind::Flock && l.mode == 1));
}

#[test]
fn what_ends_outside_is_named() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let mut child = clean("sleep", &["1000"]).current_dir(dir.path()).stdin(reader).spawn().unwrap();
    writer.write_all(b"for the child").unwrap();
    let pid = Pid(child.id() as i32);
    // Our own end does not count as outside, so somebody else has to hold it.
    let holder = clean("sleep", &["1000"]).stdout(writer).spawn();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let before = preflight(&[crate::proc::ProcDir::open(pid).unwrap()], &Policy::default()).unwrap().0;
    let mut frozen = Frozen::tree(pid).unwrap();
    let refused = collect(&mut frozen, &Policy::default(), Default::default(), &mut |_, _| {});
    let external = Policy { allow_external_stdio: true, ..Policy::default() };
    let allowed = collect(&mut frozen, &external, Default::default(), &mut |_, _| {});
    let thawed = frozen.thaw();
    let mut holder = holder.unwrap();
    for child in [&mut child, &mut holder] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    thawed.unwrap();
    let (refused, allowed) = (refused.unwrap(), allowed.unwrap());
    for blockers in [before, refused.blockers] {
        let of_pipe: Vec<_> = blockers.iter().filter(|b| b.code == codes::PIPE_OUTSIDE).collect();
        assert_eq!(of_pipe.len(), 1, "{blockers:?}");
        let expected = format!("its writing end is held by sleep (pid {})", holder.id());
        assert_eq!(of_pipe[0].reason, expected);
        assert!(of_pipe[0].object.starts_with(&format!("pid {pid} fd 0 (pipe:[")), "{of_pipe:?}");
    }
    assert!(matches!(&allowed.file(0).kind, FileKind::External(e) if e.key == "stdin"));
    assert!(allowed.model.pipes.is_empty());
}

#[test]
fn what_cannot_be_saved_comes_all_at_once() {
    let target = Target::run(
        r#"
at(10, ok(c.syscall(323, 1)))
at(11, os.pidfd_open(1))
at(12, os.open("/proc/1/status", 0))
at(13, c.inotify_init1(0)); ok(c.inotify_add_watch(13, b".", 0xfff)); open("x", "w").close()
"#,
    );
    let found = target.collected_with(&Policy::default());
    let codes_of = |fd: u32| -> Vec<_> {
        let name = format!("pid {} fd {fd} (", target.pid());
        found.blockers.iter().filter(|b| b.object.starts_with(&name)).map(|b| b.code).collect()
    };
    assert_eq!(codes_of(10), [codes::USERFAULTFD]);
    assert_eq!(codes_of(11), [codes::PIDFD_OUTSIDE]);
    assert_eq!(codes_of(12), [codes::PROC_OUTSIDE]);
    assert_eq!(codes_of(13), [codes::INOTIFY_EVENTS]);
    let before = preflight(&[crate::proc::ProcDir::open(target.pid()).unwrap()], &Policy::default()).unwrap().0;
    assert!(
        before.iter().any(|b| b.code == codes::USERFAULTFD) && before.iter().any(|b| b.code == codes::PIDFD_OUTSIDE)
    );
    assert!(target.dir.path().join("x").exists());
}

#[test]
fn shared_descriptions_are_one_and_separate_ones_are_not() {
    let target = Target::run(
        r#"
for n in range(200): at(20 + n, c.eventfd(0, 0))
if os.fork() == 0:
    os.close(219); os.close(1)
    while True: time.sleep(1000)
"#,
    );
    let c = target.collected();
    assert!(c.blockers.is_empty(), "{:?}", c.blockers);
    let [parent, child] = &c.model.fd_tables[..] else { panic!("two tables") };
    assert_eq!(parent.entries.iter().filter(|e| e.fd >= 20).count(), 200);
    let without_last = &parent.entries[..parent.entries.len() - 1];
    assert_eq!(child.entries, without_last);
    let mut files: Vec<_> = parent.entries.iter().map(|e| e.file).collect();
    files.sort();
    files.dedup();
    // 0 is /dev/null, 1 was closed, 2 is whatever the test runner has.
    assert_eq!(files.len(), 202);
}
