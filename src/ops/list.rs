//! `migrate list`: what there is on this host to be moved.
//!
//! An administrator thinks of services, containers, sessions and jobs, not of processes. A process appears below the first
//! of these that holds it; a shell's jobs are shown beside the session they run in.

use super::{
    check::peers::{self, PeerReport},
    container,
    options::ListOptions,
    words::Target,
};
use crate::{
    blocker::{Blocker, codes},
    collect::preflight::reach,
    failure::{Failure, Result},
    image::Pid,
    proc::table::{Row, Table},
    transport::Abort,
};
use std::collections::{BTreeMap, HashSet};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A systemd service (or another unit that is not a login session).
    Unit,
    /// A container: everything below the first process of a PID namespace.
    Container,
    /// A daemon or other tree started by the system.
    Tree,
    /// A session on a terminal, with all it has started.
    Session,
    /// A job of a session.
    Job,
}

/// One thing that could be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// How other verbs name it.
    pub target: Target,
    /// Name of the unit, the container (as far as its cgroup tells), or the root process.
    pub name: String,
    /// Its root (the first one).
    pub root: Pid,
    /// Real user of the root.
    pub uid: u32,
    /// Processes, zombies included.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Memory that would travel, bytes: private pages in memory or swapped out, and shared memory of the process that maps
    /// most of it (as a rule they map the same).
    pub memory_bytes: u64,
    /// The first thing found to be in the way, of those that can be seen without looking into the processes; `None` =
    /// nothing. `migrate check TARGET` looks closely.
    pub blocker: Option<Blocker>,
}

/// Everything on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// By kind, the largest first.
    pub entries: Vec<Entry>,
    /// Destinations, in the order in which they were named.
    pub peers: Vec<PeerReport>,
}

impl Entry {
    /// The first thing in the way there, as far as it can be seen from outside of its processes: nothing is stopped for a list.
    pub fn blocker_at(&self, peer: &PeerReport) -> Option<Blocker> {
        let (needed, free) = (self.memory_bytes, peer.host.memory_available_bytes);
        let short = || {
            let reason = format!("{needed} bytes are needed, {free} are available");
            let blocker = Blocker::new(codes::MEMORY_SHORT, format!("memory of {}", peer.dest)).because(reason);
            // 0: not known.
            (free > 0 && needed > free).then_some(blocker)
        };
        self.blocker.clone().or_else(|| peer.blockers.first().cloned()).or_else(short)
    }
}

/// Lists what there is, and asks the destinations that are named.
///
/// # Errors
/// `/proc` cannot be read. A destination that cannot be reached is a blocker of everything.
pub fn run(options: &ListOptions, abort: &Abort) -> Result<Listing> {
    let table = Table::read().map_err(|e| Failure::of("Cannot list processes", &e))?;
    let mut listing = listing(&table, &reach::Own::now());
    listing.peers = options.to.iter().map(|dest| peers::reach(dest, &options.peer, abort)).collect();
    Ok(listing)
}

fn listing(table: &Table, own: &reach::Own) -> Listing {
    let mut taken: HashSet<Pid> =
        table.rows().iter().filter(|r| r.is_kernel() || r.pid == Pid(1)).map(|r| r.pid).collect();
    let mut entries = Vec::new();
    for row in table.rows().iter().filter(|row| row.is_inner_init()) {
        // A container in a container belongs to the outer one.
        if taken.contains(&row.pid) || table.ancestors(row.pid).iter().any(|a| taken.contains(a) && *a != Pid(1)) {
            continue;
        }
        let members = table.tree(row.pid);
        taken.extend(&members);
        let name = container::name(row).unwrap_or_else(|| row.stat.comm.to_string());
        entries.push(entry(table, own, Kind::Container, Target::Pid(row.pid), name, &members));
    }
    for (name, members) in units(table, &taken) {
        taken.extend(&members);
        entries.push(entry(table, own, Kind::Unit, Target::Unit(name.clone()), name, &members));
    }
    for row in table.rows().iter().filter(|row| !taken.contains(&row.pid)) {
        if let Some(kind) = kind_of(table, row, &taken) {
            let members = table.tree(row.pid);
            entries.push(entry(table, own, kind, Target::Pid(row.pid), row.stat.comm.to_string(), &members));
        }
    }
    entries.sort_by(|a, b| (a.kind, b.memory_bytes, a.root).cmp(&(b.kind, a.memory_bytes, b.root)));
    Listing { entries, peers: Vec::new() }
}

