//! Who owns the target, decided without clock and without I/O: two state machines, events in, actions out.
//!
//! ```text
//! source                                                    destination (each candidate)
//! Open: the original is stopped by ptrace                   Receiving: whatever fails, it deletes what it holds
//!                                                           armed: complete, detached into a frozen cgroup
//!   <------------------------------------------ PREPARED    record `prepared`            -> Prepared
//! hold; record `committing`          -> Committed
//!   COMMIT ------------------------------------------->     record `owner`, synced       -> Owner
//!                                                           run
//!   <------------------------------------------- RUNNING
//! end the original; record `done`    -> Moved
//!   DONE --------------------------------------------->     record `done`
//! ```
//! Until `committing` is recorded the source owns the target, and whatever happens it goes on there ([`source::Phase::Stays`]).
//! From then on only the destination knows: silence is *in doubt*, the source holds the original, connects again, and asks.
//! `PREPARED` to an asking source is answered by the same COMMIT; a durable ABORTED lets the original go, or the next
//! candidate that is ready take over. A destination that has said PREPARED never deletes on its own: when its lease is over it
//! *parks*, writes what it has as an image and ends the tree, and COMMIT, whenever it comes, makes the tree of that image before
//! `owner` is recorded. One that has not said PREPARED deletes what it has. Of copies that run beside each other none is the only one: a
//! source that makes copies has no such machine ([`super::source::fan`]), and their destinations delete where others park.
//!
//! The drivers ([`super::source`], [`super::destination`], the guardians) perform the actions of a list in their order and
//! stop at the first that fails. An action whose success decides something is the last of its list, and is followed by
//! [`source::Event::Recorded`] (or the destination's) or its opposite. `recover` makes a machine from the journal after the
//! death of whoever drove it. All of this is explored exhaustively by the tests of `check_tests`, with every rule
//! ([`Rule`]) also broken on purpose.

pub mod destination;
pub mod source;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod world;

/// One of the destinations of a move, by its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate(pub u8);

/// What a source asks of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Run it: you own it.
    Commit,
    /// It goes on here or elsewhere: delete what you hold.
    Abort,
    /// Who owns it?
    Ask,
    /// The original has ended.
    Done,
}

/// What a destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It stands before its first instruction and waits, in memory or parked.
    Prepared,
    /// It runs here, or did on this boot: the destination owns it.
    Running,
    /// It will never run here. Durable, or provable from the journal.
    Aborted,
    /// It ran here and has ended with the host, whose boot was another.
    EndedWithHost,
    /// There is no journal of such an attempt: nothing is known.
    Unknown,
}

/// When a line of the journal has to be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sync {
    /// Before the next action.
    Now,
    /// It need only survive the death of the program.
    Later,
}

/// A person's decision for one host's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// Let it run.
    Run,
    /// Delete it.
    Discard,
}

/// The rules that keep a target from being lost or doubled. Each can be broken on purpose, so that a test can show that it
/// is needed, and that the test would see it missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Before `committing` the original is held by something that outlives the program.
    HoldBeforeCommit,
    /// Silence after `committing` releases nobody.
    SilenceIsDoubt,
    /// The original ends only when the destination has said that it owns the target.
    EndAfterRunning,
    /// After `committing` for one candidate another one is taken only on a durable ABORTED, or when its host is off.
    NextAfterAborted,
    /// No journal is no answer.
    UnknownIsDoubt,
    /// Messages of another attempt are refused.
    OwnAttemptOnly,
    /// Whatever can fail is done before PREPARED.
    ArmBeforePrepared,
    /// After PREPARED nothing is deleted by time-out.
    KeepAfterPrepared,
    /// ABORTED is on the disk before anything is deleted after PREPARED.
    SyncAborted,
    /// `owner` is on the disk before the first instruction.
    SyncOwner,
    /// A COMMIT that comes after ABORTED runs nothing.
    AbortedIsFinal,
    /// A release after `committing` is recorded first, so that nobody commits a released target again.
    RecordBeforeRelease,
    /// A copy in memory ends only when its image is complete and on the disk.
    ParkBeforeFree,
    /// A parked copy is a tree again, complete, before `owner` is recorded.
    UnparkBeforeOwner,
}

impl Rule {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::HoldBeforeCommit,
        Self::SilenceIsDoubt,
        Self::EndAfterRunning,
        Self::NextAfterAborted,
        Self::UnknownIsDoubt,
        Self::OwnAttemptOnly,
        Self::ArmBeforePrepared,
        Self::KeepAfterPrepared,
        Self::SyncAborted,
        Self::SyncOwner,
        Self::AbortedIsFinal,
        Self::RecordBeforeRelease,
        Self::ParkBeforeFree,
        Self::UnparkBeforeOwner,
    ];
}

/// The rules in force: all, but for those that a test has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rules {
    /// A bit for each rule that is broken.
    broken: u16,
}

impl Rules {
    /// All but this one.
    pub fn without(rule: Rule) -> Self {
        Self { broken: 1 << rule as u16 }
    }

    /// All; but for those that a test of the whole program has broken (`MIGRATE_BREAK`, see [`crate::fault`]).
    pub fn in_force() -> Self {
        let names = crate::fault::broken_rules();
        let is_broken = |rule: &&Rule| names.iter().any(|name| *name == format!("{rule:?}"));
        let broken = Rule::ALL.iter().filter(is_broken).fold(0, |all, rule| all | 1 << *rule as u16);
        Self { broken }
    }

    /// Whether it is in force.
    pub fn keep(self, rule: Rule) -> bool {
        self.broken & (1 << rule as u16) == 0
    }
}
