//! python3 with threads, open and deleted files, mapped files, a child behind pipes, a pool of processes, asyncio.

use super::stage::{Program, fixture};

const PYTHON3: Program = Program {
    name: "python3",
    needs: &[("/usr/bin/python3", "python3")],
    user: "",
    prepare: |_| Ok(()),
    command: |stage| ["/usr/bin/python3", &fixture("job.py"), &stage.text("")].map(str::to_owned).to_vec(),
};

super::program!(PYTHON3);
