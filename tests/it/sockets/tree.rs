//! Sockets of a whole process, through the command line: a client outside stays connected and sends all the time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program under test; killed by its id at the end.
struct Target {
    child: Child,
    dir: tempfile::TempDir,
}

impl Target {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sockets.py");
        let child = Command::new("setsid")
            .arg("/usr/bin/python3")
            .args([script.as_path(), dir.path()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn connect(&self) -> TcpStream {
        let end = Instant::now() + Duration::from_secs(20);
        let port = loop {
            match std::fs::read_to_string(self.dir.path().join("port")) {
                Ok(port) => break port.parse().unwrap(),
                Err(_) => assert!(Instant::now() < end, "the program does not start"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn image(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // The restored copy has the same id.
        let pid = nix::unistd::Pid::from_raw(self.pid());
        let _ = self.child.try_wait();
        let ours =
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.windows(10).any(|w| w == b"sockets.py"));
        if ours {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

fn migrate(args: &[&std::ffi::OsStr]) {
    let output = Command::new(env!("CARGO_BIN_EXE_migrate")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn answer(client: &mut TcpStream) -> String {
    let mut room = [0; 4096];
    let n = client.read(&mut room).unwrap();
    String::from_utf8_lossy(&room[..n]).into_owned()
}

fn may_run() -> bool {
    let may = nix::unistd::geteuid().is_root();
    if !may {
        crate::skip!("dump and restore of sockets need root");
    }
    may
}

#[test]
fn every_kind_survives_dump_and_restore() {
    if !may_run() {
        return;
    }
    let mut target = Target::start();
    let mut client = target.connect();
    client.write_all(b"one").unwrap();
    assert_eq!(answer(&mut client), "1 one");
    let (pid, image) = (target.pid().to_string(), target.image("image"));
    migrate(&["dump".as_ref(), pid.as_ref(), "-D".as_ref(), image.as_os_str()]);
    target.child.wait().unwrap();
    client.write_all(b"while away").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    migrate(&["restore".as_ref(), "-D".as_ref(), image.as_os_str(), "--detach".as_ref()]);
    assert_eq!(answer(&mut client), "2 while away");
    client.write_all(b"check").unwrap();
    let verdict = answer(&mut client);
    assert!(verdict.contains("True") && !verdict.contains("False"), "{verdict}");
}

#[test]
fn a_target_that_runs_on_keeps_its_sockets() {
    if !may_run() {
        return;
    }
    let target = Target::start();
    let mut client = target.connect();
    let pid = target.pid().to_string();
    for n in 0..3 {
        client.write_all(b"x").unwrap();
        assert_eq!(answer(&mut client), format!("{} x", n + 1));
        let image = target.image(&format!("image{n}"));
        migrate(&["dump".as_ref(), pid.as_ref(), "-D".as_ref(), image.as_os_str(), "--leave-running".as_ref()]);
    }
    client.write_all(b"check").unwrap();
    let verdict = answer(&mut client);
    assert!(verdict.contains("True") && !verdict.contains("False"), "{verdict}");
}
