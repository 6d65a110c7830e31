//! Two hosts, a link, a target and its witness: one run.

use crate::accident::{Moment, Side, What, Who, draw};
use crate::host::{Host, Inside, send, state};
use crate::link::{Link, Outage};
use crate::witness::{Book, Read, TARGET};
use nix::sys::signal::Signal;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The program: a copy, so that another build does not change it in the middle.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Makes that copy.
pub fn keep_program(dir: &Path) -> io::Result<()> {
    let path = dir.join("migrate");
    std::fs::copy(env!("CARGO_BIN_EXE_migrate"), &path)?;
    PROGRAM.get_or_init(|| path);
    Ok(())
}

fn program() -> &'static Path {
    PROGRAM.get().expect("copied before the first run")
}

/// Time-outs that are chosen by option; the longest that are not are those of a guardian's socket (5 s).
const PEER_TIMEOUT: &str = "1s";
/// Longer than each of them.
const STOPPED: Duration = Duration::from_millis(6500);
/// Until each side has decided what it makes of the silence.
const HEALED_AFTER: Duration = Duration::from_millis(2500);
const POWER_IS_BACK: Duration = Duration::from_millis(500);
/// How long the programs have to settle it by themselves.
const SETTLED: Duration = Duration::from_secs(15);
/// Tickets that prove that it goes on.
const GOES_ON: usize = 20;

/// What became of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Moved,
    Stayed,
    /// With the only host that had a complete state.
    EndedWithHost,
    Lost,
    Doubled,
}

/// One run.
#[derive(Debug)]
pub struct Record {
    pub moment: Moment,
    pub what: What,
    pub end: End,
    pub read: Read,
    /// The source did not know for a while.
    pub doubted: bool,
    /// A person decided.
    pub person: Option<String>,
    /// Copies that nobody needs, and that are still there.
    pub left: usize,
    /// The step was not reached.
    pub missed: bool,
}

/// What the move has said so far.
#[derive(Debug, Default)]
struct Said {
    frozen: Option<Instant>,
    switched: Option<Instant>,
    doubted: bool,
    last: String,
}

struct Stage {
    dir: tempfile::TempDir,
    a: Host,
    b: Host,
    agent: Inside,
    link: Link,
    book: Book,
    environment: Vec<(&'static str, String)>,
}

impl Stage {
    fn set(disk: &Path, environment: Vec<(&'static str, String)>) -> io::Result<Self> {
        let dir = tempfile::tempdir_in("/dev/shm")?;
        let (a, b) = (Host::up("a", dir.path(), disk)?, Host::up("b", dir.path(), disk)?);
        let socket = dir.path().join("agent.sock");
        let agent = agent(&b, &socket, &environment)?;
        let link = Link::lay(&dir.path().join("link.sock"), &socket)?;
        let book = Book { path: dir.path().join("book") };
        // Alone with process 1 of its host: whoever starts it must not see it stop.
        let mut target = a.command("sh");
        target
            .args(["-c", "setsid /usr/bin/python3 -c \"$1\" \"$2\" < /dev/null > /dev/null 2>&1 &", "sh", TARGET])
            .arg(&book.path);
        target.status()?;
        let stage = Self { dir, a, b, agent, link, book, environment };
        match wait(|| stage.book.tickets() > 5, Duration::from_secs(20)) {
            true => Ok(stage),
            false => Err(io::Error::other("the target does not begin")),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn targets(&self, host: &Host) -> Vec<i32> {
        host.processes(&self.book.path.display().to_string())
    }

    fn mover(&self) -> io::Result<(Inside, Arc<Mutex<Said>>)> {
        let pids = self.targets(&self.a);
        let [target] = pids.as_slice() else { return Err(io::Error::other(format!("targets: {pids:?}"))) };
        let status = std::fs::read_to_string(format!("/proc/{target}/status"))?;
        let pid = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last());
        let mut command = self.a.command(program());
        command.args(["move", pid.unwrap_or_default(), &format!("unix:{}", self.path("link.sock").display())]);
        command.args(["--json", "--peer-timeout", PEER_TIMEOUT, "--connect-timeout", PEER_TIMEOUT]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).stdout(Stdio::piped());
        if std::env::var_os("CHAOS_LOG").is_some() {
            command.args(["-vv", "--log"]).arg(self.path("mover.log"));
        }
        let mut mover = self.a.start(command)?;
        let said = Arc::new(Mutex::new(Said::default()));
        let (lines, tell) = (mover.take_stdout().expect("piped"), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let mut said = tell.lock().unwrap_or_else(PoisonError::into_inner);
                if line.contains("\"event\":\"frozen\"") {
                    said.frozen = Some(Instant::now());
                }
                if line.contains("\"event\":\"switched\"") {
                    said.switched = Some(Instant::now());
                }
                said.doubted |= line.contains("in doubt");
                said.last = line;
            }
        });
        Ok((mover, said))
    }

