//! Shells, multiplexers and editors: programs that live in terminals, with the terminal along or at another one.

use crate::zoo::terminals_lock;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
const LIMIT: Duration = Duration::from_secs(30);

/// Whether it can be tried here.
fn can(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|p| !Path::new("/usr/bin").join(p).exists()).collect();
    let root = nix::unistd::geteuid().is_root();
    if !root || !missing.is_empty() {
        crate::skip!("terminals: needs root ({root}) and {missing:?}");
    }
    root && missing.is_empty()
}

/// Waits until something is so.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn migrate(dir: &Path, arguments: &[&str]) -> Output {
    // Nobody waits for descriptors that the target may have got.
    let (out, err) = (dir.join("stdout"), dir.join("stderr"));
    let status = Command::new(PROGRAM)
        .args(arguments)
        .env("MIGRATE_PLACES", dir.join("places"))
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .status()
        .unwrap();
    Output { status, stdout: fs::read(out).unwrap(), stderr: fs::read(err).unwrap() }
}

fn succeeds(dir: &Path, arguments: &[&str]) -> String {
    let output = migrate(dir, arguments);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

/// A directory; every process with its name in the environment ends with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        Self(tempfile::Builder::new().prefix("terminal-").tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("ZOO", self.0.path()).env("TERM", "xterm").env("HOME", self.0.path()).env("PS1", "$ ");
        command
    }

    fn image(&self) -> String {
        self.text("image")
    }

    /// Saves a tree, which ends.
    fn dump(&self, pid: i32, options: &[&str]) -> String {
        let tree = crate::zoo::marked(self.0.path());
        let text = succeeds(self.0.path(), &[&["dump", &pid.to_string(), "-D", &self.image()], options].concat());
        reap(pid);
        tree.into_iter().for_each(reap);
        text
    }

    fn restore(&self, options: &[&str]) -> i32 {
        let pidfile = self.text("pidfile");
        let arguments = ["restore", "-D", &self.image(), "--detach", "--pidfile", &pidfile];
        succeeds(self.0.path(), &[&arguments[..], options].concat());
        fs::read_to_string(pidfile).unwrap().trim().parse().unwrap()
    }

    /// A process of this place with this command line.
    fn process(&self, words: &str) -> i32 {
        until(words, || {
            crate::zoo::marked(self.0.path()).into_iter().find(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).replace('\0', " ").trim() == words
            })
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for _ in 0..100 {
            let found = crate::zoo::marked(self.0.path());
            if found.is_empty() {
                break;
            }
            for pid in found {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                reap(pid);
            }
        }
    }
}

/// Its number is free again when this returns, if it has ended.
fn reap(pid: i32) {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    for _ in 0..200 {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        match waitid(Id::Pid(Pid::from_raw(pid)), flags) {
            Ok(WaitStatus::StillAlive) => {}
            Err(_) if Path::new(&format!("/proc/{pid}")).exists() => {}
            _ => return,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A terminal of the test's own with a program in it.
struct Terminal {
    master: File,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).unwrap();
        // Whoever is in the terminal does not have its other end.
        nix::fcntl::fcntl(&pair.master, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.stdin(slave(&pair.slave)).stdout(slave(&pair.slave)).stderr(slave(&pair.slave));
        let child = command.spawn().unwrap();
        drop((command, pair.slave));
        let master = File::from(pair.master);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, shown) = (master.try_clone().unwrap(), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buf) {
                shown.lock().unwrap_or_else(|e| e.into_inner()).extend_from_slice(&buf[..n]);
            }
        });
        Self { master, seen, child }
    }

    /// An interactive shell in a session of its own.
    fn shell(place: &Place, rows: u16, columns: u16) -> Self {
        let mut command = place.command("setsid");
        command.args(["-c", "-w", "bash", "--norc", "--noprofile", "-i"]);
        let terminal = Self::start(command, rows, columns);
        terminal.shows("$ ");
        terminal
    }

    fn types(&self, text: &str) {
        (&self.master).write_all(text.as_bytes()).unwrap();
    }

    /// Waits until a text appears; what came before it is forgotten.
    fn shows(&self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut seen = self.seen.lock().unwrap();
            if let Some(at) = seen.windows(text.len()).position(|w| w == text.as_bytes()) {
                seen.drain(..at + text.len());
                return;
            }
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", String::from_utf8_lossy(&seen));
            drop(seen);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell in `script`: its terminal comes along, with what is being typed.
#[test]
fn a_shell_in_script() {
    if !can(&["script", "bash", "mkfifo"]) {
        return;
    }
    let _lock = terminals_lock();
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path("keys")).status().unwrap().success());
    let inner = "bash --norc --noprofile -i";
    let line = format!("exec script -qfc '{inner}' /dev/null <>{} >>{} 2>&1", place.text("keys"), place.text("screen"));
    let mut child = place.command("setsid");
    child.args(["bash", "-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    let script = place.process(&format!("script -qfc {inner} /dev/null"));
    let types = |text: &str| File::options().append(true).open(place.path("keys")).unwrap().write_all(text.as_bytes());
    let shows = |text: &str| {
        until(text, || fs::read_to_string(place.path("screen")).unwrap_or_default().contains(text).then_some(()));
    };
    shows("bash-");
    types("cd /usr; kept=variable; tty; echo first-$((1+1))\n").unwrap();
    shows("first-2");
    // A line that is not complete when the shell is saved.
    types("echo sec").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    place.dump(script, &[]);
    let _ = child.wait();
    assert_eq!(place.restore(&[]), script);
    types("ond-$kept-$PWD\n").unwrap();
    shows("second-variable-/usr");
    types("tty; history; sleep 100 | cat\n").unwrap();
    shows("first-$((1+1))");
    // ^C reaches the foreground group, not the shell.
    std::thread::sleep(Duration::from_millis(300));
    types("\x03echo third-$((1+2))\n").unwrap();
    shows("third-3");
    types("exit\n").unwrap();
    until("the end of script", || {
        crate::zoo::marked(place.0.path()).is_empty().then_some(()).or_else(|| {
            reap(script);
            None
        })
    });
}

/// A tmux server with a shell in it, used through clients.
struct Tmux<'a> {
    place: &'a Place,
    /// Clients run in the mount namespace of this process.
    host: Option<i32>,
}

