//! What an option of its own is for: locks, files that are reached by another name, sockets that end outside.

use crate::stage::{CRIU, Stage, end, until};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Holds a lock, has a file open whose name was removed while it has another, and tells a socket outside that it is there.
const HOLDS: &str = "
import fcntl, os, socket, sys, time
home = sys.argv[1] + '/'
lock = open(home + 'lock', 'w')
fcntl.flock(lock, fcntl.LOCK_EX)
linked = open(home + 'linked', 'w+')
linked.write('still here')
linked.flush()
os.link(home + 'linked', home + 'other-name')
os.unlink(home + 'linked')
tells = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
tells.connect(home + 'outside')
while True:
    try: tells.send(b'here')
    except OSError: pass
    time.sleep(0.02)
";

fn hears(outside: &UnixDatagram) {
    outside.set_nonblocking(true).unwrap();
    // What was said before.
    while outside.recv(&mut [0; 16]).is_ok() {}
    until("it is heard", || outside.recv(&mut [0; 16]).ok());
}

/// Whether somebody else may have the lock.
fn is_free(lock: &Path) -> bool {
    let file = fs::File::options().write(true).open(lock).unwrap();
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
}

#[test]
fn locks_links_and_sockets_outside() {
    let Some(mut stage) = Stage::new() else { return };
    let images = stage.images("images");
    let outside = UnixDatagram::bind(stage.path("outside")).unwrap();
    let pid = stage.start("/usr/bin/python3", &["-c", HOLDS, stage.path("").to_str().unwrap()]);
    hears(&outside);
    let (target, lock) = (pid.to_string(), stage.path("lock"));
    let run = stage.criu(&["dump", "-t", &target, "-D", &images, "-l", "--link-remap"]).code(1);
    assert!(run.err.contains("M04"), "the socket is not refused: {run:?}");
    hears(&outside);
    let mut line = vec!["pre-dump", "-t", &target, "-D", &images, "--pre-dump-mode", "read", "--no-default-config"];
    stage.criu(&line).code(0);
    line.truncate(5);
    line[0] = "dump";
    stage.criu(&[&line[..], &["-l", "--link-remap", "--ext-unix-sk", "--no-default-config"]].concat()).code(0);
    stage.gone(pid);
    assert!(is_free(&lock));
    stage.criu(&["restore", "-d", "-l", "-x", "--link-remap", "-D", &images]).code(0);
    hears(&outside);
    assert!(!is_free(&lock), "the lock is gone");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let files = descriptors.map(|entry| entry.path()).filter(|path| fs::metadata(path).is_ok_and(|m| m.is_file()));
    let read = files.filter_map(|path| fs::read_to_string(path).ok());
    assert_eq!(read.filter(|text| text == "still here").count(), 1);
    end(pid);
}

#[test]
fn a_mode_that_is_none_is_refused() {
    let Some(stage) = Stage::new() else { return };
    let run = stage.criu(&["pre-dump", "-t", "1", "--pre-dump-mode", "guess"]).code(1);
    assert!(run.err.contains("--pre-dump-mode guess"), "{run:?}");
}

/// Says who its children are once the tree that it had restored runs.
const PARENT: &str = "
import os, subprocess, sys
subprocess.run(sys.argv[2:], check=True, stdin=subprocess.DEVNULL)
print(open('/proc/self/task/%d/children' % os.getpid()).read())
os.kill(int(sys.argv[1]), 9)
print(os.waitpid(-1, 0)[0])
try: os.waitpid(-1, 0)
except ChildProcessError: print('nobody')
";

#[test]
fn a_parent_has_nobody_else_to_wait_for() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images) = (stage.counter(), stage.images("images"));
    let target = pid.to_string();
    stage.criu(&["dump", "-t", &target, "-D", &images]).code(0);
    stage.gone(pid);
    let line = ["-c", PARENT, &target, CRIU, "restore", "-d", "-S", "-D", &images];
    let mut command = stage.command(Path::new("/usr/bin/python3"), &line);
    let run = stage.run(&mut command).code(0);
    let said: Vec<&str> = run.out.split_whitespace().collect();
    assert_eq!(said, [target.as_str(), &target, "nobody"], "{run:?}");
}
