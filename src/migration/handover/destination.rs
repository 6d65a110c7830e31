//! The destination's half. Mirror of [`super::source`].

use super::{Choice, Reply, Request, Rule, Rules, Sync};
use crate::migration::protocol::AttemptId;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Pages come, the target is rebuilt. No PREPARED was sent.
    Receiving,
    /// Complete and frozen; `prepared` is being recorded.
    Preparing,
    /// PREPARED was sent. It waits for as long as it takes.
    Prepared,
    /// Nothing was heard for the whole lease: the prepared state is being written as an image. The tree is still there.
    Parking,
    /// The image is complete; `parked` is being recorded. The tree is still there.
    Storing,
    /// The image waits, for as long as it takes; nothing of it is in memory.
    Parked,
    /// COMMIT came for an image: the tree is being made of it, and stands still.
    Unparking,
    /// COMMIT came; `owner` is being recorded.
    Owning,
    /// It runs here, or did.
    Owner,
    /// So it does, and the source knows.
    Closed,
    /// ABORTED is being recorded; PREPARED had been sent.
    Aborting,
    /// Nothing is here, and nothing will run.
    Aborted,
    /// It ran here on an earlier boot.
    EndedWithHost,
    /// No journal names this attempt.
    Unknown,
}

/// A line of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Record {
    /// The attempt has begun; on the disk, with its name, before the offer is answered.
    Begun,
    /// PREPARED may have been sent.
    Prepared,
    /// PREPARED was sent, and what it said is in an image on the disk.
    Parked,
    /// It runs here, or is about to.
    Owner,
    /// It never will.
    Aborted,
    /// It runs here, and the source knows.
    Done,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The target is complete and detached into a frozen cgroup: nothing is left that can fail.
    Armed,
    /// It cannot be rebuilt here.
    Failed,
    /// From the source, about the attempt it names.
    Asked(AttemptId, Request),
    /// The link is lost.
    Silent,
    /// Nothing was heard of the source for the whole lease.
    LeaseOver,
    /// A task of the frozen copy has died (out of memory, a person).
    CopyDied,
    /// The last action of the last list is done.
    Recorded,
    /// It could not be done.
    NotRecorded,
    /// A person has decided.
    Resolved(Choice),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write a line.
    Record(Record, Sync),
    /// Answer the source, if it listens.
    Reply(Reply),
    /// Thaw the copy; no harm if it runs.
    Run,
    /// Delete whatever is here of it.
    Discard,
    /// Write the frozen copy as an image: complete, and on the disk with its name. Where that fails nothing is left of the image.
    Park,
    /// End the frozen copy, silently: its image is on the disk.
    Free,
    /// Make of the image a frozen copy that is complete. Where that fails the image is as it was.
    Unpark,
    /// Delete the image: there is a copy that it is not needed for.
    Forget,
}

impl Action {
    /// Whether its success is told to the machine.
    pub fn decides(self) -> bool {
        matches!(self, Self::Record(..) | Self::Park | Self::Unpark)
    }
}

/// What is found of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Left {
    /// All of its tasks, frozen.
    pub tree: bool,
    /// A complete image of it.
    pub image: bool,
}

/// The destination's state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    attempt: AttemptId,
    phase: Phase,
    /// There is an image, and the journal says so.
    parked: bool,
    /// It is one of several copies, and the original has an owner of its own: nobody counts on it before it runs.
    beside_others: bool,
    rules: Rules,
}

impl Destination {
    /// An offer has been taken, and [`Record::Begun`] is on the disk.
    pub fn new(attempt: AttemptId, rules: Rules) -> Self {
        Self { attempt, phase: Phase::Receiving, parked: false, beside_others: false, rules }
    }

    /// Whether it is one of several copies: such a one is deleted, not parked, when its lease is over.
    pub fn beside_others(self, beside_others: bool) -> Self {
        Self { beside_others, ..self }
    }