    /// Processes of sessions: children of the agent. What they have made of the target has their command line, too.
    fn sessions(&self) -> Vec<i32> {
        let agent = format!("PPid:\t{}\n", self.agent.pid);
        let of_agent = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| status.contains(&agent))
        };
        self.b.processes("session-process").into_iter().filter(of_agent).collect()
    }

    fn members(&self, who: Who, mover: &Inside) -> Vec<i32> {
        let mut pids = Vec::new();
        if who.guardian {
            pids.extend(self.a.processes("guardian-process"));
            pids.extend(self.a.processes("lock-guard-process"));
        }
        pids.extend(who.mover.then_some(mover.pid));
        if who.session {
            pids.extend(self.sessions());
        }
        pids
    }

    /// Whoever has come to the step, or nobody.
    fn wait_for(&self, moment: Moment, mover: &mut Inside, said: &Mutex<Said>) -> Option<i32> {
        let frozen = || said.lock().unwrap_or_else(PoisonError::into_inner).frozen;
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            match moment {
                Moment::After(time) => match frozen() {
                    Some(frozen) => {
                        std::thread::sleep((frozen + time).saturating_duration_since(Instant::now()));
                        return None;
                    }
                    None if mover.has_ended() => return None,
                    None => {}
                },
                Moment::Step(_) => {
                    let all = std::iter::once(mover.pid).chain(self.sessions());
                    if let Some(stopped) = all.into_iter().find(|pid| state(*pid) == Some('T')) {
                        return Some(stopped);
                    }
                }
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        None
    }

    fn strike(&mut self, what: What, mover: &Inside, stopped: Option<i32>) -> io::Result<()> {
        match what {
            What::Killed(who) => self.members(who, mover).into_iter().for_each(|pid| send(pid, Signal::SIGKILL)),
            What::Stopped(who) => {
                let members = self.members(who, mover);
                members.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
                std::thread::sleep(STOPPED);
                members.iter().for_each(|pid| send(*pid, Signal::SIGCONT));
                mover.go_on();
            }
            What::Link(outage) => self.link.set(outage),
            What::Power(Side::Source) => self.a.lose_power(POWER_IS_BACK, mover)?,
            What::Power(Side::Destination) => {
                self.b.lose_power(POWER_IS_BACK, &self.agent)?;
                self.agent = agent(&self.b, &self.path("agent.sock"), &self.environment)?;
            }
            What::DiskFull(Side::Source) => self.a.fill_disk()?,
            What::DiskFull(Side::Destination) => self.b.fill_disk()?,
            What::OutOfMemory(side) => {
                let pids = if side == Side::Source { vec![mover.pid] } else { self.sessions() };
                for pid in pids {
                    Command::new("prlimit").args(["--as=1048576:1048576", "--pid", &pid.to_string()]).status()?;
                }
            }
            What::CopyKilled => {
                self.targets(&self.b).into_iter().take(1).for_each(|pid| send(pid, Signal::SIGKILL));
            }
        }
        if let Some(pid) = stopped {
            send(pid, Signal::SIGCONT);
        }
        mover.go_on();
        if let What::Link(_) = what {
            std::thread::sleep(HEALED_AFTER);
            self.link.set(Outage::default());
        }
        Ok(())
    }

    fn goes_on(&self, limit: Duration) -> bool {
        let before = self.book.tickets();
        wait(|| self.book.tickets() > before + GOES_ON, limit)
    }

    fn said(&self, host: &Host, words: &[&str]) -> serde_json::Value {
        let output = host.command(program()).args(words).arg("--json").stdout(Stdio::piped()).output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        serde_json::from_slice(text.rsplit(|b| *b == b'\n').find(|line| !line.is_empty()).unwrap_or(b"null"))
            .unwrap_or_default()
    }

    fn entry(&self, host: &Host) -> serde_json::Value {
        self.said(host, &["status", "--all"])["sessions"][0].clone()
    }

    /// Everything that is known, for whoever looks for a defect.
    fn tell(&self, seed: u64) {
        for host in [&self.a, &self.b] {
            println!("  seed {seed}: {}", self.entry(host));
            for pid in self.targets(host) {
                println!("  seed {seed}: process {pid} is {:?}", state(pid));
            }
        }
    }

    /// What a person does who goes by what both hosts say; `None` where there is nothing to decide.
    fn decision(&self) -> Option<(&Host, String, &'static str)> {
        let (a, b) = (self.entry(&self.a), self.entry(&self.b));
        let word = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let (owner, phase) = (word(&a, "owner"), word(&a, "phase"));
        let waits = word(&b, "phase").starts_with("prepared");
        let at_a = |choice| Some((&self.a, word(&a, "session"), choice));
        let at_b = |choice| Some((&self.b, word(&b, "session"), choice));
        if phase == "stayed" || phase == "moved" {
            return if waits { at_b("--discard") } else { None };
        }
        match owner.as_str() {
            // The original has ended with its host.
            "nobody" => {
                if waits {
                    at_b("--run")
                } else {
                    None
                }
            }
            "in-doubt" | "there" if self.a.was_down() => {
                if waits {
                    at_b("--run")
                } else {
                    at_a("--discard")
                }
            }
            "there" => at_a("--discard"),
            "in-doubt" if word(&a, "words").contains("ended with that host") => at_a("--discard"),
            "here" if waits => at_b("--discard"),
            "here" | "in-doubt" => at_a("--run"),
            _ => None,
        }
    }

    /// Decides, until there is nothing left to decide.
    fn person(&self) -> Option<String> {
        let mut decided = Vec::new();
        for _ in 0..6 {
            let Some((host, session, choice)) = self.decision() else { break };
            let place = if std::ptr::eq(host, &self.a) { "a" } else { "b" };
            self.said(host, &["resolve", &session, choice, "--yes"]);
            decided.push(format!("{place} {choice}"));
            std::thread::sleep(Duration::from_millis(50));
        }
        (!decided.is_empty()).then(|| decided.join(", "))
    }
}

