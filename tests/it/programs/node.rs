//! node with timers, a worker thread, reads on its thread pool, and an HTTP connection that is kept alive.

use super::stage::{ADDRESS, Program, fixture};

const NODE: Program = Program {
    name: "node",
    needs: &[("/usr/bin/node", "nodejs")],
    user: "",
    prepare: |_| Ok(()),
    // Some versions of libuv use io_uring for files unless told not to.
    command: |_| {
        ["/usr/bin/env", "UV_USE_IO_URING=0", "/usr/bin/node", &fixture("server.js"), ADDRESS]
            .map(str::to_owned)
            .to_vec()
    },
};

super::program!(NODE);
