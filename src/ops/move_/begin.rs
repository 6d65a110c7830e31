//! A target as it is before anything has happened to it.

use super::{Backend, Events, GivenUp, Hooks, Leaving, Live, Looked, MoveOptions, Offered, Result};
use super::{Failure, ProcDir, TargetPages, TargetState, clones, supervisor};
use crate::net::address::Place;

impl<'a> Live<'a> {
    /// Nothing of it is watched or held yet.
    pub(super) fn new(
        options: &'a MoveOptions,
        looked: Looked,
        backend: Backend,
        addresses: Vec<Place>,
        (hooks, events): (Hooks, &'a dyn Events),
    ) -> Self {
        Self {
            options,
            looked,
            backend,
            tree: None,
            frozen: None,
            pages: TargetPages::default(),
            names: Vec::new(),
            network: Leaving::begin(addresses),
            segments: Vec::new(),
            offered: Offered::default(),
            same_host: false,
            given_up: GivenUp::default(),
            slowed: None,
            put_off: false,
            model: None,
            was_frozen: false,
            at_once: Vec::new(),
            hooks,
            events,
            guardian: None,
            untold: false,
            held: None,
            holds_late: false,
        }
    }
}

impl Live<'_> {
    /// Rounds of a target that is gone would go on without end: they find nothing written.
    pub(super) fn check_lives(&self) -> Result<()> {
        let stat = ProcDir::open(self.looked.root).and_then(|dir| dir.stat(&mut Vec::new()));
        if stat.is_ok_and(|stat| !stat.is_zombie()) {
            return Ok(());
        }
        let what = format!("{} has ended", self.options.target);
        Err(Failure::new(what).target(TargetState::Ended("by itself, where it was".into())))
    }

    /// Keeps units from starting the target again, unless it goes on.
    pub(super) fn hold_units(&mut self) -> Result<()> {
        if !self.options.dry_run && !clones::original_stays(self.options) {
            let choice = supervisor::choice(&self.options.target, self.options.state.supervisor);
            let held = supervisor::hold(&self.looked.resolved, choice, self.options.session);
            self.held = held.map_err(|failure| failure.target(TargetState::Running))?;
        }
        Ok(())
    }
}
