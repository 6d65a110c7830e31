//! Memory taken while the target runs: rounds, pre-dumps and their tracker, shared pages, full disks. The targets know what
//! each of their pages has to hold, and say so by their exit status after the restore.

mod execs;
mod resizing;
mod snapshots;
mod throttled;

use migrate_engine::memory::track::Backend;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

fn migrate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_migrate"))
}

/// These tests stop and make processes of their own ids: as root alone.
fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::skip!("needs root");
    }
    root
}

/// The compiled fixture.
fn fixture(name: &str) -> PathBuf {
    // Once: a program that is replaced while another test has it mapped is another file to a restore.
    static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.c"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rounds-{name}"));
    if made.iter().any(|n| n == name) {
        return program;
    }
    let status = Command::new("cc").args(["-O1", "-w", "-o"]).args([&program, &source]).status().unwrap();
    assert!(status.success(), "{name}.c does not compile");
    made.push(name.to_owned());
    program
}

/// A running fixture; ended with its whole tree when dropped.
struct Target(Child);

impl Target {
    fn start(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(fixture(name));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn pid_text(&self) -> String {
        self.0.id().to_string()
    }

    /// It was told to compare its memory and end.
    fn passes(&mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "of what it has in memory: {status}");
    }

    /// Waits for its end, so that its id is free.
    fn reap(&mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        end_tree(self.pid());
        let _ = self.0.wait();
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap()
}

fn end_tree(pid: i32) {
    let below = children(pid);
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    below.into_iter().for_each(end_tree);
}

fn run(args: &[&str]) -> Output {
    let output = migrate().args(args).stdin(Stdio::null()).output().unwrap();
    println!("{args:?}\n{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

fn ok(args: &[&str]) -> Output {
    let output = run(args);
    assert!(output.status.success(), "{args:?}");
    output
}

/// Restores an image in the foreground, lets `look` see the root, asks the target to compare, and gives its exit status.
fn restored(image: &Path, look: impl FnOnce(i32)) -> Option<i32> {
    let pidfile = image.with_extension("pid");
    let mut command = migrate();
    command.args(["restore", "-D"]).arg(image).arg("--pidfile").arg(&pidfile);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let root: i32 = loop {
        if let Some(pid) = std::fs::read_to_string(&pidfile).ok().and_then(|text| text.trim().parse().ok()) {
            break pid;
        }
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "nothing was restored");
        std::thread::sleep(Duration::from_millis(10));
    };
    // It goes on with its work first.
    std::thread::sleep(Duration::from_millis(300));
    look(root);
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(root), nix::sys::signal::SIGUSR2);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            end_tree(root);
            let _ = child.kill();
            let _ = child.wait();
            panic!("the restored target does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn result(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().expect("a result");
    serde_json::from_str(last).expect("JSON")
}

/// No userfaultfd of ours is left on it.
fn is_untracked(pid: i32) -> bool {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    !smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" uw"))
}

