//! Who would start the target again, end it, or clean up behind it: service managers, supervisors, container runtimes.
//!
//! Only operations that end the target here have to ask. `--supervisor ignore` means that a person takes care of it.

use super::systemd::{HeldUnits, Manager, MaskedUnit, is_unit_name};
use super::target::Resolved;
use super::words::{SessionId, Target};
use super::{container, options::Supervisor};
use crate::{
    blocker::{Blocker, codes},
    collect::preflight::reach::object,
    failure::Result,
    image::{Model, Pid},
    proc::table::{Row, Table},
};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};

/// Programs that start their children again when they end.
const SUPERVISORS: [&str; 8] =
    ["supervisord", "runsv", "s6-supervise", "supervise", "monit", "circusd", "dinit", "perpd"];

/// What watches processes of the tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// What is in the way.
    pub blockers: Vec<Blocker>,
    /// Units to hold ([`Manager::hold`]).
    pub units: Vec<String>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Everything that watches processes of the tree.
pub fn look(table: &Table, roots: &[Pid], processes: &[Pid], choice: Supervisor) -> Watched {
    look_at(Manager::here().as_ref(), table, roots, processes, choice)
}

fn look_at(manager: Option<&Manager>, table: &Table, roots: &[Pid], processes: &[Pid], choice: Supervisor) -> Watched {
    let mut watched = Watched::default();
    if choice == Supervisor::Ignore {
        return watched;
    }
    let rows = |pids: &[Pid]| pids.iter().filter_map(|pid| table.get(*pid)).collect::<Vec<&Row>>();
    watched.blockers = rows(roots).into_iter().filter_map(|row| self::watched(table, row)).collect();
    let Some(manager) = manager else { return watched };
    for unit in services(&rows(processes)) {
        let Some(shown) = manager.show(&unit) else { continue };
        let found = judge(&unit, &shown, processes);
        if choice == Supervisor::Hold {
            watched.hold(unit, found);
        } else {
            watched.blockers.extend(found);
        }
    }
    watched
}

impl Watched {
    /// What holding takes away.
    fn hold(&mut self, unit: String, found: Vec<Blocker>) {
        for blocker in found {
            match blocker.code {
                codes::SUPERVISED => self.units.push(unit.clone()),
                codes::WATCHDOG => self.warnings.push(format!("{unit}: {}: a longer pause ends it", blocker.reason)),
                _ => self.blockers.push(blocker),
            }
        }
    }
}

/// What is done about supervisors of a target: who names a unit wants it held.
pub fn choice(target: &Target, given: Supervisor) -> Supervisor {
    match (target, given) {
        (Target::Unit(_), Supervisor::Refuse) => Supervisor::Hold,
        (_, given) => given,
    }
}

/// Keeps the units of a target from starting it again; `None` where there is nothing to hold.
///
/// # Errors
/// A unit cannot be held.
pub fn hold(resolved: &Resolved, choice: Supervisor, session: SessionId) -> Result<Option<HeldUnits>> {
    let Some(manager) = Manager::here().filter(|_| choice == Supervisor::Hold) else { return Ok(None) };
    let watched = look(&resolved.table, &resolved.roots, &resolved.processes, choice);
    if watched.units.is_empty() { Ok(None) } else { manager.hold(session, watched.units).map(Some) }
}

/// The unit of the same name as the one the tree ran in, if it would run the program beside it here: what is in the way, and
/// which unit to mask ([`Manager::mask`]).
pub fn beside(model: &Model, choice: Supervisor) -> (Vec<Blocker>, Option<String>) {
    beside_at(Manager::here().as_ref(), model, choice)
}

/// Keeps a unit from being started, until the guard is dropped or told to stay.
///
/// # Errors
/// It cannot be.
pub fn mask(unit: Option<String>) -> Result<Option<MaskedUnit>> {
    match (Manager::here(), unit) {
        (Some(manager), Some(unit)) => manager.mask(&unit).map(Some),
        _ => Ok(None),
    }
}

