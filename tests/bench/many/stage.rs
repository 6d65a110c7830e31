//! The hosts, and one move to some of them.

use crate::hosts::{self, Host, Ours, child_of};
use crate::notes::{self, Notes};
use nix::sys::resource::{UsageWho, getrusage};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
/// Destinations, at most.
pub const MOST: usize = 8;
/// With the source, and the one in the middle.
const HOSTS: usize = MOST + 2;
pub const MIB: u64 = 256;
const PAGES_PER_SECOND: &str = "2000";
const PAGE_BYTES: f64 = 4096.0;

/// A group of processes whose CPU time the kernel counts (cgroups(7), version 2): those that have ended, too.
struct Group(PathBuf);

impl Group {
    /// The one of all processes.
    fn root() -> Result<PathBuf, String> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let top = mounts.find(|words| words.get(2) == Some(&"cgroup2")).ok_or("no cgroup2 is mounted")?;
        Ok(PathBuf::from(top[1]))
    }

    fn make(name: &str) -> Result<Self, String> {
        let path = Self::root()?.join(name);
        std::fs::create_dir(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self(path))
    }

    fn add(&self, pid: i32) -> Result<(), String> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).map_err(|e| format!("{}: {e}", self.0.display()))
    }

    /// CPU time so far, milliseconds.
    fn cpu(&self) -> Result<f64, String> {
        used(&self.0)
    }
}

