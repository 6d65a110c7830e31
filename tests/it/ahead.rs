//! Targets that change while the destination already makes them: memory, threads, processes, descriptors. Each knows what it
//! has to hold.

use crate::moves::{result, run, text};
use migrate_engine::fault::Point;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const LIMIT: Duration = Duration::from_secs(20);

fn can_move() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let python = Path::new("/usr/bin/python3").exists();
    if !root || !python {
        crate::skip!("needs root ({root}) and /usr/bin/python3 ({python})");
    }
    root && python
}

/// A program with a directory of its own, which its whole tree is found by; all of it is killed in the end.
struct Target {
    dir: tempfile::TempDir,
    child: Child,
}

impl Target {
    /// `arguments` follow the path of a file in the directory.
    fn start(program: &[&str], arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("setsid")
            .args(program)
            .arg(dir.path().join("out"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .unwrap();
        Self { dir, child }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn written(&self) -> String {
        std::fs::read_to_string(self.out()).unwrap_or_default()
    }

    fn wait_for(&self, what: &str, seen: impl Fn(&str) -> bool) {
        let until = Instant::now() + LIMIT;
        while !seen(&self.written()) {
            assert!(Instant::now() < until, "{what} does not come after {:?}", self.written().lines().last());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Processes that have its directory in their command line.
    fn processes(&self) -> Vec<i32> {
        let path = self.dir.path().to_str().unwrap().to_owned();
        let entries = std::fs::read_dir("/proc").unwrap();
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&path)
        })
        .collect()
    }

    /// Moves it within this host; the new id of its root.
    fn move_it(&self, options: &[&str]) -> i32 {
        let mut command = Command::new(PROGRAM);
        command.env("MIGRATE_PLACES", self.dir.path().join("host"));
        let pid = self.child.id().to_string();
        let moved = run(command, &[&["move", pid.as_str(), "local", "--json", "--mode", "pre-copy"], options].concat());
        assert!(moved.status.success(), "{}", text(&moved));
        let result = result(&moved);
        eprintln!("pause {} ms, {} rounds", result["downtime_ms"], result["rounds"].as_array().unwrap().len());
        i32::try_from(result["pid"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        crate::moves::end_all(self.processes(), &mut self.child);
    }
}

/// One after the other, from 1, none twice.
fn numbers(text: &str) -> usize {
    let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len()), "a number is missing or was counted twice");
    numbers.len()
}

#[test]
fn memory_under_every_kind_of_change_moves_right() {
    if !can_move() {
        return;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torture.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ahead-torture");
    let status = Command::new("cc").args(["-O1", "-w", "-o"]).args([&program, &source]).status().unwrap();
    assert!(status.success());
    for seed in ["11", "12", "13", "14"] {
        let blocks = tempfile::NamedTempFile::new().unwrap();
        // Seed and file first: the directory's file is where the verdict goes.
        let program = [program.to_str().unwrap(), seed, blocks.path().to_str().unwrap()];
        let target = Target::start(&program, &[]);
        std::thread::sleep(Duration::from_millis(300));
        let pid = target.move_it(&["--max-rounds", "6", "--max-downtime", "1ms"]);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(target.written(), "", "seed {seed}: it has ended");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGUSR2).unwrap();
        target.wait_for("the verdict", |verdict| !verdict.is_empty());
        assert_eq!(target.written(), "0", "seed {seed}");
    }
}

/// What was sent of a mapping that is gone by the pause has no place any more.
#[test]
fn mappings_that_come_and_go_do_not_hold_up_the_rest() {
    if !can_move() {
        return;
    }
    let script = "
import mmap, sys, time
n = 0
while True:
    n += 1
    areas = [mmap.mmap(-1, 1 << 20, flags=mmap.MAP_ANONYMOUS | kind) for kind in 4 * [mmap.MAP_PRIVATE, mmap.MAP_SHARED]]
    for area in areas:
        area.write((b'%08d' % n) * (1 << 17))
    time.sleep(0.03)
    assert all(area[:] == (b'%08d' % n) * (1 << 17) for area in areas)
    for area in areas:
        area.close()
    with open(sys.argv[1], 'a') as out:
        out.write('%d\\n' % n)
    time.sleep(0.01 * (n % 3))
";
    for _ in 0..4 {
        let target = Target::start(&["/usr/bin/python3", "-c", script], &[]);
        target.wait_for("five", |text| text.lines().count() > 5);
        target.move_it(&["--max-rounds", "5", "--max-downtime", "1ms"]);
        let before = numbers(&target.written());
        target.wait_for("more", |text| text.lines().count() > before + 10);
        numbers(&target.written());
    }
}

/// Removes a cgroup (version 1); what is left in it goes to the one above.
pub fn remove_cgroup(dir: &Path) {
    let above = dir.parent().unwrap().join("cgroup.procs");
    for _ in 0..200 {
        let left = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        left.lines().for_each(|pid| drop(std::fs::write(&above, pid)));
        if std::fs::remove_dir(dir).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A block device slowed down for one process, as long as it lives.
struct SlowDisk(PathBuf);

impl SlowDisk {
    /// At most this many reads a second for a process. `None` where there is no such controller (version 1 `blkio`).
    fn for_process(pid: u32, file: &Path, reads_per_s: u32) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let device = std::fs::metadata(file).ok()?.dev();
        let group = PathBuf::from(format!("/sys/fs/cgroup/blkio/migrate-test-{pid}"));
        std::fs::create_dir(&group).ok()?;
        let slow = Self(group);
        let limit = format!("{}:{} {reads_per_s}", libc::major(device), libc::minor(device));
        std::fs::write(slow.0.join("blkio.throttle.read_iops_device"), limit).ok()?;
        std::fs::write(slow.0.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(slow)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        remove_cgroup(&self.0);
    }
}

/// What a device writes to memory after the page was taken by a round is in the next one.
#[test]
fn reads_past_the_page_cache_move_right() {
    if !can_move() {
        return;
    }
    let script = "
import mmap, os, signal, sys
blocks = sys.argv[2]
os.closerange(3, 1024)
fd = os.open(blocks, os.O_RDONLY | os.O_DIRECT)
memory = mmap.mmap(-1, 256 * 4096, flags=mmap.MAP_ANONYMOUS | mmap.MAP_PRIVATE)
view, done = memoryview(memory), 0
memory.write(bytes(256 * 4096))
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
open(sys.argv[1], 'w').write('go')
while done < 256 and not asked:
    assert os.preadv(fd, [view[done * 4096:(done + 1) * 4096]], done * 4096) == 4096
    done += 1
wrong = [n for n in range(done) if view[n * 4096:(n + 1) * 4096] != (b'%07d.' % n) * 512]
open(sys.argv[1], 'w').write('%d read, wrong %s\\n' % (done, wrong))
signal.pause()
";
    let blocks = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(
        blocks.path(),
        (0..256).flat_map(|n| format!("{n:07}.").repeat(512).into_bytes()).collect::<Vec<_>>(),
    )
    .unwrap();
    blocks.as_file().sync_all().unwrap();
    let path = blocks.path().to_str().unwrap();
    let mut target = Target::start(&["/usr/bin/python3", "-c", script], &[path]);
    let Some(_slow) = SlowDisk::for_process(target.child.id(), blocks.path(), 25) else {
        crate::skip!("needs the version 1 blkio controller");
        return;
    };
    let began = Instant::now();
    while target.written() != "go" {
        if target.child.try_wait().unwrap().is_some() {
            crate::skip!("no O_DIRECT on the file system of {path}");
            return;
        }
        assert!(began.elapsed() < LIMIT, "it does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    let pid = target.move_it(&["--max-rounds", "6", "--max-downtime", "1ms"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGUSR1).unwrap();
    target.wait_for("the verdict", |verdict| verdict.ends_with('\n'));
    assert!(target.written().contains("wrong []"), "{}", target.written());
    assert!(!target.written().starts_with("0 "), "{}", target.written());
}

#[test]
fn a_loop_that_forks_moves() {
    if !can_move() {
        return;
    }
    let script = "n=0; while :; do n=$((n+1)); /bin/sleep 0.01; echo $n >> $0; done";
    let target = Target::start(&["/bin/bash", "-c", script], &[]);
    target.wait_for("ten", |text| text.lines().count() > 10);
    target.move_it(&["--max-rounds", "3"]);
    let before = numbers(&target.written());
    target.wait_for("more", |text| text.lines().count() > before + 20);
    numbers(&target.written());
}

#[test]
fn a_program_that_runs_itself_again_moves() {
    if !can_move() {
        return;
    }
    let script = "n=$2; echo $n >> $1; exec 3>>$1; exec 3>&-; /bin/sleep 0.03; exec /bin/sh \"$0\" $1 $((n+1))";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let target = Target::start(&["/bin/sh", file.path().to_str().unwrap()], &["1"]);
    target.wait_for("five", |text| text.lines().count() > 5);
    target.move_it(&["--max-rounds", "3"]);
    let before = numbers(&target.written());
    target.wait_for("more", |text| text.lines().count() > before + 10);
    numbers(&target.written());
}

/// Threads that come and go, mappings of files and of nothing at changing places, descriptors, children in sessions of their
/// own; everything is compared with what it was made of, all the time.
const CHURN: &str = "
import mmap, os, random, signal, sys, threading, time
os.closerange(3, 1024)
path = sys.argv[1]
base = bytearray(os.urandom(48 << 20))
total = sum(base[::4096])
random.seed(7)
maps, files, children, threads = {}, {}, [], []
def work():
    mine = threading.local(); mine.n = 0
    for _ in range(random.randrange(1, 30)):
        mine.n += 1; time.sleep(0.001)
    assert mine.n > 0
n = 0
out = open(path, 'a', buffering=1)
while True:
    n += 1
    k = random.randrange(24)
    if k in maps:
        m, seed = maps.pop(k)
        assert m[:8] == seed and m[-8:] == seed, 'a mapping is not what it was'
        m.close()
    else:
        seed = os.urandom(8); size = random.randrange(1, 60) * 4096
        if k % 3:
            m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            with open(path + '.%d' % k, 'w+b') as f:
                f.truncate(size); m = mmap.mmap(f.fileno(), size, flags=mmap.MAP_PRIVATE)
        m[:8] = seed; m[-8:] = seed; maps[k] = (m, seed)
    if k in files:
        f, said = files.pop(k); f.seek(0); assert f.read() == said, 'a file is not what it was'; f.close()
    else:
        f = open(path + '.f%d' % k, 'w+'); said = str(n); f.write(said); f.flush(); files[k] = (f, said)
    threads = [t for t in threads if t.is_alive()]
    if len(threads) < 6:
        t = threading.Thread(target=work); t.start(); threads.append(t)
    if n % 40 == 1:
        r, w = os.pipe(); c = os.fork()
        if c == 0:
            os.setsid(); os.read(r, 1); os._exit(7)
        os.close(r); children.append((c, w))
        if len(children) > 2:
            c, w = children.pop(0); os.write(w, b'x'); os.close(w)
            assert os.waitpid(c, 0) == (c, 7 << 8), 'a child has gone'
    if n % 50 == 0:
        at = random.randrange(len(base) >> 12) << 12
        total -= base[at]; base[at] = n % 251; total += base[at]
        assert sum(base[::4096]) == total, 'memory is not what it was'
    out.write('%d\\n' % n)
    time.sleep(0.002)
";

#[test]
fn threads_mappings_and_children_that_come_and_go_move() {
    if !can_move() {
        return;
    }
    let target = Target::start(&["/usr/bin/python3", "-c", CHURN], &[]);
    target.wait_for("hundred", |text| text.lines().count() > 100);
    target.move_it(&["--max-rounds", "4"]);
    let before = numbers(&target.written());
    target.wait_for("more", |text| text.lines().count() > before + 200);
    numbers(&target.written());
}

#[test]
fn whatever_fails_while_it_is_made_leaves_it_running_and_nothing_behind() {
    if !can_move() {
        return;
    }
    let script = "
import os, sys, time
os.closerange(3, 1024)
memory = bytearray(os.urandom(32 << 20))
out, n = open(sys.argv[1], 'a', buffering=1), 0
while True:
    n += 1; out.write('%d\\n' % n); time.sleep(0.002)
";
    let target = Target::start(&["/usr/bin/python3", "-c", script], &[]);
    target.wait_for("five", |text| text.lines().count() > 5);
    let pid = target.child.id().to_string();
    for point in Point::ALL.iter().filter(|point| point.name().starts_with("restore")) {
        let mut command = Command::new(PROGRAM);
        command.env("MIGRATE_PLACES", target.dir.path().join("host")).env("MIGRATE_FAULT", point.name());
        let output = run(command, &["move", &pid, "local", "--json", "--mode", "pre-copy"]);
        let said = text(&output);
        assert!(!output.status.success() && said.contains("on purpose"), "{}: {said}", point.name());
        let before = numbers(&target.written());
        target.wait_for("more", |text| text.lines().count() > before + 5);
        numbers(&target.written());
        assert_eq!(target.processes(), [target.child.id() as i32], "{}", point.name());
    }
}
