//! What a user without privileges can do: save and restore what is their own, see the demonstration, and be told before
//! anything is stopped what only root can do. As root, the tests become nobody first.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A directory, and the program in it, for whoever may not look into ours.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_migrate"), dir.path().join("migrate")).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A command as an ordinary user.
    fn command(&self, program: &str) -> Command {
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", program]);
            command
        } else {
            Command::new(program)
        };
        command.env_remove("XDG_RUNTIME_DIR").env("HOME", self.0.path()).env("XDG_STATE_HOME", self.path("state"));
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn migrate(&self, args: &[&str]) -> Output {
        self.command(self.path("migrate").to_str().unwrap()).args(args).output().unwrap()
    }

    fn start(&self, program: &str, args: &[&str]) -> Ended {
        let mut command = self.command(program);
        Ended(command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

/// A child of ours, which is ended.
struct Ended(Child);

impl Ended {
    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Once it executes what it is to run.
    fn runs(&self, comm: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let path = format!("/proc/{}/comm", self.0.id());
        while std::fs::read_to_string(&path).unwrap().trim() != comm {
            assert!(Instant::now() < deadline, "{comm} does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether an ordinary user may make namespaces here, in which trees get ids that cannot be chosen outside.
fn namespaces(place: &Place) -> bool {
    let made = place.command("unshare").args(["--user", "--map-root-user", "--pid", "--fork", "true"]).output();
    let made = made.is_ok_and(|output| output.status.success());
    if !made {
        crate::skip!("an ordinary user may not make namespaces here");
    }
    made
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_user_saves_and_restores_what_is_their_own() {
    let place = Place::new();
    let image = place.path("image");
    let image = image.to_str().unwrap();
    let mut target = place.start("sleep", &["1000"]);
    target.runs("sleep");
    let checked = place.migrate(&["check", &target.pid()]);
    assert!(checked.status.success(), "{}", text(&checked));
    let dumped = place.migrate(&["dump", &target.pid(), "-D", image]);
    assert!(dumped.status.success(), "{}", text(&dumped));
    target.0.wait().unwrap();

    let same = place.migrate(&["restore", "-D", image, "--pids", "same", "--detach"]);
    assert_eq!(same.status.code(), Some(3), "{}", text(&same));
    assert!(text(&same).contains("M0807"), "{}", text(&same));
    if !namespaces(&place) {
        return;
    }
    for pids in ["new", "auto"] {
        let pidfile = place.path("pid");
        let args = ["restore", "-D", image, "--pids", pids, "--detach", "--pidfile", pidfile.to_str().unwrap()];
        let restored = place.migrate(&args);
        assert!(restored.status.success(), "{pids}: {}", text(&restored));
        assert_eq!(
            text(&restored).contains("process ids cannot be chosen here"),
            pids == "auto",
            "{}",
            text(&restored)
        );
        let pid: i32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let ids = field("NSpid:");
        assert_eq!(ids.split_whitespace().last().unwrap(), target.pid(), "it has the id it had");
        assert_eq!(field("Name:"), "sleep");
        assert_eq!(u64::from_str_radix(&field("CapEff:"), 16), Ok(0), "it gains no capability");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        std::fs::remove_file(&pidfile).unwrap();
    }
}

#[test]
fn what_only_root_can_save_is_said_before_anything_stops() {
    let place = Place::new();
    if !Path::new("/usr/bin/python3").exists() {
        crate::skip!("needs python3");
        return;
    }
    let ready = place.path("ready");
    let program = "import mmap, pathlib, sys, time; m = mmap.mmap(-1, 4096); m[0] = 1; pathlib.Path(sys.argv[1]).touch(); time.sleep(1000)";
    let target = place.start("/usr/bin/python3", &["-c", program, ready.to_str().unwrap()]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ready.exists() {
        assert!(Instant::now() < deadline, "python3 does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let image = place.path("image");
    for dry in [&["--dry-run"][..], &[]] {
        let pid = target.pid();
        let args = [&["dump", &pid, "-D", image.to_str().unwrap()][..], dry].concat();
        let refused = place.migrate(&args);
        assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
        assert!(text(&refused).contains("M0811") && text(&refused).contains("/dev/zero"), "{}", text(&refused));
        assert!(!image.exists());
    }
    let state = std::fs::read_to_string(format!("/proc/{}/stat", target.pid())).unwrap();
    assert!(state.contains(") S "), "{state}");
    // Somebody else's.
    let others = place.migrate(&["dump", "1", "-D", image.to_str().unwrap()]);
    assert_eq!(others.status.code(), Some(3), "{}", text(&others));
}

#[test]
fn the_demonstration_needs_no_root() {
    let place = Place::new();
    if !namespaces(&place) {
        return;
    }
    let shown = place.migrate(&["demo"]);
    assert!(shown.status.success(), "{}", text(&shown));
    let said = text(&shown);
    assert!(said.contains("bytes lost       0") && said.contains("resets           0"), "{said}");
}