fn used(group: &Path) -> Result<f64, String> {
    let text = std::fs::read_to_string(group.join("cpu.stat")).map_err(|e| e.to_string())?;
    let used = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
    Ok(used.ok_or("cpu.stat without usage_usec")? / 1e3)
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever was in it ends a moment later than it was killed.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// An agent. Its group goes last, when it is empty.
struct Agent {
    address: String,
    _program: Ours,
    group: Group,
}

pub struct Stage {
    agents: Vec<Agent>,
    hosts: [Host; HOSTS],
    fixture: PathBuf,
    dir: PathBuf,
}

/// What one move has shown; times in milliseconds.
#[derive(Debug)]
pub struct Moved {
    /// Bytes of pages read from the target.
    pub read: f64,
    /// Bytes of pages that it wrote to until it was frozen, a page as often as it was written to.
    pub written: f64,
    /// CPU time of the source's program.
    pub source_cpu: f64,
    /// Bytes that have left the source's device.
    pub uplink: f64,
    pub total: f64,
    pub pause: f64,
    /// CPU time of all agents, what they have made of the target included.
    pub agents_cpu: f64,
    /// Of the whole machine inside the pause, from the event `frozen` to `switched`, without the source's program: what the agents
    /// have made of the target is in groups of its own.
    pub there_cpu: f64,
    /// Most resident memory of the source's program, MiB.
    pub peak: f64,
}

/// What is counted while it goes on.
#[derive(Default)]
struct Watch {
    peak_kib: f64,
    frozen: Option<f64>,
    switched: Option<f64>,
    frozen_at: usize,
    result: serde_json::Value,
    said: String,
}

impl Stage {
    pub fn make(dir: &Path) -> Result<Self, String> {
        let fixture = dir.join("stalls");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stalls.c");
        let mut compiler = Command::new("gcc");
        let compiled = compiler.args(["-O2", "-pthread", "-o"]).arg(&fixture).arg(source).arg("-lm").status();
        if !compiled.is_ok_and(|status| status.success()) {
            return Err("gcc cannot compile the fixture".into());
        }
        let hosts: [Host; HOSTS] = hosts::star(dir)?;
        let mut agents = Vec::new();
        for (n, host) in hosts[1..=MOST].iter().enumerate() {
            let group = Group::make(&format!("many-{}-{n}", std::process::id()))?;
            let (program, address) = host.agent(Path::new(PROGRAM))?;
            group.add(child_of(program.0.id()).ok_or("an agent that has ended")?)?;
            agents.push(Agent { address, _program: program, group });
        }
        Ok(Self { agents, hosts, fixture, dir: dir.to_owned() })
    }

    pub fn middle(&self) -> &Host {
        &self.hosts[MOST + 1]
    }

    /// Where an agent listens.
    pub fn address(&self, agent: usize) -> &str {
        &self.agents[agent].address
    }

    /// Slows the links to these agents down (tc-tbf(8)), or no longer.
    pub fn limit(&self, agents: usize, rate: Option<&str>) -> Result<(), String> {
        for wire in (1..=agents).map(hosts::wire) {
            // There may be none.
            let _ = self.middle().run(&format!("tc qdisc del dev {wire} root"));
            if let Some(rate) = rate {
                let limit = format!("tc qdisc add dev {wire} root tbf rate {rate} burst 128k latency 20ms");
                self.middle().run(&limit)?;
            }
        }
        Ok(())
    }

    /// Starts a target at the source, moves it to these addresses (`via`: through a proxy), looks at its memory, and ends it.
    pub fn moves(&self, addresses: &[&str], via: Option<&str>) -> Result<Moved, String> {
        let source = &self.hosts[0];
        let path = self.dir.join("notes");
        let notes = Notes::make(&path)?;
        let (fixture, path) = (self.fixture.display().to_string(), path.display().to_string());
        let pid = source.start([fixture.as_str(), &MIB.to_string(), PAGES_PER_SECOND, "uniform", &path])?;
        notes.until(notes::READY)?;
        std::thread::sleep(Duration::from_millis(300));
        let (first, sent, cpu, agents) = (notes.count()?, self.uplink()?, children_cpu()?, self.cpu()?);
        let mut command = source.command(PROGRAM);
        command.args(["move", &pid.to_string()]).args(addresses);
        command.args(["--allow-plain", "--mode", "pre-copy", "--files", "skip", "--json"]);
        command.args(via.iter().flat_map(|via| ["--via", via]));
        let mut moving = Ours(command.stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?);
        let mover = Group::make(&format!("many-{}-source", std::process::id()))?;
        mover.add(moving.0.id() as i32)?;
        if let Some(inside) = child_of(moving.0.id()) {
            mover.add(inside)?;
        }
        let watch = self.watch(&mut moving, &notes, &mover)?;
        let status = moving.0.wait().map_err(|e| e.to_string())?;
        if !status.success() {
            return Err(format!("the move failed: {status}: {}", watch.said));
        }
        let (source_cpu, uplink) = (children_cpu()? - cpu, self.uplink()? - sent);
        let agents_cpu = sum(&self.cpu()?) - sum(&agents);
        let wrong = notes.wrong()?;
        let owner = self.owner(&watch.result, addresses)?;
        self.kill(owner + 1, watch.result["pid"].as_i64().ok_or("it has no id")?);
        if wrong != 0 {
            return Err(format!("{wrong} WRONG PAGES after the move"));
        }
        let number =
            |name: &str| watch.result[name].as_f64().ok_or_else(|| format!("no {name} is reported: {}", watch.result));
        let rounds = watch.result["rounds"].as_array().ok_or("no rounds are reported")?;
        let pages: f64 = rounds.iter().filter_map(|round| round["pages"].as_f64()).sum();
        let spent = watch.switched.zip(watch.frozen).map(|(after, before)| after - before);
        Ok(Moved {
            read: pages * PAGE_BYTES,
            written: watch.frozen_at.saturating_sub(first) as f64 * PAGE_BYTES,
            source_cpu,
            uplink,
            total: number("total_us")? / 1e3,
            pause: number("downtime_us")? / 1e3,
            agents_cpu,
            there_cpu: spent.ok_or("no pause is told of")?,
            peak: watch.peak_kib / 1024.0,
        })
    }

    /// Reads events until there are no more.
    fn watch(&self, moving: &mut Ours, notes: &Notes, source: &Group) -> Result<Watch, String> {
        let root = Group::root()?;
        let there = || Ok::<f64, String>(used(&root)? - source.cpu()?);
        let mut watch = Watch::default();
        let mover = moving.0.id();
        for line in BufReader::new(moving.0.stdout.take().ok_or("it is piped")?).lines() {
            let line = line.map_err(|e| e.to_string())?;
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            match event["event"].as_str() {
                Some("frozen") => (watch.frozen, watch.frozen_at) = (Some(there()?), notes.count()?),
                Some("switched") => watch.switched = Some(there()?),
                _ => {}
            }
            // It only grows; the last look is at what is said last.
            watch.peak_kib = peak_kib(mover).unwrap_or(0.0).max(watch.peak_kib);
            watch.said += &line;
            watch.said.push('\n');
            watch.result = event;
        }
        Ok(watch)
    }

    /// Which agent has it. The others must have deleted what they had.
    fn owner(&self, result: &serde_json::Value, addresses: &[&str]) -> Result<usize, String> {
        let Some(all) = result["candidates"].as_array().filter(|_| addresses.len() > 1) else { return Ok(0) };
        let became = |word: &str| all.iter().filter(|one| one["became"] == word).count();
        if became("owner") != 1 || became("owner") + became("stopped") != addresses.len() {
            return Err(format!("not one owner, or not all others were stopped: {result}"));
        }
        all.iter().position(|one| one["became"] == "owner").ok_or_else(|| "no owner".to_owned())
    }

    fn cpu(&self) -> Result<Vec<f64>, String> {
        self.agents.iter().map(|agent| agent.group.cpu()).collect()
    }

    /// Bytes that have left the source's device so far, headers and acknowledgements included.
    fn uplink(&self) -> Result<f64, String> {
        let path = format!("/proc/{}/net/dev", self.hosts[0].init);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let device = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).ok_or("no eth0")?;
        // After eight numbers of what it has received.
        device.split_whitespace().nth(8).and_then(|bytes| bytes.parse().ok()).ok_or_else(|| format!("{path}: no bytes"))
    }

    fn kill(&self, host: usize, pid: i64) {
        const SCRIPT: &str = "kill -KILL $1; while [ -e /proc/$1 ]; do sleep 0.01; done";
        let mut command = self.hosts[host].command("timeout");
        command.args(["10", "sh", "-c", SCRIPT, "sh", &pid.to_string()]).stderr(Stdio::null());
        let _ = command.status();
    }
}

