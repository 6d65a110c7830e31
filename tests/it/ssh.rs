//! A peer over ssh, where `--rsh` names a script that runs the command on this host.

use crate::places::free_port;
use migrate_engine::transport::connect::{ConnectOptions, connect};
use migrate_engine::transport::hello::{self, HostFacts, Purpose};
use migrate_engine::transport::link::{Link, Request};
use migrate_engine::transport::{Abort, FrameKind, PeerAddress, Result, TransportError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);
const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");

/// What sshd does: skips the options, forgets the host, gives the rest to a shell. `before` is what a login prints.
fn fake_ssh(dir: &Path, before: &str) -> PathBuf {
    let path = dir.join("fake-ssh");
    let log = dir.join("arguments");
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >> {}\n[ \"$1\" = -p ] && shift 2\nshift\n{before}\nexec sh -c \"$*\"\n",
        log.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn options(rsh: &Path, remote: &str) -> ConnectOptions {
    ConnectOptions {
        keys: "/nonexistent".into(),
        peers: "/nonexistent".into(),
        connect_timeout: LIMIT,
        peer_timeout: LIMIT,
        allow_plain: false,
        rsh: vec![rsh.into()],
        remote: remote.into(),
        bootstrap: false,
        program: PROGRAM.into(),
        route: None,
    }
}

fn to(host: &str) -> PeerAddress {
    PeerAddress::Ssh { user: Some("someone".into()), host: host.into(), port: Some(2222) }
}

fn look(options: &ConnectOptions) -> Result<Link> {
    connect(&to("over-there"), options, Request { purpose: Purpose::Look, streams: 4 }, &Abort::new().unwrap())
}

fn ask(link: &mut Link) -> HostFacts {
    link.control.send(FrameKind::MESSAGE, b"{}").unwrap();
    hello::decode(link.control.expect(FrameKind::MESSAGE, "facts").unwrap(), "agent").unwrap()
}

#[test]
fn one_stream_through_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let mut link = look(&options(&fake_ssh(dir.path(), ""), PROGRAM)).unwrap();
    assert_eq!(link.bulk.len(), 0, "bulk data travels on the one stream");
    assert_eq!(ask(&mut link).boot_id, HostFacts::here().boot_id);
    let arguments = std::fs::read_to_string(dir.path().join("arguments")).unwrap();
    assert_eq!(arguments, format!("-p\n2222\nsomeone@over-there\n{PROGRAM} agent --stdio\n"));
}

#[test]
fn banners_do_not_break_it() {
    let dir = tempfile::tempdir().unwrap();
    let noise = "printf 'Welcome to \\001MIGR\\r\\n*** last login ***\\n'; echo warning: no locale >&2; head -c 20000 /dev/zero";
    ask(&mut look(&options(&fake_ssh(dir.path(), noise), PROGRAM)).unwrap());
}

#[test]
fn a_prefix_such_as_sudo() {
    let dir = tempfile::tempdir().unwrap();
    ask(&mut look(&options(&fake_ssh(dir.path(), ""), &format!("env -u LANG {PROGRAM}"))).unwrap());
}

#[test]
fn a_missing_program_names_both_remedies() {
    let dir = tempfile::tempdir().unwrap();
    let rsh = fake_ssh(dir.path(), "echo Welcome");
    for remote in ["no-such-migrate", "env no-such-migrate", "false"] {
        let error = look(&options(&rsh, remote)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, TransportError::NoProgram { .. }), "{text}");
        assert!(text.contains("over-there") && text.contains("Welcome"), "{text}");
        let hint = error.hint().unwrap();
        assert!(hint.contains("install") && hint.contains("--bootstrap"), "{hint}");
    }
    let error = look(&options(&rsh, "no-such-migrate")).unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
}

#[test]
fn another_program_of_that_name_is_not_migrate() {
    let dir = tempfile::tempdir().unwrap();
    let error = look(&options(&fake_ssh(dir.path(), ""), "yes database migration tool #")).unwrap_err();
    assert!(matches!(&error, TransportError::NotMigrate { noise, .. } if noise.contains("database")), "{error}");
    assert!(error.hint().unwrap().contains("--bootstrap"));
}