fn entry(table: &Table, own: &reach::Own, kind: Kind, target: Target, name: String, members: &[Pid]) -> Entry {
    let rows: Vec<&Row> = members.iter().filter_map(|pid| table.get(*pid)).collect();
    let private: u64 = rows.iter().filter_map(|r| r.memory).map(|m| m.rss_anon + m.swap + m.hugetlb).sum();
    let shared = rows.iter().filter_map(|r| r.memory).map(|m| m.rss_shmem).max().unwrap_or(0);
    let threads: i64 = rows.iter().map(|r| r.stat.num_threads.max(1)).sum();
    let blocker = rows.iter().find_map(|row| reach::of_process(row, own));
    Entry {
        kind,
        target,
        name,
        root: members.first().copied().unwrap_or(Pid(0)),
        uid: rows.first().map_or(0, |row| row.uids[0]),
        processes: u32::try_from(rows.len()).unwrap_or(u32::MAX),
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        memory_bytes: private + shared,
        blocker,
    }
}

/// The last step of a path that is a service or a scope; none for login sessions and user managers.
fn unit_of(path: &[u8]) -> Option<String> {
    let step = path.split(|&b| b == b'/').rfind(|step| step.ends_with(b".service") || step.ends_with(b".scope"))?;
    let name = std::str::from_utf8(step).ok()?;
    let is_session = name.starts_with("session-") && name.ends_with(".scope");
    (!is_session && !name.starts_with("user@") && name != "init.scope").then(|| name.to_owned())
}

/// Units with their processes, by name. A unit of the same name of another user counts as the same here.
fn units(table: &Table, taken: &HashSet<Pid>) -> BTreeMap<String, Vec<Pid>> {
    let mut units: BTreeMap<String, Vec<Pid>> = BTreeMap::new();
    for row in table.rows().iter().filter(|row| !taken.contains(&row.pid)) {
        if let Some(name) = row.systemd_path().and_then(unit_of) {
            units.entry(name).or_default().push(row.pid);
        }
    }
    for members in units.values_mut() {
        // Parents before children: numbers wrap around.
        members.sort_by_key(|pid| (table.ancestors(*pid).len(), *pid));
    }
    units
}

