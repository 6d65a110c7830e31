//! A shell that moves, or saves, itself: the command is a part of the target.

use crate::moves::{Agent, can_move, on_host, run, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs the command in the middle of counting: `$1` is where it counts, what follows the command; TARGET in it is `$$`.
const SHELL: &str = "
cd \"$1\"; shift
n=0
count() { n=$((n + 1)); echo $n >> count; }
while [ $n -lt 20 ]; do count; done
words=(); for word in \"$@\"; do words+=(\"${word/#TARGET/$$}\"); done
\"${words[@]}\" >said 2>&1
echo $? >status
while :; do count; read -r -t 0.005 <> fifo; done
";

struct Shell {
    dir: tempfile::TempDir,
    child: Child,
}

impl Shell {
    fn start(dir: tempfile::TempDir, command: &[&str]) -> Self {
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut shell = on_host(&dir.path().join("a"));
        let places = shell.get_envs().map(|(k, v)| (k.to_owned(), v.unwrap().to_owned())).collect::<Vec<_>>();
        shell = Command::new("setsid");
        let script = format!("{} {SHELL}", crate::manual::CLOSE);
        shell.args(["bash", "-c", &script, "typed"]).arg(dir.path()).arg(env!("CARGO_BIN_EXE_migrate")).args(command);
        shell.envs(places).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: shell.spawn().unwrap(), dir }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < until, "not in time: {what}: {}", self.file("said"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Every number once, and more come.
    fn counts_on(&self) {
        let numbers = |shell: &Self| shell.file("count").lines().count();
        let before = numbers(self);
        self.until("it counts on", |shell| numbers(shell) > before + 20);
        let text = self.file("count");
        let whole = text.rsplit_once('\n').unwrap().0.lines().map(|line| line.parse::<usize>().unwrap());
        assert!(whole.enumerate().all(|(n, number)| number == n + 1), "a number is missing or stands twice");
    }

    fn shells(&self) -> Vec<i32> {
        let work = self.dir.path().to_str().unwrap();
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            words.first() == Some(&&b"bash"[..]) && words.contains(&work.as_bytes())
        })
        .collect()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        for pid in self.shells() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exists(path: PathBuf) -> bool {
    Path::new(&path).exists()
}

#[test]
fn a_shell_moves_itself_and_is_told_where_it_is() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", dir.path().join("agent.sock").display());
    let _agent = Agent::start(&dir.path().join("b"), &address);
    let shell = Shell::start(dir, &["move", "TARGET", &address, "--stdio", "null", "--progress", "none"]);
    shell.until("the command returns", |shell| !shell.file("status").is_empty());
    shell.until("it is said where the shell is", |shell| {
        shell.file("said").contains("where this was typed, is now process")
    });
    assert_eq!(shell.file("status"), "0\n", "{}", shell.file("said"));
    assert!(shell.file("said").contains("goes on outside"), "{}", shell.file("said"));
    shell.counts_on();
    let shells = shell.shells();
    assert!(shells.len() == 1 && shells[0] != shell.child.id() as i32, "{shells:?}");
}

#[test]
fn a_shell_saves_itself() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let shell =
        Shell::start(dir, &["dump", "TARGET", "-D", image.to_str().unwrap(), "--stdio", "null", "--progress", "none"]);
    shell.until("the image is there", |_| exists(image.join("manifest.json")));
    shell.until("the original has ended", |shell| {
        fs::read_to_string(format!("/proc/{}/stat", shell.child.id())).is_ok_and(|stat| stat.contains(") Z "))
    });
    let restored = run(
        on_host(&shell.dir.path().join("a")),
        &["restore", "-D", image.to_str().unwrap(), "--detach", "--stdio", "null"],
    );
    assert!(restored.status.success(), "{}", text(&restored));
    shell.counts_on();
}
