//! For how long threads have been asleep, which only the time before a stop can tell: a stop is a wake-up.
//!
//! A tree may be stopped more than once: by one dump (to arm dirty tracking, then for good), or by one dump after another.
//! The kernel takes a wait up again after a stop without a trace of when it had begun, so what was known at one stop is
//! kept for the next, also for that of another program, in the run-time directory: a thread that has not gone to sleep
//! again since is still in the same wait.

mod ahead;

pub use ahead::{listed, look_ahead};

use crate::arch::restart;
use crate::image::Pid;
use crate::memory::pipeline::default_workers;
use crate::proc::ProcDir;
use crate::proc::sched::LastRun;
use crate::proc::stat::Stat;
use crate::proc::syscall::Doing;
use crate::sys::sched;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::OnceLock;

/// What was known at the last stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Earlier {
    /// When the thread was made (`/proc/TID/stat`): its id may be another's by now.
    start_time: u64,
    /// How often it has gone to sleep once it is in its wait again.
    sleeps: u64,
    /// When it last ran, on the scheduler's clock: until that changes it has not even come to take its wait up.
    ran: u64,
    /// When the wait began, nanoseconds of `CLOCK_MONOTONIC`.
    began: u64,
    /// The call it waits in, where that is not to be seen any more (`restart_syscall`).
    call: Option<u32>,
}

impl Earlier {
    /// Whether the thread, as it is now, is still in the wait that it was let go into.
    fn goes_on(&self, stat: &Stat, now: LastRun) -> bool {
        // The kernel forgets when a thread ran that it moves to another processor.
        let has_not_run = now.sleeps + 1 == self.sleeps && (now.at == self.ran || now.at == 0);
        self.start_time == stat.starttime && (has_not_run || (sleeps(stat) && now.sleeps == self.sleeps))
    }
}

/// Neither running nor about to, nor stopped by a tracer.
fn sleeps(stat: &Stat) -> bool {
    matches!(stat.state, b'S' | b'D' | b'T')
}

/// What is known of a thread before it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asleep {
    /// For how long it has been, nanoseconds.
    pub ns: u64,
    /// How often it had gone to sleep: only if that is still so at the stop is it the same wait.
    pub sleeps: u64,
    /// The call it was in at the last stop, if it is still in it.
    pub call: Option<u32>,
    /// The kernel function that it sleeps in.
    pub function: Function,
}

/// A wait that a thread is about to take up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenUp {
    /// Thread.
    pub tid: Pid,
    /// How long the wait has lasted so far, nanoseconds.
    pub slept_ns: u64,
    /// Its call.
    pub call: Option<u32>,
}

/// Name of a kernel function, as much of it as is needed to tell one from another.
pub type Function = [u8; 24];

thread_local! {
    /// Of the trees that this thread traces (ptrace belongs to a thread, so nobody else could use it).
    static EARLIER: RefCell<HashMap<Pid, Earlier>> = RefCell::default();
}

static KEPT_IN: OnceLock<PathBuf> = OnceLock::new();

/// Names the run-time directory, in which what is known outlasts this program. Without it nothing does.
pub fn keep_in(run: PathBuf) {
    let _ = KEPT_IN.set(run);
}

/// A thread that may be in a wait whose length matters: its id and state, when it last ran, and where it sleeps.
type Sleeper = (Pid, Stat, LastRun, Function);

/// Fewer threads than this are looked at by the calling one: to make another costs as much.
pub const FEW: usize = 64;

/// Such threads among these of a process, as far as they have not been `seen` ahead.
fn of_process(dir: &ProcDir, tids: &[Pid], seen: &HashMap<Pid, Option<Sleeper>>) -> Vec<Sleeper> {
    let (known, rest): (Vec<Pid>, Vec<Pid>) = tids.iter().partition(|tid| seen.contains_key(tid));
    let known = known.iter().filter_map(|tid| seen.get(tid)?.clone());
    known.chain(look_at(dir, &rest)).collect()
}

/// Such threads among these of a process; many are looked at by several threads of ours.
fn look_at(dir: &ProcDir, tids: &[Pid]) -> Vec<Sleeper> {
    let look = |tids: &[Pid]| {
        let mut buf = Vec::new();
        tids.iter().filter_map(|tid| sleeper(dir, *tid, &mut buf)).collect::<Vec<Sleeper>>()
    };
    if tids.len() < FEW {
        return look(tids);
    }
    std::thread::scope(|scope| {
        let begin = |part| std::thread::Builder::new().spawn_scoped(scope, move || look(part));
        let parts = tids.chunks(tids.len().div_ceil(default_workers()));
        let parts: Vec<_> = parts.map(|part| (part, begin(part))).collect();
        // What was not looked at costs no more than a wait that ends late.
        let end = |(part, thread): (_, std::io::Result<std::thread::ScopedJoinHandle<'_, Vec<Sleeper>>>)| match thread {
            Ok(thread) => thread.join().unwrap_or_default(),
            Err(_) => look(part),
        };
        parts.into_iter().flat_map(end).collect()
    })
}

