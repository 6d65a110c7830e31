//! `migrate warm`, `switch`, `status` and `cancel`: destinations that are kept up to date until somebody wants the target to move. Each
//! destination has an agent with places of its own, on this kernel.

use crate::fan::{LOOKS, Stage, became};
use crate::handover::{wait, wait_for};
use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

/// A target that is kept warm. What is left of the session is ended with it.
struct Warm {
    stage: Stage,
    session: String,
}

impl Warm {
    fn begin(counter: Counter, agents: usize, options: &[&str]) -> Self {
        let stage = Stage::begin(counter, &vec![&[][..]; agents]);
        let output = warm(&stage, options);
        assert!(output.status.success(), "{}", text(&output));
        let session = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        assert_eq!(session.len(), 8, "the id and nothing else is printed: {session}");
        Self { stage, session }
    }

    fn source(&self, arguments: &[&str]) -> Output {
        run(on_host(&self.stage.dir.path().join("source")), arguments)
    }

    /// What `migrate status ID` says of the session; of one that has ended, too.
    fn status(&self) -> Value {
        let output = self.source(&["status", &self.session, "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        result(&output)["sessions"][0].clone()
    }

    fn candidates(&self) -> Vec<Value> {
        self.status()["warm"]["candidates"].as_array().cloned().unwrap_or_default()
    }

    /// Until so many destinations have everything.
    fn wait_until_warm(&self, number: usize) {
        let is = |one: &Value| one["state"] == "up-to-date" && one["expected_downtime_us"].as_u64().is_some();
        wait(|| self.candidates().iter().filter(|one| is(one)).count() >= number, "destinations are up to date");
    }

    /// Processes with the places of this host.
    fn processes(&self, host: &str) -> Vec<i32> {
        let places = self.stage.dir.path().join(host);
        let wanted = format!("MIGRATE_PLACES={}", places.display());
        let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        let is = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|line| line == wanted.as_bytes())
        };
        pids.filter(is).collect()
    }

    /// The process of the session.
    fn process(&self) -> Option<i32> {
        let is = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("warm-session"))
        };
        self.processes("source").into_iter().find(is)
    }

    /// Of the session, and how long that has been.
    fn processor_time(&self) -> (Duration, Duration) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process().unwrap())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // utime and stime (proc_pid_stat(5)), in hundredths of a second.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        (Duration::from_millis(ticks * 10), Duration::from_millis(self.status()["warm"]["age_ms"].as_u64().unwrap()))
    }

    /// Where something of the attempt is: files and directories of its number, and mounts.
    fn traces(&self, attempt: &str) -> Vec<PathBuf> {
        let places = ["/dev/shm".into(), "/tmp".into(), self.stage.dir.path().to_owned()];
        let stores = |dir: &PathBuf| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            entries.filter(|path| path.to_string_lossy().contains(attempt)).collect::<Vec<_>>()
        };
        let mut found: Vec<PathBuf> = places.iter().flat_map(stores).collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(attempt)).map(PathBuf::from));
        found
    }

    /// Nothing of it is left at the destinations but their agents, and nothing here but the target.
    fn check_nothing_is_left(&self, attempt: &str) {
        for (n, agent) in self.stage.agents.iter().enumerate() {
            let is_alone = || self.processes(&format!("dest{n}")) == [i32::try_from(agent.pid()).unwrap()];
            wait(is_alone, "nobody is left at the destination but its agent");
        }
        wait(|| self.process().is_none(), "the process of the session has ended");
        wait(|| self.traces(attempt).is_empty(), "no pages are left");
        let sockets = self.stage.dir.path().join("source/run");
        let left = || std::fs::read_dir(&sockets).unwrap().flatten().any(|entry| is_socket_of_session(&entry.path()));
        assert!(!left(), "no socket is left");
        assert_eq!(self.stage.counter.processes().len(), 1, "one copy of the target");
        self.stage.check("nothing is left");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process().expect("the session has a process")), signal).unwrap();
    }

    fn attempt(&self) -> String {
        self.status()["attempt"].as_str().unwrap().to_owned()
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        if let Some(pid) = self.process() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn is_socket_of_session(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("warm-"))
}

fn warm(stage: &Stage, options: &[&str]) -> Output {
    let mut command = on_host(&stage.dir.path().join("source"));
    command.args(["warm", &stage.counter.pid()]).args(stage.agents.iter().map(|agent| agent.address.as_str()));
    run(command, options)
}

