//! `migrate restore --on`: an image is restored on other hosts, by the first that is ready or as copies, and stays as it is whatever
//! happens. Each host has an agent with places of its own, on this kernel, or a network of its own.

use crate::fan::{Stage, became};
use crate::handover::wait;
use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use crate::networks::Networks;
use migrate_engine::migration::journal::{Journal, Role, Step};
use migrate_engine::migration::protocol::AttemptId;
use migrate_engine::transport::keys;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

/// A counter that was saved, and hosts that it can be restored on.
struct Saved {
    stage: Stage,
    image: PathBuf,
}

impl Saved {
    /// `strikes`: the environment of each agent.
    fn of(counter: Counter, strikes: &[&[(&str, &str)]]) -> Self {
        let stage = Stage::begin(counter, strikes);
        let image = stage.dir.path().join("image");
        let saved = Self { stage, image };
        saved.dump(&[]);
        saved
    }

    fn dump(&self, options: &[&str]) {
        let mut dump = on_host(&self.stage.dir.path().join("source"));
        dump.args(["dump", &self.stage.counter.pid(), "-D"]).arg(&self.image);
        let output = run(dump, options);
        assert!(output.status.success(), "{}", text(&output));
        wait(|| self.stage.counter.processes().is_empty(), "the counter has ended");
    }

    fn restorer(&self, on: &[&str], options: &[&str]) -> Command {
        let mut command = on_host(&self.stage.dir.path().join("source"));
        command.args(["restore", "--json", "--peer-timeout", "2s", "--lease", "2s", "-D"]).arg(&self.image);
        command.args(["--on", &on.join(",")]).args(options).env("MIGRATE_ONCE", &self.stage.once);
        command
    }

    /// On every host that has an agent.
    fn restore(&self, options: &[&str]) -> Output {
        let all: Vec<&str> = self.stage.agents.iter().map(|agent| agent.address.as_str()).collect();
        run(self.restorer(&all, options), &[])
    }

    fn is_whole(&self, what: &str) {
        let mut verify = on_host(&self.stage.dir.path().join("source"));
        verify.args(["verify"]).arg(&self.image);
        let output = run(verify, &[]);
        assert!(output.status.success(), "{what}: {}", text(&output));
    }

    /// Nobody runs, and no host has anything to decide.
    fn nothing_runs(&self, what: &str) {
        wait(|| self.stage.counter.processes().is_empty(), &format!("{what}: nothing is left of it"));
        self.stage.check_decided(what);
        self.is_whole(what);
    }

    /// It can be restored still, and then one copy runs.
    fn restores_after(&self, what: &str) {
        let output = self.restore(&[]);
        assert!(output.status.success(), "{what}: {}", text(&output));
        self.stage.check(what);
    }
}

#[test]
fn the_first_host_that_is_ready_runs_it_and_the_image_stays() {
    if !can_move() {
        return;
    }
    for agents in [1, 2, 4] {
        let saved = Saved::of(Counter::on_ground(8, 2000), &vec![&[][..]; agents]);
        let what = format!("{agents} hosts");
        let dry = saved.restore(&["--dry-run"]);
        assert!(dry.status.success(), "{what}: {}", text(&dry));
        assert_eq!(result(&dry)["where"].as_str(), Some("nowhere"), "{what}: {}", text(&dry));
        saved.nothing_runs(&what);
        let output = saved.restore(&[]);
        assert!(output.status.success(), "{what}: {}", text(&output));
        let result = result(&output);
        let owner = match agents {
            1 => 0,
            _ => {
                let became = became(&result);
                assert_eq!(became.iter().filter(|one| *one == "stopped").count(), agents - 1, "{became:?}");
                became.iter().position(|one| one == "owner").unwrap()
            }
        };
        assert_eq!(result["where"].as_str(), Some(saved.stage.agents[owner].address.as_str()), "{result}");
        assert_eq!(result["verb"].as_str(), Some("restore"));
        assert!(result["downtime_us"].is_null(), "nothing has stood still: {result}");
        assert!(result["bytes_sent"].as_u64().unwrap() > 2000 * 4096, "{result}");
        assert!(!text(&output).contains("\"event\":\"frozen\""), "{}", text(&output));
        saved.stage.check(&what);
        saved.is_whole(&what);
        let processes = saved.stage.counter.processes();
        assert_eq!(result["pid"].as_i64(), Some(processes[0].into()));
    }
}

