//! `--fanout-tree`: destinations that pass on what they get, each in a network of its own, on one bridge.

use crate::cli::warnings;
use crate::fan::became;
use crate::handover::wait;
use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use crate::places::{free_port, stand_in_for_ssh};
use crate::relay::{DESTINATIONS, Star, attempts, files};
use migrate_engine::transport::keys;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// Who has passed on what each has got.
fn vias(output: &Output) -> Vec<Vec<String>> {
    let result = result(output);
    let words = |one: &serde_json::Value| {
        let via = one["via"].as_array().cloned().unwrap_or_default();
        via.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    result["candidates"].as_array().unwrap_or_else(|| panic!("{result}")).iter().map(words).collect()
}

fn urls(star: &Star, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| star.url(name)).collect()
}

/// At each host what is for several leaves it once for each that it sends to.
#[test]
fn what_passes_from_one_to_the_next_leaves_each_host_once() {
    let Some(star) = Star::make() else { return };
    let agents = DESTINATIONS.map(|name| star.agent(name));
    let limit = "tc qdisc add dev eth0 root tbf rate 400mbit burst 128k latency 20ms";
    assert!(star.inside("s").args(limit.split(' ')).status().unwrap().success());
    let carried = |to: &[&str], options: &[&str]| {
        let target = star.target(6000);
        let all = || ["s", "b", "c", "d", "e"].map(|name| star.sent(name));
        let before = all();
        let output = star.moves(&target, to, &[&["--compress", "off", "--mode", "pre-copy"], options].concat());
        assert!(output.status.success(), "{}", text(&output));
        let after = all();
        star.check(&target, "moved");
        (std::array::from_fn::<_, 5, _>(|n| after[n] - before[n]), output)
    };
    let ([alone, ..], _) = carried(&["b"], &["--fanout-tree", "1"]);
    let once = |bytes: u64, times: u64, what: &str| {
        println!("{what}: {bytes} bytes, {:.2} x", bytes as f64 / alone as f64);
        assert!(bytes * 10 < alone * times * 11, "{what}: {bytes} bytes, {alone} to one directly");
    };
    let (chain, output) = carried(&DESTINATIONS, &["--fanout-tree", "1"]);
    assert_eq!(warnings(&output), "");
    for (n, name) in ["the source", "b", "c", "d"].iter().enumerate() {
        once(chain[n], 1, name);
    }
    assert!(chain[4] * 10 < alone, "the last one passes on nothing: {}", chain[4]);
    assert_eq!(vias(&output), [vec![], urls(&star, &["b"]), urls(&star, &["b", "c"]), urls(&star, &["b", "c", "d"])]);
    let became = became(&result(&output));
    assert_eq!(became.iter().filter(|one| *one == "stopped").count(), 3, "{became:?}");
    let said = result(&output)["bytes_sent"].as_u64().unwrap();
    assert!(said < chain[0] && said * 11 > chain[0] * 10, "{said} are reported");
    let (tree, output) = carried(&DESTINATIONS, &["--fanout-tree", "2"]);
    once(tree[0], 2, "the source, to two");
    once(tree[1], 2, "b, to two");
    assert_eq!(vias(&output), [vec![], vec![], urls(&star, &["b"]), urls(&star, &["b"])]);
    let said = result(&output)["bytes_sent"].as_u64().unwrap();
    assert!(said < tree[0] && said * 11 > tree[0] * 10, "{said} are reported");
    let (flat, output) = carried(&DESTINATIONS, &["--fanout-tree", "4"]);
    assert!(flat[0] > alone * 3 && vias(&output).iter().all(Vec::is_empty), "nobody is left to pass on to: {flat:?}");
    drop(agents);
}

#[test]
fn each_mode_comes_through_a_tree() {
    let Some(star) = Star::make() else { return };
    let _agents = DESTINATIONS.map(|name| star.agent(name));
    for (verb, mode, to, fanout) in [
        ("move", "stop-and-copy", &["b", "c"][..], "1"),
        ("move", "post-copy", &["b", "c", "d"], "1"),
        ("move", "hybrid", &["b", "c", "d"], "2"),
        ("move", "auto", &DESTINATIONS, "1"),
    ] {
        let target = star.target(2000);
        let output = run(star.command(verb, &target, to, &["--fanout-tree", fanout, "--mode", mode]), &["--json"]);
        let what = format!("{mode} to {} by {fanout}", to.len());
        assert!(output.status.success(), "{what}: {}", text(&output));
        assert_eq!(warnings(&output), "", "{what}");
        star.check(&target, &what);
    }
    let target = star.target(100);
    let output = star.moves(&target, &["b", "c"], &["--fanout-tree", "1", "--dry-run"]);
    assert!(output.status.success() && warnings(&output).is_empty(), "{}", text(&output));
    star.check(&target, "a dry run");
}

