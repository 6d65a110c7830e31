//! File locks of a frozen original, given up so that its copy on the same kernel can take them; taken back if the target
//! stays after all.

use crate::failure::{Failure, Result};
use crate::image::fd::FileKind;
use crate::image::fd::lock::{Lock, LockKind};
use crate::image::{FileId, Model};
use crate::proc::locks;
use crate::sys::Errno;
use crate::trace::Batch;
use crate::trace::batch::Ref;
use crate::trace::freeze::Frozen;
use std::time::{Duration, Instant};

/// How long taking a lock back is tried: others may hold it for a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// A lock, and where it was taken.
#[derive(Debug)]
struct Held {
    /// Positions of process and thread in the frozen tree.
    process: usize,
    thread: usize,
    fd: u32,
    lock: Lock,
    /// Device and inode of its file, where it has a path.
    file: Option<(u64, u64)>,
}

/// The locks of a tree.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    held: Vec<Held>,
    given_up: bool,
}

impl GivenUp {
    /// Finds a descriptor for each lock of the model. Tasks of the model and processes of a frozen tree have one order.
    pub(crate) fn plan(model: &Model) -> Self {
        let held = model.locks.iter().filter_map(|lock| {
            let (process, thread, fd) = holder(model, lock)?;
            let file = match &model.files[lock.file.at()].kind {
                FileKind::Regular(file) => Some((file.path.device, file.path.inode)),
                _ => None,
            };
            Some(Held { process, thread, fd, lock: *lock, file })
        });
        Self { held: held.collect(), given_up: false }
    }

    /// Releases them all.
    ///
    /// # Errors
    /// Somebody outside waits for one of them, and would get it.
    pub(crate) fn give_up(&mut self, frozen: &mut Frozen) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("the target's file locks cannot be moved", e);
        // The tree's own requests do not wait while it is stopped.
        let waiting = locks::all().map_err(|e| failed(&e))?.into_iter().filter(|lock| lock.blocked);
        for lock in waiting {
            if self.held.iter().any(|held| held.file.is_some_and(|(_, inode)| inode == lock.inode)) {
                let who = format!("process {} waits for a lock that the target holds, and would get it", lock.pid);
                return Err(Failure::new("the target's file locks cannot be moved on this host").hint(who));
            }
        }
        self.given_up = true;
        for n in 0..self.held.len() {
            self.call(frozen, n, libc::F_UNLCK).map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        }
        Ok(())
    }

    /// Takes back what was given up; whether all of it could be had.
    pub(crate) fn take_back(&mut self, frozen: &mut Frozen) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut left: Vec<usize> = if self.given_up { (0..self.held.len()).collect() } else { Vec::new() };
        self.given_up = false;
        loop {
            left.retain(|n| !matches!(self.call(frozen, *n, self.held[*n].lock.mode), Ok(Ok(_))));
            if left.is_empty() || Instant::now() > until {
                return left.is_empty();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sets the mode of a lock inside the task that has it.
    fn call(
        &self,
        frozen: &mut Frozen,
        n: usize,
        mode: i32,
    ) -> std::result::Result<std::result::Result<u64, Errno>, crate::trace::Error> {
        let held = &self.held[n];
        let Some(process) = frozen.processes.get_mut(held.process) else { return Ok(Err(Errno::ESRCH)) };
        let (Some(scratch), Some(thread)) = (process.scratch, process.threads.get_mut(held.thread)) else {
            return Ok(Err(Errno::ESRCH));
        };
        let mut batch = Batch::new();
        let call = change(&mut batch, held, mode);
        Ok(thread.run(&scratch, &batch)?.get(call))
    }
}

/// Process, thread and descriptor through which a lock is held.
fn holder(model: &Model, lock: &Lock) -> Option<(usize, usize, u32)> {
    let fd_in = |table: crate::image::FdTableId, file: FileId| {
        model.fd_tables[table.at()].entries.iter().find(|entry| entry.file == file).map(|entry| entry.fd)
    };
    model.tasks.iter().enumerate().find_map(|(process, task)| {
        if matches!(lock.kind, LockKind::Posix(owner) if owner.at() != process) {
            return None;
        }
        let mut threads = task.threads.iter().enumerate();
        threads.find_map(|(thread, t)| Some((process, thread, fd_in(t.fd_table, lock.file)?)))
    })
}

fn change(batch: &mut Batch, held: &Held, mode: i32) -> Ref {
    let unlock = mode == i32::from(libc::F_UNLCK as i16);
    if held.lock.kind == LockKind::Flock {
        let operation = match mode {
            _ if unlock => libc::LOCK_UN,
            mode if mode == i32::from(libc::F_WRLCK as i16) => libc::LOCK_EX | libc::LOCK_NB,
            _ => libc::LOCK_SH | libc::LOCK_NB,
        };
        return batch.may(libc::SYS_flock, &[held.fd.into(), operation.into()]);
    }
    let command = if held.lock.kind == LockKind::Ofd { libc::F_OFD_SETLK } else { libc::F_SETLK };
    // struct flock: type, whence, start, length, pid.
    let mut bytes = [0u8; 32];
    bytes[..2].copy_from_slice(&(mode as i16).to_ne_bytes());
    bytes[8..16].copy_from_slice(&held.lock.start.to_ne_bytes());
    bytes[16..24].copy_from_slice(&held.lock.len.to_ne_bytes());
    let bytes = batch.bytes(&bytes);
    batch.may(libc::SYS_fcntl, &[held.fd.into(), command.into(), bytes])
}
