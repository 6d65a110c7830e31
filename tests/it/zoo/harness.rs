//! Runs one scenario of the zoo: a fixture sets up its state, is saved and restored, and verifies from inside.

use super::canonical::canonical;
pub use super::tools::marked;
use super::tools::{MOVED, NOT_COMPARED, NOT_MOVED, adopt_orphans, compiled, is_alive, note_tree, reader, reap};
use migrate_engine::image::Model;
use migrate_engine::image::diff::{self, Ignore};
use migrate_engine::memory::store::ImageDir;
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a fixture may take to set up, and to verify. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What is done to a fixture between its set-up and its verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Dumped and left running: it must not notice.
    LeaveRunning,
    /// Dumped and restored.
    Once,
    /// Dumped and left running, then dumped and restored.
    Later,
    /// Dumped and restored three times over.
    Chain,
    /// Restored in a PID namespace of its own.
    NewPids,
    /// The same three times over, each in a namespace of its own again.
    NewPidsChain,
    /// Restored with memory that comes only when it is touched.
    Late,
    /// The same, and dumped while most of it is missing.
    LateDumped,
    /// Moved as by [`Mode::Move`], with memory that follows only when it is touched.
    PostCopy,
    /// The same after rounds, and everything follows at once.
    Hybrid,
    /// Moved to another network of this kernel: both ends of the protocol, and a PID namespace of its own, as the frozen
    /// original has its ids.
    Move,
    /// The same, and the source stands still for so long in the moment of handing over that the copy is parked.
    Parked,
}

impl Mode {
    /// Whether the tree ends up in a PID namespace of its own, where a reader outside sees other ids.
    fn new_pids(self) -> bool {
        matches!(self, Self::NewPids | Self::NewPidsChain | Self::Move | Self::Parked | Self::PostCopy | Self::Hybrid)
    }
}

/// One row of the zoo.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Source file under tests/fixtures, without `.c`.
    pub fixture: &'static str,
    /// Case in it.
    pub case: &'static str,
    /// Paths of the model that may differ afterwards, each with its reason.
    pub ignore: &'static [(&'static str, &'static str)],
    /// Allow-list for the independent reader, beside the general one: TOML.
    pub allow: &'static str,
    /// Does not sleep while it waits: contents and times of two readings differ.
    pub busy: bool,
    /// Measures how long a wait of its own takes: what is done to it is to be done before that is over.
    pub timed: bool,
}

/// Differences that every scenario may have.
const ALWAYS: &[(&str, &str)] = &[
    ("host", "facts about the host, free memory and clocks among them"),
    ("tasks[*].threads[*].regs", "a waiting fixture polls; registers are compared by its own checks"),
    ("tasks[*].threads[*].restart", "where in its sleep it was stopped is chance"),
    ("tasks[*].threads[*].blocked", "libc blocks signals for moments; masks are compared by the fixtures"),
    ("tasks[*].itimers.*.remaining_ns", "time passes"),
    ("tasks[*].posix_timers[*].spec.remaining_ns", "time passes"),
    ("**.mtime_ns", "a fixture that has written a file since"),
    ("namespaces[*].inode", "the kernel's number"),
    ("tasks[*].namespaces.time", "a time namespace lets the monotonic clock go on where it was stopped"),
    ("tasks[*].namespaces.time_for_children", "a time namespace lets the monotonic clock go on where it was stopped"),
    ("mms[*].cow_parent", "how much relatives still share depends on what they did since"),
    ("cgroups", "the tree is put into a cgroup of its own"),
    ("tasks[*].cgroups", "the tree is put into a cgroup of its own"),
    ("tasks[*].threads[*].cgroups", "the tree is put into a cgroup of its own"),
];

/// Outcome of a scenario that did not fail.
enum Ran {
    Passed,
    Skipped(String),
    /// Its wait was over before we had done with it: nothing was tested.
    TooSlow,
}

/// Numbers of terminals are the host's: tests in which terminals come back under theirs run one at a time.
pub fn terminals_lock() -> nix::fcntl::Flock<fs::File> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("terminals.lock");
    let file = fs::File::create(path).expect("the directory is cargo's");
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).expect("a lock is waited for")
}

