//! Commands at the points of a move, on both sides.

use crate::moves::{Agent, Counter, can_move, on_host, run, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a hook writes: point, side, and which process ids it was told.
const SAYS: &str = "echo $MIGRATE_HOOK $MIGRATE_SIDE ${MIGRATE_TARGET_PID:+target} ${MIGRATE_DEST_PID:+dest}";

const POINTS: [&str; 8] =
    ["preflight", "pre-freeze", "frozen", "pre-commit", "network", "running", "rolled-back", "done"];

/// Lines of a file, once there are so many.
fn lines(path: &Path, wanted: usize) -> Vec<String> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        if lines.len() >= wanted {
            return lines;
        }
        assert!(Instant::now() < until, "{lines:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Moves a counter with a hook at every point; what was said by the given hooks, and by the one in the directory of the
/// second host at `running`.
fn moved(more: &[&str], wanted: usize) -> (Counter, std::process::Output, Vec<String>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let of_host = dir.path().join("b/hooks.d/running");
    fs::create_dir_all(&of_host).unwrap();
    let script = format!("#!/bin/sh\necho of the host, $MIGRATE_SESSION >> {}\n", dir.path().join("host").display());
    fs::write(of_host.join("10-tell"), script).unwrap();
    fs::set_permissions(of_host.join("10-tell"), fs::Permissions::from_mode(0o755)).unwrap();
    let address = format!("unix:{}", dir.path().join("agent.sock").display());
    let _agent = Agent::start(&dir.path().join("b"), &address);
    let counter = Counter::start(1);
    let given = POINTS.map(|point| format!("{point}={SAYS} >> {}", said.display()));
    let mut arguments = vec!["move".to_owned(), counter.pid(), address, "--json".to_owned()];
    arguments.extend(["--report".to_owned(), dir.path().join("report.html").display().to_string()]);
    for hook in given.iter().map(String::as_str).chain(more.iter().copied()) {
        arguments.extend(["--hook".to_owned(), hook.to_owned()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = run(on_host(&dir.path().join("a")), &arguments);
    let said = lines(&said, wanted);
    (counter, output, said, dir)
}

#[test]
fn each_point_has_its_side_and_its_turn() {
    if !can_move() {
        return;
    }
    let (counter, output, said, dir) = moved(&[], 10);
    assert!(output.status.success(), "{}", text(&output));
    counter.check_runs();
    let of = |side: &str| said.iter().filter(|line| line.contains(side)).map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        of("source"),
        [
            "preflight source target",
            "pre-freeze source target",
            "frozen source target",
            "network source target",
            "pre-commit source target",
            "done source target dest",
        ]
    );
    assert_eq!(
        of("destination"),
        [
            "preflight destination target",
            "network destination target dest",
            "running destination target dest",
            "done destination target dest",
        ]
    );
    let host = lines(&dir.path().join("host"), 1);
    let events: Vec<serde_json::Value> =
        text(&output).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let hooks: Vec<_> = events.iter().filter(|event| event["event"] == "hook").collect();
    let (points, ends) = hooks
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[begun, ended]| {
            assert_eq!((&begun["state"], &begun["name"]), (&"begun".into(), &ended["name"]), "{hooks:?}");
            assert!(begun["name"].as_str().is_some_and(|name| name.starts_with("echo $MIGRATE_HOOK")), "{begun}");
            assert!(ended["state"] == "ended" && ended["took_us"].as_u64().is_some_and(|took| took > 0), "{ended}");
            (ended["point"].as_str().unwrap(), ended["exit_code"].as_i64())
        })
        .unzip::<_, _, Vec<_>, Vec<_>>();
    assert_eq!(points, ["preflight", "pre-freeze", "frozen", "network", "pre-commit", "done"]);
    assert_eq!(ends, [Some(0); 6]);
    let at = |kind: &str| events.iter().position(|event| event["event"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.contains("hook at pre-commit: echo $MIGRATE_HOOK"), "{page}");
    assert!(at("hook") < at("switched"), "they are told as they happen");
    let session = host[0].strip_prefix("of the host, ").unwrap();
    assert!(text(&output).contains(&format!("\"session\":\"{session}\"")), "{host:?}");
}

#[test]
fn one_that_fails_before_the_handover_rolls_back() {
    if !can_move() {
        return;
    }
    for (point, sides) in [("preflight", 0), ("pre-freeze", 2), ("frozen", 2), ("network", 2), ("pre-commit", 2)] {
        let failing = format!("{point}=echo no >&2; test $MIGRATE_SIDE = destination");
        let before = POINTS.iter().position(|known| *known == point).unwrap();
        let (counter, output, said, _dir) = moved(&[&failing], before.max(1));
        assert_eq!(output.status.code(), Some(1), "{point}: {}", text(&output));
        assert!(text(&output).contains(&format!("the hook at {point} failed")), "{}", text(&output));
        counter.check_runs();
        assert_eq!(counter.processes().len(), 1, "{point}");
        let until = Instant::now() + Duration::from_secs(30);
        let back = || {
            let text = fs::read_to_string(_dir.path().join("said")).unwrap_or_default();
            text.lines().filter(|line| line.starts_with("rolled-back")).count()
        };
        while back() < sides {
            assert!(Instant::now() < until, "{point}: {said:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let text = fs::read_to_string(_dir.path().join("said")).unwrap();
        assert!(!text.contains("running") && !text.contains("done"), "{text}");
    }
}

#[test]
fn one_that_fails_later_is_a_warning() {
    if !can_move() {
        return;
    }
    let (counter, output, ..) = moved(&["running=exit 3", "done=test $MIGRATE_SIDE = destination"], 10);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("the hook at done failed"), "{}", text(&output));
    counter.check_runs();
}
