//! A failure at any of the named places: the target goes on, nothing of a half-made tree is left.

use super::harness::{Run, Scenario, marked};
use super::tools::compiled;
use migrate_engine::fault::Point;

/// A tree with threads' worth of everything: sessions, groups and a stopped child are in others, a shared page in this.
const TARGET: Scenario =
    Scenario { fixture: "memory", case: "shared_memory", ignore: &[], allow: "", busy: false, timed: false };

fn prepared(run: &Run<'_>) -> bool {
    run.ready().expect("it sets up");
    std::thread::sleep(std::time::Duration::from_millis(20));
    true
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::skip!("faults: needs root");
    }
    root
}

#[test]
fn a_dump_that_fails_anywhere_leaves_the_target_running() {
    if !root() {
        return;
    }
    let fixture = compiled(TARGET.fixture).expect("gcc is there");
    let points = Point::ALL.iter().filter(|p| p.name().starts_with("dump-"));
    let run = Run::start(&TARGET, &fixture);
    assert!(prepared(&run));
    let before = marked(run.dir.path());
    for (n, point) in points.enumerate() {
        let image = run.image(n).display().to_string();
        let mut args = vec!["dump".to_owned(), run.pid().to_string(), "-D".to_owned(), image];
        args.extend((*point == Point::DumpSnapshot).then(|| "--snapshot".to_owned()));
        let failure = run.migrate(&args, &[("MIGRATE_FAULT", point.name())]).expect_err(point.name());
        assert!(failure.contains(point.name()), "{failure}");
        assert!(failure.contains("target: still running"), "{failure}");
        assert_eq!(marked(run.dir.path()), before, "{}", point.name());
        assert_eq!(run.image(n).join("manifest.json").exists(), *point == Point::DumpCommitted, "{}", point.name());
    }
    run.verify().expect("it has not noticed");
}

#[test]
fn a_restore_that_fails_anywhere_leaves_nothing_behind() {
    if !root() {
        return;
    }
    let fixture = compiled(TARGET.fixture).expect("gcc is there");
    let run = Run::start(&TARGET, &fixture);
    assert!(prepared(&run));
    run.dump(run.pid(), 0, &[]).expect("it can be saved");
    let image = run.image(0).display().to_string();
    for pids in ["same", "new"] {
        for point in Point::ALL.iter().filter(|p| p.name().starts_with("restore-")) {
            let args = ["restore", "-D", &image, "--detach", "--pids", pids].map(str::to_owned);
            let failure = run.migrate(&args, &[("MIGRATE_FAULT", point.name())]).expect_err(point.name());
            assert!(failure.contains(point.name()), "{failure}");
            // Those that were killed go as soon as they are scheduled.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while !marked(run.dir.path()).is_empty() && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            run.reap();
            assert_eq!(marked(run.dir.path()), Vec::<i32>::new(), "{} leaves something behind", point.name());
        }
    }
    run.restore(0, &["--pids", "same"]).expect("the image is as good as before");
    run.verify().expect("and so is the tree");
}
