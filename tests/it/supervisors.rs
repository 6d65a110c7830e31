//! A systemd unit whose program moves: a host of its own file system with a service manager that is a shell script. It knows
//! one unit, runs its program, and starts it again when it ends, unless a drop-in says otherwise and it was told to reload.

use crate::moves::{can_move, text};
use crate::networks::Killed;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const LIMIT: Duration = Duration::from_secs(30);

const SYSTEMCTL: &str = "#!/bin/sh
cd DIR
echo \"$*\" >> calls
case $1 in
daemon-reload) cat /run/systemd/system/UNIT.d/*.conf > loaded.new 2>/dev/null; mv loaded.new loaded;;
show)
  echo LoadState=loaded
  echo MainPID=$(cat main)
  grep -s ^Restart= loaded || echo Restart=always
  if [ -e failed ]; then echo ActiveState=failed; else echo ActiveState=active; fi;;
esac
";

/// What the manager does with its unit.
const MANAGER: &str = "
import os, subprocess, sys, time
os.closerange(3, 1024)
os.chdir(sys.argv[1])
while True:
    with open('/dev/null') as null:
        child = subprocess.Popen(['/usr/bin/python3', '-c', sys.argv[3], sys.argv[1]], stdin=null, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL, start_new_session=True,
                                 preexec_fn=lambda: open(sys.argv[2] + '/cgroup.procs', 'w').write('0'))
    with open('main.new', 'w') as out:
        out.write(str(child.pid))
    os.rename('main.new', 'main')
    child.wait()
    if os.path.exists('loaded') and 'Restart=no' in open('loaded').read():
        open('failed', 'w').close()
        break
    open('started-again', 'a').write('x')
";

/// Adds its number to a file, a line every 2 ms.
const SERVICE: &str = "
import os, sys, time
out = open('count', 'a', buffering=1)
n = 0
while True:
    n += 1
    out.write('%d %d\\n' % (os.getpid(), n))
    time.sleep(0.002)
";

struct Host {
    dir: tempfile::TempDir,
    cgroup: PathBuf,
    holder: Killed,
    _manager: Option<Killed>,
    agent: Option<Killed>,
}

impl Host {
    /// `None` where a cgroup cannot be made.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let unit =
            format!("mv{}x{}.service", std::process::id(), dir.path().file_name()?.to_str()?.trim_start_matches('.'));
        let hierarchies = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"].map(PathBuf::from);
        let top = hierarchies.into_iter().find(|dir| dir.join("cgroup.procs").exists());
        let cgroup = top.map(|top| top.join(&unit)).filter(|cgroup| fs::create_dir(cgroup).is_ok());
        let Some(cgroup) = cgroup else {
            crate::skip!("no cgroup can be made here");
            return None;
        };
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let script = SYSTEMCTL.replace("DIR", dir.path().to_str().unwrap()).replace("UNIT", &unit);
        fs::write(bin.join("systemctl"), script).unwrap();
        fs::set_permissions(bin.join("systemctl"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let ready = dir.path().join("ready");
        let script = "mount -t tmpfs run /run && mkdir -p /run/systemd/system && : > \"$0\" && exec sleep 600";
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&ready).stdin(Stdio::null());
        let holder = Killed(holder.spawn().unwrap());
        let mut host = Self { dir, cgroup, holder, _manager: None, agent: None };
        host.until("the host is ready", || ready.exists());
        let mut manager = host.inside("/usr/bin/python3");
        manager.args(["-c", MANAGER]).arg(host.dir.path()).arg(&host.cgroup).arg(SERVICE);
        host._manager = Some(Killed(manager.spawn().unwrap()));
        host.until("the unit runs", || host.last().is_some());
        Some(host)
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.dir.path().join("bin").display());
        command.args(["--mount", "--target", &self.holder.0.id().to_string(), program]).env("PATH", path);
        command.stdin(Stdio::null());
        command
    }

    fn migrate(&self, arguments: &[&str]) -> Output {
        self.inside(PROGRAM).args(arguments).env("MIGRATE_PLACES", self.dir.path().join("a")).output().unwrap()
    }

    fn start_agent(&mut self, environment: &[(&str, &str)]) -> String {
        let socket = self.dir.path().join("agent.sock");
        let address = format!("unix:{}", socket.display());
        let mut agent = self.inside(PROGRAM);
        agent.args(["agent", "--listen", &address]).env("MIGRATE_PLACES", self.dir.path().join("b"));
        agent.envs(environment.iter().copied()).stderr(Stdio::null());
        self.agent = Some(Killed(agent.spawn().unwrap()));
        self.until("the agent listens", || socket.exists());
        address
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Process id and number in the last whole line.
    fn last(&self) -> Option<(i32, u64)> {
        let text = self.file("count");
        let (pid, n) = text.rsplit_once('\n')?.0.lines().last()?.split_once(' ')?;
        Some((pid.parse().ok()?, n.parse().ok()?))
    }

    fn main(&self) -> String {
        self.file("main")
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let until = Instant::now() + LIMIT;
        while !done() {
            assert!(Instant::now() < until, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One copy counts on, from where it was.
    fn counts_on(&self) {
        let (_, before) = self.last().unwrap();
        self.until("it counts on", || self.last().is_some_and(|(_, n)| n > before + 20));
        let numbers: Vec<u64> =
            self.file("count").lines().filter_map(|line| line.split_once(' ')?.1.parse().ok()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "started again, or doubled");
        assert_eq!(self.file("started-again"), "");
    }

    fn is_released(&self) -> bool {
        !self.file("loaded").contains("Restart=no")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self._manager = None;
        let work = self.dir.path().to_str().unwrap().to_owned();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if pid != std::process::id() as i32 && line.split(|b| *b == 0).any(|word| word == work.as_bytes()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        for _ in 0..200 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_unit_that_would_start_again_is_refused_unless_it_is_held() {
    if !can_move() {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let agent = host.start_agent(&[]);
    let pid = host.main();
    let refused = host.migrate(&["move", &pid, &agent]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
    assert!(text(&refused).contains("M1101") && text(&refused).contains("--supervisor hold"), "{}", text(&refused));
    let moved = host.migrate(&["move", &pid, &agent, "--supervisor", "hold"]);
    assert!(moved.status.success(), "{}", text(&moved));
    host.until("the manager has seen the original end", || {
        !host.file("failed").is_empty() || host.dir.path().join("failed").exists()
    });
    host.counts_on();
    host.until("the unit is released", || host.is_released());
}

#[test]
fn a_move_that_fails_releases_the_unit() {
    if !can_move() {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let agent = host.start_agent(&[("MIGRATE_FAULT", "restore-armed")]);
    let failed = host.migrate(&["move", &host.main(), &agent, "--supervisor", "hold"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    host.counts_on();
    assert!(host.file("calls").contains("daemon-reload") && host.is_released());
}

#[test]
fn a_dump_holds_the_unit_and_a_restore_keeps_it_from_starting_beside_the_tree() {
    if !can_move() {
        return;
    }
    let Some(host) = Host::new() else { return };
    let image = host.dir.path().join("image");
    let image = image.to_str().unwrap();
    let running = host.migrate(&["dump", &host.main(), "-D", &format!("{image}-0"), "--leave-running"]);
    assert!(running.status.success(), "nothing ends: {}", text(&running));
    let beside = host.migrate(&["restore", "-D", &format!("{image}-0"), "--detach", "--pids", "new"]);
    assert_eq!(beside.status.code(), Some(3), "{}", text(&beside));
    assert!(text(&beside).contains("M1105"), "{}", text(&beside));
    let dumped = host.migrate(&["dump", &host.main(), "-D", image, "--supervisor", "hold"]);
    assert!(dumped.status.success(), "{}", text(&dumped));
    host.until("the manager has seen it end", || host.dir.path().join("failed").exists());
    assert!(host.is_released(), "nothing starts it any more");
    let restored = host.migrate(&["restore", "-D", image, "--detach", "--supervisor", "hold"]);
    assert!(restored.status.success(), "{}", text(&restored));
    assert!(text(&restored).contains("unmask --runtime"), "{}", text(&restored));
    host.counts_on();
    let unit = host.cgroup.file_name().unwrap().to_str().unwrap();
    let link = format!("/proc/{}/root/run/systemd/system/{unit}", host.holder.0.id());
    assert_eq!(fs::read_link(link).unwrap(), PathBuf::from("/dev/null"));
}
