//! `--disjoint-paths` and `--route`: a source behind two routers, and destinations behind these.
//!
//! ```text
//!          10.1.0.0/24            10.11.0.0/24
//!   source ----------- router 1 ------------------ b
//!     |                   |  10.12.0.0/24
//!     |                   +--------------------- c (10.12.0.2)
//!     |    10.2.0.0/24            10.22.0.0/24   |
//!     +--------------- router 2 ------------------+
//!                         |  10.21.0.0/24
//!                         +--------------------- d
//! ```

use crate::cli::{events, warnings};
use crate::moves::{Agent, can_move, text};
use crate::networks::{Killed, hold};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const B: &str = "tcp+plain://10.11.0.2:7413";
const C: &str = "tcp+plain://10.12.0.2:7413";
const D: &str = "tcp+plain://10.21.0.2:7413";
const ROUTER_1: &str = "10.1.0.2";
const ROUTER_2: &str = "10.2.0.2";

/// The networks, and a target at the source. Removed when dropped.
struct Paths {
    /// Processes that hold them: without a name, which would be a mount that others see come and go.
    holders: Vec<Killed>,
    dir: tempfile::TempDir,
}

const NAMES: [&str; 6] = ["s", "r1", "r2", "b", "c", "d"];

impl Paths {
    fn make() -> Option<Self> {
        if !can_move() {
            return None;
        }
        let paths = Self { holders: hold(NAMES.len())?, dir: tempfile::tempdir().unwrap() };
        let mut script =
            String::from("set -e\nn() { network=$1; shift; nsenter --net=/proc/$network/ns/net ip \"$@\"; }\n");
        for name in NAMES {
            let name = paths.name(name);
            script += &format!(
                "n {name} link set lo up\n\
                 nsenter --net=/proc/{name}/ns/net sh -c 'cd /proc/sys/net/ipv4; echo 1 >ip_forward; echo 0 >conf/all/rp_filter; echo 0 >conf/default/rp_filter'\n"
            );
        }
        for (a, b, net, device_a, device_b) in [
            ("s", "r1", "10.1.0", "eth1", "eth0"),
            ("s", "r2", "10.2.0", "eth2", "eth0"),
            ("r1", "b", "10.11.0", "tob", "eth1"),
            ("r1", "c", "10.12.0", "toc", "eth1"),
            ("r2", "c", "10.22.0", "toc", "eth2"),
            ("r2", "d", "10.21.0", "tod", "eth1"),
        ] {
            let (a, b) = (paths.name(a), paths.name(b));
            script += &format!(
                "ip link add name {device_a} netns {a} type veth peer name {device_b} netns {b}\n\
                 n {a} addr add {net}.1/24 dev {device_a}\nn {b} addr add {net}.2/24 dev {device_b}\n\
                 n {a} link set {device_a} up\nn {b} link set {device_b} up\n"
            );
        }
        for (name, route) in [
            ("s", "default via 10.1.0.2 metric 10"),
            ("s", "10.12.0.0/24 via 10.2.0.2 metric 20"),
            ("s", "10.21.0.0/24 via 10.2.0.2"),
            ("b", "default via 10.11.0.1"),
            ("c", "10.1.0.0/24 via 10.12.0.1"),
            ("c", "10.2.0.0/24 via 10.22.0.1"),
            ("d", "default via 10.21.0.1"),
            ("r2", "10.12.0.0/24 via 10.22.0.2"),
            ("r1", "10.2.0.0/24 via 10.1.0.1"),
            ("r2", "10.1.0.0/24 via 10.2.0.1"),
        ] {
            script += &format!("n {} route add {route}\n", paths.name(name));
        }
        // The one to c by default goes past router 1.
        script += &format!("n {} route add 10.12.0.0/24 via 10.1.0.2 metric 5\n", paths.name("s"));
        let made = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).status();
        if !made.is_ok_and(|status| status.success()) {
            crate::skip!("network namespaces joined by veth pairs cannot be made here");
            return None;
        }
        Some(paths)
    }

    fn name(&self, short: &str) -> String {
        let at = NAMES.iter().position(|name| *name == short).unwrap();
        self.holders[at].0.id().to_string()
    }

    fn inside(&self, name: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.name(name))).stdin(Stdio::null());
        command
    }

    fn target(&self) -> Killed {
        let mut command = self.inside("s");
        command.args(["setsid", "sleep", "1000"]).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        Killed(command.spawn().unwrap())
    }

    fn agent(&self, name: &str, address: &str) -> Agent {
        let mut command = self.inside(name);
        command.args(["sh", "-c", "exec \"$@\" --allow-plain", "sh"]);
        Agent::start_by(command, &self.dir.path().join(name), address)
    }

    fn moves(&self, target: &Killed, words: &[&str]) -> Output {
        let mut command = self.inside("s");
        command.args([PROGRAM, "move", &target.0.id().to_string()]).args(words);
        command.args(["--json", "--allow-plain", "--connect-timeout", "2s"]);
        command.env("MIGRATE_PLACES", self.dir.path().join("source")).output().unwrap()
    }
}

