//! Commands of a person at named points of a move: `--hook POINT=COMMAND`, and what lies in `hooks.d/POINT`.
//!
//! Until COMMIT a command that fails rolls the move back, later it is a warning. Each has ten seconds; then it is ended with
//! everybody it has started, also those that have left its session: they are known by a word in their environment.

use super::places::Places;
use super::{Event, Events, Quiet};
use crate::failure::{Failure, Result};
use crate::image::Pid;
use crate::migration::destination::Introduction;
use crate::proc::table::Table;
use crate::proc::{ProcDir, task};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// By what everybody is known that a command has started.
const MARK: &str = "MIGRATE_HOOK_MARK";

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal, $source:literal, $destination:literal;)*) => {
        /// When a hook runs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum HookPoint { $($(#[$doc])* $point,)* }

        impl HookPoint {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$point,)*];

            /// On the command line, and as a directory.
            pub fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }

            /// Whether it runs on this side.
            pub fn is_on(self, side: Side) -> bool {
                let (source, destination) = match self { $(Self::$point => ($source, $destination),)* };
                match side {
                    Side::Source => source,
                    Side::Destination => destination,
                }
            }
        }
    };
}

points! {
    /// Nothing has been stopped; both sides look whether the target may move.
    Preflight = "preflight", true, true;
    /// The target is about to be stopped.
    PreFreeze = "pre-freeze", true, false;
    /// It stands still: the pause lasts as long as the command.
    Frozen = "frozen", true, false;
    /// The destination is ready; the last moment in which the move can be called off.
    PreCommit = "pre-commit", true, false;
    /// An address moves in a way of the person's own: away from the source in the pause, to the destination when it runs.
    Network = "network", true, true;
    /// It runs at the destination.
    Running = "running", false, true;
    /// It goes on at the source after all.
    RolledBack = "rolled-back", true, true;
    /// The original has ended.
    Done = "done", true, true;
    /// A copy of the target runs here, beside the original and other copies.
    Clone = "clone", false, true;
}

/// Where a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the target was.
    Source,
    /// Where it goes.
    Destination,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// `--hook POINT=COMMAND`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// When.
    pub point: HookPoint,
    /// For a shell.
    pub command: String,
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        let (name, command) = word.split_once('=').ok_or("write POINT=COMMAND")?;
        let point = HookPoint::ALL.iter().find(|point| point.name() == name);
        let names = || HookPoint::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ");
        let point = *point.ok_or_else(|| format!("there is no point {name:?}: {}", names()))?;
        if command.trim().is_empty() {
            return Err(format!("{name} has no command"));
        }
        Ok(Self { point, command: command.to_owned() })
    }
}

/// How a hook has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// With this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It took too long, and was ended.
    TimedOut,
    /// It could not be run.
    NotRun,
}

/// A hook that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookEnd {
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub how: How,
}

/// The hooks of one session on one side, and what they are told.
#[derive(Debug, Clone)]
pub struct Hooks {
    side: Side,
    given: Vec<Hook>,
    /// Where directories of hooks are, one for each point.
    dirs: PathBuf,
    session: String,
    peer: String,
    /// The root of the target at the source.
    pub target_pid: Option<i32>,
    /// The same at the destination, once it runs.
    pub dest_pid: Option<i32>,
    /// Which of several copies it is.
    pub clone_id: Option<String>,
    patience: Duration,
}

impl Hooks {
    /// Those that were given, and those of this host.
    pub fn new(side: Side, given: Vec<Hook>, session: impl Into<String>, peer: impl Into<String>) -> Self {
        Self {
            side,
            given,
            dirs: Places::here().hooks(),
            session: session.into(),
            peer: peer.into(),
            target_pid: None,
            dest_pid: None,
            clone_id: None,
            patience: PATIENCE,
        }
    }

    /// Runs those of a point that is before COMMIT. Each is told to `events` as it begins and as it ends.
    ///
    /// # Errors
    /// The first that fails; the others are not run.
    pub fn run(&self, point: HookPoint, events: &dyn Events) -> Result<()> {
        self.commands(point).into_iter().try_for_each(|(name, command)| self.told(point, &name, command, events))
    }

