//! `--via`: a source, two hosts that pass things on, and four destinations, each in a network of its own, on one bridge.

use crate::cli::warnings;
use crate::fan::became;
use crate::handover::wait;
use crate::moves::{Agent, Counter, can_move, on_host, result, run, text};
use crate::networks::{Killed, hold};
use crate::places::{Blow, free_port, is_settled, others, stand_in_for_ssh};
use migrate_engine::transport::keys;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// Counts, and looks at one page after the other of memory that nothing makes smaller; writes to some of it.
const RANDOM: &str = "
import os, sys, time, zlib
path, pages = sys.argv[1], int(sys.argv[2])
ground = bytearray(os.urandom(pages * 4096))
page = lambda n: bytes(ground[n * 4096:(n + 1) * 4096])
sums = [zlib.crc32(page(n)) for n in range(pages)]
n = 0
with open(path, 'a', buffering=1) as out:
    while True:
        n += 1
        looked, written = n % pages, n * 7 % 64
        assert zlib.crc32(page(looked)) == sums[looked], 'memory is not what it was'
        ground[written * 4096 + 9] = n % 256
        sums[written] = zlib.crc32(page(written))
        out.write('%d\\n' % n)
        time.sleep(0.002)
";

/// The switch, the source, who passes things on, destinations.
const NAMES: [&str; 8] = ["switch", "s", "p", "q", "b", "c", "d", "e"];
pub const DESTINATIONS: [&str; 4] = ["b", "c", "d", "e"];

/// The hosts. Removed when dropped.
pub struct Star {
    /// Processes that hold the networks.
    holders: Vec<Killed>,
    dir: tempfile::TempDir,
}

impl Star {
    pub fn make() -> Option<Self> {
        if !can_move() {
            return None;
        }
        let star = Self { holders: hold(NAMES.len())?, dir: tempfile::tempdir().unwrap() };
        let mut script =
            String::from("set -e\nn() { network=$1; shift; nsenter --net=/proc/$network/ns/net ip \"$@\"; }\n");
        let switch = star.pid("switch");
        script += &format!("n {switch} link add br0 type bridge forward_delay 0\nn {switch} link set br0 up\n");
        for name in &NAMES[1..] {
            let (pid, address) = (star.pid(name), star.address(name));
            script += &format!(
                "n {switch} link add name to-{name} type veth peer name eth0 netns {pid}\n\
                 n {switch} link set to-{name} master br0 up\nn {pid} link set lo up\n\
                 n {pid} addr add {address}/24 dev eth0\nn {pid} link set eth0 up\n"
            );
        }
        let made = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).status();
        if !made.is_ok_and(|status| status.success()) {
            crate::skip!("network namespaces joined by a bridge cannot be made here");
            return None;
        }
        Some(star)
    }

    pub fn pid(&self, name: &str) -> u32 {
        self.holders[number(name)].0.id()
    }

    pub fn address(&self, name: &str) -> String {
        format!("10.78.0.{}", number(name))
    }

    pub fn inside(&self, name: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid(name))).stdin(Stdio::null());
        command
    }

    pub fn places(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn url(&self, name: &str) -> String {
        format!("tcp+plain://{}:7413", self.address(name))
    }

    pub fn agent(&self, name: &str) -> Agent {
        let mut command = self.inside(name);
        command.args(["sh", "-c", "exec \"$@\" --allow-plain", "sh"]);
        Agent::start_by(command, &self.places(name), &self.url(name))
    }

    /// A target at the source, of so many pages.
    pub fn target(&self, pages: u32) -> Counter {
        let mut command = self.inside("s");
        command.arg("setsid");
        Counter::by(command, RANDOM, &[&pages.to_string()])
    }

    /// A command at the source about this target and these destinations.
    pub fn command(&self, verb: &str, target: &Counter, to: &[&str], options: &[&str]) -> Command {
        let mut command = self.inside("s");
        command.args([PROGRAM, verb, &target.pid()]).args(to.iter().map(|name| self.url(name)));
        command.args(["--allow-plain", "--connect-timeout", "2s", "--peer-timeout", "2s"]).args(options);
        command.env("MIGRATE_PLACES", self.places("s"));
        command
    }

    pub fn moves(&self, target: &Counter, to: &[&str], options: &[&str]) -> Output {
        run(self.command("move", target, to, options), &["--json"])
    }

    /// Bytes that have left this host so far.
    pub fn sent(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/net/dev", self.pid(name))).unwrap();
        let device = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
        // After eight numbers of what it has received (proc_pid_net(5)).
        device.split_whitespace().nth(8).unwrap().parse().unwrap()
    }

    /// Ends whoever passes things on for a source at this host.
    pub fn kills(&self, proxy: &str, agent: &Agent) -> Blow {
        Blow::against(&self.places(proxy), agent.pid(), "KILL")
    }

    /// Nobody is left at a host that has passed things on but its agent, and nothing on its disk.
    pub fn check_holds_nothing(&self, proxy: &str, agent: &Agent, what: &str) {
        wait(|| others(&self.places(proxy), agent.pid()) == 0, &format!("{what}: nobody is left at {proxy}"));
        let left = files(&self.places(proxy));
        assert!(left.is_empty(), "{what}: {left:?}");
    }

    /// One copy counts on, and no host waits for anything.
    pub fn check(&self, target: &Counter, what: &str) {
        target.check_runs();
        wait(|| target.processes().len() == 1, &format!("{what}: one copy is left"));
        target.check_runs();
        for name in ["s"].iter().chain(&DESTINATIONS).filter(|name| self.places(name).exists()) {
            is_settled(&self.places(name), what);
        }
    }
}