/// What is refused: the nodes, and the reasons.
fn refused(output: &Output) -> Vec<(String, String)> {
    let all = events(output);
    let last = all.last().unwrap_or_else(|| panic!("{output:?}"));
    let found = last["blockers"].as_array().unwrap_or_else(|| panic!("{last}"));
    let found = found.iter().filter(|one| one["code"] == "M0910");
    found.map(|one| (one["object"].as_str().unwrap().into(), one["reason"].as_str().unwrap().into())).collect()
}

fn runs(target: &Killed) -> bool {
    Path::new(&format!("/proc/{}", target.0.id())).exists()
}

#[test]
fn paths_that_share_a_node_are_refused_and_it_is_named() {
    let Some(paths) = Paths::make() else { return };
    let target = paths.target();
    let output = paths.moves(&target, &[B, C, D, "--disjoint-paths", "refuse"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert_eq!(refused(&output), [(ROUTER_1.to_owned(), format!("the paths to {B}, {C} share it"))]);
    // By its other interface c is behind the other router, with d.
    let route = format!("{C}=eth2");
    let output = paths.moves(&target, &[B, C, D, "--disjoint-paths", "refuse", "--route", &route]);
    assert_eq!(refused(&output), [(ROUTER_2.to_owned(), format!("the paths to {C}, {D} share it"))]);
    // An address of it alone does not change the way: only rules of the routing do.
    let route = format!("{C}=10.2.0.1");
    let output = paths.moves(&target, &[B, C, "--disjoint-paths", "refuse", "--route", &route]);
    assert_eq!(refused(&output).len(), 1, "{output:?}");
    for wrong in [format!("{D}=eth2"), format!("{C}=eth9"), format!("{C}=192.0.2.9")] {
        let output = paths.moves(&target, &[B, C, "--disjoint-paths", "refuse", "--route", &wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {output:?}");
    }
    assert!(runs(&target));
}

#[test]
fn who_shares_a_node_is_left_out_and_an_alternate_takes_the_place() {
    let Some(paths) = Paths::make() else { return };
    let mut target = paths.target();
    let output = paths.moves(&target, &[B, C, "--disjoint-paths", "drop"]);
    assert_eq!(output.status.code(), Some(5), "nobody listens there: {}", text(&output));
    let said = warnings(&output);
    assert!(said.contains(&format!("{C} is left out")) && said.contains(ROUTER_1), "{said}");
    assert!(runs(&target));
    let _agent = paths.agent("d", D);
    let output = paths.moves(&target, &[B, C, "--alternate", D, "--disjoint-paths", "replace"]);
    assert!(output.status.success(), "{}", text(&output));
    let said = warnings(&output);
    assert!(said.contains(&format!("{C} is left out")) && said.contains(&format!("{D} is taken instead")), "{said}");
    let result = events(&output).pop().unwrap();
    assert_eq!(result["host"], D, "{result}");
    target.0.wait().unwrap();
    let moved = result["pid"].as_i64().unwrap();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(moved as i32), nix::sys::signal::SIGKILL);
}

/// The link itself takes the way that is pinned.
#[test]
fn a_link_takes_the_way_that_is_pinned() {
    let Some(paths) = Paths::make() else { return };
    let mut target = paths.target();
    let _agent = paths.agent("c", C);
    // Nothing passes router 1 any more.
    let down = paths.inside("r1").args(["ip", "link", "set", "toc", "down"]).status().unwrap();
    assert!(down.success());
    let output = paths.moves(&target, &[C]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    let output = paths.moves(&target, &[C, "--route", &format!("{C}=eth2")]);
    assert!(output.status.success(), "{}", text(&output));
    target.0.wait().unwrap();
    let moved = events(&output).pop().unwrap()["pid"].as_i64().unwrap();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(moved as i32), nix::sys::signal::SIGKILL);
}

/// A host with one gateway only: everything goes past it, and that is said.
#[test]
fn the_only_gateway_is_named_as_such() {
    let Some(paths) = Paths::make() else { return };
    let target = paths.target();
    let left = paths.inside("s").args(["sh", "-c", "ip route flush dev eth2; ip route"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&left.stdout).contains("10.2.0.2"), "{left:?}");
    let output = paths.moves(&target, &[B, C, "--disjoint-paths", "drop"]);
    let said = warnings(&output);
    assert!(said.contains("only gateway") && !said.contains("its path is not its own"), "{said}");
    let output = paths.moves(&target, &[B, C, "--disjoint-paths", "refuse"]);
    assert_eq!(refused(&output).len(), 1, "{output:?}");
    let all = events(&output);
    let remedy = all.last().unwrap()["blockers"][0]["remedy"].as_str().unwrap().to_owned();
    assert!(remedy.contains("only gateway"), "{remedy}");
}
