//! A tree whose processes come and go all the time.

use crate::cli::migrate;
use crate::networks::Killed;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts a process, waits for its end, counts.
const PARENT: &str = "
import os, sys
os.closerange(3, 1024)
count = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
n = 0
while True:
    child = os.fork()
    if child == 0:
        os._exit(n % 100)
    assert os.waitpid(child, 0) == (child, n % 100 << 8), 'a child is missing'
    n += 1
    os.pwrite(count, b'%12d' % n, 0)
";

/// Whenever it is stopped, a child may have ended and be waited for at that very moment.
#[test]
fn children_that_are_just_waited_for_are_no_hindrance() {
    let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
    if !root || !python {
        crate::skip!("churn: needs root ({root}) and /usr/bin/python3 ({python})");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("count");
    let mut parent = Command::new("setsid");
    parent.args(["/usr/bin/python3", "-c", PARENT]).arg(&path);
    parent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let parent = Killed(parent.spawn().unwrap());
    let counted = || std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    let goes_on = || {
        let (before, until) = (counted(), Instant::now() + Duration::from_secs(20));
        while counted() <= before + 20 {
            assert!(Instant::now() < until, "it does not go on after {before}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    goes_on();
    let mut pid = parent.0.id().to_string();
    // Four of ten failed when such a child was looked for after it had gone.
    for n in 0..15 {
        let image = dir.path().join(format!("look-{n}"));
        let output = migrate(&["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running"]).output().unwrap();
        assert!(output.status.success(), "dump {n}: {}", String::from_utf8_lossy(&output.stderr));
    }
    goes_on();
    let mut restored = None;
    for n in 0..5 {
        let image = dir.path().join(format!("image-{n}"));
        let image = image.to_str().unwrap();
        let output = migrate(&["dump", &pid, "-D", image]).output().unwrap();
        assert!(output.status.success(), "dump {n}: {}", String::from_utf8_lossy(&output.stderr));
        // Numbers of its children are given out again at once: it gets its own.
        let output = migrate(&["restore", "-D", image, "--detach", "--pids", "new", "--json"]).output().unwrap();
        assert!(output.status.success(), "restore {n}: {}", String::from_utf8_lossy(&output.stdout));
        let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap().to_owned();
        let result: serde_json::Value = serde_json::from_str(&last).unwrap();
        pid = result["pid"].as_i64().unwrap().to_string();
        restored = Some(Ended(result["pid"].as_i64().unwrap() as i32));
        goes_on();
    }
    drop(restored);
}

/// A restored tree, killed in the end.
struct Ended(i32);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0), nix::sys::signal::SIGKILL);
    }
}
