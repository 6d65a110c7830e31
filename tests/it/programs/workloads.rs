//! Programs that change all the time, moved by pre-copy: children that come and go, a save in the background, new connections.

use super::postgres::POSTGRES;
use super::stage::{ADDRESS, How, Program, fixture, run};

const FORKS: Program = Program {
    name: "forks",
    needs: &[("/bin/bash", "bash"), ("/usr/bin/expr", "coreutils")],
    user: "",
    prepare: |_| Ok(()),
    command: |stage| ["/bin/bash", &fixture("forks.sh"), &stage.text("")].map(str::to_owned).to_vec(),
};

/// A save takes some time for each key, of which there are so many that it takes longer than a move also where much else is done.
const SAVING: Program = Program {
    name: "saving",
    needs: &[("/usr/bin/redis-server", "redis-server"), ("/usr/bin/redis-check-rdb", "redis-tools")],
    user: "",
    prepare: |stage| stage.write("keys", "100000"),
    command: |stage| {
        let arguments = ["/usr/bin/redis-server", "--bind", ADDRESS, "--port", "7001", "--protected-mode", "no"];
        let data = stage.text("");
        let more = ["--save", "", "--rdb-key-save-delay", "120", "--enable-debug-command", "yes", "--dir", &data];
        arguments.iter().chain(&more).map(|word| (*word).to_owned()).collect()
    },
};

const ARRIVALS: Program = Program { name: "arrivals", ..POSTGRES };

#[test]
fn a_shell_that_forks_50_children_a_second() {
    run(&FORKS, How::PreCopied);
}

#[test]
fn redis_while_it_saves() {
    run(&SAVING, How::PreCopied);
}

#[test]
fn postgres_with_a_new_connection_every_20_ms() {
    run(&ARRIVALS, How::PreCopied);
}
