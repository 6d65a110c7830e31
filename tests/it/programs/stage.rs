//! Where a real program runs with its client: two hosts and the client's, which are network namespaces on one bridge.

use crate::networks::Networks;
use crate::zoo::tools::{adopt_orphans, note_tree, reap};
use migrate_engine::transport::keys;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const MIGRATE: &str = env!("CARGO_BIN_EXE_migrate");

/// The address that servers listen at, and that moves with them.
pub const ADDRESS: &str = "10.77.0.100";

/// How long anything may take. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a program as a shell with job control would not: without descriptors of whoever runs the tests, in a session of
/// its own, as a user (empty: root).
const LAUNCHER: &str = "
import os, pwd, sys
os.closerange(3, 4096)
os.setsid()
os.umask(0o22)
os.chdir(sys.argv[2])
if sys.argv[1]:
    user = pwd.getpwnam(sys.argv[1])
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
os.execvp(sys.argv[3], sys.argv[3:])
";

/// A program under test.
pub struct Program {
    /// Name of its client, `tests/fixtures/programs/NAME_client.py`.
    pub name: &'static str,
    /// Files it needs, each with the Debian package that has it.
    pub needs: &'static [(&'static str, &'static str)],
    /// Who it runs as; empty = root.
    pub user: &'static str,
    /// Makes its configuration and data.
    pub prepare: fn(&Stage) -> Result<(), String>,
    /// Its command line.
    pub command: fn(&Stage) -> Vec<String>,
}

/// What is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Dumped and restored this many times.
    Restored(usize),
    /// The same with memory that comes when it is touched.
    RestoredLazily(usize),
    /// Moved with its address, by `migrate move` to an agent at the other host.
    Moved,
    /// The same, by pre-copy whatever it does.
    PreCopied,
    /// The same by post-copy.
    Followed,
    /// Moved to a host that has nothing in the directory `disk`, with its data from there.
    WithData,
}

/// A program that runs somewhere here. Dropping it ends everybody.
pub struct Stage {
    // Dropped before the directory, with all processes in it.
    networks: Networks,
    /// Where the program works.
    pub dir: tempfile::TempDir,
    children: Vec<Child>,
    tree: BTreeSet<i32>,
}

/// Runs a program and does to it what is said; panics with everything that is known if it does not come through.
pub fn run(program: &Program, how: How) {
    let missing = program.needs.iter().find(|(file, _)| !Path::new(file).exists());
    if let Some((file, package)) = missing {
        return skipped(program, how, &format!("no {file} (Debian package {package})"));
    }
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/python3").exists() {
        return skipped(program, how, "needs root and python3");
    }
    // Between its dump and its restore a JVM's file of counters below /tmp belongs to no process, and any JVM that starts
    // then removes it.
    static JVMS: Mutex<()> = Mutex::new(());
    let _alone = (program.name == "java").then(|| JVMS.lock().unwrap_or_else(PoisonError::into_inner));
    let Some(mut stage) = Stage::make() else {
        return skipped(program, how, "network namespaces on a bridge cannot be made here");
    };
    match stage.all(program, how) {
        Ok(said) => {
            let _ = writeln!(std::io::stderr(), "{} {how:?}: {said}", program.name);
        }
        Err(reason) => panic!("{} {how:?}: {reason}\n{}", program.name, stage.logs()),
    }
}

fn skipped(program: &Program, how: How, reason: &str) {
    crate::skip!("program {} {how:?}: {reason}", program.name);
}

/// A file of ours for these tests.
pub fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/programs").join(name).display().to_string()
}