    /// After the death of whoever drove it: from the journal (`last`: its last line), whether that was written on this boot of the
    /// host, and what is left of the copy. Gives what is to be done first.
    pub fn recover(
        attempt: AttemptId,
        last: Option<Record>,
        same_boot: bool,
        left: Left,
        rules: Rules,
    ) -> (Self, Vec<Action>) {
        let abort = |sync| vec![Action::Record(Record::Aborted, sync), Action::Discard];
        let (phase, actions) = match last {
            None => (Phase::Unknown, Vec::new()),
            // Recorded, perhaps not run: nothing else may be done with it.
            Some(Record::Owner) if same_boot => (Phase::Owner, vec![Action::Run, Action::Forget]),
            Some(Record::Done) if same_boot => (Phase::Closed, Vec::new()),
            // An image that is left is a person's: how far it ran beyond that nobody knows.
            Some(Record::Owner | Record::Done) => (Phase::EndedWithHost, Vec::new()),
            // What stands beside the image may be half a tree that was to be made of it.
            Some(Record::Parked) if left.image => (Phase::Parked, vec![Action::Free]),
            Some(Record::Prepared) if left.image => (Phase::Storing, vec![Action::Record(Record::Parked, Sync::Now)]),
            Some(Record::Prepared) if left.tree => (Phase::Prepared, Vec::new()),
            // Without `owner` on the disk not one instruction has run, and there is nothing left that could.
            Some(Record::Prepared | Record::Parked) => (Phase::Aborted, abort(Sync::Now)),
            // No PREPARED was sent on this boot; what was on an earlier one has ended with it.
            Some(Record::Begun) => (Phase::Aborted, abort(Sync::Now)),
            Some(Record::Aborted) => (Phase::Aborted, vec![Action::Discard]),
        };
        (Self { attempt, phase, parked: phase == Phase::Parked, beside_others: false, rules }, actions)
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What is to be done now.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Armed if self.phase == Phase::Receiving => {
                self.to(Phase::Preparing, [Action::Record(Record::Prepared, Sync::Later)])
            }
            Event::Failed => self.before_prepared(),
            Event::Silent if self.phase == Phase::Prepared && !self.rules.keep(Rule::KeepAfterPrepared) => self.abort(),
            Event::Silent => self.before_prepared(),
            Event::LeaseOver if self.phase == Phase::Prepared && self.beside_others => self.abort(),
            Event::LeaseOver if self.phase == Phase::Prepared => self.park(),
            Event::LeaseOver => self.before_prepared(),
            Event::CopyDied if self.phase == Phase::Prepared => self.abort(),
            Event::CopyDied => self.before_prepared(),
            Event::Asked(attempt, _) if attempt != self.attempt && self.rules.keep(Rule::OwnAttemptOnly) => Vec::new(),
            Event::Asked(_, request) => self.asked(request),
            Event::Recorded => self.recorded(),
            Event::NotRecorded => self.not_recorded(),
            Event::Resolved(choice) if matches!(self.phase, Phase::Prepared | Phase::Parked) => match choice {
                Choice::Run => self.own_or_unpark(),
                Choice::Discard => self.abort(),
            },
            Event::Armed | Event::Resolved(_) => Vec::new(),
        }
    }

    fn asked(&mut self, request: Request) -> Vec<Action> {
        match (self.phase, request) {
            (Phase::Prepared | Phase::Parked, Request::Commit) => self.own_or_unpark(),
            (Phase::Prepared | Phase::Parked, Request::Abort) => self.abort(),
            (Phase::Prepared | Phase::Parked, Request::Ask) => vec![Action::Reply(Reply::Prepared)],
            // A COMMIT for what is not prepared: the source takes us for somebody else.
            (Phase::Receiving, Request::Commit | Request::Abort) => self.before_prepared(),
            (Phase::Owner, Request::Done) => self.to(Phase::Closed, [Action::Record(Record::Done, Sync::Later)]),
            (Phase::Owner | Phase::Closed, _) => vec![Action::Reply(Reply::Running)],
            (Phase::Aborted, Request::Commit) if !self.rules.keep(Rule::AbortedIsFinal) => self.own(),
            (Phase::Aborted, _) => vec![Action::Reply(Reply::Aborted)],
            (Phase::EndedWithHost, _) => vec![Action::Reply(Reply::EndedWithHost)],
            (Phase::Unknown, _) => vec![Action::Reply(Reply::Unknown)],
            // Asked while the answer is being recorded, or before there is one.
            _ => Vec::new(),
        }
    }

    fn recorded(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Preparing => self.to(Phase::Prepared, [Action::Reply(Reply::Prepared)]),
            Phase::Parking => self.to(Phase::Storing, [Action::Record(Record::Parked, Sync::Now)]),
            Phase::Storing => {
                self.parked = true;
                let ended = if self.rules.keep(Rule::ParkBeforeFree) { vec![Action::Free] } else { Vec::new() };
                self.phase = Phase::Parked;
                ended
            }
            Phase::Unparking => self.own(),
            Phase::Owning if self.parked => {
                self.to(Phase::Owner, [Action::Run, Action::Forget, Action::Reply(Reply::Running)])
            }
            Phase::Owning => self.to(Phase::Owner, [Action::Run, Action::Reply(Reply::Running)]),
            Phase::Aborting => self.to(Phase::Aborted, [Action::Discard, Action::Reply(Reply::Aborted)]),
            _ => Vec::new(),
        }
    }

    /// Where nothing is recorded nothing is decided.
    fn not_recorded(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Preparing => self.before_prepared(),
            // It stays in memory.
            Phase::Parking => self.to(Phase::Prepared, []),
            Phase::Storing => self.to(Phase::Prepared, [Action::Forget]),
            Phase::Owning if self.parked => self.to(Phase::Parked, [Action::Free]),
            Phase::Unparking => self.to(Phase::Parked, []),
            Phase::Aborting if self.parked => self.to(Phase::Parked, []),
            Phase::Owning | Phase::Aborting => self.to(Phase::Prepared, []),
            _ => Vec::new(),
        }
    }

    /// Memory and process ids are given back; what was said by PREPARED still holds.
    fn park(&mut self) -> Vec<Action> {
        if !self.rules.keep(Rule::KeepAfterPrepared) {
            return self.abort();
        }
        // On the disk before the image: one that no journal speaks of would be deleted.
        let prepared = Action::Record(Record::Prepared, Sync::Now);
        if self.rules.keep(Rule::ParkBeforeFree) {
            return self.to(Phase::Parking, [prepared, Action::Park]);
        }
        self.to(Phase::Parking, [prepared, Action::Free, Action::Park])
    }

    /// Nothing can fail between `owner` and the first instruction: of an image a tree is made before.
    fn own_or_unpark(&mut self) -> Vec<Action> {
        if self.parked && self.rules.keep(Rule::UnparkBeforeOwner) {
            return self.to(Phase::Unparking, [Action::Unpark]);
        }
        self.own()
    }

    fn own(&mut self) -> Vec<Action> {
        let sync = if self.rules.keep(Rule::SyncOwner) { Sync::Now } else { Sync::Later };
        self.to(Phase::Owning, [Action::Record(Record::Owner, sync)])
    }

    /// PREPARED was sent: it must be known for ever that a COMMIT comes too late.
    fn abort(&mut self) -> Vec<Action> {
        let sync = if self.rules.keep(Rule::SyncAborted) { Sync::Now } else { Sync::Later };
        self.to(Phase::Aborting, [Action::Record(Record::Aborted, sync)])
    }

    /// No PREPARED was sent: the source owns it, whatever happens here.
    fn before_prepared(&mut self) -> Vec<Action> {
        if !matches!(self.phase, Phase::Receiving | Phase::Preparing) {
            return Vec::new();
        }
        let record = Action::Record(Record::Aborted, Sync::Later);
        self.to(Phase::Aborted, [Action::Discard, Action::Reply(Reply::Aborted), record])
    }

    fn to<const N: usize>(&mut self, phase: Phase, actions: [Action; N]) -> Vec<Action> {
        self.phase = phase;
        actions.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_copies_is_deleted_when_nothing_is_heard_and_the_only_one_is_parked() {
        let prepared = |beside_others| {
            let mut machine = Destination::new(AttemptId([1; 16]), Rules::default()).beside_others(beside_others);
            machine.on(Event::Armed);
            assert_eq!(machine.on(Event::Recorded), [Action::Reply(Reply::Prepared)]);
            machine
        };
        let mut copy = prepared(true);
        assert_eq!(copy.on(Event::LeaseOver), [Action::Record(Record::Aborted, Sync::Now)]);
        assert_eq!(copy.on(Event::Recorded), [Action::Discard, Action::Reply(Reply::Aborted)]);
        let late = copy.on(Event::Asked(AttemptId([1; 16]), Request::Commit));
        assert_eq!(late, [Action::Reply(Reply::Aborted)], "what is deleted never runs");
        let mut only = prepared(false);
        assert!(only.on(Event::LeaseOver).contains(&Action::Park));
    }
}
