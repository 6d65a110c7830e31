//! What stands in the way is said before anything is stopped or started, all of it at once: here and at the other end.

use crate::cli::{events, migrate};
use crate::places::free_port;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Has a file open for reading and a listening socket, both made by itself, and says when it is ready.
const SERVER: &str = "
import os, socket, sys, time
os.closerange(3, 1024)
data = open(sys.argv[1])
server = socket.create_server(('127.0.0.1', int(sys.argv[2])))
open(sys.argv[3], 'w').close()
time.sleep(1000)
";

struct Server {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Server {
    /// `None`, said, where it cannot be tried.
    fn start() -> Option<Self> {
        let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
        if !root || !python {
            crate::skip!("refusals: needs root ({root}) and /usr/bin/python3 ({python})");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data"), "0123456789").unwrap();
        let port = free_port();
        let child = Command::new("setsid")
            .args(["/usr/bin/python3", "-c", SERVER])
            .arg(dir.path().join("data"))
            .arg(port.to_string())
            .arg(dir.path().join("ready"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { dir, child, port };
        let until = Instant::now() + Duration::from_secs(30);
        while !server.path("ready").exists() {
            assert!(Instant::now() < until, "the server does not get ready");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Nobody runs this program but the original, if that.
    fn copies(&self) -> Vec<i32> {
        let mark = self.path("ready").display().to_string();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).split('\0').any(|word| word == mark)
        })
        .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        crate::moves::end_all(self.copies(), &mut self.child);
    }
}

/// With its output in a file: a restored program must not have our pipe.
fn run(server: &Server, args: &[&str]) -> Output {
    let out = std::fs::File::create(server.path("out")).unwrap();
    assert!(out.as_raw_fd() > 2);
    let status = migrate(args).stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
    Output { status, stdout: std::fs::read(server.path("out")).unwrap(), stderr: Vec::new() }
}

fn codes(output: &Output) -> Vec<String> {
    let result = events(output).pop().unwrap();
    let blockers = result["blockers"].as_array().cloned().unwrap_or_default();
    blockers.iter().map(|b| b["code"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_restore_says_all_that_is_missing_before_it_begins() {
    let Some(mut server) = Server::start() else { return };
    let image = server.path("image").display().to_string();
    let dump = run(&server, &["dump", &server.pid(), "-D", &image]);
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stdout));
    let _ = server.child.wait();
    std::fs::rename(server.path("data"), server.path("elsewhere")).unwrap();
    let taken = TcpListener::bind(("127.0.0.1", server.port)).unwrap();
    for option in ["--dry-run", "--detach"] {
        let output = run(&server, &["restore", "-D", &image, option, "--json"]);
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(codes(&output), ["M0502", "M0412"], "{}", String::from_utf8_lossy(&output.stdout));
        assert!(server.copies().is_empty());
    }
    drop(taken);
    std::fs::write(server.path("data"), "another one").unwrap();
    let output = run(&server, &["restore", "-D", &image, "--dry-run", "--json"]);
    assert_eq!((output.status.code(), codes(&output)), (Some(3), vec!["M0501".to_owned()]));
    std::fs::rename(server.path("elsewhere"), server.path("data")).unwrap();
    let output = run(&server, &["restore", "-D", &image, "--dry-run"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(server.copies().is_empty(), "a dry run starts nothing");
    let output = run(&server, &["restore", "-D", &image, "--detach"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(server.copies().len(), 1);
}

#[test]
fn check_asks_the_other_end() {
    let Some(server) = Server::start() else { return };
    let output = run(&server, &["check", &server.pid(), "--to", "local", "--json"]);
    let result = events(&output).pop().unwrap();
    assert_eq!((output.status.code(), codes(&output)), (Some(0), vec![]), "{result}");
    assert_eq!(result["peers"][0]["dest"], "local");
    assert_eq!(result["peers"][0]["program"], env!("CARGO_PKG_VERSION"));
    let output = run(&server, &["check", &server.pid(), "--to", "local"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("could go there: {}", server.pid())), "{said}");
    let nobody = format!("unix:{}", server.path("nobody").display());
    let output = run(&server, &["check", "--to", &nobody, "--json"]);
    assert_eq!((output.status.code(), codes(&output)), (Some(3), vec!["M0901".to_owned()]));
    assert_eq!(server.copies().len(), 1);
}

#[test]
fn a_list_asks_the_other_ends() {
    let Some(server) = Server::start() else { return };
    let nobody = format!("unix:{}", server.path("nobody").display());
    let to = format!("local,{nobody}");
    let result = events(&run(&server, &["list", "--to", &to, "--json"])).pop().unwrap();
    let dests: Vec<_> = result["peers"].as_array().unwrap().iter().map(|peer| peer["dest"].as_str().unwrap()).collect();
    assert_eq!(dests, ["local", &nobody]);
    let entries = result["entries"].as_array().unwrap();
    let codes_at = |entry: &serde_json::Value, dest: usize| -> Vec<String> {
        let blockers = entry["there"][dest]["blockers"].as_array().unwrap();
        blockers.iter().map(|blocker| blocker["code"].as_str().unwrap().to_owned()).collect()
    };
    for entry in entries {
        // Where something is in the way here that is what stands in the way there.
        let here = entry["blockers"][0]["code"].as_str();
        assert_eq!(codes_at(entry, 1), [here.unwrap_or("M0901")], "{entry}");
        assert!(codes_at(entry, 0).iter().all(|code| Some(code.as_str()) == here || code == "M0209"), "{entry}");
    }
    let text = String::from_utf8_lossy(&run(&server, &["list", "--to", &nobody]).stdout).into_owned();
    assert!(text.contains("MOVABLE TO") && text.matches("M0901").count() >= 1, "{text}");
    assert!(text.trim_end().lines().last().unwrap().starts_with("M0901"), "{text}");
    // A refused group, before anybody is asked.
    assert_eq!(run(&server, &["list", "--to", "@nobody"]).status.code(), Some(2));
}

/// Is told of a file that it writes itself; reads of it only every now and then, or (`never`) not at all.
const WATCHER: &str = "
import ctypes, os, sys, time
os.closerange(3, 1024)
libc = ctypes.CDLL(None)
events = libc.inotify_init1(os.O_NONBLOCK)
path = sys.argv[1] + '/watched'
open(path, 'w').close()
assert libc.inotify_add_watch(events, path.encode(), 2) == 1
written = read = 0
reads = sys.argv[2] != 'never'
while True:
    out = open(path, 'w')
    out.write(str(written))
    out.close()
    written += 1
    open(sys.argv[1] + '/ready', 'w').write(str(written))
    time.sleep(0.04)
    if reads:
        read += os.read(events, 4096) != b''
        assert read == written, 'an event is missing'
        time.sleep(0.04)
";

/// A program that counts in a file, and what has become of it.
struct Watcher {
    dir: tempfile::TempDir,
    child: Child,
}

impl Watcher {
    /// `reads`: `soon`, or `never`.
    fn start(reads: &str) -> Option<Self> {
        Self::of(WATCHER, reads)
    }

    /// `None`, said, where it cannot be tried.
    fn of(script: &str, word: &str) -> Option<Self> {
        let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
        if !root || !python {
            crate::skip!("refusals: needs root ({root}) and /usr/bin/python3 ({python})");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("setsid");
        child.args(["/usr/bin/python3", "-c", script]).arg(dir.path()).arg(word).env("ZOO", dir.path());
        let child = child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let watcher = Self { dir, child };
        assert!(watcher.goes_on(2), "the watcher does not get ready");
        Some(watcher)
    }

    fn counted(&self) -> Option<u64> {
        std::fs::read_to_string(self.dir.path().join("ready")).ok()?.parse().ok()
    }

    /// Whether it counts past this.
    fn goes_on(&self, than: u64) -> bool {
        let until = Instant::now() + Duration::from_secs(30);
        while self.counted().is_none_or(|n| n <= than) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.counted().is_some_and(|n| n > than)
    }

    /// Its output is in a file: what has moved must not have our pipe.
    fn run(&self, args: &[&str]) -> Output {
        let out = std::fs::File::create(self.dir.path().join("out")).unwrap();
        let mut command = crate::moves::on_host(&self.dir.path().join("host"));
        command.args(args).stdin(Stdio::null());
        let status = command.stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
        Output { status, stdout: std::fs::read(self.dir.path().join("out")).unwrap(), stderr: Vec::new() }
    }

    /// Dumps without ending it; the output of the last.
    fn dumped(&self, times: usize) -> Output {
        let dump = |n: usize| {
            let image = self.dir.path().join(n.to_string());
            let pid = self.child.id().to_string();
            self.run(&["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running", "--json"])
        };
        let mut last = dump(0);
        for n in 1..times {
            if !last.status.success() {
                break;
            }
            last = dump(n);
        }
        last
    }

    /// It neither ended nor stands: one that reads has read every event that there was.
    fn is_unharmed(&mut self) -> bool {
        self.goes_on(self.counted().unwrap_or(0) + 2) && self.child.try_wait().unwrap().is_none()
    }

    /// Every process that runs it.
    fn copies(&self) -> Vec<i32> {
        crate::zoo::marked(self.dir.path())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        crate::moves::end_all(self.copies(), &mut self.child);
    }
}

#[test]
fn what_is_in_the_way_for_a_moment_is_waited_for() {
    let Some(mut soon) = Watcher::start("soon") else { return };
    let output = soon.dumped(6);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(soon.is_unharmed());
    let Some(mut never) = Watcher::start("never") else { return };
    let output = never.dumped(1);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(codes(&output), ["M0324"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("bytes of events"));
    assert!(never.is_unharmed(), "a refused program runs on");
}

#[test]
fn a_move_waits_for_what_is_in_the_way_for_a_moment() {
    if !crate::moves::can_move() {
        return;
    }
    let Some(soon) = Watcher::start("soon") else { return };
    let pid = soon.child.id().to_string();
    for mode in ["pre-copy", "stop-and-copy"] {
        let root = soon.copies().first().copied().map_or(pid.clone(), |root| root.to_string());
        let output = soon.run(&["move", &root, "local", "--mode", mode, "--json"]);
        assert!(output.status.success(), "{mode}: {}", String::from_utf8_lossy(&output.stdout));
        // It would have ended if an event were missing.
        assert!(soon.goes_on(soon.counted().unwrap_or(0) + 2), "{mode}");
        assert_eq!(soon.copies().len(), 1, "{mode}");
    }
    let Some(mut never) = Watcher::start("never") else { return };
    let pid = never.child.id().to_string();
    let output = never.run(&["move", &pid, "local", "--mode", "pre-copy", "--json"]);
    assert_eq!((output.status.code(), codes(&output)), (Some(3), vec!["M0324".to_owned()]));
    assert!(never.is_unharmed(), "a refused program runs on");
    assert_eq!(never.copies(), [never.child.id() as i32]);
}

/// Gets urgent data in the middle of other data, and reads none of it before a file is there; then all of it has to be as sent.
const URGENT: &str = "
import os, socket, sys, time
os.closerange(3, 1024)
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname())
server = listener.accept()[0]
listener.close()
client.sendall(b'before')
client.send(b'!', socket.MSG_OOB)
client.sendall(b'after')
time.sleep(0.05)
open(sys.argv[1] + '/ready', 'w').write('9')
while not os.path.exists(sys.argv[1] + '/go'):
    time.sleep(0.01)
found = server.recv(100), server.recv(1, socket.MSG_OOB), server.recv(100)
assert found == (b'before', b'!', b'after'), found
open(sys.argv[1] + '/ready', 'w').write('99')
time.sleep(1000)
";

#[test]
fn urgent_data_is_in_the_way_and_stays_as_it_is() {
    let Some(mut program) = Watcher::of(URGENT, "") else { return };
    let image = program.dir.path().join("image");
    let args = ["-D", image.to_str().unwrap(), "--tcp", "keep", "--leave-running", "--json"];
    let pid = program.child.id().to_string();
    let dump = |program: &Watcher| program.run(&[&["dump", &pid], &args[..]].concat());
    let output = dump(&program);
    assert_eq!((output.status.code(), codes(&output)), (Some(3), vec!["M0419".to_owned()]));
    std::fs::write(program.dir.path().join("go"), "").unwrap();
    assert!(program.goes_on(90), "a byte is missing or was doubled: {:?}", program.child.try_wait());
    let output = dump(&program);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Has a lease to write; SIGIO, which its break would send, would end it.
const LEASE: &str = "
import fcntl, os, sys, time
os.closerange(3, 1024)
file = os.open(sys.argv[1] + '/leased', os.O_RDWR | os.O_CREAT)
fcntl.fcntl(file, 1024, fcntl.F_WRLCK)
n = 0
while True:
    n += 1
    open(sys.argv[1] + '/ready.new', 'w').write('%d' % n)
    os.rename(sys.argv[1] + '/ready.new', sys.argv[1] + '/ready')
    time.sleep(0.01)
";

#[test]
fn a_lease_is_not_broken_by_a_move_within_one_kernel() {
    if !crate::moves::can_move() {
        return;
    }
    let Some(mut program) = Watcher::of(LEASE, "") else { return };
    let pid = program.child.id().to_string();
    let output = program.run(&["move", &pid, "local", "--mode", "pre-copy", "--json"]);
    assert_eq!((output.status.code(), codes(&output)), (Some(3), vec!["M0313".to_owned()]));
    assert!(program.is_unharmed(), "a refused program runs on");
    let image = program.dir.path().join("image");
    let output = program.run(&["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
