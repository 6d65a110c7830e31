//! Every command line of the manual is run: those of EXAMPLES and of migrate-workflows(7), as they stand there, with
//! stand-ins for what the reader has (a program, another host, a place for images).

use super::cli::Sleeper;
use super::generated::{calls, command_lines, pages_by_hand_and_made};
use migrate_engine::migration::journal::{Journal, Role, Step};
use migrate_engine::migration::protocol::AttemptId;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Gives a command places of its own in its mount namespace, with a key and an empty list of peers.
const OWN: &str = "mount -t tmpfs none /run && cp -a /etc /run/etc && mount --bind /run/etc /etc && \
                   mount -t tmpfs none /var/lib && migrate keygen -q >/dev/null && : > /etc/migrate/peers &&";

/// Closes what whoever runs the tests has left open.
pub const CLOSE: &str = "for f in /proc/self/fd/*; do n=${f##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done;";

/// Starts a program with nothing that ends outside of it.
const SLEEP: &str = "sleep 1000 </dev/null >/dev/null 2>&1 &";

/// The reader's surroundings.
struct Desk {
    dir: tempfile::TempDir,
    target: Option<Sleeper>,
    /// Process id of a tree that a command line has restored.
    restored: Option<i32>,
    /// The session of a warm-up.
    warm: Option<String>,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap(), target: None, restored: None, warm: None };
        for name in ["bin", "backups", "run/migrate", "srv/job"] {
            fs::create_dir_all(desk.path(name)).unwrap();
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_migrate"), desk.path("bin/migrate")).unwrap();
        // Another host: this one. Options and the name of the host are dropped, the rest is a command for a shell.
        desk.script(
            "ssh",
            "while [ \"${1#-}\" != \"$1\" ]; do [ \"$1\" = -o ] && shift; shift; done\nshift\nexec ${HOST_B:+nsenter -t $HOST_B -n} sh -c \"$*\"",
        );
        desk.script("sudo", "[ \"$1\" = -n ] && shift\nexec \"$@\"");
        desk.script("gpg", "exec cat");
        desk.script("switch-off", "[ -n \"$1\" ]");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The line with the reader's names in place of those of the manual.
    fn adapted(&mut self, line: &str) -> String {
        let here = |name: &str| self.path(name).display().to_string();
        let places = [
            ("/var/backups", here("backups")),
            ("/srv/job", here("srv/job")),
            ("/tmp/", here("run/")),
            ("/run/", here("run/")),
        ];
        let mut adapted = String::new();
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            match places.iter().find(|(there, _)| rest.starts_with(there)) {
                Some((there, here)) => {
                    adapted += here;
                    rest = &rest[there.len()..];
                }
                None => {
                    adapted.push(c);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        if adapted.contains("4242") {
            adapted = adapted.replace("4242", &self.pid().to_string());
        }
        adapted
    }

    /// Process id of a program that runs.
    fn pid(&mut self) -> i32 {
        if let Some(pid) = self.restored.filter(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
            return pid;
        }
        if !self.target.as_mut().is_some_and(Sleeper::runs) {
            self.target = Some(Sleeper::start());
        }
        self.target.as_ref().unwrap().pid()
    }

    fn shell(&self, line: &str) -> Command {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("bash");
        command.args(["--norc", "-c", line]).env("PATH", path).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.path("none")).process_group(0);
        command
    }

    fn must(&self, line: &str) -> Output {
        let output = self.shell(line).output().unwrap();
        assert!(output.status.success(), "{line}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Makes what a line takes for granted: the image it reads, the parent it adds to, the place it writes to.
    fn prepare(&mut self, words: &[String]) {
        let value = |option: &str| words.iter().position(|word| word == option).map(|at| words[at + 1].clone());
        let verb = words.get(1).map(String::as_str).unwrap_or_default();
        if let Some(parent) = value("--parent").filter(|parent| !Path::new(parent).exists()) {
            let pid = self.pid();
            self.must(&format!("migrate dump {pid} -D {parent} --leave-running -q"));
        }
        let read = match verb {
            "restore" => value("-D"),
            "show" | "verify" => words.last().cloned(),
            _ => None,
        };
        if let Some(image) = read.filter(|image| !Path::new(image).exists()) {
            self.end_target();
            let pid = self.pid();
            self.must(&format!("migrate dump {pid} -D {image} -q"));
        }
        if verb == "restore" {
            self.end_target();
        }
        if matches!(verb, "dump" | "pre-dump")
            && let Some(image) = value("-D")
        {
            let _ = fs::remove_dir_all(image);
        }
    }

    /// Ends whatever has the process id that a restore needs.
    fn end_target(&mut self) {
        if let Some(pid) = self.restored.take() {
            end(pid);
        }
        self.target = None;
    }

    fn run(&mut self, line: &str) {
        let line = self.adapted(line);
        for words in calls(&line) {
            self.prepare(&words);
        }
        let foreground = line.contains("migrate restore") && !line.contains("--detach") && !line.contains("--dry-run");
        let about_warm = line.contains("migrate switch")
            || line.contains("migrate status hkqwzrtb")
            || line.contains("migrate cancel") && self.warm.is_some();
        let line = match about_warm {
            true => line.replace("hkqwzrtb", &self.warmed()),
            false => line,
        };
        if line.contains("migrate warm") {
            self.end_warm();
            self.warm = Some(String::from_utf8(self.must(&line).stdout).unwrap().trim().to_owned());
            return;
        }
        let line = match line.contains("migrate promote") {
            true => line.replace("hkqwzrtb", &self.stood_by()),
            false => line,
        };
        let line = match line.contains("migrate cancel") && !about_warm {
            true => line.replace("hkqwzrtb", &self.tracked()),
            false => line,
        };
        let line = match line.contains("migrate resolve") {
            true => format!("MIGRATE_PLACES={} {line}", self.in_doubt("hkqwzrtb").display()),
            false => line,
        };
        if line.contains("pidfile:") {
            let pid = self.pid();
            fs::write(self.path("run/redis.pid"), pid.to_string()).unwrap();
        }
        if line.contains("evacuate --all") {
            self.everything(&line);
        } else if foreground {
            self.foreground(&line);
        } else if line.contains("--move-address") || line.contains(" --address") {
            self.with_address(&line);
        } else if line.contains("tcp://b") {
            self.over_tls(&line);
        } else if line.contains("migrate agent") || line.contains("migrate keygen") {
            self.private(&line);
        } else {
            self.ordinary(&line);
        }
        if let Some(session) = calls(&line)
            .iter()
            .find(|words| words.iter().any(|word| word == "promote"))
            .and_then(|words| words.get(2).cloned())
        {
            // What is left of its source, on the same host here.
            self.must(&format!("migrate cancel {session}"));
        }
    }

    /// The session of a warm-up, which is begun if there is none.
    fn warmed(&mut self) -> String {
        if self.warm.is_none() {
            let pid = self.pid();
            let output = self.must(&format!("migrate warm {pid} b"));
            self.warm = Some(String::from_utf8(output.stdout).unwrap().trim().to_owned());
        }
        self.warm.clone().unwrap()
    }

    /// A session whose state is kept here, and whose source is dead: its process, and the target.
    fn stood_by(&mut self) -> String {
        self.end_warm();
        self.end_target();
        let pid = self.pid();
        let output = self.must(&format!("migrate warm {pid} b --standby=100ms"));
        let session = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let until = Instant::now() + Duration::from_secs(20);
        let asks = format!("migrate status {session} --json");
        let status = |desk: &Self| String::from_utf8(desk.must(&asks).stdout).unwrap();
        while !status(self).contains("\"states\":1") {
            assert!(Instant::now() < until, "no state is kept: {}", status(self));
            std::thread::sleep(Duration::from_millis(20));
        }
        let ours = format!("XDG_CONFIG_HOME={}", self.path("none").display());
        let read = |pid: &i32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is = |pid: &i32| read(pid, "cmdline").contains("warm-session") && read(pid, "environ").contains(&ours);
        pids.filter(is).for_each(end);
        self.end_target();
        while !status(self).contains("\"phase\":\"standby\"") {
            assert!(Instant::now() < until, "the source is still heard");
            std::thread::sleep(Duration::from_millis(20));
        }
        session
    }

    fn end_warm(&mut self) {
        if let Some(session) = self.warm.take() {
            let _ = self.shell(&format!("migrate cancel {session}")).output();
        }
    }

    /// The session id of a tracker that waits.
    fn tracked(&mut self) -> String {
        let (pid, image) = (self.pid(), self.path("backups/tracked"));
        let _ = fs::remove_dir_all(&image);
        let output = self.must(&format!("migrate pre-dump {pid} -D {} --json", image.display()));
        let events = String::from_utf8(output.stdout).unwrap();
        let result: serde_json::Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
        result["session"].as_str().unwrap().to_owned()
    }

    /// The places of a host that knows of a move in doubt, whose programs and target are gone.
    fn in_doubt(&self, session: &str) -> PathBuf {
        let (places, attempt) = (self.path("in-doubt"), AttemptId::random().unwrap());
        let _ = fs::remove_dir_all(&places);
        let mut journal =
            Journal::begin(&places.join("state/moves"), Role::Source, attempt, "unix:/gone", session).unwrap();
        journal.write(Step::Committing).unwrap();
        places
    }

    /// A command that ends by itself. What it has started elsewhere is noted, to be ended later.
    fn ordinary(&mut self, line: &str) {
        let verbs = ["restore", "move", "clone", "switch", "evacuate", "promote"];
        let starts = verbs.map(|verb| format!("migrate {verb}")).iter().any(|verb| line.contains(verb))
            && !line.contains("--dry-run");
        if !starts {
            self.must(line);
            if line.contains("migrate cancel") {
                self.warm = None;
            }
            return;
        }
        let events = self.path("run/events");
        let noted = match line.split_once("--json |") {
            Some((ours, theirs)) => format!("{ours}--json | tee {} | {theirs}", events.display()),
            // A command for a shell over there.
            None if line.starts_with("ssh") && line.ends_with('\'') => {
                format!("{} --json' > {}", line.trim_end_matches('\''), events.display())
            }
            None => format!("{line} --json > {}", events.display()),
        };
        let output = self.shell(&noted).output().unwrap();
        let said = fs::read_to_string(&events).unwrap_or_default() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {}\n{said}", output.status);
        self.note_restored(line, &events);
    }

    /// Takes the process id out of the result.
    fn note_restored(&mut self, line: &str, events: &Path) {
        let events = fs::read_to_string(events).unwrap();
        let result: serde_json::Value =
            serde_json::from_str(events.lines().last().expect("there is a result")).unwrap();
        if line.contains("migrate clone") || line.contains("--count") {
            let copies: Vec<i32> = result["candidates"]
                .as_array()
                .into_iter()
                .flatten()
                // Where one has the target itself that is the process of the result.
                .map(|copy| {
                    copy["pid"].as_i64().or(result["pid"].as_i64()).unwrap_or_else(|| panic!("{line}: {result}"))
                })
                .map(|pid| pid as i32)
                .collect();
            assert!(!copies.is_empty(), "{line}: {result}");
            return copies.into_iter().for_each(end);
        }
        let pid = result["pid"].as_i64().or_else(|| result["trees"][0]["pid"].as_i64());
        self.restored = pid.and_then(|pid| pid.try_into().ok());
        assert!(self.restored.is_some(), "{line}: {result}");
        // It is on the other host now: the next line is about the reader's program here.
        if ["migrate move", "migrate switch", "migrate evacuate"].iter().any(|verb| line.contains(verb)) {
            self.warm = None;
            self.end_target();
        }
    }

    /// A move that takes an address along: two hosts with an interface eth0 each, in network namespaces of their own.
    fn with_address(&mut self, line: &str) {
        let (events, pidfile) = (self.path("run/events"), self.path("run/redis.pid"));
        let script = format!(
            "{CLOSE} {SLEEP} target=$!; echo $target > {}; unshare --net -- sleep 1000 </dev/null >/dev/null 2>&1 & \
             export HOST_B=$!; sleep 0.5; ip link add eth0 type veth peer name eth0 netns $HOST_B && \
             ip addr add 192.0.2.7/24 dev eth0 && ip link set eth0 up && nsenter -t $HOST_B -n ip link set eth0 up && \
             {{ {line} --json > {}; ended=$?; kill $HOST_B; exit $ended; }}",
            pidfile.display(),
            events.display()
        );
        self.in_script("--net", line, &script);
    }

    /// Runs a script in a namespace of its own and notes what it has started.
    fn in_script(&mut self, kind: &str, line: &str, script: &str) {
        let events = self.path("run/events");
        let mut command = self.shell(&format!("exec unshare {kind} -- bash --norc -c \"$0\""));
        let output = command.arg(script).output().unwrap();
        let result = fs::read_to_string(&events).unwrap_or_default();
        assert!(output.status.success(), "{line}: {result} {}", String::from_utf8_lossy(&output.stderr));
        self.note_restored(line, &events);
    }

    /// Everything that is there goes: nothing else than a program may be, and everything ends with its PID namespace.
    fn everything(&self, line: &str) {
        let script = format!("{CLOSE} {SLEEP} {SLEEP} sleep 0.2; {line} --json");
        let mut command = self.shell("exec unshare --pid --fork --kill-child --mount-proc -- bash --norc -c \"$0\"");
        let output = command.arg(script).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}");
        let wanted = if line.contains("--dry-run") { "\"became\":\"planned\"" } else { "\"became\":\"moved\"" };
        assert_eq!(said.matches(wanted).count(), 2, "{line}: {said}");
    }

    /// A move to an agent over TLS: host b is this one, with the same key, in places of its own.
    fn over_tls(&mut self, line: &str) {
        let events = self.path("run/events");
        // The target has to be in the same mount namespace, without what the tests leave open.
        let line = line.replace(&self.pid().to_string(), "$target").replace("tcp://b", "tcp://127.0.0.1:17413");
        let script = format!(
            "{CLOSE} {SLEEP} target=$!; {OWN} migrate keygen --force -q > /etc/migrate/peers && \
             {{ migrate agent --listen tcp://127.0.0.1:17413 -q & sleep 1; {line} --json > {}; ended=$?; kill $!; \
             exit $ended; }}",
            events.display()
        );
        self.in_script("--mount", &line, &script);
    }

    /// A command that stays: it has to be there after a while, and ends by a signal.
    fn foreground(&mut self, line: &str) {
        let mut child = self.shell(&format!("exec {line}")).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "{line}: {}", said(child));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(143), "{line}");
    }

    /// A command that writes to places of the system: it gets its own, in a mount namespace.
    fn private(&mut self, line: &str) {
        let line = line.replace("migrate keygen", "migrate keygen --force");
        let inner = format!("{OWN} exec {line}");
        let mut command = self.shell("exec unshare --mount --net -- bash --norc -c \"$0\"");
        let mut child = command.arg(&inner).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if line.contains("keygen") {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout.starts_with(b"SHA256:"), "{line}");
            return;
        }
        std::thread::sleep(Duration::from_millis(1000));
        assert!(child.try_wait().unwrap().is_none(), "{line}: {}", said(child));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.end_warm();
        self.end_target();
    }
}

