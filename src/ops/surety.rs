//! Who stands surety for what this program takes from a target for a while, its connections above all: a guard that gives it
//! back if this program dies.

use super::standstill::Connections;
use crate::companion::held::Held;
use crate::companion::lock_guard::Guard;
use crate::image::Model;
use crate::net::address::Place;
use crate::net::lock::{NetLock, Terms};
use crate::proc::cpu_limit::Before;
use crate::trace::freeze::Frozen;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A guard, if there is one. Where there is none, which is logged, connections stay locked if this program dies.
#[derive(Debug, Default)]
pub(super) struct Surety(Option<Guard>);

impl Surety {
    /// With a guard, if there are connections to be kept.
    pub fn of_connections(there_are_some: bool) -> Self {
        let mut surety = Self::default();
        if there_are_some {
            surety.start();
        }
        surety
    }

    /// Starts a guard, once. It takes some milliseconds.
    pub fn start(&mut self) {
        if self.0.is_none() {
            let warn = |error: &io::Error| tracing::warn!(%error, "connections stay locked if this program dies");
            self.0 = Guard::start().inspect_err(warn).ok();
        }
    }

    fn tell(&self, tell: impl FnOnce(&Guard) -> io::Result<()>) {
        if let Some(Err(error)) = self.0.as_ref().map(tell) {
            tracing::warn!(%error, "nobody gives connections back if this program dies");
        }
    }

    /// These listening sockets are about to let nobody begin a connection.
    pub fn gates(&self, listeners: &[OwnedFd]) {
        self.tell(|guard| guard.gated(listeners));
    }

    /// These sockets of a tree that stands still are about to be locked. From here on the tree is held, until it is thawed: if this
    /// program dies it goes on when the guard has given them back, and not before.
    pub fn locks(&mut self, frozen: &mut Frozen, sockets: &[(BorrowedFd<'_>, Terms)]) {
        self.start();
        self.tell(|guard| {
            // Told first: who is held without anybody knowing it stays so.
            let mut target = Held::of(&frozen.living(), None).map_err(io::Error::other)?;
            target.stopped = frozen.to_be_held().iter().map(|pid| pid.0).collect();
            guard.holds(&target)?;
            frozen.hold().map_err(io::Error::other)?;
            guard.locks(sockets)
        });
    }

    /// The target is about to get less processor time than this.
    pub fn slows(&mut self, before: &Before) {
        self.start();
        self.tell(|guard| guard.slowed(before));
    }

    /// This address is about to be taken off its interface.
    pub fn removes(&self, place: &Place) {
        self.tell(|guard| guard.removed(place));
    }

    /// Sockets and addresses were given back.
    pub fn given_back(&self) {
        self.tell(Guard::given_back);
    }

    /// All stays as it is, whatever becomes of this program.
    pub fn forget(&self) {
        self.tell(Guard::forget);
    }

    /// From here on nothing is given back unasked: it is not known who owns the target.
    pub fn hold(&self) {
        self.tell(Guard::hold);
    }

    /// A hand on the guard, for whoever decides when this program is dead.
    pub fn lend(&mut self) -> Option<OwnedFd> {
        let warn = |error: &io::Error| tracing::warn!(%error, "a guardian could not give connections back");
        self.0.as_mut()?.lend().inspect_err(warn).ok()?
    }
}

impl Connections for Surety {
    fn locks(&mut self, frozen: &mut Frozen, sockets: &[(BorrowedFd<'_>, Terms)]) {
        Self::locks(self, frozen, sockets);
    }

    fn let_go(&mut self, locks: Vec<NetLock>, _: &Model) {
        drop(locks);
        self.given_back();
    }
}
