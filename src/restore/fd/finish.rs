//! Made inside the target: what has an owner or a clock. One batch for each table.

use super::{Opened, describe, inotify, lock, owner, timerfd};
use crate::image::fd::FileKind;
use crate::image::fd::lock::LockKind;
use crate::image::{FdTableId, FileId, Model};
use crate::restore::skeleton::Skeletons;
use crate::restore::{Error, Result};
use crate::sys::Errno;
use crate::trace::batch::Ref;
use crate::trace::remote::{Remote, Scratch};
use crate::trace::{Arg, Batch};

/// Calls inside one task, each with what it is for.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    pub(crate) batch: Batch,
    calls: Vec<(Ref, &'static str, FileId)>,
    /// What the next calls are about.
    file: Option<FileId>,
}

impl Inside {
    /// Adds a call that must not fail.
    pub(crate) fn must(&mut self, what: &'static str, number: i64, args: &[Arg]) {
        let call = self.batch.must(number, args);
        self.calls.push((call, what, self.file.unwrap_or(FileId(0))));
    }

    fn about(&mut self, file: FileId) -> &mut Self {
        self.file = Some(file);
        self
    }

    fn run(self, model: &Model, remote: &mut Remote, scratch: Scratch) -> Result<()> {
        let results = remote.run(&scratch, &self.batch)?;
        for (call, what, file) in self.calls {
            let path = describe(&model.files[file.at()].kind);
            match results.get(call) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) if what == "a lock" => {
                    return Err(Error::File { path, reason: "another process here has locked it".to_owned() });
                }
                Err(errno) => return Err(Error::System { operation: what, object: path, errno }),
            }
        }
        Ok(())
    }
}

/// Arms timers, sets receivers of signals, takes locks and leases, and at last adds inotify watches.
///
/// # Errors
/// A lock that somebody else has here is named by its file.
pub fn finish(model: &Model, opened: &Opened, skeletons: &mut Skeletons) -> Result<()> {
    broken_leases(model, opened, skeletons)?;
    let mut by_table: Vec<Inside> = model.fd_tables.iter().map(|_| Inside::default()).collect();
    for (n, file) in model.files.iter().enumerate() {
        let id = FileId::from(n);
        let Some((table, fd)) = opened.holders.any(id) else { continue };
        let inside = by_table[table.at()].about(id);
        if let FileKind::TimerFd(timer) = &file.kind {
            timerfd::arm(inside, fd, timer);
        }
        if let Some(set) = &file.owner {
            owner::set(inside, fd, set);
        }
        if let Some(lease) = file.lease.filter(|lease| lease.breaks_to.is_none()) {
            lock::lease(inside, fd, lease);
        }
        if file.flags & libc::O_ASYNC as u32 != 0 && !matches!(file.kind, FileKind::External(_)) {
            owner::asynchronous(inside, fd, file.flags);
        }
    }
    for lock in &model.locks {
        let Some((table, fd)) = lock_holder(model, opened, lock.kind, lock.file) else {
            let object = describe(&model.files[lock.file.at()].kind);
            return Err(Error::Impossible { object, reason: "its lock has no descriptor".to_owned() });
        };
        lock::take(by_table[table.at()].about(lock.file), fd, lock);
    }
    run_each(by_table, model, opened, skeletons)?;
    inotify::watch_all(model, opened, skeletons)
}

fn run_each(by_table: Vec<Inside>, model: &Model, opened: &Opened, skeletons: &mut Skeletons) -> Result<()> {
    for (n, inside) in by_table.into_iter().enumerate() {
        if let Some((task, thread)) = opened.holders.tables[n] {
            let scratch = skeletons.scratch;
            inside.run(model, &mut skeletons.task(task).threads[thread], scratch)?;
        }
    }
    Ok(())
}

/// Takes the leases that are being broken, and breaks them: before their descriptions have somebody to send signals to.
fn broken_leases(model: &Model, opened: &Opened, skeletons: &mut Skeletons) -> Result<()> {
    let files = model.files.iter().enumerate();
    let broken: Vec<_> =
        files.filter_map(|(n, file)| Some((FileId::from(n), file.lease?, file.lease?.breaks_to?))).collect();
    if broken.is_empty() {
        return Ok(());
    }
    let mut by_table: Vec<Inside> = model.fd_tables.iter().map(|_| Inside::default()).collect();
    for (id, lease, _) in &broken {
        let Some((table, fd)) = opened.holders.any(*id) else { continue };
        lock::lease(by_table[table.at()].about(*id), fd, *lease);
    }
    run_each(by_table, model, opened, skeletons)?;
    for (id, _, to) in broken {
        lock::break_lease(opened.file(id), to).map_err(|errno| {
            let object = describe(&model.files[id.at()].kind);
            Error::System { operation: "breaking a lease", object, errno }
        })?;
    }
    Ok(())
}

/// The table and descriptor through which a lock is taken.
fn lock_holder(model: &Model, opened: &Opened, kind: LockKind, file: FileId) -> Option<(FdTableId, u32)> {
    let LockKind::Posix(task) = kind else { return opened.holders.any(file) };
    let table = model.tasks[task.at()].threads.first()?.fd_table;
    opened.holders.fds.get(&(table, file)).map(|fd| (table, *fd))
}
