//! Which cgroups a restored tree lives in: each process where it was, all in one that is named, or in one of the tree's own.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// Cgroups of version 2 below one of this test's, and a parent with a child in two of them.
struct Family {
    mount: PathBuf,
    name: String,
    child: Child,
}

impl Family {
    fn start() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let Some(mount) = mount.map(PathBuf::from).filter(|_| nix::unistd::geteuid().is_root()) else {
            crate::skip!("needs root and cgroups of version 2");
            return None;
        };
        if !Path::new("/usr/bin/python3").exists() {
            crate::skip!("needs /usr/bin/python3");
            return None;
        }
        let name = format!("migrate-test-family-{}", std::process::id());
        for cgroup in ["parent", "child"] {
            if std::fs::create_dir_all(mount.join(&name).join(cgroup)).is_err() {
                crate::skip!("no cgroup can be made here");
                return None;
            }
        }
        let program = "import os, sys, time\nif os.fork() == 0:\n open(sys.argv[2], 'w').write('0')\n print('ready', flush=True)\n\
                       else:\n open(sys.argv[1], 'w').write('0')\nos.close(1)\nwhile True: time.sleep(0.1)";
        let files = ["parent", "child"].map(|cgroup| mount.join(&name).join(cgroup).join("cgroup.procs"));
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", program]).args(files).current_dir("/");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let family = Self { mount, name, child };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while family.cgroups(family.pid()) != family.there() {
            assert!(std::time::Instant::now() < deadline, "it does not get into its cgroups");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Some(family)
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Where the parent and its child belong.
    fn there(&self) -> [String; 2] {
        ["parent", "child"].map(|cgroup| format!("/{}/{cgroup}", self.name))
    }

    /// Where the parent and its child are.
    fn cgroups(&self, parent: i32) -> [String; 2] {
        [parent, children(parent)[0]].map(|pid| {
            let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            lines.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
        })
    }

    /// The parent of what was restored this way.
    fn restored(&self, image: &Path, cgroup: &str) -> Restored {
        let pidfile = image.with_extension("pid");
        let (image, pidfile) = (image.to_str().unwrap(), pidfile.to_str().unwrap());
        migrate(&["restore", "-D", image, "--detach", "--cgroup", cgroup, "--pidfile", pidfile]);
        Restored(std::fs::read_to_string(pidfile).unwrap().trim().parse().unwrap())
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        end(self.pid());
        let _ = self.child.wait();
        // The one that is named is made in every hierarchy.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
        for mount in cgroups.filter_map(|line| line.split(' ').nth(4)).map(Path::new) {
            for cgroup in ["parent", "child", "named", ""] {
                let dir = mount.join(&self.name).join(cgroup);
                if !is_removed(&dir) {
                    eprintln!("{} is still in use", dir.display());
                }
            }
        }
    }
}

/// It is busy until the last of those that were killed has been reaped, by whoever is its parent now.
fn is_removed(dir: &Path) -> bool {
    (0..2000).any(|_| {
        let gone = !dir.exists() || std::fs::remove_dir(dir).is_ok();
        if !gone {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        gone
    })
}

struct Restored(i32);

impl Drop for Restored {
    fn drop(&mut self) {
        end(self.0);
        while kill(Pid::from_raw(self.0), None).is_ok() {
            let _ = nix::sys::wait::waitpid(Pid::from_raw(self.0), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn end(pid: i32) {
    for child in children(pid) {
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn migrate(args: &[&str]) -> Output {
    let output = Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    output
}

#[test]
fn a_tree_is_where_it_was_or_where_it_is_put() {
    let Some(mut family) = Family::start() else { return };
    let there = family.there();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    migrate(&["dump", &family.pid().to_string(), "-D", image.to_str().unwrap()]);
    family.child.wait().unwrap();

    let same = family.restored(&image, "same");
    assert_eq!(family.cgroups(same.0), there);
    drop(same);

    // Its cgroups are made where there are none.
    for cgroup in ["parent", "child"] {
        assert!(is_removed(&family.mount.join(&family.name).join(cgroup)), "{cgroup} is still in use");
    }
    let same = family.restored(&image, "same");
    assert_eq!(family.cgroups(same.0), there);
    // And the same goes for a tree that moves.
    let host = dir.path().join("host");
    let mut command = Command::new(PROGRAM);
    command.args(["move", &same.0.to_string(), "local", "--cgroup", "same", "--json"]).env("MIGRATE_PLACES", &host);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap().to_owned();
    let result: serde_json::Value = serde_json::from_str(&last).unwrap();
    let moved = Restored(result["pid"].as_i64().unwrap() as i32);
    assert_eq!(family.cgroups(moved.0), there);
    drop((moved, same));

    let named = format!("/{}/named", family.name);
    let put = family.restored(&image, &named);
    assert_eq!(family.cgroups(put.0), [named.clone(), named]);
    drop(put);

    let own = family.restored(&image, "scope");
    let [parent, child] = family.cgroups(own.0);
    assert_eq!(parent, child);
    assert!(parent.starts_with("/migrate/") || parent.ends_with(".scope"), "{parent}");
}
