//! Two hosts, a link, a target and its witness: one run.

use crate::accident::{Mode, Moment, Side, What, Who, draw};
use crate::client::{Client, Seen};
use crate::host::{Host, Inside, send, state};
use crate::link::{Link, Outage};
use crate::net::{ADDRESS, MOVES, Networks, Place};
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
/// Bytes a second, where memory follows: so that it takes its time.
const RATE: u32 = 16 << 20;
/// Tickets that prove that it goes on.
const GOES_ON: usize = 20;

/// What became of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Moved,
    Stayed,
    /// With the only host that had a complete state.
    EndedWithHost,
    /// Memory that had still to come went with the source: the target stands still, and what is missing is named.
    Halted,
    Lost,
    Doubled,
}

/// One run.
#[derive(Debug)]
pub struct Record {
    pub mode: Mode,
    pub moment: Moment,
    pub what: What,
    pub end: End,
    pub read: Read,
    pub client: Seen,
    /// The target goes on, and the client is not answered.
    pub deaf: bool,
    /// The client's connection broke, and its peer had not ended with its host.
    pub cut: bool,
    /// What was taken away was asked for, and refused.
    pub felt: bool,
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
    client: Client,
    mode: Mode,
    environment: Vec<(&'static str, String)>,
}

impl Stage {
    fn set(disk: &Path, mode: Mode, environment: Vec<(&'static str, String)>) -> io::Result<Self> {
        let dir = tempfile::tempdir_in("/dev/shm")?;
        let networks = Arc::new(Networks::make()?);
        let up = |name, place| Host::up(name, place, &networks, dir.path(), disk);
        let (a, b) = (up("a", Place::A)?, up("b", Place::B)?);
        let socket = dir.path().join("agent.sock");
        let agent = agent(&b, &socket, &environment)?;
        let link = Link::lay(&dir.path().join("link.sock"), &socket, mode.is_late().then_some(RATE))?;
        let book = Book { path: dir.path().join("book") };
        // Alone with process 1 of its host: whoever starts it must not see it stop.
        let mut target = a.command("sh");
        target
            .args([
                "-c",
                "setsid /usr/bin/python3 -c \"$1\" \"$2\" \"$3\" < /dev/null > /dev/null 2>&1 &",
                "sh",
                TARGET,
            ])
            .arg(&book.path)
            .arg(ADDRESS);
        target.status()?;
        if !wait(|| book.tickets() > 5, Duration::from_secs(20)) {
            return Err(io::Error::other("the target does not begin"));
        }
        let client = Client::start(&dir.path().join("book.port"), &networks.path(Place::Client))?;
        let stage = Self { dir, a, b, agent, link, book, client, mode, environment };
        match stage.client.is_answered(Duration::from_secs(5)) {
            true => Ok(stage),
            false => Err(io::Error::other("the target does not answer")),
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
        command.args(["--mode", self.mode.name(), "--move-address", MOVES]).stderr(appended(&self.path("mover.err"))?);
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

fn appended(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().append(true).create(true).open(path)
}

/// What the kernel and programs say that get no room.
const REFUSED: [&str; 5] = ["No space left", "ENOSPC", "memory allocation of", "Cannot allocate memory", "ENOMEM"];

fn agent(on: &Host, socket: &Path, environment: &[(&'static str, String)]) -> io::Result<Inside> {
    let mut command = on.command(program());
    command.args(["agent", "--listen", &format!("unix:{}", socket.display())]);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stderr(appended(&socket.with_extension("err"))?);
    if std::env::var_os("CHAOS_LOG").is_some() {
        command.arg("-vv");
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
    let stage = Stage::set(disk, Mode::Auto, Vec::new())?;
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
    let (mode, moment, what) = draw(seed, usual);
    let once = tempfile::NamedTempFile::new()?;
    let mut environment: Vec<(&'static str, String)> = Vec::new();
    environment.extend(broken.map(|rules| ("MIGRATE_BREAK", rules.to_owned())));
    if let Moment::Step(point) = moment {
        environment.push(("MIGRATE_STOP", point.name().to_owned()));
        environment.push(("MIGRATE_ONCE", once.path().display().to_string()));
    }
    if what.takes_pages() {
        environment.push(("MIGRATE_FAULT", "pager-impatient".to_owned()));
    }
    let mut stage = Stage::set(disk, mode, environment)?;
    let (mut mover, said) = stage.mover()?;
    let stopped = stage.wait_for(moment, &mut mover, &said);
    let missed = matches!(moment, Moment::Step(_)) && stopped.is_none();
    stage.strike(what, &mover, stopped)?;
    let settled = stage.settles(seed, &mut mover);
    let person = if settled { None } else { stage.person() };
    let record = stage.judge(what, person)?;
    let doubted = said.lock().unwrap_or_else(PoisonError::into_inner).doubted || stage.a.has_guardian_log();
    let record = Record { moment, doubted, missed, ..record };
    if record.is_bad(broken.is_some()) {
        stage.tell(seed);
        stage.keep(seed);
    }
    Ok(record)
}

impl Stage {
    /// Whether the programs settle it by themselves: the move ends, one copy is left, and it goes on or has to stand still.
    fn settles(&self, seed: u64, mover: &mut Inside) -> bool {
        let began = Instant::now();
        let mut settled = false;
        while !settled && began.elapsed() < SETTLED {
            settled = (self.goes_on(Duration::from_secs(1)) || self.has_halted()) && mover.has_ended();
        }
        if !mover.has_ended() {
            send(mover.pid, Signal::SIGTERM);
            if mover.wait(Duration::from_secs(5)).is_none() {
                println!("  seed {seed}: the move does not end");
                mover.kill();
            }
        }
        // What is settled a little later needs no person.
        let one = || self.targets(&self.a).len() + self.targets(&self.b).len() <= 1;
        wait(one, Duration::from_secs(if settled && !self.has_halted() { 4 } else { 0 }));
        settled && (one() || self.has_halted())
    }

    /// Everybody of the copy over there is stopped, and it is told what is missing.
    fn has_halted(&self) -> bool {
        let there = self.targets(&self.b);
        self.mode.is_late()
            && !there.is_empty()
            && there.iter().all(|pid| state(*pid) == Some('T'))
            && self.b.missing().is_some()
    }

    fn judge(&self, what: What, person: Option<String>) -> io::Result<Record> {
        let goes_on = self.goes_on(Duration::from_secs(if self.has_halted() { 1 } else { 10 }));
        // Its peer's kernel asks again the later the longer it has not been answered.
        let deaf = goes_on && !self.client.is_answered(Duration::from_secs(10) + 2 * self.book.read().stood);
        let (read, client) = (self.book.read(), self.client.seen());
        let (here, there) = (self.targets(&self.a), self.targets(&self.b));
        let end = match (read.doubled, goes_on, here.is_empty()) {
            (true, ..) => End::Doubled,
            (_, true, false) => End::Stayed,
            (_, true, true) if there.is_empty() => return Err(io::Error::other("nobody is seen, and somebody counts")),
            (_, true, true) => End::Moved,
            (_, false, _) if matches!(what, What::Power(_)) && here.is_empty() && there.is_empty() => {
                End::EndedWithHost
            }
            (_, false, _) if what.takes_pages() && self.has_halted() => End::Halted,
            (_, false, _) => End::Lost,
        };
        let cut = client.broken > 0 && !matches!(what, What::Power(_)) && goes_on;
        // The original has what the copy lacks.
        let left = if end == End::Halted { 0 } else { (here.len() + there.len()).saturating_sub(1) };
        let felt = what.may_miss() && self.was_refused();
        let (mode, moment) = (self.mode, Moment::After(Duration::ZERO));
        Ok(Record {
            mode,
            moment,
            what,
            end,
            read,
            client,
            deaf,
            cut,
            felt,
            doubted: false,
            person,
            left,
            missed: false,
        })
    }

    fn was_refused(&self) -> bool {
        let said = |name: &str| std::fs::read_to_string(self.path(name)).unwrap_or_default();
        let all = said("mover.err") + &said("agent.err");
        REFUSED.iter().any(|words| all.contains(words))
    }

    /// With `CHAOS_LOG`: what the programs have said outlives the run.
    fn keep(&self, seed: u64) {
        if std::env::var_os("CHAOS_LOG").is_none() {
            return;
        }
        let kept = std::env::temp_dir().join(format!("chaos-{seed}"));
        let _ = std::fs::create_dir_all(&kept);
        for name in ["mover.log", "mover.err", "agent.err", "book"] {
            let _ = std::fs::copy(self.path(name), kept.join(name));
        }
    }
}

impl Record {
    /// Reads of memory and answers that are not right.
    pub fn wrong(&self) -> usize {
        self.read.wrong + self.client.wrong
    }

    /// Something that must not be; `broken`: with a rule of the commit broken, where only some of it must not.
    pub fn is_bad(&self, broken: bool) -> bool {
        let fatal = matches!(self.end, End::Lost | End::Doubled) || self.wrong() > 0;
        fatal || !broken && (self.deaf || self.cut || self.left > 0)
    }
}
