//! Would anybody notice? A restore forgets one field of the model after the other, and for each of them the zoo has to fail
//! somewhere: the restore itself, the model before and after, the independent reader, or the fixture's own checks.
//!
//! A failure counts when the restore of the whole model passes right after it, with the same time to do so, and the
//! forgetful one then fails again: a busy machine or a taken number is nobody's notice.
//!
//! Takes more than two minutes, so it runs where MIGRATE_MUTATION is set: `MIGRATE_MUTATION=1 cargo test --test it mutation`. A word
//! there instead of the 1 looks at the fields that contain it, `WORD@FIXTURE:CASE` in that case only.

use super::harness::{HugePages, Run, Scenario, marked, terminals_lock};
use super::tools::{MOVED, adopt_orphans, compiled};
use super::{scenario, schema};
use migrate_engine::image::Model;
use migrate_engine::image::diff::Ignore;
use migrate_engine::image::forget::{fields, forget};
use migrate_engine::memory::store::ImageDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

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
    ("terminals", "of_another_user"),
    ("terminals", "lines"),
    ("terminals", "session"),
    ("identity", "names"),
    ("identity", "logged_in"),
    ("identity", "unprivileged"),
    ("identity", "mixed_ids"),
    ("identity", "capabilities"),
    ("identity", "securebits"),
    ("identity", "no_new_privs"),
    ("identity", "not_dumpable"),
    ("identity", "parent_death_signal"),
    ("identity", "limits"),
    ("identity", "scheduling"),
    ("identity", "deadline"),
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
    ("memory", "segments_of_others"),
    ("memory", "of_device"),
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
    ("descriptors", "broken_leases"),
    ("descriptors", "removed_working_directory"),
    ("descriptors", "timer_descriptors"),
    ("clocks", "ahead"),
    ("unix_sockets", "stream_pair"),
    ("unix_sockets", "packet_pair"),
    ("unix_sockets", "in_flight"),
    ("unix_sockets", "credentials"),
    ("unix_sockets", "shut_down"),
    ("unix_sockets", "listening"),
    ("unix_sockets", "datagrams_with_names"),
    ("sockets", "options"),
    ("sockets", "udp"),
    ("sockets", "udp_shut_down"),
    ("sockets", "udp_six"),
    ("sockets", "tcp_listening"),
    ("sockets", "tcp_listening_six"),
    ("sockets", "tcp"),
    ("sockets", "tcp_half_closed"),
    ("sockets", "tcp_ended"),
    ("sockets", "netlink"),
    ("sockets", "raw"),
    ("sockets", "multicast"),
    ("namespaces", "private_files"),
    ("namespaces", "own_program"),
    ("namespaces", "nodes_and_propagation"),
    ("namespaces", "bound"),
    ("namespaces", "layers"),
    ("namespaces", "different"),
    ("namespaces", "users"),
    ("namespaces", "users_and_mounts"),
    ("namespaces", "host_name"),
    ("processor", "rseq_registered"),
    ("processor", "protection_keys"),
    ("processor", "segment_bases"),
    ("processor", "avx"),
    ("memory", "hugetlb"),
    ("memory", "sealed"),
    ("memory", "no_new_code"),
    ("memory", "huge_pages_off"),
    ("memory", "barriers"),
    ("memory", "locked_future"),
    ("memory", "droppable"),
    ("numa", "of_mappings"),
    ("numa", "of_threads"),
    ("numa", "of_relatives"),
    ("numa", "of_segment"),
    ("identity", "seccomp_strict"),
    ("descriptors", "packets"),
    ("terminals", "sides"),
    ("terminals", "hung_up"),
    ("waits", "in_recv"),
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
    ("mms[*].cow_parent", "saves memory"),
    ("fs[*].root.mnt", "entered by its path from within the task's mount namespace, which the task names"),
];

/// Fields that a restore asks for where the tree gets a PID namespace of its own: those are forgotten in such a one.
const OF_NEW_PIDS: &[&str] = &["namespaces[*].kind.Mnt.mounts[*].parent_id"];

/// What is known of the fields so far; the workers share it.
#[derive(Default)]
struct Fields {
    /// With the first case that noticed, and how.
    noticed: BTreeMap<String, String>,
    /// With the number of cases that did not.
    unnoticed: BTreeMap<String, u32>,
    /// Tried by some worker at the moment.
    claimed: BTreeSet<String>,
    /// No model would be left: an empty name is none of the variants of an enumeration.
    indispensable: BTreeSet<String>,
    /// Rows of [`NOT_STATE`] that cover a field.
    informal: BTreeSet<&'static str>,
    /// Cases in which nothing could be found out.
    broken: Vec<String>,
}

