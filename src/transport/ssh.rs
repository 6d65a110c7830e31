//! A peer over ssh: the system's own ssh as a child, `migrate agent --stdio` at its other end, one stream.
//!
//! ssh_config counts, and BatchMode means it never asks anything. What a login shell prints before our magic is skipped.
//! Where there is no program that fits, `--bootstrap` sends our own: one ssh writes it to a private directory, the next
//! runs it and removes it when it ends.

use super::channel::{Channel, printable};
use super::connect::ConnectOptions;
use super::error::{Result, TransportError};
use super::link::{Link, Request};
use super::preamble::Preamble;
use super::stream::Stream;
use super::wait::{Abort, Patience};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most of the child's standard error that is kept, bytes.
const STDERR_LIMIT_BYTES: usize = 16 << 10;

/// How long a child whose pipes are closed may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// The other host as ssh knows it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// User over there; `None` = what ssh decides.
    pub user: Option<&'a str>,
    /// Host, or an alias of ssh_config.
    pub host: &'a str,
    /// Port; `None` = what ssh decides.
    pub port: Option<u16>,
}

impl Place<'_> {
    /// As ssh is told.
    pub(super) fn destination(&self) -> String {
        self.user.map_or_else(|| self.host.to_owned(), |user| format!("{user}@{}", self.host))
    }
}

/// A running ssh. Dropped: waited for a moment, then killed.
#[derive(Debug)]
pub struct SshChild {
    child: Child,
    stderr: Arc<Mutex<Vec<u8>>>,
    line: String,
}

/// Runs `migrate agent --stdio` over there and opens a link to it; sends the program first if that is wanted and needed.
pub fn connect(place: &Place<'_>, options: &ConnectOptions, request: Request, abort: &Abort) -> Result<Link> {
    run(place, options, abort, &|channel, ssh| link(channel, ssh, request, place.host))
}

/// The same for somebody else to speak on: both have said who they are.
pub fn connection(place: &Place<'_>, options: &ConnectOptions, abort: &Abort) -> Result<(Channel, SshChild)> {
    run(place, options, abort, &|channel, ssh| Ok((channel, ssh)))
}

/// What is made of the channel to the program over there, and of the ssh that carries it.
type Made<'m, T> = &'m dyn Fn(Channel, SshChild) -> Result<T>;

fn run<T>(place: &Place<'_>, options: &ConnectOptions, abort: &Abort, made: Made<'_, T>) -> Result<T> {
    let first = start(place, options, &format!("{} agent --stdio", options.remote), abort, made);
    let missing = matches!(
        first,
        Err(TransportError::NoProgram { .. }
            | TransportError::NotMigrate { .. }
            | TransportError::NoCommonVersion { .. })
    );
    if !missing || !options.bootstrap {
        return first;
    }
    let sent = send_program(place, options, abort)?;
    let directory = sent.rsplit_once('/').map_or("", |(directory, _)| directory);
    let (prefix, _) = split_remote(&options.remote);
    let command = format!("{prefix}{sent} agent --stdio; s=$?; rm -rf {directory}; exit $s");
    start(place, options, &format!("exec sh -c '{command}'"), abort, made)
}

/// Starts `migrate agent --stdio` on this host and opens a link to it.
pub fn connect_local(options: &ConnectOptions, request: Request, abort: &Abort) -> Result<Link> {
    let place = Place { user: None, host: "local", port: None };
    let made: Made<'_, Link> = &|channel, ssh| link(channel, ssh, request, place.host);
    run_local(&[], &place, options, abort, made)
}

/// The same with further arguments, for somebody else to speak on.
pub(super) fn connection_local(
    arguments: &[OsString],
    options: &ConnectOptions,
    abort: &Abort,
) -> Result<(Channel, SshChild)> {
    let place = Place { user: None, host: "local", port: None };
    run_local(arguments, &place, options, abort, &|channel, ssh| Ok((channel, ssh)))
}

