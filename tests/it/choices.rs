//! What a person chooses for a dump or a restore is done, and what a dump was told a restore does.

use crate::cli::{events, migrate};
use migrate_engine::net::address::Place;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Ballast, a connection to somebody outside over TCP and one over a UNIX socket. A line over TCP is echoed; what ends either
/// connection is written to a file.
const CLIENT: &str = "
import os, select, socket, sys
os.closerange(3, 1024)
os.chdir(sys.argv[1])
ballast = os.urandom(int(sys.argv[2]) << 20)
tcp = socket.create_connection((sys.argv[4], int(sys.argv[3])), source_address=(sys.argv[5], 0))
unix = socket.socket(socket.AF_UNIX)
unix.connect(os.path.join(sys.argv[1], 'outside'))
open('ready', 'w').close()

def ended(sock):
    try:
        data = sock.recv(100)
        sock.send(data) if data else None
        return None if data else 'end'
    except OSError as error:
        return error.strerror

left = {tcp: 'tcp', unix: 'unix'}
while True:
    for sock in select.select(list(left), [], [])[0]:
        why = ended(sock)
        if why:
            with open('new', 'w') as out:
                out.write(why)
            os.rename('new', left.pop(sock))
";

/// The client, and the two it is connected to.
struct Client {
    dir: tempfile::TempDir,
    child: Child,
    tcp: TcpStream,
    outside: UnixListener,
    _unix: UnixStream,
}

impl Client {
    /// `None`, said, where it cannot be tried.
    fn start(ballast_mib: u32) -> Option<Self> {
        Self::start_from(ballast_mib, "127.0.0.1", "127.0.0.1")
    }

