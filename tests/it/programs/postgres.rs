//! PostgreSQL with open transactions: over TCP from outside, and over its UNIX socket from a psql that is part of the tree.

use super::stage::{ADDRESS, Program, Stage, fixture};
use std::process::{Command, Stdio};

pub(super) const POSTGRES: Program = Program {
    name: "postgres",
    needs: &[
        ("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
        ("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2"),
    ],
    user: "postgres",
    prepare,
    command: |stage| ["/bin/bash", &fixture("postgres.sh"), &stage.text(""), ADDRESS].map(str::to_owned).to_vec(),
};

fn prepare(stage: &Stage) -> Result<(), String> {
    // On a disk of its own, as a person would have it.
    let data = stage.path("disk/data");
    std::fs::create_dir_all(stage.path("disk")).map_err(|e| e.to_string())?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(stage.path("disk"), open).map_err(|e| e.to_string())?;
    std::os::unix::fs::symlink("disk/data", stage.path("data")).map_err(|e| e.to_string())?;
    let output = Command::new("setpriv")
        .args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"])
        .args(["/usr/lib/postgresql/15/bin/initdb", "-A", "trust", "-N", "--locale=C", "-D"])
        .arg(&data)
        .current_dir(stage.dir.path())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("setpriv: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let rules = data.join("pg_hba.conf");
    let before = std::fs::read_to_string(&rules).map_err(|e| e.to_string())?;
    std::fs::write(&rules, before + "host all all 10.77.0.0/24 trust\n").map_err(|e| e.to_string())
}

super::program!(POSTGRES);

#[test]
fn with_data() {
    super::stage::run(&POSTGRES, super::stage::How::WithData);
}
