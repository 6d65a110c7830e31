//! Would anybody notice? A restore forgets one field of the model after the other, and for each of them the zoo has to fail
//! somewhere: the restore itself, the model before and after, the independent reader, or the fixture's own checks.
//!
//! Takes a quarter of an hour, so it runs where MIGRATE_MUTATION is set: `MIGRATE_MUTATION=1 cargo test --test it mutation`.
//! A word there instead of the 1 looks at the fields that contain it.

use super::harness::{Run, compiled, marked};
use super::scenario;
use migrate_engine::image::Model;
use migrate_engine::image::diff::Ignore;
use migrate_engine::image::forget::{fields, forget};
use migrate_engine::memory::store::ImageDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Cases that between them have every kind of state.
const CASES: &[(&str, &str)] = &[
    ("tree", "plain"),
    ("tree", "sessions"),
    ("tree", "orphaned_session"),
    ("tree", "zombies"),
    ("tree", "stopped"),
    ("tree", "subreaper"),
    ("tree", "exit_signals"),
    ("threads", "few"),
    ("threads", "robust_list"),
    ("threads", "own_tables"),
    ("threads", "own_attributes"),
    ("threads", "siblings_share"),
    ("threads", "shares_io"),
    ("threads", "shares_all"),
    ("waits", "in_nanosleep"),
    ("terminals", "pair"),
    ("terminals", "lines"),
    ("terminals", "session"),
    ("identity", "names"),
    ("identity", "unprivileged"),
    ("identity", "mixed_ids"),
    ("identity", "capabilities"),
    ("identity", "securebits"),
    ("identity", "no_new_privs"),
    ("identity", "not_dumpable"),
    ("identity", "parent_death_signal"),
    ("identity", "limits"),
    ("identity", "scheduling"),
    ("identity", "oom"),
    ("identity", "personalities"),
    ("identity", "places"),
    ("identity", "changed_root"),
    ("identity", "seccomp_several"),
    ("memory", "anonymous"),
    ("memory", "heap"),
    ("memory", "file_mappings"),
    ("memory", "deleted_files"),
    ("memory", "shared_memory"),
    ("memory", "system_v"),
    ("memory", "memory_files"),
    ("memory", "guards"),
    ("memory", "locked"),
    ("memory", "advice"),
    ("memory", "layout"),
    ("memory", "named"),
    ("memory", "grows_down"),
    ("memory", "copy_on_write"),
    ("signals", "handlers"),
    ("signals", "masks"),
    ("signals", "pending"),
    ("signals", "pending_of_threads"),
    ("signals", "alternate_stack"),
    ("signals", "interval_timers"),
    ("signals", "posix_timers"),
    ("descriptors", "regular"),
    ("descriptors", "shared_between_processes"),
    ("descriptors", "deleted"),
    ("descriptors", "other_name"),
    ("descriptors", "pipes"),
    ("descriptors", "fifos"),
    ("descriptors", "event_counters"),
    ("descriptors", "signal_descriptors"),
    ("descriptors", "polled"),
    ("descriptors", "watched"),
    ("descriptors", "process_descriptors"),
    ("descriptors", "namespace_descriptors"),
    ("descriptors", "devices"),
    ("descriptors", "memory_files"),
    ("descriptors", "proc_files"),
    ("descriptors", "locks"),
    ("descriptors", "owners"),
    ("descriptors", "leases"),
    ("descriptors", "timer_descriptors"),
];

/// Fields that are no state of the tree, each with what it is there for.
const NOT_STATE: &[(&str, &str)] = &[
    ("host", "facts about the source: messages, comparison of processors, clocks"),
    ("**.device", "tells files apart within the image"),
    ("**.inode", "tells files apart within the image"),
    ("**.size", "compared with the file that is found; forgotten together with the time of its last change it is not"),
    ("**.mtime_ns", "compared with the file that is found"),
    ("files[*].kind.Inotify.watches[*].path.mode", "compared with the file that is found"),
    ("namespaces[*].of_host", "tells the namespaces of the source's host from the tree's own"),
    ("cgroups", "where it was, for --cgroup same; the tree is put into a cgroup of its own"),
    ("tasks[*].cgroups", "where it was, for --cgroup same; the tree is put into a cgroup of its own"),
    ("tasks[*].threads[*].cgroups", "where it was, for --cgroup same; the tree is put into a cgroup of its own"),
    ("mms[*].cow_parent", "saves memory"),
    ("tasks[*].loginuid", "unset in tests, and may be set only once"),
];