impl<'a> Tmux<'a> {
    fn of(place: &'a Place) -> Self {
        Self { place, host: None }
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = match self.host {
            None => Command::new("tmux"),
            Some(_) => Command::new("nsenter"),
        };
        if let Some(pid) = self.host {
            command.args(["-t", &pid.to_string(), "-m", "tmux"]);
        }
        command.env("TERM", "xterm").env("TMUX_TMPDIR", self.place.0.path()).env_remove("TMUX");
        let output = command.args(["-L", "t"]).args(arguments).stdin(Stdio::null()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    fn start(&self) -> i32 {
        let mut command = self.place.command("setsid");
        command.env("TMUX_TMPDIR", self.place.0.path()).env_remove("TMUX");
        let options = ["tmux", "-L", "t", "-f", "/dev/null", "new-session", "-d", "-x", "90", "-y", "30"];
        command.args(options).arg("exec bash --norc --noprofile -i");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        self.shows("bash-");
        self.run(&["display-message", "-p", "#{pid}"]).unwrap().trim().parse().unwrap()
    }

    fn types(&self, text: &str) {
        self.run(&["send-keys", text, "Enter"]).unwrap();
    }

    fn shows(&self, text: &str) {
        until(text, || self.run(&["capture-pane", "-p"]).is_ok_and(|screen| screen.contains(text)).then_some(()));
    }

    /// Saves the server by what is given, which returns when the new one runs.
    fn survives(mut self, save: impl FnOnce(i32) -> Option<i32>) {
        let pid = self.start();
        self.types("kept=variable; cd /usr; echo first-$((1+1))");
        self.shows("first-2");
        self.host = save(pid);
        self.shows("first-2");
        self.types("echo second-$kept-$PWD");
        self.shows("second-variable-/usr");
        // Job control and the size work on.
        self.types("sleep 100");
        std::thread::sleep(Duration::from_millis(200));
        self.run(&["send-keys", "C-c", ""]).unwrap();
        self.run(&["resize-window", "-x", "70", "-y", "20"]).unwrap();
        self.types("shopt -s checkwinsize; (:); echo $COLUMNS-$LINES");
        self.shows("70-20");
        self.run(&["kill-server"]).unwrap();
    }
}

#[test]
fn a_tmux_server_is_saved_and_restored() {
    if !can(&["tmux", "bash"]) {
        return;
    }
    let _lock = terminals_lock();
    let place = Place::new();
    Tmux::of(&place).survives(|pid| {
        place.dump(pid, &[]);
        assert_eq!(place.restore(&[]), pid);
        None
    });
}

#[test]
fn a_tmux_server_is_moved() {
    if !can(&["tmux", "bash", "nsenter", "unshare"]) {
        return;
    }
    let _lock = terminals_lock();
    let place = Place::new();
    // The other host has a place of its own for the socket of the server.
    let (sockets, agent) = (place.text("tmux-0"), place.text("agent.sock"));
    let places = place.text("there");
    let script = format!("mount -t tmpfs -o mode=700 none {sockets} && exec {PROGRAM} agent --listen unix:{agent}");
    fs::create_dir_all(&sockets).unwrap();
    fs::set_permissions(&sockets, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut host = Command::new("unshare");
    host.args(["-m", "--propagation", "private", "sh", "-c", &script]).env("MIGRATE_PLACES", places);
    let mut host = host.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the agent", || Path::new(&agent).exists().then_some(()));
    Tmux::of(&place).survives(|pid| {
        succeeds(place.0.path(), &["move", &pid.to_string(), &format!("unix:{agent}")]);
        reap(pid);
        let line = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let server = |pid: &i32| line(*pid).starts_with(b"tmux\0-L");
        Some(until("the moved server", || crate::zoo::marked(place.0.path()).into_iter().find(server)))
    });
    // Nothing of the target depends on it; here it has done its work.
    host.kill().unwrap();
    host.wait().unwrap();
}

/// An editor that was started from a shell comes up where it is restored, with what was typed and not saved.
#[test]
fn an_editor_at_another_terminal() {
    if !can(&["vim", "bash"]) {
        return;
    }
    let _lock = terminals_lock();
    let place = Place::new();
    let file = place.text("text");
    let vim = format!("vim -u NONE -n {file}");
    let first = Terminal::shell(&place, 24, 80);
    first.types(&format!("{vim}\n"));
    first.shows("[New");
    let pid = place.process(&vim);
    first.types("ione two");
    first.shows("one two");
    let refused = migrate(place.0.path(), &["dump", &pid.to_string(), "-D", &place.image()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("M0308") && said.contains("--stdio attach") && said.contains("/dev/pts/"), "{said}");
    assert!(said.contains(&format!("(pid {})", std::process::id())), "who has the other end: {said}");
    succeeds(place.0.path(), &["dump", &pid.to_string(), "-D", &place.image(), "--stdio", "attach"]);
    first.shows("Killed");
    let refused = migrate(place.0.path(), &["restore", "-D", &place.image(), "--detach"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--stdio"), "{refused:?}");

    let second = Terminal::shell(&place, 40, 100);
    second.types(&format!("{PROGRAM} restore -q -D {}\n", place.image()));
    second.shows("one two");
    second.types(" three");
    second.shows("three");
    // Stopped as by any shell, and continued.
    second.types("\x1b\x1a");
    second.shows("Stopped");
    second.types("echo shell-$((1+1))\n");
    second.shows("shell-2");
    second.types("fg\n");
    second.shows("one two three");
    second.types("A four\x1b:wq\r");
    until("the file", || fs::read_to_string(&file).ok().filter(|text| text == "one two three four\n"));
    second.types("echo status-$?; stty -a | grep -o ' icanon'\n");
    second.shows("status-0");
    second.shows(" icanon");
}

const JOB: &str = "import sys, time
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.005)
";

/// `python3 job.py | tee log`: taken as a whole, or the job alone with something in the place of the pipe.
#[test]
fn a_pipeline() {
    if !can(&["python3", "tee", "bash"]) {
        return;
    }
    let place = Place::new();
    fs::write(place.path("job.py"), JOB).unwrap();
    let (job, log) = (place.text("job.py"), place.text("log"));
    let line = format!("/usr/bin/python3 {job} | tee {log} >/dev/null; exit 3");
    let mut command = place.command("setsid");
    command.args(["bash", "-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let shell = command.spawn().unwrap().id() as i32;
    let lines = |file: &str| -> Vec<u64> {
        let text = fs::read_to_string(file).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| line.parse().unwrap()).collect()
    };
    let last = |file: &str| lines(file).last().copied().unwrap_or(0);
    let grows = |file: &str, than: u64| until("more lines", || (last(file) > than + 5).then_some(()));
    grows(&log, 0);
    let pid = place.process(&format!("/usr/bin/python3 {job}"));
    let tee = place.process(&format!("tee {log}"));
    let image = place.image();
    let refused = migrate(place.0.path(), &["dump", &pid.to_string(), "-D", &image]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    for wanted in
        ["M0309".to_owned(), format!("tee (pid {tee})"), "--stdio log".to_owned(), format!("target {shell} (bash)")]
    {
        assert!(said.contains(&wanted), "no {wanted} in {said}");
    }
    // As a whole.
    place.dump(shell, &[]);
    reap(pid);
    reap(tee);
    let before = last(&log);
    assert_eq!(place.restore(&[]), shell);
    grows(&log, before);
    let numbers = lines(&log);
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "a line is missing or twice in the log");
    // The job alone.
    fs::remove_dir_all(&image).unwrap();
    place.dump(pid, &["--stdio", "log"]);
    let pid = place.restore(&["--stdio", "log"]);
    let own = format!("{image}.log");
    grows(&own, last(&log));
    assert!(fs::read_link(format!("/proc/{pid}/fd/1")).unwrap().ends_with("image.log"));
}

/// The same typed into an interactive shell, where job control gives the pipeline a process group of its own: who has the other end
/// is named, the option that is proposed works as it is, and the shell with its whole job comes up at another terminal.
#[test]
fn a_pipeline_of_an_interactive_shell() {
    if !can(&["python3", "tee", "bash"]) {
        return;
    }
    let _lock = terminals_lock();
    let place = Place::new();
    fs::write(place.path("job.py"), JOB).unwrap();
    let (job, log) = (place.text("job.py"), place.text("log"));
    let numbers = |file: &str| -> Vec<u64> {
        let text = fs::read_to_string(file).unwrap_or_default();
        text[..text.rfind('\n').map_or(0, |end| end + 1)].lines().map(|line| line.parse().unwrap()).collect()
    };
    let last = |file: &str| numbers(file).last().copied().unwrap_or(0);
    let grows = |file: &str, than: u64| until("more lines", || (last(file) > than + 5).then_some(()));
    let first = Terminal::shell(&place, 24, 80);
    first.types(&format!("/usr/bin/python3 {job} | tee {log}\n"));
    grows(&log, 0);
    let pid = place.process(&format!("/usr/bin/python3 {job}"));
    let tee = place.process(&format!("tee {log}"));
    let shell = place.process("bash --norc --noprofile -i");
    let refused = migrate(place.0.path(), &["dump", &pid.to_string(), "-D", &place.image()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    for wanted in ["M0309", &format!("tee (pid {tee})"), "--stdio log", &format!("target {shell} (bash)")] {
        assert!(said.contains(wanted), "no {wanted} in {said}");
    }
    // The whole job with its shell, which lives on at a terminal of ours.
    succeeds(place.0.path(), &["dump", &shell.to_string(), "-D", &place.image(), "--stdio", "attach"]);
    for ended in [pid, tee, shell] {
        reap(ended);
    }
    let before = last(&log);
    drop(first);
    let second = Terminal::shell(&place, 30, 90);
    second.types(&format!("{PROGRAM} restore -q -D {}\n", place.image()));
    grows(&log, before);
    // What tee writes comes to this terminal now, and the job obeys it.
    second.shows(&format!("{}\r\n", last(&log) + 50));
    second.types("\x1a");
    second.shows("Stopped");
    second.types("jobs; bg; echo shell-$((1+1))\n");
    second.shows("shell-2");
    grows(&log, last(&log));
    let all = numbers(&log);
    assert!(all.windows(2).all(|w| w[1] == w[0] + 1), "a line is missing or twice in the log");
}

/// A bar on a terminal, plain lines off it, and neither where none is wanted.
#[test]
fn long_work_shows_how_far_it_is() {
    if !can(&["python3", "bash"]) {
        return;
    }
    let _lock = terminals_lock();
    let place = Place::new();
    let program = "import os, time\nheld = os.urandom(64 << 20)\nopen(os.environ['ZOO'] + '/ready', 'w').close()\ntime.sleep(1000)";
    let mut command = place.command("setsid");
    command.args(["/usr/bin/python3", "-c", program]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let pid = command.spawn().unwrap().id() as i32;
    until("the target", || place.path("ready").exists().then_some(()));
    let terminal = Terminal::shell(&place, 24, 100);
    let dump = |image: &str, more: &str| {
        let image = place.text(image);
        format!("{PROGRAM} dump {pid} -D {image} --leave-running --stop-first --bandwidth 60MB/s {more}")
    };
    terminal.types(&format!("{}; echo over-$?\n", dump("bar", "")));
    // The same line again and again: how much of how much, and how fast.
    for _ in 0..3 {
        terminal.shows("MiB/s");
    }
    terminal.shows("over-0");
    terminal.types(&format!("{} >/dev/null; echo over-$?\n", dump("none", "--progress none")));
    terminal.shows("over-0\r\n");
    let words: Vec<String> = dump("plain", "").split_whitespace().skip(1).map(str::to_owned).collect();
    let said = migrate(place.0.path(), &words.iter().map(String::as_str).collect::<Vec<_>>());
    let lines = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && !lines.contains('\r') && !lines.contains('\x1b'), "{lines:?}");
}
