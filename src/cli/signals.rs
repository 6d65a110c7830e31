//! SIGINT, SIGTERM and SIGHUP while an operation runs: they ask for a roll-back instead of ending the program in the
//! middle of something; a restored program in the foreground gets them itself.
//!
//! The signals are blocked in every thread, and one thread waits for them: nothing is interrupted at an arbitrary
//! instruction. A signal that was ignored when the program started (nohup) stays ignored.

use crate::failure::{Failure, FailureKind};
use crate::image::Pid;
use crate::ops::interrupt;
use crate::proc::ProcDir;
use crate::transport::Abort;
use nix::sys::signal::{SigSet, Signal, kill};
use std::sync::{Arc, Mutex, PoisonError};

/// What a signal does now.
#[derive(Debug, Clone)]
enum Effect {
    /// Asks the operation to roll back.
    RollBack,
    /// The same, and ends waits for a peer.
    Abort(Abort),
    /// Is passed on.
    Forward(Pid),
}

/// Watches for signals until the program ends.
#[derive(Debug)]
pub struct Watch(Arc<Mutex<Effect>>);

/// Signals that end a program.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Those and others that a program in the foreground may wait for.
const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

impl Watch {
    /// Begins to watch. To be called before any other thread is started.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn begin() -> Result<Self, Failure> {
        Self::over(&ENDING)
    }

    /// Begins to watch for a restore in the foreground.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn begin_foreground() -> Result<Self, Failure> {
        Self::over(&FORWARDED)
    }

    fn over(signals: &[Signal]) -> Result<Self, Failure> {
        let failed = |error: &(dyn std::error::Error + 'static)| Failure::of("cannot watch for signals", error);
        let ignored = ignored();
        let set: SigSet = signals.iter().copied().filter(|signal| ignored & (1 << (*signal as i32 - 1)) == 0).collect();
        set.thread_block().map_err(|error| failed(&error))?;
        let effect = Arc::new(Mutex::new(Effect::RollBack));
        let seen = Arc::clone(&effect);
        let thread = std::thread::Builder::new().name("signals".to_owned()).stack_size(64 << 10);
        thread.spawn(move || watch(&set, &seen)).map_err(|error| failed(&error))?;
        Ok(Self(effect))
    }

    /// From now on a signal also ends waits that look at `abort`.
    pub fn abort_with(&self, abort: &Abort) {
        self.set(Effect::Abort(abort.clone()));
        // One that came before.
        if interrupt::requested().is_some() {
            abort.trigger();
        }
    }

    /// From now on signals are passed on to this process.
    pub fn forward_to(&self, pid: Pid) {
        self.set(Effect::Forward(pid));
    }

    fn set(&self, effect: Effect) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = effect;
    }
}

fn watch(set: &SigSet, effect: &Mutex<Effect>) {
    while let Ok(signal) = set.wait() {
        let effect = effect.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match effect {
            Effect::RollBack => ask(signal),
            Effect::Abort(abort) => {
                ask(signal);
                abort.trigger();
            }
            // It may have ended just now.
            Effect::Forward(pid) => drop(kill(nix::unistd::Pid::from_raw(pid.0), signal)),
        }
    }
}

/// Before there is a program to pass them on to, only signals that end a program mean something.
fn ask(signal: Signal) {
    match signal {
        Signal::SIGINT | Signal::SIGQUIT => interrupt::request(FailureKind::Interrupted),
        Signal::SIGTERM => interrupt::request(FailureKind::Terminated),
        Signal::SIGHUP => interrupt::request(FailureKind::HangUp),
        _ => {}
    }
}

/// Signals that are ignored, bit n-1 for signal n.
fn ignored() -> u64 {
    let mut buffer = Vec::new();
    ProcDir::of_self().ok().and_then(|dir| dir.status(&mut buffer).ok().map(|status| status.sig_ign)).unwrap_or(0)
}
