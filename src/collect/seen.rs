//! What is to be seen of threads from outside. Reading it costs as much as what only a tracer can ask, and needs no tracer:
//! of a process with many threads it is read at the same time, by threads of ours beside the one that traces.

use super::{Error, Result};
use crate::image::task::Sched;
use crate::image::{Bytes, Pid};
use crate::memory::pipeline::default_workers;
use crate::proc::ProcDir;
use crate::proc::status::Status;
use crate::sys::fd::{Kcmp, kcmp};
use crate::sys::{Errno, sched};
use std::cmp::Ordering;
use std::sync::atomic::{self, AtomicUsize};
use std::thread::ScopedJoinHandle;

/// What one thread shows to others.
#[derive(Debug)]
pub struct Seen {
    /// `/proc/PID/task/TID/status`.
    pub status: Status,
    /// Its share of the processors.
    pub sched: Sched,
    /// Head and length of its list of robust futexes.
    pub robust_list: (u64, u64),
    /// It has the first thread's descriptor table.
    pub same_files: bool,
    /// It has the first thread's file-system state.
    pub same_fs: bool,
    /// It has no I/O context, as most threads.
    pub no_io_context: bool,
}

/// Fewer threads than this are looked at by the calling thread: to make another one costs as much.
const FEW: usize = 32;

/// Threads of a stopped process that are to be looked at, by whoever has the time.
struct Job<'a> {
    process: &'a ProcDir,
    tids: &'a [Pid],
    /// Somebody without an I/O context.
    bare: Pid,
    next: AtomicUsize,
}

/// What one of those who look has seen: of which thread, by position, and what.
type Part = Vec<(usize, Result<Seen>)>;

impl Job<'_> {
    /// Looks at threads that nobody has looked at until there are none.
    fn look(&self) -> Part {
        let mut seen = Part::new();
        loop {
            let n = self.next.fetch_add(1, atomic::Ordering::Relaxed);
            let (Some(first), Some(tid)) = (self.tids.first(), self.tids.get(n)) else { return seen };
            seen.push((n, Seen::of(self.process, (*first, self.bare), *tid)));
        }
    }
}

/// Threads of a process that are being looked at.
pub struct Looking<'s, 'a> {
    job: &'s Job<'a>,
    helpers: Vec<ScopedJoinHandle<'s, Part>>,
}

/// Does `work` while threads of ours look at these threads of a stopped process. `bare` has no I/O context. `work` gets what
/// they have seen by [`Looking::rest`]. All have ended when this returns.
pub fn beside<T>((process, bare): (&ProcDir, Pid), tids: &[Pid], work: impl FnOnce(Looking<'_, '_>) -> T) -> T {
    let job = Job { process, tids, bare, next: AtomicUsize::new(0) };
    let helpers = if tids.len() < FEW { 0 } else { default_workers().saturating_sub(1).max(1) };
    std::thread::scope(|scope| {
        // Who is not to be had looks at nothing: the others do.
        let begin = |_| std::thread::Builder::new().name("look".to_owned()).spawn_scoped(scope, || job.look()).ok();
        let helpers = (0..helpers).filter_map(begin).collect();
        work(Looking { job: &job, helpers })
    })
}

impl Looking<'_, '_> {
    /// Looks at the threads that are left; what was seen of all, in their order.
    ///
    /// # Errors
    /// That of the first thread that could not be looked at.
    pub fn rest(mut self) -> Result<Vec<Seen>> {
        let mut all = self.job.look();
        for helper in std::mem::take(&mut self.helpers) {
            all.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all.sort_unstable_by_key(|(n, _)| *n);
        all.into_iter().map(|(_, seen)| seen).collect()
    }
}

impl Drop for Looking<'_, '_> {
    fn drop(&mut self) {
        // After a failure nobody wants to know.
        self.job.next.store(self.job.tids.len(), atomic::Ordering::Relaxed);
    }
}

impl Seen {
    fn of(process: &ProcDir, (first, bare): (Pid, Pid), tid: Pid) -> Result<Self> {
        // A kernel without kcmp knows nothing of the kind.
        let same = |other: Pid, kind: Kcmp| kcmp(other, tid, kind, 0, 0) == Ok(Ordering::Equal);
        Ok(Self {
            same_files: same(first, Kcmp::Files),
            same_fs: same(first, Kcmp::Fs),
            no_io_context: same(bare, Kcmp::Io),
            status: process.thread_status(tid, &mut Vec::new())?,
            sched: sched_of(tid)?,
            robust_list: sched::robust_list(tid).map_err(|e| system("get_robust_list", tid, e))?,
        })
    }
}

fn sched_of(tid: Pid) -> Result<Sched> {
    let attr = sched::attributes(tid).map_err(|e| system("sched_getattr", tid, e))?;
    // Other policies keep a nice value for later and do not tell it here.
    let fair = [libc::SCHED_OTHER as u32, libc::SCHED_BATCH as u32].contains(&attr.policy);
    let nice = if fair { attr.nice } else { ProcDir::open(tid)?.stat(&mut Vec::new())?.nice as i32 };
    let affinity = sched::affinity(tid).map_err(|e| system("sched_getaffinity", tid, e))?;
    let io_priority = sched::io_priority(tid).map_err(|e| system("ioprio_get", tid, e))?;
    Ok(Sched {
        policy: attr.policy,
        flags: attr.flags,
        nice,
        priority: attr.priority,
        // Of other policies the kernel reports the length of a slice (Linux 6.12), which is its own choice.
        runtime_ns: if attr.policy == libc::SCHED_DEADLINE as u32 { attr.runtime } else { 0 },
        deadline_ns: attr.deadline,
        period_ns: attr.period,
        affinity: Bytes(affinity),
        io_priority,
    })
}

fn system(operation: &'static str, tid: Pid, errno: Errno) -> Error {
    Error::System { operation, object: format!("task {tid}"), errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_threads_are_seen_alike() {
        let own = ProcDir::of_self().unwrap();
        let pid = own.pid();
        for count in [1, FEW] {
            let seen = beside((&own, pid), &vec![pid; count], |looking| looking.rest()).unwrap();
            assert_eq!(seen.len(), count);
            assert!(seen.iter().all(|s| s.status.pid == pid.0 && s.sched == sched_of(pid).unwrap()));
            let gone = beside((&own, pid), &vec![Pid(i32::MAX); count], |looking| looking.rest());
            assert!(gone.is_err(), "{gone:?}");
        }
    }

    #[test]
    fn what_was_seen_is_in_order_and_a_failure_is_waited_for_by_nobody() {
        let own = ProcDir::of_self().unwrap();
        let pid = own.pid();
        // Of two that cannot be looked at the first is named, whoever has met it.
        let mut tids = vec![own.pid(); 10 * FEW];
        (tids[3 * FEW], tids[7 * FEW]) = (Pid(i32::MAX), Pid(i32::MAX - 1));
        let error = beside((&own, pid), &tids, |looking| looking.rest()).unwrap_err().to_string();
        assert!(error.contains(&i32::MAX.to_string()), "{error}");
        let endless = vec![own.pid(); 1 << 22];
        assert_eq!(beside((&own, pid), &endless, |_| 7), 7);
    }
}
