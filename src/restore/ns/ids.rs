//! Done inside the target's tasks: they enter their user namespace, as late as that can be.
//!
//! A task in a user namespace of its own has no rights outside of it, so everything that needs them comes before: process
//! ids, mount namespaces, memory locks, and its users and groups, which may have no number inside. Threads come after, as
//! a process with threads cannot enter.

use crate::image::ns::{NsKind, user::UserNs};
use crate::image::task::{Task, Thread};
use crate::image::{Model, TaskId};
use crate::restore::Result;
use crate::restore::creds::{self, Own};
use crate::restore::skeleton::Skeletons;
use crate::trace::Batch;

/// The user namespace of a task, if it is not the host's.
pub fn namespace<'m>(model: &'m Model, task: &Task) -> Option<&'m UserNs> {
    let namespace = &model.namespaces[task.namespaces.user.at()];
    match &namespace.kind {
        NsKind::User(user) if !namespace.of_host => Some(user),
        _ => None,
    }
}

/// Whether a thread has the users and groups that its process entered the user namespace with.
pub fn entered_as(task: &Task, thread: &Thread) -> bool {
    let first = &task.threads[0].creds;
    (first.uids, first.gids, &first.groups) == (thread.creds.uids, thread.creds.gids, &thread.creds.groups)
}

/// A process takes its users and groups and enters its user namespace, if that is not the host's.
pub fn enter(model: &Model, id: TaskId, skeletons: &mut Skeletons) -> Result<()> {
    let task = &model.tasks[id.at()];
    let Some(fd) = skeletons.made.user(task.namespaces.user) else { return Ok(()) };
    let Some(first) = task.threads.first() else { return Ok(()) };
    let (remote, scratch) = skeletons.leader(id);
    let mut batch = Batch::new();
    // Its user may not reach it later on.
    let fs = &model.fs[first.fs.at()];
    if fs.removed_cwd.is_none() {
        let cwd = batch.c_string(&fs.cwd.path.0);
        batch.must(libc::SYS_chdir, &[cwd]);
    }
    creds::users(&mut batch, &first.creds, &Own::read());
    batch.must(libc::SYS_setns, &[fd.into(), libc::CLONE_NEWUSER.into()]);
    remote.run_all(&scratch, &batch)?;
    Ok(())
}