impl Fields {
    /// Takes a field out of those that are left for a case: rather one that nobody else is trying.
    fn claim(&mut self, left: &mut Vec<String>) -> Option<String> {
        left.retain(|field| !self.noticed.contains_key(field));
        let free = left.iter().position(|field| !self.claimed.contains(field));
        let field = if left.is_empty() { None } else { Some(left.remove(free.unwrap_or(0))) }?;
        self.claimed.insert(field.clone());
        Some(field)
    }

    fn judge(&mut self, case: &str, field: String, notice: Option<String>) {
        self.claimed.remove(&field);
        match notice {
            Some(how) => {
                say(&format!("{field}: {case}: {how}"));
                self.noticed.insert(field, case.to_owned());
            }
            None => *self.unnoticed.entry(field).or_default() += 1,
        }
    }
}

/// Which fields, in which cases.
struct Filter {
    word: String,
    case: Option<String>,
}

impl Filter {
    fn parse(text: &str) -> Self {
        let (word, case) = text.split_once('@').map_or((text, None), |(word, case)| (word, Some(case.to_owned())));
        Self { word: if word == "1" { String::new() } else { word.to_owned() }, case }
    }

    fn is_everything(&self) -> bool {
        self.word.is_empty() && self.case.is_none()
    }
}

#[test]
fn every_field_of_the_model_is_missed() {
    let wanted = std::env::var("MIGRATE_MUTATION").unwrap_or_default();
    if wanted.is_empty() || !nix::unistd::geteuid().is_root() {
        return crate::skip!("needs root and MIGRATE_MUTATION=1, and ten minutes");
    }
    adopt_orphans();
    let filter = Filter::parse(&wanted);
    let fits = |(fixture, case): &&(&str, &str)| filter.case.as_ref().is_none_or(|c| *c == format!("{fixture}:{case}"));
    let queue: Mutex<Vec<_>> = Mutex::new(CASES.iter().filter(fits).rev().copied().collect());
    let all = Mutex::new(Fields::default());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = locked(&queue).pop();
                    let Some((fixture, case)) = next else { break };
                    if let Err(e) = case_by_fields(fixture, case, &filter, &all) {
                        locked(&all).broken.push(format!("{fixture}:{case}: {e}"));
                    }
                }
            });
        }
    });
    report(&all.into_inner().unwrap_or_else(|e| e.into_inner()), &filter);
}

/// What no case has, each with the reason.
const NO_CASE: &[(&str, &str)] = &[
    ("**.mnt", "the number of the host's own namespace is 0, which says nothing"),
    ("files[*].kind.Ghost.ghost", "the first one's number is 0, which says nothing"),
    ("files[*].kind.Tty.pty", "the first one's number is 0, which says nothing"),
    ("mms[*].vmas[*].backing.Ghost", "the first one's number is 0, which says nothing"),
    ("mms[*].vmas[*].backing.Descriptor", "the first one's number is 0, which says nothing"),
    ("namespaces[*].kind.Pid.parent", "the first one's number is 0, which says nothing"),
    ("ptys[*].index", "where it is the only terminal its number is 0, which says nothing"),
    ("files[*].kind.External", "tests of --external and of ttys outside the tree have it"),
    ("unix_sockets[*].state.External", "its peer is no part of a fixture: tests of --external-unix have it"),
    ("files[*].kind.Netlink.options", "those that all sockets have are the others'"),
    (
        "files[*].kind.Tcp.state=Connecting",
        "on loopback there is always an answer: tests of sockets in process have it",
    ),
    ("mms[*].old_vdsos", "only a tree from another kernel has one: `zoo::other_kernel`"),
    ("mms[*].pkeys", "not on every processor"),
    ("mms[*].vmas[*].pkey", "not on every processor"),
    ("mms[*].vmas[*].anon_name", "not in every kernel"),
    ("namespaces[*].kind.Net", "networks of a tree's own are refused: `networks`"),
    ("tasks[*].inner_pids", "a tree with a PID namespace of its own in it: tests of containers have it"),
    ("tasks[*].threads[*].inner_tids", "a tree with a PID namespace of its own in it: tests of containers have it"),
    ("tasks[*].threads[*].cgroups", "a threaded cgroup is the second version's"),
    ("tasks[*].dead.creds", "what a zombie's were is not compared"),
    ("namespaces[*].kind.Cgroup.roots", "never collected"),
    ("namespaces[*].kind.User", "maps to the host's user 0 and an owner that is 0 say nothing"),
    ("frozen", "somebody has to freeze what a fixture is in: zoo::frozen has it"),
    ("tasks[*].posix_timers[*].overrun", "no call sets it: of a signal that was taken it is 0 afterwards"),
];

