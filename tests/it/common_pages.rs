//! Pages that trees of one evacuation have in common go to a host once, however the trees move; and each has what it had. Every tree
//! compares all of its pages with their digests, all the time.

use crate::evacuate::{Stage, became, trees};
use crate::handover::wait;
use crate::moves::{Counter, can_move, result, text};
use crate::places::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Has two areas of random pages, each from a number and a size in MiB, and compares a piece of them with its digest before it counts.
const TWIN: &str = "
import hashlib, mmap, os, random, sys, time
os.closerange(3, 1024)  # what the test runner's shell has left open
out = open(sys.argv[1], 'a', buffering=1)
pieces = []
for seed, mib in ((int(sys.argv[2]), int(sys.argv[3])), (int(sys.argv[4]), int(sys.argv[5]))):
    area = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = random.Random(seed)
    for at in range(mib):
        piece = memoryview(area)[at << 20:at + 1 << 20]  # nothing is copied where it is read
        piece[:] = numbers.randbytes(1 << 20)
        pieces.append((piece, hashlib.sha256(piece).digest()))
n = 0
while True:
    piece, digest = pieces[n % len(pieces)]
    assert hashlib.sha256(piece).digest() == digest, 'pages are lost'
    n += 1
    out.write('%d\\n' % n)
    time.sleep(0.002)
";

const MIB: u64 = 1 << 20;

/// What both trees have, and what each has for itself, MiB.
const AREAS: (u64, u64) = (64, 8);

/// What a tree has beside that: the interpreter, and what goes with each move. Most of that is the same for both.
const BESIDE: u64 = 16 * MIB;

fn twins() -> Vec<Counter> {
    let (common, own) = (AREAS.0.to_string(), AREAS.1.to_string());
    ["2", "3"].map(|seed| Counter::of(TWIN, &["1", &common, seed, &own])).into()
}

/// The areas of both are as they were, all of them.
fn check(stage: &Stage) {
    stage.check(&[false; 2]);
    for counter in &stage.counters {
        counter.wait_for_more(counter.numbers().last().unwrap() + AREAS.0 + AREAS.1);
    }
}

fn bytes(of: &Value) -> u64 {
    of["bytes_sent"].as_u64().unwrap_or_else(|| panic!("{of}"))
}

/// What the destination and the source still have of what trees have shared.
fn left(stage: &Stage) -> Vec<PathBuf> {
    let named = |dir: &Path, is_it: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| is_it(&path.file_name().unwrap_or_default().to_string_lossy())).collect()
    };
    let there = named(&stage.dest(0).join("state/moves"), &|name| name.ends_with(".common"));
    there.into_iter().chain(named(&stage.source().join("run"), &|name| name.starts_with("common-"))).collect()
}

fn nothing_is_left(stage: &Stage) {
    assert_eq!(left(stage), [] as [PathBuf; 0]);
    // Trees that could not keep their ids have a process of ours that is the first of their namespace.
    let is_first =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "migrate-init\n");
    let stays = |pid: &i32| !is_first(pid) && u32::try_from(*pid) != Ok(stage.agents[0].pid());
    wait(|| !processes(&stage.dest(0)).iter().any(stays), "no session stays for what was shared");
}

#[test]
fn what_two_trees_have_in_common_goes_to_a_host_once() {
    if !can_move() {
        return;
    }
    let once = (AREAS.0 + 2 * AREAS.1) * MIB + 2 * BESIDE;
    for options in [&["--jobs", "1"][..], &["--jobs", "2"], &["--jobs", "2", "--streams", "1"], &["--serial"]] {
        let stage = Stage::begin(twins(), 1);
        let output = stage.evacuate(options);
        assert!(output.status.success(), "{options:?}: {}", text(&output));
        let result = result(&output);
        check(&stage);
        println!("{options:?}: {} MiB, {} pages named", bytes(&result) / MIB, result["named_pages"]);
        assert!(bytes(&result) < once, "{options:?}: {} of {once} bytes: {result}", bytes(&result));
        let named: u64 = trees(&result).iter().map(|tree| tree["named_pages"].as_u64().unwrap()).sum();
        assert!(named >= AREAS.0 * MIB / 4096, "{options:?}: {result}");
        assert_eq!(result["named_pages"].as_u64(), Some(named), "{options:?}: {result}");
        nothing_is_left(&stage);
    }
}

#[test]
fn what_is_gone_at_the_destination_is_sent_again() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(twins(), 1);
    // After the first move: what it has shared, and who looks after that.
    let hook = format!("done=rm -rf {}/state/moves/*.common", stage.dest(0).display());
    let output = stage.evacuate(&["--jobs", "1", "--hook", &hook]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    check(&stage);
    let all = 2 * (AREAS.0 + AREAS.1) * MIB;
    assert!(bytes(&result) >= all, "{} of {all} bytes: {result}", bytes(&result));
    nothing_is_left(&stage);
}

#[test]
fn one_evacuation_does_not_see_what_another_one_has_shared() {
    if !can_move() {
        return;
    }
    let mut stage = Stage::begin(twins(), 1);
    let second = stage.counters.pop().unwrap();
    for counter in [None, Some(second)] {
        if let Some(counter) = counter {
            stage.counters = vec![counter];
        }
        let output = stage.evacuate(&[]);
        assert!(output.status.success(), "{}", text(&output));
        let result = result(&output);
        assert_eq!(became(&stage, &result)[0].0, "moved", "{result}");
        assert!(bytes(&result) >= (AREAS.0 + AREAS.1) * MIB, "{result}");
        nothing_is_left(&stage);
    }
}

#[test]
fn nothing_is_shared_where_everything_is_to_be_sent() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(twins(), 1);
    let output = stage.evacuate(&["--compress", "off"]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    check(&stage);
    assert!(bytes(&result) >= 2 * (AREAS.0 + AREAS.1) * MIB, "{result}");
    assert_eq!(result["named_pages"].as_u64(), Some(0), "{result}");
    nothing_is_left(&stage);
}

/// The process of a move is killed while its pages are on their way, and others count on them.
#[test]
fn a_mover_that_is_killed_takes_nothing_from_the_others() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(twins(), 1);
    let mut command = stage.command(&["--keep-going", "--jobs", "2", "--bandwidth", "16MB/s"]);
    let going = stage.begin_moves(&mut command, 2);
    std::thread::sleep(Duration::from_millis(700));
    let mover = *stage.movers().first().expect("it moves");
    kill(Pid::from_raw(mover), Signal::SIGKILL).unwrap();
    let (code, events) = going.ended();
    let last = events.last().unwrap();
    let moved: Vec<bool> = became(&stage, last).iter().map(|(became, _)| became == "moved").collect();
    // One stays whose process was killed; the other one has gone with all that it had.
    assert_eq!((code, moved.iter().filter(|moved| **moved).count()), (Some(6), 1), "{last}");
    let is_here: Vec<bool> = moved.iter().map(|moved| !moved).collect();
    stage.check(&is_here);
    let output = stage.evacuate(&[]);
    assert!(output.status.success(), "{}", text(&output));
    check(&stage);
    nothing_is_left(&stage);
}