fn number(name: &str) -> usize {
    NAMES.iter().position(|other| *other == name).unwrap()
}

/// Everything below a directory that is no directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

pub fn attempts(output: &Output) -> usize {
    result(output)["attempts"].as_array().map_or(0, Vec::len)
}

#[test]
fn the_uplink_carries_once_what_is_for_four() {
    let Some(star) = Star::make() else { return };
    let proxy = star.agent("p");
    let _agents = DESTINATIONS.map(|name| star.agent(name));
    let via = star.url("p");
    // Narrower than what destinations take, as an uplink is.
    let limit = "tc qdisc add dev eth0 root tbf rate 400mbit burst 128k latency 20ms";
    assert!(star.inside("s").args(limit.split(' ')).status().unwrap().success());
    let carried = |to: &[&str], options: &[&str]| {
        let target = star.target(6000);
        let before = star.sent("s");
        let output = star.moves(&target, to, &[&["--compress", "off", "--mode", "pre-copy"], options].concat());
        assert!(output.status.success(), "{}", text(&output));
        let bytes = star.sent("s") - before;
        star.check(&target, "moved");
        (bytes, output)
    };
    let (alone, _) = carried(&["b"], &[]);
    for (to, via) in [(&DESTINATIONS[..], Some(&via)), (&["b"], Some(&via)), (&DESTINATIONS[..], None)] {
        let options: Vec<&str> = via.iter().flat_map(|via| ["--via", via.as_str()]).collect();
        let (bytes, output) = carried(to, &options);
        println!("to {} by {via:?}: {bytes} bytes, {:.2} x", to.len(), bytes as f64 / alone as f64);
        let result = result(&output);
        println!("{}", result["candidates"]);
        assert_eq!(result["via"][0].as_str(), via.map(String::as_str));
        match via {
            Some(_) => assert!(bytes * 10 < alone * 11, "{bytes} bytes, {alone} to one directly"),
            None => assert!(bytes > alone * 3, "{bytes} bytes: this is what a proxy is for"),
        }
        if to.len() > 1 {
            let became = became(&result);
            assert_eq!(became.iter().filter(|one| *one == "stopped").count(), 3, "{became:?}");
        }
        let said = result["bytes_sent"].as_u64().unwrap();
        assert!(said < bytes && said * 11 > bytes * 10, "{said} are reported");
        star.check_holds_nothing("p", &proxy, "moved");
    }
}

