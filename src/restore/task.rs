//! What a process and its threads have besides memory, descriptors and credentials.

use super::creds::{self, Own};
use super::{Error, Result, material::Material, numa, signals, skeleton::Skeletons, timers};
use crate::image::task::{Dead, Sched, Task, TaskState, Thread};
use crate::image::{Model, Pid, TaskId};
use crate::proc::ProcDir;
use crate::sys::abi::{SchedAttr, StackT};
use crate::sys::{Errno, sched, wait};
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};
use std::os::fd::AsRawFd;

/// Ends the tasks that were zombies, the way they had ended.
pub fn end_zombies(model: &Model, skeletons: &mut Skeletons) -> Result<()> {
    let zombies = model.tasks.iter().enumerate();
    for (n, task) in zombies {
        let TaskState::Zombie(status) = task.state else { continue };
        end(skeletons, TaskId::from(n), status, task.dead.as_ref())?;
    }
    Ok(())
}

fn end(skeletons: &mut Skeletons, id: TaskId, status: i32, dead: Option<&Dead>) -> Result<()> {
    let scratch = skeletons.scratch;
    let skeleton = skeletons.task(id);
    let pid = skeleton.pid;
    let mut remote = skeleton.threads.pop().ok_or_else(|| gone(pid))?;
    let mut batch = Batch::new();
    // No core file for a death that happened long ago.
    let none = batch.bytes(&[0; 16]);
    batch.must(libc::SYS_setrlimit, &[libc::RLIMIT_CORE.into(), none]);
    if let Some(dead) = dead {
        let comm = batch.c_string(&dead.comm.0);
        batch.prctl(libc::PR_SET_NAME, comm, 0u64);
        creds::ids(&mut batch, &dead.creds, &Own::read());
    }
    let signal = status & 0x7f;
    if signal == 0 {
        batch.must(libc::SYS_exit_group, &[(status >> 8 & 0xff).into()]);
    } else {
        let default = batch.bytes(&[0; 32]);
        batch.may(libc::SYS_rt_sigaction, &[signal.into(), default, 0u64.into(), 8u64.into()]);
        // A signal that is blocked would be queued instead of taken.
        remote.saved_mask = 0;
    }
    let ran = remote.run(&scratch, &batch);
    match ran {
        Err(crate::trace::Error::Died { .. }) if signal == 0 => Ok(()),
        Ok(_) if signal != 0 => {
            remote.give_back()?;
            let tracee = remote.into_tracee().ok_or_else(|| gone(pid))?;
            let running = tracee.cont(signal)?;
            match running.wait() {
                Err(crate::trace::Error::Died { .. }) => Ok(()),
                _ => {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL);
                    wait::wait(pid).map(drop).map_err(|errno| system("wait", pid, errno))
                }
            }
        }
        Ok(_) => Err(gone(pid)),
        Err(e) => Err(e.into()),
    }
}

/// Everything of a process that does not need a certain order.
pub fn finish(model: &Model, id: TaskId, skeletons: &mut Skeletons, warnings: &mut Vec<String>) -> Result<()> {
    let task = &model.tasks[id.at()];
    if task.threads.is_empty() {
        return Ok(());
    }
    let scratch = skeletons.scratch;
    let skeleton = skeletons.task(id);
    let pid = skeleton.pid;
    let mut batch = Batch::new();
    signals::drain(&mut batch);
    if let Some(sighand) = task.sighand {
        signals::actions(&mut batch, &model.sighands[sighand.at()]);
    }
    // Some have been made subreapers while the tree was made.
    batch.prctl(libc::PR_SET_CHILD_SUBREAPER, u64::from(task.child_subreaper), 0u64);
    timers::create(&mut batch, task);
    let last = |thread: &Thread, batch: &mut Batch| last_calls(batch, model, task, thread);
    last(&task.threads[0], &mut batch);
    skeleton.threads[0].run_all(&scratch, &batch)?;
    if !others_wait(task) {
        for (thread, remote) in task.threads.iter().zip(&mut skeleton.threads).skip(1) {
            let mut batch = Batch::new();
            last(thread, &mut batch);
            remote.run_all(&scratch, &batch)?;
        }
    }
    limits(task, pid, warnings)?;
    values(task, pid, warnings)
}

