//! A target that writes faster than it can be sent gets less processor time, and always gets back what it had.

use super::{Target, migrate, root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const GROUPS: &str = "/sys/fs/cgroup/cpu";
const BEFORE: [(&str, &str); 2] = [("cpu.cfs_period_us", "50000"), ("cpu.cfs_quota_us", "75000")];

/// A cgroup (version 1) with one process and a limit of its own.
struct Group(PathBuf);

impl Group {
    fn of(pid: i32) -> Option<Self> {
        let dir = Path::new(GROUPS).join(format!("migrate-test-{pid}"));
        std::fs::create_dir(&dir).ok()?;
        let group = Self(dir);
        BEFORE.iter().for_each(|(file, value)| std::fs::write(group.0.join(file), value).unwrap());
        std::fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
        Some(group)
    }

    fn is_as_before(&self) -> bool {
        BEFORE.iter().all(|(file, value)| std::fs::read_to_string(self.0.join(file)).unwrap().trim() == *value)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        crate::ahead::remove_cgroup(&self.0);
    }
}

#[test]
fn who_was_slowed_down_gets_back_what_it_had() {
    if !root() {
        return;
    }
    for killed in [true, false] {
        let mut target = Target::start("writer", &["16", "20000", "noise"]);
        let Some(group) = Group::of(target.pid()) else {
            crate::skip!("needs the version 1 cpu controller");
            return;
        };
        let host = tempfile::tempdir().unwrap();
        let mut command = migrate();
        command.args(["move", &target.pid_text(), "local", "--mode", "pre-copy", "--bandwidth", "20MB/s"]);
        command.args(["--compress", "off", "--converge", "throttle,abort"]).env("MIGRATE_PLACES", host.path());
        let mut mover = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while group.is_as_before() {
            assert!(Instant::now() < deadline && mover.try_wait().unwrap().is_none(), "it is not slowed down");
            std::thread::sleep(Duration::from_millis(2));
        }
        if killed {
            mover.kill().unwrap();
        }
        let output = mover.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(killed || (output.status.code() == Some(1) && said.contains("still running")), "{output:?}");
        while !group.is_as_before() {
            assert!(Instant::now() < deadline, "it stays slow");
            std::thread::sleep(Duration::from_millis(2));
        }
        kill(Pid::from_raw(target.pid()), Signal::SIGUSR2).unwrap();
        target.passes();
    }
}
