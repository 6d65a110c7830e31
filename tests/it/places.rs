//! Hosts of tests, each a directory that its programs have as `MIGRATE_PLACES`: what is left there, who is struck there, and how others
//! reach them.

use crate::handover::wait;
use crate::moves::{on_host, result, run, text};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Processes that have these places: what has been started there, and what outlives a command.
pub fn processes(places: &Path) -> Vec<i32> {
    let ours = format!("MIGRATE_PLACES={}", places.display());
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let is_ours = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|word| word == ours.as_bytes())
    };
    pids.filter(is_ours).collect()
}

/// Those but one: an agent, say.
pub fn others(places: &Path, but: u32) -> usize {
    processes(places).into_iter().filter(|pid| u32::try_from(*pid) != Ok(but)).count()
}

/// Nothing at this host waits for somebody to decide.
pub fn is_settled(places: &Path, what: &str) {
    let undecided = || {
        let output = run(on_host(places), &["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        result(&output)["sessions"].as_array().map_or(0, Vec::len)
    };
    wait(|| undecided() == 0, &format!("{what}: {} knows that it is over", places.display()));
}

/// A port of this machine that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A signal to everybody at a host but one, an agent, say: as a command, which notes whom it has struck.
pub struct Blow {
    path: PathBuf,
    notes: PathBuf,
}

impl Blow {
    /// Nobody is struck yet.
    pub fn against(places: &Path, but: u32, signal: &str) -> Self {
        let (path, notes) = (places.with_extension(signal), places.with_extension(format!("{signal}.struck")));
        let text = format!(
            "for dir in /proc/[0-9]*; do pid=${{dir#/proc/}}\n[ $pid = {but} ] && continue\n\
             {{ tr '\\0' '\\n' <$dir/environ; }} 2>/dev/null | grep -qx MIGRATE_PLACES={} || continue\n\
             kill -{signal} $pid && echo $pid >>{}\ndone\nexit 0\n",
            places.display(),
            notes.display()
        );
        script(&path, &text);
        Self { path, notes }
    }

    /// For a hook.
    pub fn command(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub fn strike(&self) {
        assert!(Command::new(&self.path).status().unwrap().success());
    }

    /// How many were struck since the last question.
    pub fn struck(&self) -> usize {
        let text = std::fs::read_to_string(&self.notes).unwrap_or_default();
        let _ = std::fs::remove_file(&self.notes);
        text.lines().count()
    }
}

/// A program for `--rsh`, or in place of ssh, by which a host is called as its directory in this one; who calls whom is in a file, whose
/// path this is: the program, the host that calls, arguments.
pub fn stand_in_for_ssh(hosts: &Path, name: &str) -> PathBuf {
    let log = hosts.join("log");
    // What sshd does: forgets the options and the host, which has places of its own, and gives the rest to a shell.
    let text = format!(
        "echo \"$0 ${{MIGRATE_PLACES##*/}} $*\" >>{}\nshift 2\nexport MIGRATE_PLACES={}/$1\nshift\nexec sh -c \"$*\"\n",
        log.display(),
        hosts.display()
    );
    script(&hosts.join(name), &text);
    log
}
