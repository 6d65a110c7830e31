//! A `migrate` that is killed while it holds the target takes nothing of it along: not its life, its registers, masks, sleeps and
//! interrupted calls, at whichever of its system calls that happens, nor at whatever time.
//!
//! To be killed at each of its system calls in turn it is traced itself. While it stands there the target is sent signals: their
//! handlers have to run, and to end the calls that they end.

use crate::cli::migrate;
use crate::zoo::tools::compiled;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `COUNTERS` of the fixture, and those that only signals advance.
const COUNTERS: usize = 11;
const BY_SIGNAL: [(usize, Signal); 3] = [(5, Signal::SIGUSR1), (6, Signal::SIGUSR2), (7, Signal::SIGHUP)];

/// Any step of the target has come in this time, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

struct Target {
    dir: tempfile::TempDir,
    child: Child,
}

impl Target {
    fn start(case: &str) -> Self {
        let fixture = compiled("lifeline").unwrap();
        let dir = tempfile::Builder::new().prefix("lifeline-").tempdir().unwrap();
        let null = Stdio::null;
        let mut command = Command::new("setsid");
        let command = command.arg(fixture).arg(dir.path()).arg(case).stdin(null()).stdout(null()).stderr(null());
        let target = Self { child: command.spawn().unwrap(), dir };
        wait("it sets up", || target.path("ready").exists());
        target.goes_on("after its start");
        target
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn counters(&self) -> [u64; COUNTERS] {
        let mut bytes = [0; COUNTERS * 8];
        fs::File::open(self.path("progress")).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        std::array::from_fn(|n| u64::from_ne_bytes(bytes[n * 8..][..8].try_into().unwrap()))
    }

    fn signal(&self) {
        for (_, signal) in BY_SIGNAL {
            kill(self.pid(), signal).unwrap();
        }
    }

    /// Everybody counts, twice where that needs no signal: what was under way has ended as well as what came next.
    fn goes_on(&self, when: &str) {
        let before = self.counters();
        let end = Instant::now() + PATIENCE;
        let advances = |n: usize, by: u64| {
            let by_signal = BY_SIGNAL.iter().any(|(counter, _)| *counter == n);
            self.counters()[n] >= before[n] + if by_signal { 0 } else { by }
        };
        while !(0..COUNTERS).all(|n| advances(n, 2)) {
            let state = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
            let failures = fs::read_to_string(self.path("failures")).unwrap_or_default();
            let counters = (before, self.counters());
            assert!(!state.is_empty() && !state.contains("State:\tZ"), "{when}: the target has ended");
            assert!(Instant::now() < end, "{when}: some stand still: {counters:?}\n{failures}{state}");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.has_no_complaint(when);
    }

    fn has_no_complaint(&self, when: &str) {
        if let Ok(failures) = fs::read_to_string(self.path("failures")) {
            panic!("{when}: {failures}");
        }
    }

    /// The signals that were sent since have been seen, by those that should.
    fn has_seen_signals(&self, before: [u64; COUNTERS], when: &str) {
        for (n, signal) in BY_SIGNAL {
            wait(&format!("{when}: {signal}"), || self.counters()[n] > before[n]);
        }
    }

    /// Its own mappings: without areas that were left behind.
    fn mappings(&self) -> Vec<String> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        let field = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap_or_default().to_owned();
        let left = |line: &str| field(line, 4) == "0" && field(line, 5).is_empty();
        maps.lines().filter(|line| !left(line) && !line.contains("[heap]")).map(str::to_owned).collect()
    }

    /// The command works afterwards, undisturbed, and nothing else is left behind.
    fn ends(self) {
        self.goes_on("in the end");
        let image = self.path("last");
        let arguments = ["dump", &self.pid().to_string(), "-D", &image.display().to_string(), "--leave-running"];
        let output = migrate(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.goes_on("after a dump");
        fs::write(self.path("go"), "").unwrap();
        // Being made and being filled are two moments.
        let verdict = || fs::read_to_string(self.path("result")).unwrap_or_default();
        wait("its verdict", || verdict().ends_with('\n'));
        self.has_no_complaint("at its end");
        assert_eq!(verdict(), "EXIT-SUCCESS\n");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} has not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A command that is stopped at the entry of each of its system calls.
pub struct Traced {
    child: Child,
    /// The system calls that count.
    acts: &'static [i64],
    /// Threads, and whether each is within a call.
    threads: BTreeMap<Pid, bool>,
    /// The calls that were entered since the target was seized.
    calls: usize,
    seized: bool,
}

impl Traced {
    pub fn start(mut command: Command, log: &Path, acts: &'static [i64]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        use std::os::unix::process::CommandExt;
        // A group of its own: its threads are waited for together.
        command = shell;
        command.process_group(0);
        let log = fs::File::create(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE).unwrap();
        kill(pid, Signal::SIGCONT).unwrap();
        Self { child, acts, threads: BTreeMap::from([(pid, false)]), calls: 0, seized: false }
    }

    /// Lets it run until it enters call `n` (counted from 1) after it has seized something; whether it came there.
    pub fn until(&mut self, n: usize) -> bool {
        let process = Pid::from_raw(self.child.id() as i32);
        let (came, comes) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            // It may be as slow as the machine is busy, as long as it comes to its next call.
            let watch = scope.spawn(move || match patient(&comes) {
                true => None,
                false => {
                    let stands = state_of(process);
                    let _ = kill(process, Signal::SIGKILL);
                    Some(stands)
                }
            });
            let reached = self.steps(n, || {
                let _ = came.send(());
            });
            drop(came);
            if let Some(stands) = watch.join().unwrap() {
                panic!("it stands still: {stands}");
            }
            reached
        })
    }

    /// The same; says of each stop that it was there. What is waited for needs a processor itself: this sleeps meanwhile.
    fn steps(&mut self, n: usize, progress: impl Fn()) -> bool {
        let group = Pid::from_raw(-(self.child.id() as i32));
        while !self.threads.is_empty() {
            let status = waitpid(group, Some(WaitPidFlag::__WALL));
            progress();
            match status {
                // Perhaps an orphan of the command that came to us.
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => {
                    self.threads.remove(&pid);
                }
                Err(Errno::ECHILD) => self.threads.clear(),
                Ok(WaitStatus::PtraceSyscall(pid)) if self.enters(pid) && self.calls == n => return true,
                Ok(WaitStatus::PtraceEvent(pid, _, event)) if event == ptrace::Event::PTRACE_EVENT_CLONE as i32 => {
                    let new = Pid::from_raw(ptrace::getevent(pid).unwrap() as i32);
                    // Its own first stop may have come before.
                    self.threads.entry(new).or_insert(false);
                    go_on(pid, None);
                }
                Ok(WaitStatus::Stopped(pid, signal)) => go_on(pid, Some(signal)),
                Ok(status) => {
                    let Some(pid) = status.pid() else { continue };
                    self.threads.entry(pid).or_insert(false);
                    go_on(pid, None);
                }
                Err(e) => panic!("waiting: {e}"),
            }
        }
        false
    }

    /// Whether this stop is the entry of a call that counts.
    fn enters(&mut self, pid: Pid) -> bool {
        let within = self.threads.get_mut(&pid).unwrap();
        *within = !*within;
        let regs = ptrace::getregs(pid).unwrap();
        let call = regs.orig_rax as i64;
        self.seized |= call == libc::SYS_ptrace && regs.rdi == 0x4206;
        let counts = *within && self.seized && self.acts.contains(&call);
        self.calls += usize::from(counts);
        counts
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // The leader last: it cannot be waited for before the others.
        for pid in self.threads.keys().rev() {
            while !matches!(
                waitpid(*pid, Some(WaitPidFlag::__WALL)),
                Err(_) | Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
            ) {}
        }
        let _ = self.child.wait();
    }
}

/// Waits as long as somebody says again and again that something has come; whether they have ended it themselves.
fn patient(comes: &std::sync::mpsc::Receiver<()>) -> bool {
    use std::sync::mpsc::RecvTimeoutError;
    loop {
        match comes.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// Of all threads that it has now.
fn state_of(process: Pid) -> String {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let read = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let of = |dir: PathBuf| format!("{} {} {}", read(&dir, "stat"), read(&dir, "wchan"), read(&dir, "syscall"));
    threads.map(|thread| of(thread.path())).collect::<Vec<_>>().join("\n")
}

fn go_on(pid: Pid, signal: Option<Signal>) {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("going on: {e}"),
    }
}

/// A command about the target, with an image of its own.
fn command(target: &Target, name: &str, n: usize) -> Command {
    let (pid, image) = (target.pid().to_string(), target.path(&format!("image-{name}-{n}")));
    let image = image.display().to_string();
    let mut command = match name {
        "dump" => migrate(&["dump", &pid, "-D", &image, "--leave-running"]),
        "pre-dump" => migrate(&["pre-dump", &pid, "-D", &image]),
        name => panic!("{name}"),
    };
    command.env("MIGRATE_PLACES", target.path("places"));
    command
}

pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::skip!("needs root");
    }
    root
}