impl Stage {
    /// Makes the hosts; `None` where that is not allowed.
    pub fn make() -> Option<Self> {
        adopt_orphans();
        let networks = Networks::make()?;
        let dir =
            tempfile::Builder::new().prefix("program-").tempdir().expect("there is a directory for temporary files");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        Some(Self { networks, dir, children: Vec::new(), tree: BTreeSet::new() })
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same, as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<(), String> {
        fs::write(self.path(name), contents).map_err(|e| format!("{name}: {e}"))
    }

    fn all(&mut self, program: &Program, how: How) -> Result<String, String> {
        (program.prepare)(self)?;
        let root = self.start(program.user, &(program.command)(self))?;
        self.start_client(program.name)?;
        std::thread::sleep(Duration::from_millis(200));
        let done = match how {
            How::Restored(times) => self.restored(root, times, &[])?,
            How::RestoredLazily(times) => self.restored(root, times, &["--lazy"])?,
            How::PreCopied => {
                let agent = self.start_agent("")?;
                self.moved(root, &agent, &["--mode", "pre-copy"])?
            }
            How::Followed => {
                let agent = self.start_agent("")?;
                self.moved(root, &agent, &["--mode", "post-copy"])?
            }
            How::WithData => {
                let agent = self.start_agent_without("disk")?;
                self.moved(root, &agent, &["--with", &self.text("data")])?
            }
            How::Moved => {
                let agent = self.start_agent("")?;
                self.moved(root, &agent, &[])?
            }
        };
        std::thread::sleep(Duration::from_millis(200));
        let said = self.client_ends()?;
        Ok(format!("{done}; its client: {said}"))
    }

    /// Starts a program at the first host; its process id.
    pub fn start(&mut self, user: &str, command: &[String]) -> Result<i32, String> {
        let log = fs::File::create(self.path("server.log")).map_err(|e| e.to_string())?;
        let mut launcher = self.networks.inside(0, "/usr/bin/python3");
        launcher.args(["-c", LAUNCHER, user]).arg(self.dir.path()).args(command);
        launcher.stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        let child = launcher.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        let pid = child.id() as i32;
        self.children.push(child);
        Ok(pid)
    }

    /// Starts the client at the third host; returns when it is at work.
    pub fn start_client(&mut self, name: &str) -> Result<(), String> {
        let log = fs::File::create(self.path("client.log")).map_err(|e| e.to_string())?;
        let mut client = self.networks.inside(2, "/usr/bin/python3");
        client.arg(fixture(&format!("{name}_client.py"))).arg(ADDRESS).arg(self.dir.path());
        client.stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        self.children.push(client.spawn().map_err(|e| e.to_string())?);
        let until = Instant::now() + PATIENCE;
        while !fs::read_to_string(self.path("client.log")).unwrap_or_default().contains("at work\n") {
            let client = self.children.last_mut().expect("it was just started");
            if client.try_wait().map_err(|e| e.to_string())?.is_some() || Instant::now() > until {
                return Err("the client does not get to work".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Tells the client to check and to end; what it said last.
    pub fn client_ends(&mut self) -> Result<String, String> {
        self.write("end", "")?;
        let until = Instant::now() + PATIENCE;
        let mut client = self.children.pop().ok_or("no client")?;
        let status = loop {
            match client.try_wait().map_err(|e| e.to_string())? {
                Some(status) => break status,
                None if Instant::now() > until => {
                    let _ = client.kill();
                    break client.wait().map_err(|e| e.to_string())?;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let said = fs::read_to_string(self.path("client.log")).unwrap_or_default();
        match status.success() {
            true => Ok(said.lines().last().unwrap_or_default().to_owned()),
            false => Err(format!("the client's verdict: {status}")),
        }
    }

    /// An agent at the second host; its address. `listen` is empty for a UNIX socket.
    pub fn start_agent(&mut self, listen: &str) -> Result<String, String> {
        let agent = self.networks.inside(1, MIGRATE);
        self.begin_agent(agent, listen)
    }

    /// An agent at the second host, which has a file system of its own on this directory.
    pub fn start_agent_without(&mut self, dir: &str) -> Result<String, String> {
        let mut agent = self.networks.inside(1, "unshare");
        let script = "mount -t tmpfs files \"$0\" && exec \"$@\"";
        agent.args(["--mount", "--propagation", "private", "sh", "-c", script, &self.text(dir), MIGRATE]);
        self.begin_agent(agent, "")
    }

    fn begin_agent(&mut self, mut agent: Command, listen: &str) -> Result<String, String> {
        let socket = self.path("agent.sock");
        let address = if listen.is_empty() { format!("unix:{}", socket.display()) } else { listen.to_owned() };
        let log = fs::File::create(self.path("agent.log")).map_err(|e| e.to_string())?;
        agent.args(["agent", "--listen", &address]).env("MIGRATE_PLACES", self.path("b"));
        agent.stdout(Stdio::null()).stderr(log);
        // The client stays the last of the children.
        self.children.insert(0, agent.spawn().map_err(|e| e.to_string())?);
        let until = Instant::now() + PATIENCE;
        while !fs::read_to_string(self.path("agent.log")).unwrap_or_default().contains("listening on ") {
            if Instant::now() > until {
                return Err("the agent does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(address)
    }

    /// Keys of both hosts, each trusted by the other.
    pub fn keys(&self) -> Result<(), String> {
        let hosts = ["a", "b"].map(|name| self.path(name));
        let mut fingerprints = Vec::new();
        for host in &hosts {
            let made = keys::generate(&host.join("keys"), "x", false).map_err(|e| e.to_string())?;
            fingerprints.push(made.fingerprint());
        }
        for (host, other) in hosts.iter().zip(fingerprints.iter().rev()) {
            fs::write(host.join("peers"), format!("{other} the-other\n")).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// What sshd does, at the second host: forgets the options and the host, gives the rest to a shell.
    pub fn fake_ssh(&self) -> Result<String, String> {
        let places = self.text("b");
        let enter = format!("{:?}", self.networks.inside(1, "sh")).replace('"', "'");
        self.write("ssh", format!("#!/bin/sh\nshift\nMIGRATE_PLACES={places} exec {enter} -c \"$*\"\n"))?;
        fs::set_permissions(self.path("ssh"), fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        Ok(self.text("ssh"))
    }

    /// Has a redis server make this many keys.
    pub fn fill_redis(&self, keys: u32) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut client = self.networks.inside(2, "/usr/bin/redis-cli");
            let keys = keys.to_string();
            client.args(["-h", ADDRESS, "-p", "7001", "debug", "populate", &keys, "key", "32"]);
            let output = client.output().map_err(|e| e.to_string())?;
            if output.stdout.starts_with(b"OK") {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("redis cannot be filled: {output:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Moves the program to the agent, with the address.
    pub fn moved(&mut self, root: i32, agent: &str, options: &[&str]) -> Result<String, String> {
        let (root, address) = (root.to_string(), format!("{ADDRESS}/24@eth0"));
        let result = self.migrate(&[&["move", &root, agent, "--move-address", &address], options].concat())?;
        self.note(&result)?;
        let part = |name: &str| result["downtime_parts"][name].as_u64().unwrap_or_default() / 1000;
        Ok(format!(
            "{}, {} rounds, {} pages, {} faults, pause {} ms (freeze {} residual {} rebuild {} handover {}), total {} ms",
            result["mode"].as_str().unwrap_or_default(),
            result["rounds"].as_array().map_or(0, Vec::len),
            result["pages_sent"],
            result["faults"].as_u64().unwrap_or_default(),
            result["downtime_us"].as_u64().unwrap_or_default() / 1000,
            part("freeze"),
            part("residual"),
            part("rebuild"),
            part("handover"),
            result["total_us"].as_u64().unwrap_or_default() / 1000,
        ))
    }

    /// Dumps and restores it this many times, with the same process ids.
    fn restored(&mut self, mut root: i32, times: usize, options: &[&str]) -> Result<String, String> {
        for n in 0..times {
            let image = self.text(&format!("image-{n}"));
            note_tree(root, &mut self.tree);
            self.migrate(&["dump", &root.to_string(), "-D", &image])?;
            self.tree.extend(zombies_of_session(root));
            reap(&self.tree);
            let result = self.migrate(&[&["restore", "-D", &image, "--detach", "--pids", "same"], options].concat())?;
            root = self.note(&result)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(format!("restored {times} times"))
    }

    fn note(&mut self, result: &Value) -> Result<i32, String> {
        let pid = result["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).ok_or(format!("no pid: {result}"))?;
        note_tree(pid, &mut self.tree);
        Ok(pid)
    }

    /// Runs the program at the first host; its result.
    fn migrate(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut command = self.networks.inside(0, MIGRATE);
        command.args(arguments).arg("--json").env("MIGRATE_PLACES", self.path("a"));
        let output = command.env("XDG_CONFIG_HOME", "/nonexistent").output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            let line = said.lines().last().unwrap_or_default();
            return serde_json::from_str(line).map_err(|e| format!("{line}: {e}"));
        }
        Err(format!("{}: {}: {said}{}", arguments[0], output.status, String::from_utf8_lossy(&output.stderr)))
    }

    /// What everybody said, for a failure.
    fn logs(&self) -> String {
        ["server.log", "client.log", "agent.log"]
            .map(|name| {
                let text = fs::read_to_string(self.path(name)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(30)..].join("\n"))
            })
            .concat()
    }
}

/// Children that were handed on to us, of processes that have ended since the tree was noted.
fn zombies_of_session(session: i32) -> Vec<i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_session = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let words: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        words.len() > 3 && words[0] == "Z" && words[3] == session.to_string()
    };
    pids.filter(of_session).collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.networks.end_all();
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
        reap(&self.tree);
    }
}
