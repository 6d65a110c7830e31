//! Pages whose content the destination has had before are named by their digest, where the link is slow; and what arrives is
//! right. The target checks every page itself, all the time.

use crate::moves::{Agent, can_move, on_host, result, run, text};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// The fixture in which every content occurs eight times, wherever it runs.
struct Twins {
    dir: tempfile::TempDir,
    child: Child,
    processes: u64,
}

impl Twins {
    fn start(mib: u32, processes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/twins.c");
        let program = dir.path().join("twins");
        let status = Command::new("cc").args(["-O2", "-w", "-o"]).args([&program, &source]).status().unwrap();
        assert!(status.success(), "twins.c does not compile");
        // What the test runner's shell has left open is not the target's.
        let child = Command::new("setsid")
            .args(["bash", "-c", "for n in {3..255}; do eval \"exec $n>&-\"; done 2> /dev/null; exec \"$@\"", "-"])
            .args([program.as_os_str(), mib.to_string().as_ref(), dir.path().join("told").as_os_str()])
            .arg(processes.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let twins = Self { dir, child, processes };
        twins.passes(1);
        twins
    }

    fn told(&self) -> PathBuf {
        self.dir.path().join("told")
    }

    fn number(&self, n: u64) -> u64 {
        let mut bytes = [0; 8];
        let read = std::fs::File::open(self.told()).and_then(|file| file.read_exact_at(&mut bytes, 8 * n));
        read.map_or(0, |()| u64::from_ne_bytes(bytes))
    }

    /// Each of its processes goes on, looks at all of its pages so many times, and finds none that is wrong.
    fn passes(&self, times: u64) {
        let until = Instant::now() + LIMIT;
        let before: Vec<u64> = (0..self.processes).map(|n| self.number(2 * n)).collect();
        for (n, before) in (0..).zip(before) {
            while self.number(2 * n) < before + times {
                assert!(Instant::now() < until, "process {n} does not go on after pass {before}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        (0..self.processes).for_each(|n| assert_eq!(self.number(2 * n + 1), 0, "wrong pages of process {n}"));
    }

    fn processes(&self) -> Vec<i32> {
        let program = self.dir.path().join("twins");
        let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        let is_it = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        pids.filter(is_it).collect()
    }
}

impl Drop for Twins {
    fn drop(&mut self) {
        crate::moves::end_all(self.processes(), &mut self.child);
    }
}

/// A slow link: connections through it share so many bytes a second.
struct SlowLink {
    address: String,
    carried: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl SlowLink {
    fn new(dir: &Path, agent: PathBuf, rate: f64) -> Self {
        let path = dir.join("link");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("unix:{}", path.display());
        let (carried, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (ended, count, free) = (Arc::clone(&over), Arc::clone(&carried), Arc::new(Mutex::new(Instant::now())));
        std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let Ok((client, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                client.set_nonblocking(false).unwrap();
                let server = UnixStream::connect(&agent).unwrap();
                let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (free, count) = (Arc::clone(&free), Arc::clone(&count));
                std::thread::spawn(move || {
                    carry(client, server, |bytes| {
                        count.fetch_add(bytes, Ordering::SeqCst);
                        let mut free = free.lock().unwrap();
                        *free = (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate);
                        *free
                    });
                });
                std::thread::spawn(move || carry(ends.1, ends.0, |_| Instant::now()));
            }
        });
        Self { address, carried, over }
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Carries bytes one way, each batch until `when` for as many.
fn carry(mut from: UnixStream, mut to: UnixStream, when: impl Fn(u64) -> Instant) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        std::thread::sleep(when(count as u64).saturating_duration_since(Instant::now()));
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Moves the fixture over a slow link. The result, and the bytes that went over it.
fn over_a_slow_link(options: &[&str]) -> Option<(serde_json::Value, u64)> {
    if !can_move() {
        return None;
    }
    let (twins, dir) = (Twins::start(64, 1), tempfile::tempdir().unwrap());
    Some(move_it(&twins, dir.path(), options))
}

fn move_it(twins: &Twins, dir: &Path, options: &[&str]) -> (serde_json::Value, u64) {
    let socket = dir.join("agent");
    let _agent = Agent::start(&dir.join("b"), &format!("unix:{}", socket.display()));
    let link = SlowLink::new(dir, socket, 24e6);
    let pid = twins.child.id().to_string();
    let words = ["move", &pid, &link.address, "--files", "skip", "--json"];
    let output = run(on_host(&dir.join("a")), &[&words, options].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(twins.processes().len() as u64, twins.processes, "the original has ended, one copy runs");
    twins.passes(2);
    (result(&output), link.carried.load(Ordering::SeqCst))
}

const MEMORY: u64 = 64 << 20;

#[test]
fn what_occurs_eight_times_travels_about_once() {
    let Some((result, carried)) = over_a_slow_link(&["--mode", "pre-copy"]) else { return };
    assert!(result["named_pages"].as_u64().unwrap() > 8 * 1024, "{result}");
    assert!(carried < MEMORY * 3 / 4, "{carried} bytes: {result}");
}

#[test]
fn what_another_process_has_sent_is_named() {
    if !can_move() {
        return;
    }
    let (twins, dir) = (Twins::start(16, 4), tempfile::tempdir().unwrap());
    let (result, carried) = move_it(&twins, dir.path(), &["--mode", "pre-copy"]);
    assert!(result["named_pages"].as_u64().unwrap() > 8 * 1024, "{result}");
    assert!(carried < MEMORY * 3 / 4, "{carried} bytes: {result}");
}

#[test]
fn in_the_pause_as_well() {
    let Some((result, carried)) = over_a_slow_link(&["--mode", "stop-and-copy", "--streams", "4"]) else { return };
    assert!(result["named_pages"].as_u64().unwrap() > 8 * 1024, "{result}");
    assert!(carried < MEMORY * 3 / 4, "{carried} bytes: {result}");
}

#[test]
fn a_target_whose_pages_follow_has_them_all() {
    for mode in ["hybrid", "post-copy"] {
        let Some((result, _)) = over_a_slow_link(&["--mode", mode]) else { return };
        assert!(result["pages_sent"].as_u64().unwrap() * 4096 >= MEMORY, "{result}");
    }
}

/// A target with an image of itself, which is at most one pass older than it.
fn dumped_twins() -> (Twins, tempfile::TempDir, String) {
    let (twins, dir) = (Twins::start(64, 1), tempfile::tempdir().unwrap());
    let (pid, image) = (twins.child.id().to_string(), dir.path().join("image").display().to_string());
    let dumped = run(on_host(&dir.path().join("a")), &["dump", &pid, "-D", &image, "--leave-running"]);
    assert!(dumped.status.success(), "{}", text(&dumped));
    twins.passes(1);
    (twins, dir, image)
}

#[test]
fn what_an_image_there_has_does_not_travel() {
    if !can_move() {
        return;
    }
    let (twins, dir, image) = dumped_twins();
    let (result, carried) = move_it(&twins, dir.path(), &["--base", &image, "--mode", "pre-copy"]);
    // A tenth may have been written anew since.
    assert!(result["named_pages"].as_u64().unwrap() > 15 * 1024, "{result}");
    assert!(carried < MEMORY / 8, "{carried} bytes: {result}");
}

/// Of two agents each has the image.
#[test]
fn what_an_image_at_each_of_several_has_goes_to_nobody() {
    if !can_move() {
        return;
    }
    let (twins, dir, image) = dumped_twins();
    let other = Agent::start(&dir.path().join("c"), &format!("unix:{}", dir.path().join("other").display()));
    let (result, _) = move_it(&twins, dir.path(), &[&other.address, "--base", &image, "--mode", "pre-copy"]);
    assert!(result["named_pages"].as_u64().unwrap() > 15 * 1024, "{result}");
    let first = result["rounds"][0]["bytes"].as_u64().unwrap();
    assert!(first < MEMORY / 8, "{result}");
}

#[test]
fn what_an_image_there_has_does_not_follow_either() {
    if !can_move() {
        return;
    }
    let (twins, dir) = (Twins::start(64, 1), tempfile::tempdir().unwrap());
    let (pid, image) = (twins.child.id().to_string(), dir.path().join("image"));
    let image = image.to_str().unwrap();
    let dumped = run(on_host(&dir.path().join("a")), &["dump", &pid, "-D", image, "--leave-running"]);
    assert!(dumped.status.success(), "{}", text(&dumped));
    let (result, carried) = move_it(&twins, dir.path(), &["--base", image, "--mode", "post-copy"]);
    assert!(result["pages_sent"].as_u64().unwrap() * 4096 >= MEMORY, "{result}");
    // It runs over there meanwhile: what somebody waits for comes with its content, and a tenth is new.
    assert!(result["named_pages"].as_u64().unwrap() > 8 * 1024, "{result}");
    assert!(carried < MEMORY / 2, "{carried} bytes: {result}");
}

#[test]
fn an_image_that_vanishes_while_its_pages_follow_costs_time_and_nothing_else() {
    if !can_move() {
        return;
    }
    let (twins, dir) = (Twins::start(64, 1), tempfile::tempdir().unwrap());
    let (pid, image) = (twins.child.id().to_string(), dir.path().join("image"));
    let words = ["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running"];
    assert!(run(on_host(&dir.path().join("a")), &words).status.success());
    // As soon as the source has been told what it has: before it is read a second time.
    let (pages, over) = (image.clone(), Arc::new(AtomicBool::new(false)));
    let moved = Arc::clone(&over);
    let spoils = std::thread::spawn(move || {
        let journals = pages.with_file_name("b").join("state/moves");
        let prepared = |path: PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.contains("prepared"));
        let is_prepared = || std::fs::read_dir(&journals).into_iter().flatten().flatten().any(|e| prepared(e.path()));
        while !is_prepared() && !moved.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_micros(500));
        }
        for entry in std::fs::read_dir(&pages).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("pages") {
                let len = entry.metadata().unwrap().len() as usize;
                std::fs::write(entry.path(), vec![7; len]).unwrap();
            }
        }
    });
    let (result, _) = move_it(&twins, dir.path(), &["--base", image.to_str().unwrap(), "--mode", "post-copy"]);
    over.store(true, Ordering::SeqCst);
    spoils.join().unwrap();
    assert!(result["named_pages"].as_u64().unwrap() > 0, "{result}");
    assert!(result["pages_sent"].as_u64().unwrap() * 4096 > MEMORY, "what was named in vain was sent: {result}");
}

#[test]
fn an_image_that_is_not_there_is_said_before_anything_stops() {
    if !can_move() {
        return;
    }
    let (twins, dir) = (Twins::start(1, 1), tempfile::tempdir().unwrap());
    let socket = dir.path().join("agent");
    let agent = Agent::start(&dir.path().join("b"), &format!("unix:{}", socket.display()));
    let pid = twins.child.id().to_string();
    for words in [&["--dry-run"][..], &[]] {
        let missing = dir.path().join("missing").display().to_string();
        let words = [&["move", &pid, &agent.address, "--files", "skip", "--base", &missing], words].concat();
        let output = run(on_host(&dir.path().join("a")), &words);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(text(&output).contains(&format!("M0909  {missing}")), "{}", text(&output));
        twins.passes(1);
        assert_eq!(twins.processes(), [twins.child.id() as i32]);
    }
}

#[test]
fn nothing_is_named_where_it_is_not_wanted() {
    let Some((result, carried)) = over_a_slow_link(&["--mode", "stop-and-copy", "--compress", "off"]) else { return };
    assert_eq!(result["named_pages"].as_u64(), Some(0), "{result}");
    assert!(carried >= MEMORY, "{carried} bytes: {result}");
}
