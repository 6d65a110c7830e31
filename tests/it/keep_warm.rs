//! `--keep-warm`: the destinations that have not got the target stay up to date, from the one that has.

use crate::cli::warnings;
use crate::handover::wait;
use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use crate::relay::Star;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const ALL: [&str; 3] = ["b", "c", "d"];

/// The name of the host that has this address.
fn host_of(star: &Star, url: &str) -> &'static str {
    ALL.into_iter().find(|name| star.url(name) == url).unwrap_or_else(|| panic!("{url}"))
}

/// A command of ours at one of the hosts.
fn at(star: &Star, host: &str, words: &[&str]) -> Output {
    let mut command = star.inside(host);
    command.arg(PROGRAM).args(words).arg("--json").env("MIGRATE_PLACES", star.places(host));
    run(command, &[])
}

/// Destinations of the session that have everything.
fn up_to_date(star: &Star, host: &str, session: &str) -> Vec<String> {
    let status = result(&at(star, host, &["status", session]))["sessions"][0].clone();
    let all = status["warm"]["candidates"].as_array().cloned().unwrap_or_default();
    let there = all.iter().filter(|one| one["state"] == "up-to-date");
    there.map(|one| one["dest"].as_str().unwrap().to_owned()).collect()
}

/// Bytes that the session has sent to each.
fn bytes_sent(star: &Star, host: &str, session: &str) -> Vec<u64> {
    let status = result(&at(star, host, &["status", session]))["sessions"][0].clone();
    let all = status["warm"]["candidates"].as_array().cloned().unwrap_or_default();
    all.iter().map(|one| one["bytes_sent"].as_u64().unwrap()).collect()
}

/// Pages that are kept at a host.
fn kept_pages(star: &Star, host: &str) -> usize {
    let files = std::fs::read_dir(star.places(host).join("state/moves")).into_iter().flatten().flatten();
    files.filter(|file| file.file_name().to_string_lossy().ends_with(".kept")).count()
}

/// Where the target is, and the session that keeps the others warm.
fn kept(star: &Star, output: &Output) -> (&'static str, String, Vec<String>) {
    assert!(output.status.success(), "{}", text(output));
    let result = result(output);
    let kept = &result["keep_warm"];
    assert_eq!(kept["host"], result["host"], "{result}");
    let dests = kept["dests"].as_array().unwrap().iter().map(|dest| dest.as_str().unwrap().to_owned()).collect();
    (host_of(star, result["host"].as_str().unwrap()), kept["session"].as_str().unwrap().to_owned(), dests)
}

#[test]
fn losers_stay_warm_and_the_target_goes_on_to_one_of_them() {
    let Some(star) = Star::make() else { return };
    let _agents = ALL.map(|name| star.agent(name));
    for options in [&["--mode", "pre-copy"][..], &["--mode", "post-copy"], &["--fanout-tree", "1"]] {
        // Memory that cannot be made smaller.
        let pages = 5000;
        let target = star.target(pages);
        let output = star.moves(&target, &ALL, &[&["--keep-warm"], options].concat());
        let (host, session, dests) = kept(&star, &output);
        assert_eq!(warnings(&output), "", "{options:?}");
        let others: Vec<String> = ALL.iter().filter(|name| **name != host).map(|name| star.url(name)).collect();
        assert_eq!(dests, others, "{options:?}");
        target.check_runs();
        wait(|| up_to_date(&star, host, &session).len() == 2, "both others are up to date");
        let sent = bytes_sent(&star, host, &session);
        println!("{options:?}: {sent:?} bytes");
        // Where memory has followed, they had little of it.
        let is_named = !options.contains(&"post-copy");
        let all = u64::from(pages) * 4096;
        assert!(sent.iter().all(|bytes| !is_named || *bytes < all / 4), "what they have is named: {sent:?} bytes");
        assert_eq!(ALL.iter().map(|name| kept_pages(&star, name)).sum::<usize>(), if is_named { 2 } else { 0 });
        let to = &others[1];
        let output = at(&star, host, &["switch", &session, to]);
        assert!(output.status.success(), "{options:?}: {}", text(&output));
        assert_eq!(result(&output)["host"].as_str(), Some(to.as_str()));
        star.check(&target, "switched to one that had lost before");
        wait(|| ALL.iter().all(|name| kept_pages(&star, name) == 0), "nothing is kept any more");
    }
}