/// Whether a process that is in no unit or container is the root of something.
fn kind_of(table: &Table, row: &Row, taken: &HashSet<Pid>) -> Option<Kind> {
    let parent = table.get(row.parent());
    let on_terminal = |row: &Row| row.stat.tty_nr != 0;
    let leads_session = row.stat.session == row.pid.0;
    match parent {
        // Below a unit's process, but in no unit itself: a login session's shell below sshd, moved out by logind.
        _ if on_terminal(row) && leads_session => Some(Kind::Session),
        None => Some(Kind::Tree),
        Some(parent) if taken.contains(&parent.pid) => Some(if on_terminal(row) { Kind::Job } else { Kind::Tree }),
        Some(parent) => {
            let leads_group = row.stat.pgrp == row.pid.0;
            let parent_is_shell = parent.stat.session == parent.pid.0 && on_terminal(parent);
            (leads_group && parent_is_shell && row.stat.session == parent.stat.session).then_some(Kind::Job)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{cgroup::Line, status::Memory, table::tests::row};
    use crate::transport::hello::HostFacts;

    fn at(mut row: Row, path: &str) -> Row {
        row.cgroups.push(Line {
            hierarchy: 0,
            controllers: String::new(),
            path: path.as_bytes().into(),
            deleted: false,
        });
        row
    }

    /// On a terminal, as the leader of a process group.
    fn tty(mut row: Row) -> Row {
        row.stat.tty_nr = 34816;
        row.stat.pgrp = row.pid.0;
        row
    }

    fn sized(mut row: Row, anon: u64, shmem: u64) -> Row {
        row.memory = Some(Memory { rss_anon: anon, rss_shmem: shmem, ..Memory::default() });
        row
    }

    fn listed(rows: Vec<Row>) -> Vec<(Kind, String, u32)> {
        let own = reach::Own { pid: Pid(9999), ancestors: vec![], euid: 0 };
        listing(&Table::of(rows), &own)
            .entries
            .into_iter()
            .map(|e| (e.kind, e.target.to_string(), e.processes))
            .collect()
    }

    #[test]
    fn services_containers_sessions_and_jobs() {
        let mut container =
            at(row(300, 30, 300), "/docker/1111111111111111111111111111111111111111111111111111111111111111");
        container.ns_pid = vec![300, 1];
        let rows = vec![
            row(1, 0, 1),
            at(row(20, 1, 20), "/system.slice/pg.service"),
            at(row(21, 20, 21), "/system.slice/pg.service"),
            at(row(30, 1, 30), "/system.slice/containerd.service"),
            container,
            row(301, 300, 300),
            at(row(40, 1, 40), "/system.slice/ssh.service"),
            tty(at(row(41, 40, 41), "/user.slice/user-0.slice/session-1.scope")),
            tty(at(row(42, 41, 41), "/user.slice/user-0.slice/session-1.scope")),
            at(row(43, 42, 41), "/user.slice/user-0.slice/session-1.scope"),
            row(50, 1, 50),
            row(51, 50, 51),
        ];
        let expected = [
            (Kind::Unit, "unit:pg.service", 2),
            (Kind::Unit, "unit:containerd.service", 1),
            (Kind::Unit, "unit:ssh.service", 1),
            (Kind::Container, "300", 2),
            (Kind::Tree, "50", 2),
            (Kind::Session, "41", 3),
            (Kind::Job, "42", 2),
        ];
        assert_eq!(listed(rows), expected.map(|(k, t, n)| (k, t.to_owned(), n)));
    }

    #[test]
    fn memory_counts_shared_pages_once() {
        let rows = vec![sized(row(10, 1, 10), 100, 1000), sized(row(11, 10, 11), 50, 900)];
        let own = reach::Own { pid: Pid(9999), ancestors: vec![], euid: 0 };
        let entries = listing(&Table::of(rows), &own).entries;
        assert_eq!((entries.len(), entries[0].memory_bytes, entries[0].threads), (1, 1150, 2));
    }

    #[test]
    fn what_is_in_the_way_here_comes_before_what_is_there() {
        let own = reach::Own { pid: Pid(9999), ancestors: vec![], euid: 0 };
        let mut entry = listing(&Table::of(vec![sized(row(10, 1, 10), 1000, 0)]), &own).entries.remove(0);
        let mut peer = PeerReport {
            dest: "b".parse().unwrap(),
            program: Some("1".to_owned()),
            host: HostFacts { memory_available_bytes: 999, ..HostFacts::default() },
            blockers: Vec::new(),
            targets: Vec::new(),
        };
        let code = |entry: &Entry, peer: &PeerReport| entry.blocker_at(peer).map(|blocker| blocker.code);
        assert_eq!(code(&entry, &peer), Some(codes::MEMORY_SHORT));
        for enough in [0, 1000] {
            peer.host.memory_available_bytes = enough;
            assert_eq!(code(&entry, &peer), None);
        }
        peer.blockers.push(Blocker::new(codes::ARCHITECTURE, "b"));
        assert_eq!(code(&entry, &peer), Some(codes::ARCHITECTURE));
        entry.blocker = Some(Blocker::new(codes::TRACED, "pid 10"));
        assert_eq!(code(&entry, &peer), Some(codes::TRACED));
    }

    #[test]
    fn a_child_of_ours_is_below_an_entry_and_this_program_is_blocked() {
        let listing = run(&ListOptions::default(), &Abort::new().unwrap()).unwrap();
        let own = Pid(std::process::id() as i32);
        let table = Table::read().unwrap();
        let mut line = table.ancestors(own);
        line.push(own);
        let ours: Vec<_> = listing.entries.iter().filter(|e| line.contains(&e.root)).collect();
        assert!(!ours.is_empty(), "{listing:?}");
        assert!(ours.iter().all(|e| e.blocker.is_some()), "{ours:?}");
    }
}
