//! A program with threads that executes another one while it is being stopped.

use super::{Target, root};
use migrate_engine::image::Pid;
use migrate_engine::trace::Error;
use migrate_engine::trace::freeze::Frozen;
use nix::sys::signal::{Signal, kill};
use std::sync::mpsc;
use std::time::Duration;

/// The kernel has whoever executes wait for our being told that its threads have ended, and us for a lock that it holds.
#[test]
fn who_executes_while_it_is_stopped_is_not_waited_for_by_us_while_it_waits_for_us() {
    if !root() {
        return;
    }
    let target = Target::start("execs", &[]);
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
    let mut stops = 0;
    for n in 0..300u64 {
        let frozen = match Frozen::tree(Pid(pid)) {
            // A busy machine: that is told, and is another matter.
            Err(error @ Error::DoesNotStop { .. }) => {
                println!("after {stops} stops: {error}");
                break;
            }
            frozen => frozen.unwrap(),
        };
        assert_eq!(frozen.processes.len(), 1);
        frozen.thaw().unwrap();
        stops += 1;
        std::thread::sleep(Duration::from_micros(n * 37 % 700));
    }
    drop(ends);
    assert!(stops > 0);
    assert!(!watch.join().unwrap(), "the target and we waited for each other");
}
