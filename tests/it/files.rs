//! Files that go along with a target: two hosts with file systems of their own, which are mount namespaces here.
//!
//! The target works in a directory on which the second host has another file system: whatever it finds there has travelled.

use crate::handover::wait;
use crate::moves::{Agent, can_move, on_host, result, run, text};
use crate::networks::Killed;
use crate::places::Blow;
use crate::zoo::tools::adopt_orphans;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const LIMIT: Duration = Duration::from_secs(60);

/// Writes to files in every way there is, and reads back what it wrote: a log that it appends to, one that it writes anywhere
/// in, one through a shared mapping, a sparse one; it reads one that nobody writes to.
const WRITER: &str = "
import mmap, os, sys, time
os.closerange(3, 1024)  # what the test runner's shell has left open
os.chdir(sys.argv[1])
log = open('log', 'a', buffering=1)
data = os.open('data', os.O_RDWR | os.O_CREAT, 0o640)
os.ftruncate(data, 3 << 20)
sparse = os.open('sparse', os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(sparse, 256 << 20)
os.pwrite(sparse, b'in the middle', 100 << 20)
os.setxattr('sparse', 'user.colour', b'red')
mapped = open('mapped', 'w+b')
mapped.truncate(1 << 20)
memory = mmap.mmap(mapped.fileno(), 1 << 20)
read = os.open('read', os.O_RDONLY)
at = lambda n: (n * 4099) % (3 << 20) & ~7
n = 0
while True:
    n += 1
    word = b'%08d' % n
    os.pwrite(data, word, at(n))
    memory[n * 8 % (1 << 20):][:8]
    memory[n * 8 % (1 << 20):n * 8 % (1 << 20) + 8] = word
    if n > 1:
        before = b'%08d' % (n - 1)
        assert os.pread(data, 8, at(n - 1)) == before, 'the file lost a write'
        start = (n - 1) * 8 % (1 << 20)
        assert memory[start:start + 8] == before, 'the mapping lost a write'
        assert os.pread(mapped.fileno(), 8, start) == before, 'file and mapping are two'
    if n % 50 == 0:
        assert os.pread(sparse, 13, 100 << 20) == b'in the middle' and os.pread(sparse, 4, 200 << 20) == bytes(4)
        assert os.pread(read, 100, 0).startswith(b'constant'), 'another file to read'
    log.write('%d\\n' % n)
    time.sleep(0.002)
";

/// A directory of work, a writer in it, and a second host with another file system there.
struct Scene {
    dir: tempfile::TempDir,
    writer: Option<Child>,
    agent: Option<Killed>,
}

impl Scene {
    /// `others`: what the second host has there, besides the file that is read.
    fn new(others: &[(&str, &str)], environment: &[(&str, &str)]) -> Self {
        Self::with_mount("mount -t tmpfs files \"$0\"", others, environment)
    }

    /// `mount` makes the second host's file system of the directory `$0`.
    fn with_mount(mount: &str, others: &[(&str, &str)], environment: &[(&str, &str)]) -> Self {
        adopt_orphans();
        let dir = tempfile::Builder::new().prefix("files-").tempdir_in("/var/tmp").unwrap();
        let mut scene = Self { dir, writer: None, agent: None };
        fs::create_dir(scene.here("")).unwrap();
        fs::write(scene.here("read"), "constant").unwrap();
        scene.start_agent(mount, environment);
        if !scene.there("read").exists() {
            fs::write(scene.there("read"), "constant").unwrap();
        }
        for (name, content) in others {
            fs::write(scene.there(name), content).unwrap();
        }
        scene
    }

    fn start_agent(&mut self, mount: &str, environment: &[(&str, &str)]) {
        let work = self.here("");
        let script = format!("{mount} && exec \"$1\" agent --listen \"$2\"");
        let places = self.dir.path().join("b");
        fs::create_dir_all(&places).unwrap();
        let mut agent = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .arg(&work)
            .args([PROGRAM, &self.address()])
            .env("MIGRATE_PLACES", &places)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(agent.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        self.agent = Some(Killed(agent));
        assert!(line.starts_with("listening on "), "{line}");
    }

    fn address(&self) -> String {
        format!("unix:{}", self.dir.path().join("agent.sock").display())
    }

    /// A path in the directory of work, as the first host sees it.
    fn here(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    /// The same as the second host sees it.
    fn there(&self, name: &str) -> PathBuf {
        let agent = self.agent.as_ref().unwrap().0.id();
        PathBuf::from(format!("/proc/{agent}/root{}", self.here(name).display()))
    }

    fn start_writer(&mut self) {
        let child = Command::new("setsid")
            .args(["/usr/bin/python3", "-c", WRITER])
            .arg(self.here("").to_str().unwrap().trim_end_matches('/'))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.dir.path().join("said")).unwrap())
            .spawn()
            .unwrap();
        self.writer = Some(child);
        self.goes_on(&self.here("log"));
    }

    /// A log in which every number stands once, and to which more come.
    fn goes_on(&self, log: &Path) -> u64 {
        let until = Instant::now() + LIMIT;
        let numbers = || -> Vec<u64> {
            let text = fs::read_to_string(log).unwrap_or_default();
            text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
        };
        let before = numbers().len();
        loop {
            let now = numbers();
            if now.len() > before + 60 {
                assert!(now.iter().copied().eq(1..=now.len() as u64), "a number is missing or stands twice");
                return now.len() as u64;
            }
            let said = fs::read_to_string(self.dir.path().join("said")).unwrap_or_default();
            assert!(Instant::now() < until && said.is_empty(), "{} does not go on: {said}", log.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn source(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = on_host(&self.dir.path().join("a"));
        command.envs(environment.iter().copied());
        run(command, arguments)
    }

    fn moved(&self, options: &[&str], environment: &[(&str, &str)]) -> Output {
        let pid = self.writer.as_ref().unwrap().id().to_string();
        self.source(&[&["move", &pid, &self.address(), "--json"], options].concat(), environment)
    }

    /// Names and contents at the second host, but for nothing.
    fn listing(&self) -> BTreeSet<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.there("")).unwrap().map(|entry| entry.unwrap());
        entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap_or_default())).collect()
    }

    /// Nothing of ours lies beside the files of the target.
    fn is_tidy(&self) {
        let until = Instant::now() + LIMIT;
        loop {
            let left: Vec<String> =
                self.listing().into_iter().map(|(name, _)| name).filter(|name| name.starts_with(".migrate")).collect();
            let moves = fs::read_dir(self.dir.path().join("b/state/moves")).into_iter().flatten().flatten();
            let records = moves.filter(|entry| entry.path().extension().is_some_and(|e| e == "files")).count();
            if left.is_empty() && records == 0 {
                return;
            }
            assert!(Instant::now() < until, "left behind: {left:?}, {records} records");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let work = self.here("");
        let work = work.to_str().unwrap().trim_end_matches('/');
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if pid != std::process::id() as i32 && line.split(|b| *b == 0).any(|word| word == work.as_bytes()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        if let Some(mut writer) = self.writer.take() {
            let _ = writer.wait();
        }
    }
}

#[test]
fn what_is_written_to_travels_and_replaces_what_was_there() {
    if !can_move() {
        return;
    }
    let mut scene = Scene::new(&[("log", "of somebody else\n"), ("data", "old"), ("unrelated", "stays")], &[]);
    scene.start_writer();
    std::os::unix::fs::chown(scene.here("data"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(scene.here("data"), fs::Permissions::from_mode(0o4750)).unwrap();
    let output = scene.moved(&[], &[]);
    assert!(output.status.success(), "{}", text(&output));
    scene.goes_on(&scene.there("log"));
    let (data, sparse) = (fs::metadata(scene.there("data")).unwrap(), fs::metadata(scene.there("sparse")).unwrap());
    // Writing takes set-id bits away from whoever is not root; the writer is.
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o777, data.len()), (1234, 4321, 0o750, 3 << 20));
    assert_eq!(sparse.len(), 256 << 20);
    assert!(sparse.blocks() * 512 < 1 << 20, "its holes are holes: {} bytes", sparse.blocks() * 512);
    assert_eq!(fs::read(scene.there("unrelated")).unwrap(), b"stays");
    // The original's files are as it left them.
    let before = fs::read_to_string(scene.here("log")).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(fs::read_to_string(scene.here("log")).unwrap(), before);
    assert!(fs::read_to_string(scene.there("log")).unwrap().starts_with(&before));
    scene.is_tidy();
    let work = scene.here("").display().to_string();
    let proposal = format!("--with {}", work.trim_end_matches('/'));
    assert!(text(&output).contains(&proposal), "what else is there may be the target's: {}", text(&output));
    assert!(result(&output)["downtime_parts"]["files"].as_u64().is_some(), "{}", text(&output));
}

#[test]
fn a_check_names_every_difference_and_stops_nothing() {
    if !can_move() {
        return;
    }
    let mut scene = Scene::new(&[("data", "old")], &[]);
    fs::write(scene.there("read"), "Constant").unwrap();
    scene.start_writer();
    let before = scene.listing();
    let output = scene.moved(&["--files", "check"], &[]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let blockers = result(&output)["blockers"].as_array().unwrap().clone();
    for (name, code) in
        [("log", "M0502"), ("data", "M0501"), ("sparse", "M0502"), ("mapped", "M0502"), ("read", "M0501")]
    {
        let path = scene.here(name).display().to_string();
        let found =
            blockers.iter().find(|b| b["object"] == path.as_str()).unwrap_or_else(|| panic!("{name}: {blockers:?}"));
        assert_eq!(found["code"], code, "{found}");
        assert!(!found["remedy"].as_str().unwrap().is_empty());
    }
    scene.goes_on(&scene.here("log"));
    assert_eq!(scene.listing(), before);
    // What is only read comes along where that is asked for.
    let output = scene.moved(&["--files", "copy"], &[]);
    assert!(output.status.success(), "{}", text(&output));
    scene.goes_on(&scene.there("log"));
    assert_eq!(fs::read(scene.there("read")).unwrap(), b"constant");
    scene.is_tidy();
}

#[test]
fn whatever_fails_the_source_goes_on_and_the_destination_is_as_it_was() {
    if !can_move() {
        return;
    }
    let deaths = ["destination-file", "destination-files"].map(|point| ("MIGRATE_KILL", point));
    for (how, point) in
        deaths.into_iter().chain([("MIGRATE_FAULT", "restore-files"), ("MIGRATE_FAULT", "restore-armed")])
    {
        let mut scene = Scene::new(&[("log", "of somebody else\n"), ("data", "old")], &[(how, point)]);
        scene.start_writer();
        let before = scene.listing();
        let output = scene.moved(&[], &[]);
        assert!(!output.status.success(), "{point}: {}", text(&output));
        scene.goes_on(&scene.here("log"));
        if how == "MIGRATE_KILL" {
            // The next session finds what the dead one has left.
            let _ = scene.moved(&["--dry-run"], &[]);
        }
        scene.is_tidy();
        assert_eq!(scene.listing(), before, "{point}");
        scene.goes_on(&scene.here("log"));
    }
}

/// Its session there is killed, and finds what it has brought: by another link of the same attempt where somebody else is warm, else by
/// another attempt.
#[test]
fn a_destination_that_stands_by_comes_back_to_its_files() {
    if !can_move() {
        return;
    }
    for (with_another, verb) in [(false, "switch"), (false, "cancel"), (true, "switch"), (true, "cancel")] {
        let what = format!("{verb}, another one is warm: {with_another}");
        let mut scene = Scene::new(&[("log", "of somebody else\n"), ("data", "old")], &[]);
        scene.start_writer();
        let before = scene.listing();
        // On the same file system: it needs no files.
        let path = scene.dir.path().join("c");
        let another = with_another.then(|| Agent::start(&path, &format!("unix:{}.sock", path.display())));
        let (pid, address) = (scene.writer.as_ref().unwrap().id().to_string(), scene.address());
        let mut warm = vec!["warm", &pid, &address, "--standby=200ms", "--peer-timeout", "2s"];
        warm.extend(another.iter().map(|agent| agent.address.as_str()));
        let output = scene.source(&warm, &[]);
        assert!(output.status.success(), "{what}: {}", text(&output));
        let session = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let status = || result(&scene.source(&["status", &session, "--json"], &[]))["sessions"][0].clone();
        // Of one look: what it is called, and how many states the destination has been brought.
        let look = || {
            let status = status();
            (status["attempt"].clone(), status["warm"]["candidates"][0]["states"].as_u64().unwrap_or_default())
        };
        wait(|| look().1 >= 2, &format!("{what}: states are kept"));
        let blow = Blow::against(&scene.dir.path().join("b"), scene.agent.as_ref().unwrap().0.id(), "KILL");
        for _ in 0..2 {
            let (attempt, _) = look();
            blow.strike();
            assert!(blow.struck() > 0, "{what}: nobody was there");
            // One may have been brought before it was struck, and be heard of only now.
            let states = look().1;
            let is_back = |(now, kept): (serde_json::Value, u64)| match with_another {
                true => now == attempt && kept > states + 1,
                false => now != attempt && kept > 1,
            };
            wait(|| is_back(look()), &format!("{what}: it is there again"));
        }
        let output = match verb {
            "switch" => scene.source(&["switch", &session, &address, "--json"], &[]),
            verb => scene.source(&[verb, &session], &[]),
        };
        assert!(output.status.success(), "{what}: {}", text(&output));
        if verb == "switch" {
            scene.goes_on(&scene.there("log"));
            scene.is_tidy();
        } else {
            scene.is_tidy();
            assert_eq!(scene.listing(), before, "{what}");
            scene.goes_on(&scene.here("log"));
        }
    }
}

#[test]
fn files_come_back_when_the_guardian_of_a_dead_source_calls_the_move_off() {
    if !can_move() {
        return;
    }
    let mut scene = Scene::new(&[("log", "of somebody else\n")], &[]);
    scene.start_writer();
    let before = scene.listing();
    let output = scene.moved(&[], &[("MIGRATE_KILL", "source-ready")]);
    assert!(!output.status.success(), "{}", text(&output));
    // Nothing holds the original but a tracer that is dead.
    scene.goes_on(&scene.here("log"));
    let until = Instant::now() + LIMIT;
    while scene.listing() != before {
        assert!(Instant::now() < until, "{:?}", scene.listing());
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.is_tidy();
    scene.goes_on(&scene.here("log"));
}

#[test]
fn one_file_system_on_both_sides_is_found_by_a_nonce_file() {
    if !can_move() {
        return;
    }
    // Another device number, the same inodes: what an overlay shows of the first host's directory.
    let mount = "mkdir -p \"$0/../upper\" \"$0/../scratch\" && mount -t overlay files \
                 -o lowerdir=\"$0\",upperdir=\"$0/../upper\",workdir=\"$0/../scratch\" \"$0\"";
    let mut scene = Scene::with_mount(mount, &[], &[]);
    scene.start_writer();
    let output = scene.moved(&["--dry-run"], &[]);
    assert!(output.status.success(), "{}", text(&output));
    let log = scene.dir.path().join("a.log");
    let output = scene.moved(&["-vv", "--log", log.to_str().unwrap(), "--mode", "stop-and-copy"], &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(result(&output)["downtime_parts"]["files"].is_null(), "nothing was shipped: {}", text(&output));
    assert!(
        !fs::read_dir(scene.here("")).unwrap().any(|e| e
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with(".migrate"))
    );
}

#[test]
fn sqlite_goes_on_in_the_middle_of_its_transaction() {
    if !can_move() || !Path::new("/usr/bin/sqlite3").exists() {
        crate::skip!("needs /usr/bin/sqlite3");
        return;
    }
    let mut scene = Scene::new(&[], &[]);
    let script = crate::programs::fixture("transaction.sh");
    let child = Command::new("setsid")
        .args([
            "/usr/bin/python3",
            "-c",
            "import os, sys; os.closerange(3, 1024); os.execv('/bin/bash', ['bash'] + sys.argv[1:])",
        ])
        .arg(&script)
        .arg(scene.here("").to_str().unwrap().trim_end_matches('/'))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    scene.writer = Some(child);
    let until = Instant::now() + LIMIT;
    let wait = |path: PathBuf| {
        while !path.exists() {
            assert!(Instant::now() < until, "{} does not come", path.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait(scene.here("open"));
    std::thread::sleep(Duration::from_millis(200));
    let output = scene.moved(&[], &[]);
    assert!(output.status.success(), "{}", text(&output));
    std::thread::sleep(Duration::from_millis(200));
    fs::write(scene.there("stop"), "").unwrap();
    wait(scene.there("status"));
    assert_eq!(fs::read_to_string(scene.there("status")).unwrap().trim(), "0 0");
    let said = fs::read_to_string(scene.there("said")).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let (count, max) = lines[1].split_once('|').and_then(|(n, rest)| Some((n, rest.split_once('|')?.0))).unwrap();
    // From 0 on, none is missing.
    assert_eq!(count.parse::<u64>().unwrap(), max.parse::<u64>().unwrap() + 1, "{said}");
    assert!(lines[1].ends_with("|changed") && lines[2] == "ok", "{said}");
    assert!(!scene.here("status").exists(), "the original is gone");
    scene.is_tidy();
}
