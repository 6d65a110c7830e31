//! Post-copy when something breaks while pages are missing: the link, the source, the pager.

use super::harness::{Run, Scenario};
use super::late_lost::{SHARED, TARGET, is_lost_and_never_zero, root, state, until};
use super::tools::{adopt_orphans, compiled};
use crate::moves::{Agent, on_host};
use crate::places::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};

/// A target that is being moved to an agent of this test, and runs there already; little of its memory does.
pub(super) struct Moving {
    pub run: Run<'static>,
    pub agent: Agent,
    pub mover: Child,
    pub original: i32,
    pub root: i32,
}

impl Moving {
    fn begin(agent: &[(&str, &str)]) -> Self {
        Self::begin_of(&TARGET, agent, &["--mode", "post-copy"])
    }

    /// With another target, and more options.
    pub fn begin_of(target: &'static Scenario, agent: &[(&str, &str)], options: &[&str]) -> Self {
        adopt_orphans();
        let fixture = compiled(target.fixture).expect("gcc is there");
        let run = Run::start(target, &fixture);
        run.ready().expect("it sets up");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let listen = format!("unix:{}", run.path("agent.sock").display());
        let agent = Agent::start_with(&run.path("places"), &listen, agent);
        let original = run.pid();
        let out = fs::File::create(run.path("moved")).expect("it is ours");
        let errors = out.try_clone().expect("descriptors are left");
        let mut command = on_host(&run.path("source"));
        command.args(["move", &original.to_string(), &agent.address, "--json", "--pids", "new"]);
        command.args(options);
        let mover =
            command.env("MIGRATE_FAULT", "pager-behind").stdin(Stdio::null()).stdout(out).stderr(errors).spawn();
        let mut moving = Self { run, agent, mover: mover.expect("it is there"), original, root: 0 };
        until("it does not switch", || {
            let said = moving.said();
            assert!(!said.contains("\"result\""), "{said}");
            said.contains("\"switched\"").then_some(())
        });
        let copies = || super::marked(moving.run.dir.path()).into_iter().filter(|pid| *pid != original);
        moving.root = until("there is no copy", || copies().find(|pid| is_fixture(*pid, target)));
        moving
    }

    pub fn said(&self) -> String {
        self.run.text("moved").unwrap_or_default()
    }

    /// Processes of ours on either host: what outlives a command, too.
    fn helpers(&self) -> Vec<i32> {
        ["places", "source"].iter().flat_map(|host| self.helpers_on(host)).collect()
    }

    /// On one of them.
    pub fn helpers_on(&self, host: &str) -> Vec<i32> {
        processes(&self.run.path(host))
    }

    /// Every program of the move at the source is killed: its guardian as well.
    pub fn source_dies(&mut self) {
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in self.helpers_on("source") {
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
        self.mover.wait().expect("it is ours");
    }

    /// Session processes of the agent.
    pub fn sessions(&self) -> BTreeSet<i32> {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let parent = |pid: &i32| -> Option<u32> {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
        };
        pids.filter(|pid| parent(pid) == Some(self.agent.pid())).collect()
    }
}

fn is_fixture(pid: i32, target: &Scenario) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == target.fixture)
}

impl Drop for Moving {
    fn drop(&mut self) {
        let _ = self.mover.kill();
        let _ = self.mover.wait();
        // 0: no copy was found; it would be this process and its group.
        let copy = (self.root > 0).then_some(self.root);
        for pid in copy.into_iter().chain([self.original]).chain(self.helpers()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.run.reap();
    }
}

#[test]
fn links_that_are_lost_are_made_anew_and_the_target_waits_meanwhile() {
    if !root() {
        return;
    }
    let mut moving = Moving::begin(&[]);
    let before = moving.sessions();
    assert!(before.len() >= 2, "there are no links for pages: {before:?}");
    for pid in &before {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("it is a process of our agent");
    }
    moving.run.verify().expect("it has all of its memory");
    let status = moving.mover.wait().expect("it is ours");
    assert!(status.success(), "{}", moving.said());
    assert!(moving.said().contains("\"mode\":\"post-copy\""), "{}", moving.said());
    assert!(!matches!(state(moving.original), Some('R' | 'S')), "the original runs");
}

#[test]
fn a_source_that_dies_with_its_guardian_leaves_a_stopped_target_and_never_zeros() {
    if !root() {
        return;
    }
    let mut moving = Moving::begin(&[("MIGRATE_FAULT", "pager-impatient")]);
    moving.source_dies();
    is_lost_and_never_zero(&moving.run, moving.root);
    assert_eq!(state(moving.original), Some('T'), "the original runs although it was handed over");
    // It has memory that nobody else has: it is not ended for the asking.
    let source = moving.run.path("source");
    let status = on_host(&source).args(["status", "--json"]).output().expect("it is there");
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(said.contains("the destination, which needs memory from here"), "{said}");
    let result = said.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let session = result.as_ref().and_then(|r| r["sessions"][0]["session"].as_str()).expect("it has a session");
    let refused = on_host(&source).args(["resolve", session, "--discard", "--yes"]).output().expect("it is there");
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(state(moving.original), Some('T'));
}

#[test]
fn a_pager_that_is_killed_leaves_a_stopped_target_there() {
    if !root() {
        return;
    }
    let moving = Moving::begin(&[("MIGRATE_KILL", "pager-serves")]);
    is_lost_and_never_zero(&moving.run, moving.root);
    assert!(matches!(state(moving.original), Some('t' | 'T')), "the original runs although it was handed over");
}

#[test]
fn memory_of_several_processes_is_sent_once() {
    if !root() {
        return;
    }
    adopt_orphans();
    let target = Scenario { case: "relatives", ..SHARED };
    let run = Run::start(&target, &compiled(target.fixture).expect("gcc is there"));
    run.ready().expect("it sets up");
    std::thread::sleep(std::time::Duration::from_millis(20));
    let said = run.follows("post-copy", true).expect("everything is there in time");
    let last = said.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let number = |key: &str| last.as_ref().and_then(|r| r[key].as_u64()).unwrap_or_else(|| panic!("no {key}: {said}"));
    // Four processes have these 1024 pages, and touch most of them; of their own they have far fewer.
    let (pages, faults) = (number("pages_sent"), number("faults"));
    assert!((1024..2048).contains(&pages), "{pages} pages were sent");
    assert!(faults > 900, "{faults} pages were waited for: they came at once");
}