#[test]
fn each_mode_comes_through_and_a_chain_of_proxies_too() {
    let Some(star) = Star::make() else { return };
    let proxies = ["p", "q"].map(|name| star.agent(name));
    let _agents = DESTINATIONS.map(|name| star.agent(name));
    let chain = format!("{},{}", star.url("p"), star.url("q"));
    let single = star.url("q");
    for (mode, to, via) in [
        ("stop-and-copy", &["b"][..], &chain),
        ("post-copy", &["b"], &single),
        ("hybrid", &["b", "c"], &chain),
        ("auto", &["b", "c", "d"], &chain),
    ] {
        let target = star.target(2000);
        let output = star.moves(&target, to, &["--via", via, "--mode", mode]);
        let what = format!("{mode} to {} by {via}", to.len());
        assert!(output.status.success(), "{what}: {}", text(&output));
        assert_eq!(warnings(&output), "", "{what}");
        assert_eq!(result(&output)["via"].as_array().unwrap().len(), via.split(',').count());
        star.check(&target, &what);
        for (name, agent) in ["p", "q"].iter().zip(&proxies) {
            star.check_holds_nothing(name, agent, &what);
        }
    }
    let target = star.target(100);
    let output = star.moves(&target, &["b"], &["--via", &single, "--dry-run"]);
    assert!(output.status.success() && result(&output)["forecast"].is_object(), "{}", text(&output));
    star.check(&target, "a dry run");
}

/// Before the target is handed over it goes on here, and all is sent anew, directly; from then on destinations are asked directly.
#[test]
fn a_proxy_that_is_killed_is_passed_by() {
    let Some(star) = Star::make() else { return };
    let proxy = star.agent("p");
    let _agents = DESTINATIONS.map(|name| star.agent(name));
    let (via, kill) = (star.url("p"), star.kills("p", &proxy));
    for (point, to, again) in [
        ("pre-freeze", &["b"][..], 1),
        ("frozen", &["b", "c"], 1),
        ("frozen", &["b"], 1),
        ("pre-commit", &["b", "c", "d"], 0),
        ("pre-commit", &["b"], 0),
    ] {
        let target = star.target(1000);
        let hook = format!("{point}={}", kill.command());
        let output = star.moves(&target, to, &["--via", &via, "--hook", &hook]);
        let what = format!("killed at {point} of {}", to.len());
        assert!(output.status.success(), "{what}: {}", text(&output));
        assert!(kill.struck() > 0, "{what}: nobody was there: {}", text(&output));
        assert_eq!(attempts(&output), again, "{what}: {}", text(&output));
        assert_eq!(warnings(&output).contains("all is sent anew, directly"), again == 1, "{what}");
        star.check(&target, &what);
        star.check_holds_nothing("p", &proxy, &what);
    }
}