fn pss_kib(pids: &[i32]) -> u64 {
    let of = |pid: &i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find(|l| l.starts_with("Pss:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    pids.iter().map(of).sum()
}

#[test]
fn a_busy_target_is_dumped_in_rounds_and_left_as_it_was() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut target = Target::start("writer", &["64", "2000"]);
    let mappings = || std::fs::read_to_string(format!("/proc/{}/maps", target.pid())).unwrap();
    let before = mappings();
    let first = dir.path().join("first");
    let output = ok(&["dump", &target.pid_text(), "-D", first.to_str().unwrap(), "--leave-running", "--json"]);
    let result = result(&output);
    assert!(result["rounds"].as_array().unwrap().len() >= 2, "{result}");
    assert_eq!((&result["mode"], &result["state"]), (&"pre-copy".into(), &"running".into()));
    assert!(is_untracked(target.pid()));
    assert_eq!(mappings(), before);
    let second = dir.path().join("second");
    ok(&["dump", &target.pid_text(), "-D", second.to_str().unwrap()]);
    target.reap();
    assert_eq!(restored(&second, |_| {}), Some(0));
    assert_eq!(restored(&first, |_| {}), Some(0));
}

#[test]
fn a_chain_of_pre_dumps_restores_byte_by_byte() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut target = Target::start("writer", &["24", "3000"]);
    let pid = target.pid_text();
    let at = |n: usize| dir.path().join(format!("image{n}")).to_str().unwrap().to_owned();
    for n in 0..3 {
        let mut args = vec!["pre-dump".to_owned(), pid.clone(), "-D".to_owned(), at(n)];
        if n > 0 {
            args.extend(["--parent".to_owned(), at(n - 1)]);
        }
        let output = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("compared"), "the tracker was not found: {said}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!is_untracked(target.pid()));
    // What cannot be restored says so.
    assert!(!run(&["restore", "-D", &at(2), "--detach"]).status.success());
    ok(&["dump", &pid, "-D", &at(3), "--parent", &at(2)]);
    target.reap();
    ok(&["verify", &at(3)]);
    let size = |n: usize| -> u64 {
        let files = std::fs::read_dir(at(n)).unwrap().map(|e| e.unwrap().metadata().unwrap());
        files.map(|m| m.len()).sum()
    };
    assert!(size(1) < size(0) / 2 && size(3) < size(0) / 2, "{} {} {}", size(0), size(1), size(3));
    assert_eq!(restored(Path::new(&at(3)), |_| {}), Some(0));
}

/// It ends when nobody has come for what it knows, and when nobody is left of whom it knows anything.
#[test]
fn a_tracker_ends_with_its_time_or_its_target() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let ends = |session: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while is_there(session) {
            assert!(Instant::now() < deadline, "the tracker does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!run(&["cancel", session]).status.success());
    };
    let session = |output: &Output| result(output)["session"].as_str().unwrap().to_owned();

    let target = Target::start("writer", &["4", "100"]);
    let pid = target.pid_text();
    let kept = session(&ok(&["pre-dump", &pid, "-D", &at("a"), "--keep-tracking", "1s", "--json"]));
    assert!(is_there(&kept), "there is no tracker");
    ends(&kept);
    assert!(is_untracked(target.pid()));

    let kept = session(&ok(&["pre-dump", &pid, "-D", &at("b"), "--json"]));
    assert!(is_there(&kept), "there is no tracker");
    drop(target);
    ends(&kept);
}

/// Whether somebody listens who has tracked since this session: its socket is named after it.
fn is_there(session: &str) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().any(|line| line.ends_with(&format!("-{session}.sock")))
}

#[test]
fn without_a_tracker_pages_are_compared_with_the_parent() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut target = Target::start("writer", &["24", "3000"]);
    let pid = target.pid_text();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let session = result(&ok(&["pre-dump", &pid, "-D", &at("a"), "--json"]))["session"].as_str().unwrap().to_owned();
    ok(&["cancel", &session]);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_untracked(target.pid()) {
        assert!(Instant::now() < deadline, "the tracker did not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!run(&["cancel", &session]).status.success());
    let output = ok(&["dump", &pid, "-D", &at("b"), "--parent", &at("a")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("compared"));
    target.reap();
    assert_eq!(restored(Path::new(&at("b")), |_| {}), Some(0));
}

/// How much a server has that forks its children first: a gigabyte where there is room for it, its image, and its copy.
fn prefork_mib() -> &'static str {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    if kib > 8 << 20 {
        return "1024";
    }
    crate::skip!("less than 8 GiB of memory is free: a server of 64 MiB instead of 1 GiB");
    "64"
}

#[test]
fn relatives_share_memory_after_a_restore_as_before() {
    if !root() {
        return;
    }
    for stop_first in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut target = Target::start("prefork", &[prefork_mib(), "8"]);
        let family = |root: i32| -> Vec<i32> { children(root).into_iter().chain([root]).collect() };
        let before = pss_kib(&family(target.pid()));
        let image = dir.path().join("image");
        let mut args = vec!["dump".to_owned(), target.pid_text(), "-D".to_owned(), image.to_str().unwrap().to_owned()];
        args.extend(stop_first.then(|| "--stop-first".to_owned()));
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        target.reap();
        let status = restored(&image, |root| {
            let after = pss_kib(&family(root));
            assert!(after * 100 <= before * 105 + 200_000, "Pss {before} kB before, {after} kB after");
        });
        assert_eq!(status, Some(0), "stop first: {stop_first}");
    }
}

/// Moves a target within this host; what the command says at the end.
fn moved(pid: i32, mode: &str, host: &Path) -> serde_json::Value {
    for _ in 0..10 {
        let mut command = migrate();
        command.args(["move", &pid.to_string(), "local", "--mode", mode, "--json"]).env("MIGRATE_PLACES", host);
        let output = command.stdin(Stdio::null()).output().unwrap();
        if output.status.success() {
            return result(&output);
        }
        // A busy machine.
        assert!(String::from_utf8_lossy(&output.stdout).contains("did not stop within"), "{mode}: {output:?}");
    }
    panic!("the target never stops in time");
}

