//! A copy of a target that stands still whoever of us dies: in a frozen cgroup of its own, or stopped by SIGSTOP. Written
//! down in a journal it can be let go, or ended, by any later program on the same boot of the host.

use crate::image::Pid;
use crate::proc::ProcDir;
use crate::proc::cgroupfs::Freezer;
use nix::sys::signal::{Signal, kill};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What holds it, and who it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Held {
    /// Directory of the frozen cgroup, if one holds it.
    pub cgroup: Option<PathBuf>,
    /// The cgroup is one of version 2.
    pub v2: bool,
    /// Process ids as this host sees them, the root first, and when each began (clock ticks after boot): an id alone may
    /// be somebody else's by now.
    pub processes: Vec<(i32, u64)>,
    /// Those that a SIGSTOP holds.
    pub stopped: Vec<i32>,
    /// Somebody had the original frozen: its cgroup stays so when it is let go.
    #[serde(default)]
    pub stays_frozen: bool,
}

impl Held {
    /// Notes these processes, as held by a cgroup or by SIGSTOP.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn of(processes: &[Pid], freezer: Option<&Freezer>) -> crate::proc::Result<Self> {
        let mut buf = Vec::new();
        let started = |pid: &Pid| Ok((pid.0, ProcDir::open(*pid)?.stat(&mut buf)?.starttime));
        let processes = processes.iter().map(started).collect::<crate::proc::Result<_>>()?;
        let cgroup = freezer.map(|freezer| freezer.dir.clone());
        let v2 = freezer.is_some_and(|freezer| freezer.v2);
        Ok(Self { cgroup, v2, processes, ..Self::default() })
    }

    /// Process id of the root.
    pub fn root(&self) -> Option<i32> {
        self.processes.first().map(|(pid, _)| *pid)
    }

    /// Whether every one of them is still there: the out-of-memory killer does not ask who is frozen.
    pub fn is_whole(&self) -> bool {
        !self.processes.is_empty() && self.processes.iter().all(is_there)
    }

    /// Whether any of them is still there.
    pub fn is_there(&self) -> bool {
        self.processes.iter().any(is_there)
    }

    /// Lets it run: one write, or a SIGCONT each. No harm if it runs. What was frozen as a target is left to whoever thaws it.
    ///
    /// # Errors
    /// The cgroup cannot be thawed, or a process not be signalled.
    pub fn release(&self) -> io::Result<()> {
        if let Some(freezer) = self.freezer() {
            return if self.stays_frozen { Ok(()) } else { freezer.set(false) };
        }
        let mut held = self.processes.iter().filter(|process| self.stopped.contains(&process.0) && is_there(process));
        held.try_for_each(|(pid, _)| Ok(kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGCONT)?))
    }

    /// Continues those whom a SIGSTOP of ours has stopped or waits for; nobody else is told anything. Whom another program traces by
    /// now is no longer ours to continue, also later: the SIGSTOP that waits for it is that program's.
    pub fn wake(&mut self) {
        let Self { processes, stopped, .. } = self;
        for process in processes.iter().filter(|process| is_there(process)) {
            let (pid, _) = process;
            if is_traced(*pid) {
                stopped.retain(|stopped| stopped != pid);
            }
            if !stopped.contains(pid) || !is_stopped(*pid) {
                continue;
            }
            if let Err(errno) = kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGCONT) {
                tracing::warn!(%errno, pid, "a held process could not be continued");
            }
        }
    }

    /// Ends it without letting it run: leaves first.
    pub fn kill(&self) {
        for (pid, _) in self.processes.iter().rev().filter(|process| is_there(process)) {
            if let Err(errno) = kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL) {
                tracing::warn!(%errno, pid, "a held process could not be ended");
            }
        }
        // In version 1 the signal is taken once the cgroup is thawed.
        if let Some(Err(error)) = self.freezer().filter(|freezer| !freezer.v2).map(|freezer| freezer.set(false)) {
            tracing::warn!(%error, "the cgroup of an ended copy could not be thawed");
        }
    }

    /// Waits until all have ended and given back their memory, at most so long.
    pub fn wait_until_gone(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while self.processes.iter().any(|(pid, start)| has_memory(*pid, *start)) {
            if Instant::now() > until {
                tracing::warn!(root = self.root(), "an ended copy still has its memory");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn freezer(&self) -> Option<Freezer> {
        self.cgroup.clone().map(|dir| Freezer { dir, v2: self.v2 })
    }
}

/// A task that ends, `PF_EXITING` of the kernel's include/linux/sched.h (since 2.6).
const EXITING: u32 = 0x4;

/// It exists, and does not end: one that was killed while it is frozen ends when it is let go, and one that is large takes its time.
fn is_there((pid, start_time): &(i32, u64)) -> bool {
    let mut buf = Vec::new();
    let Ok(dir) = ProcDir::open(Pid(*pid)) else { return false };
    let lives = dir.stat(&mut buf).is_ok_and(|stat| {
        stat.starttime == *start_time && !matches!(stat.state, b'Z' | b'X') && stat.flags & EXITING == 0
    });
    let killed = 1 << (Signal::SIGKILL as u64 - 1);
    lives && dir.status(&mut buf).is_ok_and(|status| (status.sig_pnd | status.shd_pnd) & killed == 0)
}

/// It still has its memory: a zombie waits only for its parent.
fn has_memory(pid: i32, start_time: u64) -> bool {
    let stat =
        ProcDir::open(Pid(pid)).and_then(|dir| dir.stat(&mut Vec::new()).map(|stat| (stat.starttime, stat.state)));
    stat.is_ok_and(|(start, state)| start == start_time && !matches!(state, b'Z' | b'X'))
}

/// It is stopped, or a SIGSTOP waits for it.
fn is_stopped(pid: i32) -> bool {
    let mut buf = Vec::new();
    let Ok(dir) = ProcDir::open(Pid(pid)) else { return false };
    let stops = 1 << (Signal::SIGSTOP as u64 - 1);
    let stopped = dir.stat(&mut buf).is_ok_and(|stat| stat.state == b'T');
    stopped || dir.status(&mut buf).is_ok_and(|status| (status.sig_pnd | status.shd_pnd) & stops != 0)
}

/// By a program that goes on: who dies lets go of its tracees after it has closed its descriptors.
fn is_traced(pid: i32) -> bool {
    let mut buf = Vec::new();
    let tracer = ProcDir::open(Pid(pid)).and_then(|dir| dir.status(&mut buf)).map_or(0, |status| status.tracer_pid);
    let goes_on = |dir: ProcDir| dir.stat(&mut buf);
    tracer != 0
        && ProcDir::open(Pid(tracer))
            .and_then(goes_on)
            .is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X') && stat.flags & EXITING == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_stopped_goes_on_or_ends_and_an_id_alone_is_nobody() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid(child.id() as i32);
        let mut held = Held::of(&[pid], None).unwrap();
        held.stopped.push(pid.0);
        kill(nix::unistd::Pid::from_raw(pid.0), Signal::SIGSTOP).unwrap();
        let state = || ProcDir::open(pid).unwrap().stat(&mut Vec::new()).unwrap().state;
        let comes_to_be = |stopped: bool| {
            while (state() == b'T') != stopped {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        };
        comes_to_be(true);
        held.wake();
        comes_to_be(false);
        // Another program has it, and has it held.
        kill(nix::unistd::Pid::from_raw(pid.0), Signal::SIGSTOP).unwrap();
        comes_to_be(true);
        std::thread::scope(|scope| {
            // It lets go as it ends.
            let tracer = scope.spawn(|| crate::trace::Tracee::seize(pid, 0).map(|_| held.wake()).unwrap());
            tracer.join().unwrap();
        });
        held.wake();
        comes_to_be(true);
        held.stopped.push(pid.0);
        held.release().unwrap();
        comes_to_be(false);
        let other = Held { processes: vec![(pid.0, held.processes[0].1 + 1)], ..held.clone() };
        other.kill();
        assert!(held.is_whole() && !other.is_there());
        held.kill();
        child.wait().unwrap();
        assert!(!held.is_there());
    }
}
