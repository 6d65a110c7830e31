//! A peer over ssh, where `--rsh` names a script that runs the command on this host.

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

/// Needs a static build, named by MIGRATE_STATIC (`cargo static` makes one).
#[test]
fn bootstrap_sends_a_static_program() {
    let Some(program) = std::env::var_os("MIGRATE_STATIC").map(PathBuf::from) else {
        eprintln!("skipped: MIGRATE_STATIC does not name a static build of migrate (`cargo static` makes one)");
        return;
    };
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
