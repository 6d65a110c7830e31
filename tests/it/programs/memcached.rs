//! memcached with its threads and several connections.

use super::stage::{ADDRESS, Program};

const MEMCACHED: Program = Program {
    name: "memcached",
    needs: &[("/usr/bin/memcached", "memcached")],
    user: "nobody",
    prepare: |_| Ok(()),
    command: |_| ["/usr/bin/memcached", "-l", ADDRESS, "-p", "7003", "-t", "4", "-m", "64"].map(str::to_owned).to_vec(),
};

super::program!(MEMCACHED);