#[derive(Default)]
struct Fields {
    /// With the first case that noticed.
    noticed: BTreeMap<String, String>,
    /// With the number of cases that did not.
    unnoticed: BTreeMap<String, u32>,
}

#[test]
fn every_field_of_the_model_is_missed() {
    let wanted = std::env::var("MIGRATE_MUTATION").unwrap_or_default();
    if wanted.is_empty() || !nix::unistd::geteuid().is_root() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED mutation: needs root and MIGRATE_MUTATION=1, and a quarter of an hour"
        );
        return;
    }
    let word = if wanted == "1" { "" } else { wanted.as_str() };
    let mut all = Fields::default();
    for (fixture, case) in CASES {
        case_by_fields(fixture, case, word, &mut all).unwrap_or_else(|e| panic!("{fixture}:{case}: {e}"));
    }
    let left: Vec<_> = all.unnoticed.iter().filter(|(field, _)| !all.noticed.contains_key(*field)).collect();
    let _ = writeln!(std::io::stderr(), "{} fields are missed, {} are not", all.noticed.len(), left.len());
    assert!(left.is_empty(), "nobody notices when a restore forgets: {left:#?}");
}

fn case_by_fields(fixture: &'static str, case: &'static str, word: &str, all: &mut Fields) -> Result<(), String> {
    let scenario = scenario(fixture, case);
    let program = compiled(fixture)?;
    let run = Run::start(&scenario, &program);
    run.ready()?;
    if run.text("skip").is_some() {
        return Ok(());
    }
    std::thread::sleep(Duration::from_millis(20));
    let before = if scenario.busy { None } else { Some(run.capture(run.pid(), "before.json")?) };
    run.dump(run.pid(), 0, &[])?;
    let model = ImageDir::open(&run.image(0)).and_then(|image| image.model()).map_err(|e| e.to_string())?;
    let informal = Ignore::new(NOT_STATE.iter().map(|(path, _)| *path));
    for field in fields(&model).into_iter().filter(|field| field.contains(word)) {
        if all.noticed.contains_key(&field) || informal.covers(&field) || !changes(&model, &field) {
            continue;
        }
        match unnoticed(&run, &field, before.as_ref()) {
            Ok(()) => *all.unnoticed.entry(field).or_default() += 1,
            Err(how) => {
                let line = how.lines().next().unwrap_or_default().to_owned();
                all.noticed.insert(field, format!("{fixture}:{case}: {line}"));
            }
        }
        end_all(&run);
    }
    Ok(())
}

/// There is a model without the field, and it is another one.
fn changes(model: &Model, field: &str) -> bool {
    forget(model, field).is_some_and(|without| without != *model)
}

/// Restores without the field and looks everywhere; an error says who noticed.
fn unnoticed(run: &Run<'_>, field: &str, before: Option<&PathBuf>) -> Result<(), String> {
    for left in ["go", "result", "failures", "pid"] {
        let _ = std::fs::remove_file(run.path(left));
    }
    let _ = std::fs::remove_dir_all(run.image(1));
    let (image, pid_file) = (run.image(0).display().to_string(), run.path("pid"));
    let file = pid_file.display().to_string();
    let args = ["restore", "-D", &image, "--detach", "--pids", "same", "--pidfile", &file].map(str::to_owned);
    run.migrate(&args, &[("MIGRATE_FORGET", field)])?;
    let root = std::fs::read_to_string(&pid_file).map_err(|e| e.to_string())?;
    let root: i32 = root.trim().parse().map_err(|_| format!("root {root:?}"))?;
    run.note_tree(root);
    std::thread::sleep(Duration::from_millis(20));
    run.dump(root, 1, &["--leave-running"])?;
    run.same_model(0, 1, &[])?;
    if let Some(before) = before {
        run.compare(before, &run.capture(root, "after.json")?)?;
    }
    run.verify()
}

fn end_all(run: &Run<'_>) {
    for _ in 0..200 {
        let found = marked(run.dir.path());
        if found.is_empty() {
            break;
        }
        for pid in found {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    run.reap();
}