fn agent(on: &Host, socket: &Path, environment: &[(&'static str, String)]) -> io::Result<Inside> {
    let mut command = on.command(program());
    command.args(["agent", "--listen", &format!("unix:{}", socket.display())]);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    if std::env::var_os("CHAOS_LOG").is_some() {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(socket.with_extension("log"))?;
        command.arg("-vv").stderr(log);
    }
    let before = socket.metadata().ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
    let agent = on.start(command)?;
    let is_new = || {
        let now = socket.metadata().ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
        now.is_some() && now != before
    };
    match wait(is_new, Duration::from_secs(10)) {
        true => Ok(agent),
        false => Err(io::Error::other("the agent does not begin")),
    }
}

fn wait(mut until: impl FnMut() -> bool, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while !until() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// How long an undisturbed handover takes: from the freeze until the target runs over there, and half as long again for what is
/// said afterwards.
pub fn usual(disk: &Path) -> io::Result<Duration> {
    let stage = Stage::set(disk, Vec::new())?;
    let (mut mover, said) = stage.mover()?;
    let status = mover.wait(Duration::from_secs(30));
    std::thread::sleep(Duration::from_millis(50));
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    match (status, said.frozen, said.switched) {
        (Some(status), Some(frozen), Some(switched)) if status.success() && stage.goes_on(Duration::from_secs(5)) => {
            Ok((switched - frozen) * 3 / 2)
        }
        _ => Err(io::Error::other(format!("an undisturbed move fails: {}", said.last))),
    }
}

/// One run.
pub fn run(disk: &Path, seed: u64, usual: Duration, broken: Option<&str>) -> io::Result<Record> {
    let (moment, what) = draw(seed, usual);
    let once = tempfile::NamedTempFile::new()?;
    let mut environment: Vec<(&'static str, String)> = Vec::new();
    environment.extend(broken.map(|rules| ("MIGRATE_BREAK", rules.to_owned())));
    if let Moment::Step(point) = moment {
        environment.push(("MIGRATE_STOP", point.name().to_owned()));
        environment.push(("MIGRATE_ONCE", once.path().display().to_string()));
    }
    let mut stage = Stage::set(disk, environment)?;
    let (mut mover, said) = stage.mover()?;
    let stopped = stage.wait_for(moment, &mut mover, &said);
    let missed = matches!(moment, Moment::Step(_)) && stopped.is_none();
    stage.strike(what, &mover, stopped)?;
    let began = Instant::now();
    let mut settled = false;
    while !settled && began.elapsed() < SETTLED {
        settled = stage.goes_on(Duration::from_secs(1)) && mover.has_ended();
    }
    if !mover.has_ended() {
        send(mover.pid, Signal::SIGTERM);
        if mover.wait(Duration::from_secs(5)).is_none() {
            println!("  seed {seed}: the move does not end");
            mover.kill();
        }
    }
    // What is settled a little later needs no person.
    let copies = |stage: &Stage| stage.targets(&stage.a).len() + stage.targets(&stage.b).len();
    wait(|| copies(&stage) <= 1, Duration::from_secs(if settled { 4 } else { 0 }));
    let person = if settled && copies(&stage) <= 1 { None } else { stage.person() };
    let goes_on = stage.goes_on(Duration::from_secs(10));
    let read = stage.book.read();
    let (here, there) = (stage.targets(&stage.a), stage.targets(&stage.b));
    let end = match (read.doubled, goes_on, here.is_empty()) {
        (true, ..) => End::Doubled,
        (_, true, false) => End::Stayed,
        (_, true, true) if there.is_empty() => return Err(io::Error::other("nobody is seen, and somebody counts")),
        (_, true, true) => End::Moved,
        (_, false, _) if matches!(what, What::Power(_)) && here.is_empty() && there.is_empty() => End::EndedWithHost,
        (_, false, _) => End::Lost,
    };
    let doubted = said.lock().unwrap_or_else(PoisonError::into_inner).doubted || stage.a.has_guardian_log();
    let left = (here.len() + there.len()).saturating_sub(1);
    if matches!(end, End::Lost | End::Doubled) || left > 0 || read.wrong > 0 {
        stage.tell(seed);
        if std::env::var_os("CHAOS_LOG").is_some() {
            let kept = std::env::temp_dir().join(format!("chaos-{seed}"));
            std::fs::create_dir_all(&kept)?;
            for name in ["mover.log", "agent.log", "book"] {
                let _ = std::fs::copy(stage.path(name), kept.join(name));
            }
        }
    }
    Ok(Record { moment, what, end, read, doubted, person, left, missed })
}
