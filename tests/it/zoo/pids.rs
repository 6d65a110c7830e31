//! Process ids that are taken: refused, or the tree gets a PID namespace of its own.

use super::harness::{Run, Scenario};
use super::tools::compiled;

const TARGET: Scenario = Scenario { fixture: "tree", case: "plain", ignore: &[], allow: "", busy: false, timed: false };

fn saved() -> Option<Run<'static>> {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("process ids that are taken: needs root");
        return None;
    }
    let fixture = compiled(TARGET.fixture).expect("gcc is there");
    let run = Run::start(&TARGET, &fixture);
    run.ready().expect("it sets up");
    std::thread::sleep(std::time::Duration::from_millis(20));
    run.dump(run.pid(), 0, &["--leave-running"]).expect("it can be saved");
    Some(run)
}

#[test]
fn same_refuses_and_names_who_has_the_id() {
    let Some(run) = saved() else { return };
    let failure = run.restore(0, &["--pids", "same"]).expect_err("the original runs");
    assert!(failure.contains("M0106") && failure.contains(&format!("pid {}", run.pid())), "{failure}");
    assert!(failure.contains("tree has it"), "{failure}");
    assert_eq!(super::harness::marked(run.dir.path()), [run.pid()]);
    run.verify().expect("the original has not noticed");
}

#[test]
fn auto_takes_a_namespace_and_says_so() {
    let Some(run) = saved() else { return };
    let original = run.pid();
    let pid = run.restore(0, &["--pids", "auto"]).expect("in a namespace of its own");
    assert_ne!(pid, original);
    let said = std::fs::read_to_string(run.dir.path().join("log")).unwrap_or_default();
    assert!(said.contains("PID namespace of its own"), "{said}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let inside = status.lines().find_map(|l| l.strip_prefix("NSpid:")).map(str::to_owned).unwrap_or_default();
    assert_eq!(inside.split_whitespace().last(), Some(original.to_string().as_str()), "{inside}");
    // /proc inside is that of the namespace: the tree sees itself under its old number.
    let seen = std::fs::read_link(format!("/proc/{pid}/root/proc/{original}/exe")).expect("a /proc of its own");
    assert!(seen.ends_with("tree"), "{}", seen.display());
    // The copy alone: the original would answer as well.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(original), nix::sys::signal::SIGKILL).expect("it is ours");
    run.verify().expect("it sees the same numbers");
}

/// Restores in the foreground a target that ends at once: what the command ends with.
fn foreground(case: &'static str, pids: &str) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("a restore in the foreground: needs root");
        return None;
    }
    let scenario = Scenario { case, ..TARGET };
    let fixture = compiled(scenario.fixture).expect("gcc is there");
    let run = Run::start(&scenario, &fixture);
    run.ready().expect("it sets up");
    std::thread::sleep(std::time::Duration::from_millis(20));
    run.dump(run.pid(), 0, &[]).expect("it can be saved");
    std::fs::write(run.dir.path().join("go"), "").expect("it is ours");
    let args = ["restore", "--pids", pids, "-D"].map(str::to_owned).into_iter();
    let image = run.image(0).display().to_string();
    let ended = run.migrate(&args.chain([image]).collect::<Vec<_>>(), &[]);
    Some(ended.expect_err("neither of them ends with 0"))
}

#[test]
fn in_the_foreground_a_restore_ends_as_the_root_exits() {
    for pids in ["same", "new"] {
        let Some(ended) = foreground("exits_with_7", pids) else { return };
        assert!(ended.starts_with("exit status: 7:"), "{pids}: {ended}");
    }
}

#[test]
fn in_the_foreground_a_signal_that_ends_the_root_is_told() {
    for pids in ["same", "new"] {
        let Some(ended) = foreground("killed_by_term", pids) else { return };
        assert!(ended.starts_with("exit status: 143:"), "{pids}: {ended}");
    }
}