fn run_local<T>(
    arguments: &[OsString],
    place: &Place<'_>,
    options: &ConnectOptions,
    abort: &Abort,
    made: Made<'_, T>,
) -> Result<T> {
    let mut command = Command::new(&options.program);
    command.args(["agent", "--stdio"]).args(arguments);
    open(SshChild::start(command, place, "migrate agent --stdio".into())?, place, options, abort, made)
}

/// `sudo -n migrate` is `sudo -n ` and `migrate`.
fn split_remote(remote: &str) -> (&str, &str) {
    let remote = remote.trim_end();
    remote.rfind(char::is_whitespace).map_or(("", remote), |at| remote.split_at(at + 1))
}

fn start<T>(place: &Place<'_>, options: &ConnectOptions, command: &str, abort: &Abort, made: Made<'_, T>) -> Result<T> {
    let (ssh, line) = remote_command(place, options, command)?;
    open(SshChild::start(ssh, place, line)?, place, options, abort, made)
}

/// A link over the one stream that there is.
fn link(channel: Channel, ssh: SshChild, request: Request, host: &str) -> Result<Link> {
    Link::open(channel, request, Some(ssh), &mut |_| Err(only_one_stream(host)))
}

/// What is answered to whoever wants another one.
pub(super) fn only_one_stream(host: &str) -> TransportError {
    let reason = "ssh has one stream, no further ones can join".into();
    TransportError::Malformed { peer: host.into(), what: "first message", reason }
}

/// Speaks with the program at the other end of a child's pipes as far as both know that they are there.
fn open<T>(
    (mut ssh, stream): (SshChild, Stream),
    place: &Place<'_>,
    options: &ConnectOptions,
    abort: &Abort,
    made: Made<'_, T>,
) -> Result<T> {
    let mut channel = Channel::new(stream, place.host, options.patience(abort));
    let mut noise = Vec::new();
    let answer = match channel.send_preamble(Preamble::control()) {
        // Nobody listens any more: what they said before is still there to be read.
        Ok(()) | Err(TransportError::Closed { .. }) => channel.receive_preamble(&mut noise),
        Err(error) => Err(error),
    };
    match answer {
        Ok(_) => {
            if !noise.is_empty() {
                tracing::debug!(noise = printable(&noise, 500), "skipped before migrate's first bytes");
            }
            made(channel, ssh)
        }
        Err(TransportError::Closed { .. }) => {
            drop(channel);
            Err(ssh.explain_end(place, split_remote(&options.remote).1, noise))
        }
        Err(TransportError::NotMigrate { peer, .. }) => {
            Err(TransportError::NotMigrate { peer, noise: ssh.noise(&noise) })
        }
        Err(error @ (TransportError::Deadline { .. } | TransportError::Silent { .. })) if !noise.is_empty() => {
            tracing::warn!(noise = ssh.noise(&noise), "printed by the other side before the time-out");
            Err(error)
        }
        Err(error) => Err(error),
    }
}

impl SshChild {
    /// Starts a command; its stdin and stdout are the stream.
    fn start(command: Command, place: &Place<'_>, line: String) -> Result<(Self, Stream)> {
        let mut child = spawn(command, &line)?;
        let failed = |source| TransportError::Connect { address: place.host.into(), source };
        let stderr = Arc::new(Mutex::new(Vec::new()));
        if let Some(pipe) = child.stderr.take() {
            let kept = Arc::clone(&stderr);
            // Ends with the pipe, that is with ssh.
            std::thread::Builder::new()
                .name("ssh-stderr".into())
                .spawn(move || keep_tail(pipe, &kept))
                .map_err(failed)?;
        }
        let input = child.stdout.take().expect("standard output is a pipe");
        let output = child.stdin.take().expect("standard input is a pipe");
        let stream = Stream::pipes(OwnedFd::from(input), OwnedFd::from(output)).map_err(failed)?;
        Ok((Self { child, stderr, line }, stream))
    }

    /// What was printed on both streams, printable.
    fn noise(&self, stdout: &[u8]) -> String {
        let stderr = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        printable(&[stdout, b" ", &stderr].concat(), 1000)
    }