/// Everything at a host in the middle is killed but its agent: those behind it are lost with it, and whoever is left takes the target; if
/// nobody is, all is sent anew, directly.
#[test]
fn one_in_the_middle_that_dies_is_passed_by() {
    let Some(star) = Star::make() else { return };
    let agents = DESTINATIONS.map(|name| star.agent(name));
    let kills = |name: &str| star.kills(name, &agents[DESTINATIONS.iter().position(|other| *other == name).unwrap()]);
    for (point, dies, to) in [
        ("pre-freeze", "c", &["b", "c", "d"][..]),
        ("frozen", "c", &["b", "c", "d"]),
        ("pre-commit", "c", &["b", "c", "d"]),
        ("pre-freeze", "b", &["b", "c"]),
        ("frozen", "b", &["b", "c", "d"]),
        ("pre-commit", "b", &["b", "c", "d"]),
    ] {
        let (target, kill) = (star.target(1000), kills(dies));
        let hook = format!("{point}={}", kill.command());
        let output = star.moves(&target, to, &["--fanout-tree", "1", "--hook", &hook]);
        let what = format!("{dies} killed at {point} of {}", to.len());
        assert!(output.status.success(), "{what}: {}", text(&output));
        assert!(kill.struck() > 0, "{what}: nobody was there: {}", text(&output));
        if dies == "b" && point != "pre-commit" {
            assert_eq!(attempts(&output), 1, "{what}: {}", text(&output));
            assert!(warnings(&output).contains("all is sent anew, directly"), "{what}: {}", text(&output));
        }
        star.check(&target, &what);
    }
}