    /// With a connection between these addresses.
    fn start_from(ballast_mib: u32, from: &str, to: &str) -> Option<Self> {
        let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
        if !root || !python {
            crate::skip!("choices: needs root ({root}) and /usr/bin/python3 ({python})");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let server = TcpListener::bind((to, 0)).unwrap();
        let outside = UnixListener::bind(dir.path().join("outside")).unwrap();
        let child = Command::new("setsid")
            .args(["/usr/bin/python3", "-c", CLIENT])
            .arg(dir.path())
            .arg(ballast_mib.to_string())
            .arg(server.local_addr().unwrap().port().to_string())
            .args([to, from])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (tcp, _) = server.accept().unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (unix, _) = outside.accept().unwrap();
        outside.set_nonblocking(true).unwrap();
        let client = Self { dir, child, tcp, outside, _unix: unix };
        client.appears("ready");
        Some(client)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn image(&self) -> String {
        self.path("image").display().to_string()
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The content of a file that the client makes.
    fn appears(&self, name: &str) -> String {
        let until = Instant::now() + Duration::from_secs(30);
        while !self.path(name).exists() {
            assert!(Instant::now() < until, "the client makes no file {name}");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The result event. Output goes to a file: a restored program must not have our pipe.
    fn run(&self, args: &[&str]) -> Value {
        let out = std::fs::File::create(self.path("out")).unwrap();
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let status = migrate(&args).stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
        let output = Output { status, stdout: std::fs::read(self.path("out")).unwrap(), stderr: Vec::new() };
        events(&output).pop().unwrap()
    }

    fn dump(&mut self, more: &[&str]) {
        let (pid, image) = (self.pid(), self.image());
        let args = [&["dump", &pid, "-D", &image, "--external-unix", "reconnect"], more].concat();
        let result = self.run(&args);
        assert_eq!(result["exit"], 0, "{result}");
        let _ = self.child.wait();
    }

    fn restore(&self, more: &[&str]) -> Value {
        self.run(&[&["restore", "-D", &self.image(), "--detach"], more].concat())
    }

    fn echoes(&mut self) {
        self.tcp.write_all(b"still there?").unwrap();
        let mut answer = [0; 12];
        self.tcp.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"still there?");
    }

    /// It has connected again by the name of the socket outside.
    fn comes_back(&self) -> bool {
        self.outside.accept().is_ok()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mark = self.dir.path().display().to_string();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let ours = String::from_utf8_lossy(&line).split('\0').any(|word| word == mark);
            if ours && String::from_utf8_lossy(&line).contains("python3") {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn codes(result: &Value) -> Vec<&str> {
    let blockers = result["blockers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut codes: Vec<&str> = blockers.iter().filter_map(|blocker| blocker["code"].as_str()).collect();
    codes.sort_unstable();
    codes
}

#[test]
fn a_restore_refuses_or_ends_connections() {
    let Some(mut client) = Client::start(0) else { return };
    client.dump(&[]);
    let refused = client.restore(&["--tcp", "refuse", "--external-unix", "refuse"]);
    assert_eq!((codes(&refused), &refused["exit"]), (vec!["M0401", "M0408"], &Value::from(3)), "{refused}");
    let result = client.restore(&["--tcp", "close", "--external-unix", "close"]);
    assert_eq!(result["exit"], 0, "{result}");
    assert_eq!(client.appears("tcp"), "Connection reset by peer");
    assert_eq!(client.appears("unix"), "end");
    // The peer is told, although it has sent nothing.
    let told = client.tcp.read(&mut [0; 8]).expect_err("its connection is reset");
    assert_eq!(told.kind(), ErrorKind::ConnectionReset);
    assert!(!client.comes_back());
}

#[test]
fn a_restore_does_as_the_dump_was_told() {
    let Some(mut client) = Client::start(0) else { return };
    client.dump(&["--pids", "new", "--cpu", "minimal"]);
    let shown = migrate(&["show", &client.image()]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("--cpu minimal --pids new"), "{shown}");
    let result = client.restore(&[]);
    assert_eq!(result["exit"], 0, "{result}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", result["pid"])).unwrap();
    let ids = status.lines().find(|line| line.starts_with("NSpid:")).unwrap().split_whitespace().skip(1).count();
    assert_eq!(ids, 2, "a PID namespace of its own: {status}");
    assert!(client.comes_back());
    client.echoes();
}

#[test]
fn a_tree_is_left_stopped_until_somebody_lets_it_go() {
    let Some(mut client) = Client::start(0) else { return };
    client.dump(&[]);
    let result = client.restore(&["--leave-stopped"]);
    assert_eq!((&result["exit"], &result["state"]), (&Value::from(0), &Value::from("stopped")), "{result}");
    let pid = i32::try_from(result["pid"].as_i64().unwrap()).unwrap();
    let state =
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit(") ").next().unwrap()[..1].to_owned();
    assert_eq!(state(), "T");
    client.tcp.write_all(b"wake up").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGCONT).unwrap();
    let mut answer = [0; 7];
    client.tcp.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"wake up");
}

#[test]
fn what_a_restore_is_told_itself_counts() {
    let Some(mut client) = Client::start(0) else { return };
    let original = client.pid();
    client.dump(&["--pids", "new"]);
    let result = client.restore(&["--pids", "same"]);
    assert_eq!(result["exit"], 0, "{result}");
    assert_eq!(result["pid"].to_string(), original);
    client.echoes();
}

/// An id that no process has, but a group of processes whose leader has ended: looked for it seems free, asked for it is not.
#[test]
fn an_id_that_is_taken_after_all_is_had_in_a_namespace_of_its_own() {
    use std::os::unix::process::CommandExt;
    let Some(mut client) = Client::start(0) else { return };
    let wanted = client.child.id();
    client.dump(&[]);
    let group = (0..200).find_map(|_| {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string()).unwrap();
        let mut leader = Command::new("/bin/sh");
        leader.args(["-c", "sleep 300 &"]).process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
        let mut leader = leader.spawn().unwrap();
        let group = nix::unistd::Pid::from_raw(leader.id() as i32);
        leader.wait().unwrap();
        if leader.id() == wanted {
            return Some(group);
        }
        nix::sys::signal::killpg(group, nix::sys::signal::SIGKILL).unwrap();
        None
    });
    let group = group.expect("somebody else is faster two hundred times");
    assert!(!Path::new(&format!("/proc/{wanted}")).exists(), "the leader has ended");
    let result = client.restore(&[]);
    let ended = nix::sys::signal::killpg(group, nix::sys::signal::SIGKILL);
    assert_eq!(result["exit"], 0, "{result}");
    ended.expect("the group was there all the time");
    let status = std::fs::read_to_string(format!("/proc/{}/status", result["pid"])).unwrap();
    let ids = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    assert!(ids.ends_with(&format!("\t{wanted}")) && ids.split_whitespace().count() == 3, "{ids}");
    client.echoes();
}

/// In a network namespace of its own: only its loopback device is changed.
#[test]
fn an_address_goes_into_the_image_and_comes_out_of_it() {
    crate::sockets::in_new_net(|| {
        let place = |ip: &str| Place { ip: ip.parse().unwrap(), prefix: 24, interface: "lo".into() };
        let (moves, stays) = (place("10.7.0.1"), place("10.8.0.1"));
        [&moves, &stays].iter().for_each(|place| place.add().unwrap());
        let Some(mut client) = Client::start_from(0, "10.7.0.1", "10.8.0.1") else { return };
        let (pid, image) = (client.pid(), client.image());
        let word = "10.7.0.1/24@lo";
        let wrong = client.run(&["dump", &pid, "-D", &image, "--leave-running", "--move-address", word]);
        assert_eq!(wrong["exit"], 2, "{wrong}");
        let elsewhere = client.run(&["dump", &pid, "-D", &image, "--move-address", "10.9.0.1/24@lo"]);
        assert_eq!(codes(&elsewhere), ["M0411"], "{elsewhere}");
        assert!(moves.is_here());
        client.dump(&["--move-address", word]);
        assert!(!moves.is_here() && stays.is_here(), "it has left with its target");
        // What the peer sends meanwhile is held for it.
        client.tcp.write_all(b"in between").unwrap();
        let refused = client.restore(&["--tcp", "refuse"]);
        assert_eq!((codes(&refused), moves.is_here()), (vec!["M0408"], false), "{refused}");
        let nowhere = client.restore(&["--move-address", "10.7.0.1/24@lo:none0"]);
        assert_eq!((codes(&nowhere), moves.is_here()), (vec!["M0411"], false), "{nowhere}");
        let result = client.restore(&[]);
        assert_eq!(result["exit"], 0, "{result}");
        assert!(moves.is_here());
        let mut answer = [0; 10];
        client.tcp.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"in between");
        client.echoes();
    });
}

#[test]
fn a_rate_is_held_while_the_target_runs() {
    const MIB: u32 = 24;
    let Some(client) = Client::start(MIB) else { return };
    let (pid, image, first) = (client.pid(), client.image(), client.path("first").display().to_string());
    // 24 MiB at 20 MB/s.
    let least = Duration::from_secs_f64(f64::from(MIB << 20) / 20e6);
    let began = Instant::now();
    let result = client.run(&["pre-dump", &pid, "-D", &first, "--bandwidth", "20MB/s"]);
    assert_eq!(result["exit"], 0, "{result}");
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    for (more, waits) in [(&["--leave-running", "--force"][..], false), (&["--stop-first"], true)] {
        let _ = std::fs::remove_dir_all(&image);
        let began = Instant::now();
        let args = ["dump", &pid, "-D", &image, "--bandwidth", "160Mbit/s", "--external-unix", "reconnect"];
        let result = client.run(&[&args, more].concat());
        assert_eq!(result["exit"], 0, "{result}");
        assert!(began.elapsed() >= least, "{:?}", began.elapsed());
        let pages = result["downtime_parts"]["pages"].as_u64().unwrap_or_default();
        assert_eq!(Duration::from_micros(pages) >= least.mul_f64(0.9), waits, "{more:?}: {result}");
    }
}
