//! What stands in the way of saving a tree, found while it runs: nothing is stopped, only `/proc` is looked at.
//!
//! Everything is found at once, so that a person repairs all of it before the next attempt. The collection of the frozen
//! tree looks again: what has changed in between ends the dump, and the target runs on.

mod ipc;
mod memory;
mod namespaces;
pub mod reach;
mod sharing;
pub mod size;
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
    let (of_members, shared, tcp) = look_at(table, (&members, &dirs), processes, policy)?;
    blockers.extend(of_members);
    blockers.extend(members.first().map(frozen).transpose()?.into_iter().flatten());
    memory::mapped_outside(table, processes, &shared, &mut Vec::new(), &mut blockers);
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

/// Fewer processes than this are looked at by the calling thread: to make another costs as much.
const FEW: usize = 8;

/// What is in the way of these processes, their shared memory, and whether they have TCP sockets. Of many one half is looked for by
/// another thread.
fn look_at(
    table: &Table,
    (members, dirs): (&[Member<'_>], &[ProcDir]),
    processes: &[Pid],
    policy: &Policy,
) -> Result<(Vec<Blocker>, memory::Shared, bool)> {
    let Some(first) = members.first() else { return Ok(Default::default()) };
    let here = unless_gone(namespaces::Here::look(first.dir, processes).map(Some))?;
    let kinds = || Kinds::of(table, members, here.as_ref());
    let (kinds, (of_descriptors, tcp), (of_memory, shared)) = std::thread::scope(|scope| {
        let begin = || std::thread::Builder::new().name("preflight".to_owned()).spawn_scoped(scope, kinds).ok();
        let helper = (members.len() >= FEW).then(begin).flatten();
        let (of_descriptors, tcp) = fd::preflight(dirs, policy)?;
        let of_memory = memory(members, &of_descriptors)?;
        let kinds = helper.map_or_else(kinds, |helper| helper.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        Ok::<_, super::Error>((kinds?, (of_descriptors, tcp), of_memory))
    })?;
    let mut blockers = Vec::new();
    for ((task, namespaces), memory) in kinds.of_members.into_iter().zip(of_memory) {
        blockers.extend(task.into_iter().chain(memory).chain(namespaces));
    }
    blockers.extend(of_descriptors.into_iter().chain(kinds.sharing));
    Ok((blockers, shared, tcp))
}

/// What is in the way of each, of its memory.
fn memory(members: &[Member<'_>], of_descriptors: &[Blocker]) -> Result<(Vec<Vec<Blocker>>, memory::Shared)> {
    let depth = memory::Depth::fitting(members, of_descriptors);
    let (mut shared, mut buf) = (memory::Shared::default(), Vec::new());
    let mut look = |member: &Member<'_>| -> proc::Result<Vec<Blocker>> {
        let mut found = Vec::new();
        let mappings = memory::mappings(member, depth, &mut buf)?;
        memory::look(member, &mappings, &mut shared, &mut found);
        Ok(found)
    };
    let found = members.iter().map(|member| unless_gone(look(member))).collect::<Result<_>>()?;
    Ok((found, shared))
}

/// Nothing of a process that has ended meanwhile.
fn unless_gone<T: Default>(found: proc::Result<T>) -> Result<T> {
    match found {
        Err(e) if e.is_gone() => Ok(T::default()),
        found => Ok(found?),
    }
}

/// Kinds of programs and of namespaces that are in the way, and what is shared with others.
struct Kinds {
    /// Of each its program and confinement, and its namespaces.
    of_members: Vec<(Vec<Blocker>, Vec<Blocker>)>,
    sharing: Vec<Blocker>,
}

impl Kinds {
    fn of(table: &Table, members: &[Member<'_>], here: Option<&namespaces::Here<'_>>) -> Result<Self> {
        let mut buf = Vec::new();
        let mut look = |member: &Member<'_>| -> proc::Result<(Vec<Blocker>, Vec<Blocker>)> {
            let (mut task, mut namespaces) = (Vec::new(), Vec::new());
            tasks::look(member, &mut buf, &mut task)?;
            if let Some(here) = here {
                namespaces::look(member, here, &mut buf, &mut namespaces)?;
            }
            Ok((task, namespaces))
        };
        let of_members = members.iter().map(|member| unless_gone(look(member))).collect::<Result<_>>()?;
        let mut sharing = Vec::new();
        sharing::tables(table, members, &mut sharing);
        sharing::places(members, &mut sharing)?;
        Ok(Self { of_members, sharing })
    }
}

#[cfg(test)]
mod tests;
