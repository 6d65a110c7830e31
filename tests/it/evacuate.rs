//! `migrate evacuate`: several trees go to several hosts. A host is an agent with places of its own on this kernel; where `--all` is tried,
//! it is made of namespaces, so that only the test's processes can be meant.

use crate::handover::wait;
use crate::hosts::{self, Host};
use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use crate::places::processes;
use migrate_engine::migration::journal::{Journal, Role, Step};
use migrate_engine::migration::protocol::AttemptId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// Counts as the targets of `moves` do, and has pages of its own that it compares. While there is a file beside that ends with
/// `blocked` it has a socket that cannot be saved.
const COUNTS: &str = "
import os, socket, sys, time
os.closerange(3, 1024)  # what the test runner's shell has left open
path, pages = sys.argv[1], int(sys.argv[2])
out = open(path, 'a', buffering=1)
held = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) if len(sys.argv) > 3 else None
ground = bytearray(b''.join(bytes([page % 251 + 1]) * 4096 for page in range(pages)))
n = 0
while True:
    n += 1
    page = n % pages
    assert ground[page * 4096:(page + 1) * 4096] == bytes([page % 251 + 1]) * 4096, 'pages are lost'
    out.write('%d\\n' % n)
    if held and os.path.exists(path + '.free'):
        held.close()
        held = None
    time.sleep(0.002)
";

/// Pages of each of three trees: no two are equally large.
const SIZES: [u32; 3] = [6000, 4000, 2000];

fn counter(pages: u32) -> Counter {
    Counter::of(COUNTS, &[&pages.to_string()])
}

/// Trees, and hosts that they can go to.
pub struct Stage {
    dir: tempfile::TempDir,
    pub counters: Vec<Counter>,
    pub agents: Vec<Agent>,
}

impl Stage {
    pub fn begin(counters: Vec<Counter>, agents: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agents = (0..agents).map(|n| {
            let listen = format!("unix:{}", dir.path().join(format!("agent{n}.sock")).display());
            Agent::start(&dir.path().join(format!("dest{n}")), &listen)
        });
        let agents = agents.collect();
        Self { dir, counters, agents }
    }

    fn three() -> Self {
        Self::begin(SIZES.map(counter).into(), 2)
    }