/// Directories that the manager has made for the services of a target, and takes away with them: those for run time, and of
/// its own what the services see as temporary ones and as ways in for mounts. Another host has none of them.
pub fn directories(resolved: &Resolved) -> Vec<PathBuf> {
    let Some(manager) = Manager::here() else { return Vec::new() };
    let rows: Vec<&Row> = resolved.processes.iter().filter_map(|pid| resolved.table.get(*pid)).collect();
    let of = |unit: String| directories_of(&unit, &manager.show(&unit).unwrap_or_default(), Path::new("/"));
    services(&rows).into_iter().flat_map(of).collect()
}

fn directories_of(unit: &str, shown: &HashMap<String, String>, root: &Path) -> Vec<PathBuf> {
    let run_time = shown.get("RuntimeDirectory").map(String::as_str).unwrap_or_default();
    let run_time = run_time.split_whitespace().map(|name| root.join("run").join(name));
    let ways_in = root.join("run/systemd/propagate").join(unit);
    // systemd-private-BOOT-UNIT-RANDOM
    let infix = format!("-{unit}-");
    let is_private = |entry: &DirEntry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("systemd-private-") && name.contains(&infix))
    };
    let entries = ["tmp", "var/tmp"].map(|dir| fs::read_dir(root.join(dir)).into_iter().flatten().flatten());
    let private = entries.into_iter().flatten().filter(is_private).map(|entry| entry.path());
    run_time.chain([ways_in]).chain(private).filter(|path| path.is_dir()).collect()
}

fn beside_at(manager: Option<&Manager>, model: &Model, choice: Supervisor) -> (Vec<Blocker>, Option<String>) {
    let nothing = (Vec::new(), None);
    let set = model.root().cgroups.and_then(|id| model.cgroups.get(id.at()));
    let of = |controllers: &str| {
        set?.memberships.iter().find(|m| m.controllers == controllers && m.path.0 != b"/").map(|m| &m.path.0[..])
    };
    let unit = of("name=systemd").or_else(|| of("")).and_then(unit_of);
    let (Some(manager), Some(unit)) = (manager, unit.filter(|_| choice != Supervisor::Ignore)) else { return nothing };
    let Some(shown) = manager.show(&unit) else { return nothing };
    let value = |key: &str| shown.get(key).map(String::as_str).unwrap_or_default();
    if !matches!(value("LoadState"), "loaded" | "") {
        return nothing;
    }
    match value("ActiveState") {
        "active" | "activating" | "reloading" | "deactivating" => {
            let reason = format!("it is {} here", value("ActiveState"));
            (vec![Blocker::new(codes::UNIT_BESIDE, unit).because(reason)], None)
        }
        _ => (Vec::new(), Some(unit).filter(|_| choice == Supervisor::Hold)),
    }
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
    paths.filter_map(unit_of).collect()
}

/// The system's service in the path of a cgroup.
fn unit_of(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let step = path.split('/').find(|step| step.ends_with(".service"))?;
    (!step.starts_with("user@") && is_unit_name(step)).then(|| step.to_owned())
}