/// What one evacuation has shown; times in milliseconds.
#[derive(Debug)]
pub struct Evacuated {
    /// From the beginning of the first move to the end of the last.
    pub total: f64,
    /// The longest pause of a tree.
    pub pause: f64,
    /// The longest access to memory of a tree since it was started.
    pub access: f64,
    /// Bytes that have left the source's device, over the memory of all trees.
    pub uplink: f64,
}

impl Stage {
    /// Slows down what leaves the source (tc-tbf(8)), or no longer.
    pub fn limit_source(&self, rate: Option<&str>) -> Result<(), String> {
        // There may be none.
        let _ = self.hosts[0].run("tc qdisc del dev eth0 root");
        let limit =
            |rate| self.hosts[0].run(&format!("tc qdisc add dev eth0 root tbf rate {rate} burst 128k latency 20ms"));
        rate.map_or(Ok(()), limit)
    }

    /// Starts so many targets of `mib` MiB at the source, evacuates it to the first two agents, looks at all memory, and ends them.
    pub fn evacuates(&self, trees: usize, mib: u64, options: &[&str]) -> Result<Evacuated, String> {
        let (mut pids, mut notes) = (Vec::new(), Vec::new());
        for n in 0..trees {
            let path = self.dir.join(format!("notes-{n}"));
            notes.push(Notes::make(&path)?);
            let (fixture, path) = (self.fixture.display().to_string(), path.display().to_string());
            let words = [fixture.as_str(), &mib.to_string(), PAGES_PER_SECOND, "uniform", &path];
            pids.push(self.hosts[0].start(words)?.to_string());
        }
        notes.iter().try_for_each(|notes| notes.until(notes::READY).map(drop))?;
        let sent = self.uplink()?;
        let mut command = self.hosts[0].command(PROGRAM);
        command.arg("evacuate").args(&pids).args(["--to", &format!("{},{}", self.address(0), self.address(1))]);
        command.args(["--allow-plain", "--files", "skip", "--json"]).args(options);
        let output = command.output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!("the evacuation failed: {}: {said}", output.status));
        }
        let uplink = (self.uplink()? - sent) / (trees as u64 * (mib << 20)) as f64;
        let result: serde_json::Value =
            said.lines().last().and_then(|line| serde_json::from_str(line).ok()).ok_or("no result")?;
        let (mut first, mut last, mut pause, mut access) = (f64::INFINITY, 0.0_f64, 0.0_f64, 0.0_f64);
        for tree in result["trees"].as_array().ok_or("no trees")? {
            let number = |name: &str| tree[name].as_f64().ok_or_else(|| format!("no {name}: {tree}"));
            (first, last) = (first.min(number("began_us")?), last.max(number("began_us")? + number("took_us")?));
            pause = pause.max(number("downtime_us")? / 1e3);
            let n = pids.iter().position(|pid| tree["target"] == pid.as_str()).ok_or("a tree that nobody has named")?;
            let wrong = notes[n].wrong()?;
            let accesses = notes[n].accesses()?;
            access = accesses.iter().map(|one| f64::from(one.took_us) / 1e3).fold(access, f64::max);
            let host = (0..2).find(|n| tree["dest"] == self.address(*n)).ok_or("no such agent")?;
            self.kill(host + 1, tree["pid"].as_i64().ok_or("it has no id")?);
            if wrong != 0 {
                return Err(format!("{wrong} WRONG PAGES after the evacuation"));
            }
        }
        Ok(Evacuated { total: (last - first) / 1e3, pause, access, uplink })
    }
}

fn sum(values: &[f64]) -> f64 {
    values.iter().sum()
}

/// CPU time of all children that were waited for, milliseconds.
fn children_cpu() -> Result<f64, String> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| e.to_string())?;
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    Ok(ms(usage.user_time()) + ms(usage.system_time()))
}

/// `VmHWM` of the program that has entered a host.
fn peak_kib(holder: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child_of(holder)?)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