/// A type that is new in the model comes with a case in which it says something.
#[test]
fn every_kind_of_state_is_in_a_case() {
    if std::env::var_os("MIGRATE_MUTATION").is_none() || !nix::unistd::geteuid().is_root() {
        return crate::skip!("mutation: needs root and MIGRATE_MUTATION=1, and a minute");
    }
    adopt_orphans();
    let mut seen = BTreeSet::new();
    for (fixture, case) in CASES {
        let scenario = scenario(fixture, case);
        let program = compiled(fixture).expect("gcc is there");
        let _terminals = (*fixture == "terminals").then(terminals_lock);
        let _huge_pages = HugePages::of(case);
        let stage = Stage::set_up(&scenario, &program, &format!("{fixture}:{case}"));
        if let Some(stage) = stage.unwrap_or_else(|e| panic!("{fixture}:{case}: {e}")) {
            seen.extend(fields(&stage.model));
            variants(&serde_json::to_value(&stage.model).expect("it is data"), &mut String::new(), &mut seen);
        }
    }
    let covers = |row: &(&str, &str), path: &str| Ignore::new([row.0]).covers(path);
    let all = schema::paths::<Model>();
    let left: Vec<_> = all.iter().filter(|path| !seen.contains(*path)).collect();
    let unexplained: Vec<_> =
        left.iter().filter(|path| !NOT_STATE.iter().chain(NO_CASE).any(|row| covers(row, path))).collect();
    say(&format!("{} of {} fields and variants are in a case", all.len() - left.len(), all.len()));
    assert!(unexplained.is_empty(), "no case has {unexplained:#?}");
    // The number of a terminal is the host's, and may be the first one; what not every machine has, this one may have.
    let steady = NO_CASE.iter().filter(|row| !row.1.ends_with("says nothing") && !row.1.starts_with("not "));
    let unused: Vec<_> = steady.filter(|row| !left.iter().any(|path| covers(row, path))).collect();
    assert!(unused.is_empty(), "some case has {unused:#?}");
}

/// Texts with their paths: one of them may be the name of a variant.
fn variants(value: &serde_json::Value, path: &mut String, seen: &mut BTreeSet<String>) {
    let length = path.len();
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                path.push_str(if length == 0 { "" } else { "." });
                path.push_str(name);
                variants(value, path, seen);
                path.truncate(length);
            }
        }
        serde_json::Value::Array(values) => {
            path.push_str("[*]");
            values.iter().for_each(|value| variants(value, path, seen));
            path.truncate(length);
        }
        serde_json::Value::String(text) => drop(seen.insert(format!("{path}={text}"))),
        _ => {}
    }
}

fn report(all: &Fields, filter: &Filter) {
    let left: Vec<_> = all.unnoticed.iter().filter(|(field, _)| !all.noticed.contains_key(*field)).collect();
    say(&format!("{} fields are missed, {} are not", all.noticed.len(), left.len()));
    // Which of several things something is: a restore that is not told so ends with an error.
    say(&format!("{} more are what no model can be without: {:?}", all.indispensable.len(), all.indispensable));
    assert!(all.broken.is_empty(), "cases that cannot be tried: {:#?}", all.broken);
    assert!(left.is_empty(), "nobody notices when a restore forgets (field, cases that have it): {left:#?}");
    let unused: Vec<_> = NOT_STATE.iter().filter(|(path, _)| !all.informal.contains(path)).collect();
    assert!(!filter.is_everything() || unused.is_empty(), "no field is left out for {unused:#?}");
}

fn case_by_fields(
    fixture: &'static str,
    case: &'static str,
    filter: &Filter,
    all: &Mutex<Fields>,
) -> Result<(), String> {
    let scenario = scenario(fixture, case);
    let program = compiled(fixture)?;
    let _terminals = (fixture == "terminals").then(terminals_lock);
    let _huge_pages = HugePages::of(case);
    let name = format!("{fixture}:{case}");
    let Some(mut stage) = Stage::set_up(&scenario, &program, &name)? else { return Ok(()) };
    let mut left = wanted(&stage.model, filter, &mut locked(all));
    loop {
        let Some(field) = locked(all).claim(&mut left) else { return Ok(()) };
        let notice = match notice(&mut stage, &field) {
            Ok(notice) => notice,
            // What the forgetful one has left behind, such as a file that it has written to, stops the others.
            Err(_) => {
                let again = || Stage::set_up(&scenario, &program, &name);
                let (Some(whole), Some(without), Some(next)) = (again()?, again()?, again()?) else { return Ok(()) };
                whole.trial(None, pids_of(&field)).map_err(|e| format!("a restore that forgets nothing fails: {e}"))?;
                let notice = without.trial(Some(&field), pids_of(&field)).err();
                stage = next;
                notice.map(first_line)
            }
        };
        locked(all).judge(&name, field, notice);
    }
}