fn said(child: Child) -> String {
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr).into_owned()
}

/// Ends a process that may not be our child, and waits until it is gone.
fn end(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    let began = Instant::now();
    let stat = format!("/proc/{pid}/stat");
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "))
        && began.elapsed() < Duration::from_secs(10)
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn have(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

#[test]
fn every_command_line_of_the_manual_works() {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("needs root");
        return;
    }
    let mut ran = 0;
    for page in pages_by_hand_and_made() {
        let mut desk = Desk::new();
        for line in command_lines(&page) {
            if line.contains("| jq") && !have("jq") {
                crate::skip!("{line}: jq is not installed");
                continue;
            }
            println!("{}: {line}", page.file_name().unwrap().to_string_lossy());
            desk.run(&line);
            ran += 1;
        }
    }
    assert!(ran > 10, "{ran}");
}

/// Every word that a program can find in `--json` output is in migrate-events(5).
#[test]
fn fields_of_events_are_in_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("man/migrate-events.5")).unwrap();
    let known: std::collections::HashSet<&str> =
        page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let source = std::fs::read_to_string(root.join("src/ui/json.rs")).unwrap();
    let source = source.split("#[cfg(test)]").next().unwrap();
    let mut fields = Vec::new();
    for call in [".with(\"", ".known(\"", ".list(\"", ".object(\""] {
        fields.extend(source.split(call).skip(1).map(|rest| rest.split('"').next().unwrap()));
    }
    assert!(fields.len() > 60, "{fields:?}");
    let missing: Vec<&str> = fields.into_iter().filter(|field| !known.contains(field)).collect();
    assert!(missing.is_empty(), "not in migrate-events(5): {missing:?}");
}
