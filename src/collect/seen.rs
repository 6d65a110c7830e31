//! What is to be seen of threads from outside. Reading it costs as much as what only a tracer can ask, and needs no tracer:
//! of a process with many threads it is read at the same time, by a thread of ours beside the one that traces.

use super::{Error, Result};
use crate::image::task::Sched;
use crate::image::{Bytes, Pid};
use crate::proc::ProcDir;
use crate::proc::status::Status;
use crate::sys::{Errno, sched};

/// What one thread shows to others.
#[derive(Debug)]
pub struct Seen {
    /// `/proc/PID/task/TID/status`.
    pub status: Status,
    /// Its share of the processors.
    pub sched: Sched,
    /// Head and length of its list of robust futexes.
    pub robust_list: (u64, u64),
}

/// Fewer threads than this are looked at by the calling thread: to make another one costs as much.
const FEW: usize = 32;

/// Looks at these threads of a process while `work` is done. Both have ended when this returns.
///
/// # Errors
/// That of `work`; else that of the first thread that could not be looked at.
pub fn meanwhile<T>(process: &ProcDir, tids: &[Pid], work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Seen>)> {
    let look = || tids.iter().map(|tid| Seen::of(process, *tid)).collect::<Result<Vec<Seen>>>();
    if tids.len() < FEW {
        return Ok((work()?, look()?));
    }
    std::thread::scope(|scope| {
        let beside = std::thread::Builder::new().name("look".to_owned()).spawn_scoped(scope, look);
        let done = work();
        let seen = match beside {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // No thread is to be had: one after the other.
            Err(_) => look(),
        };
        Ok((done?, seen?))
    })
}

impl Seen {
    fn of(process: &ProcDir, tid: Pid) -> Result<Self> {
        Ok(Self {
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
            let (worked, seen) = meanwhile(&own, &vec![pid; count], || Ok(7)).unwrap();
            assert_eq!((worked, seen.len()), (7, count));
            assert!(seen.iter().all(|s| s.status.pid == pid.0 && s.sched == sched_of(pid).unwrap()));
            let gone = meanwhile(&own, &vec![Pid(i32::MAX); count], || Ok(7));
            assert!(gone.is_err(), "{gone:?}");
        }
    }
}
