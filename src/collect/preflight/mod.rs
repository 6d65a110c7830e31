//! What stands in the way of saving a tree, found while it runs: nothing is stopped, only `/proc` is looked at.
//!
//! Everything is found at once, so that a person repairs all of it before the next attempt. The collection of the frozen
//! tree looks again: what has changed in between ends the dump, and the target runs on.

mod ipc;
mod memory;
mod namespaces;
pub mod reach;
mod sharing;
pub mod tasks;

use super::{Policy, Result, fd};
use crate::{
    blocker::{Blocker, codes},
    image::Pid,
    proc::{
        self, ProcDir,
        cgroupfs::{self, Freezer},
        table::Table,
    },
};

/// A process of the tree, with its directory held open.
struct Member<'a> {
    row: &'a crate::proc::table::Row,
    dir: &'a ProcDir,
}

/// What a preflight has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Everything in the way, in the order of the processes.
    pub blockers: Vec<Blocker>,
    /// Processes, zombies included.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Resident memory, bytes; pages that several processes have count for each.
    pub memory_bytes: u64,
    /// It has TCP sockets.
    pub tcp: bool,
    /// What a person should know, though it is not in the way.
    pub warnings: Vec<String>,
}

/// Looks at the processes of a tree.
///
/// # Errors
/// `/proc` cannot be read. A process that ends meanwhile is none.
pub fn run(table: &Table, processes: &[Pid], policy: &Policy) -> Result<Findings> {
    super::host::prepare();
    let own = reach::Own::now();
    let mut blockers = Vec::new();
    let mut dirs = Vec::new();
    let mut living = Vec::new();
    let rows: Vec<_> = processes.iter().filter_map(|pid| table.get(*pid)).collect();
    for row in &rows {
        if let Some(blocker) = reach::of_process(row, &own) {
            blockers.push(blocker);
        } else if !row.stat.is_zombie() {
            match ProcDir::open(row.pid) {
                Ok(dir) => {
                    dirs.push(dir);
                    living.push(*row);
                }
                Err(e) if e.is_gone() => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    let members: Vec<Member<'_>> = living.into_iter().zip(&dirs).map(|(row, dir)| Member { row, dir }).collect();
    let mut buf = Vec::new();
    let mut shared = memory::Shared::default();
    let (of_descriptors, tcp) = fd::preflight(&dirs, policy)?;
    let depth = memory::Depth::fitting(&members, &of_descriptors);
    for member in &members {
        let mut look = || -> proc::Result<()> {
            tasks::look(member, &mut buf, &mut blockers)?;
            let mappings = memory::mappings(member, depth, &mut buf)?;
            memory::look(member, &mappings, &mut shared, &mut blockers);
            namespaces::look(member, (members[0].dir, processes), &mut buf, &mut blockers)
        };
        match look() {
            Err(e) if !e.is_gone() => return Err(e.into()),
            _ => {}
        }
    }
    blockers.extend(members.first().map(|root| frozen(root)).transpose()?.into_iter().flatten());
    blockers.extend(of_descriptors);
    sharing::tables(table, &members, &mut blockers);
    sharing::places(&members, &mut blockers)?;
    memory::mapped_outside(table, processes, &shared, &mut buf, &mut blockers);
    let threads: i64 = rows.iter().map(|row| row.stat.num_threads.max(1)).sum();
    Ok(Findings {
        blockers,
        processes: u32::try_from(rows.len()).unwrap_or(u32::MAX),
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        tcp,
        warnings: ipc::left_behind(processes)?,
        memory_bytes: rows.iter().filter_map(|row| row.memory).map(|m| m.rss).sum(),
    })
}

/// Cgroups that hold the tree frozen and that we may not thaw, not even for the moment in which it is read.
fn frozen(root: &Member<'_>) -> Result<Vec<Blocker>> {
    use nix::unistd::{AccessFlags, access};
    let freezers = match cgroupfs::frozen(root.row.pid) {
        Err(e) if e.is_gone() => return Ok(Vec::new()),
        freezers => freezers?.into_iter(),
    };
    let ours = |file: &std::path::Path| access(file, AccessFlags::W_OK).is_ok();
    let blocker = |freezer: Freezer| {
        let object = format!("cgroup {} of {}", freezer.dir.display(), reach::object(root.row));
        Blocker::new(codes::CGROUP_FROZEN, object)
    };
    Ok(freezers.filter(|freezer| !ours(&freezer.file())).map(blocker).collect())
}

#[cfg(test)]
mod tests;