#[test]
fn one_that_is_not_there_passes_on_nothing() {
    let Some(star) = Star::make() else { return };
    let _agents = ["c", "d", "e"].map(|name| star.agent(name));
    // The first of all, then one in the middle.
    for (to, via) in [(["b", "c", "d"], "c"), (["c", "b", "d"], "c")] {
        let target = star.target(500);
        let output = star.moves(&target, &to, &["--fanout-tree", "1"]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(warnings(&output).contains(&star.url("b")), "{}", warnings(&output));
        assert_eq!(vias(&output), [vec![], urls(&star, &[via])], "{to:?}");
        assert_eq!(attempts(&output), 0);
        star.check(&target, "one is not there");
    }
}

#[test]
fn destinations_keep_each_other_warm_and_come_back_by_what_is_left() {
    let Some(star) = Star::make() else { return };
    let agents = DESTINATIONS.map(|name| star.agent(name));
    let target = star.target(3000);
    let before = star.sent("s");
    let to = ["b", "c", "d"];
    let output = run(star.command("warm", &target, &to, &["--fanout-tree", "1", "--compress", "off"]), &[]);
    assert!(output.status.success(), "{}", text(&output));
    let session = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let status = || result(&run(on_host(&star.places("s")), &["status", &session, "--json"]))["sessions"][0].clone();
    let up_to_date = || {
        let all = status()["warm"]["candidates"].as_array().cloned().unwrap_or_default();
        all.iter().filter(|one| one["state"] == "up-to-date").count()
    };
    wait(|| up_to_date() == 3, "all are up to date");
    let bytes = star.sent("s") - before;
    assert!(bytes < 3000 * 4096 * 2, "{bytes} bytes for three");
    let kill = star.kills("c", &agents[1]);
    kill.strike();
    assert!(kill.struck() > 0, "nobody keeps the target warm there");
    let came_back = || {
        status()["warm"]["notes"].as_array().is_some_and(|notes| {
            let back = notes.iter().filter(|note| note.as_str().is_some_and(|note| note.contains("is there again")));
            back.count() >= 2
        })
    };
    wait(came_back, "the one that was killed, and the one behind it, are there again");
    wait(|| up_to_date() == 3, "all are up to date again");
    let mut switch = star.inside("s");
    switch.args([PROGRAM, "switch", &session, &star.url("d"), "--json"]).env("MIGRATE_PLACES", star.places("s"));
    let output = run(switch, &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(result(&output)["where"].as_str(), Some(&*star.url("d")));
    star.check(&target, "switched");
}

/// Two are known by the host before them only: the source to the first, the first to the second.
#[test]
fn each_knows_the_one_before_it_by_its_key() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [source, first, second] = ["s", "b", "c"].map(|name| dir.path().join(name));
    let keys = [&source, &first, &second].map(|host| keys::generate(&host.join("keys"), "x", false).unwrap());
    let line = |n: usize, name: &str| format!("{} {name}\n", keys[n].fingerprint());
    std::fs::write(source.join("peers"), line(1, "first")).unwrap();
    std::fs::write(first.join("peers"), line(0, "source") + &line(2, "second")).unwrap();
    std::fs::write(second.join("peers"), line(1, "first")).unwrap();
    let agents = [&first, &second].map(|host| Agent::start(host, &format!("tcp://127.0.0.1:{}", free_port())));
    for mode in ["pre-copy", "post-copy"] {
        let counter = Counter::on_ground(4, 2000);
        let mut command = on_host(&source);
        command.args(["move", &counter.pid()]).args(agents.iter().map(|agent| agent.address.as_str()));
        command.args(["--fanout-tree", "1", "--peer-timeout", "2s", "--mode", mode, "--json"]);
        let output = run(command, &[]);
        assert!(output.status.success(), "{mode}: {}", text(&output));
        assert_eq!(vias(&output), [vec![], vec![agents[0].address.clone()]], "{}", text(&output));
        counter.check_runs();
        wait(|| counter.processes().len() == 1, "one copy is left");
    }
}

/// What holds for a source at a host holds for what it has of itself there, too.
#[test]
fn the_limits_of_an_agent_hold_for_a_destination_that_passes_on() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let small = {
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" --max-memory 1MiB", "sh"]);
        Agent::start_by(command, &dir.path().join("b"), &format!("tcp+plain://127.0.0.1:{}", free_port()))
    };
    let other = Agent::start(&dir.path().join("c"), &format!("tcp+plain://127.0.0.1:{}", free_port()));
    let counter = Counter::on_ground(8, 2000);
    let words = ["move", &counter.pid(), &small.address, &other.address, "--fanout-tree", "1", "--json"];
    let output = run(on_host(&dir.path().join("s")), &words);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(became(&result(&output)), ["out", "owner"], "{}", text(&output));
    counter.check_runs();
    wait(|| counter.processes().len() == 1, "one copy is left");
}

/// Each runs its own ssh to the next.
#[test]
fn destinations_pass_on_by_ssh() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = stand_in_for_ssh(dir.path(), "ssh");
    let counter = Counter::on_ground(2, 500);
    let mut command = on_host(&dir.path().join("a"));
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    command.env("PATH", path).args(["move", &counter.pid(), "b", "c", "d", "--fanout-tree", "1"]);
    let output = run(command, &["--remote", PROGRAM, "--json"]);
    assert!(output.status.success() && warnings(&output).is_empty(), "{}", text(&output));
    assert_eq!(vias(&output), [vec![], vec!["b".to_owned()], vec!["b".to_owned(), "c".to_owned()]]);
    counter.check_runs();
    wait(|| counter.processes().len() == 1, "one copy is left");
    let log = std::fs::read_to_string(&log).unwrap();
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "d")] {
        let line = format!(" {from} -o BatchMode=yes {to} ");
        assert!(log.lines().any(|said| said.contains(&line)), "{from} to {to}: {log}");
    }
}

#[test]
fn what_contradicts_a_tree_is_refused_before_anything_happens() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let counter = Counter::start(1);
    let pid = counter.pid();
    for (words, says) in [
        (&["move", &pid, "b", "c", "--via", "p"][..], "either destinations pass on"),
        (&["move", &pid, "b", "unix:/c"], "on this host"),
        (&["move", &pid, "b", "c", "--alternate", "local"], "on this host"),
        (&["move", &pid, "b", "c", "--disjoint-paths", "drop"], "through other destinations"),
        (&["clone", &pid, "b", "b"], "named twice"),
        (&["warm", &pid, "b", "local"], "on this host"),
    ] {
        let output = run(on_host(&dir.path().join("s")), &[words, &["--fanout-tree", "1"]].concat());
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{words:?}: {}", text(&output));
    }
    counter.check_runs();
    assert!(files(&dir.path().join("s/state/moves")).is_empty(), "nothing was begun");
}