#[test]
fn what_ssh_itself_says_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let rsh = fake_ssh(dir.path(), "echo 'Host key verification failed.' >&2; exit 255");
    let error = look(&options(&rsh, PROGRAM)).unwrap_err();
    assert!(matches!(error, TransportError::Ssh { .. }), "{error}");
    assert!(error.to_string().contains("Host key verification failed."), "{error}");
    let missing = look(&options(Path::new("/nonexistent/ssh"), PROGRAM)).unwrap_err();
    assert!(matches!(missing, TransportError::Connect { .. }), "{missing}");
}

#[test]
fn a_host_that_hangs_meets_the_time_out() {
    let dir = tempfile::tempdir().unwrap();
    let rsh = fake_ssh(dir.path(), "exec sleep 60");
    let started = Instant::now();
    let error =
        look(&ConnectOptions { connect_timeout: Duration::from_millis(200), ..options(&rsh, PROGRAM) }).unwrap_err();
    assert!(matches!(error, TransportError::Deadline { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(8), "the child is killed, not waited for");
}

#[test]
fn a_host_name_is_no_option() {
    let dir = tempfile::tempdir().unwrap();
    let to = PeerAddress::Ssh { user: None, host: "-oProxyCommand=touch pwned".into(), port: None };
    let request = Request { purpose: Purpose::Look, streams: 0 };
    let error =
        connect(&to, &options(&fake_ssh(dir.path(), ""), PROGRAM), request, &Abort::new().unwrap()).unwrap_err();
    assert!(matches!(error, TransportError::Connect { .. }), "{error}");
    assert!(!dir.path().join("arguments").exists(), "nothing was run");
}

#[test]
fn bootstrap_refuses_a_dynamic_program() {
    let dir = tempfile::tempdir().unwrap();
    let rsh = fake_ssh(dir.path(), "");
    let options = ConnectOptions { bootstrap: true, program: "/bin/sh".into(), ..options(&rsh, "no-such-migrate") };
    let error = look(&options).unwrap_err();
    assert!(matches!(&error, TransportError::Bootstrap { reason, .. } if reason.contains("cargo static")), "{error}");
}

/// A static build: the one that MIGRATE_STATIC names, as tests/run does.
fn static_build() -> Option<PathBuf> {
    let program = std::env::var_os("MIGRATE_STATIC").map(PathBuf::from);
    if program.is_none() {
        crate::skip!("MIGRATE_STATIC does not name a static build of migrate (`cargo static` makes one)");
    }
    program
}

#[test]
fn bootstrap_sends_a_static_program() {
    let Some(program) = static_build() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tidy = dir.path().join("runtime");
    std::fs::create_dir(&tidy).unwrap();
    let rsh = fake_ssh(dir.path(), &format!("export XDG_RUNTIME_DIR={}; echo Welcome", tidy.display()));
    let options = ConnectOptions { bootstrap: true, program, ..options(&rsh, "env -u LANG no-such-migrate") };
    let mut link = look(&options).unwrap();
    assert_eq!(std::fs::read_dir(&tidy).unwrap().count(), 1);
    ask(&mut link);
    drop(link);
    let until = Instant::now() + LIMIT;
    while std::fs::read_dir(&tidy).unwrap().count() > 0 {
        assert!(Instant::now() < until, "it removes itself");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A real sshd of its own on loopback, with keys made for it.
struct Sshd {
    dir: tempfile::TempDir,
    child: std::process::Child,
    port: u16,
}

impl Sshd {
    /// `None`, said, where there is none.
    fn start() -> Option<Self> {
        let needed = ["/usr/sbin/sshd", "/usr/bin/ssh", "/usr/bin/ssh-keygen"];
        if !nix::unistd::geteuid().is_root() || needed.iter().any(|path| !Path::new(path).exists()) {
            crate::skip!("needs root and {needed:?} (openssh-server, openssh-client)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["host", "user"] {
            let keygen = std::process::Command::new(needed[2])
                .args(["-q", "-t", "ed25519", "-N", "", "-f", &path(name)])
                .status()
                .unwrap();
            assert!(keygen.success());
        }
        std::fs::rename(path("user.pub"), path("authorized")).unwrap();
        let port = free_port();
        let host_key = std::fs::read_to_string(path("host.pub")).unwrap();
        std::fs::write(path("known"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
        // Privilege separation wants this directory; Debian's unit makes it.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nPidFile none\nAuthorizedKeysFile {}\nStrictModes no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nPrintMotd no\nSetEnv HOME={}\n",
            path("host"),
            path("authorized"),
            // What the login's own files do is none of this test's business.
            dir.path().display()
        );
        std::fs::write(path("sshd_config"), config).unwrap();
        let client = format!(
            "Host over-there\n HostName 127.0.0.1\n Port {port}\n IdentityFile {}\n UserKnownHostsFile {}\n IdentitiesOnly yes\n",
            path("user"),
            path("known")
        );
        std::fs::write(path("ssh_config"), client).unwrap();
        let child = std::process::Command::new(needed[0])
            .args(["-D", "-e", "-f", &path("sshd_config")])
            .stdin(std::process::Stdio::null())
            .stderr(std::fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        let until = Instant::now() + LIMIT;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "{}", std::fs::read_to_string(path("log")).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self { dir, child, port })
    }

    /// As `--rsh` takes it.
    fn rsh(&self) -> String {
        format!("ssh -F {} -o BatchMode=yes", self.dir.path().join("ssh_config").display())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole of `--bootstrap`: a host that has no migrate, its own sshd, a program that moves there and stays when ssh is gone.
#[test]
fn a_program_moves_to_a_host_without_migrate() {
    let Some(program) = static_build() else { return };
    let Some(sshd) = Sshd::start() else { return };
    if !crate::moves::can_move() {
        return;
    }
    let counter = crate::moves::Counter::start(4);
    let source = || {
        let mut command = std::process::Command::new(&program);
        command.env("MIGRATE_PLACES", sshd.dir.path().join("a"));
        command
    };
    let (pid, rsh) = (counter.pid(), sshd.rsh());
    let line = ["move", &pid, "over-there", "--json", "--rsh", &rsh, "--remote", "migrate-that-is-not-there"];
    let without = crate::moves::run(source(), &line);
    assert_eq!(without.status.code(), Some(5), "{}", crate::moves::text(&without));
    assert!(crate::moves::text(&without).contains("--bootstrap"), "{}", crate::moves::text(&without));
    let output = crate::moves::run(source(), &[&line[..], &["--bootstrap"]].concat());
    assert!(output.status.success(), "port {}: {}", sshd.port, crate::moves::text(&output));
    drop(sshd);
    runs_over_there(&counter, &pid);
}

/// Over a real sshd, with a program that is there already.
#[test]
fn a_program_moves_over_a_real_ssh() {
    let Some(sshd) = Sshd::start() else { return };
    if !crate::moves::can_move() {
        return;
    }
    let counter = crate::moves::Counter::start(4);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_migrate"));
    command.env("MIGRATE_PLACES", sshd.dir.path().join("a"));
    let (pid, rsh) = (counter.pid(), sshd.rsh());
    // Through env(1), as it would be through sudo(8).
    let remote =
        format!("env MIGRATE_PLACES={} {}", sshd.dir.path().join("b").display(), env!("CARGO_BIN_EXE_migrate"));
    let output =
        crate::moves::run(command, &["move", &pid, "over-there", "--json", "--rsh", &rsh, "--remote", &remote]);
    assert!(output.status.success(), "port {}: {}", sshd.port, crate::moves::text(&output));
    drop(sshd);
    runs_over_there(&counter, &pid);
}

/// It goes on, once, and not as the one that was here.
fn runs_over_there(counter: &crate::moves::Counter, pid: &str) {
    counter.check_runs();
    let processes = counter.processes();
    assert_eq!(processes.len(), 1);
    assert_ne!(processes[0].to_string(), pid, "the one over there");
}