#[test]
fn relatives_share_memory_after_a_move_as_before() {
    if !root() {
        return;
    }
    // Process 1 of its namespace becomes a child of ours when its maker ends, and tells us the root's exit status.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    for mode in ["pre-copy", "stop-and-copy"] {
        let host = tempfile::tempdir().unwrap();
        let target = Target::start("prefork", &[prefork_mib(), "8"]);
        let family = |root: i32| -> Vec<i32> { children(root).into_iter().chain([root]).collect() };
        let before = pss_kib(&family(target.pid()));
        let result = moved(target.pid(), mode, host.path());
        let moved = i32::try_from(result["pid"].as_i64().unwrap()).unwrap();
        let after = pss_kib(&family(moved));
        let pages = result["pages_sent"].as_u64().unwrap();
        let init = parent(moved);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(moved), nix::sys::signal::SIGUSR2).unwrap();
        let ended = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(init), None);
        assert!(matches!(ended, Ok(nix::sys::wait::WaitStatus::Exited(_, 0))), "{mode}: {ended:?}");
        assert!(after * 100 <= before * 105 + 200_000, "{mode}: Pss {before} kB before, {after} kB after; {result}");
        assert!(pages * 4 <= before * 6 / 5, "{mode}: {pages} pages were sent for {before} kB");
    }
}

#[test]
fn what_does_not_converge_follows_when_it_runs() {
    if !root() {
        return;
    }
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    for (mode, became) in [("auto", "hybrid"), ("pre-copy", "pre-copy")] {
        let host = tempfile::tempdir().unwrap();
        let target = Target::start("writer", &["8", "20000"]);
        let mut command = migrate();
        // It writes faster than rounds send.
        command.args([
            "move",
            &target.pid_text(),
            "local",
            "--mode",
            mode,
            "--bandwidth",
            "20MB/s",
            "--compress",
            "off",
        ]);
        command.args(["--converge", "post-copy,anyway", "--json"]).env("MIGRATE_PLACES", host.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{mode}: {output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        let result = result(&output);
        assert_eq!(result["mode"], became, "{said}");
        assert_eq!(said.contains("what is left follows when it runs"), became == "hybrid", "{said}");
        assert_eq!(result["stalls"].is_array(), became == "hybrid", "{said}");
        let waited = |stall: &serde_json::Value| {
            let classes = stall["classes"].as_array().unwrap().iter().map(|class| class["count"].as_u64().unwrap());
            assert_eq!(stall["count"].as_u64().unwrap(), classes.sum::<u64>(), "{said}");
            stall["count"].as_u64().unwrap()
        };
        let waits: u64 = result["stalls"].as_array().into_iter().flatten().map(waited).sum();
        assert_eq!(waits > 0, result["faults"].as_u64().unwrap_or(0) > 0, "{said}");
        let moved = i32::try_from(result["pid"].as_i64().unwrap()).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{moved}/status")).unwrap();
        let init = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(moved), nix::sys::signal::SIGUSR2).unwrap();
        let ended = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(init), None);
        assert!(matches!(ended, Ok(nix::sys::wait::WaitStatus::Exited(_, 0))), "{mode}: {ended:?}");
    }
}

#[test]
fn what_changes_a_little_over_a_slow_link_converges_by_deltas() {
    if !root() {
        return;
    }
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    for (converge, moves) in [("compress,abort", false), ("delta,abort", true)] {
        let host = tempfile::tempdir().unwrap();
        // 32 MB of pages a second are written to, of what cannot be packed; two words of each.
        let target = Target::start("writer", &["16", "8000", "noise"]);
        let mut command = migrate();
        command.args(["move", &target.pid_text(), "local", "--mode", "pre-copy", "--bandwidth", "10MB/s"]);
        command.args(["--max-downtime", "500ms", "--max-rounds", "40", "--converge", converge, "--json"]);
        let output = command.env("MIGRATE_PLACES", host.path()).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), moves, "{converge}: {said}");
        let root = if moves { i32::try_from(result(&output)["pid"].as_i64().unwrap()).unwrap() } else { target.pid() };
        let waits_for = if moves { parent(root) } else { root };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(root), nix::sys::signal::SIGUSR2).unwrap();
        let ended = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(waits_for), None);
        assert!(matches!(ended, Ok(nix::sys::wait::WaitStatus::Exited(_, 0))), "{converge}: {ended:?}: {said}");
    }
}

#[test]
fn shared_memory_is_taken_while_the_target_runs() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut target = Target::start("shared", &["64"]);
    for (name, after) in [("first", "--leave-running"), ("second", "--force")] {
        let image = dir.path().join(name);
        let output = ok(&["dump", &target.pid_text(), "-D", image.to_str().unwrap(), "--json", after]);
        let result = result(&output);
        let rounds = result["rounds"].as_array().unwrap();
        let pages: Vec<u64> = rounds.iter().map(|round| round["pages"].as_u64().unwrap()).collect();
        assert!(pages[0] >= 64 * 256 && *pages.last().unwrap() < 64 * 256 / 8, "{pages:?}");
    }
    target.reap();
    for name in ["second", "first"] {
        assert_eq!(restored(&dir.path().join(name), |_| {}), Some(0), "{name}");
    }
}