/// So many commands that are killed in the first call or the last, which are made from the vDSO, leave no room there for the
/// next (migrate-security(7)).
pub const KILLS: usize = 3;

/// The system calls by which something is done to a target.
const ACTS: &[i64] = &[libc::SYS_ptrace, libc::SYS_process_vm_writev, libc::SYS_process_vm_readv, libc::SYS_pwrite64];

/// Is killed at every `stride`th system call by which it does something to the target, beginning with `first`.
fn killed_at_calls(case: &str, name: &str, first: usize, stride: usize) {
    let mut target = Target::start(case);
    let mut mappings = target.mappings();
    let (mut n, mut slow, mut kills) = (first, 20, 0);
    loop {
        if kills == KILLS {
            std::mem::replace(&mut target, Target::start(case)).ends();
            (mappings, kills) = (target.mappings(), 0);
        }
        let log = target.path("log");
        let mut traced = Traced::start(command(&target, name, n), &log, ACTS);
        let when = format!("{name} ({case}), killed at its call {n}");
        if std::env::var_os("LIFELINE_TRACE").is_some() {
            eprintln!("{when}");
        }
        let reached = traced.until(n);
        if !reached && slow > 0 && fs::read_to_string(&log).is_ok_and(|said| said.contains("did not stop within")) {
            // Traced, on a busy machine, it gives up now and then.
            slow -= 1;
            continue;
        }
        if !reached {
            let said = fs::read_to_string(log).unwrap_or_default();
            assert!(n > 100, "{name} makes fewer calls than {n}: {said}");
            break;
        }
        let before = target.counters();
        target.signal();
        drop(traced);
        target.has_seen_signals(before, &when);
        target.goes_on(&when);
        assert_eq!(target.mappings(), mappings, "{when}");
        remove(&target.path("places"));
        n += stride;
        kills += 1;
    }
    target.ends();
}

fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}

/// All of them, each in its turn: `MIGRATE_STRIDE=1`. Else some, others each time.
pub fn stride(usual: usize) -> (usize, usize) {
    let stride = std::env::var("MIGRATE_STRIDE").ok().and_then(|s| s.parse().ok()).unwrap_or(usual);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    (1 + now.subsec_micros() as usize % stride, stride)
}

#[test]
fn a_dump_that_is_killed_at_any_call() {
    if root() {
        let (first, stride) = stride(17);
        killed_at_calls("plain", "dump", first, stride);
    }
}

#[test]
fn a_dump_of_a_target_that_handles_all_signals() {
    if root() {
        let (first, stride) = stride(29);
        killed_at_calls("handlers", "dump", first, stride);
    }
}

#[test]
fn a_pre_dump_that_is_killed_at_any_call() {
    if root() {
        let (first, stride) = stride(29);
        killed_at_calls("plain", "pre-dump", first, stride);
    }
}

/// What is executed for us just then is not at a call of ours: killed at any time.
#[test]
fn commands_that_are_killed_at_any_time() {
    if !root() {
        return;
    }
    let target = Target::start("plain");
    let mappings = target.mappings();
    let mut random = Random::new();
    for name in ["dump", "pre-dump"] {
        let began = Instant::now();
        assert!(command(&target, name, 0).output().unwrap().status.success(), "{name}");
        let usual = began.elapsed();
        for n in 1..=15 {
            remove(&target.path("places"));
            let after = usual.mul_f64(random.part());
            let null = Stdio::null;
            let mut command = command(&target, name, n);
            let mut child = command.stdin(null()).stdout(null()).stderr(null()).spawn().unwrap();
            std::thread::sleep(after);
            let before = target.counters();
            target.signal();
            child.kill().unwrap();
            child.wait().unwrap();
            let when = format!("{name}, killed after {after:?} of {usual:?}");
            target.has_seen_signals(before, &when);
            target.goes_on(&when);
            assert_eq!(target.mappings(), mappings, "{when}");
        }
    }
    target.ends();
}

/// xorshift64*, seeded by the clock.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Self(now.as_nanos() as u64 | 1)
    }

    /// Between 0 and 1.
    pub fn part(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }
}
