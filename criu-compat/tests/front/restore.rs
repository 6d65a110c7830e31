//! `criu restore`: whose child the tree is, the pid file, the state it is in.

use crate::stage::{Stage, end, state, vacated};
use migrate_engine::ops::options::{ImagePlace, Pids, RestoreOptions};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

/// A counter that was dumped: its number and the directory.
fn dumped(stage: &mut Stage) -> (i32, String) {
    let (pid, images) = (stage.counter(), stage.images("images"));
    stage.criu(&["dump", "-t", &pid.to_string(), "-D", &images, "-o", "dump.log"]).code(0);
    stage.gone(pid);
    (pid, images)
}

#[test]
fn detached_it_goes_on_and_the_pid_file_has_its_number() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images) = dumped(&mut stage);
    let line = ["restore", "-d", "-D", &images, "-o", "restore.log", "-v4", "--pidfile", "pid"];
    // An old one is not overwritten, and nothing is started.
    std::fs::write(stage.path("images/pid"), "old").unwrap();
    let run = stage.criu(&line).code(1);
    assert!(run.err.contains("images/pid") && run.err.contains("not started"), "{run:?}");
    assert_eq!((stage.text("images/pid"), state(pid)), ("old".to_owned(), None));
    // One of a restore that has failed is not left.
    std::fs::remove_file(stage.path("images/pid")).unwrap();
    let mut command = stage.command(std::path::Path::new(crate::stage::CRIU), &line);
    stage.run(command.env("MIGRATE_FAULT", "restore-signals")).code(1);
    vacated(pid);
    assert!(!stage.path("images/pid").exists() && stage.text("images/restore.log").contains(") Error ("));
    stage.criu(&line).code(0);
    assert_eq!(stage.text("images/pid"), pid.to_string());
    assert!(stage.text("images/restore.log").contains("Restore finished successfully"));
    stage.counts();
    end(pid);
}

#[test]
fn in_the_foreground_it_ends_as_the_tree_does() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images) = dumped(&mut stage);
    let mut command = stage.command(std::path::Path::new(crate::stage::CRIU), &["restore", "-D", &images]);
    let mut criu = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    stage.counts();
    assert_eq!(state(pid).map(|(_, parent)| parent), Some(criu.id() as i32));
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert_eq!(criu.wait().unwrap().code(), Some(128 + Signal::SIGTERM as i32));
}

#[test]
fn a_sibling_is_a_child_of_our_parent() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images) = dumped(&mut stage);
    stage.criu(&["restore", "-d", "-S", "-D", &images, "-o", "restore.log", "--pidfile", "pid"]).code(0);
    stage.counts();
    assert_eq!(stage.text("images/pid"), pid.to_string());
    assert_eq!(state(pid).map(|(_, parent)| parent), Some(std::process::id() as i32));
    let ended = end(pid);
    assert_eq!(ended, Some(WaitStatus::Signaled(Pid::from_raw(pid), Signal::SIGKILL, false)));
}

#[test]
fn a_tree_may_be_restored_stopped() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images) = dumped(&mut stage);
    let before = stage.count();
    stage.criu(&["restore", "-d", "-s", "-D", &images]).code(0);
    assert_eq!((state(pid).map(|(letter, _)| letter), stage.count()), (Some('T'), before));
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    stage.counts();
    end(pid);
}

/// The engine's own choice, which no option of `migrate` makes, in a process of its own.
fn sibling(pids: Pids, name: &str) {
    const IMAGE: &str = "FRONT_IMAGE";
    if let Some(image) = std::env::var_os(IMAGE) {
        let mut options = RestoreOptions::new(ImagePlace::Dir(image.into()));
        (options.sibling, options.detach, options.state.pids) = (true, true, Some(pids));
        let restored = migrate_engine::ops::restore::run(&options, &migrate_engine::ops::Quiet);
        let root = restored.unwrap_or_else(|failure| panic!("{failure}")).outcome.pid;
        std::fs::write("root", root.unwrap().to_string()).unwrap();
        return;
    }
    let Some(mut stage) = Stage::new() else { return };
    let (pid, images) = dumped(&mut stage);
    let own = std::env::current_exe().unwrap();
    let mut command = stage.command(&own, &[name, "--exact", "--nocapture"]);
    stage.run(command.env(IMAGE, format!("{images}/migrate-image"))).code(0);
    stage.counts();
    let root: i32 = stage.text("root").parse().unwrap();
    let parent = state(root).unwrap().1;
    let ours = std::process::id() as i32;
    match pids {
        Pids::New => {
            // Process 1 of its namespace is between us; it ends as the root does.
            assert_ne!(root, pid);
            assert_eq!(state(parent).map(|(_, grandparent)| grandparent), Some(ours));
            kill(Pid::from_raw(root), Signal::SIGTERM).unwrap();
            let ended = nix::sys::wait::waitpid(Pid::from_raw(parent), None);
            assert_eq!(ended, Ok(WaitStatus::Exited(Pid::from_raw(parent), 128 + Signal::SIGTERM as i32)));
        }
        _ => {
            assert_eq!((root, parent), (pid, ours));
            assert!(end(root).is_some(), "it is not our child");
        }
    }
}

#[test]
fn a_sibling_with_the_ids_it_had() {
    sibling(Pids::Same, "restore::a_sibling_with_the_ids_it_had");
}

#[test]
fn a_sibling_with_new_ids() {
    sibling(Pids::New, "restore::a_sibling_with_new_ids");
}