#[test]
fn a_proxy_that_is_lost_in_the_rounds_or_was_never_there_is_passed_by() {
    let Some(star) = Star::make() else { return };
    let mut proxy = star.agent("p");
    let _agents = DESTINATIONS.map(|name| star.agent(name));
    let (via, kill) = (star.url("p"), star.kills("p", &proxy));
    let target = star.target(4000);
    let slow = ["--via", &via, "--bandwidth", "8MB/s", "--compress", "off", "--json"];
    let before = star.sent("s");
    let mut command = star.command("move", &target, &["b", "c"], &slow);
    let moving = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait(|| star.sent("s") > before + (3 << 20), "pages are on their way");
    kill.strike();
    let output = moving.wait_with_output().unwrap();
    assert!(output.status.success() && attempts(&output) == 1, "{}", text(&output));
    star.check(&target, "killed in the rounds");
    star.check_holds_nothing("p", &proxy, "killed in the rounds");
    proxy.kill();
    let target = star.target(100);
    let output = star.moves(&target, &["b", "c"], &["--via", &via]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(warnings(&output).contains("the destinations are connected to directly"), "{}", text(&output));
    assert!(result(&output)["via"].is_null() && attempts(&output) == 0, "{}", text(&output));
    star.check(&target, "a proxy that is not there");
}

/// A proxy that only stands still is lost, too, once it was silent for long enough; in the pause the target goes on here first.
#[test]
fn a_proxy_that_stands_still_is_passed_by() {
    let Some(star) = Star::make() else { return };
    let proxy = star.agent("p");
    let _agents = ["b", "c"].map(|name| star.agent(name));
    let stop = Blow::against(&star.places("p"), proxy.pid(), "STOP");
    for point in ["frozen", "pre-commit"] {
        let target = star.target(500);
        let (via, hook) = (star.url("p"), format!("{point}={}", stop.command()));
        let output = star.moves(&target, &["b", "c"], &["--via", &via, "--hook", &hook]);
        assert!(output.status.success(), "{point}: {}", text(&output));
        target.check_runs();
        assert!(stop.struck() > 0, "{point}: nobody was there");
        star.kills("p", &proxy).strike();
        star.check(&target, point);
        star.check_holds_nothing("p", &proxy, point);
    }
}

#[test]
fn alternates_are_reached_by_the_proxy_and_who_is_behind_none_directly() {
    let Some(star) = Star::make() else { return };
    let _proxy = star.agent("p");
    let _agents = ["c", "d"].map(|name| star.agent(name));
    let via = star.url("p");
    let target = star.target(100);
    let alternate = star.url("c");
    let output = star.moves(&target, &["b"], &["--via", &via, "--alternate", &alternate]);
    assert!(output.status.success() && attempts(&output) == 1, "{}", text(&output));
    let result = result(&output);
    assert_eq!((result["host"].as_str(), result["via"][0].as_str()), (Some(&*alternate), Some(&*via)), "{result}");
    star.check(&target, "an alternate");
    // The proxy has no way to one of them.
    let cut =
        star.inside("p").args(["ip", "route", "add", "unreachable", &format!("{}/32", star.address("d"))]).status();
    assert!(cut.unwrap().success());
    let target = star.target(100);
    let output = star.moves(&target, &["d", "c"], &["--via", &via]);
    assert!(output.status.success(), "{}", text(&output));
    let said = warnings(&output);
    assert!(said.contains(&format!("{} is connected to directly", star.url("d"))), "{said}");
    star.check(&target, "one directly");
}

#[test]
fn destinations_are_kept_warm_through_a_proxy_and_go_on_without() {
    let Some(star) = Star::make() else { return };
    let proxy = star.agent("p");
    let _agents = ["b", "c"].map(|name| star.agent(name));
    let via = star.url("p");
    let target = star.target(3000);
    let before = star.sent("s");
    let output = run(star.command("warm", &target, &["b", "c"], &["--via", &via, "--compress", "off"]), &[]);
    assert!(output.status.success(), "{}", text(&output));
    let session = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let status = || result(&run(on_host(&star.places("s")), &["status", &session, "--json"]))["sessions"][0].clone();
    let up_to_date = || {
        let all = status()["warm"]["candidates"].as_array().cloned().unwrap_or_default();
        all.iter().filter(|one| one["state"] == "up-to-date").count()
    };
    wait(|| up_to_date() == 2, "both are up to date");
    let bytes = star.sent("s") - before;
    assert!(bytes < 3000 * 4096 * 2, "{bytes} bytes for two");
    star.kills("p", &proxy).strike();
    let went_past = || {
        status()["warm"]["notes"].as_array().is_some_and(|notes| {
            notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains("all is sent anew, directly")))
        })
    };
    wait(went_past, "the proxy is passed by");
    wait(|| up_to_date() == 2, "both are up to date again");
    star.check_holds_nothing("p", &proxy, "warm");
    let mut switch = star.inside("s");
    switch.args([PROGRAM, "switch", &session, "--json"]).env("MIGRATE_PLACES", star.places("s"));
    let output = run(switch, &[]);
    assert!(output.status.success(), "{}", text(&output));
    star.check(&target, "switched");
}