#[test]
fn an_image_with_parents_is_sent_as_a_whole() {
    if !can_move() {
        return;
    }
    let stage = Stage::begin(Counter::on_ground(8, 2000), &[&[], &[]]);
    let (parent, image) = (stage.dir.path().join("parent"), stage.dir.path().join("image"));
    let mut pre_dump = on_host(&stage.dir.path().join("source"));
    pre_dump.args(["pre-dump", &stage.counter.pid(), "-D"]).arg(&parent);
    let output = run(pre_dump, &[]);
    assert!(output.status.success(), "{}", text(&output));
    let saved = Saved { stage, image };
    saved.dump(&["--parent", parent.to_str().unwrap()]);
    std::fs::rename(&parent, saved.stage.dir.path().join("elsewhere")).unwrap();
    let output = saved.restore(&[]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    saved.stage.check_decided("without its parent");
    std::fs::rename(saved.stage.dir.path().join("elsewhere"), &parent).unwrap();
    saved.restores_after("with its parent");
}

#[test]
fn a_host_that_is_killed_is_replaced_unless_it_may_run_the_tree() {
    if !can_move() {
        return;
    }
    for point in ["destination-armed", "destination-prepared", "destination-ordered", "destination-owner"] {
        let strike: &[(&str, &str)] = &[("MIGRATE_KILL", point)];
        let saved = Saved::of(Counter::on_ground(4, 500), &[strike, strike]);
        let output = saved.restore(&[]);
        assert!(!saved.stage.once.exists(), "{point} was not reached: {}", text(&output));
        assert!(output.status.success(), "{point}: {}", text(&output));
        saved.stage.check(point);
        saved.is_whole(point);
    }
}

#[test]
fn if_the_command_is_killed_one_tree_runs_or_none_and_the_image_can_be_restored() {
    if !can_move() {
        return;
    }
    for (point, runs) in [("source-ready", false), ("source-held", false), ("source-committed", true)] {
        let saved = Saved::of(Counter::on_ground(4, 500), &[&[], &[]]);
        let all: Vec<&str> = saved.stage.agents.iter().map(|agent| agent.address.as_str()).collect();
        let mut restorer = saved.restorer(&all, &[]);
        restorer.env("MIGRATE_KILL", point);
        let output = run(restorer, &[]);
        assert!(!saved.stage.once.exists(), "{point} was not reached: {}", text(&output));
        if runs {
            saved.stage.check(point);
            saved.is_whole(point);
        } else {
            saved.nothing_runs(point);
            saved.restores_after(point);
        }
    }
}

#[test]
fn where_no_host_takes_it_nothing_was_started() {
    if !can_move() {
        return;
    }
    let strike: &[(&str, &str)] = &[("MIGRATE_KILL", "destination-armed")];
    let saved = Saved::of(Counter::on_ground(4, 500), &[strike]);
    let nobody = format!("unix:{}", saved.stage.dir.path().join("nobody.sock").display());
    for on in [vec![nobody.as_str()], vec![nobody.as_str(), saved.stage.agents[0].address.as_str()]] {
        let output = run(saved.restorer(&on, &[]), &[]);
        assert_eq!(output.status.code(), Some(5), "{}", text(&output));
        assert_eq!(result(&output)["where"].as_str(), Some("nowhere"), "{}", text(&output));
        saved.nothing_runs("nobody");
    }
    assert!(!saved.stage.once.exists(), "the host was not reached");
    // What it has appended to is not what it was any more.
    std::fs::write(saved.stage.counter.path(), "").unwrap();
    let output = saved.restore(&[]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("M05"), "{}", text(&output));
    saved.nothing_runs("blocked");
}

#[test]
fn a_damaged_image_is_offered_to_nobody() {
    if !can_move() {
        return;
    }
    let saved = Saved::of(Counter::on_ground(4, 500), &[&[]]);
    let pages = std::fs::OpenOptions::new().read(true).write(true).open(saved.image.join("pages-0.bin")).unwrap();
    let (mut byte, at) = ([0], pages.metadata().unwrap().len() / 2);
    pages.read_exact_at(&mut byte, at).unwrap();
    pages.write_all_at(&[!byte[0]], at).unwrap();
    let output = saved.restore(&[]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    let journals = saved.stage.dir.path().join("dest0/state/moves");
    assert_eq!(std::fs::read_dir(journals).map_or(0, Iterator::count), 0, "it was asked");
    assert!(saved.stage.counter.processes().is_empty());
}

#[test]
fn each_copy_is_itself() {
    if !can_move() {
        return;
    }
    let strike: &[(&str, &str)] = &[("MIGRATE_KILL", "destination-armed")];
    for (strikes, started) in [([&[][..], &[]], 3), ([&[][..], strike], 2)] {
        let saved = Saved::of(Counter::on_ground(4, 500), &strikes);
        let output = saved.restore(&["--count", "3"]);
        let result = result(&output);
        assert_eq!(output.status.code(), Some(if started == 3 { 0 } else { 6 }), "{}", text(&output));
        let session = result["session"].as_str().unwrap();
        let all = result["candidates"].as_array().unwrap();
        let running: Vec<_> = all.iter().filter(|one| one["became"] == "running").collect();
        assert_eq!(running.len(), started, "{result}");
        for one in &running {
            assert!(one["clone_id"].as_str().unwrap().starts_with(&format!("{session}-")), "{result}");
        }
        wait(|| saved.stage.counter.processes().len() == started, "so many are left");
        for kind in ["pid", "net", "uts", "mnt"] {
            let of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            let own = std::process::id().try_into().unwrap();
            let all = saved.stage.counter.processes().into_iter().chain([own]).map(of);
            assert_eq!(all.collect::<BTreeSet<_>>().len(), started + 1, "{kind}");
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(saved.stage.counter.processes().len(), started, "each has its memory");
        saved.stage.check_decided("copies");
        saved.is_whole("copies");
    }
}

#[test]
fn a_person_who_decides_is_told_what_becomes_of_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let on_source = || on_host(&dir.path().join("source"));
    for (choice, said) in [("--run", "its image can be restored again"), ("--discard", "unix:/gone has the target")] {
        let journals = dir.path().join("source/state/moves");
        let mut journal =
            Journal::begin(&journals, Role::Source, AttemptId::random().unwrap(), "unix:/gone", "hkqwzrtb").unwrap();
        journal.set_from_image();
        journal.write(Step::Committing).unwrap();
        drop(journal);
        let output = run(on_source(), &["resolve", "hkqwzrtb", choice, "--yes"]);
        assert!(output.status.success(), "{choice}: {}", text(&output));
        assert!(text(&output).contains(said), "{choice}: {}", text(&output));
        std::fs::remove_dir_all(journals).unwrap();
    }
}

/// Hosts with networks and keys of their own.
#[test]
fn over_the_network_of_hosts() {
    if !can_move() {
        return;
    }
    let Some(networks) = Networks::make() else { return };
    let dir = tempfile::tempdir().unwrap();
    let places: Vec<PathBuf> = (0..3).map(|n| dir.path().join(format!("host{n}"))).collect();
    let prints = places.iter().map(|place| keys::generate(&place.join("keys"), "x", false).unwrap().fingerprint());
    let known: String = prints.map(|print| format!("{print} one-of-us\n")).collect();
    places.iter().for_each(|place| std::fs::write(place.join("peers"), &known).unwrap());
    let agents: Vec<Agent> = (1..3)
        .map(|n| Agent::start_by(networks.inside(n, "env"), &places[n], &format!("tcp://10.77.0.{}:7413", n + 1)))
        .collect();
    let counter = Counter::on_ground(8, 2000);
    let image = dir.path().join("image");
    let mut dump = on_host(&places[0]);
    dump.args(["dump", &counter.pid(), "-D"]).arg(&image);
    let output = run(dump, &[]);
    assert!(output.status.success(), "{}", text(&output));
    wait(|| counter.processes().is_empty(), "the counter has ended");
    let mut restore = networks.inside(0, env!("CARGO_BIN_EXE_migrate"));
    restore.env("MIGRATE_PLACES", &places[0]).args(["restore", "--json", "-D"]).arg(&image);
    let on = agents.iter().map(|agent| agent.address.as_str()).collect::<Vec<_>>().join(",");
    let output = run(restore, &["--on", &on]);
    assert!(output.status.success(), "{}", text(&output));
    counter.check_runs();
    wait(|| counter.processes().len() == 1, "one copy is left");
    let at = result(&output)["where"].as_str().and_then(|at| agents.iter().position(|agent| agent.address == at));
    assert!(at.is_some(), "{}", text(&output));
}
