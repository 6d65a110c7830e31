//! See [`crate::ops::evacuate`].

use super::{MemoryOptions, ModeOptions, PeerOptions, StateOptions};
use crate::migration::destination::LEASE;
use crate::ops::attempts::Further;
use crate::ops::evacuate::plan::Place;
use crate::ops::words::{Dest, SessionId, Target};
use std::time::Duration;

/// `migrate evacuate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvacuateOptions {
    /// Id of the whole; each move has one of its own.
    pub session: SessionId,
    /// What leaves; none with `all`.
    pub targets: Vec<Target>,
    /// `--all`.
    pub all: bool,
    /// `--to`.
    pub to: Vec<Dest>,
    /// `--jobs`: moves at a time.
    pub jobs: usize,
    /// `--place`.
    pub place: Place,
    /// `--serial`: one by one, the first by pre-copy, the others by post-copy.
    pub serial: bool,
    /// `--keep-going`: moves begin also after one has failed.
    pub keep_going: bool,
    /// `--dry-run`: the plan only.
    pub dry_run: bool,
    /// `--alternate`; `--retries`, `--retry-timeout` of each move.
    pub further: Further,
    /// MODE.
    pub mode: ModeOptions,
    /// MEMORY; `--bandwidth` is for all moves together.
    pub memory: MemoryOptions,
    /// STATE.
    pub state: StateOptions,
    /// PEER.
    pub peer: PeerOptions,
    /// `--lease`.
    pub lease: Duration,
}

impl EvacuateOptions {
    /// An evacuation with every default.
    pub fn new(targets: Vec<Target>, to: Vec<Dest>) -> Self {
        Self {
            session: SessionId::random(),
            targets,
            all: false,
            to,
            jobs: 2,
            place: Place::default(),
            serial: false,
            keep_going: false,
            dry_run: false,
            further: Further::default(),
            mode: ModeOptions::default(),
            memory: MemoryOptions::default(),
            state: StateOptions::default(),
            peer: PeerOptions::default(),
            lease: LEASE,
        }
    }
}
