//! The process that is saved and restored: a program of its own (tests/fixtures/peer.c), compiled for the run.

use crate::{Failed, at};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What the target has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    pub mib: u64,
    pub threads: u64,
    pub processes: u64,
    pub mappings: u64,
    pub descriptors: u64,
    /// Pages it writes in a second.
    pub rate: u64,
}

/// Compiles the fixture.
pub fn compile(to: &Path) -> Result<(), Failed> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/peer.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-pthread", "-o"]).arg(to).arg(source);
    let done = gcc.status().map_err(at("gcc"))?;
    if done.success() { Ok(()) } else { Err(format!("gcc cannot compile {source}").into()) }
}

/// A target that runs; dropped, it ends with everybody below it.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
}

impl Target {
    /// Starts one and waits until it has everything.
    pub fn start(program: &Path, shape: Shape) -> Result<Self, Failed> {
        let numbers = [shape.mib, shape.threads, shape.processes, shape.mappings, shape.descriptors, shape.rate]
            .map(|n| n.to_string());
        let mut command = Command::new(program);
        command.args(numbers).stdin(Stdio::null()).stdout(Stdio::piped()).current_dir("/");
        let mut child = command.spawn().map_err(at("the target"))?;
        let target = Self { pid: Pid::from_raw(child.id() as i32) };
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("the target has no output")?;
        BufReader::new(stdout).read_line(&mut line).map_err(at("the target's output"))?;
        if line == "ready\n" { Ok(target) } else { Err(format!("the target did not come up: {line:?}").into()) }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Takes everybody's exit status, so that the process ids are free again.
    pub fn reap() -> Result<(), Failed> {
        let deadline = Instant::now() + Duration::from_secs(20);
        // Children of the target that have ended come to us, who adopt orphans.
        while waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) != Err(nix::errno::Errno::ECHILD) {
            if Instant::now() > deadline {
                return Err("a process of the run does not end".into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Everybody below and the process itself.
    fn tree(&self) -> Vec<Pid> {
        let mut all = vec![self.pid];
        let mut next = 0;
        while let Some(pid) = all.get(next).copied() {
            next += 1;
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw));
        }
        all
    }

    /// As many processes and threads as were asked for?
    pub fn complete(&self, shape: Shape) -> Result<(), Failed> {
        let threads =
            fs::read_dir(format!("/proc/{}/task", self.pid)).map_err(at("the restored process"))?.count() as u64;
        let processes = self.tree().len() as u64;
        if (threads, processes) == (shape.threads + 1, shape.processes + 1) {
            return Ok(());
        }
        Err(format!("restored were {processes} processes, and {threads} threads of the first").into())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        for pid in self.tree() {
            // It may have ended: by a dump, for example.
            let _ = kill(pid, Signal::SIGKILL);
        }
        if let Err(failed) = Self::reap() {
            eprintln!("{failed}");
        }
    }
}
