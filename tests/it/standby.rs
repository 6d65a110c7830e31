//! `migrate warm --standby` and `migrate promote`: the source is killed, and the target goes on elsewhere from the newest state that is kept
//! there. Each destination has an agent with places of its own, on this kernel.

use crate::fan::Stage;
use crate::handover::{wait, wait_for};
use crate::moves::{Counter, can_move, on_host, result, run, text};
use crate::warm::Warm;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

/// Writes a number to each of its pages, looks whether it is in all of them, and counts. If it ever was not, it says so.
const VERSIONS: &str = "
import os, sys, time
os.closerange(3, 1024)
path, pages = sys.argv[1], int(sys.argv[2])
out = open(path, 'a', buffering=1)
memory = bytearray(pages * 4096)
n = 0
while True:
    n += 1
    version = n.to_bytes(8, 'little')
    for page in range(pages):
        memory[page * 4096:page * 4096 + 8] = version
        memory[page * 4096 + 4088:page * 4096 + 4096] = version
    for page in range(pages):
        first, last = memory[page * 4096:page * 4096 + 8], memory[page * 4096 + 4088:page * 4096 + 4096]
        if first != version or last != version:
            open(path + '.torn', 'a').write('%d: page %d\\n' % (n, page))
    out.write('%d\\n' % n)
    time.sleep(0.002)
";

/// The same by a family: a child that was forked from it writes versions of its own to pages that it has from its parent, both read what
/// they have in common still, and write to shared memory; others come and go.
const FAMILY: &str = "
import mmap, os, sys, time
os.closerange(3, 1024)
path, pages = sys.argv[1], int(sys.argv[2])
out = open(path, 'a', buffering=1)
shared = mmap.mmap(-1, 2 * pages * 4096)
memory = bytearray(pages * 4096)
common = bytearray().join(bytes([page % 251 + 1]) * 4096 for page in range(pages))
def torn(what):
    open(path + '.torn', 'a').write('%d: %s\\n' % (os.getpid(), what))
def write(n, of):
    version = n.to_bytes(8, 'little')
    for page in range(pages):
        memory[page * 4096:page * 4096 + 8] = version
        at = (of * pages + page) * 4096
        shared[at:at + 8] = version
    for page in range(pages):
        at = (of * pages + page) * 4096
        if memory[page * 4096:page * 4096 + 8] != version or shared[at:at + 8] != version:
            torn('page %d of %d in %d' % (page, n, of))
        if n % 16 == 0 and common[page * 4096:(page + 1) * 4096] != bytes([page % 251 + 1]) * 4096:
            torn('common page %d' % page)
child = os.fork()
n = 0
while True:
    n += 1
    write(n, 0 if child else 1)
    if child:
        if n % 8 == 0:
            other = os.fork()
            if other == 0:
                version = n.to_bytes(8, 'little')
                time.sleep(0.01)
                os._exit(any(memory[page * 4096:page * 4096 + 8] != version for page in range(pages)))
            if os.waitpid(other, 0)[1]:
                torn('a child')
        out.write('%d\\n' % n)
    time.sleep(0.002)
";

impl Warm {
    /// With states so often.
    fn stand_by(counter: Counter, agents: usize, options: &[&str]) -> Self {
        let warm = Self::begin(counter, agents, options);
        warm.wait_for_states(2);
        warm
    }

    /// Until each destination has been brought so many states.
    fn wait_for_states(&self, number: u64) {
        let has = |one: &serde_json::Value| one["states"].as_u64().is_some_and(|states| states >= number);
        // There are none while it begins anew.
        let all = |candidates: &[serde_json::Value]| !candidates.is_empty() && candidates.iter().all(has);
        wait(|| all(&self.candidates()), "states are kept");
    }

