//! Threads looked at a moment before they are stopped, beside what else has to be done until then.
//!
//! A thread that has slept again since is not taken for the same sleeper ([`super::super::waits`]). One that was in a wait without
//! an end and has begun one with an end since was not seen in it: its wait ends that much later than it should, so what was
//! seen is thrown away when it is not fresh.

use super::{Sleeper, sleeper};
use crate::image::Pid;
use crate::proc::ProcDir;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long ago something may have been seen.
const FRESH: Duration = Duration::from_millis(10);

/// Threads by their ids, and those of them whose waits matter.
type Seen = Vec<(Pid, Option<Sleeper>)>;

/// A look that is under way.
struct Ahead {
    began: Instant,
    job: Arc<Job>,
    helper: JoinHandle<Seen>,
}

/// Threads to be looked at, by whoever has the time.
#[derive(Default)]
struct Job {
    found: OnceLock<Found>,
    next: AtomicUsize,
}

/// Processes, and their threads, each with the position of its process.
struct Found {
    dirs: Vec<ProcDir>,
    threads: Vec<(usize, Pid)>,
}

thread_local! {
    static AHEAD: RefCell<Option<Ahead>> = const { RefCell::new(None) };
}

/// Has the threads of these processes, which have many, looked at while the calling thread does other things: it is about to
/// stop them.
pub fn look_ahead(processes: Vec<Pid>) {
    if processes.is_empty() {
        return;
    }
    let job = Arc::new(Job::default());
    let theirs = Arc::clone(&job);
    let began = Instant::now();
    let work = move || {
        theirs.find(&processes);
        theirs.look()
    };
    // Who is not to be had looks at nothing: all are looked at when they are stopped.
    let helper = std::thread::Builder::new().name("look".to_owned()).spawn(work).ok();
    AHEAD.set(helper.map(|helper| Ahead { began, job, helper }));
}

/// The threads of a process as they were listed by the last [`look_ahead`] of this thread, where the process has as many now. That
/// one has ended since and another begun costs no more than that one not being looked at.
pub fn listed(process: &ProcDir) -> Option<Vec<Pid>> {
    AHEAD.with_borrow(|ahead| {
        let found = ahead.as_ref().filter(|ahead| ahead.began.elapsed() < FRESH)?.job.found.get()?;
        let at = found.dirs.iter().position(|dir| dir.pid() == process.pid())?;
        let tids: Vec<Pid> = found.threads.iter().filter(|(n, _)| *n == at).map(|(_, tid)| *tid).collect();
        process.count_tasks().is_ok_and(|there| there == tids.len() as u64).then_some(tids)
    })
}

/// What has been seen since the last [`look_ahead`] of this thread; threads that nobody has looked at yet are looked at now.
pub(super) fn seen() -> HashMap<Pid, Option<Sleeper>> {
    let Some(ahead) = AHEAD.take() else { return HashMap::new() };
    let fresh = ahead.began.elapsed() < FRESH;
    let mut seen = if fresh { ahead.job.look() } else { Seen::new() };
    // On a busy machine it may not have begun, or be in the middle of one.
    ahead.job.next.store(usize::MAX / 2, Ordering::Relaxed);
    if fresh {
        seen.extend(ahead.helper.join().unwrap_or_default());
    }
    seen.into_iter().collect()
}

impl Job {
    fn find(&self, processes: &[Pid]) {
        let dirs: Vec<ProcDir> = processes.iter().filter_map(|pid| ProcDir::open(*pid).ok()).collect();
        let threads_of = |(n, dir): (usize, &ProcDir)| {
            let threads = dir.tasks().unwrap_or_default();
            threads.into_iter().map(move |tid| (n, tid)).collect::<Vec<_>>()
        };
        let threads = dirs.iter().enumerate().flat_map(threads_of).collect();
        let _ = self.found.set(Found { dirs, threads });
    }

    fn look(&self) -> Seen {
        let (mut seen, mut buf) = (Seen::new(), Vec::new());
        let Some(Found { dirs, threads }) = self.found.get() else { return seen };
        while let Some((dir, tid)) = threads.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            seen.push((*tid, sleeper(&dirs[*dir], *tid, &mut buf)));
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_seen_ahead_is_what_is_seen_then() {
        // Of this process itself the helper would be one of the threads.
        let mut sleeps = Command::new("sleep").arg("60").spawn().unwrap();
        let tid = Pid(sleeps.id().cast_signed());
        std::thread::sleep(Duration::from_millis(20));
        let dir = ProcDir::open(tid).unwrap();
        // On a busy machine what was seen may be too old by then.
        let ahead = (0..2000).map(|_| {
            look_ahead(vec![tid]);
            std::thread::sleep(Duration::from_millis(2));
            (listed(&dir), seen())
        });
        let has_both = |(list, seen): &(Option<Vec<Pid>>, HashMap<Pid, Option<Sleeper>>)| {
            list.as_ref().is_some_and(|list| list.contains(&tid)) && seen.contains_key(&tid)
        };
        let (_, ahead) = ahead.into_iter().find(has_both).expect("it is listed and seen once");
        let what =
            |sleeper: Option<Sleeper>| sleeper.map(|(tid, stat, ran, function)| (tid, stat.state, ran, function));
        assert_eq!(what(ahead[&tid].clone()), what(sleeper(&dir, tid, &mut Vec::new())));
        assert!(seen().is_empty(), "it is taken once");
        assert_eq!(listed(&dir), None, "and the list with it");
        sleeps.kill().unwrap();
        sleeps.wait().unwrap();
    }

    #[test]
    fn what_is_old_is_thrown_away() {
        look_ahead(vec![ProcDir::of_self().unwrap().pid()]);
        std::thread::sleep(FRESH);
        assert!(seen().is_empty());
        look_ahead(Vec::new());
        assert!(seen().is_empty());
    }
}
