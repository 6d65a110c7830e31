//! The root of the tree: with its own id or in a PID namespace of the tree's own, in a session, a cgroup and a time
//! namespace that are not ours.

use super::skeleton::{Skeleton, Skeletons, clone_from, empty, hold};
use super::{Error, Options, Result, cgroup::Place, clock, clone as copy, ns, pidns};
use crate::image::{Model, NsPid, Pid, TaskId};
use crate::ops::options::Pids;
use crate::proc::ProcDir;
use crate::sys::{Errno, clone, nsfs};
use crate::trace::Batch;
use crate::trace::remote::Remote;
use nix::fcntl::OFlag;

/// Makes the root task, stopped and empty but for our scratch area.
pub fn make(
    model: &Model,
    options: &Options,
    place: &Place,
    skeletons: &mut Skeletons,
    warnings: &mut Vec<String>,
) -> Result<Skeleton> {
    let sibling = if options.sibling { libc::CLONE_PARENT as u64 } else { 0 };
    if !keeps_ids(model, options, warnings)? {
        skeletons.new_pids = true;
    }
    let mut remote = if skeletons.new_pids {
        pidns::root(model, options, sibling, place, skeletons)?
    } else {
        with_same_id(model, options, sibling, place, skeletons)?
    };
    let mut prepare = || {
        place.enter(remote.pid())?;
        log_in(model, &mut remote, skeletons)?;
        skeletons.clock_offset = clock::enter(model, options.read_at, &mut remote, skeletons.scratch, warnings)?;
        ns::enter::mounts(model, TaskId(0), &mut remote, skeletons)?;
        if let Some(identity) = &options.identity {
            copy::place::network(remote.pid(), identity)?;
            warnings.extend(copy::place::write_id(&mut remote, skeletons.scratch, (identity, &options.id_dir))?);
        }
        empty(&mut remote, skeletons.scratch)
    };
    let prepared = prepare();
    let root = Skeleton { pid: remote.pid(), threads: vec![remote] };
    match prepared {
        Ok(()) => Ok(root),
        Err(e) => {
            // It has to be ended before process 1 of its PID namespace, which would wait for it.
            skeletons.tasks.insert(TaskId(0), root);
            Err(e)
        }
    }
}

/// The user whose session the tree is of (pam_loginuid(8)), which all of it inherits. Nobody may say that of another process, and
/// where it will have mounts of its own there may be no /proc. If it cannot be, [`super::task`] warns of it.
fn log_in(model: &Model, remote: &mut Remote, skeletons: &Skeletons) -> Result<()> {
    let wanted = model.root().loginuid;
    if ProcDir::open(remote.pid())?.loginuid(&mut Vec::new())? == wanted {
        return Ok(());
    }
    let mut batch = Batch::new();
    let (path, text) = (batch.c_string(b"/proc/self/loginuid"), wanted.to_string());
    let words = batch.bytes(text.as_bytes());
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    let file = batch.may(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, flags.into(), 0u64.into()]);
    batch.may(libc::SYS_write, &[file.into(), words, (text.len() as u64).into()]);
    batch.may(libc::SYS_close, &[file.into()]);
    remote.run(&skeletons.scratch, &batch)?;
    Ok(())
}

/// Whether the tree will get a PID namespace of its own.
pub fn new_pids(model: &Model, options: &Options) -> bool {
    options.pids == Pids::New || options.pids == Pids::Auto && (!may_choose_ids() || taken(model).is_some())
}

/// Whether we may give tasks the ids they had (clone(2), "set_tid"): CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the user
/// namespace that owns our PID namespace.
pub(super) fn may_choose_ids() -> bool {
    const ABLE: u64 = 1 << 21 | 1 << 40;
    // EPERM: the owner is further out, where we have no capabilities.
    let owned = || ProcDir::of_self().ok()?.open_file("ns/pid", OFlag::O_RDONLY).ok().map(|ns| nsfs::owner(ns).is_ok());
    super::creds::Own::read().caps & ABLE != 0 && owned().unwrap_or(true)
}

/// Whether the tree gets the ids it had.
fn keeps_ids(model: &Model, options: &Options, warnings: &mut Vec<String>) -> Result<bool> {
    if options.pids == Pids::New {
        return Ok(false);
    }
    if options.pids == Pids::Auto && !may_choose_ids() {
        let what = "process ids cannot be chosen here: the tree gets a PID namespace of its own";
        warnings.push(what.to_owned());
        return Ok(false);
    }
    match taken(model) {
        None => Ok(true),
        Some((pid, occupant)) if options.pids == Pids::Same => Err(Error::PidInUse { pid, occupant }),
        Some((pid, occupant)) => {
            warnings.push(format!(
                "process id {pid} is in use here by {occupant}: the tree gets a PID namespace of its own"
            ));
            Ok(false)
        }
    }
}

/// The first id of the tree that somebody has already.
pub(super) fn taken(model: &Model) -> Option<(i32, String)> {
    let ids = model.tasks.iter().flat_map(|t| t.threads.iter().map(|th| th.tid).chain([t.pid]));
    ids.map(|id| id.0).find_map(|id| occupant(id).map(|name| (id, name)))
}

/// Who has an id. There are as many to ask for as the tree has threads, and hardly any is taken.
pub(super) fn occupant(id: i32) -> Option<String> {
    if id <= 0 || nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), None) == Err(Errno::ESRCH) {
        return None;
    }
    let mut name = Vec::new();
    ProcDir::open(Pid(id)).ok()?.read_into("comm", &mut name).ok()?;
    Some(String::from_utf8_lossy(&name).trim().to_owned())
}

fn with_same_id(
    model: &Model,
    options: &Options,
    sibling: u64,
    place: &Place,
    skeletons: &mut Skeletons,
) -> Result<Remote> {
    let pid = model.root().pid;
    let failed = |errno| match errno {
        Errno::EEXIST => Error::PidInUse { pid: pid.0, occupant: occupant(pid.0).unwrap_or_default() },
        errno => Error::System { operation: "clone3", object: format!("pid {pid}"), errno },
    };
    let Some(session) = outer_session(model).filter(|_| options.own_session) else {
        let child =
            place.child(|cgroup| clone::paused_child(sibling, libc::SIGCHLD, &[pid.0], cgroup).map_err(failed))?;
        return hold(child, skeletons);
    };
    // The leader of the session has ended, or stays behind: a helper plays it while groups are made. Its number is taken
    // if it is free; else the session has another one here.
    let free = session.0 > 0 && occupant(session.0).is_none();
    let id = [session.0];
    let ids = if free { &id[..] } else { &[] };
    let child = place.child(|cgroup| clone::paused_child(sibling, libc::SIGCHLD, ids, cgroup).map_err(failed))?;
    let mut leader = hold(child, skeletons)?;
    open_session(&mut leader, skeletons)?;
    // A sibling has its maker's exit signal; the kernel takes no other.
    let flags = libc::CLONE_PARENT as u64;
    let root = clone_from(&mut leader, skeletons.scratch, flags, 0, &[pid.0]);
    skeletons.session = Some(leader);
    root
}

/// Begins a session in a task.
pub(super) fn open_session(remote: &mut Remote, skeletons: &Skeletons) -> Result<()> {
    let mut batch = Batch::new();
    batch.must(libc::SYS_setsid, &[]);
    remote.run_all(&skeletons.scratch, &batch)?;
    Ok(())
}

/// The session the root inherited from outside the tree.
pub fn outer_session(model: &Model) -> Option<NsPid> {
    let sid = model.root().sid;
    model.task_of(sid).is_none().then_some(sid)
}
