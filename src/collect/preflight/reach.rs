//! Which processes this command may touch at all: the part of the preflight that needs nothing but `/proc`, and therefore
//! also answers where the rest cannot look.

use crate::{
    blocker::{Blocker, codes},
    image::Pid,
    proc::{
        ProcDir,
        table::{Row, Table},
    },
};
use nix::fcntl::OFlag;
use std::collections::HashSet;

/// What this command is: whom it must not stop, and what it may do.
#[derive(Debug, Clone)]
pub struct Own {
    /// Its process id.
    pub pid: Pid,
    /// Its parent, grandparent and so on.
    pub ancestors: Vec<Pid>,
    /// Its effective user.
    pub euid: u32,
}

impl Own {
    /// This process now. A table of processes may lack it: the kernel's list of children of a running process leaves some out while
    /// others end (proc_pid_children(5)), and its ancestors must be known for sure.
    pub fn now() -> Self {
        const LEVELS: usize = 1000;
        let pid = Pid(nix::unistd::getpid().as_raw());
        let mut buf = Vec::new();
        let mut parent = |pid: &Pid| {
            let stat = ProcDir::open(*pid).and_then(|dir| dir.stat(&mut buf)).ok()?;
            (stat.ppid > 0).then_some(Pid(stat.ppid))
        };
        let ancestors = std::iter::successors(parent(&pid), |pid| parent(pid)).take(LEVELS).collect();
        Self { pid, ancestors, euid: nix::unistd::geteuid().as_raw() }
    }
}

/// How a message names a process: `pid 12 (redis-server)`.
pub fn object(row: &Row) -> String {
    format!("pid {} ({})", row.pid, row.stat.comm)
}

/// What stands in the way of stopping and reading one process.
pub fn of_process(row: &Row, own: &Own) -> Option<Blocker> {
    if row.is_kernel() || row.pid == Pid(1) && row.ns_pid.len() == 1 && own.pid != Pid(1) {
        let reason = if row.is_kernel() { "thread of the kernel" } else { "first process of this system" };
        return Some(Blocker::new(codes::KERNEL_THREAD, object(row)).because(reason));
    }
    if row.pid == own.pid || own.ancestors.contains(&row.pid) {
        return Some(Blocker::new(codes::OWN_ANCESTOR, object(row)));
    }
    if row.tracer != 0 {
        let reason = format!("traced by process {}", row.tracer);
        return Some(Blocker::new(codes::TRACED, object(row)).because(reason));
    }
    if row.stat.is_zombie() {
        // Nothing is read of a zombie but its exit code; one with threads left cannot be handled.
        return (row.stat.num_threads > 1).then(|| Blocker::new(codes::LEADER_EXITED, object(row)));
    }
    access(row, own)
}

/// Opening `mem` asks the kernel exactly what ptrace would: ids, capabilities, dumpable, Yama, security modules. Nothing
/// happens to the process.
fn access(row: &Row, own: &Own) -> Option<Blocker> {
    let dir = ProcDir::open(row.pid).ok()?;
    let error = dir.open_file("mem", OFlag::O_RDWR).err()?;
    if error.is_gone() {
        return None;
    }
    let others = row.uids[..3].iter().any(|uid| *uid != own.euid);
    if others && own.euid != 0 {
        return Some(Blocker::new(codes::NO_PRIVILEGE, format!("{}, user {}", object(row), row.uids[0])));
    }
    // A process that is not dumpable shows its files as root's, but not its directory (task_dump_owner(), fs/proc/base.c).
    let owner = dir.stat_of("status").map_or(own.euid, |stat| stat.st_uid);
    if owner != row.uids[1] && own.euid != 0 {
        return Some(Blocker::new(codes::NOT_DUMPABLE, object(row)));
    }
    let cause = error.errno().map(nix::errno::Errno::from_raw);
    let reason = match crate::proc::sys::yama_ptrace_scope() {
        Ok(Some(scope)) if scope > 0 => format!("tracing is forbidden: kernel.yama.ptrace_scope is {scope}"),
        _ => format!("tracing is forbidden by the system ({})", cause.map_or("unknown", nix::errno::Errno::desc)),
    };
    Some(Blocker::new(codes::PTRACE_FORBIDDEN, object(row)).because(reason))
}

/// What stands in the way of stopping and reading any of these processes: everything, in their order.
pub fn blockers(table: &Table, processes: &[Pid]) -> Vec<Blocker> {
    let own = Own::now();
    let mut seen = HashSet::new();
    let rows = processes.iter().filter(|pid| seen.insert(**pid)).filter_map(|pid| table.get(*pid));
    rows.filter_map(|row| of_process(row, &own)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::table::tests::row;

    fn own() -> Own {
        Own { pid: Pid(100), ancestors: vec![Pid(50), Pid(1)], euid: 1000 }
    }

    fn code(row: &Row) -> Option<crate::blocker::Code> {
        of_process(row, &own()).map(|b| b.code)
    }

    #[test]
    fn what_must_not_be_stopped() {
        let mut kernel = row(2, 0, 0);
        kernel.stat.flags = 0x0020_0000;
        assert_eq!(code(&kernel), Some(codes::KERNEL_THREAD));
        assert_eq!(code(&row(1, 0, 0)), Some(codes::KERNEL_THREAD));
        assert_eq!(code(&row(50, 1, 0)), Some(codes::OWN_ANCESTOR));
        assert_eq!(code(&row(100, 50, 0)), Some(codes::OWN_ANCESTOR));
        let mut traced = row(200, 1, 0);
        traced.tracer = 7;
        assert_eq!(code(&traced), Some(codes::TRACED));
        let mut zombie = row(201, 1, 0);
        zombie.stat.state = b'Z';
        assert_eq!(code(&zombie), None);
        zombie.stat.num_threads = 3;
        assert_eq!(code(&zombie), Some(codes::LEADER_EXITED));
    }

    #[test]
    fn a_child_of_ours_can_be_touched_and_we_cannot() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep is installed");
        let table = Table::read().unwrap();
        let own = Pid(std::process::id() as i32);
        let (ours, childs) = (blockers(&table, &[own]), blockers(&table, &[Pid(child.id() as i32)]));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(ours.first().map(|b| b.code), Some(codes::OWN_ANCESTOR));
        assert_eq!(childs, []);
    }
}