    pub fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub fn dest(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("dest{n}"))
    }

    fn to(&self) -> String {
        self.agents.iter().map(|agent| agent.address.clone()).collect::<Vec<_>>().join(",")
    }

    pub fn command(&self, options: &[&str]) -> Command {
        let mut command = on_host(&self.source());
        command.arg("evacuate").args(self.counters.iter().map(Counter::pid)).args(["--to", &self.to()]);
        command.args(["--json", "--peer-timeout", "2s"]).args(options);
        command
    }

    pub fn evacuate(&self, options: &[&str]) -> Output {
        run(self.command(options), &[])
    }

    /// Each counts on, once, here or elsewhere.
    pub fn check(&self, is_here: &[bool]) {
        for (counter, is_here) in self.counters.iter().zip(is_here) {
            counter.check_runs();
            wait(|| counter.processes().len() == 1, "one copy is left");
            assert_eq!(counter.processes()[0].to_string() == counter.pid(), *is_here, "where {} is", counter.pid());
        }
    }

    /// Processes of moves.
    pub fn movers(&self) -> Vec<i32> {
        let is_mover = |pid: &i32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("evacuate-move")
        };
        processes(&self.source()).into_iter().filter(is_mover).collect()
    }

    /// Ends a host: its agent and everybody it has made.
    fn lose(&mut self, n: usize) {
        self.agents[n].kill();
        for pid in processes(&self.dest(n)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Starts it, and returns its lines up to the so many-th move that begins.
    pub fn begin_moves(&self, command: &mut Command, moves: usize) -> Going {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut said = Vec::new();
        let begins = |line: &String| line.contains("\"event\":\"session\"") && line.contains("\"verb\":\"move\"");
        while said.iter().filter(|line| begins(line)).count() < moves {
            said.push(lines.next().unwrap_or_else(|| panic!("it has ended: {said:#?}")));
        }
        Going { child, lines: Box::new(lines), said }
    }
}

/// An evacuation that goes on.
pub struct Going {
    child: std::process::Child,
    lines: Box<dyn Iterator<Item = String>>,
    said: Vec<String>,
}

impl Going {
    /// Its exit code, and everything it has said.
    pub fn ended(mut self) -> (Option<i32>, Vec<Value>) {
        self.said.extend(self.lines);
        let code = self.child.wait().unwrap().code();
        (code, self.said.iter().map(|line| serde_json::from_str(line).unwrap()).collect())
    }
}

/// What has become of each tree, and where, in the order in which the trees were named.
pub fn became(stage: &Stage, result: &Value) -> Vec<(String, String)> {
    let of = |counter: &Counter| {
        let tree = trees(result).iter().find(|tree| tree["target"] == counter.pid().as_str());
        let tree = tree.unwrap_or_else(|| panic!("{result}"));
        let word = |name: &str| tree[name].as_str().unwrap_or_default().to_owned();
        (word("became"), word("dest"))
    };
    stage.counters.iter().map(of).collect()
}

pub fn trees(result: &Value) -> &Vec<Value> {
    result["trees"].as_array().unwrap_or_else(|| panic!("{result}"))
}

#[test]
fn trees_go_where_the_plan_says_by_each_way_to_place_them() {
    if !can_move() {
        return;
    }
    // Both hosts have this machine's memory: with spread the largest tree goes to the first, the others to the second.
    for (place, hosts) in [("spread", [0, 1, 1]), ("fill", [0, 0, 0]), ("fixed", [0, 0, 0])] {
        let stage = Stage::three();
        let plan = stage.evacuate(&["--place", place, "--dry-run"]);
        assert!(plan.status.success(), "{place}: {}", text(&plan));
        stage.check(&[true; 3]);
        let planned = became(&stage, &result(&plan));
        let expected = hosts.map(|host| ("planned".to_owned(), stage.agents[host].address.clone()));
        assert_eq!(planned, expected, "{place}");
        for tree in trees(&result(&plan)) {
            assert!(tree["forecast"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{tree}");
            assert!(tree["forecast"]["total_us"].as_u64().is_some_and(|time| time > 0), "{tree}");
        }
        let page = stage.dir.path().join("report.html");
        let done = stage.evacuate(&["--place", place, "--report", page.to_str().unwrap()]);
        assert!(done.status.success(), "{place}: {}", text(&done));
        let expected = hosts.map(|host| ("moved".to_owned(), stage.agents[host].address.clone()));
        assert_eq!(became(&stage, &result(&done)), expected, "{place}: what was done is what was planned");
        stage.check(&[false; 3]);
        for (tree, counter) in
            trees(&result(&done)).iter().flat_map(|tree| stage.counters.iter().map(move |c| (tree, c)))
        {
            if tree["target"] == counter.pid().as_str() {
                assert_eq!(tree["pid"].as_i64(), Some(i64::from(counter.processes()[0])), "{tree}");
                assert!(tree["downtime_us"].as_u64().is_some() && tree["session"].as_str().is_some(), "{tree}");
            }
        }
        let events = String::from_utf8_lossy(&done.stdout).lines().filter(|l| l.contains("\"event\":\"tree\"")).count();
        assert_eq!(events, 3, "{place}: each move has told of its end: {}", text(&done));
        assert_eq!(std::fs::read_to_string(page).unwrap().matches("class=\"round\"").count(), 3, "a bar for each");
    }
}

#[test]
fn what_is_blocked_stays_with_its_reason_and_goes_when_it_can() {
    if !can_move() {
        return;
    }
    let blocked = Counter::of(COUNTS, &["500", "blocked"]);
    let stage = Stage::begin(vec![counter(2000), blocked, counter(1000)], 2);
    let output = stage.evacuate(&[]);
    assert_eq!(output.status.code(), Some(6), "{}", text(&output));
    stage.check(&[false, true, false]);
    let first = result(&output);
    assert_eq!((first["ok"].as_bool(), first["exit"].as_u64()), (Some(false), Some(6)), "{first}");
    let stays = trees(&first).last().unwrap();
    assert_eq!((stays["became"].as_str(), stays["state"].as_str()), (Some("stayed"), Some("running")), "{stays}");
    assert!(stays["blockers"][0]["code"].as_str().is_some_and(|code| code.starts_with("M04")), "{stays}");
    // For a person, and nothing is done twice.
    let output = run(on_host(&stage.source()), &["evacuate", &stage.counters[1].pid(), "--to", &stage.to()]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(6), "{said}");
    for word in ["0 of 1 tree moved", "stays: ", "M04", "packet socket", "target: still running, unchanged"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    std::fs::write(format!("{}.free", stage.counters[1].path().display()), "").unwrap();
    stage.counters[1].wait_for_more(*stage.counters[1].numbers().last().unwrap());
    let output = stage.evacuate(&[]);
    assert!(output.status.success(), "{}", text(&output));
    let states: Vec<String> = became(&stage, &result(&output)).into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, ["gone", "moved", "gone"]);
    assert!(became(&stage, &result(&output)).iter().all(|(_, dest)| stage.to().contains(dest.as_str())));
    stage.check(&[false; 3]);
    let output = stage.evacuate(&[]);
    assert!(output.status.success(), "nothing is left to be done: {}", text(&output));
    stage.check(&[false; 3]);
}

/// Slow enough that something can happen meanwhile: two trees of 16 MiB and more take seconds.
const SLOW: [&str; 4] = ["--bandwidth", "8MB/s", "--compress", "off"];

#[test]
fn trees_of_a_host_that_is_lost_go_to_another_one() {
    if !can_move() {
        return;
    }
    let mut stage = Stage::three();
    let mut command = stage.command(&["--place", "fixed"]);
    let going = stage.begin_moves(command.args(SLOW), 2);
    std::thread::sleep(Duration::from_millis(500));
    stage.lose(0);
    let (code, events) = going.ended();
    assert_eq!(code, Some(0), "{events:#?}");
    let expected = vec![("moved".to_owned(), stage.agents[1].address.clone()); 3];
    assert_eq!(became(&stage, events.last().unwrap()), expected);
    let told = events.iter().filter(|event| event["event"] == "warning");
    let told: Vec<&str> = told.filter_map(|event| event["text"].as_str()).collect();
    assert!(told.iter().any(|text| text.contains("is lost")), "{told:?}");
    assert!(told.iter().any(|text| text.contains("instead")), "{told:?}");
    stage.check(&[false; 3]);
}

#[test]
fn alternates_have_what_nobody_else_takes() {
    if !can_move() {
        return;
    }
    let mut stage = Stage::three();
    let evacuate = |options: &[&str]| {
        let mut command = on_host(&stage.source());
        command.arg("evacuate").args(stage.counters.iter().map(Counter::pid)).args(options);
        command.args(["--to", &stage.agents[0].address, "--alternate", &stage.agents[1].address, "--json"]);
        command
    };
    let plan = run(evacuate(&["--dry-run"]), &[]);
    assert!(plan.status.success(), "{}", text(&plan));
    let expected = vec![("planned".to_owned(), stage.agents[0].address.clone()); 3];
    assert_eq!(became(&stage, &result(&plan)), expected, "they are not asked as long as others take it");
    let going = stage.begin_moves(evacuate(&["--peer-timeout", "2s"]).args(SLOW), 1);
    stage.lose(0);
    let (code, events) = going.ended();
    assert_eq!(code, Some(0), "{events:#?}");
    let expected = vec![("moved".to_owned(), stage.agents[1].address.clone()); 3];
    assert_eq!(became(&stage, events.last().unwrap()), expected);
    stage.check(&[false; 3]);
}

#[test]
fn trees_stay_where_no_other_host_is_left() {
    if !can_move() {
        return;
    }
    let mut stage = Stage::begin(SIZES.map(counter).into(), 1);
    let mut command = stage.command(&["--jobs", "1"]);
    let going = stage.begin_moves(command.args(SLOW), 1);
    std::thread::sleep(Duration::from_millis(500));
    stage.lose(0);
    let (code, events) = going.ended();
    assert_eq!(code, Some(6), "{events:#?}");
    assert!(became(&stage, events.last().unwrap()).iter().all(|(state, _)| state == "stayed"), "{events:#?}");
    stage.check(&[true; 3]);
    // None of them can be reached from the beginning.
    let output = stage.evacuate(&[]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
}

#[test]
fn serial_moves_the_first_by_pre_copy_and_the_others_by_post_copy_one_by_one() {
    if !can_move() {
        return;
    }
    let stage = Stage::three();
    let output = stage.evacuate(&["--serial"]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    let modes: Vec<_> = trees(&result).iter().map(|tree| tree["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["pre-copy", "post-copy", "post-copy"], "{result}");
    let time = |tree: &Value, name: &str| tree[name].as_u64().unwrap();
    for pair in trees(&result).windows(2) {
        assert!(time(&pair[0], "began_us") + time(&pair[0], "took_us") <= time(&pair[1], "began_us"), "{result}");
    }
    stage.check(&[false; 3]);
}

#[test]
fn moves_go_side_by_side_and_share_the_bandwidth() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin([3000, 2900].map(counter).into(), 1);
    let output = stage.evacuate(&SLOW);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    let time = |tree: &Value, name: &str| tree[name].as_u64().unwrap();
    let [one, other] = trees(&result).as_slice() else { panic!("{result}") };
    let both_until =
        (time(one, "began_us") + time(one, "took_us")).min(time(other, "began_us") + time(other, "took_us"));
    assert!(time(other, "began_us") < both_until, "both move at a time: {result}");
    // 23 MiB, of which a part can go in the pause, which is not held back.
    let all = [one, other].map(|tree| time(tree, "began_us") + time(tree, "took_us")).into_iter().max().unwrap();
    assert!(all - time(one, "began_us") > 1_500_000, "they were faster than they may be: {result}");
    stage.check(&[false; 2]);
}

#[test]
fn an_interrupt_rolls_back_what_moves_and_nothing_begins() {
    if !can_move() {
        return;
    }
    for (signal, exit) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let stage = Stage::three();
        let mut command = stage.command(&[]);
        let going = stage.begin_moves(command.args(SLOW), 2);
        std::thread::sleep(Duration::from_secs(1));
        kill(Pid::from_raw(going.child.id() as i32), signal).unwrap();
        let (code, events) = going.ended();
        assert_eq!(code, Some(exit), "{events:#?}");
        let last = events.last().unwrap();
        // One that was not even connected is said to be untouched: nothing was looked at.
        assert!(trees(last).iter().all(|tree| tree["became"] == "stayed" && tree["where"] == "source"), "{last}");
        assert_eq!(trees(last).iter().filter(|tree| tree["session"].as_str().is_some()).count(), 2, "{last}");
        stage.check(&[true; 3]);
    }
}

/// The command is killed: what it has begun is rolled back, or comes to its end.
#[test]
fn moves_do_not_outlive_the_command_by_much() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin([4000, 3000].map(counter).into(), 1);
    let mut command = stage.command(&[]);
    let going = stage.begin_moves(command.args(SLOW), 2);
    std::thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(going.child.id() as i32), Signal::SIGKILL).unwrap();
    going.ended();
    wait(|| stage.movers().is_empty(), "no process of a move is left");
    stage.check(&[true; 2]);
    let output = stage.evacuate(&[]);
    assert!(output.status.success(), "and it can be done again: {}", text(&output));
    stage.check(&[false; 2]);
}

/// The process of a move is killed in the handover: its guardian settles that, and the others go on.
#[test]
fn a_move_whose_process_is_killed_is_settled_by_its_journal() {
    if !can_move() {
        return;
    }
    for (point, options, moves) in [
        ("source-ready", &["--keep-going", "--jobs", "1"][..], 1),
        ("source-ready", &["--jobs", "1"], 0),
        ("source-committed", &["--jobs", "1"], 2),
    ] {
        let stage = Stage::begin([2000, 1000].map(counter).into(), 1);
        let once = stage.dir.path().join("once");
        std::fs::write(&once, "").unwrap();
        let mut command = stage.command(options);
        command.env("MIGRATE_KILL", point).env("MIGRATE_ONCE", &once);
        let output = run(command, &[]);
        assert!(!once.exists(), "{point} was not reached: {}", text(&output));
        assert_eq!(output.status.code(), Some(if moves == 2 { 0 } else { 6 }), "{point}: {}", text(&output));
        // Which one begins first is told by what each would take.
        let stays: Vec<bool> = became(&stage, &result(&output)).iter().map(|(state, _)| state != "moved").collect();
        assert_eq!(stays.iter().filter(|stays| !**stays).count(), moves, "{point} {options:?}: {}", text(&output));
        stage.check(&stays);
        if moves < 2 {
            let output = stage.evacuate(&[]);
            assert!(output.status.success(), "{point}: {}", text(&output));
            stage.check(&[false; 2]);
        }
    }
}

#[test]
fn what_is_in_doubt_is_named_and_left_alone() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(vec![counter(500), counter(400)], 1);
    let pid: i32 = stage.counters[0].pid().parse().unwrap();
    let journals = stage.source().join("state/moves");
    let attempt = AttemptId::random().unwrap();
    let mut journal = Journal::begin(&journals, Role::Source, attempt, "unix:/gone", "abcdefgh").unwrap();
    journal.set_target(pid);
    journal.write(Step::Committing).unwrap();
    drop(journal);
    let output = stage.evacuate(&[]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    let result = result(&output);
    let states: Vec<String> = became(&stage, &result).into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, ["stayed", "moved"]);
    let doubt = trees(&result).last().unwrap();
    assert_eq!(doubt["state"].as_str(), Some("in-doubt"), "{doubt}");
    assert!(doubt["failure"]["hint"].as_str().is_some_and(|hint| hint.contains("migrate resolve abcdefgh")), "{doubt}");
    stage.check(&[true, false]);
}

#[test]
fn what_cannot_be_meant_is_said_before_anything_is_stopped() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(vec![counter(100)], 1);
    let (pid, to) = (stage.counters[0].pid(), stage.to());
    let twice = format!("{to},{to}");
    for arguments in [
        &["--to", &twice][..],
        &["--to", "local"],
        &["--to", &to, "--serial", "--mode", "pre-copy"],
        &["--to", &to, "--alternate", &to],
        &["--to", &to, "--quorum", "2"],
        &[&pid, "--to", &to],
    ] {
        let output = run(on_host(&stage.source()), &[&["evacuate", pid.as_str()], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    }
    // Nobody of this name has ever gone anywhere.
    let output = run(on_host(&stage.source()), &["evacuate", "4194303", "--to", &to]);
    assert_eq!(output.status.code(), Some(6), "{}", text(&output));
    assert!(text(&output).contains("there is no process 4194303"), "{}", text(&output));
    stage.check(&[true]);
}

/// A counter in a host made of namespaces; it ends with the host.
struct Inner {
    pid: i64,
    path: PathBuf,
}

impl Inner {
    fn start(host: &Host, dir: &Path, name: &str) -> Self {
        let path = dir.join(name);
        let words = ["/usr/bin/python3", "-c", COUNTS, path.to_str().unwrap(), "1000"];
        let inner = Self { pid: host.start(words).unwrap(), path };
        inner.check_runs();
        inner
    }

    fn numbers(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn check_runs(&self) {
        let before = self.numbers().len();
        wait(|| self.numbers().len() > before + 5, "it counts on");
        assert!(self.numbers().windows(2).all(|pair| pair[1] == pair[0] + 1), "a number is missing or came twice");
    }
}

/// Whether a process is there, as the host's own /proc tells.
fn has(host: &Host, pid: i64) -> bool {
    host.command("test").args(["-d", &format!("/proc/{pid}")]).status().unwrap().success()
}

#[test]
fn all_that_is_there_goes_and_comes_back() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let made: Result<[Host; 3], _> = hosts::star(dir.path());
    let Ok(hosts) = made else {
        crate::skip!("hosts of namespaces cannot be made here: {made:?}");
        return;
    };
    let [a, b, _] = &hosts;
    let (agent_a, to_a) = a.agent(Path::new(PROGRAM)).unwrap();
    let (agent_b, to_b) = b.agent(Path::new(PROGRAM)).unwrap();
    let inner = ["x", "y", "z"].map(|name| Inner::start(a, dir.path(), name));
    let evacuate = |host: &Host, words: &[&str]| {
        let mut command = host.command(PROGRAM);
        command.args(["evacuate", "--allow-plain", "--json"]).args(words);
        let output = run(command, &[]);
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        result(&output)
    };
    let all = evacuate(a, &["--all", "--to", &to_b, "--jobs", "3"]);
    let pids: BTreeSet<i64> =
        trees(&all).iter().map(|tree| tree["target"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(pids, inner.iter().map(|one| one.pid).collect(), "these, and nobody else: {all}");
    let left_out: Vec<&str> =
        all["left_out"].as_array().unwrap().iter().map(|left| left["reason"].as_str().unwrap()).collect();
    assert!(left_out.contains(&"a program of migrate's runs in it"), "its agent: {all}");
    assert!(left_out.contains(&"this command runs in it"), "{all}");
    for one in &inner {
        one.check_runs();
        assert!(!has(a, one.pid), "{} is not here any more", one.pid);
    }
    // Nothing is left to be done, and that is no error.
    let again = evacuate(a, &["--all", "--to", &to_b]);
    assert!(trees(&again).is_empty(), "{again}");
    let there: Vec<String> = trees(&all).iter().map(|tree| tree["pid"].as_i64().unwrap().to_string()).collect();
    let mut words: Vec<&str> = there.iter().map(String::as_str).collect();
    words.extend(["--to", &to_a]);
    let back = evacuate(b, &words);
    assert!(trees(&back).iter().all(|tree| tree["became"] == "moved"), "{back}");
    for one in &inner {
        one.check_runs();
        assert!(has(a, one.pid), "{} is here again: {back}", one.pid);
    }
    drop((agent_a, agent_b));
}