fn sleeper(dir: &ProcDir, tid: Pid, buf: &mut Vec<u8>) -> Option<Sleeper> {
    if waits_without_end(dir, tid, buf) {
        return None;
    }
    let thread = dir.thread(tid).ok()?;
    let then = thread.last_ran(buf)?;
    let stat = thread.stat(buf).ok()?;
    Some((tid, stat, then, function(&thread, buf)))
}

/// Looks at every thread of a tree, of which `root` is the first process; each with its threads. Called before anybody is
/// stopped.
pub fn look(root: Pid, processes: &[(ProcDir, Vec<Pid>)]) -> HashMap<Pid, Asleep> {
    let mut last_ran: Vec<Sleeper> = Vec::new();
    let seen = ahead::seen();
    for (dir, threads) in processes {
        last_ran.extend(of_process(dir, threads, &seen));
    }
    let clocks = clocks(last_ran.iter().map(|(_, stat, ..)| stat.processor).collect());
    let now = now();
    let earlier = EARLIER.with_borrow_mut(|known| {
        if known.is_empty() {
            *known = load(root);
        }
        known.clone()
    });
    last_ran
        .iter()
        .filter_map(|(tid, stat, then, function)| {
            let same = earlier.get(tid).filter(|e| e.goes_on(stat, *then));
            let asleep = match clocks.get(&stat.processor) {
                Some(clock) if sleeps(stat) => clock.saturating_sub(then.at),
                // On a busy machine it may not have run since it was last let go: it will take up the same wait.
                _ => same.map(|_| 0)?,
            };
            let whole = same.and_then(|e| now.checked_sub(e.began)).map_or(asleep, |whole| whole.max(asleep));
            let (sleeps, call) = same.map_or((then.sleeps, None), |e| (e.sleeps, e.call));
            Some((*tid, Asleep { ns: whole, sleeps, call, function: *function }))
        })
        .collect()
}

/// It is in a wait whose length does not matter, as most threads of most programs are. Known from one small file, where
/// since when it sleeps takes three.
fn waits_without_end(process: &ProcDir, tid: Pid, buf: &mut Vec<u8>) -> bool {
    match process.thread_syscall(tid, buf) {
        Ok(Doing::Call { number, args }) => !restart::may_have_relative_end(number, &args),
        _ => false,
    }
}

fn now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// The kernel function that a thread sleeps in; zeros where it does not, or that may not be seen.
fn function(thread: &ProcDir, buf: &mut Vec<u8>) -> Function {
    let mut name = Function::default();
    if let Ok(text) = thread.read_into("wchan", buf) {
        let len = text.len().min(name.len());
        name[..len].copy_from_slice(&text[..len]);
    }
    name
}

/// Keeps what is known of threads of this tree that are about to be let go and have nothing more to do for us; of others,
/// which nobody has stopped, what was known stays.
pub fn remember(root: Pid, waits: impl Iterator<Item = TakenUp>) {
    let (now, mut buf) = (now(), Vec::new());
    let mut known = EARLIER.take();
    known.retain(|tid, earlier| {
        let Ok(thread) = ProcDir::open(*tid) else { return false };
        match (thread.stat(&mut buf), thread.last_ran(&mut buf)) {
            (Ok(stat), Some(last)) => earlier.goes_on(&stat, last),
            _ => false,
        }
    });
    for wait in waits {
        let Ok(thread) = ProcDir::open(wait.tid) else { continue };
        if let (Some(last), Ok(stat)) = (thread.last_ran(&mut buf), thread.stat(&mut buf)) {
            let began = now.saturating_sub(wait.slept_ns);
            // It is stopped, for which it went to sleep; the next time is that in its wait.
            let (start_time, sleeps, ran) = (stat.starttime, last.sleeps + 1, last.at);
            known.insert(wait.tid, Earlier { start_time, sleeps, ran, began, call: wait.call });
        }
    }
    if let Err(e) = keep(root, &known) {
        tracing::info!("the next dump will not know since when process {root} waits: {e}");
    }
    EARLIER.set(known);
}

/// Most that is read of such a file: as many threads as one tree can have, and more.
const KEPT_MAX: u64 = 4 << 20;
const KEPT_PREFIX: &str = "waits-";

