//! Processes and threads.

use super::{Checker, limits};
use crate::image::{
    NsPid,
    creds::Seccomp,
    signals::SigInfo,
    task::{Task, TaskState, Thread},
};
use std::collections::HashSet;

/// `struct user_regs_struct` of x86-64 in words.
const GENERAL_REGISTERS: usize = 27;
/// `siginfo_t` in bytes.
const SIGINFO: usize = 128;
/// Signals there are.
const SIGNALS: usize = 64;
/// Resource limits there can be; the kernel has 16.
const RLIMITS: usize = 64;
/// Name of a thread, without the NUL.
const COMM: usize = 15;
/// PID namespaces below each other: the kernel's `MAX_PID_NS_LEVEL`.
const PID_LEVELS: usize = 32;
/// Bytes of a processor mask: 65536 processors.
const AFFINITY: usize = 8192;

pub(super) fn check(c: &mut Checker<'_>) {
    let model = c.model;
    c.must(!model.tasks.is_empty(), "tasks", "has no root");
    c.must(model.tasks.len() <= limits::TASKS, "tasks", "has more processes than a kernel can");
    let mut ids = HashSet::new();
    c.each("tasks", &model.tasks, |c, n, task| {
        parent(c, n, task);
        id(c, task.pid, "pid");
        if task.state_is_zombie() {
            if !ids.insert(task.pid) {
                c.flaw("pid", format!("{} is there twice", task.pid));
            }
        } else if task.threads.first().is_some_and(|t| t.tid != task.pid) {
            c.flaw("threads[0].tid", "the leader's is not the process id");
        }
        c.each("threads", &task.threads, |c, _, thread| {
            if !ids.insert(thread.tid) {
                c.flaw("tid", format!("{} is there twice", thread.tid));
            }
            check_thread(c, thread);
        });
        alive_or_dead(c, task);
        shared(c, task);
    });
    c.each("sighands", &model.sighands, |c, _, sighand| {
        c.must(sighand.actions.len() == SIGNALS, "actions", "there are 64 signals");
    });
    c.each("fs", &model.fs, |c, _, fs| {
        c.path_ref(&fs.cwd, "cwd");
        if let Some(ghost) = fs.removed_cwd
            && c.index(ghost.at(), model.ghosts.len(), "removed_cwd")
        {
            let directory = model.ghosts[ghost.at()].path.mode & libc::S_IFMT == libc::S_IFDIR;
            c.must(directory, "removed_cwd", "is no directory");
        }
        c.path_ref(&fs.root, "root");
    });
    c.each("seccomp_filters", &model.seccomp_filters, |c, _, filter| {
        c.must((1..=4096).contains(&filter.program.len()), "program", "has an impossible length");
    });
}

impl Task {
    fn state_is_zombie(&self) -> bool {
        matches!(self.state, TaskState::Zombie(_))
    }
}

fn parent(c: &mut Checker<'_>, n: usize, task: &Task) {
    match task.parent {
        None => c.must(n == 0, "parent", "only the first process is the root"),
        Some(_) if n == 0 => c.flaw("parent", "the root has none"),
        Some(parent) if parent.at() >= n => c.flaw("parent", "parents come before their children"),
        Some(parent) => {
            let dead = c.model.tasks[parent.at()].state_is_zombie();
            c.must(!dead, "parent", "a zombie has no children");
        }
    }
}

fn id(c: &mut Checker<'_>, id: NsPid, step: &str) {
    if !(1..limits::PID).contains(&id.0) {
        c.flaw(step, format!("{id} is no process id"));
    }
}

fn alive_or_dead(c: &mut Checker<'_>, task: &Task) {
    if task.state_is_zombie() {
        c.must(task.mm.is_none() && task.sighand.is_none(), "", "a zombie has no memory and no signal handlers");
        return;
    }
    c.must(!task.threads.is_empty(), "threads", "a living process has one");
    match task.mm {
        None => c.flaw("mm", "a living process has an address space"),
        Some(mm) => drop(c.index(mm.at(), c.model.mms.len(), "mm")),
    }
    match task.sighand {
        None => c.flaw("sighand", "a living process has a table of signal actions"),
        Some(sighand) => drop(c.index(sighand.at(), c.model.sighands.len(), "sighand")),
    }
}

fn shared(c: &mut Checker<'_>, task: &Task) {
    for pid in &task.inner_pids {
        id(c, *pid, "inner_pids");
    }
    c.must(task.inner_pids.len() <= PID_LEVELS, "inner_pids", "is nested too deeply");
    for (group, step) in [(task.pgid, "pgid"), (task.sid, "sid")] {
        c.must((0..limits::PID).contains(&group.0), step, "is no id of a group");
    }
    c.must(task.rlimits.len() <= RLIMITS, "rlimits", "has more than there are");
    if let Some(set) = task.cgroups {
        c.index(set.at(), c.model.cgroups.len(), "cgroups");
    }
    pending(c, &task.pending);
    let ns = &task.namespaces;
    // A zombie has left its namespaces; its indices only have to be in range.
    for (id, step, kind) in [
        (ns.mnt, "namespaces.mnt", "mnt"),
        (ns.net, "namespaces.net", "net"),
        (ns.pid, "namespaces.pid", "pid"),
        (ns.pid_for_children, "namespaces.pid_for_children", "pid"),
        (ns.user, "namespaces.user", "user"),
        (ns.uts, "namespaces.uts", "uts"),
        (ns.ipc, "namespaces.ipc", "ipc"),
        (ns.cgroup, "namespaces.cgroup", "cgroup"),
        (ns.time, "namespaces.time", "time"),
        (ns.time_for_children, "namespaces.time_for_children", "time"),
    ] {
        if task.state_is_zombie() {
            c.index(id.at(), c.model.namespaces.len(), step);
        } else {
            c.namespace(id, step, kind);
        }
    }
}

fn pending(c: &mut Checker<'_>, signals: &[SigInfo]) {
    c.must(signals.iter().all(|s| s.0.0.len() == SIGINFO), "pending", "a siginfo has 128 bytes");
}

fn check_thread(c: &mut Checker<'_>, thread: &Thread) {
    if let Some(policy) = &thread.numa {
        c.policy(policy, "numa");
    }
    id(c, thread.tid, "tid");
    for tid in &thread.inner_tids {
        id(c, *tid, "inner_tids");
    }
    c.must(thread.inner_tids.len() <= PID_LEVELS, "inner_tids", "is nested too deeply");
    c.text(&thread.comm, "comm", COMM);
    c.must(thread.regs.general.len() == GENERAL_REGISTERS, "regs.general", "there are 27 general registers");
    c.must(thread.regs.xstate.0.len() <= limits::XSTATE, "regs.xstate", "is larger than any");
    c.must(thread.sched.affinity.0.len() <= AFFINITY, "sched.affinity", "names more processors than there can be");
    c.must((-20..=19).contains(&thread.sched.nice), "sched.nice", "is out of range");
    c.index(thread.fd_table.at(), c.model.fd_tables.len(), "fd_table");
    c.index(thread.fs.at(), c.model.fs.len(), "fs");
    if let Some(set) = thread.cgroups {
        c.index(set.at(), c.model.cgroups.len(), "cgroups");
    }
    if let Seccomp::Filter(filters) = &thread.seccomp {
        for filter in filters {
            c.index(filter.at(), c.model.seccomp_filters.len(), "seccomp");
        }
    }
    c.must(thread.creds.groups.len() <= 65536, "creds.groups", "has more than a kernel allows");
    pending(c, &thread.pending);
}