    /// The stream was closed before `migrate` spoke: why?
    fn explain_end(&mut self, place: &Place<'_>, program: &str, stdout: Vec<u8>) -> TransportError {
        let status = wait_until(&mut self.child, Instant::now() + GRACE);
        // The thread that reads standard error may be a moment behind.
        std::thread::sleep(Duration::from_millis(20));
        let noise = self.noise(&stdout);
        match status {
            // ssh reports its own failures as 255 (ssh(1)).
            Some(status) if status.code() != Some(255) && status.code().is_some() => {
                TransportError::NoProgram { host: place.host.into(), program: program.into(), noise }
            }
            status => TransportError::Ssh { command: self.line.clone(), status: describe(status), noise },
        }
    }
}

impl Drop for SshChild {
    fn drop(&mut self) {
        if wait_until(&mut self.child, Instant::now() + GRACE).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The remote shell with one command for the other host, and how to name it in messages.
fn remote_command(place: &Place<'_>, options: &ConnectOptions, command: &str) -> Result<(Command, String)> {
    let (program, arguments) = options.rsh.split_first().ok_or_else(|| TransportError::Connect {
        address: place.host.into(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "the remote shell (--rsh) is empty"),
    })?;
    let to = place.destination();
    if to.starts_with('-') {
        return Err(TransportError::Connect {
            address: to,
            source: io::Error::new(io::ErrorKind::InvalidInput, "a host name does not begin with a dash"),
        });
    }
    let mut ssh = Command::new(program);
    ssh.args(arguments);
    if let Some(route) = &options.route {
        ssh.args(route.for_ssh(program).ok_or_else(|| TransportError::Connect {
            address: to.clone(),
            source: io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("how {} is told the way {route} is not known: put it into --rsh", program.display()),
            ),
        })?);
    }
    if let Some(port) = place.port {
        ssh.args(["-p", &port.to_string()]);
    }
    ssh.args([&to, command]);
    Ok((ssh, format!("{} {to}", program.to_string_lossy())))
}

fn spawn(mut command: Command, line: &str) -> Result<Child> {
    // A process group of its own: Ctrl-C is for us to handle, it must not cut the link after COMMIT.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command.spawn().map_err(|source| TransportError::Connect { address: line.into(), source })
}

fn keep_tail(mut pipe: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        tracing::debug!(text = printable(&buffer[..count], 500), "ssh");
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(STDERR_LIMIT_BYTES);
        kept.drain(..surplus);
    }
}

fn wait_until(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            _ => return None,
        }
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "no status in time".into(), |status| status.to_string())
}

/// Finds a directory where programs may run, stores standard input there, and prints where.
const STORE: &str = concat!(
    "umask 077; ",
    r#"for d in "$XDG_RUNTIME_DIR" /run /tmp "$HOME"; do "#,
    r#"[ -n "$d" ] && [ -w "$d" ] || continue; "#,
    r#"t=$(mktemp -d "$d/migrate-XXXXXXXXXX" 2>/dev/null) || continue; m="$t/migrate"; "#,
    // A file system mounted noexec is found by a program that does nothing.
    r##"echo "#!/bin/sh" > "$m" && chmod 700 "$m" && "$m" 2>/dev/null && "##,
    r#"cat > "$m" && echo && echo "MIGRATE-SENT:$m" && exit 0; "#,
    r#"rm -rf "$t"; done; "#,
    r#"echo "no directory there lets a program be stored and run" >&2; exit 1"#,
);

