//! `migrate demo`: the main job with a client that watches it, in both modes.

use std::process::Command;
use std::time::{Duration, Instant};

fn demo(mode: &str) {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("demo {mode}: network namespaces with a bridge need root here");
        return;
    }
    let began = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_migrate")).args(["demo", "--mode", mode]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{mode}: {text}\n{errors}");
    assert!(text.contains("bytes lost       0") && text.contains("resets           0"), "{text}");
    assert!(text.contains("host-a, then host-b"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
    is_told_as_it_happens(&text);
}

/// A line every 100 ms with host, counter and round trip, and the pause.
fn is_told_as_it_happens(text: &str) {
    let lines = text.lines().filter(|line| line.contains("counter")).map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let time: f64 = words[0].parse().unwrap();
        assert_eq!((words[1], words[3], words[5], words[6]), ("s", "counter", "round", "trip"), "{line}");
        (time, words[2].to_owned(), words[4].parse::<u64>().unwrap())
    });
    let lines: Vec<_> = lines.collect();
    assert!(lines.len() >= 20, "{text}");
    for pair in lines.windows(2) {
        // A busy machine may be late with one.
        assert!(pair[1].0 > pair[0].0 && pair[1].0 - pair[0].0 < 1.0, "{pair:?}");
        assert!(pair[1].2 >= pair[0].2, "the counter goes back: {pair:?}");
        assert!(pair[1].1 >= pair[0].1, "it is where it was before: {pair:?}");
    }
    assert_eq!((lines[0].1.as_str(), lines[lines.len() - 1].1.as_str()), ("host-a", "host-b"));
    assert!(
        text.contains("$ migrate move") && text.contains("moved, pause ") && text.contains("longest gap"),
        "{text}"
    );
}

#[test]
fn nothing_is_lost_by_stop_and_copy() {
    demo("stop-and-copy");
}

#[test]
fn nothing_is_lost_by_pre_copy() {
    demo("pre-copy");
}

/// One copy goes on, whatever is cut off in the moment of handing over.
fn accident(what: &str, answered_by: &str) {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("demo --kill {what}: network namespaces with a bridge need root here");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_migrate")).args(["demo", "--kill", what]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {text}\n{errors}");
    assert!(text.lines().any(|line| line.trim() == answered_by), "{text}");
}

#[test]
fn a_killed_source_has_handed_over() {
    accident("source", "answered by      host-a, then host-b");
}

#[test]
fn a_killed_destination_leaves_it_where_it_was() {
    accident("destination", "answered by      host-a");
}

#[test]
fn a_cut_link_is_found_again() {
    accident("link", "answered by      host-a, then host-b");
}