/// A fixture that has been set up and saved.
struct Stage<'s> {
    run: Run<'s>,
    before: Option<PathBuf>,
    model: Model,
}

impl<'s> Stage<'s> {
    /// `None`, and said, where the fixture cannot be set up here.
    fn set_up(scenario: &'s Scenario, program: &Path, name: &str) -> Result<Option<Self>, String> {
        let run = Run::start(scenario, program);
        run.ready()?;
        if let Some(reason) = run.text("skip") {
            crate::skip!("mutation in {name}: {reason}");
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
        let before = if scenario.busy { None } else { Some(run.capture(run.pid(), "before.json")?) };
        run.dump(run.pid(), 0, &[])?;
        if scenario.timed {
            // From then on the fixtures tell a wait that lasts as long as was left of it from one that is cut short.
            std::thread::sleep(Duration::from_millis(1200));
        }
        let model = ImageDir::open(&run.image(0)).and_then(|image| image.model()).map_err(|e| e.to_string())?;
        Ok(Some(Self { run, before, model }))
    }

    fn trial(&self, field: Option<&str>, pids: Pids) -> Result<(), String> {
        trial(&self.run, field, pids, self.before.as_ref())
    }
}

fn first_line(text: String) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The fields of a model that are asked for, are state, and say something in it.
fn wanted(model: &Model, filter: &Filter, all: &mut Fields) -> Vec<String> {
    let mut found = Vec::new();
    for field in fields(model).into_iter().filter(|field| field.contains(&filter.word)) {
        let covers = |path: &str| Ignore::new([path]).covers(&field);
        if let Some((path, _)) = NOT_STATE.iter().find(|(path, _)| covers(path)) {
            all.informal.insert(path);
        } else {
            match forget(model, &field) {
                Some(without) if without == *model => {}
                Some(_) => found.push(field),
                None => drop(all.indispensable.insert(field)),
            }
        }
    }
    found
}

/// Which process ids a tree is restored with.
#[derive(Clone, Copy, PartialEq)]
enum Pids {
    Same,
    New,
}

fn pids_of(field: &str) -> Pids {
    if OF_NEW_PIDS.contains(&field) { Pids::New } else { Pids::Same }
}

/// How it is noticed that a restore forgets a field; nothing if it is not. An error says that also a restore that forgets
/// nothing fails.
fn notice(stage: &mut Stage<'_>, field: &str) -> Result<Option<String>, String> {
    let (mut disturbed, pids) = (String::new(), pids_of(field));
    for _ in 0..3 {
        if stage.trial(Some(field), pids).is_ok() {
            return Ok(None);
        }
        // What it takes at the moment is what a hang is told by.
        stage.run.patience = super::harness::PATIENCE;
        let began = Instant::now();
        if let Err(e) = stage.trial(None, pids) {
            disturbed = e;
            continue;
        }
        stage.run.patience = (began.elapsed() * 10).max(Duration::from_secs(10));
        return Ok(stage.trial(Some(field), pids).err().map(first_line));
    }
    Err(format!("a restore that forgets nothing fails: {disturbed}"))
}

/// Restores, without a field, and looks everywhere; an error says who noticed what.
fn trial(run: &Run<'_>, field: Option<&str>, pids: Pids, before: Option<&PathBuf>) -> Result<(), String> {
    for left in ["go", "result", "failures", "pid"] {
        let _ = std::fs::remove_file(run.path(left));
    }
    let _ = std::fs::remove_dir_all(run.image(1));
    let result = restored(run, field, pids, before);
    end_all(run);
    result
}

fn restored(run: &Run<'_>, field: Option<&str>, pids: Pids, before: Option<&PathBuf>) -> Result<(), String> {
    let (image, pid_file) = (run.image(0).display().to_string(), run.path("pid"));
    let file = pid_file.display().to_string();
    let word = if pids == Pids::New { "new" } else { "same" };
    let args = ["restore", "-D", &image, "--detach", "--pids", word, "--pidfile", &file].map(str::to_owned);
    let forget: Vec<_> = field.map(|field| ("MIGRATE_FORGET", field)).into_iter().collect();
    run.migrate(&args, &forget)?;
    let root = std::fs::read_to_string(&pid_file).map_err(|e| e.to_string())?;
    let root: i32 = root.trim().parse().map_err(|_| format!("root {root:?}"))?;
    run.note_tree(root);
    std::thread::sleep(Duration::from_millis(20));
    run.dump(root, 1, &["--leave-running"])?;
    if pids == Pids::New {
        run.same_model(0, 1, MOVED)?;
        return run.verify();
    }
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}
