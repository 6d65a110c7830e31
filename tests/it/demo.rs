//! `migrate demo`: the main job with a client that watches it, in both modes.

use std::process::Command;

fn demo(mode: &str) {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("demo {mode}: network namespaces with a bridge need root here");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_migrate")).args(["demo", "--mode", mode]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{mode}: {text}\n{errors}");
    assert!(text.contains("bytes lost       0") && text.contains("resets           0"), "{text}");
    assert!(text.contains("host-a, then host-b"), "{text}");
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
