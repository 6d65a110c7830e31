use super::*;
use crate::proc::{cgroup::Line, table::tests::row};
use std::process::{Child, Command};

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeper() -> (Ended, Pid) {
    let child = Ended(Command::new("sleep").arg("100").spawn().expect("sleep is installed"));
    let pid = Pid(child.0.id() as i32);
    (child, pid)
}

fn in_unit(pid: i32, ppid: i32, path: &str) -> Row {
    let mut row = row(pid, ppid, 0);
    let line = |controllers: &str| Line {
        hierarchy: 1,
        controllers: controllers.into(),
        path: path.as_bytes().into(),
        deleted: false,
    };
    row.cgroups = vec![line("name=systemd")];
    row
}

#[test]
fn a_process_and_its_descendants() {
    let (_child, pid) = sleeper();
    let resolved = resolve(&Target::Pid(pid)).unwrap();
    assert_eq!((resolved.roots.as_slice(), resolved.processes.as_slice()), ([pid].as_slice(), [pid].as_slice()));
    assert_eq!(resolved.root(&Target::Pid(pid)).unwrap(), pid);
    let own = Pid(std::process::id() as i32);
    assert!(resolve(&Target::Pid(own)).unwrap().processes.contains(&pid));
}

#[test]
fn what_does_not_exist_is_named() {
    let (mut child, pid) = sleeper();
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let error = resolve(&Target::Pid(pid)).unwrap_err();
    assert_eq!(error.to_string(), format!("there is no process {pid}"));
    let failure = Failure::from(error);
    assert_eq!(failure.exit_code(), 1);
    assert!(failure.hint.unwrap().contains("migrate list"));
    assert!(matches!(resolve(&Target::Unit("no-such".into())), Err(TargetError::Empty(_))));
    assert!(matches!(resolve(&Target::Cgroup("/no/such".into())), Err(TargetError::Empty(_))));
}

#[test]
fn a_thread_is_not_a_process() {
    let (send, receive) = std::sync::mpsc::channel();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        send.send(nix::unistd::gettid().as_raw()).unwrap();
        // Ends when the other end is dropped.
        let _ = wait.recv();
    });
    let tid = Pid(receive.recv().unwrap());
    let error = resolve(&Target::Pid(tid)).unwrap_err();
    drop(done);
    thread.join().unwrap();
    let own = Pid(std::process::id() as i32);
    assert!(matches!(error, TargetError::Thread { tid: t, pid } if t == tid && pid == own), "{error:?}");
}

#[test]
fn pid_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pid");
    let (_child, pid) = sleeper();
    let resolved = |text: &str| {
        std::fs::write(&path, text).unwrap();
        resolve(&Target::PidFile(path.clone()))
    };
    assert_eq!(resolved(&format!("{pid}\n")).unwrap().roots, [pid]);
    assert_eq!(resolved(&format!(" {pid} redis\n")).unwrap().roots, [pid]);
    for wrong in ["", "x", "-1", "0", "99999999999", &"1".repeat(100)] {
        assert!(matches!(resolved(wrong), Err(TargetError::PidFile { .. })), "{wrong}");
    }
    assert!(matches!(resolve(&Target::PidFile(dir.path().into())), Err(TargetError::PidFile { .. })));
}

#[test]
fn a_pid_file_older_than_the_process_means_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pid");
    let (_child, pid) = sleeper();
    std::fs::write(&path, pid.to_string()).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let error = resolve(&Target::PidFile(path)).unwrap_err();
    assert!(error.to_string().contains("has ended"), "{error}");
}

#[test]
fn units_by_name() {
    let table = Table::of(vec![
        in_unit(10, 1, "/system.slice/redis.service"),
        in_unit(11, 10, "/system.slice/redis.service/child"),
        in_unit(12, 1, "/system.slice/redis.service.d"),
        in_unit(20, 1, "/user.slice/user-1.slice/user@1.service/app.slice/x.service"),
        in_unit(21, 1, "/user.slice/user-2.slice/user@2.service/app.slice/x.service"),
    ]);
    let find = |name: &str| unit_path(&table, name, &Target::Unit(name.into()));
    let path = find("redis").unwrap();
    assert_eq!(path, b"/system.slice/redis.service");
    let found = within(&table, &path, Some("unit"));
    assert_eq!(found, [Pid(10), Pid(11)]);
    assert_eq!(roots(&table, &found), [Pid(10)]);
    assert!(matches!(find("x.service"), Err(TargetError::SeveralUnits { paths, .. }) if paths.len() == 2));
    assert!(matches!(find("y"), Err(TargetError::Empty(_))));
}

#[test]
fn every_process_of_a_cgroup_and_its_freezer() {
    let Some(freezer) = cgroupfs::hierarchies().unwrap().into_iter().find(|h| h.is_v2()) else {
        crate::skip!("cgroup version 2 is not mounted");
        return;
    };
    let dir = freezer.mount.join(format!("migrate-target-test-{}", std::process::id()));
    if std::fs::create_dir(&dir).is_err() {
        crate::skip!("cannot make a cgroup");
        return;
    }
    struct Removed(PathBuf);
    impl Drop for Removed {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.0).expect("the cgroup is empty once its processes were waited for");
        }
    }
    let removed = Removed(dir.clone());
    {
        let (_a, a) = sleeper();
        let (_b, b) = sleeper();
        for pid in [a, b] {
            std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        let name = Path::new("/").join(dir.strip_prefix(&freezer.mount).unwrap());
        for path in [name, dir.clone()] {
            let target = Target::Cgroup(path);
            let resolved = resolve(&target).unwrap();
            let mut both = [a, b];
            both.sort_unstable();
            assert_eq!(resolved.roots, both);
            assert_eq!(resolved.freezer, Some(Freezer { dir: dir.clone(), v2: true }));
            assert!(matches!(resolved.root(&target), Err(TargetError::SeveralTrees { .. })));
        }
    }
    drop(removed);
}