/// Runs a scenario in a mode; panics with everything that is known if it fails.
pub fn run(scenario: &Scenario, mode: Mode) {
    if !nix::unistd::geteuid().is_root() {
        return skipped(scenario, mode, "needs root");
    }
    let not_moved = NOT_MOVED.iter().find(|row| row.0 == scenario.fixture && row.1 == scenario.case);
    if let (Mode::Move | Mode::PostCopy | Mode::Hybrid, Some((_, _, reason))) = (mode, not_moved) {
        return skipped(scenario, mode, reason);
    }
    adopt_orphans();
    let _terminals = (scenario.fixture == "terminals" || scenario.case.ends_with("_terminal")).then(terminals_lock);
    let _huge_pages = HugePages::of(scenario.case);
    let fixture = match compiled(scenario.fixture) {
        Ok(path) => path,
        Err(reason) => return skipped(scenario, mode, &reason),
    };
    for wait in WAITS {
        let run = Run::start_with(scenario, &fixture, wait);
        match run.all(mode) {
            Ok(Ran::Passed) => return,
            Ok(Ran::Skipped(reason)) => return skipped(scenario, mode, &reason),
            Ok(Ran::TooSlow) => say("LONGER WAIT", scenario, mode, &format!("{wait:?} were over before we had done")),
            Err(reason) => panic!("{}:{} {mode:?}: {reason}{}", scenario.fixture, scenario.case, run.state()),
        }
    }
    panic!("{}:{} {mode:?}: no wait is long enough", scenario.fixture, scenario.case);
}

/// For how long fixtures that measure a wait do so: the next one where the machine was too busy to be done by then.
const WAITS: [Duration; 3] = [Duration::from_millis(2000), Duration::from_secs(8), Duration::from_secs(32)];

/// Huge pages for a fixture, besides those that others have; given back when it is dropped.
pub(super) struct HugePages(u64);

impl HugePages {
    const FILE: &'static str = "/proc/sys/vm/nr_hugepages";
    const MORE: u64 = 12;

    /// Those that a case needs.
    pub(super) fn of(case: &str) -> Option<Self> {
        ["hugetlb", "segments_of_others"].contains(&case).then(Self::reserve)
    }

    fn reserve() -> Self {
        // Where none can be had the fixture says so.
        Self(Self::change(|before| before + Self::MORE).map_or(0, |()| Self::MORE))
    }

    /// Fixtures that run side by side change the number one after the other: what is left over in the end a program takes that
    /// makes use of huge pages where there are any.
    fn change(to: impl Fn(u64) -> u64) -> std::io::Result<()> {
        let file = fs::File::open(Self::FILE)?;
        let _one = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        let before = fs::read_to_string(Self::FILE)?.trim().parse().map_err(std::io::Error::other)?;
        fs::write(Self::FILE, to(before).to_string())
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = Self::change(|now| now.saturating_sub(self.0));
    }
}

/// The models of two images are equal, but for what always differs and what is named.
pub(super) fn same_models(before: &Path, after: &Path, made: &[(&str, &str)]) -> Result<(), String> {
    let model = |path| -> Result<Model, String> {
        ImageDir::open(path).and_then(|image| image.model()).map(canonical).map_err(|e| e.to_string())
    };
    let rules = ALWAYS.iter().chain(made).map(|(path, _)| *path);
    let found = diff::diff(&model(before)?, &model(after)?, &Ignore::new(rules)).map_err(|e| e.to_string())?;
    if found.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = found.iter().take(40).map(ToString::to_string).collect();
    Err(format!("the model differs:\n  {}", lines.join("\n  ")))
}

/// Prints what is worth knowing of a scenario that did not simply pass.
fn say(what: &str, scenario: &Scenario, mode: Mode, reason: &str) {
    let _ =
        writeln!(std::io::stderr(), "{what} zoo {}:{} {mode:?}: {}", scenario.fixture, scenario.case, reason.trim());
}

fn skipped(scenario: &Scenario, mode: Mode, reason: &str) {
    crate::skip!("zoo {}:{} {mode:?}: {}", scenario.fixture, scenario.case, reason.trim());
}

/// A fixture that runs. Dropping it ends everything that belongs to it.
pub struct Run<'a> {
    scenario: &'a Scenario,
    /// Directory the fixture works with.
    pub dir: tempfile::TempDir,
    /// How long any step may take.
    pub patience: Duration,
    child: Mutex<Child>,
    tree: Mutex<BTreeSet<i32>>,
}

