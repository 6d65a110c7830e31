//! Connections and terminals that reach out of the tree.

use crate::stage::{CRIU, Stage, end, state, until};
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Answers what it is told, on one connection.
const ECHO: &str = "
import os, socket, sys
listening = socket.socket()
listening.bind(('127.0.0.1', 0))
listening.listen(4)
with open(sys.argv[1] + '.new', 'w') as file:
    file.write(str(listening.getsockname()[1]))
os.rename(sys.argv[1] + '.new', sys.argv[1])
connection, _ = listening.accept()
while data := connection.recv(4096):
    connection.sendall(data)
";

/// An echo server and a connection to it.
fn connected(stage: &mut Stage) -> (i32, TcpStream) {
    let file = stage.path("port");
    let pid = stage.start("/usr/bin/python3", &["-c", ECHO, file.to_str().unwrap()]);
    let port: u16 = until("it listens", || std::fs::read_to_string(&file).ok()?.parse().ok());
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    answers(&stream, b"one");
    (pid, stream)
}

fn answers(mut stream: &TcpStream, question: &[u8]) {
    stream.write_all(question).unwrap();
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, question);
}

#[test]
fn an_established_connection_is_kept_if_asked_for() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, stream) = connected(&mut stage);
    let (target, images) = (pid.to_string(), stage.images("images"));
    let run = stage.criu(&["dump", "-t", &target, "-D", &images, "-o", "dump.log"]).code(1);
    assert!(run.err.contains("M0408"), "{run:?}");
    answers(&stream, b"two");
    stage.criu(&["dump", "-t", &target, "-D", &images, "-o", "dump.log", "--tcp-established"]).code(0);
    stage.gone(pid);
    (&stream).write_all(b"three").unwrap();
    stage.criu(&["restore", "-d", "-D", &images, "-o", "restore.log", "--tcp-established"]).code(0);
    let mut answer = [0; 5];
    (&stream).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"three");
    answers(&stream, b"four");
    end(pid);
}

/// The guard of connections that a running dump has started.
fn guard(stage: &Stage) -> Option<i32> {
    let place = stage.path("places").into_os_string().into_encoded_bytes();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"migrate\0lock-guard-process\0") && line.windows(place.len()).any(|part| part == place)
    })
}

#[test]
fn connections_of_a_killed_dump_are_answered() {
    let Some(mut stage) = Stage::new() else { return };
    let (pid, stream) = connected(&mut stage);
    let (target, images) = (pid.to_string(), stage.images("images"));
    let mut killed = 0;
    // At one of these instants or another it has the sockets locked.
    for delay in 0..24 {
        let line = ["dump", "-R", "-t", &target, "-D", &images, "--tcp-established"];
        let mut criu = stage.command(Path::new(CRIU), &line).stderr(Stdio::null()).spawn().unwrap();
        let guarded = until("it is guarded", || match guard(&stage) {
            Some(_) => Some(true),
            None => criu.try_wait().unwrap().map(|_| false),
        });
        std::thread::sleep(Duration::from_millis(delay));
        criu.kill().unwrap();
        let signal = criu.wait().unwrap().signal();
        killed += u32::from(guarded && signal == Some(9));
        answers(&stream, format!("after {delay} ms").as_bytes());
        until("it is let go", || state(pid).filter(|(letter, _)| !"Tt".contains(*letter)));
        until("the guard ends", || guard(&stage).is_none().then_some(()));
    }
    assert!(killed > 0, "every dump was over before it was killed");
}

#[test]
fn a_job_of_a_shell_keeps_its_terminal_if_asked_for() {
    let Some(stage) = Stage::new() else { return };
    let images = stage.images("images");
    // Programs of other tests, which start meanwhile, are not to have it.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::pty::posix_openpt(flags).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let terminal = nix::pty::ptsname_r(&master).unwrap();
    let open = || File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(&terminal).unwrap();
    let slave = || Stdio::from(open());
    let mut command = stage.command(
        Path::new("/usr/bin/python3"),
        &["-c", "import time\nprint('up', flush=True)\nwhile True: time.sleep(0.05)"],
    );
    let mut job = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    let mut said = [0; 2];
    (&master).read_exact(&mut said).unwrap();
    let target = job.id().to_string();
    let run = stage.criu(&["dump", "-t", &target, "-D", &images, "-o", "dump.log"]).code(1);
    assert!(run.err.contains("Error ("), "{run:?}");
    assert_eq!(job.try_wait().unwrap(), None);
    stage.criu(&["dump", "-t", &target, "-D", &images, "-o", "dump.log", "--shell-job"]).code(0);
    until("it ends", || job.try_wait().unwrap());
    let mut command = stage.command(Path::new(CRIU), &["restore", "-d", "-S", "-j", "-D", &images]);
    let status = command.stdin(slave()).stdout(slave()).stderr(slave()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    let pid: i32 = target.parse().unwrap();
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/1")).unwrap(), Path::new(&terminal));
    end(pid);
}
