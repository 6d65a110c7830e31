//! sqlite3 in the middle of a transaction.

use super::stage::{Program, fixture};

const SQLITE3: Program = Program {
    name: "sqlite3",
    needs: &[("/usr/bin/sqlite3", "sqlite3")],
    user: "",
    prepare: |_| Ok(()),
    command: |stage| ["/bin/bash", &fixture("transaction.sh"), &stage.text("")].map(str::to_owned).to_vec(),
};

super::program!(SQLITE3);
