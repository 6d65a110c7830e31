//! An address and a connection move to one of several destinations, each in a network of its own: those that only stand ready have the
//! address as well, and nobody hears of it.

use crate::fan::became;
use crate::handover::wait;
use crate::moves::{Ended, Served, can_move, result, run, text};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Forgets in which host's hands an address is, again and again: so the client asks all of them, all the time.
struct Forgetful(std::process::Child);

impl Forgetful {
    fn begin(served: &Served, network: usize) -> Self {
        let mut forgets = served.networks.inside(network, "sh");
        forgets.args(["-c", "while :; do ip neigh flush to 10.77.0.100; sleep 0.01; done"]);
        Self(forgets.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which of the hosts have the address.
fn holders(served: &Served) -> Vec<usize> {
    let has = |n: &usize| {
        let mut look: Command = served.networks.inside(*n, "ip");
        let shown = look.args(["-o", "addr", "show", "to", "10.77.0.100/32"]).output().unwrap();
        !shown.stdout.is_empty()
    };
    (0..3).filter(has).collect()
}

/// One host has the address, and is the one that answers for it; nothing that held questions off is left.
fn settles(served: &Served, at: usize, what: &str) {
    wait(|| holders(served) == [at], &format!("{what}: one host has the address: {:?}", holders(served)));
    for n in 0..3 {
        wait(
            || served.networks.held_off(n).is_empty(),
            &format!("{what}: tables at {n}: {:?}", served.networks.held_off(n)),
        );
    }
    let connects = "ip neigh flush to 10.77.0.100
        exec /usr/bin/python3 -c 'import socket; socket.create_connection((\"10.77.0.100\", 7000), timeout=5)'";
    let mut asks = served.networks.inside(3, "sh");
    asks.args(["-c", connects]);
    assert!(asks.status().unwrap().success(), "{what}: a neighbour that asks is answered");
}

#[test]
fn the_address_goes_to_the_chosen_one_and_no_other_answers_for_it() {
    if !can_move() {
        return;
    }
    let Some(served) = Served::begin(2) else { return };
    let forgetful = Forgetful::begin(&served, 3);
    let moved = served.moves(served.source(), &[]);
    assert!(moved.status.success(), "{}", text(&moved));
    let result = result(&moved);
    let _copy = Ended(result["pid"].as_i64().unwrap() as i32);
    let chosen = became(&result).iter().position(|one| one == "owner").unwrap();
    drop(forgetful);
    settles(&served, chosen + 1, "moved");
    served.check("moved to one of two");
}

#[test]
fn it_comes_back_where_nobody_is_chosen() {
    if !can_move() {
        return;
    }
    let Some(served) = Served::begin(2) else { return };
    let forgetful = Forgetful::begin(&served, 3);
    let moved = served.moves(served.source(), &["--hook", "pre-commit=false"]);
    assert!(!moved.status.success() && text(&moved).contains("pre-commit"), "{}", text(&moved));
    drop(forgetful);
    settles(&served, 0, "called off");
    served.check("called off");
}

#[test]
fn whoever_decides_for_a_dead_program_decides_about_the_address() {
    if !can_move() {
        return;
    }
    for (point, stays) in [("source-held", true), ("source-committing", false)] {
        let Some(served) = Served::begin(2) else { return };
        let mut source = served.source();
        // The program only: its guardian comes by the same points.
        let once = served.dir.path().join("once");
        std::fs::write(&once, "").unwrap();
        source.env("MIGRATE_KILL", point).env("MIGRATE_ONCE", &once);
        let moved = served.moves(source, &["--lease", "1s"]);
        assert!(!moved.status.success() && !once.exists(), "{point}: {}", text(&moved));
        let phase = |n: usize| result(&run(served.host(n), &["status", "--all", "--json"]))["sessions"][0].clone();
        let runs = || (1..=2).find(|n| phase(*n)["phase"] == "moved");
        let at = if stays {
            0
        } else {
            wait(|| runs().is_some(), &format!("{point}: {} {}", phase(1), phase(2)));
            runs().unwrap()
        };
        let _copy = (at != 0).then(|| Ended(phase(at)["pid"].as_i64().unwrap() as i32));
        std::thread::sleep(Duration::from_millis(100));
        settles(&served, at, point);
        served.check(point);
    }
}