    /// Runs those of a point at which nothing can be called off any more; what has failed, in words.
    pub fn run_all(&self, point: HookPoint, events: &dyn Events) -> Vec<String> {
        let ended = self.commands(point).into_iter().map(|(name, command)| self.told(point, &name, command, events));
        ended.filter_map(Result::err).map(|failure| failure.to_string()).collect()
    }

    /// In the order of their names those of the directory, then those given.
    fn commands(&self, point: HookPoint) -> Vec<(String, Command)> {
        if !point.is_on(self.side) {
            return Vec::new();
        }
        let entries = std::fs::read_dir(self.dirs.join(point.name())).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|path| {
            std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        });
        files.sort();
        let files = files.into_iter().map(|path| (path.display().to_string(), Command::new(path)));
        let given = self.given.iter().filter(|hook| hook.point == point).map(|hook| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &hook.command]);
            (hook.command.clone(), command)
        });
        files.chain(given).collect()
    }

    /// One command, from its beginning to its end.
    fn told(&self, point: HookPoint, name: &str, command: Command, events: &dyn Events) -> Result<()> {
        let tell = |ended| events.event(Event::Hook { point, name: name.to_owned(), ended });
        tell(None);
        let began = Instant::now();
        let ended = self.one(point, command);
        let took = began.elapsed();
        let how = ended.as_ref().map_or(How::NotRun, |how| *how);
        tell(Some(HookEnd { took, how }));
        let why = match ended {
            Ok(How::Exit(0)) => return Ok(()),
            Ok(How::Exit(code)) => format!("it ended with status {code}"),
            Ok(How::Signal(signal)) => format!("it ended by signal {signal}"),
            Ok(_) => {
                format!("it did not end within {} s, and was ended", self.patience.as_secs())
            }
            Err(error) => error.to_string(),
        };
        let what = format!("the hook at {} failed: {name}", point.name());
        Err(Failure { causes: vec![why], ..Failure::new(what) })
    }

    fn one(&self, point: HookPoint, mut command: Command) -> std::io::Result<How> {
        let mark = format!("{}-{}-{}", self.session, point.name(), std::process::id());
        let environment: [(&str, OsString); 8] = [
            ("MIGRATE_HOOK", point.name().into()),
            ("MIGRATE_SIDE", self.side.name().into()),
            ("MIGRATE_SESSION", self.session.clone().into()),
            ("MIGRATE_TARGET_PID", number(self.target_pid)),
            ("MIGRATE_DEST_PID", number(self.dest_pid)),
            ("MIGRATE_PEER", self.peer.clone().into()),
            ("MIGRATE_CLONE_ID", self.clone_id.clone().unwrap_or_default().into()),
            (MARK, mark.clone().into()),
        ];
        // The result alone goes to standard output.
        let output = std::io::stderr().as_fd().try_clone_to_owned()?;
        command.envs(environment).stdin(Stdio::null()).stdout(Stdio::from(output)).process_group(0);
        let mut child = command.spawn()?;
        let until = Instant::now() + self.patience;
        loop {
            match child.try_wait()? {
                Some(status) => {
                    let signal = || How::Signal(status.signal().unwrap_or_default());
                    return Ok(status.code().map_or_else(signal, How::Exit));
                }
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                None => break,
            }
        }
        end_all(Pid(child.id() as i32), &mark);
        // It was killed: it is only to be taken from the table.
        let _ = child.wait();
        Ok(How::TimedOut)
    }
}

/// Hooks of the destination: those of points at which nobody waits for them run beside the session.
#[derive(Debug, Default)]
pub struct Aside {
    hooks: Option<Hooks>,
    dry_run: bool,
    begun: bool,
    runs: bool,
    threads: Vec<std::thread::JoinHandle<()>>,
    /// Which of several copies comes.
    pub clone_id: Option<String>,
}

