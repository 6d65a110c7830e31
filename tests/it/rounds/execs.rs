//! A program with threads that executes another one while it is being stopped.

use super::{Target, root};
use migrate_engine::image::Pid;
use migrate_engine::trace::freeze::Frozen;
use nix::sys::signal::{Signal, kill};
use std::sync::mpsc;
use std::time::Duration;

/// The kernel has whoever executes wait for our being told that its threads have ended, and us for a lock that it holds; and it
/// forgets who has been asked to stop meanwhile.
fn stops(who: &str) {
    if !root() {
        return;
    }
    let target = Target::start("execs", &[who]);
    let pid = target.0.id() as i32;
    let (ends, ended) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let late = ended.recv_timeout(Duration::from_secs(100)) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            // Both go on.
            kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
        late
    });
    for n in 0..300u64 {
        let frozen = Frozen::tree(Pid(pid)).unwrap_or_else(|e| panic!("after {n} stops: {e}"));
        assert_eq!(frozen.processes.len(), 1);
        for thread in &frozen.processes[0].threads {
            let registers = thread.tracee().regs();
            assert!(registers.is_ok(), "thread {} does not stand after {n} stops: {registers:?}", thread.pid());
            assert!(!thread.tracee().has_news(), "thread {} has gone on", thread.pid());
        }
        frozen.thaw().unwrap();
        std::thread::sleep(Duration::from_micros(n * 37 % 700));
    }
    drop(ends);
    assert!(!watch.join().unwrap(), "the target and we waited for each other");
}

#[test]
fn a_leader_that_executes_is_stopped() {
    stops("leader");
}

#[test]
fn another_thread_that_executes_is_stopped() {
    stops("other");
}

#[test]
fn a_thread_that_executes_after_its_leader_has_ended_is_stopped() {
    stops("orphan");
}
