//! From A to B and back, ten times in each mode: what moves checks itself all the time, it is dumped by a new chain wherever it has
//! come to, and its model stays what it was.

use super::harness::same_models;
use super::late_lost::root;
use super::tools::{MOVED, compiled, marked, reader};
use crate::hosts::{Host, Ours, star};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const HOPS: usize = 10;
/// How long anything may take. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where its tickets are: as many as the fixture has slots for.
const SLOTS: usize = 4096;

/// What goes on between two dumps, beside what always differs.
const GOES_ON: &[(&str, &str)] = &[
    ("**.ticks", "its timer goes on"),
    ("**.due_ns", "its timer goes on"),
    ("**.spec.remaining_ns", "its timer goes on"),
    ("ghosts[*].path", "a deleted file is made anew, under another name"),
    ("unix_sockets[*].inode", "a socket is made anew"),
    ("unix_sockets[*].queue", "a question or an answer may be on its way"),
    ("tasks[*].threads[*].name", "they have none of their own"),
];

/// The same for the independent reader.
const SEEN: &str = r#"
[[allow]]
path = "processes/*/descriptors/*/info/ticks"
rule = "ignore"
reason = "its timer goes on"
[[allow]]
path = "processes/*/descriptors/*/info/it_value"
rule = "ignore"
reason = "its timer goes on"
[[allow]]
path = "processes/*/descriptors/*/duplicate/socket/unsent"
rule = "ignore"
reason = "a question or an answer may be on its way"
[[allow]]
path = "processes/*/descriptors/*/duplicate/socket/unread"
rule = "ignore"
reason = "a question or an answer may be on its way"
"#;

/// A target between two hosts.
struct Travels {
    at: usize,
    /// Its process id there.
    pid: i64,
    agents: [(Ours, String); 2],
    hosts: [Host; 3],
    dir: tempfile::TempDir,
}

impl Travels {
    fn begin() -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("travels-").tempdir().map_err(|e| e.to_string())?;
        let fixture = compiled("traveller")?;
        let hosts: [Host; 3] = star(dir.path())?;
        let agents = [hosts[0].agent(Path::new(PROGRAM))?, hosts[1].agent(Path::new(PROGRAM))?];
        let mark = format!("ZOO={}", dir.path().display());
        let words = ["env".as_ref(), mark.as_ref(), fixture.as_os_str(), dir.path().as_os_str(), "travels".as_ref()];
        let pid = hosts[0].start(words)?;
        let travels = Self { at: 0, pid, agents, hosts, dir };
        travels.until("it does not begin", || travels.path("ready").exists().then_some(()))?;
        travels.goes_on()?;
        Ok(travels)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Our program where the target is; its result.
    fn migrate(&self, arguments: &[&str]) -> Result<serde_json::Value, String> {
        let mut command = self.hosts[self.at].command(PROGRAM);
        let output = command.args(arguments).arg("--json").output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            return serde_json::from_str(said.lines().last().unwrap_or_default()).map_err(|e| format!("{said}: {e}"));
        }
        Err(format!("{arguments:?}: {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(found) = look() {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(format!("{what}{}", self.waits()))
    }

    /// Where its threads wait, for a failure.
    fn waits(&self) -> String {
        let mut text = String::new();
        for pid in marked(self.dir.path()) {
            for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let of = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
                text += &format!("\n  {} {} in {}", of("stat").trim(), of("wchan"), of("syscall").trim());
            }
        }
        text
    }

    /// The last ticket that was drawn.
    fn last_ticket(&self) -> u64 {
        let slots = fs::read(self.path("tickets")).unwrap_or_default();
        let ticket = |slot: &[u8]| u64::from_ne_bytes(slot.try_into().unwrap_or_default());
        slots.chunks_exact(8).take(SLOTS).map(ticket).max().unwrap_or(0)
    }

    /// It draws tickets and has found nothing that is wrong.
    fn goes_on(&self) -> Result<(), String> {
        let before = self.last_ticket();
        self.until("it does not go on", || {
            (self.last_ticket() > before + 5 || self.path("failures").exists()).then_some(())
        })?;
        match fs::read_to_string(self.path("failures")) {
            Ok(failures) => Err(failures),
            Err(_) => Ok(()),
        }
    }

