//! `migrate move --then`: a destination that has got the target moves it on, stage by stage, and the source hears of it. Each host has
//! an agent with places of its own, on this kernel.

use crate::handover::{wait, wait_for};
use crate::moves::{Agent, Counter, Ended, Served, can_move, on_host, result, run, text};
use crate::places::{free_port, is_settled};
use migrate_engine::transport::keys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A target, and hosts to which it can go: `b`, `c` and so on.
struct Hosts {
    dir: tempfile::TempDir,
    counter: Counter,
    agents: Vec<Agent>,
}

impl Hosts {
    /// `environments`: that of each agent.
    fn begin(environments: &[&[(&str, &str)]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("once"), "").unwrap();
        let agents = environments.iter().zip('b'..).map(|(environment, name)| {
            let listen = format!("unix:{}", dir.path().join(format!("{name}.sock")).display());
            let once = dir.path().join("once");
            let environment = [environment, &[("MIGRATE_ONCE", once.to_str().unwrap())][..]].concat();
            Agent::start_with(&dir.path().join(name.to_string()), &listen, &environment)
        });
        let agents = agents.collect();
        Self { dir, counter: Counter::on_ground(4, 2000), agents }
    }

    /// So many hosts that do what they are asked to.
    fn of(number: usize) -> Self {
        Self::begin(&vec![&[][..]; number])
    }

    fn host(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn address(&self, n: usize) -> &str {
        &self.agents[n].address
    }

    fn command(&self, verb: &str, options: &[&str]) -> Command {
        let mut command = on_host(&self.host("a"));
        command.args([verb, &self.counter.pid()]).args(options).args(["--json", "--peer-timeout", "5s"]);
        command
    }

    fn moves(&self, options: &[&str]) -> Output {
        run(self.command("move", options), &[])
    }

    /// One copy counts on, it is this process, and no host has anything left to decide.
    fn check(&self, what: &str) -> i32 {
        self.counter.check_runs();
        wait(|| self.counter.processes().len() == 1, &format!("{what}: one copy is left"));
        self.counter.check_runs();
        for name in ('a'..).take(self.agents.len() + 1) {
            is_settled(&self.host(&name.to_string()), what);
        }
        wait(|| self.movers().is_empty(), &format!("{what}: nobody moves it on any more"));
        self.counter.processes()[0]
    }

    /// Processes that move a target on, on any of the hosts.
    fn movers(&self) -> Vec<i32> {
        let places = format!("MIGRATE_PLACES={}", self.dir.path().display());
        let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        let is = |pid: &i32| {
            let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&read("cmdline")).contains("cascade-process")
                && String::from_utf8_lossy(&read("environ")).contains(&places)
        };
        pids.filter(is).collect()
    }
}

/// The events of this kind.
fn events(output: &Output, kind: &str) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["event"] == kind).collect()
}

#[test]
fn it_goes_on_to_the_last_stage() {
    if !can_move() {
        return;
    }
    for mode in ["auto", "post-copy", "stop-and-copy"] {
        let hosts = Hosts::of(3);
        let output =
            hosts.moves(&[hosts.address(0), "--mode", mode, "--then", hosts.address(1), "--then", hosts.address(2)]);
        assert!(output.status.success(), "{mode}: {}", text(&output));
        let result = result(&output);
        assert_eq!(result["where"].as_str(), Some(hosts.address(2)), "{result}");
        let pid = hosts.check(mode);
        assert_eq!(result["pid"].as_i64(), Some(pid.into()), "{result}");
        let stages = result["stages"].as_array().unwrap();
        let of = |key: &str| stages.iter().map(|stage| stage[key].clone()).collect::<Vec<_>>();
        assert_eq!(of("number"), [2, 3]);
        assert_eq!(of("to"), [hosts.address(1), hosts.address(2)]);
        assert_eq!(of("from"), [hosts.address(0), hosts.address(1)]);
        assert!(stages.iter().all(|stage| stage["downtime_us"].as_u64().is_some()), "{stages:?}");
        let said: Vec<_> =
            events(&output, "stage").iter().map(|one| (one["number"].clone(), one["state"].clone())).collect();
        let wanted = [(1, "done"), (2, "begun"), (2, "done"), (3, "begun"), (3, "done")];
        assert_eq!(said, wanted.map(|(number, state)| (number.into(), state.into())));
        // What has moved it on there is a session like any other, with its log.
        let session = stages[0]["session_there"].as_str().unwrap();
        let known = run(on_host(&hosts.host("b")), &["status", session, "--json"]);
        assert!(known.status.success() && hosts.host("b").join(format!("state/logs/{session}.log")).exists());
    }
}

