//! What the tests have in common: a directory, a program that counts, and `criu`.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub const CRIU: &str = env!("CARGO_BIN_EXE_criu");

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Counts in its memory and writes the number down; a second process reads what the first one tells it.
const COUNTER: &str = "
import os, sys, time
told, tells = os.pipe()
if os.fork() == 0:
    while os.read(told, 1):
        pass
    os._exit(0)
name, count, ballast = sys.argv[1], 0, os.urandom(8 << 20)
while True:
    count += 1
    with open(name + '.new', 'w') as file:
        file.write(str(count))
    os.rename(name + '.new', name)
    os.write(tells, b'x')
    assert len(ballast) == 8 << 20
    time.sleep(0.005)
";

/// Waits until something is so.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a call of `criu` has left.
#[derive(Debug)]
pub struct Run {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Run {
    /// It has ended with this code, and not by a signal.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }
}

/// A directory of a test, and all that runs in it.
pub struct Stage {
    pub dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Stage {
    /// `None`, said aloud, where only root can do it.
    pub fn new() -> Option<Self> {
        let tools = Path::new("/usr/bin/python3").exists();
        if !nix::unistd::geteuid().is_root() || !tools {
            let _ = writeln!(std::io::stderr(), "SKIPPED criu: needs root and python3 ({tools})");
            return None;
        }
        // What is restored would be another's to reap.
        nix::sys::prctl::set_child_subreaper(true).expect("any process may be a subreaper");
        let dir = tempfile::Builder::new().prefix("criu-").tempdir().unwrap();
        Some(Self { dir, children: Vec::new() })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory for images, made anew.
    pub fn images(&self, name: &str) -> String {
        fs::create_dir_all(self.path(name)).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Starts a program in a session of its own, with nothing open but /dev/null.
    pub fn start(&mut self, program: &str, arguments: &[&str]) -> i32 {
        let mut command = Command::new("setsid");
        command.arg(program).args(arguments).env("FRONT", self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let pid = child.id() as i32;
        self.children.push(child);
        pid
    }

    /// A program that counts, seen to do so.
    pub fn counter(&mut self) -> i32 {
        let name = self.path("count");
        let pid = self.start("/usr/bin/python3", &["-c", COUNTER, name.to_str().unwrap()]);
        self.counts();
        pid
    }

    /// Where the counter is.
    pub fn count(&self) -> u64 {
        fs::read_to_string(self.path("count")).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// It goes on from where it is.
    pub fn counts(&self) {
        let before = self.count();
        until("it counts", || (self.count() > before + 3).then_some(()));
        assert!(self.count() < before + 100_000, "it has begun anew");
    }

    /// A child of ours, which has to have ended, so that its number is free.
    pub fn gone(&mut self, pid: i32) {
        let place = self.children.iter().position(|child| child.id() as i32 == pid).expect("it was started here");
        let mut child = self.children.remove(place);
        until("it ends", || child.try_wait().unwrap());
        vacated(pid);
    }

    pub fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("MIGRATE_PLACES", self.path("places")).env_remove("CRIU_CONFIG_FILE");
        command
    }

    /// Runs `criu`. Its output goes to files: what it restores may have got them.
    pub fn criu(&self, arguments: &[&str]) -> Run {
        let mut command = self.command(Path::new(CRIU), arguments);
        self.run(&mut command)
    }

    pub fn run(&self, command: &mut Command) -> Run {
        let file = |name: &str| File::create(self.path(name)).unwrap();
        let status = command.stdout(file("stdout")).stderr(file("stderr")).status().unwrap();
        let text = |name: &str| fs::read_to_string(self.path(name)).unwrap();
        Run { status, out: text("stdout"), err: text("stderr") }
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Names of trackers' sockets.
    pub fn trackers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("places/run")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with("tracker-")).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for pid in marked(self.dir.path()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// Processes with our mark in their environment, whatever became of their parents and sessions.
fn marked(dir: &Path) -> Vec<i32> {
    let marks = ["FRONT=", "MIGRATE_PLACES="].map(|name| format!("{name}{}", dir.display()).into_bytes());
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_ours = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        marks.iter().any(|mark| environment.windows(mark.len()).any(|part| part == *mark))
    };
    pids.filter(|pid| *pid != std::process::id() as i32).filter(is_ours).collect()
}

/// Waits until nobody has a number of a session that has ended, as its numbers have to be free; those that have ended here
/// are ours to collect.
pub fn vacated(session: i32) {
    until("its numbers are free", || {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let members: Vec<i32> = pids.filter(|pid| session_of(*pid) == Some(session)).collect();
        for pid in &members {
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        members.is_empty().then_some(())
    });
}

fn session_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(3)?.parse().ok()
}

/// The state letter of a process, and its parent; `None` once it has gone.
pub fn state(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Ends a process that was restored; how it has ended, where we are its parent.
pub fn end(pid: i32) -> Option<WaitStatus> {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("it ends", || match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) => None,
        Ok(status) => Some(Some(status)),
        Err(_) => state(pid).is_none_or(|(letter, _)| letter == 'Z').then_some(None),
    })
}
