//! Before a snapshot: its memory is protected in short stops, see [`crate::memory::snapshot::ahead`].

use super::Job;
use crate::failure::{Failure, Result};
use crate::memory::snapshot::ahead::Ahead;
use crate::memory::snapshot::eager;
use crate::memory::track::uffd;
use crate::memory::{PageRange, RangeSet};
use crate::ops::{interrupt, standstill};
use crate::proc::maps::Special;
use crate::sys::eventfd::eventfd;
use crate::sys::sched;
use crate::trace::Batch;
use crate::trace::calls::ThreadQuery;
use crate::trace::freeze::{Frozen, FrozenProcess};
use crate::trace::remote::Remote;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Less than this is protected in the pause: that takes less than a stop of its own, pages.
const WORTH_IT: u64 = 8 << 10;
/// So little may be left for the pause, pages.
const FEW: u64 = 512;
/// How long memory is protected in one stop.
const BUDGET: Duration = Duration::from_millis(1);
/// Between two stops the target runs this many times as long as it stood.
const RUNS: u32 = 4;
/// Whoever has more threads has them read once, in the pause: each costs a stop some 30 us.
const THREADS_MAX: usize = 64;

/// What it has cost the target.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Cost {
    /// Stops.
    pub stops: u32,
    /// The longest.
    pub longest: Duration,
}

/// Calls `work` while writes are let through that wait.
///
/// # Errors
/// No thread can be made.
pub(super) fn serving<T>(ahead: &Ahead, work: impl FnOnce() -> T) -> Result<T> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("cannot start a thread", e);
    let stop = eventfd(0).map_err(|e| failed(&e))?;
    std::thread::scope(|scope| {
        let serve = || ahead.serve(stop.as_fd());
        let server = std::thread::Builder::new().name("snapshot".to_owned()).spawn_scoped(scope, serve);
        server.map_err(|e| failed(&e))?;
        let _stop = super::snapshot::Stop(stop.as_fd());
        Ok(work())
    })
}

/// A userfaultfd of each process of the tree. `None`: it is not worth it, or cannot be.
pub(super) fn begin(job: &Job<'_>) -> Result<Option<Ahead>> {
    if job.resident_bytes / crate::image::mm::PAGE < WORTH_IT {
        return Ok(None);
    }
    let mut frozen = stopped(job)?;
    if frozen.processes.iter().map(|p| p.threads.len()).sum::<usize>() > THREADS_MAX {
        return Ok(None);
    }
    let mut all = Vec::new();
    for process in frozen.processes.iter_mut().filter(|p| !p.zombie) {
        match uffd::arm_synchronous(process) {
            Ok(uffd) => all.push((process.pid, uffd)),
            Err(error) => {
                tracing::debug!(pid = process.pid.0, %error, "nothing is protected ahead");
                return Ok(None);
            }
        }
    }
    thaw(frozen)?;
    match Ahead::new(all) {
        Ok(ahead) => Ok(Some(ahead)),
        Err(error) => {
            tracing::debug!(%error, "nothing is protected ahead");
            Ok(None)
        }
    }
}

/// Stops the tree again and again until little is left that is not protected, or that does not get much less any more.
pub(super) fn protect(job: &Job<'_>, ahead: &Ahead) -> Result<Cost> {
    let (mut cost, mut before) = (Cost::default(), u64::MAX);
    loop {
        // Somebody has ended: the pause finds out.
        let Ok(mut todo) = ahead.bare() else { return Ok(cost) };
        let left: u64 = todo.iter().map(|(_, range)| range.count).sum();
        if left <= FEW || left > before / 2 {
            return Ok(cost);
        }
        before = left;
        while !todo.is_empty() {
            interrupt::check()?;
            let mut frozen = stopped(job)?;
            let since = frozen.since;
            let Some(spared) = at_the_end(&mut frozen) else { return Ok(cost) };
            ahead.protect(&mut todo, &spared, Instant::now() + BUDGET);
            thaw(frozen)?;
            let stood = since.elapsed();
            (cost.stops, cost.longest) = (cost.stops + 1, cost.longest.max(stood));
            std::thread::sleep(stood * RUNS);
        }
    }
}

fn stopped(job: &Job<'_>) -> Result<Frozen> {
    Frozen::tree_of(job.root, job.known).map_err(|e| standstill::not_stopped(job.root, &e))
}

fn thaw(frozen: Frozen) -> Result<()> {
    frozen.thaw().map_err(|e| Failure::of("the target could not be released", &e))
}

/// Pages that the kernel may write to in a thread that ends, of everybody: by their addresses, whoever's they are. `None`: they
/// are not known.
fn at_the_end(frozen: &mut Frozen) -> Option<RangeSet> {
    let mut pages = Vec::new();
    let processes = frozen.processes.iter_mut().filter(|p| !p.zombie);
    for process in processes {
        of_process(process, &mut pages).inspect_err(|error| tracing::debug!(%error, "nothing is protected")).ok()?;
    }
    pages.sort_unstable();
    pages.dedup();
    Some(pages.into_iter().map(|page| PageRange::new(page, 1)).collect())
}

fn of_process(
    process: &mut FrozenProcess,
    pages: &mut Vec<u64>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let memory = crate::proc::open_mem(process.pid)?;
    let maps = process.dir.maps(&mut Vec::new())?;
    let vdso = maps.iter().find(|m| m.special() == Some(Special::Vdso)).map(|m| m.start);
    let scratch = process.ensure_scratch(vdso)?;
    let mut queries = Vec::new();
    let batches: Vec<Batch> = process
        .threads
        .iter()
        .map(|_| {
            let mut batch = Batch::new();
            queries.push(ThreadQuery::ask(&mut batch));
            batch
        })
        .collect();
    let results = Remote::run_each(&mut process.threads, &scratch, &batches, &mut |_, _| Ok(()))?;
    for ((thread, query), results) in process.threads.iter().zip(&queries).zip(&results) {
        let robust_list = sched::robust_list(thread.pid())?.0;
        eager::at_the_end(query.answer(results).clear_child_tid, robust_list, &memory, pages);
    }
    Ok(())
}
