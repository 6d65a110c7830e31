//! `dump --snapshot`: the image is of one instant, whatever the target does while it is saved, and the target does not notice.
//! The fixture knows what every page has to hold, see `instant.c`, and is asked before it runs on.

use super::{children, end_tree, fixture, migrate, ok, result, root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Slow enough that the target does much while it is saved.
const SLOWLY: [&str; 2] = ["--bandwidth", "20MB/s"];

fn until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !there() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A fixture at work that says when asked whether all was well; ended with its tree when dropped.
pub(super) struct Work {
    child: Child,
    dir: tempfile::TempDir,
}

impl Work {
    pub(super) fn start(processes: u32, threads: u32, mib: u32, churn: &str) -> Self {
        Self::start_as(processes, threads, mib, churn, None)
    }

    fn start_as(processes: u32, threads: u32, mib: u32, churn: &str, user: Option<u32>) -> Self {
        let args = [processes, threads, mib].map(|n| n.to_string());
        Self::of("instant", &[&args[0], &args[1], &args[2], churn], user)
    }

    pub(super) fn of(program: &str, args: &[&str], user: Option<u32>) -> Self {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::CommandExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new(fixture(program));
        command.args(args).arg(dir.path().join("verdict"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        // So that every page has been written by its thread.
        std::thread::sleep(Duration::from_millis(500));
        Self { child, dir }
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn verdict(&self) -> PathBuf {
        self.dir.path().join("verdict")
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let pid = self.pid().to_string();
        let mut args = vec!["dump", &pid, "--snapshot", "--json"];
        args.extend(more);
        args.iter().map(ToString::to_string).collect()
    }

    fn dump(&self, more: &[&str]) -> Output {
        let image = self.image();
        let args = self.args(&[&["-D", image.to_str().unwrap()], more].concat());
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Begins a dump that takes its time, and waits until memory is protected: ahead of the pause, or at the instant. With it
    /// what else it says.
    fn begin(&self, ahead: bool) -> (Child, BufReader<ChildStdout>) {
        let mut command = migrate();
        command.args(self.args(&SLOWLY)).arg("-D").arg(self.image()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut dump = command.spawn().unwrap();
        let mut said = BufReader::new(dump.stdout.take().unwrap());
        let mut line = String::new();
        while !ahead && !line.contains(r#""event":"frozen""#) {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "no pause");
        }
        until("nothing is protected", || is_protected(self.pid()));
        (dump, said)
    }

    /// Asks the one that was dumped, which has run on.
    pub(super) fn passes(&mut self) {
        send(self.pid(), Signal::SIGUSR2);
        let status = self.child.wait().unwrap();
        assert_eq!(std::fs::read_to_string(self.verdict()).unwrap(), "ok\n", "of the one that was dumped: {status}");
        std::fs::remove_file(self.verdict()).unwrap();
    }

    /// Restores the image, and asks before anything of it has run.
    fn restored_passes(&mut self) {
        self.restored_passes_after(Duration::ZERO);
    }

    /// Restores the image, and asks after it has run on for this long.
    fn restored_passes_after(&mut self, running: Duration) {
        let pidfile = self.dir.path().join("pid");
        let (image, pidfile) = (self.image(), pidfile.to_str().unwrap().to_owned());
        ok(&["restore", "-D", image.to_str().unwrap(), "--detach", "--leave-stopped", "--pidfile", &pidfile]);
        let restored = Restored(std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap());
        if running.is_zero() {
            send(restored.0, Signal::SIGUSR2);
        }
        children(restored.0).into_iter().for_each(|child| send(child, Signal::SIGCONT));
        send(restored.0, Signal::SIGCONT);
        if !running.is_zero() {
            std::thread::sleep(running);
            send(restored.0, Signal::SIGUSR2);
        }
        self.ends_well(&restored);
    }

    /// Asks the one that was moved, after it has run on for this long; `result` is what the move said.
    pub(super) fn moved_passes_after(&self, running: Duration, result: &serde_json::Value) {
        let moved = Restored(i32::try_from(result["pid"].as_i64().unwrap()).unwrap());
        std::thread::sleep(running);
        send(moved.0, Signal::SIGUSR2);
        self.ends_well(&moved);
    }

    fn ends_well(&self, restored: &Restored) {
        let verdict = self.verdict();
        let said = || std::fs::read_to_string(&verdict).unwrap_or_default();
        until("the restored one says nothing", || said().ends_with('\n'));
        assert_eq!(said(), "ok\n", "of the restored one");
        until("the restored one does not end", || has_ended(restored.0));
        std::fs::remove_file(verdict).unwrap();
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        end_tree(self.pid());
        let _ = self.child.wait();
    }
}

struct Restored(i32);

impl Drop for Restored {
    fn drop(&mut self) {
        if !has_ended(self.0) {
            end_tree(self.0);
        }
    }
}

fn has_ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// Has it a mapping that a userfaultfd write-protects?
fn is_protected(pid: i32) -> bool {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    smaps.lines().any(|line| line.starts_with("VmFlags:") && line.split_whitespace().any(|flag| flag == "uw"))
}

#[test]
fn an_image_behind_a_running_target_is_of_one_instant() {
    if !root() {
        return;
    }
    // A child that ends, or what threads and heaps give back, may be lost; then the image is of a later instant.
    for (processes, threads, churn, attempts) in
        [(2, 1, "none", 1), (1, 2, "fork", 5), (1, 2, "thread", 1), (2, 1, "brk", 1)]
    {
        let mut work = Work::start(processes, threads, 24, churn);
        let mut found = result(&work.dump(&SLOWLY));
        for _ in 1..attempts {
            if found["mode"] != "snapshot" {
                found = result(&work.dump(&[&SLOWLY[..], &["--force"]].concat()));
            }
        }
        if attempts > 1 || churn == "none" || found["mode"] == "snapshot" {
            assert_eq!(found["mode"], "snapshot", "{churn}");
            assert!(found["faults"].as_u64().unwrap() > 0, "{churn}: nobody had to wait: {found}");
        }
        if found["mode"] == "snapshot" {
            let notes = found["notes"]
                .as_array()
                .map(|notes| notes.iter().filter_map(|note| note.as_str()).collect::<String>());
            let notes = notes.unwrap_or_default();
            assert!(notes.contains("protected before the pause"), "{churn}: nothing was protected ahead: {found}");
        }
        assert_eq!(found["state"], "running", "{churn}");
        work.passes();
        work.restored_passes();
    }
}

#[test]
fn what_is_given_back_before_it_is_saved_is_never_wrong() {
    if !root() {
        return;
    }
    for churn in ["munmap", "mremap", "dontneed"] {
        let mut work = Work::start(2, 1, 16, churn);
        let output = work.dump(&SLOWLY);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("the snapshot is lost") && said.contains("not saved yet"), "{churn}: {said}");
        assert_ne!(result(&output)["mode"], "snapshot", "{churn}");
        work.passes();
        work.restored_passes();
        // What it has as one mapping is one to mremap(2) still: its children have memory where their parent has some, too.
        work.restored_passes_after(Duration::from_millis(500));
    }
}

#[test]
fn a_program_that_executes_another_while_it_is_saved_is_saved_as_the_other() {
    if !root() {
        return;
    }
    for ahead in [false, true] {
        let mut work = Work::start(2, 1, 24, "exec");
        let (mut dump, mut says) = work.begin(ahead);
        send(work.pid(), Signal::SIGUSR1);
        let mut said = String::new();
        says.read_to_string(&mut said).unwrap();
        assert!(dump.wait().unwrap().success(), "{said}");
        assert!(ahead || said.contains("the snapshot is lost"), "{said}");
        work.passes();
        work.restored_passes();
    }
}

#[test]
fn a_snapshot_that_is_killed_leaves_a_target_that_goes_on_and_no_image() {
    if !root() {
        return;
    }
    let mut work = Work::start(2, 1, 24, "none");
    let (mut dump, _) = work.begin(false);
    dump.kill().unwrap();
    dump.wait().unwrap();
    assert!(!work.image().exists());
    until("it is protected for ever", || !is_protected(work.pid()));
    for child in children(work.pid()) {
        until("a child is protected for ever", || !is_protected(child));
    }
    // And one that fails.
    let mut command = migrate();
    command.args(work.args(&[])).arg("-D").arg(work.image()).env("MIGRATE_FAULT", "dump-snapshot");
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    assert!(!work.image().exists() && !is_protected(work.pid()));
    assert_eq!(result(&work.dump(&[]))["mode"], "snapshot");
    work.passes();
    work.restored_passes();
}

#[test]
fn a_snapshot_adds_to_an_image_and_goes_down_a_pipe() {
    if !root() {
        return;
    }
    let mut work = Work::start(1, 2, 16, "none");
    let parent = work.dir.path().join("parent");
    let parent = parent.to_str().unwrap();
    let args = work.args(&["-D", parent]);
    assert_eq!(result(&ok(&args.iter().map(String::as_str).collect::<Vec<_>>()))["mode"], "snapshot");
    assert_eq!(result(&work.dump(&["--parent", parent]))["mode"], "snapshot");
    let mut command = migrate();
    command.args(["dump", &work.pid().to_string(), "--snapshot", "--stream"]).stdin(Stdio::null());
    let mut dump = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stream = Vec::new();
    dump.stdout.take().unwrap().read_to_end(&mut stream).unwrap();
    assert!(dump.wait().unwrap().success());
    work.passes();
    work.restored_passes();
    assert_eq!(stream_passes(&work, &stream), "ok\n");
}

fn stream_passes(work: &Work, stream: &[u8]) -> String {
    let (file, pidfile) = (work.dir.path().join("stream"), work.dir.path().join("pid"));
    std::fs::write(&file, stream).unwrap();
    let mut command = migrate();
    command.args(["restore", "--stream", "--detach", "--leave-stopped", "--pidfile"]).arg(&pidfile);
    let status = command.stdin(std::fs::File::open(&file).unwrap()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
    let restored = Restored(std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap());
    send(restored.0, Signal::SIGUSR2);
    send(restored.0, Signal::SIGCONT);
    let said = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    until("the restored one says nothing", || said(&work.verdict()).ends_with('\n'));
    said(&work.verdict())
}

#[test]
fn who_may_not_be_protected_is_saved_in_rounds_and_that_is_said() {
    if !root() {
        return;
    }
    if std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap().trim() != "0" {
        crate::skip!("here everybody may");
        return;
    }
    let mut work = Work::start_as(1, 2, 16, "none", Some(65534));
    let output = work.dump(&[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("cannot be write-protected"));
    assert_ne!(result(&output)["mode"], "snapshot");
    work.passes();
    work.restored_passes();
}
