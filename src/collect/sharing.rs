//! Which tasks share an object (address space, descriptor table, ...): kcmp(2)'s order makes it a sorted set, so that n
//! tasks cost n log n comparisons.

use crate::image::Pid;
use crate::sys::fd::{Kcmp, kcmp};
use std::cmp::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};

/// A thread of ours that has nothing but what every thread has: it was not made with `CLONE_IO`. Dropped, it ends.
#[derive(Debug)]
pub struct Bare {
    /// Its id.
    pub tid: Pid,
    /// It waits for this to be closed.
    _until: SyncSender<()>,
}

impl Bare {
    /// Starts it.
    pub fn start() -> std::io::Result<Self> {
        let (until, over) = sync_channel::<()>(0);
        let (tell, told) = sync_channel(1);
        std::thread::Builder::new().name("bare".into()).spawn(move || {
            if tell.send(Pid(nix::unistd::gettid().as_raw())).is_ok() {
                // An error is what it waits for.
                let _ = over.recv();
            }
        })?;
        Ok(Self { tid: told.recv().map_err(std::io::Error::other)?, _until: until })
    }
}

/// The distinct objects of one kind, each with a task that has it.
#[derive(Debug)]
pub struct Shared {
    kind: Kcmp,
    /// Sorted by the kernel's order: (a task that has it, number of the object in order of discovery).
    known: Vec<(Pid, usize)>,
}

impl Shared {
    /// No object yet.
    pub fn new(kind: Kcmp) -> Self {
        Self { kind, known: Vec::new() }
    }

    /// The same where this task has no object of the kind, as most have not: whoever is like it has number 0.
    pub fn beside(kind: Kcmp, nobody: Pid) -> Self {
        Self { kind, known: vec![(nobody, 0)] }
    }

    /// The number of the task's object, and whether it is new.
    pub fn number(&mut self, task: Pid) -> (usize, bool) {
        let place = self.known.binary_search_by(|(other, _)| {
            // A kernel without kcmp (or a task that has died) makes every object distinct: a fork's view of things.
            kcmp(*other, task, self.kind, 0, 0).unwrap_or(Ordering::Less)
        });
        match place {
            Ok(at) => (self.known[at].1, false),
            Err(at) => {
                let number = self.known.len();
                self.known.insert(at, (task, number));
                (number, true)
            }
        }
    }
}