#[test]
fn each_stage_has_several_destinations() {
    if !can_move() {
        return;
    }
    let hosts = Hosts::of(4);
    let list = |a: usize, b: usize| format!("{},{}", hosts.address(a), hosts.address(b));
    let output = hosts.moves(&[&list(0, 1), "--then", &list(2, 3), "--quorum", "2", "--retries", "1"]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    let at = result["where"].as_str().unwrap();
    assert!(at == hosts.address(2) || at == hosts.address(3), "{result}");
    assert_eq!(result["candidates"].as_array().unwrap().len(), 2, "{result}");
    assert_eq!(result["pid"].as_i64(), Some(hosts.check("fan").into()));
}

#[test]
fn a_stage_that_cannot_be_reached_is_refused_before_anything_is_stopped() {
    if !can_move() {
        return;
    }
    let hosts = Hosts::of(2);
    let nobody = format!("unix:{}", hosts.host("nobody.sock").display());
    for stages in [&["--then", nobody.as_str()][..], &["--then", hosts.address(1), "--then", &nobody]] {
        let output = hosts.moves(&[&[hosts.address(0)][..], stages].concat());
        assert_eq!(output.status.code(), Some(3), "{stages:?}: {}", text(&output));
        let blockers = result(&output)["blockers"].clone();
        assert_eq!(blockers[0]["code"], "M0901", "{blockers}");
        assert!(blockers[0]["object"].as_str().unwrap().contains(&nobody), "{blockers}");
        assert_eq!(hosts.check("unreachable").to_string(), hosts.counter.pid());
    }
    // One of two is enough, and of the other a warning tells.
    let both = format!("{nobody},{}", hosts.address(1));
    let output = hosts.moves(&[hosts.address(0), "--then", &both]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(events(&output, "warning").iter().any(|one| one["text"].as_str().unwrap().contains("nobody.sock")));
    assert_eq!(result(&output)["where"].as_str(), Some(hosts.address(1)));
    hosts.check("one of two");
    for wrong in [&["--then", ""][..], &["--then", "b,b"], &["--then", "@nobody"]] {
        let output = hosts.moves(&[&[hosts.address(0)][..], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", text(&output));
    }
}

#[test]
fn a_stage_that_fails_leaves_it_where_it_has_come_to() {
    if !can_move() {
        return;
    }
    let strike: &[(&str, &str)] = &[("MIGRATE_KILL", "destination-armed")];
    let hosts = Hosts::begin(&[&[], strike]);
    let output = hosts.moves(&[hosts.address(0), "--then", hosts.address(1)]);
    assert_eq!(output.status.code(), Some(6), "{}", text(&output));
    let result = result(&output);
    assert_eq!((&result["state"], result["where"].as_str()), (&"running".into(), Some(hosts.address(0))), "{result}");
    let failure = &result["failure"];
    assert!(failure["what"].as_str().unwrap().contains(hosts.address(0)), "{failure}");
    assert!(failure["causes"][0].as_str().unwrap().contains(hosts.address(1)), "{failure}");
    let pid = hosts.check("failed");
    assert_ne!(pid.to_string(), hosts.counter.pid());
    assert!(failure["what"].as_str().unwrap().contains(&pid.to_string()), "{failure}");
}

/// The next stage is tried again as the first one is.
#[test]
fn a_stage_is_tried_again() {
    if !can_move() {
        return;
    }
    let strike: &[(&str, &str)] = &[("MIGRATE_KILL", "destination-armed")];
    let hosts = Hosts::begin(&[&[], strike]);
    let output = hosts.moves(&[hosts.address(0), "--then", hosts.address(1), "--retries", "1"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!hosts.host("once").exists());
    assert_eq!(result(&output)["pid"].as_i64(), Some(hosts.check("again").into()));
}

#[test]
fn whoever_is_forbidden_it_moves_nothing_on() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[agent]\nrefuse-then = true\n").unwrap();
    let hosts = Hosts::begin(&[&[("MIGRATE_CONFIG", config.to_str().unwrap())], &[]]);
    let output = hosts.moves(&[hosts.address(0), "--then", hosts.address(1)]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let blocker = &result(&output)["blockers"][0];
    assert_eq!(blocker["code"], "M0905", "{blocker}");
    assert!(blocker["reason"].as_str().unwrap().contains("--refuse-then"), "{blocker}");
    assert_eq!(hosts.check("forbidden").to_string(), hosts.counter.pid());
    // As the one in the middle of a longer way, too.
    let free = Agent::start(&hosts.host("free"), &format!("unix:{}", hosts.host("free.sock").display()));
    let output = hosts.moves(&[&free.address, "--then", hosts.address(0), "--then", hosts.address(1)]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert_eq!(hosts.check("forbidden further on").to_string(), hosts.counter.pid());
}

/// The host in between shows its own key to the next one, and looks into its own peers file.
#[test]
fn over_tls_with_the_keys_of_the_host_in_between() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts = ["a", "b", "c"].map(|name| dir.path().join(name));
    // The process of a user passes through both.
    for dir in [dir.path(), &hosts[1]] {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o711)).unwrap();
    }
    let [a, b, c] = hosts.clone().map(|host| keys::generate(&host.join("keys"), "x", false).unwrap().fingerprint());
    let peers = |n: usize, text: String| std::fs::write(hosts[n].join("peers"), text).unwrap();
    peers(0, format!("{b} b\n"));
    peers(2, format!("{b} b\n"));
    let agents = [1, 2].map(|n: usize| Agent::start(&hosts[n], &format!("tcp://127.0.0.1:{}", free_port())));
    for (of_a, code) in [("then=refuse", Some(3)), ("user=nobody", Some(3)), ("", Some(0))] {
        peers(1, format!("{a} a {of_a}\n{c} c\n"));
        let counter = Counter::start(1);
        let arguments = ["move", &counter.pid(), &agents[0].address, "--then", &agents[1].address, "--json"];
        let output = run(on_host(&hosts[0]), &arguments);
        assert_eq!(output.status.code(), code, "{of_a}: {}", text(&output));
        counter.check_runs();
        if code == Some(3) {
            let blockers = result(&output)["blockers"].clone();
            let word = of_a.split_inclusive('=').next().unwrap();
            let is_named = |one: &Value| one["code"] == "M0905" && one["reason"].as_str().unwrap().contains(word);
            assert!(blockers.as_array().unwrap().iter().any(is_named), "{of_a}: {blockers}");
            assert_eq!(counter.processes()[0].to_string(), counter.pid());
        } else {
            assert_eq!(result(&output)["pid"].as_i64(), Some(counter.processes()[0].into()));
            assert_eq!(result(&output)["where"].as_str(), Some(agents[1].address.as_str()));
        }
    }
    // c does not know a.
    let counter = Counter::start(1);
    let output = run(on_host(&hosts[0]), &["move", &counter.pid(), &agents[1].address, "--json"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
}

/// Whoever was to move it on is killed: it runs where it has come to, or where it was going, and a person is told where to look.
#[test]
fn a_host_in_between_whose_program_is_killed_has_the_target() {
    if !can_move() {
        return;
    }
    for (point, moves) in
        [("destination-passes", false), ("source-ready", false), ("source-held", false), ("source-committed", true)]
    {
        let strike: &[(&str, &str)] = &[("MIGRATE_KILL", point)];
        let hosts = Hosts::begin(&[strike, &[]]);
        let output = hosts.moves(&[hosts.address(0), "--then", hosts.address(1)]);
        assert!(!hosts.host("once").exists(), "{point} was not reached: {}", text(&output));
        assert_eq!(output.status.code(), Some(4), "{point}: {}", text(&output));
        let failure = &result(&output)["failure"];
        assert!(failure["hint"].as_str().unwrap().contains(hosts.address(0)), "{point}: {failure}");
        let pid = hosts.check(point);
        assert_ne!(pid.to_string(), hosts.counter.pid(), "{point}");
        let come = failure["what"].as_str().unwrap().contains(&format!("process {pid},"));
        assert_eq!(come, !moves, "{point}: {pid} {failure}");
    }
}

/// It is moved on all the same when nobody waits for that, and rolled back when whoever waits wants an end.
#[test]
fn a_source_may_go_and_may_interrupt() {
    if !can_move() {
        return;
    }
    for (signal, goes_on) in [(Signal::SIGKILL, true), (Signal::SIGINT, false)] {
        let hosts = Hosts::of(2);
        let hook = "pre-freeze=sleep 2";
        let mut command = hosts.command("move", &[hosts.address(0), "--then", hosts.address(1), "--hook", hook]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let is_begun = |line: &String| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["event"] == "stage" && event["number"] == 2
        };
        assert!(lines.any(|line| is_begun(&line)));
        let middle = hosts.counter.processes()[0];
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let rest: Vec<String> = lines.collect();
        let status = child.wait().unwrap();
        if goes_on {
            wait_for(|| hosts.counter.processes().first().filter(|pid| **pid != middle).copied(), "it goes on");
        } else {
            assert_eq!(status.code(), Some(6), "{rest:?}");
            let result: Value = serde_json::from_str(rest.last().unwrap()).unwrap();
            assert_eq!(result["where"].as_str(), Some(hosts.address(0)), "{result}");
        }
        let pid = hosts.check(signal.as_str());
        assert_eq!(pid == middle, !goes_on, "{signal}");
    }
}

#[test]
fn a_warm_one_goes_on_after_its_switch() {
    if !can_move() {
        return;
    }
    let hosts = Hosts::of(2);
    let output = run(hosts.command("warm", &[hosts.address(0), "--then", hosts.address(1)]), &[]);
    assert!(output.status.success(), "{}", text(&output));
    let session = result(&output)["session"].as_str().unwrap().to_owned();
    let output = run(on_host(&hosts.host("a")), &["switch", &session, "--now", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    assert_eq!(result["where"].as_str(), Some(hosts.address(1)), "{result}");
    assert_eq!(result["pid"].as_i64(), Some(hosts.check("warm").into()));
}

/// A host in between has its own network, and so has a client: the connection goes along, and the address from interface to interface.
#[test]
fn a_connection_and_its_address_go_all_the_way() {
    if !can_move() {
        return;
    }
    let Some(served) = Served::begin(1) else { return };
    let host = |name: &str| served.dir.path().join(name);
    let last =
        Agent::start_by(served.networks.inside(0, "env"), &host("c"), &format!("unix:{}", host("c.sock").display()));
    let mut source = served.source();
    source.args(["move", &served.server.0.id().to_string(), "--move-address", "10.77.0.100/24@eth0", "--json"]);
    let middle = format!("unix:{}", host("agent1.sock").display());
    let output = run(source, &[&middle, "--then", &last.address]);
    assert!(output.status.success(), "{}", text(&output));
    let result = result(&output);
    let new = Ended(result["pid"].as_i64().unwrap().try_into().unwrap());
    assert_eq!(result["where"].as_str(), Some(last.address.as_str()));
    let network = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(network(new.0.to_string()), network(last.pid().to_string()));
    served.check("over a host in between");
}
