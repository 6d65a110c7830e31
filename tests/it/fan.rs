//! `migrate move` to several destinations: the first that is ready has the target, the others have nothing of it. Each has an agent with
//! places of its own, on this kernel.

use crate::handover::wait;
use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use std::path::PathBuf;
use std::process::Command;

/// Counts, writes to one page after the other of what it has of memory that changes, and has other memory that only has to be there. When
/// it is asked to, it looks at all of it.
pub const LOOKS: &str = "
import os, sys, time
path, still, hot = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ground = bytearray().join(bytes([n % 251 + 1]) * 4096 for n in range(still))
work = bytearray(hot * 4096)
n = 0
with open(path, 'a', buffering=1) as out:
    while True:
        n += 1
        for at in range((n - 1) * 16, n * 16):
            work[at % hot * 4096 + 7] = at // hot % 251 + 1
        out.write('%d\\n' % n)
        if os.path.exists(path + '.look'):
            os.unlink(path + '.look')
            right = all(ground[p * 4096:(p + 1) * 4096] == bytes([p % 251 + 1]) * 4096 for p in range(still))
            for p in range(hot):
                last = (n * 16 - 1 - p) // hot
                right &= work[p * 4096 + 7] == last % 251 + 1 and work[p * 4096 + 8:(p + 1) * 4096] == bytes(4088)
            with open(path + '.new', 'w') as found:
                found.write('right' if right else 'wrong')
            os.rename(path + '.new', path + '.seen')
        time.sleep(0.002)
";

/// A target, and so many destinations.
pub struct Stage {
    pub dir: tempfile::TempDir,
    pub counter: Counter,
    pub agents: Vec<Agent>,
    pub once: PathBuf,
}