/// Sends our own program; its path over there.
fn send_program(place: &Place<'_>, options: &ConnectOptions, abort: &Abort) -> Result<String> {
    let refuse = |reason: String| TransportError::Bootstrap { host: place.host.into(), reason };
    check_static(&options.program).map_err(refuse)?;
    let mut binary = File::open(&options.program).map_err(|e| refuse(e.to_string()))?;
    let (ssh, line) = remote_command(place, options, &format!("exec sh -c '{STORE}'"))?;
    let mut child = spawn(ssh, &line)?;
    let patience = Patience { deadline: None, ..options.patience(abort) };
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let stdout = child.stdout.take().expect("standard output is a pipe");
    let input = child.stdin.take().expect("standard input is a pipe");
    let said = Arc::new(Mutex::new(Vec::new()));
    let complaints = Arc::new(Mutex::new(Vec::new()));
    let readers =
        [(Box::new(stdout) as Box<dyn Read + Send>, Arc::clone(&said)), (Box::new(stderr), Arc::clone(&complaints))]
            .map(|(pipe, kept)| std::thread::spawn(move || keep_tail(pipe, &kept)));
    let fed = feed(&mut binary, input.into(), &patience);
    let status = match &fed {
        Ok(()) => wait_until(&mut child, Instant::now() + options.peer_timeout),
        Err(_) => None,
    };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    for reader in readers {
        let _ = reader.join();
    }
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let sent =
        String::from_utf8_lossy(&said).lines().find_map(|line| line.strip_prefix("MIGRATE-SENT:").map(str::to_owned));
    match (fed, sent, status.is_some_and(|status| status.success())) {
        (Err(error @ TransportError::Aborted { .. }), ..) => Err(error),
        // The path goes into a shell command: only what mktemp below a sane directory gives.
        (Ok(()), Some(path), true) if path.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.".contains(c)) => Ok(path),
        _ => {
            let complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
            Err(refuse(format!("{} ({})", printable(&complaints, 500), describe(status))))
        }
    }
}

fn feed(binary: &mut File, to: OwnedFd, patience: &Patience) -> Result<()> {
    // Reading from the write end is never tried: the stream is only written.
    let failed = |source| TransportError::Io { operation: "send the program over", peer: "ssh".into(), source };
    let input = File::open("/dev/null").map_err(failed)?;
    let mut stream = Stream::pipes(input.into(), to).map_err(failed)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = binary.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match stream.try_write(&[io::IoSlice::new(rest)]) {
                Ok(done) => rest = &rest[done..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let (fd, events) = stream.write_interest();
                    patience.wait(fd, events).map_err(|ended| match ended {
                        super::wait::Ended::Aborted => TransportError::Aborted { during: "sending the program" },
                        super::wait::Ended::Poll(source) => failed(source),
                        _ => failed(io::ErrorKind::TimedOut.into()),
                    })?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// A program that needs no dynamic loader runs on any host of its architecture; another may not.
fn check_static(program: &Path) -> std::result::Result<(), String> {
    let bytes = std::fs::read(program).map_err(|e| format!("{}: {e}", program.display()))?;
    let elf = goblin::elf::Elf::parse(&bytes).map_err(|e| format!("{} is no ELF program: {e}", program.display()))?;
    match elf.interpreter {
        None => Ok(()),
        Some(loader) => Err(format!(
            "it is linked dynamically (it needs {loader} and the libraries of this host); build it with \
             `cargo static`, which links it statically, or install migrate over there"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_last_word() {
        assert_eq!(split_remote("migrate"), ("", "migrate"));
        assert_eq!(split_remote("sudo -n migrate"), ("sudo -n ", "migrate"));
        assert_eq!(split_remote("sudo -n /opt/migrate "), ("sudo -n ", "/opt/migrate"));
    }

    #[test]
    fn a_dynamic_program_is_not_sent() {
        let reason = check_static(&std::env::current_exe().unwrap());
        let dynamic = std::fs::read(std::env::current_exe().unwrap())
            .map(|bytes| goblin::elf::Elf::parse(&bytes).unwrap().interpreter.is_some())
            .unwrap();
        assert_eq!(reason.is_err(), dynamic);
        assert!(check_static(Path::new("/etc/passwd")).is_err());
    }

    #[test]
    fn the_script_has_no_single_quote() {
        assert!(!STORE.contains(['\'', '\n']), "it is put between single quotes, for any login shell");
    }
}
