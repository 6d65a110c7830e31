//! `criu dump`: what becomes of the target, of the log, and of the exit code.

use crate::stage::{Stage, state, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// `(ss.uuuuuu) ` and the rest of each line.
fn lines(log: &str) -> Vec<&str> {
    log.lines()
        .map(|line| {
            let (time, rest) = line.split_once(") ").unwrap_or_else(|| panic!("no time in {line:?}"));
            let (seconds, micros) = time.strip_prefix('(').and_then(|t| t.split_once('.')).unwrap();
            assert!(seconds.len() >= 2 && micros.len() == 6, "{line:?}");
            assert!(seconds.bytes().chain(micros.bytes()).all(|b| b.is_ascii_digit()), "{line:?}");
            rest
        })
        .collect()
}

/// Lines of errors, each with the place in the source.
fn errors(log: &str) -> Vec<&str> {
    let of = |line: &&str| line.starts_with("Error ");
    let errors: Vec<&str> = lines(log).into_iter().filter(of).collect();
    for error in &errors {
        let place = error.strip_prefix("Error (").and_then(|rest| rest.split_once("): "));
        let line = place.and_then(|(place, _)| place.rsplit_once(':')).map(|(_, line)| line.parse::<u32>());
        assert!(matches!(line, Some(Ok(_))), "{error:?} has no (file:line)");
    }
    errors
}

#[test]
fn a_dump_ends_the_tree_and_a_log_is_left() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images) = (stage.counter(), stage.images("images"));
    stage.criu(&["dump", "-t", &pid.to_string(), "-D", &images, "-o", "dump.log", "-v4"]).code(0);
    // Gone when the command is: a zombie is our own to reap.
    assert!(state(pid).is_none_or(|(letter, _)| letter == 'Z'));
    stage.gone(pid);
    let log = stage.text("images/dump.log");
    assert!(lines(&log).last().unwrap().contains("Dumping finished successfully"), "{log}");
    assert!(errors(&log).is_empty(), "{log}");
}

#[test]
fn a_dump_may_leave_the_tree_running_or_stopped() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images) = (stage.counter(), stage.images("images"));
    stage.criu(&["dump", "-R", "-t", &pid.to_string(), "-D", &images]).code(0);
    stage.counts();
    stage.criu(&["dump", "--leave-stopped", "-t", &pid.to_string(), "-D", &images]).code(0);
    assert_eq!(state(pid).map(|(letter, _)| letter), Some('T'));
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    stage.counts();
}

#[test]
fn a_failed_dump_leaves_the_tree_running_and_says_why() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images, work) = (stage.counter(), stage.images("images"), stage.images("work"));
    let mut command = stage.command(
        std::path::Path::new(crate::stage::CRIU),
        &["dump", "-t", &pid.to_string(), "-D", &images, "-W", &work, "-o", "dump.log", "-v4"],
    );
    let run = stage.run(command.env("MIGRATE_FAULT", "dump-collected")).code(1);
    assert!(run.err.contains("Error ("), "{run:?}");
    let log = stage.text("work/dump.log");
    let errors = errors(&log);
    assert!(errors[0].contains("dump: ") && errors.iter().any(|e| e.contains("still running")), "{log}");
    stage.counts();
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let Some(stage) = Stage::new() else { return };
    let images = stage.images("images");
    // Nobody has the number of a process that cannot be: it is above the highest.
    let run = stage.criu(&["dump", "-t", "99999999", "-D", &images, "-o", "dump.log"]).code(1);
    assert!(run.err.contains("99999999"), "{run:?}");
    assert!(!errors(&stage.text("images/dump.log")).is_empty());
    assert!(stage.criu(&["dump", "-D", &images]).code(1).err.contains("--tree"));
    assert!(stage.criu(&["dump", "--lazy-pages", "-t", "1"]).code(1).err.contains("--lazy-pages"));
    assert!(stage.criu(&["dump", "-t", "1", "-x4711"]).code(1).err.contains("--ext-unix-sk=4711"));
    assert!(stage.criu(&["restore", "-S"]).code(1).err.contains("--restore-detached"));
    stage.criu(&[]).code(1);
    assert!(stage.criu(&["--version"]).code(0).out.starts_with("Version: 4.2\n"));
}

