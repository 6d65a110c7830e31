//! The program as a shell sees it: streams, exit codes, JSON Lines.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

/// The program, away from the configuration of whoever runs the tests.
pub fn migrate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migrate"));
    command.args(args).stdin(Stdio::null()).env("XDG_CONFIG_HOME", "/nonexistent");
    for name in ["MIGRATE_CONFIG", "TRACEPARENT", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

fn run(args: &[&str]) -> Output {
    migrate(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The events of standard output; checks what every event has, and that the one result is the last.
pub fn events(output: &Output) -> Vec<Value> {
    let events: Vec<Value> = out(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut before = 0;
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["v"], 1);
        let ts = event["ts"].as_str().unwrap();
        assert!(ts.len() == 27 && ts.ends_with('Z') && ts.as_bytes()[10] == b'T', "{ts}");
        let t = event["t_us"].as_u64().unwrap();
        assert!(t >= before);
        before = t;
        assert_eq!(event["session"], events[0]["session"]);
        assert_eq!(event["event"] == "result", at + 1 == events.len(), "{event}");
    }
    let result = events.last().expect("there is a result");
    assert_eq!(result["exit"], code(output));
    assert_eq!(result["ok"], code(output) == 0);
    events
}

/// What it has warned of, a line each.
pub fn warnings(output: &Output) -> String {
    let all = events(output);
    let texts = all.iter().filter(|event| event["event"] == "warning").filter_map(|event| event["text"].as_str());
    texts.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_log_that_cannot_be_written_ends_nobody() {
    if !crate::moves::can_move() {
        return;
    }
    // Enough memory for rounds, which are logged.
    let (counter, dir) = (crate::moves::Counter::start(64), tempfile::tempdir().unwrap());
    let (pid, log) = (counter.pid(), dir.path().join("log"));
    let dump = |name: &str, log: &str| {
        let image = dir.path().join(name);
        migrate(&["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running", "--log", log])
    };
    assert!(dump("logged", log.to_str().unwrap()).output().unwrap().status.success());
    assert!(log.metadata().unwrap().len() > 0, "nothing is logged");
    // And nobody reads its standard error.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = dump("not logged", "/dev/full").stderr(writer).stdout(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn help_and_version_go_to_standard_output() {
    for args in [&["-h"][..], &["--help"], &["-V"], &["--version"], &["explain", "-h"], &["explain", "--help"]] {
        let output = run(args);
        assert_eq!((code(&output), err(&output).as_str()), (0, ""), "{args:?}");
        assert!(out(&output).lines().count() >= 1);
    }
    assert_eq!(out(&run(&["-V"])), format!("migrate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what() {
    for (args, said) in [
        (&[][..], "Usage"),
        (&["frobnicate"], "frobnicate"),
        (&["explain", "--frobnicate"], "--frobnicate"),
        (&["explain", "M1"], "as in M0301"),
        (&["explain", "M0999"], "no code M0999"),
        (&["explain", "M0301", "-v", "-q"], "cannot be used with"),
        (&["explain", "M0301", "--progress", "x"], "plain"),
        (&["explain", "M0301", "--log", "/nonexistent/x"], "/nonexistent/x"),
        (&["explain", "M0301", "--config", "/nonexistent/x"], "/nonexistent/x"),
        (&["verify", "a", "b"], "'b'"),
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(err(&output).contains(said), "{args:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{args:?}");
    }
}

#[test]
fn options_of_every_verb_stand_before_or_behind_it() {
    for args in [&["--json", "explain", "M0301"][..], &["explain", "M0301", "--json"], &["explain", "--json", "M0301"]]
    {
        let output = run(args);
        let events = events(&output);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["verb"], "explain");
        assert_eq!(events[0]["codes"][0]["code"], "M0301");
        assert!(events[0].get("traceparent").is_none());
    }
}

#[test]
fn a_failure_is_a_result_too() {
    let output = migrate(&["verify", "/nonexistent", "--json"]).env("TRACEPARENT", "00-abc-def-01").output().unwrap();
    let events = events(&output);
    assert_eq!(code(&output), 7);
    assert_eq!(events[0]["event"], "session");
    let result = events.last().unwrap();
    assert_eq!((&result["ok"], &result["verb"]), (&Value::Bool(false), &Value::from("verify")));
    assert!(result["failure"]["what"].as_str().unwrap().contains("/nonexistent"));
    assert!(events.iter().all(|event| event["traceparent"] == "00-abc-def-01"));
    assert_eq!(err(&output), "");

    let output = run(&["explain", "M0999", "--json"]);
    assert_eq!(events_of_failure(&output)["failure"]["what"], "there is no code M0999");
}

fn events_of_failure(output: &Output) -> Value {
    events(output).pop().unwrap()
}

#[test]
fn a_failure_of_people_goes_to_standard_error() {
    let output = run(&["show", "/nonexistent"]);
    assert_eq!((code(&output), out(&output).as_str()), (7, ""));
    assert!(err(&output).starts_with("error: ") && err(&output).contains("\nhint: "), "{}", err(&output));
    // Nothing was asked of a target, so that nothing is told about one.
    assert!(!err(&output).contains("target:"));
}

#[test]
fn closed_standard_output_is_no_failure() {
    for args in [&["explain", "--all"][..], &["explain", "--all", "--json"], &["--help"], &["list"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = migrate(args).stdout(writer).output().unwrap();
        assert_eq!((code(&output), err(&output).as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn colours_are_for_terminals_or_on_request() {
    assert!(!err(&run(&["explain", "M0999"])).contains('\x1b'));
    assert!(err(&run(&["explain", "M0999", "--color", "always"])).contains("\x1b[1;31merror:"));
    assert!(out(&run(&["explain", "M0301", "--color=always"])).contains("\x1b["));
}

#[test]
fn configuration_sets_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let with = |text: &str, args: &[&str]| {
        std::fs::create_dir_all(dir.path().join("migrate")).unwrap();
        std::fs::write(dir.path().join("migrate/config.toml"), text).unwrap();
        migrate(args).env("XDG_CONFIG_HOME", dir.path()).output().unwrap()
    };
    assert!(out(&with("color = 'always'", &["explain", "M0301"])).contains('\x1b'));
    assert!(!out(&with("color = 'always'", &["explain", "M0301", "--color", "never"])).contains('\x1b'));
    assert_eq!(out(&with("[explain]\nall = true", &["explain", "M0301"])), out(&run(&["explain", "M0301"])));
    let output = with("[explain]\ncolour = 'x'", &["explain", "M0301"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("config.toml: [explain] colour: there is no such option"), "{}", err(&output));
    let output = with("color = 'x'", &["explain", "M0301", "--json"]);
    assert_eq!((code(&output), &events_of_failure(&output)["verb"]), (2, &Value::from("explain")));
}

#[test]
fn a_log_is_written_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    assert_eq!(code(&run(&["explain", "M0301", "--log", log.to_str().unwrap()])), 0);
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn list_shows_a_tree_of_ours() {
    let output = run(&["list", "--json"]);
    let result = events(&output).pop().unwrap();
    let entries = result["entries"].as_array().unwrap();
    assert!(entries.iter().all(|entry| entry["target"].is_string() && entry["processes"].as_u64().unwrap() > 0));
    let text = out(&run(&["list"]));
    assert!(text.starts_with("TARGET"), "{text}");
}

/// A process of ours that is ended by its id, whatever happens.
pub struct Sleeper(std::process::Child);

impl Sleeper {
    /// A program that does nothing.
    pub fn start() -> Self {
        Self::of(&["sleep", "1000"])
    }

    /// A program without anything that ends outside of it: whoever runs the tests may have left descriptors open.
    fn of(words: &[&str]) -> Self {
        let close = r#"for f in /proc/self/fd/*; do n=${f##*/}; [ "$n" -gt 2 ] && eval "exec $n>&-"; done; exec "$@""#;
        let mut command = Command::new("bash");
        command.args(["--norc", "-c", close, "bash"]).args(words).process_group(0);
        let mut target =
            Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let name = format!("{}\n", words[0].rsplit('/').next().unwrap());
        let comm = format!("/proc/{}/comm", target.0.id());
        target.wait_until(|| std::fs::read_to_string(&comm).is_ok_and(|comm| comm == name));
        target
    }

    fn wait_until(&mut self, done: impl Fn() -> bool) {
        let began = std::time::Instant::now();
        while !done() {
            assert!(self.runs() && began.elapsed().as_secs() < 60);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// Whether it has not ended yet.
    pub fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_failed_dump_says_in_what_state_the_target_is() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let output = run(&["dump", "2147483647", "-D", image.to_str().unwrap()]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).starts_with("error: "), "{}", err(&output));
    assert!(err(&output).lines().last().unwrap().starts_with("target: "), "{}", err(&output));

    // A place that cannot be written to: found before anything is stopped.
    let mut target = Sleeper::start();
    let output = run(&["dump", &target.0.id().to_string(), "-D", "/proc/image", "--json"]);
    let result = events_of_failure(&output);
    assert_eq!((&result["verb"], &result["ok"]), (&Value::from("dump"), &Value::Bool(false)));
    assert!(result["failure"]["what"].as_str().unwrap().contains("/proc/image"), "{result}");
    assert!(target.runs());
}

#[test]
fn files_are_copied_by_a_move_alone() {
    for verb in [&["restore", "--detach", "-D", "/nonexistent/x"][..], &["dump", "2147483647", "-D", "/nonexistent/x"]]
    {
        let output = run(&[verb, &["--files", "copy"]].concat());
        assert_eq!(code(&output), 2, "{}", err(&output));
        assert!(err(&output).contains("--files copy is for a move"), "{}", err(&output));
    }
    let output = run(&["move", "1", "unix:/nonexistent/x", "--hook", "never=true"]);
    assert_eq!(code(&output), 2, "{}", err(&output));
    assert!(err(&output).contains("pre-commit"), "the points are named: {}", err(&output));
}

#[test]
fn a_restore_in_the_foreground_leaves_exit_codes_to_the_target() {
    let output = run(&["restore", "-D", "/nonexistent"]);
    assert_eq!(code(&output), 125, "{}", err(&output));
    assert_eq!(err(&output).lines().last(), Some("target: not started"));
    let output = run(&["restore", "-D", "/nonexistent", "--detach"]);
    assert_eq!(code(&output), 7, "{}", err(&output));
    let output = run(&["restore", "-D", "/nonexistent", "--detach", "--json"]);
    assert_eq!(events_of_failure(&output)["where"], "nowhere");
}

#[test]
fn check_answers_with_its_exit_code() {
    let mut target = Sleeper::start();
    let pid = target.0.id().to_string();
    let output = run(&["check", &pid, "--json"]);
    let result = events(&output).pop().unwrap();
    let blockers = result["blockers"].as_array().unwrap();
    assert_eq!(code(&output), if blockers.is_empty() { 0 } else { 3 });
    assert_eq!(result["targets"][0]["pids"][0].as_i64(), pid.parse().ok());
    assert!(!result["probes"].as_array().unwrap().is_empty());
    assert!(out(&run(&["check"])).contains("PROBE"));
    // This test runs below the program that it would stop.
    let output = run(&["check", &std::process::id().to_string()]);
    assert_eq!(code(&output), 3);
    assert!(out(&output).contains("M0109"), "{}", out(&output));
    assert!(target.runs());
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::skip!("needs root");
    }
    root
}

/// A process with memory that takes a while to copy, and with nothing that ends outside of it.
fn large(ready: &std::path::Path) -> Sleeper {
    let program =
        "import os,sys,time\nb=bytearray(os.urandom(1<<20))*600\nopen(sys.argv[1],'w').close()\ntime.sleep(1000)";
    let mut target = Sleeper::of(&["/usr/bin/python3", "-c", program, ready.to_str().unwrap()]);
    target.wait_until(|| ready.exists());
    target
}

#[test]
fn a_signal_during_a_dump_undoes_it() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut target = large(&dir.path().join("ready"));
    let pid = target.0.id().to_string();
    for (signal, exit) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        // Stopped for as long as the memory takes: the signal comes meanwhile, however busy the machine is.
        let mut dump = migrate(&["dump", &pid, "-D", image.to_str().unwrap(), "--stop-first", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(dump.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut said = Vec::new();
        for line in lines.by_ref() {
            let frozen = line.contains("\"event\":\"frozen\"");
            said.push(line);
            if frozen {
                kill(Pid::from_raw(dump.id() as i32), signal).unwrap();
                break;
            }
        }
        said.extend(lines);
        let status = dump.wait().unwrap();
        assert_eq!(status.code(), Some(exit), "{said:#?}");
        let result: Value = serde_json::from_str(said.last().unwrap()).unwrap();
        assert_eq!((&result["event"], &result["state"]), (&Value::from("result"), &Value::from("running")));
        assert!(target.runs());
        assert!(!image.exists(), "nothing is left of the image");
    }
    // And the target is sound: it can be dumped.
    let output = run(&["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(target.runs());
}

#[test]
fn signals_reach_a_restored_program_in_the_foreground_and_its_end_is_the_commands() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut target = Sleeper::start();
    let pid = target.0.id() as i32;
    let output = run(&["dump", &pid.to_string(), "-D", image.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).starts_with(&format!("dumped {pid} (sleep): has ended\n")), "{}", out(&output));
    target.0.wait().unwrap();

    let pidfile = dir.path().join("pid");
    let mut restore = migrate(&["restore", "-D", image.to_str().unwrap(), "--pidfile", pidfile.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The report says that it runs.
    let mut report = String::new();
    BufReader::new(restore.stderr.as_mut().unwrap()).read_line(&mut report).unwrap();
    assert!(report.starts_with("restored") && report.contains("runs on local"), "{report}");
    assert_eq!(std::fs::read_to_string(&pidfile).unwrap().trim().parse(), Ok(pid));
    kill(Pid::from_raw(restore.id() as i32), Signal::SIGUSR1).unwrap();
    assert_eq!(restore.wait().unwrap().code(), Some(128 + Signal::SIGUSR1 as i32));
}
