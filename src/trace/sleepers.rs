//! For how long threads have been asleep, which only the time before a stop can tell: a stop is a wake-up.
//!
//! A dump may stop a tree more than once (to arm dirty tracking, then for good). The kernel takes a wait up again after a
//! stop without a trace of when it had begun, so what was known at one stop is kept for the next: a thread that has not
//! run since it was let go is still in the same wait.

use crate::image::Pid;
use crate::proc::ProcDir;
use crate::sys::sched;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// A thread runs this long after it was let go at most before it is asleep again in the wait it was in: generous, for a
/// busy machine.
const RESUMES: Duration = Duration::from_millis(20);

/// What was known at the last stop.
#[derive(Debug, Clone, Copy)]
struct Earlier {
    /// When the wait began.
    began: Instant,
    /// When the thread was let go.
    released: Instant,
}

thread_local! {
    /// Of the trees that this thread traces (ptrace belongs to a thread, so nobody else could use it).
    static EARLIER: RefCell<HashMap<Pid, Earlier>> = RefCell::default();
}

/// Looks at every thread of a tree: nanoseconds asleep so far. Called before anybody is stopped.
pub fn look(root: Pid) -> HashMap<Pid, u64> {
    let mut last_ran: Vec<(Pid, i32, u64)> = Vec::new();
    let mut buf = Vec::new();
    let mut queue = vec![root];
    while let Some(pid) = queue.pop() {
        let Ok(dir) = ProcDir::open(pid) else { continue };
        for tid in dir.tasks().unwrap_or_default() {
            let Ok(thread) = dir.thread(tid) else { continue };
            if let (Some(then), Ok(stat)) = (thread.last_ran(&mut buf), thread.stat(&mut buf)) {
                last_ran.push((tid, stat.processor, then));
            }
        }
        queue.extend(dir.children_of_all_threads(&mut buf).unwrap_or_default());
    }
    let clocks = clocks(last_ran.iter().map(|(_, cpu, _)| *cpu).collect());
    EARLIER.with_borrow(|earlier| {
        let now = Instant::now();
        last_ran
            .iter()
            .filter_map(|(tid, cpu, then)| {
                let asleep = Duration::from_nanos(clocks.get(cpu)?.saturating_sub(*then));
                Some((*tid, whole_wait(asleep, now, earlier.get(tid)).as_nanos() as u64))
            })
            .collect()
    })
}

/// How long the wait lasts in which a thread has now been asleep for this long.
fn whole_wait(asleep: Duration, now: Instant, earlier: Option<&Earlier>) -> Duration {
    match earlier {
        Some(e) if asleep + RESUMES >= now.saturating_duration_since(e.released) => {
            now.saturating_duration_since(e.began)
        }
        _ => asleep,
    }
}

/// Keeps what is known of threads that are about to be let go: (thread, nanoseconds asleep when it was stopped).
/// `stopped` is when that was.
pub fn remember(threads: impl Iterator<Item = (Pid, u64)>, stopped: Instant) {
    let released = Instant::now();
    EARLIER.with_borrow_mut(|earlier| {
        earlier.clear();
        for (tid, slept) in threads {
            if let Some(began) = stopped.checked_sub(Duration::from_nanos(slept)) {
                earlier.insert(tid, Earlier { began, released });
            }
        }
    });
}

/// The scheduler's clock of each of these processors, now. They differ: time that a hypervisor took is not counted. Only
/// a thread that runs on a processor sees its clock, so we go there for a moment.
fn clocks(processors: BTreeSet<i32>) -> HashMap<i32, u64> {
    let own = Pid(0);
    let Ok(home) = sched::affinity(own) else { return HashMap::new() };
    let mut clocks = HashMap::new();
    let mut buf = Vec::new();
    let Ok(dir) = ProcDir::of_this_thread() else { return HashMap::new() };
    for processor in processors {
        let mut mask = vec![0u8; processor as usize / 8 + 1];
        mask[processor as usize / 8] |= 1 << (processor % 8);
        if sched::set_affinity(own, &mask).is_ok() {
            std::thread::yield_now();
            clocks.extend(dir.last_ran(&mut buf).map(|now| (processor, now)));
        }
    }
    if let Err(e) = sched::set_affinity(own, &home) {
        tracing::warn!("this thread stays on one processor: {e}");
    }
    clocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_not_run_since_is_in_the_same_wait() {
        let ms = Duration::from_millis;
        let began = Instant::now();
        let earlier = Earlier { began, released: began + ms(500) };
        let now = began + ms(800);
        assert_eq!(whole_wait(ms(299), now, Some(&earlier)), ms(800));
        assert_eq!(whole_wait(ms(100), now, Some(&earlier)), ms(100));
        assert_eq!(whole_wait(ms(7), now, None), ms(7));
    }

    #[test]
    fn our_own_thread_has_just_run() {
        let own = Pid(std::process::id() as i32);
        let clocks = clocks(BTreeSet::from([0]));
        let asleep = look(own);
        // Without CONFIG_SCHED_DEBUG nothing is known, and nothing is claimed.
        assert_eq!(clocks.is_empty(), asleep.is_empty());
    }
}
