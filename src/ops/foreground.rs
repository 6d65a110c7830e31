//! A restored job at the terminal this command runs at: it gets the terminal as from a shell, and gives it back when it
//! stops or ends.

use crate::image::Model;
use crate::image::Pid;
use crate::image::fd::FileKind;
use crate::image::fd::tty::TERMIOS;
use crate::proc::ProcDir;
use crate::sys::tty;
use crate::sys::wait::{Status, try_wait, wait, wait_or_stop};
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;

/// How often a job is looked at that is nobody's child here.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// The terminal, while a job has it.
#[derive(Debug)]
pub struct Foreground {
    terminal: OwnedFd,
    /// Our process group.
    group: nix::unistd::Pid,
    /// The job's, where it has one of its own.
    job: Option<nix::unistd::Pid>,
    ours: [u8; TERMIOS],
    theirs: [u8; TERMIOS],
}

impl Foreground {
    /// Gives the terminal to a tree that had one outside and has not begun to run. `None`: it had none, or we have none, or
    /// we do not run in the foreground.
    pub fn give(model: &Model, root: Pid) -> Option<Self> {
        let theirs = model.files.iter().find_map(|file| match &file.kind {
            FileKind::External(external) => external.terminal.as_ref(),
            _ => None,
        })?;
        let terminal = open("/dev/tty", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        let group = nix::unistd::getpgrp();
        if tty::foreground(&terminal) != Ok(group.as_raw()) {
            return None;
        }
        let leads = model.root().pgid == model.root().pid && model.root().sid != model.root().pid;
        let job = leads.then_some(nix::unistd::Pid::from_raw(root.0));
        let ours = tty::termios(&terminal).ok()?;
        let theirs = theirs.termios.0.as_slice().try_into().unwrap_or(ours);
        let foreground = Self { terminal, group, job, ours, theirs };
        foreground.hand_over();
        Some(foreground)
    }

    fn hand_over(&self) {
        self.set(&self.theirs, self.job.unwrap_or(self.group));
    }

    fn take_back(&mut self) {
        self.theirs = tty::termios(&self.terminal).unwrap_or(self.theirs);
        self.set(&self.ours, self.group);
    }

    /// A terminal that has gone away meanwhile is nobody's.
    fn set(&self, termios: &[u8; TERMIOS], group: nix::unistd::Pid) {
        let mut background = SigSet::empty();
        background.add(Signal::SIGTTOU);
        let before = background.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
        let _ = tty::set_foreground(&self.terminal, group.as_raw());
        let _ = tty::set_termios(&self.terminal, termios);
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
    }

    fn signal(&self, root: Pid, signal: Signal) {
        // It may have ended just now.
        let _ = match self.job {
            Some(job) => killpg(job, signal),
            None => kill(nix::unistd::Pid::from_raw(root.0), signal),
        };
    }

    /// Waits for the end of `child`: the root, or what ends with it. When the job is stopped at the terminal, so are we,
    /// until somebody continues us.
    pub fn wait(&mut self, root: Pid, child: Pid) -> crate::sys::Result<Status> {
        // Another window, perhaps of another size: programs that paint it begin anew.
        self.signal(root, Signal::SIGWINCH);
        loop {
            match self.next(root, child)? {
                Status::Signal(_) => {
                    self.take_back();
                    let _ = kill(nix::unistd::Pid::from_raw(0), Signal::SIGTSTP);
                    self.hand_over();
                    self.signal(root, Signal::SIGCONT);
                }
                status if status.ended() => return Ok(status),
                _ => {}
            }
        }
    }

    fn next(&self, root: Pid, child: Pid) -> crate::sys::Result<Status> {
        if self.job.is_none() {
            return wait(child);
        }
        if root == child {
            return wait_or_stop(child);
        }
        // The root's parent is in its PID namespace: nobody tells us of its stops.
        loop {
            if let Some((_, status)) = try_wait(child)? {
                return Ok(status);
            }
            let state = ProcDir::open(root).and_then(|dir| dir.stat(&mut Vec::new())).map(|stat| stat.state);
            if state.is_ok_and(|state| state == b'T') {
                return Ok(Status::Signal(libc::SIGTSTP));
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        self.take_back();
    }
}