/// The destination knows the proxy and not the source: what is lost in the handover is found again by the proxy.
#[test]
fn each_knows_its_neighbours_by_their_keys() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [source, proxy, destination] = ["s", "p", "b"].map(|name| dir.path().join(name));
    let keys = [&source, &proxy, &destination].map(|host| keys::generate(&host.join("keys"), "x", false).unwrap());
    let line = |n: usize, name: &str| format!("{} {name}\n", keys[n].fingerprint());
    std::fs::write(source.join("peers"), line(1, "proxy")).unwrap();
    std::fs::write(proxy.join("peers"), line(0, "source") + &line(2, "destination")).unwrap();
    std::fs::write(destination.join("peers"), line(1, "proxy")).unwrap();
    let agents = [&proxy, &destination].map(|host| Agent::start(host, &format!("tcp://127.0.0.1:{}", free_port())));
    let kill = Blow::against(&proxy, agents[0].pid(), "KILL");
    let hook = format!("pre-commit={}", kill.command());
    for options in [&["--mode", "pre-copy"][..], &["--mode", "post-copy"], &["--hook", &hook]] {
        let counter = Counter::on_ground(4, 2000);
        let via =
            ["move", &counter.pid(), &agents[1].address, "--via", &agents[0].address, "--json"].map(str::to_owned);
        let mut command = on_host(&source);
        command.args(via).args(["--peer-timeout", "2s"]).args(options);
        let output = run(command, &[]);
        assert!(output.status.success(), "{options:?}: {}", text(&output));
        counter.check_runs();
        wait(|| counter.processes().len() == 1, "one copy is left");
        assert_ne!(counter.processes()[0].to_string(), counter.pid());
    }
    assert!(kill.struck() > 0, "nobody was there");
    let counter = Counter::start(1);
    let output = run(on_host(&source), &["move", &counter.pid(), &agents[1].address, "--json"]);
    assert_eq!(output.status.code(), Some(5), "the source itself is not known there: {}", text(&output));
    counter.check_runs();
}

/// The proxy runs its own ssh, whatever the source has for one.
#[test]
fn proxies_and_destinations_are_reached_by_ssh() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = ["ssh", "near"].map(|name| stand_in_for_ssh(dir.path(), name))[0].clone();
    let counter = Counter::on_ground(2, 500);
    let mut command = on_host(&dir.path().join("a"));
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    command.env("PATH", path).args(["move", &counter.pid(), "b", "c", "--via", "p,q", "--remote", PROGRAM, "--json"]);
    command.args(["--rsh", &format!("{} -o BatchMode=yes", dir.path().join("near").display())]);
    let output = run(command, &[]);
    assert!(output.status.success() && warnings(&output).is_empty(), "{}", text(&output));
    counter.check_runs();
    wait(|| counter.processes().len() == 1, "one copy is left");
    let log = std::fs::read_to_string(&log).unwrap();
    let by = |program: &str| {
        let theirs = log.lines().filter(|line| line.contains(program)).map(|line| line.split(' ').nth(4).unwrap());
        theirs.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    // One that did not get the target may be told so past the proxies.
    assert!(by("/near ").contains("p") && !by("/near ").contains("q"), "{log}");
    assert_eq!(by("ssh "), ["b", "c", "q"].map(str::to_owned).into(), "{log}");
}

#[test]
fn what_cannot_go_through_a_proxy_is_refused_before_anything_happens() {
    if !can_move() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let counter = Counter::start(1);
    let pid = counter.pid();
    for (words, says) in [
        (&["b", "--via", "local"][..], "no other host"),
        (&["unix:/b", "--via", "p"], "on this host"),
        (&["b", "--alternate", "local", "--via", "p"], "on this host"),
        (&["b", "--via", "b"], "a proxy and a destination"),
        (&["b", "--via", "p,q,p"], "twice"),
        (&["b", "c", "--via", "p", "--disjoint-paths", "refuse"], "all paths go through the proxy"),
    ] {
        let output = run(on_host(&dir.path().join("s")), &[&["move", pid.as_str()], words].concat());
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{words:?}: {}", text(&output));
    }
    let output = run(on_host(&dir.path().join("s")), &["warm", &pid, "local", "--via", "p"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    counter.check_runs();
    assert!(files(&dir.path().join("s/state/moves")).is_empty(), "nothing was begun");
}
