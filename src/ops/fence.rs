//! `--fence-cmd`: a command that switches the other host off. When it succeeds nothing of the target runs there, and this side's copy
//! may go on.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the command may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the command in a shell; whether the host of `peer` is off. It gets `MIGRATE_PEER` and `MIGRATE_SESSION`, and no more than a
/// minute.
pub fn switch_off(command: &str, peer: &str, session: &str) -> bool {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).env("MIGRATE_PEER", peer).env("MIGRATE_SESSION", session);
    // Its own group, so that all of it ends.
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let ended = shell.spawn().map(|mut child| wait(&mut child));
    match &ended {
        Ok(Some(true)) => tracing::warn!(peer, "the fencing command says that the host is off"),
        Ok(Some(false)) => tracing::warn!(peer, "the fencing command has failed"),
        Ok(None) => tracing::warn!(peer, "the fencing command takes too long, and was ended"),
        Err(error) => tracing::warn!(peer, %error, "the fencing command cannot be run"),
    }
    matches!(ended, Ok(Some(true)))
}

fn wait(child: &mut Child) -> Option<bool> {
    let until = Instant::now() + LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            _ => break,
        }
    }
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.wait();
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_success_says_that_a_host_is_off() {
        assert!(switch_off("test $MIGRATE_PEER = host-b && test $MIGRATE_SESSION = abc", "host-b", "abc"));
        assert!(!switch_off("exit 1", "host-b", "abc"));
        assert!(!switch_off("kill -9 $$", "host-b", "abc"));
        assert!(!switch_off("/nonexistent/fence", "host-b", "abc"));
    }
}