    /// To the other host.
    fn hop(&mut self, mode: &str) -> Result<(), String> {
        let to = &self.agents[1 - self.at].1;
        let result = self.migrate(&["move", &self.pid.to_string(), to, "--allow-plain", "--mode", mode])?;
        let pid = result["pid"].as_i64().ok_or_else(|| format!("it has no id: {result}"))?;
        // Each host has ids of its own, and those of what has left are free again.
        if pid != self.pid {
            return Err(format!("it was process {}, and is {pid}", self.pid));
        }
        self.at = 1 - self.at;
        self.goes_on()
    }

    /// Two pre-dumps and a dump on top of them; the directory of the last.
    fn chain(&self, name: &str, options: &[&str]) -> Result<PathBuf, String> {
        let pid = self.pid.to_string();
        let images = ["first", "second", "last"].map(|link| self.path(&format!("{name}-{link}")));
        let [first, second, last] = images.each_ref().map(|path| path.to_str().unwrap_or_default());
        self.migrate(&["pre-dump", &pid, "-D", first])?;
        self.migrate(&["pre-dump", &pid, "-D", second, "--parent", first])?;
        self.migrate(&[&["dump", &pid, "-D", last, "--parent", second], options].concat())?;
        self.migrate(&["verify", last])?;
        Ok(images[2].clone())
    }

    fn capture(&self, name: &str) -> Result<PathBuf, String> {
        let file = self.path(name);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/state.py");
        let mut command = self.hosts[self.at].command("/usr/bin/python3");
        command.args([script, "capture", &self.pid.to_string(), "-o"]).arg(&file).stdout(Stdio::piped());
        let output = command.output().map_err(|e| e.to_string())?;
        match output.status.success() {
            true => Ok(file),
            false => Err(format!("the independent reader: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn seen_as_before(&self, before: &Path) -> Result<(), String> {
        let (after, own) = (self.capture("after.json")?, self.path("allow.toml"));
        fs::write(&own, SEEN).map_err(|e| e.to_string())?;
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/allow.toml");
        let mut words = vec!["compare".as_ref(), before.as_os_str(), after.as_os_str()];
        for allow in [&fixtures, &own] {
            words.extend(["--allow".as_ref(), allow.as_os_str()]);
        }
        reader(&words)
    }

    /// Has it look at all that it has, and end.
    fn ends_well(&self) -> Result<(), String> {
        fs::write(self.path("go"), "").map_err(|e| e.to_string())?;
        let result = self.until("it does not end", || {
            fs::read_to_string(self.path("result")).ok().filter(|text| text.ends_with('\n'))
        })?;
        match (result.as_str(), fs::read_to_string(self.path("failures"))) {
            ("EXIT-SUCCESS\n", Err(_)) => Ok(()),
            (_, failures) => Err(format!("{result}: {}", failures.unwrap_or_default())),
        }
    }
}

/// There and back, and from its last image to its end.
fn travels(mode: &str) -> Result<(), String> {
    let mut travels = Travels::begin()?;
    let made: Vec<_> = MOVED.iter().chain(GOES_ON).copied().collect();
    let before = travels.chain("0", &["--leave-running"])?;
    let seen = travels.capture("before.json")?;
    for n in 1..=HOPS {
        let hop = |e| format!("hop {n}: {e}");
        travels.hop(mode).map_err(hop)?;
        let after = travels.chain(&n.to_string(), &["--leave-running"]).map_err(hop)?;
        same_models(&before, &after, &made).map_err(hop)?;
    }
    travels.goes_on()?;
    travels.seen_as_before(&seen)?;
    let last = travels.chain("end", &[])?;
    let last = last.to_str().unwrap_or_default();
    travels.migrate(&["restore", "-D", last, "--detach", "--pids", "same"])?;
    travels.goes_on()?;
    travels.ends_well()
}

fn test(mode: &str) {
    let tools = Command::new("ip").arg("-V").output().is_ok() && Path::new("/usr/bin/python3").exists();
    if !root() || !tools {
        return crate::skip!("needs root, ip and /usr/bin/python3");
    }
    travels(mode).unwrap_or_else(|e| panic!("{mode}: {e}"));
}

#[test]
fn by_stop_and_copy() {
    test("stop-and-copy");
}

#[test]
fn by_pre_copy() {
    test("pre-copy");
}

#[test]
fn by_post_copy() {
    test("post-copy");
}

#[test]
fn by_hybrid() {
    test("hybrid");
}

#[test]
fn by_auto() {
    test("auto");
}