#[test]
fn destinations_are_kept_up_to_date_and_the_target_moves_when_it_is_told_to() {
    if !can_move() {
        return;
    }
    // The lease is shorter than the warm-up: it is the source that is heard, not the age of the session, which counts.
    let options = ["--lease", "2s", "--peer-timeout", "2s"];
    let warm = Warm::begin(Counter::on_ground(8, 2000), 2, &options);
    warm.wait_until_warm(2);
    let rounds = |warm: &Warm| warm.candidates().iter().map(|one| one["rounds"].as_u64().unwrap()).min().unwrap();
    let before = rounds(&warm);
    wait(|| rounds(&warm) > before + 20, "rounds go on after everything was sent");
    warm.stage.counter.check_runs();
    let status = warm.status();
    assert_eq!((status["phase"].as_str(), status["owner"].as_str()), (Some("warm"), Some("here")), "{status}");
    assert!(status["warm"]["dirty_bytes_per_s"].as_u64().is_some_and(|rate| rate > 0), "{status}");
    let all = warm.source(&["status"]);
    assert!(text(&all).contains(&warm.session) && text(&all).contains("up-to-date"), "{}", text(&all));
    std::thread::sleep(Duration::from_millis(2500));
    let output = warm.source(&["switch", &warm.session[..5], "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("in doubt"), "{}", text(&output));
    let result = result(&output);
    println!("pause {} us, expected {} us", result["downtime_us"], result["expected_downtime_us"]);
    assert!(result["downtime_us"].as_u64().is_some() && result["session"] == warm.session.as_str(), "{result}");
    assert_eq!(became(&result).iter().filter(|one| *one == "stopped").count(), 1, "{result}");
    assert!(text(&output).contains("\"event\":\"frozen\""), "events come before the result: {}", text(&output));
    warm.stage.check("switched");
    let ended = warm.status();
    assert_eq!((ended["phase"].as_str(), ended["warm"]["phase"].as_str()), (Some("moved"), Some("ended")), "{ended}");
}

#[test]
fn the_target_goes_to_the_one_that_is_chosen_when_it_has_to() {
    if !can_move() {
        return;
    }
    // What nothing ever reaches.
    let never = ["--exit-when", "downtime", "--max-downtime", "1ns", "--cpu-share", "20%"];
    let warm = Warm::begin(Counter::on_ground(32, 2000), 2, &never);
    warm.wait_until_warm(2);
    let (used, elapsed) = warm.processor_time();
    println!("{used:?} of {elapsed:?} were used");
    assert!(used < elapsed / 5 + Duration::from_millis(300), "{used:?} of {elapsed:?}");
    let output = warm.source(&["switch", &warm.session, "unix:/nowhere"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("/nowhere is none of the destinations"), "{}", text(&output));
    let output = warm.source(&["switch", &warm.session, "--timeout", "500ms", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let failed = result(&output);
    assert_eq!((failed["state"].as_str(), failed["where"].as_str()), (Some("running"), Some("source")), "{failed}");
    warm.wait_until_warm(2);
    let chosen = warm.stage.agents[1].address.clone();
    let output = warm.source(&["switch", &warm.session, &chosen, "--now"]);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    for word in ["pause", "ended by now", &format!("{chosen}: has the target"), "told to stop, has deleted"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    warm.stage.check("chosen");
}

#[test]
fn what_is_cancelled_leaves_nothing_behind() {
    if !can_move() {
        return;
    }
    let warm = Warm::begin(Counter::on_ground(8, 2000), 2, &[]);
    warm.wait_until_warm(2);
    let attempt = warm.attempt();
    assert!(warm.processes("dest0").len() > 1, "a destination holds something");
    let output = warm.source(&["cancel", &warm.session]);
    assert!(output.status.success() && text(&output).trim() == warm.session, "{}", text(&output));
    warm.check_nothing_is_left(&attempt);
    let output = warm.source(&["switch", &warm.session]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

/// Without any word to the destinations: the session is stopped, or killed.
#[test]
fn a_session_that_is_not_heard_any_more_leaves_the_target_alone() {
    if !can_move() {
        return;
    }
    let warm = Warm::begin(Counter::on_ground(8, 2000), 2, &["--lease", "2s", "--peer-timeout", "2s"]);
    warm.wait_until_warm(2);
    let attempt = warm.attempt();
    warm.signal(Signal::SIGSTOP);
    for (n, agent) in warm.stage.agents.iter().enumerate() {
        let is_alone = || warm.processes(&format!("dest{n}")) == [i32::try_from(agent.pid()).unwrap()];
        wait(is_alone, "destinations delete what they hold when the lease is over");
    }
    assert!(warm.traces(&attempt).is_empty(), "no pages are left");
    warm.stage.counter.check_runs();
    // It finds all of them lost, and begins anew.
    warm.signal(Signal::SIGCONT);
    wait(|| warm.candidates().len() == 2 && warm.attempt() != attempt, "it has begun anew");
    warm.wait_until_warm(2);
    let attempt = warm.attempt();
    warm.signal(Signal::SIGKILL);
    wait(|| warm.status()["phase"] == "interrupted", "status says that it was cut off");
    warm.stage.counter.check_runs();
    let output = warm.source(&["cancel", &warm.session]);
    assert!(output.status.success(), "{}", text(&output));
    warm.check_nothing_is_left(&attempt);
}

#[test]
fn a_destination_that_dies_is_left_out_and_the_others_are_kept_warm() {
    if !can_move() {
        return;
    }
    let mut warm = Warm::begin(Counter::on_ground(8, 2000), 2, &["--peer-timeout", "2s"]);
    warm.wait_until_warm(2);
    warm.stage.agents[0].kill();
    for pid in warm.processes("dest0") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let lost = wait_for(
        || warm.candidates().first().filter(|one| one["state"] == "out").cloned(),
        "status says that one is lost",
    );
    assert!(lost["reason"].as_str().is_some(), "{lost}");
    let gone = warm.stage.agents[0].address.clone();
    let output = warm.source(&["switch", &warm.session, &gone]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    warm.wait_until_warm(1);
    let output = warm.source(&["switch", &warm.session, "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(became(&result(&output)), ["out", "owner"]);
    warm.stage.counter.check_runs();
}

/// Its session was killed, or the agent with it: it is sent everything anew, and the target can go there.
#[test]
fn a_destination_that_comes_back_is_kept_warm_again() {
    if !can_move() {
        return;
    }
    for with_agent in [false, true] {
        let mut warm = Warm::begin(Counter::on_ground(8, 2000), 2, &["--peer-timeout", "2s"]);
        warm.wait_until_warm(2);
        let (agent, address) = (warm.stage.agents[0].pid(), warm.stage.agents[0].address.clone());
        let others = warm.processes("dest0").into_iter().filter(|pid| u32::try_from(*pid) != Ok(agent));
        others.for_each(|pid| {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        });
        if with_agent {
            warm.stage.agents[0].kill();
            wait(|| warm.candidates().first().is_some_and(|one| one["state"] == "out"), "it is lost");
            std::thread::sleep(Duration::from_millis(1500));
            std::fs::remove_file(address.trim_start_matches("unix:")).unwrap();
            warm.stage.agents[0] = Agent::start(&warm.stage.dir.path().join("dest0"), &address);
        } else {
            wait(|| warm.candidates().first().is_some_and(|one| one["state"] == "out"), "it is lost");
        }
        warm.wait_until_warm(2);
        let notes = text(&warm.source(&["status", &warm.session, "--json"]));
        assert!(notes.contains("is there again"), "{notes}");
        let output = warm.source(&["switch", &warm.session, &address, "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(became(&result(&output)), ["owner", "stopped"], "with the agent: {with_agent}");
        warm.stage.check("it has come back");
    }
}

#[test]
fn a_session_ends_with_its_target() {
    if !can_move() {
        return;
    }
    let warm = Warm::begin(Counter::start(1), 1, &[]);
    warm.wait_until_warm(1);
    kill(Pid::from_raw(warm.stage.counter.pid().parse().unwrap()), Signal::SIGKILL).unwrap();
    wait(|| warm.process().is_none(), "the session ends with its target");
    let status = warm.status();
    assert_eq!(
        (status["phase"].as_str(), status["warm"]["phase"].as_str()),
        (Some("stayed"), Some("ended")),
        "{status}"
    );
    let is_told = status["warm"]["notes"].as_array().is_some_and(|notes| !notes.is_empty());
    assert!(is_told, "it is said why: {status}");
    let processes = || warm.processes("dest0").len();
    wait(|| processes() == 1, "nothing is left at the destination");
}

#[test]
fn what_cannot_be_kept_warm_is_said_before_anything_is_started() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(Counter::start(1), &[&[]]);
    for (options, exit) in [
        (&["--mode", "post-copy"][..], 2),
        (&["--cpu-share", "0%"], 2),
        (&["--standby"], 2),
        (&["--pids", "same"], 3),
        (&["--pids", "same", "--json"], 3),
    ] {
        let output = warm(&stage, options);
        assert_eq!(output.status.code(), Some(exit), "{options:?}: {}", text(&output));
    }
    let mut command = on_host(&stage.dir.path().join("source"));
    command.args(["warm", &stage.counter.pid(), "unix:/nowhere"]);
    let output = run(command, &[]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    stage.check("refused");
    assert_eq!(stage.counter.processes()[0].to_string(), stage.counter.pid());
}

#[test]
fn memory_follows_where_a_switch_wants_it_so() {
    if !can_move() {
        return;
    }
    for (number, mode) in [(1, "post-copy"), (2, "post-copy"), (2, "hybrid")] {
        let warm = Warm::begin(Counter::of(LOOKS, &["3000", "500"]), number, &[]);
        warm.wait_until_warm(number);
        let output = warm.source(&["switch", &warm.session, "--mode", mode, "--json"]);
        let what = format!("{mode} to {number}");
        assert!(output.status.success(), "{what}: {}", text(&output));
        let result = result(&output);
        assert_eq!(result["mode"].as_str(), Some("hybrid"), "{what}: {result}");
        assert!(
            !text(&output).contains("what is left follows"),
            "nobody is told what they asked for: {}",
            text(&output)
        );
        warm.stage.looks(&what);
        warm.stage.check(&what);
    }
    let warm = Warm::begin(Counter::on_ground(4, 500), 1, &["--mode", "pre-copy"]);
    warm.wait_until_warm(1);
    let output = warm.source(&["switch", &warm.session, "--mode", "post-copy", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("begun with --mode pre-copy"), "{}", text(&output));
    let output = warm.source(&["switch", &warm.session, "--mode", "pre-copy", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    warm.stage.check("pre-copy");
}