#[test]
fn memory_under_every_kind_of_change_comes_back_right() {
    if !root() {
        return;
    }
    let backends = [Backend::WriteProtect, Backend::SoftDirty, Backend::SoftDirtyPagemap, Backend::Hash];
    for (n, backend) in backends.into_iter().cycle().take(8).enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("blocks");
        let seed = (n + 1).to_string();
        let mut target = Target::start("torture", &[&seed, file.to_str().unwrap()]);
        let pid = target.pid_text();
        let at = |n: usize| dir.path().join(format!("image{n}")).to_str().unwrap().to_owned();
        let track = ["--track", backend.name()];
        if !backend.works() {
            // Proved in virtual machines, tests/vm; here it has to be said.
            let refused = run(&[&["pre-dump", &pid, "-D", &at(0)][..], &track].concat());
            assert_eq!(refused.status.code(), Some(3), "{track:?}");
            assert!(String::from_utf8_lossy(&refused.stderr).contains("M0707"), "{track:?}");
            continue;
        }
        ok(&[&["pre-dump", &pid, "-D", &at(0)][..], &track].concat());
        ok(&[&["pre-dump", &pid, "-D", &at(1), "--parent", &at(0)][..], &track].concat());
        std::thread::sleep(Duration::from_millis(200));
        ok(&[&["pre-dump", &pid, "-D", &at(2), "--parent", &at(1)][..], &track].concat());
        ok(&[&["dump", &pid, "-D", &at(3), "--parent", &at(2)][..], &track].concat());
        target.reap();
        assert_eq!(restored(Path::new(&at(3)), |_| {}), Some(0), "seed {seed} {track:?}");
    }
}

/// A file system of so many MiB; unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn of(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mib}m");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(options.as_str())).unwrap();
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_leaves_the_target_running_and_nothing_behind() {
    if !root() {
        return;
    }
    let target = Target::start("writer", &["64", "40000"]);
    // Refused at once; and full only in the middle, of the pages that were written again in the rounds.
    for (mib, reason, state) in [(20, "bytes free", "untouched"), (68, "full", "still running")] {
        let small = Small::of(mib);
        let image = small.0.path().join("image");
        let output = run(&["dump", &target.pid_text(), "-D", image.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{mib} MiB");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(reason) && said.contains(state), "{said}");
        assert_eq!(std::fs::read_dir(small.0.path()).unwrap().count(), 0);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", target.pid())).unwrap();
        let state = stat.rsplit_once(") ").unwrap().1.chars().next().unwrap();
        assert!(matches!(state, 'R' | 'S'), "{state}");
        assert!(is_untracked(target.pid()));
    }
}

/// A deleted file that finds no room here is found out before the tree runs, nothing of it stays, and the image is as good as before.
#[test]
fn a_disk_that_is_full_at_a_restore_leaves_nothing_behind() {
    if !root() || !Path::new("/usr/bin/python3").exists() {
        return crate::skip!("needs root and /usr/bin/python3");
    }
    let (small, dir) = (Small::of(24), tempfile::tempdir().unwrap());
    let (file, image) = (small.0.path().join("file"), dir.path().join("image"));
    let program = "import os, sys, time\nf = open(sys.argv[1], 'w+b')\nf.write(os.urandom(12 << 20))\nf.flush()\nos.unlink(sys.argv[1])\n\
                   print('ready', flush=True)\nos.close(1)\ntime.sleep(1000)";
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", program]).arg(&file).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.current_dir("/").spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut target = Target(child);
    ok(&["dump", &target.pid_text(), "-D", image.to_str().unwrap()]);
    target.reap();
    let filler = small.0.path().join("filler");
    std::fs::write(&filler, vec![1; 16 << 20]).unwrap();
    let pidfile = dir.path().join("pid");
    let args = ["restore", "-D", image.to_str().unwrap(), "--detach", "--pidfile", pidfile.to_str().unwrap()];
    let refused = run(&args);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left") && said.contains("not started"), "{said}");
    let left: Vec<_> = std::fs::read_dir(small.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["filler"]);
    assert!(!Path::new(&format!("/proc/{}", target.pid())).exists(), "something of it runs");
    std::fs::remove_file(filler).unwrap();
    ok(&args);
    let pid: i32 = std::fs::read_to_string(pidfile).unwrap().trim().parse().unwrap();
    let held = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let sizes = held.filter(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().contains("(deleted)"))
    });
    assert_eq!(sizes.map(|entry| std::fs::metadata(entry.path()).unwrap().len()).collect::<Vec<_>>(), [12 << 20]);
    end_tree(pid);
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
}
