//! The hosts, the links between them, a target and its witness: one run.

use crate::accident::{Mode, Moment, Side, Struck, What, Who, draw};
use crate::client::{Client, Seen};
use crate::host::{Host, Inside, send, state};
use crate::link::Outage;
use crate::net::{ADDRESS, MOVES, Networks, Place};
use crate::person;
use crate::there::There;
use crate::witness::{Book, Read, TARGET};
use migrate_engine::fault::Point;
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

/// That copy.
pub fn program() -> &'static Path {
    PROGRAM.get().expect("copied before the first run")
}

/// Time-outs that are chosen by option; the longest that are not are those of a guardian's socket (5 s).
const PEER_TIMEOUT: &str = "1s";
/// Longer than each of them.
const STOPPED: Duration = Duration::from_millis(6500);
/// The same, and shorter than what leftovers are waited for.
const LEASE: &str = "10s";
/// Until each side has decided what it makes of the silence.
const HEALED_AFTER: Duration = Duration::from_millis(2500);
const POWER_IS_BACK: Duration = Duration::from_millis(500);
/// How long the programs have to settle it by themselves.
const SETTLED: Duration = Duration::from_secs(15);
/// Bytes a second, where memory follows: so that it takes its time.
const RATE: u32 = 16 << 20;
/// Between two destinations that are struck one by one.
const ONE_BY_ONE: Duration = Duration::from_millis(30);
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
    /// Where there are several destinations.
    pub struck: Option<Struck>,
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
    /// Copies that nobody needs, and that are still there; stores, sessions and mounts of destinations that have not got the target.
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

/// By whom what is for the destinations passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    Nobody,
    /// A host of its own.
    Proxy,
    /// Destinations, which pass on to so many each.
    Tree(u8),
}

/// How a run is set up.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// An empty one.
    pub disk: &'a Path,
    /// How many destinations the target goes to at once.
    pub destinations: u8,
    /// By whom.
    pub through: Through,
    /// How long an undisturbed handover takes.
    pub usual: Duration,
}

