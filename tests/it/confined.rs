//! redis-server confined as Debian's unit confines it (`tests/fixtures/confine.py` says item by item how), saved, restored and
//! moved; what a client of it sees is the same before and after, and so is its confinement.

use crate::places::free_port;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const SERVER: &str = "/usr/bin/redis-server";
/// A client reaches it by a socket in its directory.
const SOCKET: &[&str] = &["--port", "0", "--unixsocket", "socket"];
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether it can be tried here.
fn can_run() -> bool {
    let needed = [SERVER, "/usr/bin/redis-cli", "/usr/bin/python3"];
    let missing: Vec<&str> = needed.into_iter().filter(|p| !Path::new(p).exists()).collect();
    let root = nix::unistd::geteuid().is_root();
    if !missing.is_empty() || !root {
        crate::skip!("needs root ({root}) and {missing:?}");
    }
    missing.is_empty() && root
}

/// A confined server; ended when dropped, wherever it runs.
struct Server {
    dir: tempfile::TempDir,
    /// How a client reaches it.
    client: Vec<String>,
    launcher: Child,
    pid: i32,
}

impl Server {
    fn start(network: &[&str]) -> Self {
        // Restored trees become children of this process when the command that made them ends.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let dir = tempfile::Builder::new().prefix("confined-").tempdir().unwrap();
        let user = nix::unistd::User::from_name("redis").unwrap().expect("the package makes the user");
        nix::unistd::chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/confine.py");
        let said = dir.path().join("launcher");
        let launcher = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(dir.path())
            .args(["redis", SERVER, "--save", "", "--dir"])
            .arg(dir.path())
            .args(network)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&said).unwrap())
            .stderr(fs::File::create(dir.path().join("errors")).unwrap())
            .spawn()
            .unwrap();
        let client = match network {
            [.., "--unixsocket", name] => vec!["-s".to_owned(), dir.path().join(name).display().to_string()],
            _ => vec!["-p".to_owned(), network[1].to_owned()],
        };
        let mut server = Self { dir, client, launcher, pid: 0 };
        let begun = Instant::now();
        while server.pid == 0 {
            assert!(begun.elapsed() < PATIENCE, "the server did not start: {}", server.text("errors"));
            std::thread::sleep(Duration::from_millis(5));
            server.pid = server.text("launcher").trim().parse().unwrap_or(0);
        }
        server.answers();
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Until it answers.
    fn answers(&self) {
        let begun = Instant::now();
        while self.ask(&["ping"]) != "PONG" {
            assert!(begun.elapsed() < PATIENCE, "no answer: {}", self.text("errors"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn ask(&self, words: &[&str]) -> String {
        let output = Command::new("redis-cli").args(&self.client).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs the program; what it prints goes to files, so that nobody waits for descriptors that the target may have.
    fn migrate(&self, args: &[&str]) {
        let (out, errors) = (self.path("migrate.out"), self.path("migrate.err"));
        let status = Command::new(PROGRAM)
            .args(args)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&errors).unwrap())
            .env("XDG_STATE_HOME", self.dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "{args:?}: {}{}", self.text("migrate.out"), self.text("migrate.err"));
    }

    /// Saves it, and lets it go on from there.
    fn save_and_restore(&mut self, n: usize, pids: &str) {
        let image = self.path(&format!("image-{n}"));
        let (image, pidfile) = (image.to_str().unwrap().to_owned(), self.path("pid"));
        self.migrate(&["dump", &self.pid.to_string(), "-D", &image]);
        self.reap();
        self.migrate(&["restore", "-D", &image, "--detach", "--pids", pids, "--pidfile", pidfile.to_str().unwrap()]);
        self.pid = self.text("pid").trim().parse().unwrap();
    }

    /// Its id has to be free; it is a child of the launcher first, and of this process later on.
    fn reap(&mut self) {
        let begun = Instant::now();
        while Path::new(&format!("/proc/{}", self.pid)).exists() {
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            let _ = self.launcher.try_wait();
            let pid = nix::unistd::Pid::from_raw(self.pid);
            let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Lines of its status that say how it is confined.
    fn confinement(&self) -> String {
        let of = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        let keys = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "Umask"];
        let status = of("status");
        let lines: Vec<&str> = status.lines().filter(|l| keys.iter().any(|k| l.starts_with(k))).collect();
        format!("{}\n{}{}{}", lines.join("\n"), of("uid_map"), of("gid_map"), of("setgroups"))
    }

    /// Its mounts, but for numbers.
    fn mounts(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid)).unwrap();
        let line = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            // A file system of its own has another device number each time.
            words[3..].join(" ")
        };
        let mut lines: Vec<String> = text.lines().map(line).collect();
        lines.sort();
        lines
    }

    fn reader(&self, args: &[&str]) -> String {
        let output = crate::zoo::tools::independent_reader().args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "redis-server\n") {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
        let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    }
}