fn keep(root: Pid, known: &HashMap<Pid, Earlier>) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let Some(dir) = KEPT_IN.get() else { return Ok(()) };
    let path = dir.join(format!("{KEPT_PREFIX}{root}"));
    if known.is_empty() {
        let _ = std::fs::remove_file(path);
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    forget_the_dead(dir);
    std::fs::write(path, to_text(known))
}

/// Removes the files of trees that are gone.
fn forget_the_dead(dir: &std::path::Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let root = name.to_str().and_then(|n| n.strip_prefix(KEPT_PREFIX)).and_then(|n| n.parse::<i32>().ok());
        if root.is_some_and(|root| ProcDir::open(Pid(root)).is_err()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn load(root: Pid) -> HashMap<Pid, Earlier> {
    use std::io::Read;
    let Some(dir) = KEPT_IN.get() else { return HashMap::new() };
    let mut text = String::new();
    let file = std::fs::File::open(dir.join(format!("{KEPT_PREFIX}{root}")));
    if file.and_then(|file| file.take(KEPT_MAX).read_to_string(&mut text)).is_err() {
        return HashMap::new();
    }
    from_text(&text)
}

/// A line for each thread: its id, when it was made, how often it will have slept, when it last ran, since when it waits,
/// its call or -1.
fn to_text(known: &HashMap<Pid, Earlier>) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for (tid, e) in known {
        let call = e.call.map_or(-1, i64::from);
        let _ = writeln!(text, "{tid} {} {} {} {} {call}", e.start_time, e.sleeps, e.ran, e.began);
    }
    text
}

/// Lines that make no sense are passed over: what is not known costs no more than a wait that ends late.
fn from_text(text: &str) -> HashMap<Pid, Earlier> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [tid, start_time, sleeps, ran, began, call] = words.try_into().ok()?;
        let call = u32::try_from(call.parse::<i64>().ok()?).ok();
        let [start_time, sleeps, ran, began] = [start_time, sleeps, ran, began].map(|word| word.parse::<u64>().ok());
        let earlier = Earlier { start_time: start_time?, sleeps: sleeps?, ran: ran?, began: began?, call };
        Some((Pid(tid.parse().ok()?), earlier))
    };
    text.lines().filter_map(line).collect()
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
            clocks.extend(dir.last_ran(&mut buf).map(|now| (processor, now.at)));
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
    fn what_is_kept_comes_back() {
        let earlier = |call| Earlier { start_time: 5, sleeps: 6, ran: 8, began: 7_000_000_000, call };
        let known = HashMap::from([(Pid(1), earlier(None)), (Pid(2), earlier(Some(202)))]);
        assert_eq!(from_text(&to_text(&known)), known);
        assert_eq!(from_text("1 2 3\n1 2 3 4 5 x\n\n9 1 1 1 1 -1 1\n").len(), 0);
    }

    #[test]
    fn who_has_not_run_since_is_still_in_its_wait() {
        let earlier = Earlier { start_time: 5, sleeps: 6, ran: 8, began: 0, call: None };
        let seen = |state, sleeps, at| {
            let stat = Stat { state, starttime: 5, ..Stat::default() };
            earlier.goes_on(&stat, LastRun { at, sleeps })
        };
        assert!(seen(b'S', 6, 20), "asleep in it again");
        assert!(seen(b'R', 5, 8), "has not come to run");
        assert!(seen(b'R', 5, 0), "nor after having been moved to another processor");
        assert!(!seen(b'R', 5, 20), "has run: the wait may be over");
        assert!(!seen(b'R', 6, 20), "its wait is over");
        assert!(!seen(b'S', 7, 20), "another wait");
        assert!(!seen(b't', 6, 20), "stopped: whoever lets it go knows better");
    }

    #[test]
    fn a_thread_that_sleeps_is_seen_to() {
        const SLEPT: u64 = 20_000_000;
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(Pid(nix::unistd::gettid().as_raw())).expect("it is waited for");
            // A wait without an end is of no interest.
            let _ = ended.recv_timeout(std::time::Duration::from_secs(60));
        });
        let tid = told.recv().expect("it tells");
        std::thread::sleep(std::time::Duration::from_nanos(SLEPT));
        let own = Pid(std::process::id() as i32);
        let dir = ProcDir::open(own).expect("it is ours");
        let threads = dir.tasks().expect("it is ours");
        let asleep = look(own, &[(dir, threads)]);
        drop(end);
        sleeper.join().expect("it ends");
        // Without CONFIG_SCHED_DEBUG nothing is known, and nothing is claimed.
        match clocks(BTreeSet::from([0])).is_empty() {
            true => assert!(asleep.is_empty()),
            // Another processor's clock may be a little behind.
            false => assert!(asleep[&tid].ns >= SLEPT / 2, "{asleep:?}"),
        }
    }
}
