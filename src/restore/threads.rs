//! Threads beside the first: made in one batch, each of them traced and stopped before its first instruction.

use super::skeleton::{FOLLOW, Skeletons};
use super::{Error, Result};
use crate::image::task::{Task, Thread};
use crate::image::{Model, NsPid, Pid, TaskId};
use crate::proc::ProcDir;
use crate::sys::abi::CloneArgs;
use crate::sys::clone::set_last_pid;
use crate::trace::batch::Batch;
use crate::trace::remote::{Remote, Scratch};
use crate::trace::{Stopped, Tracee};
use nix::fcntl::OFlag;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Flags that make a thread (clone(2)). It is traced as its creator is, and begins with a stop; the creator, who has none for it,
/// makes the next one meanwhile.
const THREAD: i32 = libc::CLONE_PTRACE
    | libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Threads made in one batch.
const BATCH: usize = 512;

/// Makes the threads of a task, unless it has them.
pub fn make(model: &Model, task: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let threads = &model.tasks[task.at()].threads;
    let Some((_, others)) = threads.split_first() else { return Ok(()) };
    if others.is_empty() || skeletons.task(task).threads.len() == threads.len() {
        return Ok(());
    }
    add(model, task, others, skeletons)
}

/// From the threads that a task had in an earlier model to those it has now, in their order.
pub fn settle(old: &Task, model: &Model, task: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let (wanted, scratch) = (&model.tasks[task.at()].threads, skeletons.scratch);
    let mut has = std::mem::take(&mut skeletons.task(task).threads).into_iter();
    // The first stays, whatever becomes of the process.
    skeletons.task(task).threads.extend(has.next());
    let mut others: HashMap<NsPid, Remote> = old.threads.iter().skip(1).map(|t| t.tid).zip(has).collect();
    let surplus: Vec<NsPid> = others.keys().copied().filter(|tid| wanted.iter().all(|t| t.tid != *tid)).collect();
    for tid in surplus {
        if let Some(thread) = others.remove(&tid) {
            end_stopped(thread, scratch)?;
        }
    }
    // Made with the others when the time has come.
    if others.is_empty() {
        return Ok(());
    }
    let missing: Vec<Thread> = wanted.iter().skip(1).filter(|t| !others.contains_key(&t.tid)).cloned().collect();
    let added = add(model, task, &missing, skeletons);
    let made = skeletons.task(task).threads.split_off(1);
    others.extend(missing.iter().map(|t| t.tid).zip(made));
    let sorted = wanted.iter().skip(1).filter_map(|t| others.remove(&t.tid));
    skeletons.task(task).threads.extend(sorted);
    added
}

/// Adds threads behind those that a task has.
pub fn add(model: &Model, task: TaskId, others: &[Thread], skeletons: &mut Skeletons) -> Result<()> {
    let Some(leader) = model.tasks[task.at()].threads.first() else { return Ok(()) };
    let new_pids = skeletons.new_pids;
    let (scratch, options) = (skeletons.scratch, skeletons.options & !FOLLOW);
    let skeleton = skeletons.task(task);
    // Their creator is not to stop for each of them.
    skeleton.threads[0].tracee().set_options(options)?;
    let confined = super::ns::ids::namespace(model, &model.tasks[task.at()]).is_some();
    let pid_ns = match new_pids {
        true if confined => Some(ProcDir::open(skeleton.pid)?.open_file("ns/pid", OFlag::O_RDONLY)?),
        _ => None,
    };
    if others.iter().any(|thread| shares_io(leader, thread)) {
        super::sharing::have_io_context(&mut skeleton.threads[0], scratch)?;
    }
    for group in others.chunks(BATCH) {
        let remote = &mut skeleton.threads[0];
        let mut taken = Vec::new();
        let made = if confined {
            // The highest first: whoever begins elsewhere meanwhile gets an id after the last one we said.
            let one = |thread| by_last_pid(leader, thread, remote, scratch, pid_ns.as_ref());
            let mut made = group.iter().rev().map(one).collect::<Result<Vec<Pid>>>()?;
            made.reverse();
            made
        } else {
            by_set_tid(leader, group, remote, scratch, (!new_pids).then_some(&mut taken))?
        };
        let rest = if new_pids { outer_ids(skeleton.pid, &made)? } else { made }.split_off(taken.len());
        for tid in rest {
            taken.push(Tracee::attached(tid).wait()?.0);
        }
        for tracee in taken {
            let made = skeleton.threads[0].made(tracee);
            skeleton.threads.push(made);
        }
    }
    // It may have to make processes yet, which are attached by the kernel.
    skeleton.threads[0].tracee().set_options(options | FOLLOW)?;
    Ok(())
}

fn shares_io(leader: &Thread, thread: &Thread) -> bool {
    thread.io_context != 0 && thread.io_context == leader.io_context
}