/// What is not as before, beside what no restored tree has as before.
const ALLOW: &str = r#"
[[allow]]
path = "processes/*/descriptors/*/stat/uid"
rule = "ignore"
reason = "a pipe is made anew by root: nothing but stat(2) shows it"
[[allow]]
path = "processes/*/descriptors/*/stat/gid"
rule = "ignore"
reason = "a pipe is made anew by root: nothing but stat(2) shows it"
[[allow]]
path = "processes/*/memory/*"
rule = "ignore"
reason = "it runs: its allocator returns and takes memory by itself"
[[allow]]
path = "**/status/VmData"
rule = "ignore"
reason = "it runs: its allocator returns and takes memory by itself"
[[allow]]
path = "processes/*/descriptors/*/stat/file"
rule = "ignore"
reason = "/dev/null is in a tmpfs of its own, which has another device number"
[[allow]]
path = "processes/*/descriptors/*/duplicate/socket/peer_creds/0/$outside"
rule = "ignore"
reason = "a client sees the process id of whoever made the listening socket anew"
[[allow]]
path = "processes/*/descriptors/*/duplicate/socket/peer_creds/0/$pid"
rule = "ignore"
reason = "a client sees the process id of whoever made the listening socket anew"
"#;

#[test]
fn redis_is_saved_and_restored_three_times() {
    if !can_run() {
        return;
    }
    let mut server = Server::start(SOCKET);
    for n in 0..200 {
        assert_eq!(server.ask(&["set", &format!("key{n}"), &format!("value{n}")]), "OK");
    }
    let (confined, mounts) = (server.confinement(), server.mounts());
    for (n, pids) in ["same", "same", "auto"].into_iter().enumerate() {
        let before = server.path("before.json").display().to_string();
        let after = server.path("after.json").display().to_string();
        server.reader(&["capture", &server.pid.to_string(), "-o", &before]);
        server.save_and_restore(n, pids);
        // Before anybody asks: a client takes memory.
        server.reader(&["capture", &server.pid.to_string(), "-o", &after]);
        server.answers();
        assert_eq!(server.ask(&["dbsize"]), (200 + n).to_string());
        assert_eq!(server.ask(&["get", "key77"]), "value77");
        assert_eq!(server.ask(&["set", &format!("round{n}"), "x"]), "OK");
        assert_eq!(server.confinement(), confined);
        assert_eq!(server.mounts(), mounts);
        let allow = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/allow.toml").display().to_string();
        let own = server.path("allow.toml");
        fs::write(&own, ALLOW).unwrap();
        server.reader(&["compare", &before, &after, "--allow", &allow, "--allow", own.to_str().unwrap()]);
    }
}

#[test]
fn redis_gets_process_ids_of_its_own() {
    if !can_run() {
        return;
    }
    let mut server = Server::start(SOCKET);
    assert_eq!(server.ask(&["set", "key", "value"]), "OK");
    let confined = server.confinement();
    let mounts = server.mounts();
    server.save_and_restore(0, "new");
    server.answers();
    // Peer groups of the host are left: another /proc must not show up there.
    let now = server.mounts();
    let missing: Vec<&String> = mounts.iter().filter(|m| !m.contains("master:") && !now.contains(m)).collect();
    assert_eq!((missing, mounts.len()), (Vec::new(), now.len()));
    assert_eq!(server.ask(&["get", "key"]), "value");
    assert_eq!(server.confinement(), confined);
    server.save_and_restore(1, "new");
    server.answers();
    assert_eq!(server.ask(&["get", "key"]), "value");
}

/// An agent on another host: one with a network of its own. Ended when dropped.
struct Host(Child);

impl Host {
    fn start(dir: &Path) -> Self {
        let listen = format!("unix:{}", dir.join("agent.sock").display());
        let script = format!("ip link set lo up && exec {PROGRAM} agent --listen {listen}");
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .env("MIGRATE_PLACES", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        Self(child)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn redis_is_moved() {
    if !can_run() {
        return;
    }
    let port = free_port().to_string();
    let mut server = Server::start(&["--port", &port]);
    assert_eq!(server.ask(&["set", "key", "value"]), "OK");
    let (confined, mounts) = (server.confinement(), server.mounts());
    let places = tempfile::tempdir().unwrap();
    let host = Host::start(places.path());
    let address = format!("unix:{}", places.path().join("agent.sock").display());
    server.migrate(&["move", &server.pid.to_string(), &address, "--json"]);
    let said = server.text("migrate.out");
    let result: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    server.pid = result["pid"].as_i64().unwrap() as i32;
    let there = |words: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &host.0.id().to_string(), "redis-cli", "-p", &port]).args(words);
        String::from_utf8_lossy(&command.output().unwrap().stdout).trim().to_owned()
    };
    assert_eq!(there(&["get", "key"]), "value");
    assert_eq!(there(&["set", "key", "other"]), "OK");
    assert_eq!(there(&["get", "key"]), "other");
    assert_eq!(server.confinement(), confined);
    let now = server.mounts();
    // On another host nobody listens to the peer groups of the first.
    let missing: Vec<String> = mounts.into_iter().filter(|m| !m.contains("master:") && !now.contains(m)).collect();
    assert_eq!(missing, [""; 0], "mounts that it had before");
}
