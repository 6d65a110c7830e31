//! A peer whose line in the peers file says `user=` sends programs of that user, which get the user's rights and no others.

use crate::moves::{can_move, on_host, result, run, text};
use crate::places::free_port;
use migrate_engine::transport::keys;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65534;

/// Says every 10 ms who it is.
const TELLER: &str = "
import os, sys, time
os.closerange(3, 1024)
memory = os.urandom(8 << 20)
copy = bytes(memory)
while True:
    status = open('/proc/self/status').read()
    caps = [line.split()[1] for line in status.splitlines() if line.startswith(('CapPrm', 'CapEff', 'CapInh', 'CapAmb'))]
    try:
        open('/etc/shadow').close()
        secret = 'reads /etc/shadow'
    except OSError:
        secret = 'reads no secrets'
    with open(sys.argv[1], 'a') as out:
        out.write('%d %d %s %s %s\\n' % (os.getuid(), os.getpid(), ','.join(caps), secret, memory == copy))
    time.sleep(0.01)
";

/// Two hosts: the agent of one of them in a PID namespace of its own, as on another machine.
struct Hosts {
    dir: tempfile::TempDir,
    agent: Child,
    address: String,
    teller: Child,
}

impl Hosts {
    /// The program runs as `uid`; the agent's peers file has `options` for whoever sends it.
    fn start(uid: u32, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let hosts = ["a", "b"].map(|name| dir.path().join(name));
        let lines = hosts.clone().map(|host| keys::generate(&host.join("keys"), "x", false).unwrap().fingerprint());
        std::fs::set_permissions(&hosts[1], PermissionsExt::from_mode(0o711)).unwrap();
        std::fs::write(hosts[0].join("peers"), format!("{} b\n", lines[1])).unwrap();
        std::fs::write(hosts[1].join("peers"), format!("{} a {options}\n", lines[0])).unwrap();
        let port = free_port();
        let mut agent = Command::new("unshare")
            .args(["--pid", "--mount-proc", "--fork", "--kill-child", "--", env!("CARGO_BIN_EXE_migrate")])
            .args(["agent", "--listen", &format!("tcp://127.0.0.1:{port}")])
            .env("MIGRATE_PLACES", &hosts[1])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(agent.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        let out = dir.path().join("told");
        std::fs::write(&out, "").unwrap();
        chown(&out, Some(uid), Some(uid)).unwrap();
        let id = uid.to_string();
        let teller = Command::new("setsid")
            .args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "/usr/bin/python3", "-c", TELLER])
            .arg(&out)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let hosts = Self { dir, agent, address, teller };
        hosts.next();
        hosts
    }

    fn host(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it says next.
    fn next(&self) -> String {
        let lines =
            || std::fs::read_to_string(self.host("told")).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
        let before = lines().len();
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let lines = lines();
            if lines.len() > before + 1 {
                return lines[before + 1].clone();
            }
            assert!(Instant::now() < until, "nothing is said any more");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn send(&self, options: &[&str]) -> std::process::Output {
        let pid = self.teller.id().to_string();
        run(on_host(&self.host("a")), &[&["move", &pid, &self.address, "--json"], options].concat())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.teller] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_peer_with_a_user_sends_programs_of_that_user() {
    if !can_move() {
        return;
    }
    let mut hosts = Hosts::start(NOBODY, "user=nobody");
    let pid = hosts.teller.id();
    let output = hosts.send(&[]);
    assert!(output.status.success(), "{}", text(&output));
    let _ = hosts.teller.wait();
    let none = ["0000000000000000"; 4].join(",");
    assert_eq!(hosts.next(), format!("{NOBODY} {pid} {none} reads no secrets True"));
    assert_eq!(result(&output)["mode"].as_str(), Some("pre-copy"));
    // Its journal is the user's.
    let moves = hosts.host("b").join("state/users/65534/state/moves");
    assert_eq!(std::fs::read_dir(&moves).unwrap().count(), 1);
    assert!(!hosts.host("b").join("state/moves").exists());
}

#[test]
fn a_peer_with_a_user_sends_nothing_of_anybody_else() {
    if !can_move() {
        return;
    }
    for (uid, line) in [(0, "user=nobody"), (NOBODY, "user=daemon")] {
        let hosts = Hosts::start(uid, line);
        let output = hosts.send(&[]);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        let blockers = result(&output)["blockers"].clone();
        assert_eq!(blockers[0]["code"].as_str(), Some("M0808"), "{blockers}");
        assert!(hosts.next().starts_with(&format!("{uid} {} ", hosts.teller.id())), "it goes on");
    }
}

#[test]
fn a_user_that_does_not_exist_is_nobody() {
    if !can_move() {
        return;
    }
    let hosts = Hosts::start(NOBODY, "user=no-such-user-7413");
    let output = hosts.send(&[]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(text(&output).contains("cannot be found"), "{}", text(&output));
    hosts.next();
}

#[test]
fn what_stands_beside_the_user_holds() {
    if !can_move() {
        return;
    }
    for (line, code, says) in
        [("user=nobody max-memory=1MiB", 3, "max-memory"), ("user=nobody only=receive", 5, "only receive")]
    {
        let hosts = Hosts::start(NOBODY, line);
        let output = hosts.send(&[]);
        assert!(text(&output).contains(says), "{line}: {}", text(&output));
        assert_ne!(output.status.code(), Some(0), "{code}");
        hosts.next();
    }
    assert!(Path::new("/proc/self").exists());
}