/// The threads beside the first make their last calls all at the same time, with those for their credentials: where they
/// cannot be in each other's way. A root and a working directory of one's own depend on the order.
pub fn others_wait(task: &Task) -> bool {
    task.threads.iter().all(|t| t.fs == task.threads[0].fs)
}

/// Runs a batch in each of these threads, all at the same time; `ended` is told of each, by position, that has come to its end.
///
/// # Errors
/// The first call that had to succeed and did not.
pub fn run_each(
    threads: &mut [Remote],
    scratch: &Scratch,
    batches: &[Batch],
    ended: &mut dyn FnMut(usize, &mut Remote) -> crate::trace::Result<()>,
) -> Result<()> {
    for (results, remote) in Remote::run_each(threads, scratch, batches, ended)?.iter().zip(threads) {
        if let Some((_, call, errno)) = results.first_error() {
            return Err(crate::trace::Error::Call { pid: remote.pid(), call, errno }.into());
        }
    }
    Ok(())
}

/// Gives the threads of a task their share of the processors: last, as our own work in them goes by it, too.
pub fn schedule(model: &Model, id: TaskId, skeletons: &mut Skeletons, warnings: &mut Vec<String>) -> Result<()> {
    for (thread, remote) in model.tasks[id.at()].threads.iter().zip(&skeletons.task(id).threads) {
        scheduling(remote.pid(), &thread.sched, warnings)?;
    }
    Ok(())
}

/// What a thread does for itself.
pub fn last_calls(batch: &mut Batch, model: &Model, task: &Task, thread: &Thread) {
    const PR_SET_TIMERSLACK: i32 = 29;
    batch.must(libc::SYS_set_tid_address, &[thread.clear_child_tid.into()]);
    let (head, len) = thread.robust_list;
    if head != 0 {
        batch.must(libc::SYS_set_robust_list, &[head.into(), len.into()]);
    }
    if let Some(rseq) = thread.rseq {
        batch.must(libc::SYS_rseq, &[rseq.address.into(), rseq.size.into(), 0u64.into(), rseq.signature.into()]);
    }
    let stack =
        StackT { sp: thread.alt_stack.address, flags: thread.alt_stack.flags, pad: 0, size: thread.alt_stack.size };
    let stack = batch.value(&stack);
    batch.must(libc::SYS_sigaltstack, &[stack, 0u64.into()]);
    let comm = batch.c_string(&thread.comm.0);
    batch.prctl(libc::PR_SET_NAME, comm, 0u64);
    numa::of_thread(batch, thread.numa.as_ref());
    batch.prctl(PR_SET_TIMERSLACK, thread.timer_slack_ns, 0u64);
    batch.must(libc::SYS_personality, &[thread.personality.into()]);
    let own_fs = model.tasks.iter().flat_map(|t| &t.threads).find(|t| t.fs == thread.fs).map(|t| t.tid);
    if own_fs == Some(thread.tid) {
        if thread.tid != task.pid {
            batch.must(libc::SYS_unshare, &[libc::CLONE_FS.into()]);
        }
        file_system(batch, model, task, thread);
    }
}

/// Enters working directories that were removed: as long as tasks have what we have opened for them.
pub fn enter_removed(model: &Model, skeletons: &mut Skeletons, material: &Material) -> Result<()> {
    for (n, task) in model.tasks.iter().enumerate() {
        let Some(thread) = task.threads.first() else { continue };
        let first = model.tasks.iter().position(|t| t.threads.first().is_some_and(|t| t.fs == thread.fs)) == Some(n);
        let removed = model.fs[thread.fs.at()].removed_cwd.filter(|_| first);
        let Some(directory) = removed.and_then(|ghost| material.ghost_file(ghost)) else { continue };
        let (remote, scratch) = skeletons.leader(TaskId::from(n));
        let mut batch = Batch::new();
        let fd = material.fetch(&mut batch, directory.as_raw_fd());
        batch.must(libc::SYS_fchdir, &[fd.into()]);
        batch.must(libc::SYS_close, &[fd.into()]);
        remote.run_all(&scratch, &batch)?;
    }
    Ok(())
}

