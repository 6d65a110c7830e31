//! Whoever watches the memory leaves mappings whole: over one that is in two pieces, were it for a moment, mremap(2) fails, and
//! with it a realloc(3) of the target. See `resize.c`.

use super::snapshots::Work;
use super::{moved, ok, root};
use std::time::Duration;

/// Of root and of another user: whose userfaultfd handles faults of the kernel, and whose does not.
const USERS: [Option<u32>; 2] = [None, Some(1000)];

#[test]
fn a_target_that_resizes_its_memory_is_not_disturbed() {
    if !root() {
        return;
    }
    let images = tempfile::tempdir().unwrap();
    for user in USERS {
        let mut work = Work::of("resize", &["128"], user);
        let pid = work.pid().to_string();
        let place = |name: &str| images.path().join(format!("{name}-{pid}")).to_str().unwrap().to_owned();
        let (first, parent, second) = (place("first"), place("parent"), place("second"));
        let (snapshot, third) = (place("snapshot"), place("third"));
        ok(&["dump", &pid, "-D", &first, "--leave-running"]);
        ok(&["pre-dump", &pid, "-D", &parent]);
        ok(&["dump", &pid, "-D", &second, "--parent", &parent, "--leave-running"]);
        ok(&["dump", &pid, "-D", &snapshot, "--snapshot"]);
        // The tracker that this leaves is told to end by the next, which cannot use it.
        ok(&["pre-dump", &pid, "-D", &third]);
        ok(&["dump", &pid, "-D", &place("last"), "--leave-running"]);
        work.passes();
    }
}

/// Parent and child have memory at the same places that each has made on its own.
#[test]
fn what_is_one_mapping_is_one_after_a_move() {
    if !root() {
        return;
    }
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    for mode in ["pre-copy", "stop-and-copy", "post-copy", "hybrid"] {
        let host = tempfile::tempdir().unwrap();
        let work = Work::start(2, 1, 16, "mremap");
        let result = moved(work.pid(), mode, host.path());
        work.moved_passes_after(Duration::from_millis(500), &result);
    }
}