    /// The program of the session and the target end at once, as with their host.
    fn source_dies(&self) {
        let target = self.stage.counter.processes();
        self.signal(Signal::SIGKILL);
        for pid in target {
            // A child of the target may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        wait(|| self.stage.counter.processes().is_empty(), "the target has ended with its host");
    }

    fn at(&self, host: usize, arguments: &[&str]) -> Output {
        run(on_host(&self.stage.dir.path().join(format!("dest{host}"))), arguments)
    }

    /// What `migrate status` says of the session there.
    fn kept_at(&self, host: usize) -> Option<serde_json::Value> {
        let output = self.at(host, &["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        let sessions = result(&output)["sessions"].as_array().cloned().unwrap_or_default();
        // An attempt before this one may have been cut off.
        let ours = sessions.into_iter().filter(|one| one["session"] == self.session.as_str());
        ours.max_by_key(|one| one["state_age_ms"].is_u64())
    }

    /// Until nobody hears the source there any more.
    fn wait_until_left(&self, host: usize) -> serde_json::Value {
        let left = || self.kept_at(host).filter(|one| one["phase"] == "standby");
        wait_for(left, "the destination keeps the newest state")
    }

    /// Files and directories of states.
    fn states_at(&self, host: usize) -> Vec<PathBuf> {
        let journals = self.stage.dir.path().join(format!("dest{host}/state/moves"));
        let entries = std::fs::read_dir(journals).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|end| end == "standby" || end == "promoted")).collect()
    }

    /// One copy runs, from a number that it had counted to, and nothing of its memory is of another moment.
    fn check_went_on(&self, before: &[u64], what: &str) {
        self.check_family_went_on(before, what, |found| found == 1);
    }

    /// The same of so many processes.
    fn check_family_went_on(&self, before: &[u64], what: &str, is_whole: impl Fn(usize) -> bool) {
        let counter = &self.stage.counter;
        let first = wait_for(|| counter.numbers().get(before.len()).copied(), &format!("{what}: it counts"));
        let last = *before.last().unwrap();
        assert!(first <= last + 1, "{what}: it goes on from a number that it had counted to: {first} after {last}");
        wait(|| counter.numbers().len() > before.len() + 20, &format!("{what}: it goes on"));
        let after = counter.numbers().split_off(before.len());
        assert!(after.windows(2).all(|pair| pair[1] == pair[0] + 1), "{what}: each number once");
        assert!(!counter.path().with_extension("torn").exists(), "{what}: memory of two moments");
        assert!(is_whole(counter.processes().len()), "{what}: one copy");
    }
}

#[test]
fn whenever_the_source_dies_the_target_goes_on_from_one_moment() {
    if !can_move() {
        return;
    }
    // With the second one a state is on its way for most of the time.
    let ways: [&[&str]; 2] = [&["--standby=150ms"], &["--standby=100ms", "--bandwidth", "4MB/s", "--compress", "off"]];
    for moment in 0..8u64 {
        let options = ways[moment as usize % 2];
        let warm = Warm::stand_by(Counter::of(VERSIONS, &["400"]), 2, options);
        let salt = u64::from(std::process::id()).wrapping_mul(moment + 7).wrapping_mul(2_654_435_761);
        let after = Duration::from_micros(salt % 700_000);
        let what = format!("killed after {after:?} by {options:?}");
        std::thread::sleep(after);
        warm.source_dies();
        let before = warm.stage.counter.numbers();
        let (here, other) = ((moment / 2 % 2) as usize, 1 - (moment / 2 % 2) as usize);
        let told = warm.wait_until_left(here);
        assert!(told["state_age_ms"].as_u64().is_some() && told["owner"] == "there", "{what}: {told}");
        let output = warm.at(here, &["promote", &warm.session[..5], "--yes", "--json"]);
        assert!(output.status.success(), "{what}: {}", text(&output));
        let promoted = result(&output);
        assert_eq!(promoted["promoted"].as_str(), Some(warm.session.as_str()), "{what}: {promoted}");
        println!("{what}: {} ms old", promoted["state_age_ms"]);
        let said = text(&output);
        for word in ["are lost", "has to be off", &warm.stage.agents[other].address] {
            assert!(said.contains(word), "{what}, {word}: {said}");
        }
        warm.check_went_on(&before, &what);
        let pid = i32::try_from(promoted["pid"].as_i64().unwrap()).unwrap();
        assert_eq!(warm.stage.counter.processes(), [pid], "{what}");
        assert!(warm.states_at(here).is_empty(), "{what}: {:?}", warm.states_at(here));
        // Nobody starts it a second time; the other one is told to forget it.
        let output = warm.at(here, &["promote", &warm.session, "--yes"]);
        assert!(!output.status.success() && text(&output).contains("was started here before"), "{}", text(&output));
        warm.wait_until_left(other);
        let output = warm.at(other, &["cancel", &warm.session]);
        assert!(output.status.success(), "{what}: {}", text(&output));
        assert!(warm.states_at(other).is_empty() && warm.kept_at(other).is_none(), "{what}: it is deleted");
    }
}

#[test]
fn a_family_goes_on_from_one_moment() {
    if !can_move() {
        return;
    }
    for moment in [90, 330, 610] {
        let warm = Warm::stand_by(Counter::of(FAMILY, &["64"]), 1, &["--standby=120ms"]);
        std::thread::sleep(Duration::from_millis(moment));
        warm.source_dies();
        let before = warm.stage.counter.numbers();
        warm.wait_until_left(0);
        let output = warm.at(0, &["promote", &warm.session, "--yes"]);
        let what = format!("killed after {moment} ms");
        assert!(output.status.success(), "{what}: {}", text(&output));
        warm.check_family_went_on(&before, &what, |found| found == 2 || found == 3);
    }
}

#[test]
fn nothing_is_promoted_while_the_source_is_heard_or_without_a_decision() {
    if !can_move() {
        return;
    }
    let warm = Warm::stand_by(Counter::on_ground(4, 500), 1, &["--standby=200ms"]);
    let status = warm.status();
    let states = &status["warm"]["states"];
    assert!(states["taken"].as_u64() >= Some(2) && states["longest_pause_us"].as_u64() > Some(0), "{status}");
    assert!(warm.candidates()[0]["state_age_ms"].as_u64().is_some(), "{status}");
    assert!(text(&warm.source(&["status", &warm.session])).contains("taken, pause"));
    for command in [&["promote", &warm.session, "--yes"][..], &["cancel", &warm.session]] {
        let output = warm.at(0, command);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("migrate switch"), "{}", text(&output));
    }
    warm.stage.counter.check_runs();
    warm.source_dies();
    warm.wait_until_left(0);
    let output = warm.at(0, &["promote", &warm.session]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("--yes") && text(&output).contains("s ago"), "{}", text(&output));
    let output = warm.at(0, &["promote", &warm.session, "--yes", "--fence-cmd", "exit 1"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(warm.stage.counter.processes().is_empty(), "nothing was started");
    let output = warm.at(0, &["promote", "zzzz", "--yes"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let before = warm.stage.counter.numbers();
    let is_named = "test \"$MIGRATE_PEER\" = \"$(uname -n)\" && test -n \"$MIGRATE_SESSION\"";
    let fence = ["promote", &warm.session, "--yes", "--fence-cmd", is_named];
    let output = warm.at(0, &fence);
    assert!(output.status.success(), "{}", text(&output));
    warm.check_went_on(&before, "decided");
    let output = warm.at(0, &["promote", &warm.session, "--yes"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("started here before"), "{}", text(&output));
}

/// Its only destination is lost, and it begins anew, which takes seconds here: the state of before stays until there is another one, and
/// nobody starts it meanwhile.
#[test]
fn a_session_that_begins_anew_is_heard() {
    if !can_move() {
        return;
    }
    let options = ["--standby=100ms", "--peer-timeout", "2s", "--bandwidth", "4MB/s", "--compress", "off"];
    let warm = Warm::stand_by(Counter::on_ground(4, 4000), 1, &options);
    let (attempt, agent) = (warm.attempt(), i32::try_from(warm.stage.agents[0].pid()).unwrap());
    for pid in warm.processes("dest0").into_iter().filter(|pid| *pid != agent) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let has_begun = || {
        let status = warm.status();
        let is_another = status["attempt"].as_str().is_some_and(|now| now != attempt);
        is_another && status["warm"]["candidates"][0]["state"] == "first-round"
    };
    wait(has_begun, "it has begun anew");
    for verb in [&["promote", &warm.session, "--yes"][..], &["cancel", &warm.session]] {
        let output = warm.at(0, verb);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("is heard"), "{}", text(&output));
    }
    assert!(!warm.states_at(0).is_empty(), "it is still there");
    assert_eq!(warm.stage.counter.processes().len(), 1, "nothing was started");
}

#[test]
fn what_stood_by_is_gone_once_the_target_has_moved_or_the_session_was_cancelled() {
    if !can_move() {
        return;
    }
    let warm = Warm::stand_by(Counter::on_ground(4, 500), 2, &["--standby=200ms"]);
    let output = warm.source(&["switch", &warm.session, "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    warm.stage.check("switched");
    for host in 0..2 {
        wait(|| warm.states_at(host).is_empty(), "no state is left");
        let output = warm.at(host, &["promote", &warm.session, "--yes"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    }
    let warm = Warm::stand_by(Counter::on_ground(4, 500), 2, &["--standby=200ms"]);
    let attempt = warm.attempt();
    let output = warm.source(&["cancel", &warm.session]);
    assert!(output.status.success(), "{}", text(&output));
    warm.check_nothing_is_left(&attempt);
    assert!(warm.states_at(0).is_empty() && warm.states_at(1).is_empty());
}

/// The session ends while its only destination is lost, which hears nothing of that.
#[test]
fn whoever_keeps_a_state_of_a_session_that_is_over_is_named() {
    if !can_move() {
        return;
    }
    let mut warm = Warm::stand_by(Counter::on_ground(4, 500), 1, &["--standby=200ms", "--peer-timeout", "2s"]);
    let address = warm.stage.agents[0].address.clone();
    warm.stage.agents[0].kill();
    for pid in warm.processes("dest0") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    wait(|| warm.status()["warm"]["phase"] == "reconnecting", "all are lost");
    let output = warm.source(&["cancel", &warm.session]);
    assert!(output.status.success(), "{}", text(&output));
    let notes = warm.status()["warm"]["notes"].to_string();
    assert!(notes.contains(&format!("{address} was lost, and keeps a state")), "{notes}");
    assert!(notes.contains(&format!("migrate cancel {} there", warm.session)), "{notes}");
    let output = warm.at(0, &["cancel", &warm.session]);
    assert!(output.status.success() && warm.states_at(0).is_empty(), "{}", text(&output));
    warm.stage.counter.check_runs();
}

/// It was only silent for longer than its lease, and the person was wrong: there are two, which the session says, and it ends.
#[test]
fn a_source_that_returns_is_told_that_it_is_over() {
    if !can_move() {
        return;
    }
    let options = ["--standby=200ms", "--lease", "2s", "--peer-timeout", "2s"];
    let warm = Warm::stand_by(Counter::on_ground(4, 500), 2, &options);
    warm.signal(Signal::SIGSTOP);
    warm.wait_until_left(0);
    let output = warm.at(0, &["promote", &warm.session, "--yes"]);
    assert!(output.status.success(), "{}", text(&output));
    wait(|| warm.stage.counter.processes().len() == 2, "there are two now");
    warm.signal(Signal::SIGCONT);
    wait(|| warm.process().is_none(), "the session ends");
    let status = warm.status();
    assert_eq!(status["warm"]["phase"], "ended", "{status}");
    assert!(status.to_string().contains("M0911"), "{status}");
    assert_eq!(warm.stage.counter.processes().len(), 2, "neither of them was ended");
    let output = warm.source(&["switch", &warm.session]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

/// The session over there is killed in the moment in which a state has come; and its host with the source's.
#[test]
fn a_destination_that_dies_has_the_state_before() {
    if !can_move() {
        return;
    }
    let warm = Warm::stand_by(Counter::of(VERSIONS, &["200"]), 2, &["--standby=100ms", "--peer-timeout", "2s"]);
    for round in 0..3u64 {
        std::thread::sleep(Duration::from_millis(37 * round));
        let agent = i32::try_from(warm.stage.agents[0].pid()).unwrap();
        for pid in warm.processes("dest0").into_iter().filter(|pid| *pid != agent) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        assert!(warm.states_at(0).len() == 1, "it is still there");
        if round < 2 {
            let notes = || text(&warm.source(&["status", &warm.session, "--json"]));
            wait(|| notes().contains("is there again"), "it comes back");
            let before = warm.candidates()[0]["states"].as_u64().unwrap();
            wait(|| warm.candidates()[0]["states"].as_u64() > Some(before + 1), "further states are kept");
        }
    }
    warm.source_dies();
    let before = warm.stage.counter.numbers();
    warm.wait_until_left(0);
    let output = warm.at(0, &["promote", &warm.session, "--yes"]);
    assert!(output.status.success(), "{}", text(&output));
    warm.check_went_on(&before, "both were killed");
}

/// Its session is killed in the very moment in which all of a state has come, and is not on the disk.
#[test]
fn a_destination_that_dies_while_it_keeps_a_state_has_the_one_before() {
    if !can_move() {
        return;
    }
    let strike: &[(&str, &str)] = &[("MIGRATE_KILL", "destination-keeps")];
    let stage = Stage::begin(Counter::of(VERSIONS, &["200"]), &[strike]);
    let once = stage.dir.path().join("once");
    let warm = Warm::on(stage, &["--standby=100ms", "--peer-timeout", "2s"]);
    wait(|| !once.exists(), "it was killed at the first one");
    warm.wait_for_states(2);
    assert_eq!(warm.states_at(0).len(), 1, "what the first one has left is deleted");
    std::fs::write(&once, "").unwrap();
    wait(|| !once.exists(), "it was killed at a later one");
    warm.source_dies();
    let before = warm.stage.counter.numbers();
    warm.wait_until_left(0);
    let output = warm.at(0, &["promote", &warm.session, "--yes"]);
    assert!(output.status.success(), "{}", text(&output));
    warm.check_went_on(&before, "killed while it keeps a state");
}

#[test]
fn a_promote_that_is_killed_leaves_an_image() {
    if !can_move() {
        return;
    }
    let warm = Warm::stand_by(Counter::of(VERSIONS, &["50"]), 1, &["--standby=200ms"]);
    warm.source_dies();
    let before = warm.stage.counter.numbers();
    warm.wait_until_left(0);
    let mut command = on_host(&warm.stage.dir.path().join("dest0"));
    command.env("MIGRATE_KILL", "promoting");
    run(command, &["promote", &warm.session, "--yes"]);
    let left = warm.kept_at(0).expect("it is shown");
    let image = left["recovered_image"].as_str().unwrap_or_else(|| panic!("{left}")).to_owned();
    let output = warm.at(0, &["promote", &warm.session, "--yes"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains(&image), "{}", text(&output));
    assert!(warm.stage.counter.processes().is_empty());
    let output = warm.at(0, &["restore", "-D", &image, "--detach", "--files", "skip", "--stdio", "null"]);
    assert!(output.status.success(), "{}", text(&output));
    warm.check_went_on(&before, "by hand");
}