fn file_system(batch: &mut Batch, model: &Model, task: &Task, thread: &Thread) {
    let fs = &model.fs[thread.fs.at()];
    batch.must(libc::SYS_umask, &[fs.umask.into()]);
    let root = &fs.root.path.0;
    let in_user_ns = super::ns::ids::namespace(model, task).is_some();
    // The path of the working directory is seen from the outer root, so it is entered first.
    if fs.removed_cwd.is_none() && (!in_user_ns || thread.tid != task.pid) {
        let cwd = batch.c_string(&fs.cwd.path.0);
        batch.must(libc::SYS_chdir, &[cwd]);
    }
    if root != b"/" {
        let root = batch.c_string(root);
        batch.must(libc::SYS_chroot, &[root]);
    }
}

fn scheduling(tid: Pid, wanted: &Sched, warnings: &mut Vec<String>) -> Result<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime_ns,
        deadline: wanted.deadline_ns,
        period: wanted.period_ns,
    };
    let mut soft = |what: &str, result: crate::sys::Result<()>| {
        if let Err(errno) = result {
            warnings.push(format!("task {tid}: {what} could not be set: {errno}"));
        }
    };
    let current = sched::attributes(tid).map_err(|e| system("sched_getattr", tid, e))?;
    if (current.policy, current.nice, current.priority, current.flags)
        != (attr.policy, attr.nice, attr.priority, attr.flags)
    {
        const FAIR: [u32; 2] = [libc::SCHED_OTHER as u32, libc::SCHED_BATCH as u32];
        if !FAIR.contains(&attr.policy) {
            // Only these policies take a nice value, but it outlives a change to another one.
            let fair = SchedAttr { policy: FAIR[0], flags: 0, priority: 0, runtime: 0, deadline: 0, period: 0, ..attr };
            soft("nice value", sched::set_attributes(tid, &fair));
        }
        soft("scheduling policy", sched::set_attributes(tid, &attr));
    }
    if sched::affinity(tid).ok().as_deref() != Some(wanted.affinity.0.as_slice()) {
        soft("processor affinity", sched::set_affinity(tid, &wanted.affinity.0));
    }
    if sched::io_priority(tid) != Ok(wanted.io_priority) {
        soft("I/O priority", sched::set_io_priority(tid, wanted.io_priority));
    }
    Ok(())
}

fn limits(task: &Task, pid: Pid, warnings: &mut Vec<String>) -> Result<()> {
    let current = ProcDir::open(pid)?.limits(&mut Vec::new())?;
    for (n, (wanted, has)) in task.rlimits.iter().zip(current.iter()).enumerate() {
        if wanted == has {
            continue;
        }
        match crate::sys::rlimit::set(pid, n as u32, wanted.soft, wanted.hard) {
            Ok(()) => {}
            // Hard limits cannot be raised without CAP_SYS_RESOURCE: as near as possible, and said.
            Err(Errno::EPERM) => {
                let hard = wanted.hard.min(has.hard);
                let soft = wanted.soft.min(hard);
                crate::sys::rlimit::set(pid, n as u32, soft, hard).map_err(|e| system("prlimit", pid, e))?;
                warnings.push(format!("process {pid}: limit {n} could only be set to {soft} (hard limit {hard})"));
            }
            Err(errno) => return Err(system("prlimit", pid, errno)),
        }
    }
    Ok(())
}

/// Values behind files of /proc.
fn values(task: &Task, pid: Pid, warnings: &mut Vec<String>) -> Result<()> {
    let dir = ProcDir::open(pid)?;
    let mut set = |name: &str, wanted: String| {
        let mut buf = Vec::new();
        if dir.read_into(name, &mut buf).is_ok_and(|has| has.trim_ascii() == wanted.as_bytes()) {
            return;
        }
        if let Err(e) = dir.write(name, wanted.as_bytes()) {
            warnings.push(format!("process {pid}: {name} could not be set to {wanted}: {e}"));
        }
    };
    set("oom_score_adj", task.oom_score_adj.to_string());
    let filter = format!("{:08x}", task.coredump_filter);
    if dir.read_into("coredump_filter", &mut Vec::new()).is_ok_and(|has| has.trim_ascii() != filter.as_bytes()) {
        set("coredump_filter", format!("0x{:x}", task.coredump_filter));
    }
    set("loginuid", task.loginuid.to_string());
    Ok(())
}

fn gone(pid: Pid) -> Error {
    Error::Impossible { object: format!("process {pid}"), reason: "it vanished while it was made".to_owned() }
}

fn system(operation: &'static str, pid: Pid, errno: Errno) -> Error {
    Error::System { operation, object: format!("task {pid}"), errno }
}
