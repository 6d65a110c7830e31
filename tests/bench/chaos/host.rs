//! A host: PID, mount and network namespaces, a disk of its own, a boot id of its own.
//!
//! The disk is an ext4 file system in a file. When power is lost every process of the host is killed at once and the file is copied
//! before the file system is given up: the copy has what was synced, or written back by then, and nothing else. The host comes up
//! again from that copy, with another boot id.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::net::{Networks, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DISK_BYTES: u64 = 12 << 20;

/// An empty disk, to be copied.
pub fn make_disk(path: &Path) -> io::Result<()> {
    File::create(path)?.set_len(DISK_BYTES)?;
    let output = Command::new("mkfs.ext4").args(["-q", "-J", "size=4"]).arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[derive(Debug)]
pub struct Host {
    holder: Child,
    /// Process 1 of the host, as we see it.
    inside: i32,
    name: String,
    place: Place,
    networks: Arc<Networks>,
    dir: PathBuf,
    boots: u32,
    namespace: PathBuf,
}

/// Process 1: waits until its standard input closes. Its children are everybody who is left alone; it never waits for them.
const INIT: &str =
    "mount -o loop \"$1\" \"$2\" && mount --bind \"$3\" /proc/sys/kernel/random/boot_id && echo ready; read -r _";

impl Host {
    /// Comes up from a copy of this disk. `dir` is the directory that all hosts share.
    pub fn up(name: &str, place: Place, networks: &Arc<Networks>, dir: &Path, disk: &Path) -> io::Result<Self> {
        let places = dir.join(name);
        std::fs::create_dir_all(&places)?;
        let own = dir.join(format!("{name}.0.disk"));
        std::fs::copy(disk, own)?;
        Self::boot(name, place, networks, dir, 0)
    }

    fn boot(name: &str, place: Place, networks: &Arc<Networks>, dir: &Path, boots: u32) -> io::Result<Self> {
        let id = dir.join(format!("{name}.{boots}.boot"));
        let mut random = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let hex: Vec<String> = random.chunks(2).map(|two| format!("{:02x}{:02x}", two[0], two[1])).collect();
        std::fs::write(
            &id,
            format!("{}{}-{}-{}-{}-{}{}{}\n", hex[0], hex[1], hex[2], hex[3], hex[4], hex[5], hex[6], hex[7]),
        )?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", networks.path(place).display())).arg("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", INIT, "sh"]);
        command.arg(dir.join(format!("{name}.{boots}.disk"))).arg(dir.join(name)).arg(id);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut ready = [0; 6];
        if holder.stdout.as_mut().expect("piped").read_exact(&mut ready).is_err() {
            drop(holder.stdin.take());
            let said = holder.wait_with_output()?;
            return Err(io::Error::other(format!("a host: {}", String::from_utf8_lossy(&said.stderr))));
        }
        let inside = child_of(holder.id() as i32).ok_or(io::ErrorKind::NotFound)?;
        let namespace = std::fs::read_link(format!("/proc/{inside}/ns/pid"))?;
        let (name, networks, dir) = (name.to_owned(), Arc::clone(networks), dir.to_owned());
        Ok(Self { holder, inside, name, place, networks, dir, boots, namespace })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has been down.
    pub fn was_down(&self) -> bool {
        self.boots > 0
    }

    /// Where its files are, as it sees them.
    pub fn places(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// A command that runs on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inside.to_string(), "--mount", "--pid", "--net", "--"]).arg(program);
        command.env("MIGRATE_PLACES", self.places()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts it.
    pub fn start(&self, mut command: Command) -> io::Result<Inside> {
        let outer = command.spawn()?;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(pid) = child_of(outer.id() as i32) {
                return Ok(Inside { outer, pid });
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Its processes that live and have this in their command line.
    pub fn processes(&self, word: &str) -> Vec<i32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let ours = |pid: &i32| {
            String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).contains(word)
                && !matches!(state(*pid), None | Some('Z' | 'X'))
                && self.has(*pid)
        };
        pids.filter(ours).collect()
    }

    /// In its PID namespace, or in one below: then an ancestor is in it.
    fn has(&self, mut pid: i32) -> bool {
        while pid > 1 {
            if std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|namespace| namespace == self.namespace) {
                return true;
            }
            pid = parent(pid).unwrap_or(0);
        }
        false
    }

    /// No more than these bytes are left on its disk.
    pub fn fill_disk(&self, room: u32) -> io::Result<()> {
        let mut file = File::create(self.places_from_outside().join("filler"))?;
        for size in [65536, 512, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        // The kernel promises room before it has found it.
        let _ = file.sync_all();
        let len = file.metadata()?.len();
        file.set_len(len.saturating_sub(u64::from(room)))
    }

    /// A guardian had something to do.
    pub fn has_guardian_log(&self) -> bool {
        let files = std::fs::read_dir(self.places_from_outside().join("state/moves")).into_iter().flatten().flatten();
        files.map(|file| file.file_name()).any(|name| name.to_string_lossy().ends_with(".guardian.log"))
    }

    /// Its mounts.
    pub fn mounts(&self) -> usize {
        std::fs::read_to_string(format!("/proc/{}/mountinfo", self.inside)).map_or(0, |text| text.lines().count())
    }

    /// Attempts that its journals know.
    pub fn attempts(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.places_from_outside().join("state/moves")).into_iter().flatten().flatten();
        let name = |file: std::fs::DirEntry| file.file_name().to_str()?.split('.').next().map(str::to_owned);
        let mut attempts: Vec<String> = files.filter_map(name).collect();
        attempts.sort_unstable();
        attempts.dedup();
        attempts
    }

    /// What a person is told of memory that will never come: its ranges are named.
    pub fn missing(&self) -> Option<String> {
        let reports = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
        let state = self.places_from_outside().join("state");
        let all = reports(state.clone()).chain(reports(state.join("moves")));
        all.filter(|path| path.extension().is_some_and(|end| end == "lost"))
            .find_map(|path| std::fs::read_to_string(path).ok().filter(|text| text.contains("\nmissing: process")))
    }

    fn places_from_outside(&self) -> PathBuf {
        let places = self.places();
        PathBuf::from(format!("/proc/{}/root", self.inside)).join(places.strip_prefix("/").expect("absolute"))
    }

    /// Power is lost; it comes up again after this time. `outside`: a process of ours that waits for one of the host's.
    pub fn lose_power(&mut self, down: Duration, outside: &Inside) -> io::Result<()> {
        // The file system stays as it is until this is closed.
        let held = File::open(self.places_from_outside())?;
        self.networks.unplug(self.place)?;
        send(self.inside, Signal::SIGKILL);
        // A PID namespace does not end before all of its dead are waited for.
        send(outside.outer.id() as i32, Signal::SIGCONT);
        self.end();
        let disk = |boots| self.dir.join(format!("{}.{boots}.disk", self.name));
        std::fs::copy(disk(self.boots), disk(self.boots + 1))?;
        drop(held);
        self.networks.forget(self.place)?;
        std::thread::sleep(down);
        self.networks.plug(self.place)?;
        let up = Self::boot(&self.name, self.place, &self.networks, &self.dir, self.boots + 1)?;
        *self = up;
        Ok(())
    }

    fn end(&mut self) {
        let _ = kill(Pid::from_raw(self.inside), Signal::SIGKILL);
        let _ = self.holder.wait();
        // The kernel has ended all of a PID namespace before its first process can be waited for.
        let _ = self.holder.kill();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}

/// A process on a host, and the one of ours that has entered it. Where the first stops, so does the second, which would let it go
/// on in time: both are signalled.
#[derive(Debug)]
pub struct Inside {
    outer: Child,
    pub pid: i32,
}

impl Inside {
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.outer.stdout.take()
    }

    pub fn go_on(&self) {
        send(self.pid, Signal::SIGCONT);
        send(self.outer.id() as i32, Signal::SIGCONT);
    }

    pub fn kill(&self) {
        send(self.pid, Signal::SIGKILL);
        send(self.outer.id() as i32, Signal::SIGCONT);
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.outer.try_wait(), Ok(None))
    }

    /// Its end, if that comes in time.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.outer.try_wait() {
                return Some(status);
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        self.kill();
        if self.wait(Duration::from_secs(5)).is_none_or(|status| status.signal().is_some()) {
            let _ = self.outer.kill();
            let _ = self.outer.wait();
        }
    }
}

/// Whoever has ended meanwhile gets none.
pub fn send(to: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(to), signal);
}

/// As /proc has it.
pub fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// Of this process.
pub fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

fn child_of(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