impl<'a> Run<'a> {
    /// Starts it.
    pub fn start(scenario: &'a Scenario, fixture: &Path) -> Self {
        Self::start_with(scenario, fixture, WAITS[0])
    }

    /// Starts it, with the length of its wait if it measures one.
    fn start_with(scenario: &'a Scenario, fixture: &Path, wait: Duration) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new().prefix("zoo-").tempdir().expect("there is a directory for temporary files");
        // Unprivileged fixtures use it as well.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        let child = Command::new(fixture)
            .arg(dir.path())
            .arg(scenario.case)
            .env("ZOO", dir.path())
            .env("ZOO_WAIT_MS", wait.as_millis().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it was compiled");
        let pid = child.id() as i32;
        Self { scenario, dir, patience: PATIENCE, child: Mutex::new(child), tree: Mutex::new(BTreeSet::from([pid])) }
    }

    /// Process id of the original root.
    pub fn pid(&self) -> i32 {
        self.child.lock().unwrap_or_else(|e| e.into_inner()).id() as i32
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    /// Waits for the end of the set-up.
    pub fn ready(&self) -> Result<(), String> {
        self.appears("ready")?;
        match self.text("failures") {
            Some(failures) => Err(format!("set-up: {failures}")),
            None => Ok(()),
        }
    }

    fn appears(&self, name: &str) -> Result<(), String> {
        let began = Instant::now();
        let complete = |text: Option<String>| text.is_some_and(|t| name == "ready" || t.ends_with('\n'));
        for n in 1.. {
            // Asked first: the last thing it does is to write this file.
            let ended = n % 100 == 0 && !self.lives();
            if complete(self.text(name)) {
                break;
            }
            if ended {
                return Err(format!("it has ended without `{name}`"));
            }
            if began.elapsed() > self.patience {
                return Err(format!("no `{name}` within {:?}", self.patience));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Whether anybody of the tree is there.
    fn lives(&self) -> bool {
        let noted = self.tree.lock().unwrap_or_else(|e| e.into_inner()).iter().any(|pid| is_alive(*pid));
        noted || !marked(self.dir.path()).is_empty()
    }

    fn all(&self, mode: Mode) -> Result<Ran, String> {
        self.ready()?;
        if let Some(reason) = self.text("skip") {
            return Ok(Ran::Skipped(reason));
        }
        // Into the wait for `go`.
        std::thread::sleep(Duration::from_millis(20));
        let before =
            if self.scenario.busy || mode.new_pids() { None } else { Some(self.capture(self.pid(), "before.json")?) };
        let root = match mode {
            Mode::LeaveRunning => {
                self.dump(self.pid(), 0, &["--leave-running"])?;
                self.dump(self.pid(), 1, &["--leave-running"])?;
                self.pid()
            }
            Mode::Later => {
                self.dump(self.pid(), 1, &["--leave-running"])?;
                self.rounds(1, &["--pids", "same"])?
            }
            Mode::Once => self.rounds(1, &["--pids", "same"])?,
            Mode::Chain => self.rounds(3, &["--pids", "same"])?,
            Mode::NewPids => self.rounds(1, &["--pids", "new"])?,
            Mode::NewPidsChain => self.rounds(3, &["--pids", "new"])?,
            Mode::Late => self.late()?,
            Mode::LateDumped => {
                let root = self.late()?;
                self.dump(root, 1, &["--leave-running"])?;
                root
            }
            // What was not touched comes while it is verified.
            Mode::PostCopy => return self.follows("post-copy", true).map(|_| Ran::Passed),
            Mode::Hybrid => return self.follows("hybrid", false).map(|_| Ran::Passed),
            Mode::Move => {
                if !self.scenario.timed {
                    self.dump(self.pid(), 0, &["--leave-running"])?;
                }
                self.moved(self.pid())?
            }
            Mode::Parked => {
                self.dump(self.pid(), 0, &["--leave-running"])?;
                self.parked(self.pid())?
            }
        };
        // Mappings that are served say so, and what was not touched is not there.
        let before = before.filter(|_| !mode.new_pids() && mode != Mode::Late);
        let after = before.as_ref().map(|_| self.capture(root, "after.json")).transpose()?;
        if mode == Mode::Once {
            self.dump(root, 1, &["--leave-running"])?;
        }
        // Whoever has woken too early has noted it as a failure.
        if self.path("woke").exists() && self.text("failures").is_none() {
            return Ok(Ran::TooSlow);
        }
        if let (Some(before), Some(after)) = (before, after) {
            self.compare(&before, &after)?;
        }
        if matches!(mode, Mode::Move | Mode::Parked) && !self.scenario.timed {
            self.compare_moved(root)?;
        }
        let images = if mode == Mode::Chain { 3 } else { 2 };
        if !mode.new_pids() && mode != Mode::Late {
            (1..images).try_for_each(|n| self.same_model(0, n, &[]))?;
        }
        self.verify()?;
        Ok(Ran::Passed)
    }

    /// Has the fixture check itself.
    pub fn verify(&self) -> Result<(), String> {
        fs::write(self.path("go"), "").map_err(|e| e.to_string())?;
        self.appears("result")?;
        match (self.text("result").as_deref(), self.text("failures")) {
            (Some("EXIT-SUCCESS\n"), None) => Ok(()),
            (result, failures) => Err(format!("{}: {}", result.unwrap_or(""), failures.unwrap_or_default())),
        }
    }

    /// Dump and restore this many times; the root's process id at the end.
    fn rounds(&self, count: usize, options: &[&str]) -> Result<i32, String> {
        let mut root = self.pid();
        for n in 0..count {
            self.dump(root, n, &[])?;
            root = self.restore(n, options)?;
            // Until everybody is in the wait for `go` again.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(root)
    }

    /// Dump and restore, with nothing in memory but what is touched; the root's process id.
    fn late(&self) -> Result<i32, String> {
        self.dump(self.pid(), 0, &[])?;
        let root = self.restore_with(0, &["--pids", "same", "--lazy"], &[("MIGRATE_FAULT", "pager-behind")])?;
        std::thread::sleep(Duration::from_millis(20));
        Ok(root)
    }

    /// Moves it to what is another host but for its files, by way of a stand-in for ssh; the root's process id there.
    pub(super) fn moved(&self, root: i32) -> Result<i32, String> {
        self.moved_by(root, crate::cli::migrate(&[]), "")
    }

    /// Moves it with this program, to a host on which `there` (a command that runs others, or nothing) starts programs.
    pub(super) fn moved_by(&self, root: i32, engine: Command, there: &str) -> Result<i32, String> {
        self.note_tree(root);
        let args = self.move_args(root, there, &[])?;
        let places = self.path("places").display().to_string();
        let said = self.wait_for(engine, &args, &[("MIGRATE_PLACES", &places)]).map_err(|e| format!("move: {e}"))?;
        self.has_moved(&said)
    }

    /// What a move has said; the root's process id there.
    fn has_moved(&self, said: &str) -> Result<i32, String> {
        let result = said.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let root =
            result.and_then(|r| i32::try_from(r["pid"].as_i64()?).ok()).ok_or_else(|| format!("no pid: {said}"))?;
        // The original has ended; those that have moved have not.
        self.reap();
        self.note_tree(root);
        // Until everybody is in the wait for `go` again.
        std::thread::sleep(Duration::from_millis(20));
        Ok(root)
    }

    /// Moves it, by way of an image at the destination, which hears nothing for a while once it has all of it; the root's process
    /// id there.
    fn parked(&self, root: i32) -> Result<i32, String> {
        self.note_tree(root);
        let places = self.path("places").display().to_string();
        let args = self.move_args(root, "", &["--lease", "1s"])?;
        let env = [("MIGRATE_PLACES", places.as_str()), ("MIGRATE_STOP", "source-ready")];
        let mover = self.spawn(crate::cli::migrate(&[]), &args, &env)?;
        let (pid, began) = (nix::unistd::Pid::from_raw(mover.id() as i32), Instant::now());
        while !self.is_parked(&places) {
            if began.elapsed() > self.patience {
                return Err(format!("it is not parked: {}", self.text("log").unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).map_err(|e| e.to_string())?;
        let said = self.ended(mover).map_err(|e| format!("move: {e}"))?;
        self.has_moved(&said)
    }

    fn is_parked(&self, places: &str) -> bool {
        let mut status = crate::cli::migrate(&["status", "--json"]);
        let said = status.env("MIGRATE_PLACES", places).output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&said).contains("\"phase\":\"parked\"")
    }

    /// Arguments of a move to what is another host but for its files, by way of a stand-in for ssh.
    fn move_args(&self, root: i32, there: &str, options: &[&str]) -> Result<Vec<String>, String> {
        use std::os::unix::fs::PermissionsExt;
        let rsh = self.path("ssh");
        let script = format!("#!/bin/sh\nshift\nexec {there}unshare --net sh -c \"ip link set lo up; $*\"\n");
        fs::write(&rsh, script).map_err(|e| e.to_string())?;
        fs::set_permissions(&rsh, fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        let (root, rsh) = (root.to_string(), rsh.display().to_string());
        let remote = env!("CARGO_BIN_EXE_migrate");
        let args = ["move", &root, "over-there", "--rsh", &rsh, "--remote", remote, "--json"];
        Ok(args.iter().chain(options).map(|word| (*word).to_owned()).collect())
    }

    /// What has moved has the model it had.
    fn compare_moved(&self, root: i32) -> Result<(), String> {
        let row = NOT_COMPARED.iter().find(|row| row.0 == self.scenario.fixture && row.1 == self.scenario.case);
        if let Some((_, _, reason)) = row {
            say("NOT COMPARED", self.scenario, Mode::Move, reason);
            return Ok(());
        }
        let image = self.image(1).display().to_string();
        let args = ["dump", &root.to_string(), "-D", &image, "--leave-running"].map(str::to_owned);
        // What is the host's is read by who is there.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{root}/ns/net")).arg(env!("CARGO_BIN_EXE_migrate"));
        self.wait_for(command, &args, &[]).map_err(|e| format!("dump of what has moved: {e}"))?;
        self.same_model(0, 1, MOVED)
    }

    /// Dumps into image `n`. Whoever has ended by that is reaped.
    pub fn dump(&self, root: i32, n: usize, options: &[&str]) -> Result<(), String> {
        self.note_tree(root);
        let image = self.image(n);
        let mut args = vec!["dump".to_owned(), root.to_string(), "-D".to_owned(), image.display().to_string()];
        args.extend(options.iter().map(|o| (*o).to_owned()));
        self.migrate(&args, &[]).map_err(|e| format!("dump {n}: {e}"))?;
        if !options.contains(&"--leave-running") {
            self.reap();
        }
        Ok(())
    }

    /// Restores image `n`; the root's process id.
    pub fn restore(&self, n: usize, options: &[&str]) -> Result<i32, String> {
        self.restore_with(n, options, &[])
    }

    /// The same with these variables.
    pub fn restore_with(&self, n: usize, options: &[&str], env: &[(&str, &str)]) -> Result<i32, String> {
        let pid_file = self.path("pid");
        let image = self.image(n).display().to_string();
        let mut args: Vec<String> =
            ["restore", "-D", &image, "--detach", "--pidfile"].iter().map(|s| (*s).to_owned()).collect();
        args.push(pid_file.display().to_string());
        args.extend(options.iter().map(|o| (*o).to_owned()));
        self.migrate(&args, env).map_err(|e| format!("restore {n}: {e}"))?;
        let root = fs::read_to_string(&pid_file).map_err(|e| format!("no pidfile: {e}"))?;
        let root = root.trim().parse().map_err(|e| format!("{root:?}: {e}"))?;
        self.note_tree(root);
        Ok(root)
    }

    /// Directory of image `n`.
    pub fn image(&self, n: usize) -> PathBuf {
        self.path(&format!("image-{n}"))
    }

    /// Runs the program with its output in a file, so that nobody waits for descriptors that the target may have.
    pub fn migrate(&self, args: &[String], env: &[(&str, &str)]) -> Result<String, String> {
        self.wait_for(crate::cli::migrate(&[]), args, env)
    }

    /// Moves it, and has it verify itself while the move goes on; with `held` only what it touches is sent. What
    /// the move said.
    pub(super) fn follows(&self, how: &str, held: bool) -> Result<String, String> {
        self.note_tree(self.pid());
        let places = self.path("places").display().to_string();
        let mut env = vec![("MIGRATE_PLACES", places.as_str())];
        env.extend(held.then_some(("MIGRATE_FAULT", "pager-behind")));
        let args = self.move_args(self.pid(), "", &["--mode", how])?;
        let mut moving = self.spawn(crate::cli::migrate(&[]), &args, &env)?;
        let began = Instant::now();
        let switched = |text: &str| text.lines().any(|line| line.contains("\"event\":\"switched\""));
        while !switched(&self.text("log").unwrap_or_default()) {
            let ended = moving.try_wait().map_err(|e| e.to_string())?;
            if ended.is_some_and(|status| !status.success()) || began.elapsed() > self.patience {
                return Err(format!("move: {}", self.text("log").unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let verified = self.verify();
        // The target has ended, or touched all there is: nothing is missing any more.
        let said = self.ended(moving).map_err(|e| format!("move: {e}"))?;
        self.reap();
        verified.map(|()| said)
    }

    pub(super) fn wait_for(&self, command: Command, args: &[String], env: &[(&str, &str)]) -> Result<String, String> {
        let child = self.spawn(command, args, env)?;
        self.ended(child)
    }

    /// Starts it with its output in a file.
    fn spawn(&self, mut command: Command, args: &[String], env: &[(&str, &str)]) -> Result<Child, String> {
        let out = fs::File::create(self.path("log")).map_err(|e| e.to_string())?;
        command.args(args).stdout(out.try_clone().map_err(|e| e.to_string())?).stderr(out);
        command.envs(env.iter().copied());
        command.spawn().map_err(|e| e.to_string())
    }

    /// Waits for its end; what it said.
    fn ended(&self, mut child: Child) -> Result<String, String> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                let text = fs::read_to_string(self.path("log")).unwrap_or_default();
                return if status.success() { Ok(text) } else { Err(format!("{status}: {text}")) };
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("not done within {:?}", self.patience));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn capture(&self, pid: i32, name: &str) -> Result<PathBuf, String> {
        let file = self.path(name);
        reader(&["capture".as_ref(), pid.to_string().as_ref(), "-o".as_ref(), file.as_os_str()])?;
        Ok(file)
    }

    pub(super) fn compare(&self, before: &Path, after: &Path) -> Result<(), String> {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/allow.toml");
        let own = self.path("allow.toml");
        fs::write(&own, self.scenario.allow).map_err(|e| e.to_string())?;
        reader(&[
            "compare".as_ref(),
            before.as_os_str(),
            after.as_os_str(),
            "--allow".as_ref(),
            fixture.as_os_str(),
            "--allow".as_ref(),
            own.as_os_str(),
        ])
        .map_err(|e| format!("the independent reader sees a difference:\n{e}"))
    }

    /// The model of image `n` is that of image `first`.
    pub(super) fn same_model(&self, first: usize, n: usize, made: &[(&str, &str)]) -> Result<(), String> {
        let made: Vec<_> = made.iter().chain(self.scenario.ignore).copied().collect();
        same_models(&self.image(first), &self.image(n), &made)
    }

    /// Remembers who belongs to the tree, to reap and to end them.
    pub(super) fn note_tree(&self, root: i32) {
        note_tree(root, &mut self.tree.lock().unwrap_or_else(|e| e.into_inner()));
    }

    /// Collects those of the tree that have ended: their ids have to be free.
    pub fn reap(&self) {
        reap(&self.tree.lock().unwrap_or_else(|e| e.into_inner()));
    }

    /// What there is to see of the fixture, for a failure.
    pub fn state(&self) -> String {
        let mut text = String::new();
        for pid in marked(self.dir.path()) {
            let of = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            text += &format!("\n  {} waits in {}", of("stat").chars().take(60).collect::<String>(), of("wchan"));
        }
        text + "\n" + &self.text("failures").unwrap_or_default()
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // Children may be made while we look: until nobody is found.
        for _ in 0..100 {
            let found = marked(self.dir.path());
            if found.is_empty() {
                break;
            }
            for pid in found {
                self.tree.lock().unwrap_or_else(|e| e.into_inner()).insert(pid);
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.reap();
        if self.scenario.case == "system_v" {
            // A fixture that failed has not removed its segment; the key has its process id.
            let key = format!("{:#x}", 0x5a00_0000 | self.pid());
            let _ = Command::new("ipcrm").args(["-M", &key]).stderr(Stdio::null()).status();
        }
        let _ = self.child.lock().unwrap_or_else(|e| e.into_inner()).wait();
    }
}
