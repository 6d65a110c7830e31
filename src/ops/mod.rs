//! Use cases: options in, events out, outcome or failure back. Nothing here prints.
//!
//! A file that is called as a verb is that verb. What several of them need, or what an option stands for:
//!
//! ```text
//! what is asked for    options, words (their grammar), places (of our own files), target (a word becomes processes), interrupt
//! what is told         outcome; events are below
//! a target is stopped  preflight, standstill, surety (who undoes it if we die), held_locks, outside (it holds this command)
//! moves                attempts > paths (--disjoint-paths) > many (all that are reached) > move_, the engine's end at the source;
//!                      receive, offered: at the destination
//! after a move         guardian (the source's program is dead), fence, park, point and recover (--recoverable), late (memory that follows)
//! many destinations    proxies (--via, --fanout-tree), cascade (--then, --keep-warm), clones, remote_restore (restore --on)
//! what goes along      luggage (files), network, addresses, hooks, choices (what reaches beyond the tree)
//! who else manages it  supervisor, systemd, scope, container
//! images               image, spool (one that comes as a stream), foreground (a restored job at its terminal)
//! ```

mod addresses;
pub mod attempts;
pub mod cancel;
pub mod cascade;
pub mod check;
mod choices;
pub mod clones;
pub mod container;
pub mod demo;
pub mod dump;
pub mod evacuate;
pub mod fence;
pub mod foreground;
pub mod guardian;
mod held_locks;
pub mod hooks;
pub mod image;
pub mod interrupt;
pub mod keygen;
mod late;
pub mod list;
mod luggage;
mod many;
pub mod move_;
mod network;
mod offered;
pub mod options;
pub mod outcome;
pub mod outside;
mod park;
pub mod paths;
pub mod places;
mod point;
pub mod pre_dump;
pub mod preflight;
pub mod promote;
pub mod proxies;
mod reach;
pub mod receive;
mod recover;
pub mod remote_restore;
pub mod resolve;
pub mod restore;
mod scope;
pub mod show;
pub mod spool;
mod standstill;
pub mod status;
pub mod supervisor;
mod surety;
mod systemd;
pub mod target;
pub mod verify;
pub mod warm;
pub mod words;

use crate::blocker::Blocker;
use crate::migration::cascade::Stage;
use hooks::{HookEnd, HookPoint};
use std::time::Duration;

/// Something that happens while an operation runs. `cli/` and `ui/` turn it into a progress bar, lines or JSON.
#[derive(Debug, Clone)]
pub enum Event {
    /// A preflight has ended with this many blockers.
    Preflight {
        /// Everything found.
        blockers: Vec<Blocker>,
        /// Processes and threads in the target.
        tasks: u32,
        /// Resident memory of the target, bytes.
        memory_bytes: u64,
    },
    /// A round over dirty pages has ended.
    Round {
        /// 1 for the first.
        number: u32,
        /// Pages taken in this round.
        pages: u64,
        /// Bytes written or sent.
        bytes: u64,
        /// How long it took.
        took: Duration,
        /// Dirty rate seen during it, bytes a second.
        dirty_bytes_per_s: u64,
        /// How long the pause would be now; `None` = unknown.
        expected_pause: Option<Duration>,
    },
    /// Bytes of memory done so far in the phase that runs, of how many.
    Progress {
        /// `memory`, `files`, ...
        phase: &'static str,
        /// Done, bytes.
        done: u64,
        /// In all, bytes; 0 = unknown.
        total: u64,
    },
    /// All tasks are stopped.
    Frozen,
    /// The target runs at its new place.
    Switched {
        /// From the last instruction on the source to the first on the destination.
        downtime: Duration,
    },
    /// One of several destinations is further than before.
    Candidate {
        /// Its name.
        dest: String,
        /// `willing`, `stored` (a round), `prepared`, `out`; in the end `owner`, `stopped` or `untold`.
        stage: &'static str,
        /// Rounds begun.
        rounds: u32,
        /// Bytes of pages sent to it.
        bytes: u64,
    },
    /// A command at a point of the move begins, or has ended.
    Hook {
        /// Of which point.
        point: HookPoint,
        /// The command, or the path of the file.
        name: String,
        /// How it has ended; `None`: it begins.
        ended: Option<HookEnd>,
    },
    /// A stage of a cascade begins, or is done.
    Stage(Stage),
    /// Something a person should know; the operation goes on.
    Warning(String),
}

/// Takes the events of an operation.
pub trait Events: Sync {
    /// One event; must not block for long.
    fn event(&self, event: Event);
}

/// Drops every event.
pub struct Quiet;

impl Events for Quiet {
    fn event(&self, _: Event) {}
}