/// What is said for a person has the id, and the session ends like any other.
#[test]
fn the_session_is_told_to_a_person_and_is_cancelled_where_it_is() {
    let Some(star) = Star::make() else { return };
    let _agents = ["b", "c"].map(|name| star.agent(name));
    let target = star.target(300);
    let output = run(star.command("move", &target, &["b", "c"], &["--keep-warm"]), &[]);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    let line = said.lines().find(|line| line.trim_start().starts_with("warm ")).unwrap_or_else(|| panic!("{said}"));
    let host = if line.contains(&format!("from {}", star.url("b"))) { "b" } else { "c" };
    let session = line.split("session ").nth(1).unwrap().split(':').next().unwrap().to_owned();
    wait(|| up_to_date(&star, host, &session).len() == 1, "the other one is up to date");
    let output = at(&star, host, &["cancel", &session]);
    assert!(output.status.success(), "{}", text(&output));
    star.check(&target, "cancelled");
    wait(|| kept_pages(&star, "b") + kept_pages(&star, "c") == 0, "nothing is kept any more");
}

/// The target is where it has come to, whatever becomes of the others.
#[test]
fn what_keeps_nobody_warm_is_said_and_the_move_is_done() {
    let Some(star) = Star::make() else { return };
    let forbids = |name: &str| {
        let mut command = star.inside(name);
        command.args(["sh", "-c", "exec \"$@\" --allow-plain --refuse-then", "sh"]);
        Agent::start_by(command, &star.places(name), &star.url(name))
    };
    let _agents = ["b", "c"].map(forbids);
    let target = star.target(300);
    let output = star.moves(&target, &["b", "c"], &["--keep-warm"]);
    assert!(output.status.success() && result(&output)["keep_warm"].is_null(), "{}", text(&output));
    assert!(warnings(&output).contains("--refuse-then"), "{}", warnings(&output));
    assert!(warnings(&output).contains("nobody is kept warm by"), "{}", warnings(&output));
    star.check(&target, "forbidden");
    let target = star.target(100);
    let output = star.moves(&target, &["b"], &["--keep-warm"]);
    assert!(output.status.success() && warnings(&output).is_empty(), "{}", text(&output));
    assert!(result(&output)["notes"].to_string().contains("there was one destination"), "{}", text(&output));
    star.check(&target, "one destination");
}

/// A switch keeps those warm that it has not chosen, as a move does.
#[test]
fn those_that_a_switch_has_not_chosen_stay_warm() {
    let Some(star) = Star::make() else { return };
    let _agents = ["b", "c"].map(|name| star.agent(name));
    let target = star.target(500);
    let output = run(star.command("warm", &target, &["b", "c"], &["--keep-warm"]), &[]);
    assert!(output.status.success(), "{}", text(&output));
    let first = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    wait(|| up_to_date(&star, "s", &first).len() == 2, "both are up to date");
    let output = at(&star, "s", &["switch", &first, &star.url("c")]);
    let (host, session, dests) = kept(&star, &output);
    assert_eq!((host, dests), ("c", vec![star.url("b")]));
    wait(|| up_to_date(&star, "c", &session).len() == 1, "the other one is up to date again");
    let output = at(&star, "c", &["switch", &session]);
    assert!(output.status.success(), "{}", text(&output));
    star.check(&target, "switched twice");
}

#[test]
fn who_cannot_keep_others_warm_is_refused() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let counter = Counter::start(1);
    let pid = counter.pid();
    for (words, says) in [
        (&["move", &pid, "b", "c", "--then", "d"][..], "a target that moves on"),
        (&["clone", &pid, "b", "c"], "no destination of a clone"),
        (&["move", &pid, "b", "local"], "another host wherever"),
    ] {
        let mut command: Command = on_host(&dir.path().join("s"));
        command.args(words);
        let output = run(command, &["--keep-warm"]);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{words:?}: {}", text(&output));
    }
    counter.check_runs();
}