fn judge(unit: &str, shown: &HashMap<String, String>, processes: &[Pid]) -> Vec<Blocker> {
    let value = |key: &str| shown.get(key).map(String::as_str).unwrap_or_default();
    let main = value("MainPID").parse().ok().map(Pid);
    if !main.is_some_and(|main| processes.contains(&main)) {
        // Only the end of the main process makes the manager act.
        return Vec::new();
    }
    let mut found = Vec::new();
    if !matches!(value("Restart"), "" | "no") {
        let reason = format!("systemd starts it again (Restart={})", value("Restart"));
        found.push(Blocker::new(codes::SUPERVISED, unit).because(reason));
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
    use crate::image::cgroup::{CgroupSet, Membership};
    use crate::image::tests::sample;
    use crate::ops::systemd;
    use crate::{
        blocker::Code,
        proc::{cgroup::Line, table::tests::row},
    };

    fn blockers(table: &Table, roots: &[Pid], processes: &[Pid], choice: Supervisor) -> Vec<Blocker> {
        look_at(None, table, roots, processes, choice).blockers
    }

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
        let shown = |text: &str| -> HashMap<String, String> {
            text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
        };
        let says = |text: &str| codes_of(&judge("x.service", &shown(text), &[Pid(10), Pid(11)]));
        assert_eq!(says("MainPID=10\nRestart=no\nWatchdogUSec=0\n"), []);
        assert_eq!(says("MainPID=10\nRestart=on-failure\nWatchdogUSec=infinity\n"), [codes::SUPERVISED]);
        assert_eq!(says("MainPID=11\nRestart=always\nWatchdogUSec=30s\n"), [codes::SUPERVISED, codes::WATCHDOG]);
        assert_eq!(says("MainPID=12\nRestart=always\n"), [], "a child of the service, not its main process");
        assert_eq!(says(""), []);
    }

    #[test]
    fn what_is_held_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let manager = systemd::tests::fake(dir.path(), 5);
        let mut row = row(5, 1, 5);
        let path = b"/system.slice/x.service".as_slice().into();
        row.cgroups.push(Line { hierarchy: 0, controllers: String::new(), path, deleted: false });
        let table = Table::of(vec![row]);
        let of = |choice| look_at(Some(&manager), &table, &[Pid(5)], &[Pid(5)], choice);
        assert_eq!(codes_of(&of(Supervisor::Refuse).blockers), [codes::SUPERVISED]);
        assert_eq!(of(Supervisor::Hold), Watched { units: vec!["x.service".into()], ..Watched::default() });
        assert_eq!(of(Supervisor::Ignore), Watched::default());
        assert_eq!(choice(&Target::Unit("x".into()), Supervisor::Refuse), Supervisor::Hold);
        assert_eq!(choice(&Target::Pid(Pid(5)), Supervisor::Refuse), Supervisor::Refuse);
    }

    #[test]
    fn a_unit_that_runs_here_is_in_the_way_of_one_that_comes() {
        let dir = tempfile::tempdir().unwrap();
        let manager = systemd::tests::fake(dir.path(), 5);
        let mut model = sample();
        let path = b"/system.slice/x.service".to_vec().into();
        model.cgroups = vec![CgroupSet { memberships: vec![Membership { controllers: String::new(), path }] }];
        model.tasks[0].cgroups = Some(crate::image::CgroupSetId(0));
        let of = |choice| {
            let (blockers, unit) = beside_at(Some(&manager), &model, choice);
            (codes_of(&blockers), unit)
        };
        assert_eq!(of(Supervisor::Refuse), (vec![codes::UNIT_BESIDE], None));
        assert_eq!(of(Supervisor::Hold), (vec![codes::UNIT_BESIDE], None), "nobody's program is stopped");
        assert_eq!(of(Supervisor::Ignore), (vec![], None));
        std::fs::write(dir.path().join("ended"), "").unwrap();
        assert_eq!(of(Supervisor::Refuse), (vec![], None));
        assert_eq!(of(Supervisor::Hold), (vec![], Some("x.service".into())));
    }

    #[test]
    fn directories_of_a_service_are_found() {
        let root = tempfile::tempdir().unwrap();
        let private = "tmp/systemd-private-0123-x.service-AbCdEf";
        let there = ["run/x", "run/systemd/propagate/x.service", private, "tmp/systemd-private-0123-y.service-AbCdEf"];
        there.iter().for_each(|dir| fs::create_dir_all(root.path().join(dir)).unwrap());
        let shown = HashMap::from([("RuntimeDirectory".to_owned(), "x gone".to_owned())]);
        let found = directories_of("x.service", &shown, root.path());
        assert_eq!(found, [there[0], there[1], there[2]].map(|dir| root.path().join(dir)));
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