pub struct Stage {
    dir: tempfile::TempDir,
    pub a: Host,
    /// Destinations, and behind them the proxy if there is one.
    pub there: Vec<There>,
    destinations: usize,
    through: Through,
    book: Book,
    /// Where there is one destination: the address of the target goes to one only.
    client: Option<Client>,
    mode: Mode,
    environment: Vec<(&'static str, String)>,
}

impl Stage {
    /// `dooms`: where the session at a destination dies.
    pub fn set(
        setting: &Setting<'_>,
        mode: Mode,
        environment: Vec<(&'static str, String)>,
        dooms: &[Option<Point>],
    ) -> io::Result<Self> {
        let dir = tempfile::tempdir_in("/dev/shm")?;
        let hosts = setting.destinations + u8::from(setting.through == Through::Proxy);
        let networks = Arc::new(Networks::make(hosts)?);
        let a = Host::up("a", Place::Source, &networks, dir.path(), setting.disk)?;
        let rate = mode.is_late().then_some(RATE);
        let up = |n: u8| {
            let mut environment = environment.clone();
            let doom = dooms.get(usize::from(n)).copied().flatten();
            environment.extend(doom.map(|point| ("MIGRATE_KILL", point.name().to_owned())));
            There::up(n, &networks, (dir.path(), setting.disk), rate, environment)
        };
        let there = (0..hosts).map(up).collect::<io::Result<Vec<There>>>()?;
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
            .arg(if setting.destinations == 1 { ADDRESS } else { "127.0.0.1" });
        target.status()?;
        if !wait(|| book.tickets() > 5, Duration::from_secs(20)) {
            return Err(io::Error::other("the target does not begin"));
        }
        let client = match setting.destinations {
            1 => Some(Client::start(&dir.path().join("book.port"), &networks.path(Place::Client))?),
            _ => None,
        };
        let (destinations, through) = (usize::from(setting.destinations), setting.through);
        let stage = Self { dir, a, there, destinations, through, book, client, mode, environment };
        match stage.client.as_ref().is_none_or(|client| client.is_answered(Duration::from_secs(5))) {
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
        command.args(["move", pid.unwrap_or_default()]).args(self.destinations());
        command.args(["--json", "--peer-timeout", PEER_TIMEOUT, "--connect-timeout", PEER_TIMEOUT]);
        command.args(["--mode", self.mode.name()]).stderr(appended(&self.path("mover.err"))?);
        if self.client.is_some() {
            command.args(["--move-address", MOVES]);
        }
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

    /// As options have them.
    fn destinations(&self) -> Vec<String> {
        let (there, proxy) = self.there.split_at(self.destinations);
        let by =
            |there: &There| if self.through == Through::Nobody { &there.address } else { &there.by_network }.clone();
        let mut words: Vec<String> = there.iter().map(by).collect();
        match self.through {
            Through::Nobody => return words,
            Through::Proxy => words.extend(proxy.iter().flat_map(|proxy| ["--via".to_owned(), proxy.address.clone()])),
            Through::Tree(fanout) => words.extend(["--fanout-tree".to_owned(), fanout.to_string()]),
        }
        // Whose proxy has lost power hears nothing of that.
        words.extend(["--allow-plain", "--lease", LEASE].map(str::to_owned));
        words
    }

    fn members(&self, who: Who, mover: &Inside, victims: &[usize]) -> Vec<i32> {
        let mut pids = Vec::new();
        if who.guardian {
            pids.extend(self.a.processes("guardian-process"));
            pids.extend(self.a.processes("lock-guard-process"));
        }
        pids.extend(who.mover.then_some(mover.pid));
        if who.session {
            pids.extend(victims.iter().flat_map(|n| self.there[*n].sessions()));
        }
        pids
    }

    fn is_any_session(&self) -> bool {
        self.there.iter().any(|there| !there.sessions().is_empty())
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
                    let mover_stopped = (state(mover.pid) == Some('T')).then_some(mover.pid);
                    if let Some(stopped) = mover_stopped.or_else(|| self.there.iter().find_map(There::stopped)) {
                        return Some(stopped);
                    }
                    if mover.has_ended() && !self.is_any_session() {
                        return None;
                    }
                }
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        None
    }

    /// What happens to the source, or to some of the destinations, one after the other if that is said.
    fn strike(&mut self, what: What, mover: &Inside, stopped: Option<i32>, victims: &[&[usize]]) -> io::Result<()> {
        for (n, victims) in victims.iter().enumerate() {
            if n > 0 {
                std::thread::sleep(ONE_BY_ONE);
            }
            self.strike_some(what, mover, victims)?;
        }
        if let Some(pid) = stopped {
            send(pid, Signal::SIGCONT);
        }
        mover.go_on();
        if let What::Link(_) = what {
            std::thread::sleep(HEALED_AFTER);
            self.there.iter().for_each(|there| there.link.set(Outage::default()));
        }
        Ok(())
    }

    fn strike_some(&mut self, what: What, mover: &Inside, victims: &[usize]) -> io::Result<()> {
        match what {
            What::Killed(who) => {
                self.members(who, mover, victims).into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
            }
            What::Stopped(who) => {
                let members = self.members(who, mover, victims);
                members.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
                std::thread::sleep(STOPPED);
                members.iter().for_each(|pid| send(*pid, Signal::SIGCONT));
                mover.go_on();
            }
            // What is by TCP has no link that could fail: then it is that to the proxy.
            What::Link(outage) if self.through == Through::Proxy => self.there[self.destinations].link.set(outage),
            What::Link(outage) => victims.iter().for_each(|n| self.there[*n].link.set(outage)),
            What::Power(Side::Source) if self.a.was_down() => {}
            What::Power(Side::Source) => self.a.lose_power(POWER_IS_BACK, mover)?,
            What::Power(Side::Destination) => {
                victims.iter().try_for_each(|n| self.there[*n].lose_power(POWER_IS_BACK))?;
            }
            What::DiskFull(side) => self.fill_disks(side, victims, 0)?,
            What::DiskNearlyFull(..) => {}
            What::OutOfMemory(side) => {
                let sessions = || victims.iter().flat_map(|n| self.there[*n].sessions()).collect();
                let pids = if side == Side::Source { vec![mover.pid] } else { sessions() };
                for pid in pids {
                    // It may have ended.
                    let mut limit = Command::new("prlimit");
                    limit.args(["--as=1048576:1048576", "--pid", &pid.to_string()]).stderr(Stdio::null()).status()?;
                }
            }
            What::CopyKilled => {
                // Of several one may run already: it waits no more.
                let waits = |pid: &i32| matches!(state(*pid), Some('T' | 't'));
                let copies = victims.iter().filter_map(|n| self.targets(&self.there[*n].host).into_iter().find(waits));
                copies.for_each(|pid| send(pid, Signal::SIGKILL));
            }
        }
        Ok(())
    }

    fn fill_disks(&self, side: Side, victims: &[usize], room: u32) -> io::Result<()> {
        match side {
            Side::Source => self.a.fill_disk(room),
            Side::Destination => victims.iter().try_for_each(|n| self.there[*n].host.fill_disk(room)),
        }
    }

    /// Processes of the target over there.
    fn copies(&self) -> Vec<i32> {
        self.there.iter().flat_map(|there| self.targets(&there.host)).collect()
    }

    fn goes_on(&self, limit: Duration) -> bool {
        let before = self.book.tickets();
        wait(|| self.book.tickets() > before + GOES_ON, limit)
    }

    /// Everything that is known, for whoever looks for a defect.
    fn tell(&self, seed: u64) {
        for host in std::iter::once(&self.a).chain(self.there.iter().map(|there| &there.host)) {
            println!("  seed {seed}: {}: {}", host.name(), person::entry(host));
            for pid in self.targets(host) {
                println!("  seed {seed}: process {pid} is {:?}", state(pid));
            }
        }
    }
}

/// A file that is appended to.
pub fn appended(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().append(true).create(true).open(path)
}

/// Somebody has got no room.
fn refused(text: &str) -> bool {
    const SAID: [&str; 5] = ["No space left", "ENOSPC", "memory allocation of", "Cannot allocate memory", "ENOMEM"];
    SAID.iter().any(|words| text.contains(words))
}

/// Whether it comes true in time.
pub fn wait(mut until: impl FnMut() -> bool, limit: Duration) -> bool {
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
pub fn usual(setting: &Setting<'_>) -> io::Result<Duration> {
    let stage = Stage::set(setting, Mode::Auto, Vec::new(), &[])?;
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
pub fn run(setting: &Setting<'_>, seed: u64, broken: Option<&str>) -> io::Result<Record> {
    let (mode, moment, what) = draw(seed, setting.usual);
    let of = usize::from(setting.destinations);
    let has_proxy = setting.through == Through::Proxy;
    let struck = (of > 1 || has_proxy).then(|| Struck::draw(seed, has_proxy));
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
    let mut stage = Stage::set(setting, mode, environment, &[])?;
    let all = |one: usize| struck.map_or_else(|| vec![0], |struck| struck.victims(of, one));
    let first = (seed / 2) as usize % of;
    if let What::DiskNearlyFull(side, room) = what {
        stage.fill_disks(side, &all(first), room)?;
    }
    let (mut mover, said) = stage.mover()?;
    let stopped = stage.wait_for(moment, &mut mover, &said);
    let missed = matches!(moment, Moment::Step(_)) && stopped.is_none() && !matches!(what, What::DiskNearlyFull(..));
    let at = stage.there.iter().position(|there| stopped.is_some_and(|pid| there.sessions().contains(&pid)));
    let victims = all(at.unwrap_or(first));
    let parts = if struck == Some(Struck::OneByOne) { victims.chunks(1).collect() } else { vec![&victims[..]] };
    stage.strike(what, &mover, stopped, &parts)?;
    let settled = stage.settles(seed, &mut mover);
    let person = if settled { None } else { stage.person() };
    let record = stage.judge(what, person)?;
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let doubted = said.doubted || stage.a.has_guardian_log();
    let felt = what.may_miss() && (refused(&said.last) || stage.was_refused());
    let left = record.left + stage.left_behind(seed, &record);
    let record = Record { moment, doubted, missed, felt, struck, left, ..record };
    if record.is_bad() || record.left > 0 {
        stage.tell(seed);
        stage.keep(seed);
    }
    Ok(record)
}

impl Stage {
    /// Moves the target, and sees what becomes of it; nothing is done to anybody.
    pub fn plays_out(&self, seed: u64) -> io::Result<End> {
        let (mut mover, _) = self.mover()?;
        let settled = self.settles(seed, &mut mover);
        let record = self.judge(What::Killed(Who { mover: false, session: true, guardian: false }), None)?;
        if !settled || record.is_bad() {
            self.tell(seed);
            self.keep(seed);
        }
        Ok(if settled && !record.is_bad() { record.end } else { End::Lost })
    }

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
        let one = || self.targets(&self.a).len() + self.copies().len() <= 1;
        wait(one, Duration::from_secs(if settled && !self.has_halted() { 4 } else { 0 }));
        settled && (one() || self.has_halted())
    }

    /// Everybody of the copy over there is stopped, and it is told what is missing.
    fn has_halted(&self) -> bool {
        let there = self.copies();
        self.mode.is_late()
            && !there.is_empty()
            && there.iter().all(|pid| state(*pid) == Some('T'))
            && self.there.iter().any(|there| there.host.missing().is_some())
    }

    fn judge(&self, what: What, person: Option<String>) -> io::Result<Record> {
        let goes_on = self.goes_on(Duration::from_secs(if self.has_halted() { 1 } else { 10 }));
        // Its peer's kernel asks again the later the longer it has not been answered.
        let patience = Duration::from_secs(10) + 2 * self.book.read().stood;
        let deaf = goes_on && self.client.as_ref().is_some_and(|client| !client.is_answered(patience));
        let (read, client) = (self.book.read(), self.client.as_ref().map(Client::seen).unwrap_or_default());
        let (here, there) = (self.targets(&self.a), self.copies());
        // An original that is held: it has what a copy may lack.
        let held = self.mode.is_late() && !there.is_empty() && here.iter().all(|pid| state(*pid) == Some('T'));
        let end = match (read.doubled, goes_on, here.is_empty() || held) {
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
        let (mode, moment) = (self.mode, Moment::After(Duration::ZERO));
        Ok(Record {
            mode,
            moment,
            what,
            struck: None,
            end,
            read,
            client,
            deaf,
            cut,
            felt: false,
            doubted: false,
            person,
            left,
            missed: false,
        })
    }

    /// What destinations keep that have not got the target: given a time, as they may have to hear first that it is not theirs.
    fn left_behind(&self, seed: u64, record: &Record) -> usize {
        // One alone keeps what a source needs that comes back; what its end leaves is counted elsewhere.
        if record.struck.is_none() && self.there.len() == 1 {
            return 0;
        }
        let losers = || self.there.iter().filter(|there| self.targets(&there.host).is_empty());
        wait(|| losers().all(|there| there.keeps().is_empty()), Duration::from_secs(15));
        let kept: Vec<String> = losers()
            .flat_map(|there| there.keeps().into_iter().map(|what| format!("{}: {what}", there.host.name())))
            .collect();
        if !kept.is_empty() {
            println!("  seed {seed}: left behind: {}", kept.join(", "));
        }
        kept.len()
    }

    fn was_refused(&self) -> bool {
        let mut said = std::iter::once(self.path("mover.err")).chain(self.there.iter().map(There::errors));
        said.any(|path| std::fs::read_to_string(path).is_ok_and(|text| refused(&text)))
    }

    /// With `CHAOS_LOG`: what the programs have said outlives the run.
    fn keep(&self, seed: u64) {
        if std::env::var_os("CHAOS_LOG").is_none() {
            return;
        }
        let kept = std::env::temp_dir().join(format!("chaos-{seed}"));
        let _ = std::fs::create_dir_all(&kept);
        for name in ["mover.log", "mover.err", "book"] {
            let _ = std::fs::copy(self.path(name), kept.join(name));
        }
        for path in self.there.iter().map(There::errors) {
            let _ = std::fs::copy(&path, kept.join(path.file_name().unwrap_or_default()));
        }
    }
}

impl Record {
    /// Reads of memory and answers that are not right.
    pub fn wrong(&self) -> usize {
        self.read.wrong + self.client.wrong
    }

    /// Something that must not be.
    pub fn is_bad(&self) -> bool {
        matches!(self.end, End::Lost | End::Doubled) || self.wrong() > 0 || self.deaf || self.cut
    }
}