impl Aside {
    /// Of a session.
    pub fn of(who: &Introduction<'_>) -> Self {
        let mut hooks = Hooks::new(Side::Destination, Vec::new(), who.session, who.peer);
        hooks.target_pid = Some(who.target_pid);
        Self { hooks: Some(hooks), dry_run: who.dry_run, ..Self::default() }
    }

    /// With those that the source's user has given.
    ///
    /// # Errors
    /// One of the preflight fails.
    pub fn preflight(&mut self, given: &[Hook]) -> Result<()> {
        let Some(hooks) = &mut self.hooks else { return Ok(()) };
        (hooks.given, hooks.clone_id) = (given.to_vec(), self.clone_id.clone());
        hooks.run(HookPoint::Preflight, &Quiet)
    }

    /// Something is made here: what is rolled back has something to roll back.
    pub fn begun(&mut self) {
        self.begun = !self.dry_run;
    }

    /// The target runs here.
    pub fn runs(&mut self, root: i32) {
        if let Some(hooks) = self.hooks.as_mut().filter(|_| !self.runs) {
            hooks.dest_pid = Some(root);
            self.runs = true;
            self.beside(match self.clone_id {
                // No address moves.
                Some(_) => &[HookPoint::Clone, HookPoint::Running],
                None => &[HookPoint::Network, HookPoint::Running],
            });
        }
    }

    /// What was made is gone.
    pub fn rolled_back(&mut self) {
        if std::mem::take(&mut self.begun) && !self.runs {
            self.beside(&[HookPoint::RolledBack]);
        }
    }

    /// The session is over; `done`: the source knows that it runs here.
    pub fn end(&mut self, done: bool) {
        self.threads.drain(..).for_each(wait_for);
        if done && self.runs {
            self.beside(&[HookPoint::Done]);
            self.threads.drain(..).for_each(wait_for);
        }
    }

    fn beside(&mut self, points: &'static [HookPoint]) {
        let Some(hooks) = self.hooks.clone() else { return };
        let run = move || {
            for warning in points.iter().flat_map(|point| hooks.run_all(*point, &Quiet)) {
                tracing::warn!("{warning}");
            }
        };
        match std::thread::Builder::new().name("hooks".into()).spawn(run) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => tracing::warn!(%error, "hooks could not be run"),
        }
    }
}

/// It has a limit for each command.
fn wait_for(thread: std::thread::JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of hooks has died");
    }
}

fn number(pid: Option<i32>) -> OsString {
    pid.map(|pid| pid.to_string()).unwrap_or_default().into()
}

