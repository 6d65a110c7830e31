//! Whoever executes another program ends the other threads of its process and waits until their tracer has been told of it. It
//! holds a lock meanwhile that `PTRACE_SEIZE` of any thread of that process waits for (`cred_guard_mutex`; fs/exec.c,
//! kernel/ptrace.c; 6.18 and before): where some have been seized, tracer and process would wait for each other for ever. So
//! another thread of ours is told, while the tracer is held up.

use crate::image::Pid;
use crate::sys::wait::take_end;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// So long is a seizure not held up by anything but this.
const HELD_UP: Duration = Duration::from_millis(2);

/// How long one that was killed may take to end.
const DYING: Duration = Duration::from_millis(100);

/// What is known of the tracer.
#[derive(Debug)]
struct Tracer {
    began: Instant,
    /// When it began to seize a thread, microseconds after `began`, and 1; 0 = it does not.
    since: AtomicU64,
    over: AtomicBool,
    /// Whom it has seized, but for leaders.
    seized: Mutex<Vec<Pid>>,
}

/// The other thread. Ends when this is dropped.
#[derive(Debug)]
pub(super) struct Witness {
    tracer: Arc<Tracer>,
    /// `None` where there is none: then it is as without us.
    thread: Option<Thread>,
}

impl Witness {
    /// Starts it.
    pub(super) fn new() -> Self {
        let began = Instant::now();
        let (since, over, seized) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
        let tracer = Arc::new(Tracer { began, since, over, seized });
        let watched = Arc::clone(&tracer);
        let thread = std::thread::Builder::new().name("witness".to_owned()).spawn(move || watched.watch());
        Self { tracer, thread: thread.ok().map(|handle| handle.thread().clone()) }
    }

    /// A thread of process `pid` is seized.
    pub(super) fn during<T, E>(
        &self,
        pid: Pid,
        tid: Pid,
        seize: impl FnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        self.tracer.since.store(micros(self.tracer.began.elapsed()) + 1, Ordering::Relaxed);
        let seized = seize();
        self.tracer.since.store(0, Ordering::Relaxed);
        if matches!(seized, Ok(Some(_))) && tid != pid {
            self.tracer.seized().push(tid);
        }
        seized
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.tracer.over.store(true, Ordering::Relaxed);
        // Nobody waits for it: the target stands.
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

impl Tracer {
    fn watch(&self) {
        while !self.over.load(Ordering::Relaxed) {
            std::thread::park_timeout(HELD_UP);
            let since = self.since.load(Ordering::Relaxed);
            let now = micros(self.began.elapsed());
            if since > 0 && now.saturating_sub(since) >= micros(HELD_UP) {
                self.be_told();
            }
        }
    }

    /// The tracer then learns that they are gone.
    fn be_told(&self) {
        for tid in self.seized().iter() {
            // An error: it is not ours any more.
            let _ = take_end(*tid);
        }
    }

    fn seized(&self) -> std::sync::MutexGuard<'_, Vec<Pid>> {
        self.seized.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the ends of tracees that were killed while they were let go: detached they are not, and nobody else is told as long as we
/// have not been.
pub(super) fn take_ends(mut killed: Vec<Pid>) {
    let deadline = Instant::now() + DYING;
    // The newest first: a leader ends after the others.
    killed.sort_unstable_by_key(|tid| std::cmp::Reverse(*tid));
    loop {
        // An error: it is not ours any more.
        killed.retain(|tid| take_end(*tid) == Ok(false));
        if killed.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