fn arguments(leader: &Thread, thread: &Thread) -> CloneArgs {
    let io = if shares_io(leader, thread) { libc::CLONE_IO } else { 0 };
    CloneArgs { flags: (THREAD | io) as u32 as u64, ..CloneArgs::default() }
}

/// `taken`: where those go that have been taken, in their order, while the next ones were made; not all perhaps. Only where ids
/// are those that we see.
fn by_set_tid(
    leader: &Thread,
    group: &[Thread],
    remote: &mut Remote,
    scratch: Scratch,
    taken: Option<&mut Vec<Tracee<Stopped>>>,
) -> Result<Vec<Pid>> {
    let mut batch = Batch::new();
    let mut calls = Vec::with_capacity(group.len());
    for thread in group {
        let ids: Vec<i32> = thread.inner_tids.iter().rev().chain([&thread.tid]).map(|id| id.0).collect();
        calls.push(batch.clone3(&arguments(leader, thread), &ids));
    }
    let take = || taken.into_iter().for_each(|taken| take_born(group, taken));
    let results = remote.run_beside(&scratch, &batch, take)?;
    let id = |(thread, call): (&Thread, _)| {
        let made = results.get(call).map_err(|errno| failed(thread, errno))?;
        Ok(Pid(made as i32))
    };
    group.iter().zip(calls).map(id).collect()
}

/// Takes threads one after the other as they are born, until one lets us wait: then the others are yet to be made, or never will be.
fn take_born(group: &[Thread], taken: &mut Vec<Tracee<Stopped>>) {
    const PATIENCE: Duration = Duration::from_millis(1);
    let mut last = Instant::now();
    for thread in group {
        // Before it is born there is no such task of ours.
        let stopped = || Tracee::attached(Pid(thread.tid.0)).try_wait().ok()?.ok();
        let mut born = stopped();
        while born.is_none() && last.elapsed() < PATIENCE {
            std::thread::yield_now();
            born = stopped();
        }
        let Some((tracee, _)) = born else { return };
        taken.push(tracee);
        last = Instant::now();
    }
}

fn failed(thread: &Thread, errno: crate::sys::Errno) -> Error {
    Error::System { operation: "clone3", object: format!("thread {}", thread.tid), errno }
}

/// A task in a user namespace of its own may not choose ids in a PID namespace that is not: we say which id comes next, and
/// try again where somebody else was faster, who as a rule ends soon.
fn by_last_pid(
    leader: &Thread,
    thread: &Thread,
    remote: &mut Remote,
    scratch: Scratch,
    pid_ns: Option<&OwnedFd>,
) -> Result<Pid> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        set_last_pid(pid_ns.map(AsFd::as_fd), thread.tid.0 - 1).map_err(|errno| Error::System {
            operation: "write to ns_last_pid",
            object: format!("thread {}", thread.tid),
            errno,
        })?;
        let mut batch = Batch::new();
        let call = batch.clone3(&arguments(leader, thread), &[]);
        let results = remote.run(&scratch, &batch)?;
        let made = Pid(results.get(call).map_err(|errno| failed(thread, errno))? as i32);
        if made.0 == thread.tid.0 {
            return Ok(made);
        }
        let stray = if pid_ns.is_some() { outer_ids(remote.pid(), &[made])?[0] } else { made };
        end(stray, scratch)?;
        std::thread::sleep(Duration::from_micros(200));
    }
    Err(Error::PidInUse { pid: thread.tid.0, occupant: "another task".to_owned() })
}

/// Ends a thread that got another id.
fn end(stray: Pid, scratch: Scratch) -> Result<()> {
    let (tracee, _) = Tracee::attached(stray).wait()?;
    end_stopped(Remote::new(tracee)?, scratch)
}

/// Ends a thread beside the first.
pub fn end_stopped(mut remote: Remote, scratch: Scratch) -> Result<()> {
    let stray = remote.pid();
    let mut batch = Batch::new();
    batch.must(libc::SYS_exit, &[0u64.into()]);
    match remote.run(&scratch, &batch) {
        Err(crate::trace::Error::Died { .. }) => Ok(()),
        Err(e) => Err(e.into()),
        Ok(_) => Err(Error::Impossible {
            object: format!("thread {stray}"),
            reason: "it did not end when it was told to".to_owned(),
        }),
    }
}

/// Ids of threads as we see them, given those of their own PID namespace.
fn outer_ids(process: Pid, inner: &[Pid]) -> Result<Vec<Pid>> {
    let dir = crate::proc::ProcDir::open(process)?;
    let mut buf = Vec::new();
    let mut known = std::collections::HashMap::new();
    for tid in dir.tasks()? {
        let status = dir.thread(tid)?.status(&mut buf)?;
        known.insert(status.ns_pid.last().copied().unwrap_or(tid.0), tid);
    }
    let missing = |id: &Pid| Error::Impossible {
        object: format!("thread {id}"),
        reason: "it vanished right after it was made".to_owned(),
    };
    inner.iter().map(|id| known.get(&id.0).copied().ok_or_else(|| missing(id))).collect()
}
