//! Two hosts whose clocks are 10^6 s apart, as far as one kernel can be both: engine and target are in a time namespace at
//! the source, or the engine alone is in one at the destination. What the target reads goes on all the same.

use super::harness::{Run, Scenario};
use super::tools::{adopt_orphans, compiled};
use std::process::Command;

/// Seconds that CLOCK_MONOTONIC and CLOCK_BOOTTIME of a host are ahead of ours; `None`: they are ours.
type Ahead = Option<i64>;

const FAR: i64 = 1_000_000;

/// Where the target is ([`super`]'s cases `clocks`), whether the engine that saves it is there as well, and the host that
/// it comes to.
fn journeys() -> [(&'static str, bool, Ahead); 5] {
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("every host has it");
    let just_begun = Some(60 - uptime.tv_sec());
    [
        ("ahead", true, None),
        ("behind", true, None),
        ("as_the_host", false, Some(FAR)),
        ("as_the_host", false, just_begun),
        ("ahead", true, just_begun),
    ]
}

/// What starts a program on such a host.
fn on(host: Ahead) -> String {
    host.map_or(String::new(), |s| format!("unshare --time --monotonic {s} --boottime {s} "))
}

fn each(go: impl Fn(&Run<'_>, &str, Ahead) -> Result<(), String>) {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/proc/self/ns/time").exists() {
        crate::skip!("hosts with other clocks: needs root and time namespaces");
        return;
    }
    adopt_orphans();
    let fixture = compiled("clocks").expect("gcc is there");
    for (case, engine_too, to) in journeys() {
        let target = Scenario { fixture: "clocks", case, ignore: &[], allow: "", busy: true, timed: false };
        let run = Run::start(&target, &fixture);
        run.ready().expect("it sets up");
        let pid = run.pid();
        let here = if engine_too { format!("nsenter --time=/proc/{pid}/ns/time ") } else { String::new() };
        let done = go(&run, &here, to).and_then(|()| run.verify());
        done.unwrap_or_else(|e| panic!("{case}, with its engine: {engine_too}, to {to:?}: {e}{}", run.state()));
    }
}

/// Our program, started by another one.
fn engine(by: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {by}\"$0\" \"$@\""), env!("CARGO_BIN_EXE_migrate")]);
    command
}

#[test]
fn what_is_restored_reads_clocks_that_go_on() {
    each(|run, here, to| {
        let (root, image, file) = (run.pid(), run.image(0).display().to_string(), run.path("pid"));
        run.note_tree(root);
        run.wait_for(engine(here), &["dump", &root.to_string(), "-D", &image].map(str::to_owned), &[])?;
        run.reap();
        let file = file.display().to_string();
        let restore = ["restore", "-D", &image, "--detach", "--pids", "same", "--pidfile", &file];
        run.wait_for(engine(&on(to)), &restore.map(str::to_owned), &[]).map(drop)
    });
}

#[test]
fn what_has_moved_reads_clocks_that_go_on() {
    each(|run, here, to| run.moved_by(run.pid(), engine(here), &on(to)).map(drop));
}
