//! Who would start the target again, end it, or clean up behind it: service managers, supervisors, container runtimes.
//!
//! Only operations that end the target here have to ask. `--supervisor ignore` means that a person takes care of it.

use super::{container, options::Supervisor};
use crate::{
    blocker::{Blocker, codes},
    collect::preflight::reach::object,
    image::Pid,
    proc::table::{Row, Table},
};
use std::{
    collections::BTreeSet,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Programs that start their children again when they end.
const SUPERVISORS: [&str; 8] =
    ["supervisord", "runsv", "s6-supervise", "supervise", "monit", "circusd", "dinit", "perpd"];

/// How long `systemctl` may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that watches processes of the tree.
pub fn blockers(table: &Table, roots: &[Pid], processes: &[Pid], choice: Supervisor) -> Vec<Blocker> {
    if choice == Supervisor::Ignore {
        return Vec::new();
    }
    let rows = |pids: &[Pid]| pids.iter().filter_map(|pid| table.get(*pid)).collect::<Vec<&Row>>();
    let mut found: Vec<Blocker> = rows(roots).into_iter().filter_map(|row| watched(table, row)).collect();
    // Not running means that nothing is supervised by it.
    if Path::new("/run/systemd/system").exists() {
        for unit in services(&rows(processes)) {
            found.extend(ask("systemctl", &unit).map(|shown| judge(&unit, &shown, processes)).unwrap_or_default());
        }
    }
    found
}

/// A root below a container runtime or a supervisor.
fn watched(table: &Table, row: &Row) -> Option<Blocker> {
    if let Some(name) = (row.ns_pid.len() > 1).then(|| container::name(row)).flatten() {
        return Some(Blocker::new(codes::CONTAINER, format!("{} in {name}", object(row))));
    }
    let parent = table.get(row.parent())?;
    let comm = parent.stat.comm.to_string();
    SUPERVISORS.contains(&comm.as_str()).then(|| {
        let reason = format!("{} starts it again when it ends", object(parent));
        Blocker::new(codes::OTHER_SUPERVISOR, object(row)).because(reason)
    })
}

/// System services that hold a process of the tree. Services of a user's own manager are asked of that manager only by the
/// user, and are left to the person.
fn services(rows: &[&Row]) -> BTreeSet<String> {
    let paths = rows.iter().filter_map(|row| row.systemd_path());
    paths
        .filter_map(|path| {
            let path = std::str::from_utf8(path).ok()?;
            let step = path.split('/').find(|step| step.ends_with(".service"))?;
            (!step.starts_with("user@")).then(|| step.to_owned())
        })
        .collect()
}

/// What `systemctl show` says of a unit, as lines `KEY=VALUE`; `None` if it cannot be asked.
fn ask(systemctl: &str, unit: &str) -> Option<String> {
    let mut command = Command::new(systemctl);
    command.args(["show", "--property=MainPID,Restart,WatchdogUSec,RestartForceExitStatus", "--", unit]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let deadline = Instant::now() + PATIENCE;
    // It writes a few lines only, so it never waits for us to read.
    while child.try_wait().ok()?.is_none() {
        if Instant::now() > deadline {
            tracing::warn!("systemctl does not answer");
            // It is our own child; an error means that it has just ended.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut text = String::new();
    child.stdout.take()?.take(64 << 10).read_to_string(&mut text).ok()?;
    Some(text)
}

fn judge(unit: &str, shown: &str, processes: &[Pid]) -> Vec<Blocker> {
    let value =
        |key: &str| shown.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
    let main = value("MainPID").parse().ok().map(Pid);
    if !main.is_some_and(|main| processes.contains(&main)) {
        // Only the end of the main process makes the manager act.
        return Vec::new();
    }
    let mut found = Vec::new();
    if !matches!(value("Restart"), "" | "no") {
        let reason = format!("systemd starts it again (Restart={})", value("Restart"));
        let remedy = format!("systemctl edit --runtime {unit} with Restart=no, then --supervisor ignore");
        found.push(Blocker::new(codes::SUPERVISED, unit).because(reason).remedy(remedy));
    }
    if !matches!(value("WatchdogUSec"), "" | "0" | "infinity") {
        let reason = format!("systemd expects a sign of life every {}", value("WatchdogUSec"));
        found.push(Blocker::new(codes::WATCHDOG, unit).because(reason));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        blocker::Code,
        proc::{cgroup::Line, table::tests::row},
    };
    use std::os::unix::fs::PermissionsExt;

    fn codes_of(blockers: &[Blocker]) -> Vec<Code> {
        blockers.iter().map(|b| b.code).collect()
    }

    #[test]
    fn parents_that_start_their_children_again() {
        let mut parent = row(5, 1, 5);
        parent.stat.comm = b"runsv".as_slice().into();
        let table = Table::of(vec![parent, row(6, 5, 6), row(7, 6, 7)]);
        let found = blockers(&table, &[Pid(6)], &[Pid(6), Pid(7)], Supervisor::Refuse);
        assert_eq!(codes_of(&found), [codes::OTHER_SUPERVISOR]);
        assert!(found[0].reason.contains("pid 5 (runsv)"), "{found:?}");
        assert_eq!(blockers(&table, &[Pid(7)], &[Pid(7)], Supervisor::Refuse), []);
        assert_eq!(blockers(&table, &[Pid(6)], &[Pid(6)], Supervisor::Ignore), []);
    }

    #[test]
    fn containers_of_a_runtime_below_us() {
        let mut inner = row(300, 1, 300);
        inner.ns_pid = vec![300, 1];
        let path = format!("/docker/{}", "ab".repeat(32)).into_bytes().into();
        inner.cgroups.push(Line { hierarchy: 0, controllers: String::new(), path, deleted: false });
        let mut same_ns = inner.clone();
        same_ns.ns_pid = vec![300];
        let refused =
            |row: Row| codes_of(&blockers(&Table::of(vec![row]), &[Pid(300)], &[Pid(300)], Supervisor::Refuse));
        assert_eq!(refused(inner), [codes::CONTAINER]);
        assert_eq!(refused(same_ns), [], "this command is in that container itself");
    }

    #[test]
    fn what_systemd_says_of_a_unit() {
        let says = |text: &str| codes_of(&judge("x.service", text, &[Pid(10), Pid(11)]));
        assert_eq!(says("MainPID=10\nRestart=no\nWatchdogUSec=0\n"), []);
        assert_eq!(says("MainPID=10\nRestart=on-failure\nWatchdogUSec=infinity\n"), [codes::SUPERVISED]);
        assert_eq!(says("MainPID=11\nRestart=always\nWatchdogUSec=30s\n"), [codes::SUPERVISED, codes::WATCHDOG]);
        assert_eq!(says("MainPID=12\nRestart=always\n"), [], "a child of the service, not its main process");
        assert_eq!(says(""), []);
    }

    #[test]
    fn systemctl_is_asked_and_its_silence_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("systemctl");
        std::fs::write(&path, "#!/bin/sh\necho \"MainPID=$#\"; echo Restart=always\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let shown = ask(path.to_str().unwrap(), "x.service").unwrap();
        assert_eq!(shown, "MainPID=4\nRestart=always\n");
        assert_eq!(ask("/no/such/systemctl", "x.service"), None);
    }

    #[test]
    fn services_of_the_system_only() {
        let at = |pid: i32, path: &str| {
            let mut row = row(pid, 1, pid);
            let path = path.as_bytes().into();
            row.cgroups.push(Line { hierarchy: 0, controllers: String::new(), path, deleted: false });
            row
        };
        let rows = [
            at(5, "/system.slice/a.service/x"),
            at(6, "/user.slice/user-1.slice/user@1.service/app.slice/b.service"),
            at(7, "/"),
        ];
        assert_eq!(services(&rows.iter().collect::<Vec<_>>()).into_iter().collect::<Vec<_>>(), ["a.service"]);
    }
}