impl Stage {
    /// `strikes`: the environment of each agent.
    pub fn begin(counter: Counter, strikes: &[&[(&str, &str)]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let once = dir.path().join("once");
        std::fs::write(&once, "").unwrap();
        let agents = strikes.iter().enumerate().map(|(n, strikes)| {
            let listen = format!("unix:{}", dir.path().join(format!("agent{n}.sock")).display());
            let mut environment = strikes.to_vec();
            environment.push(("MIGRATE_ONCE", once.to_str().unwrap()));
            Agent::start_with(&dir.path().join(format!("dest{n}")), &listen, &environment)
        });
        let agents = agents.collect();
        Self { dir, counter, agents, once }
    }

    fn mover(&self, options: &[&str]) -> Command {
        let mut command = on_host(&self.dir.path().join("source"));
        command.args(["move", &self.counter.pid()]);
        command.args(self.agents.iter().map(|agent| agent.address.as_str()));
        command.args(["--json", "--peer-timeout", "2s"]).args(options).env("MIGRATE_ONCE", &self.once);
        command
    }

    /// The target has all of its memory: it has looked itself.
    pub fn looks(&self, what: &str) {
        let beside = |end: &str| self.counter.path().with_extension(end);
        std::fs::write(beside("look"), "").unwrap();
        wait(|| beside("seen").exists(), &format!("{what}: it has looked at its memory"));
        assert_eq!(std::fs::read_to_string(beside("seen")).unwrap(), "right", "{what}");
        std::fs::remove_file(beside("seen")).unwrap();
    }

    /// Nobody of ours is at that destination but its agent, and nothing waits there for memory.
    fn is_left_alone(&self, n: usize, what: &str) {
        let place = self.dir.path().join(format!("dest{n}"));
        let ours = format!("MIGRATE_PLACES={}", place.display());
        let environment = |pid: &u32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_there = |pid: &u32| environment(pid).split(|byte| *byte == 0).any(|word| word == ours.as_bytes());
        let others = || {
            let pids = std::fs::read_dir("/proc").unwrap().flatten();
            let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            pids.filter(|pid| *pid != self.agents[n].pid() && is_there(pid)).count()
        };
        wait(|| others() == 0, &format!("{what}: processes at destination {n}"));
        let left = |dir: &str| std::fs::read_dir(place.join(dir)).into_iter().flatten().flatten();
        let sockets: Vec<_> = left("run").map(|entry| entry.file_name()).collect();
        assert!(!sockets.iter().any(|name| name.to_string_lossy().starts_with("pages-")), "{what}: {sockets:?}");
    }

    fn undecided(&self, host: &str) -> usize {
        let output = run(on_host(&self.dir.path().join(host)), &["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        result(&output)["sessions"].as_array().map_or(0, Vec::len)
    }

    /// One copy counts on, and no host holds anything else of it.
    pub fn check(&self, what: &str) {
        self.counter.check_runs();
        wait(|| self.counter.processes().len() == 1, &format!("{what}: one copy is left"));
        self.counter.check_runs();
        self.check_decided(what);
    }

    /// No host has anything to decide.
    pub fn check_decided(&self, what: &str) {
        for host in std::iter::once("source".to_owned()).chain((0..self.agents.len()).map(|n| format!("dest{n}"))) {
            wait(|| self.undecided(&host) == 0, &format!("{what}: {host} knows that it is over"));
        }
    }
}

/// What became of each, by the `result` event.
pub fn became(result: &serde_json::Value) -> Vec<String> {
    let all = result["candidates"].as_array().unwrap_or_else(|| panic!("{result}"));
    all.iter().map(|one| one["became"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_first_that_is_ready_has_it_and_the_others_delete_what_they_hold() {
    if !can_move() {
        return;
    }
    for (agents, mode) in [(2, "pre-copy"), (4, "auto"), (2, "stop-and-copy")] {
        let stage = Stage::begin(Counter::on_ground(8, 2000), &vec![&[][..]; agents]);
        let output = run(stage.mover(&["--mode", mode]), &[]);
        assert!(output.status.success(), "{}", text(&output));
        let result = result(&output);
        let became = became(&result);
        assert_eq!(became.iter().filter(|one| *one == "owner").count(), 1, "{became:?}");
        assert_eq!(became.iter().filter(|one| *one == "stopped").count(), agents - 1, "{became:?}");
        let owner = became.iter().position(|one| one == "owner").unwrap();
        assert_eq!(result["where"].as_str(), Some(stage.agents[owner].address.as_str()));
        let pid = result["pid"].as_i64().unwrap();
        stage.check(mode);
        assert_eq!(stage.counter.processes(), [i32::try_from(pid).unwrap()]);
    }
}

#[test]
fn memory_follows_to_the_one_that_runs_it_and_to_nobody_else() {
    if !can_move() {
        return;
    }
    for (agents, mode) in [(2, "post-copy"), (3, "hybrid"), (4, "post-copy"), (4, "hybrid")] {
        let stage = Stage::begin(Counter::of(LOOKS, &["3000", "500"]), &vec![&[][..]; agents]);
        let output = run(stage.mover(&["--mode", mode]), &[]);
        let what = format!("{mode} to {agents}");
        assert!(output.status.success(), "{what}: {}", text(&output));
        let result = result(&output);
        assert_eq!(result["mode"].as_str(), Some(mode), "{result}");
        let became = became(&result);
        assert_eq!(became.iter().filter(|one| *one == "owner").count(), 1, "{became:?}");
        assert_eq!(became.iter().filter(|one| *one == "stopped").count(), agents - 1, "{became:?}");
        stage.looks(&what);
        stage.check(&what);
        let owner = became.iter().position(|one| one == "owner").unwrap();
        for n in (0..agents).filter(|n| *n != owner) {
            stage.is_left_alone(n, &what);
        }
    }
}

#[test]
fn what_does_not_converge_follows_to_the_one_that_runs_it() {
    if !can_move() {
        return;
    }
    // It writes faster than rounds send.
    let stage = Stage::begin(Counter::of(LOOKS, &["200", "2000"]), &[&[], &[]]);
    let output =
        run(stage.mover(&["--bandwidth", "8MB/s", "--compress", "off", "--converge", "post-copy,anyway"]), &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("what is left follows when it runs"), "{}", text(&output));
    assert_eq!(result(&output)["mode"].as_str(), Some("hybrid"), "{}", text(&output));
    stage.looks("converge");
    stage.check("converge");
}

/// As below, with memory missing at whoever runs it.
#[test]
fn a_destination_that_is_killed_while_memory_is_to_follow_is_replaced_unless_it_may_own_the_target() {
    if !can_move() {
        return;
    }
    for (point, mode) in [
        ("destination-armed", "post-copy"),
        ("destination-prepared", "hybrid"),
        ("destination-prepared", "post-copy"),
        ("destination-ordered", "post-copy"),
        ("destination-ordered", "hybrid"),
        ("destination-owner", "post-copy"),
    ] {
        let strike: &[(&str, &str)] = &[("MIGRATE_KILL", point)];
        let stage = Stage::begin(Counter::of(LOOKS, &["1000", "200"]), &[strike, strike]);
        let output = run(stage.mover(&["--mode", mode]), &[]);
        let what = format!("{point} by {mode}");
        assert!(!stage.once.exists(), "{what} was not reached: {}", text(&output));
        assert!(output.status.success(), "{what}: {}", text(&output));
        stage.looks(&what);
        stage.check(&what);
        assert_ne!(stage.counter.processes()[0].to_string(), stage.counter.pid(), "{what}");
    }
}

/// Until the target runs over there nobody can be told to run it whom the rest of its memory would not reach.
#[test]
fn a_source_that_is_killed_while_memory_is_to_follow_is_stood_in_for() {
    if !can_move() {
        return;
    }
    for (point, mode, moves) in [
        ("source-ready", "post-copy", false),
        ("source-committing", "hybrid", false),
        ("source-committed", "post-copy", true),
        ("source-moved", "hybrid", true),
    ] {
        let stage = Stage::begin(Counter::of(LOOKS, &["1000", "200"]), &[&[], &[], &[]]);
        let mut mover = stage.mover(&["--mode", mode]);
        mover.env("MIGRATE_KILL", point);
        let output = run(mover, &[]);
        let what = format!("{point} by {mode}");
        assert!(!stage.once.exists(), "{what} was not reached: {}", text(&output));
        stage.looks(&what);
        stage.check(&what);
        let original = stage.counter.processes()[0].to_string() == stage.counter.pid();
        assert_eq!(original, !moves, "{what}");
    }
}

#[test]
fn who_cannot_be_reached_is_left_out() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(Counter::start(1), &[&[]]);
    let gone = format!("unix:{}", stage.dir.path().join("nobody.sock").display());
    let output = run(stage.mover(&[&gone]), &[]);
    assert!(output.status.success() && text(&output).contains("is left out"), "{}", text(&output));
    stage.check("one is left");
    let counter = Counter::start(1);
    let other = format!("{gone}2");
    let output = run(on_host(&stage.dir.path().join("source")), &["move", &counter.pid(), &gone, &other, "--json"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    counter.check_runs();
    let twice = stage.agents[0].address.as_str();
    let output = run(on_host(&stage.dir.path().join("source")), &["move", &counter.pid(), twice, twice]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn where_all_are_blocked_nothing_is_stopped() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(Counter::start(1), &[&[], &[]]);
    // The id is taken on either host, by the original itself.
    let output = run(stage.mover(&["--pids", "same"]), &[]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let result = result(&output);
    let objects: Vec<_> = result["blockers"].as_array().unwrap().iter().map(|one| one["object"].to_string()).collect();
    for agent in &stage.agents {
        assert!(objects.iter().any(|object| object.contains(&agent.address)), "{objects:?}");
    }
    stage.check("blocked");
    assert_eq!(stage.counter.processes()[0].to_string(), stage.counter.pid());
}

/// Killed before it is told to run, another one has the target; killed after that, nobody else has.
#[test]
fn a_destination_that_is_killed_is_replaced_unless_it_may_own_the_target() {
    if !can_move() {
        return;
    }
    for point in [
        "destination-armed",
        "destination-recorded",
        "destination-prepared",
        "destination-ordered",
        "destination-owner",
    ] {
        let strike: &[(&str, &str)] = &[("MIGRATE_KILL", point)];
        let stage = Stage::begin(Counter::on_ground(1, 256), &[strike, strike]);
        let output = run(stage.mover(&[]), &[]);
        assert!(!stage.once.exists(), "{point} was not reached: {}", text(&output));
        assert!(output.status.success(), "{point}: {}", text(&output));
        stage.check(point);
        assert_ne!(stage.counter.processes()[0].to_string(), stage.counter.pid(), "{point}");
    }
}

#[test]
fn a_source_that_is_killed_is_stood_in_for_and_the_others_are_told() {
    if !can_move() {
        return;
    }
    for (point, moves) in [
        ("source-ready", false),
        ("source-held", false),
        ("source-committing", true),
        ("source-committed", true),
        ("source-moved", true),
    ] {
        let stage = Stage::begin(Counter::on_ground(1, 256), &[&[], &[], &[]]);
        let mut mover = stage.mover(&[]);
        let output = run(
            {
                mover.env("MIGRATE_KILL", point);
                mover
            },
            &[],
        );
        assert!(!stage.once.exists(), "{point} was not reached: {}", text(&output));
        stage.check(point);
        let original = stage.counter.processes()[0].to_string() == stage.counter.pid();
        assert_eq!(original, !moves, "{point}");
    }
}

#[test]
fn if_no_destination_takes_it_the_alternates_do() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(Counter::start(1), &[&[]]);
    let gone = format!("unix:{}", stage.dir.path().join("nobody.sock").display());
    let mut command = on_host(&stage.dir.path().join("source"));
    command.args(["move", &stage.counter.pid(), &gone, "--alternate", &stage.agents[0].address, "--json"]);
    let output = run(command, &[]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    assert_eq!(result["where"].as_str(), Some(stage.agents[0].address.as_str()));
    let attempts = result["attempts"].as_array().unwrap();
    assert_eq!((attempts.len(), attempts[0]["dests"][0].as_str()), (1, Some(gone.as_str())), "{result}");
    stage.check("alternate");
}

#[test]
fn a_destination_that_comes_later_is_tried_again() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(Counter::start(1), &[]);
    let late = format!("unix:{}", stage.dir.path().join("late.sock").display());
    let mover = |retries: &str| {
        let mut command = on_host(&stage.dir.path().join("source"));
        command.args(["move", &stage.counter.pid(), &late, "--retries", retries, "--json"]);
        command
    };
    let begun = std::time::Instant::now();
    let output = run(mover("1"), &[]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(text(&output).contains("attempt 1 has failed") && begun.elapsed().as_secs() >= 1, "{}", text(&output));
    stage.counter.check_runs();
    let place = stage.dir.path().join("late");
    let address = late.clone();
    let agent = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        Agent::start(&place, &address)
    });
    let output = run(mover("20"), &[]);
    drop(agent.join().unwrap());
    assert!(output.status.success(), "{}", text(&output));
    assert!(!result(&output)["attempts"].as_array().unwrap().is_empty(), "{}", text(&output));
    stage.check("later");
}