/// Ends a command with everybody it has started, whatever became of their parents and sessions.
fn end_all(root: Pid, mark: &str) {
    const LOOKS: u32 = 20;
    let word = format!("{MARK}={mark}");
    for _ in 0..LOOKS {
        let own = Pid(std::process::id() as i32);
        let table = Table::read().unwrap_or_default();
        let mut found: Vec<Pid> = table.tree(root);
        found.extend(task::processes().unwrap_or_default().into_iter().filter(|pid| is_marked(*pid, &word)));
        found.retain(|pid| *pid != own && table.get(*pid).is_some_and(|row| !row.stat.is_zombie()));
        if found.is_empty() {
            return;
        }
        for pid in found {
            // One that has just ended needs no more.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    tracing::warn!(root = root.0, "not everybody that a hook has started could be ended");
}

fn is_marked(pid: Pid, word: &str) -> bool {
    let mut buf = Vec::new();
    let environment = ProcDir::open(pid).and_then(|dir| dir.read_into("environ", &mut buf).map(<[u8]>::to_vec));
    environment.is_ok_and(|text| text.split(|byte| *byte == 0).any(|variable| variable == word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(dir: &std::path::Path, given: &[&str]) -> Hooks {
        let given = given.iter().map(|word| word.parse().unwrap()).collect();
        let mut hooks = Hooks::new(Side::Source, given, "abcdefgh", "host-b");
        (hooks.dirs, hooks.target_pid) = (dir.join("hooks.d"), Some(42));
        hooks
    }

    /// Names of hooks, and how they ended where they have.
    #[derive(Default)]
    struct Told(std::sync::Mutex<Vec<(String, Option<How>)>>);

    impl Told {
        fn take(&self) -> Vec<(String, Option<How>)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Events for Told {
        fn event(&self, event: Event) {
            let Event::Hook { name, ended, .. } = event else { panic!("{event:?}") };
            self.0.lock().unwrap().push((name, ended.map(|ended| ended.how)));
        }
    }

    #[test]
    fn hooks_are_read() {
        let hook: Hook = "pre-freeze=echo a=b".parse().unwrap();
        assert_eq!(hook, Hook { point: HookPoint::PreFreeze, command: "echo a=b".into() });
        for wrong in ["pre-freeze", "never=x", "frozen= "] {
            assert!(wrong.parse::<Hook>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn they_run_in_order_with_what_they_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        let point = dir.path().join("hooks.d/frozen");
        std::fs::create_dir_all(&point).unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o755), ("30-not-executable", 0o644)] {
            let path = point.join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho {name} >> {}\n", said.display())).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let words = "$MIGRATE_HOOK $MIGRATE_SIDE $MIGRATE_SESSION $MIGRATE_TARGET_PID $MIGRATE_DEST_PID. $MIGRATE_PEER";
        let given = format!("frozen=echo {words} >> {}", said.display());
        let hooks = hooks(dir.path(), &[&given, "running=exit 1", "pre-freeze=exit 7"]);
        let told = Told::default();
        hooks.run(HookPoint::Frozen, &told).unwrap();
        assert_eq!(std::fs::read_to_string(&said).unwrap(), "10-a\n20-b\nfrozen source abcdefgh 42 . host-b\n");
        let names: Vec<String> = told.take().into_iter().map(|(name, ended)| format!("{name} {ended:?}")).collect();
        let file = |name: &str| point.join(name).display().to_string();
        let echo = format!("echo {words} >> {}", said.display());
        let wanted = [file("10-a"), file("20-b"), echo];
        let wanted: Vec<String> =
            wanted.iter().flat_map(|name| [format!("{name} None"), format!("{name} Some(Exit(0))")]).collect();
        assert_eq!(names, wanted, "each begins, and ends before the next one begins");
        hooks.run(HookPoint::Running, &told).expect("that is the other side's");
        assert_eq!(told.take(), []);
        let failure = hooks.run(HookPoint::PreFreeze, &told).unwrap_err();
        let none = ("exit 7".to_owned(), None);
        assert_eq!(told.take(), [none, ("exit 7".to_owned(), Some(How::Exit(7)))]);
        assert!(failure.to_string().contains("status 7"), "{failure}");
        assert_eq!(hooks.run_all(HookPoint::PreFreeze, &Quiet).len(), 1);
    }

    #[test]
    fn one_that_takes_too_long_ends_with_everybody_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let script = "frozen=sleep 1013 & setsid sleep 1014 & (setsid sleep 1015 &) ; sleep 1016";
        let mut hooks = hooks(dir.path(), &[script]);
        hooks.patience = Duration::from_millis(300);
        let told = Told::default();
        let failure = hooks.run(HookPoint::Frozen, &told).unwrap_err();
        assert_eq!(told.take().pop().and_then(|(_, ended)| ended), Some(How::TimedOut));
        assert!(failure.to_string().contains("did not end"), "{failure}");
        let left = task::processes().unwrap().into_iter().filter(|pid| {
            let mut buf = Vec::new();
            let line = ProcDir::open(*pid).and_then(|dir| dir.read_into("cmdline", &mut buf).map(<[u8]>::to_vec));
            line.is_ok_and(|line| (1013..=1016).any(|n| line == format!("sleep\0{n}\0").as_bytes()))
        });
        assert_eq!(left.collect::<Vec<_>>(), []);
    }
}