#[test]
fn features_are_answered_by_the_exit_code() {
    let Some(stage) = Stage::new() else { return };
    stage.criu(&["check", "--feature", "timerfd"]).code(0);
    stage.criu(&["check", "--feature", "compat_cr"]).code(1);
    assert!(stage.criu(&["check", "--feature", "nonsense"]).code(1).err.contains("Unknown feature nonsense"));
    assert_eq!(stage.criu(&["check"]).code(0).out, "Looks good.\n");
}

/// Its first thread waits in vfork(2) for a child that opens a FIFO nobody writes to. Then it ends, or, told to, does not.
const WAITS: &str = "
import os, sys, time
os.mkfifo(sys.argv[1])
action = (os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)
os.posix_spawn('/bin/true', ['true'], {'FRONT': os.environ['FRONT']}, file_actions=[action])
while sys.argv[2:]: time.sleep(0.01)
";

/// That program, once it waits; and the FIFO.
fn waiting(stage: &mut Stage, then: &[&str]) -> (i32, std::path::PathBuf) {
    let fifo = stage.path("fifo");
    let pid = stage.start("/usr/bin/python3", &[&["-c", WAITS, fifo.to_str().unwrap()], then].concat());
    until("it waits for its child", || state(pid).filter(|(letter, _)| *letter == 'D'));
    (pid, fifo)
}

#[test]
fn a_tree_that_stops_in_time_is_dumped() {
    let Some(mut stage) = Stage::new() else { return };
    let images = stage.images("images");
    let (pid, fifo) = waiting(&mut stage, &["stay"]);
    let line = ["dump", "-t", &pid.to_string(), "-D", &images, "-o", "dump.log", "--timeout", "50"];
    let mut criu = stage.command(std::path::Path::new(crate::stage::CRIU), &line).spawn().unwrap();
    // Longer than a task that did not stop is waited for where nobody says for how long.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(criu.try_wait().unwrap(), None, "{}", stage.text("images/dump.log"));
    drop(std::fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    assert_eq!(criu.wait().unwrap().code(), Some(0), "{}", stage.text("images/dump.log"));
    stage.gone(pid);
}

/// Signals that mean an end: the tree is as it was, and the command says that it has failed.
#[test]
fn a_signal_during_a_dump_is_a_failure() {
    let Some(mut stage) = Stage::new() else { return };
    let images = stage.images("images");
    let (pid, fifo) = waiting(&mut stage, &[]);
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        let line = ["dump", "-t", &pid.to_string(), "-D", &images, "-o", "dump.log", "--timeout", "2"];
        let mut criu = stage.command(std::path::Path::new(crate::stage::CRIU), &line).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        kill(Pid::from_raw(criu.id() as i32), signal).unwrap();
        assert_eq!(criu.wait().unwrap().code(), Some(1), "{signal}");
        assert_eq!(state(pid).map(|(letter, _)| letter), Some('D'));
    }
    drop(std::fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    stage.gone(pid);
}

#[test]
fn a_tree_that_does_not_stop_is_given_up() {
    let Some(mut stage) = Stage::new() else { return };
    let images = stage.images("images");
    let (pid, fifo) = waiting(&mut stage, &[]);
    let line = ["dump", "-t", &pid.to_string(), "-D", &images, "-o", "dump.log", "--timeout", "1"];
    assert!(stage.criu(&line).code(1).err.contains("Error ("));
    assert!(!errors(&stage.text("images/dump.log")).is_empty());
    assert_eq!(state(pid).map(|(letter, _)| letter), Some('D'));
    // It was not harmed: once the FIFO is opened both end.
    drop(std::fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    stage.gone(pid);
}
